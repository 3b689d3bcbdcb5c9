//! Workers that open a session again with what they hold. More of it is in
//! `orphans.rs`.

use weir_proto::v1::{self, JobState, RevokeReason, lease_ended::How};
use weir_tests::{
    cluster::Coordinator,
    session::{Session, embeds, held, opening, result},
};

use super::{CUT, TWO_MODELS, holding, jobs_that, meanwhile, put};
use crate::clients::{Weir, until};

const LONG_GRACE: (&str, &str) = ("WEIR_ORPHAN_GRACE", "1m");
/// Nobody takes back what runs out, however slow the machine is.
const NO_RESCUE: (&str, &str) = ("WEIR_POLL_INTERVAL", "1h");

#[tokio::test]
async fn results_whose_acks_were_lost_are_acknowledged_when_they_come_again() {
    let weir = Weir::with(&[LONG_GRACE, NO_RESCUE]).await;
    let jobs = [
        put(&weir, "one", &["a", "bb"]).await,
        put(&weir, "two", &["c", "dd"]).await,
    ];
    let mut session = Session::open(&weir, 1).await;
    session.grant(4);
    let mut parts = Vec::new();
    while parts.len() < 4 {
        parts.push(session.part().await);
    }
    let (of_one, of_two): (Vec<_>, Vec<_>) =
        parts.into_iter().partition(|part| part.job_id == jobs[0]);
    // The whole of one job is written and half of another, and the worker hears of neither.
    let sent = [&of_one[0], &of_one[1], &of_two[0]];
    session.send(result(sent.map(embeds)));
    until(async || weir.rows("embeddings").await == 3).await;
    let mut unheard: Vec<v1::BatchPart> = sent.map(Clone::clone).into();
    unheard.push(of_two[1].clone());
    drop(session);

    let mut session = Session::resume(&weir.channel, 1, &unheard).await;
    session.grant(4);
    assert_eq!(session.finished(jobs[0]).await.chunks_done, 2);
    session.send(result(sent.map(embeds)));
    assert_eq!(session.ack(of_two[0].seq).await.late, 0);
    session.embed_and_wait(&of_two[1]).await;
    assert_eq!(session.finished(jobs[1]).await.chunks_done, 2);
    // Nothing was sent again.
    assert!(session.is_quiet());
    for job_id in jobs {
        assert_eq!(weir.job(job_id).await.epoch, 1);
    }
}

#[tokio::test]
async fn held_leases_that_are_gone_end_alone_and_the_others_go_on() {
    let weir = Weir::with(&[LONG_GRACE, NO_RESCUE]).await;
    let jobs = [
        put(&weir, "cancelled", &["a"]).await,
        put(&weir, "kept", &["b"]).await,
    ];
    let (session, mut parts) = holding(&weir, &jobs).await;
    drop(session);
    let cancel = v1::CancelJobRequest { job_id: jobs[0] };
    weir.jobs().cancel_job(cancel).await.unwrap();
    // One that nobody knows of any more, its history being over.
    let forgotten = v1::BatchPart {
        seq: 90,
        job_id: 999_999,
        ..parts[0].clone()
    };
    parts.push(forgotten);

    let mut session = Session::resume(&weir.channel, 1, &parts).await;
    for (job_id, reason) in [
        (jobs[0], RevokeReason::Cancelled),
        (999_999, RevokeReason::LeaseLost),
    ] {
        let How::Revoked(revoked) = session.ended(job_id).await else {
            panic!("job {job_id} is not its own");
        };
        assert_eq!(revoked.reason(), reason);
    }
    session.embed(&parts[1]);
    session.finished(jobs[1]).await;
    assert_eq!(weir.job(jobs[1]).await.epoch, 1);
}

#[tokio::test]
async fn a_held_lease_of_a_model_that_the_session_does_not_name_ends_alone() {
    let weir = Weir::with(&[LONG_GRACE, NO_RESCUE, ("WEIR_MODELS", "fake,other")]).await;
    let job_id = put(&weir, "source", &["a"]).await;
    let (session, parts) = holding(&weir, &[job_id]).await;
    drop(session);
    let open = v1::SessionOpen {
        models: vec![weir_tests::session::model("other", 1)],
        held: held(&parts),
        ..opening(1)
    };
    let mut session = Session::open_as(&weir.channel, None, open).await;
    let ended = session.ended(job_id).await;
    assert!(matches!(ended, How::Released(_)), "{ended:?}");
    let job = weir.job(job_id).await;
    assert_eq!((job.state(), job.attempt), (JobState::Queued, 0), "{job:?}");
    assert!(job.last_error.contains("without its model"), "{job:?}");
    meanwhile(&weir, &weir.channel, "next").await;
    assert!(session.is_quiet());
}

#[tokio::test]
async fn a_locked_source_does_not_hold_up_a_worker_that_comes_back_with_others() {
    let weir = Weir::with(&[LONG_GRACE, NO_RESCUE]).await;
    let jobs = [
        put(&weir, "locked", &["a"]).await,
        put(&weir, "free", &["b"]).await,
    ];
    let (session, parts) = holding(&weir, &jobs).await;
    drop(session);
    until(async || jobs_that(&weir, CUT).await == 2).await;
    let mut lock = weir.database.pool().begin().await.unwrap();
    let locked = "SELECT FROM weir.jobs WHERE id = $1 FOR UPDATE";
    sqlx::query(locked)
        .bind(jobs[0])
        .execute(&mut *lock)
        .await
        .unwrap();
    let mut session = Session::resume(&weir.channel, 1, &parts).await;
    session.send(result(parts.iter().map(embeds)));
    session.finished(jobs[1]).await;
    lock.rollback().await.unwrap();
    session.finished(jobs[0]).await;
    for job_id in jobs {
        assert_eq!(weir.job(job_id).await.epoch, 1);
    }
}

/// A replica that stops tells its workers so, and they lose nothing by it.
#[tokio::test]
async fn a_replica_that_goes_away_says_so_and_another_goes_on() {
    let settings = [LONG_GRACE, NO_RESCUE, ("WEIR_DRAIN_TIMEOUT", "30s")];
    let mut weir = Weir::with(&settings).await;
    let other = Coordinator::spawn(weir.database.url(), &settings).await;
    let job_id = put(&weir, "source", &["a", "bb"]).await;
    let mut session = Session::open(&weir, 1).await;
    session.grant(1);
    let part = session.part().await;
    weir.coordinator.process.sigterm();
    let status = session.over().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    assert_eq!(weir.coordinator.process.wait().await.code(), Some(0));

    let mut session = Session::resume(&other.connect().await, 1, &session.break_off()).await;
    session.embed_and_wait(&part).await;
    session.grant(1);
    let part = session.part().await;
    session.embed(&part);
    session.finished(job_id).await;
    let jobs = "SELECT epoch FROM weir.jobs WHERE attempt = 0";
    let epoch: i64 = sqlx::query_scalar(jobs)
        .fetch_one(weir.database.pool())
        .await
        .unwrap();
    assert_eq!(epoch, 1);
}

/// The same where the worker is behind with reading: what it reads in the end is not
/// that its session has come to a good end.
#[tokio::test]
async fn a_worker_that_is_behind_with_reading_is_told_that_its_replica_went_away() {
    let settings = [
        LONG_GRACE,
        NO_RESCUE,
        TWO_MODELS,
        ("WEIR_DRAIN_TIMEOUT", "30s"),
        ("WEIR_CHUNK_SIZE", "20000"),
    ];
    let weir = Weir::with(&settings).await;
    let text = "word ".repeat(3_000);
    let texts: Vec<String> = (0..500).map(|id| format!("{id} {text}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    put(&weir, "large", &texts).await;
    let mut session = Session::open(&weir, 16).await;
    session.grant(500);
    session.part().await;
    // By the time that another's work is done, it has been sent what fits.
    for name in ["one", "two", "three"] {
        meanwhile(&weir, &weir.channel, name).await;
    }
    weir.coordinator.process.sigterm();
    let over = session.over().await;
    assert_eq!(over.unwrap_err().code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn a_session_that_comes_back_too_late_is_told_that_its_leases_are_lost() {
    let settings = [("WEIR_ORPHAN_GRACE", "1s"), ("WEIR_POLL_INTERVAL", "50ms")];
    let weir = Weir::with(&settings).await;
    let job_id = put(&weir, "source", &["a"]).await;
    let (session, parts) = holding(&weir, &[job_id]).await;
    drop(session);
    until(async || weir.job(job_id).await.state() == JobState::Queued).await;
    let mut session = Session::resume(&weir.channel, 1, &parts).await;
    let How::Revoked(revoked) = session.ended(job_id).await else {
        panic!("it is another's by now");
    };
    assert_eq!(revoked.reason(), RevokeReason::LeaseLost);
    session.embed(&parts[0]);
    // It may have it again, anew.
    session.grant(1);
    let part = session.part().await;
    assert!(part.epoch > parts[0].epoch);
    session.embed(&part);
    session.finished(job_id).await;
}
