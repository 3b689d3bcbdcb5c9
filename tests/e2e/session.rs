//! The session of a worker: what it is sent, what becomes of its answers, and what of
//! it ends when something ends. Every session of these tests holds what comes against
//! the contract (`harness/session.rs`).

mod back;
mod credits;
mod ends;
mod loss;
mod models;

use tonic::transport::Channel;
use weir_proto::v1::{
    self, CancelJobRequest, DeleteSourceRequest, JobState, PutSourceRequest, RevokeReason,
    lease_ended::How,
};
use weir_tests::{
    certificates::text_of,
    session::{Session, credit, embeds, hands_back, model, opening, rejects, result, texts},
    tokens::Tokens,
};

use crate::{
    clients::{Weir, put_texts, until},
    security::with_token,
};

/// Puts a source of these texts, which are one job.
async fn put(weir: &Weir, name: &str, texts: &[&str]) -> i64 {
    weir.put(name, texts).await.jobs[0].job_id
}

/// A session of one chunk a batch that holds the first of each of these jobs, of which
/// nothing else is pending.
async fn holding(weir: &Weir, jobs: &[i64]) -> (Session, Vec<v1::BatchPart>) {
    let mut session = Session::open(weir, 1).await;
    session.grant(jobs.len() as i32);
    let mut parts = Vec::new();
    while parts.len() < jobs.len() {
        parts.push(session.part().await);
    }
    let place = |part: &v1::BatchPart| jobs.iter().position(|job_id| *job_id == part.job_id);
    parts.sort_by_key(place);
    (session, parts)
}

/// How many jobs are so.
async fn jobs_that(weir: &Weir, are: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM weir.jobs WHERE {are}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .fetch_one(weir.database.pool())
        .await
        .unwrap()
}

/// Leases that end soon, because the session that they are of is over.
const CUT: &str = "state = 'running' AND lease_expires_at <= now() + interval '2 s'";

/// Models of which one is not that of most tests: so a session of this one is given
/// nothing else.
pub(crate) const TWO_MODELS: (&str, &str) = ("WEIR_MODELS", "fake,other");

/// Has a small job of the other model done. Whatever the coordinator had to do before
/// that, it has had time for.
pub(crate) async fn meanwhile(weir: &Weir, channel: &Channel, name: &str) {
    let put = PutSourceRequest {
        model: "other".to_owned(),
        ..put_texts(name, &["text"])
    };
    let put = weir.sources().put_source(put).await.unwrap().into_inner();
    let open = v1::SessionOpen {
        models: vec![model("other", 1)],
        ..opening(1)
    };
    let mut session = Session::open_as(channel, None, open).await;
    session.send(credit("other", 1));
    let part = session.part().await;
    session.embed(&part);
    session.finished(put.jobs[0].job_id).await;
}

/// Has a worker do what is left of a job.
async fn finish(session: &mut Session, job_id: i64) -> v1::JobFinished {
    session.grant(1);
    let part = session.part().await;
    assert_eq!(part.job_id, job_id);
    session.embed(&part);
    session.finished(job_id).await
}

#[tokio::test]
async fn a_part_that_is_handed_back_comes_again_and_is_charged_to_nobody() {
    let weir = Weir::start().await;
    let job_id = put(&weir, "source", &["a", "bb"]).await;
    let mut session = Session::open(&weir, 2).await;
    session.grant(4);
    let part = session.part().await;
    session.send(result([hands_back(&part)]));
    assert_eq!(session.ack(part.seq).await.late, 0);
    let again = session.part().await;
    assert!(again.seq > part.seq);
    assert_eq!((&again.chunks, again.epoch), (&part.chunks, part.epoch));
    session.embed(&again);
    assert_eq!(session.finished(job_id).await.chunks_done, 2);
    assert_eq!(weir.job(job_id).await.attempt, 0);
}

#[tokio::test]
async fn what_a_result_leaves_out_comes_again_and_the_rest_does_not() {
    let weir = Weir::start().await;
    let job_id = put(&weir, "source", &["a", "bb", "ccc"]).await;
    let mut session = Session::open(&weir, 3).await;
    session.grant(4);
    let part = session.part().await;
    let mut some = embeds(&part);
    some.embedded.remove(1);
    some.rejected = rejects(&part, "too odd").rejected.split_off(2);
    some.embedded.truncate(1);
    session.send(result([some]));
    session.ack(part.seq).await;
    let again = session.part().await;
    assert_eq!(texts(&again), ["bb"]);
    session.embed(&again);
    let finished = session.finished(job_id).await;
    assert_eq!((finished.chunks_done, finished.chunks_rejected), (2, 1));
}

#[tokio::test]
async fn a_part_that_is_answered_twice_is_taken_once() {
    let weir = Weir::start().await;
    let job_id = put(&weir, "source", &["a", "bb"]).await;
    let mut session = Session::open(&weir, 1).await;
    session.grant(1);
    let part = session.part().await;
    // In one message and in the next, and as something else.
    session.send(result([embeds(&part), rejects(&part, "no")]));
    session.send(result([rejects(&part, "no")]));
    session.ack(part.seq).await;
    finish(&mut session, job_id).await;
    let job = weir.job(job_id).await;
    assert_eq!((job.chunks_done, job.chunks_rejected), (2, 0), "{job:?}");
}

/// Makes a result one that is refused.
type Spoil = fn(&mut v1::PartResult);

#[tokio::test]
async fn a_malformed_result_ends_its_lease_alone_and_is_charged() {
    let settings = [("WEIR_BACKOFF_BASE", "1h"), ("WEIR_BACKOFF_CAP", "1h")];
    let weir = Weir::with(&settings).await;
    let good = put(&weir, "good", &["good", "better"]).await;
    let mut session = Session::open(&weir, 1).await;
    session.grant(1);
    let kept = session.part().await;
    // The model has its dimension.
    session.embed_and_wait(&kept).await;
    session.grant(1);
    let kept = session.part().await;
    let cases: [(&str, Spoil); 7] = [
        ("vector", |it| it.embedded[0].vector = vec![0; 3].into()),
        ("vector", |it| it.embedded[0].vector = vec![0; 8].into()),
        ("vector", |it| {
            it.embedded[0].vector = [f32::NAN.to_le_bytes(); 16].concat().into();
        }),
        ("text_hash", |it| {
            it.embedded[0].text_hash = vec![0; 31];
        }),
        ("truncated_to", |it| it.embedded[0].truncated_to = -1),
        ("nobody", |it| it.embedded[0].item_id = "nobody".to_owned()),
        ("reason", |it| {
            let chunk = it.embedded.remove(0);
            it.rejected.push(v1::RejectedChunk {
                item_id: chunk.item_id,
                chunk_index: chunk.chunk_index,
                text_hash: chunk.text_hash,
                reason: String::new(),
            });
        }),
    ];
    for (place, (what, spoil)) in cases.into_iter().enumerate() {
        let bad = put(&weir, &format!("bad-{place}"), &["bad"]).await;
        session.grant(1);
        let part = session.part().await;
        assert_eq!(part.job_id, bad);
        let mut answer = embeds(&part);
        spoil(&mut answer);
        session.send(result([answer]));
        let how = session.ended(bad).await;
        let How::Refused(refused) = how else {
            panic!("{what}: it was to be refused, not {how:?}");
        };
        assert!(refused.contains(what), "{what}: {refused}");
        let job = weir.job(bad).await;
        assert_eq!((job.state(), job.attempt), (JobState::Queued, 1), "{job:?}");
        assert!(job.last_error.contains(what), "{what}: {job:?}");
    }
    // All the while the worker held a part of another job, under the same lease.
    session.embed(&kept);
    session.finished(good).await;
    assert_eq!(weir.job(good).await.epoch, 1);
}

#[tokio::test]
async fn a_lease_that_is_revoked_ends_alone() {
    let weir = Weir::start().await;
    let [cancelled, deleted, kept] = ["cancelled", "deleted", "kept"];
    let jobs = [
        put(&weir, cancelled, &["a"]).await,
        put(&weir, deleted, &["b"]).await,
        put(&weir, kept, &["c"]).await,
    ];
    let (mut session, parts) = holding(&weir, &jobs).await;
    let request = CancelJobRequest { job_id: jobs[0] };
    weir.jobs().cancel_job(request).await.unwrap();
    let request = DeleteSourceRequest {
        name: deleted.to_owned(),
        ..DeleteSourceRequest::default()
    };
    weir.sources().delete_source(request).await.unwrap();
    for (job_id, reason) in [
        (jobs[0], RevokeReason::Cancelled),
        (jobs[1], RevokeReason::SourceDeleted),
    ] {
        let How::Revoked(revoked) = session.ended(job_id).await else {
            panic!("job {job_id} is nobody's any more");
        };
        assert_eq!(revoked.reason(), reason);
    }
    // What the worker embedded of them is passed by, also with results of the third.
    session.send(result(parts.iter().map(embeds)));
    session.finished(jobs[2]).await;
    session.ack(parts[2].seq).await;
    assert!(session.is_quiet());
    assert_eq!(weir.rows("embeddings").await, 1);
}

#[tokio::test]
async fn a_changed_text_comes_anew_under_the_same_lease_and_its_neighbour_does_not() {
    let weir = Weir::start().await;
    let job_id = put(&weir, "source", &["a", "bb"]).await;
    let mut session = Session::open(&weir, 2).await;
    session.grant(4);
    let part = session.part().await;
    weir.sources()
        .put_source(put_texts("source", &["a", "cc"]))
        .await
        .unwrap();
    session.embed(&part);
    assert_eq!(session.ack(part.seq).await.late, 1);
    let again = session.part().await;
    assert_eq!((again.job_id, texts(&again)), (job_id, vec!["cc"]));
    assert_eq!(again.epoch, part.epoch);
    session.embed(&again);
    session.finished(job_id).await;
}

#[tokio::test]
async fn a_source_that_somebody_has_locked_holds_up_neither_results_nor_heartbeats_of_others() {
    let weir = Weir::with(&[("WEIR_ORPHAN_GRACE", "5s")]).await;
    let jobs = [
        put(&weir, "locked", &["a"]).await,
        put(&weir, "free", &["b", "cc", "ddd"]).await,
    ];
    let pool = weir.database.pool();
    let mut session = Session::open(&weir, 1).await;
    session.grant(2);
    let mut parts = [session.part().await, session.part().await];
    parts.sort_by_key(|part| part.job_id != jobs[0]);
    let mut lock = pool.begin().await.unwrap();
    sqlx::query(
        "SELECT FROM weir.jobs j JOIN weir.sources s ON s.id = j.source_id WHERE j.id = $1 FOR UPDATE",
    )
    .bind(jobs[0])
    .execute(&mut *lock)
    .await
    .unwrap();

    session.send(result(parts.iter().map(embeds)));
    session.ack(parts[1].seq).await;
    // Nor is what comes after that held up.
    session.grant(1);
    let next = session.part().await;
    let sql = "UPDATE weir.jobs SET lease_expires_at = now() + interval '1 min' WHERE id = $1";
    sqlx::query(sql).bind(jobs[1]).execute(pool).await.unwrap();
    until(async || {
        let left =
            "SELECT lease_expires_at > now() + interval '5 min' FROM weir.jobs WHERE id = $1";
        let left = sqlx::query_scalar(left).bind(jobs[1]);
        left.fetch_one(pool).await.unwrap()
    })
    .await;
    session.embed_and_wait(&next).await;
    assert!(session.is_quiet());
    finish(&mut session, jobs[1]).await;

    lock.rollback().await.unwrap();
    session.finished(jobs[0]).await;
    let job = weir.job(jobs[0]).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
}

#[tokio::test]
async fn a_session_of_a_token_of_one_namespace_gets_nothing_of_another() {
    let tokens = Tokens::new();
    let client = tokens.add("client", "client", &["*"]);
    let a = tokens.add("gpu-a", "worker", &["a"]);
    let all = tokens.add("gpu", "worker", &["*"]);
    let file = tokens.path();
    let settings = [
        ("WEIR_TOKENS_FILE", text_of(&file)),
        // Which a worker of one namespace may not decide on.
        ("WEIR_MODELS", "fake=16"),
    ];
    let weir = Weir::with(&settings).await;
    let mut sources = v1::source_service_client::SourceServiceClient::with_interceptor(
        weir.channel.clone(),
        with_token(&client),
    );
    let mut jobs = Vec::new();
    for namespace in ["b", "a", "c"] {
        let put = PutSourceRequest {
            namespace: namespace.to_owned(),
            ..put_texts("source", &["text"])
        };
        let put = sources.put_source(put).await.unwrap().into_inner();
        jobs.push(put.jobs[0].job_id);
    }
    assert!(
        Session::try_open(&weir.channel, None, opening(1))
            .await
            .is_err(),
        "nobody without a token has a session"
    );
    let mut of_a = Session::open_as(&weir.channel, Some(&a), opening(1)).await;
    of_a.grant(10);
    let part = of_a.part().await;
    assert_eq!((&*part.namespace, part.job_id), ("a", jobs[1]));
    of_a.embed_and_wait(&part).await;
    of_a.finished(jobs[1]).await;

    // The rest is for who may have it.
    let mut of_all = Session::open_as(&weir.channel, Some(&all), opening(1)).await;
    of_all.grant(2);
    for _ in 0..2 {
        let part = of_all.part().await;
        assert_eq!(part.epoch, 1, "{part:?}");
        of_all.embed(&part);
        of_all.finished(part.job_id).await;
    }
    let quiet = of_a.is_quiet();
    assert!(quiet, "{:?}", of_a.kept().collect::<Vec<_>>());
}
