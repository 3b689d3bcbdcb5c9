//! Embedders that are down, rest, or are not tried yet.

use weir_proto::v1::{EmbedderState, JobState, PutSourceRequest, lease_ended::How};
use weir_tests::{
    cluster::MODEL,
    session::{Session, condition, credit, hands_back, model, opening, result},
};

use super::{finish, put};
use crate::clients::{Weir, put_texts};

#[tokio::test]
async fn the_jobs_of_an_embedder_that_is_down_go_back_with_the_reason_and_come_again() {
    let weir = Weir::start().await;
    let job_id = put(&weir, "source", &["a", "bb", "ccc"]).await;
    let mut session = Session::open(&weir, 1).await;
    // More than there is, so that a claim waits for what may come.
    session.grant(10);
    let parts = [
        session.part().await,
        session.part().await,
        session.part().await,
    ];
    session.embed_and_wait(&parts[0]).await;
    session.send(condition(MODEL, EmbedderState::Down, "out of memory"));
    // The lease is the worker's for as long as it holds something of it.
    session.send(result([hands_back(&parts[1])]));
    session.ack(parts[1].seq).await;
    assert_eq!(weir.job(job_id).await.state(), JobState::Running);
    session.embed(&parts[2]);
    let how = session.ended(job_id).await;
    assert!(matches!(how, How::Released(_)), "{how:?}");
    let job = weir.job(job_id).await;
    assert_eq!((job.state(), job.attempt), (JobState::Queued, 0), "{job:?}");
    assert!(job.last_error.contains("out of memory"), "{job:?}");
    assert_eq!(job.chunks_done, 2, "{job:?}");

    // Another gets it next, and not the one that is down in between.
    let mut fit = Session::open(&weir, 1).await;
    fit.grant(1);
    let part = fit.part().await;
    assert_eq!(part.epoch, 2, "who is down was given it once more");
    drop(fit);

    session.send(condition(MODEL, EmbedderState::Fit, ""));
    let part = session.part().await;
    session.embed(&part);
    assert_eq!(session.finished(job_id).await.chunks_done, 3);
    assert_eq!(weir.job(job_id).await.attempt, 0);
}

#[tokio::test]
async fn of_two_models_the_one_that_is_down_keeps_the_other_from_nothing() {
    let weir = Weir::with(&[("WEIR_MODELS", "fake,other")]).await;
    let mut jobs = Vec::new();
    for name in ["fake", "other"] {
        let put = PutSourceRequest {
            model: name.to_owned(),
            ..put_texts(name, &["text"])
        };
        let put = weir.sources().put_source(put).await.unwrap().into_inner();
        jobs.push(put.jobs[0].job_id);
    }
    let mut open = opening(1);
    open.models.push(model("other", 4));
    let mut session = Session::open_as(&weir.channel, None, open).await;
    session.send(condition("other", EmbedderState::Down, "no such file"));
    session.send(credit("other", 5));
    session.grant(5);
    let batch = session.batch().await;
    assert_eq!(batch.model, "fake");
    session.embed(&batch.parts[0]);
    session.finished(jobs[0]).await;
    let other = weir.job(jobs[1]).await;
    assert_eq!((other.state(), other.epoch), (JobState::Queued, 0));

    session.send(condition("other", EmbedderState::Fit, ""));
    let batch = session.batch().await;
    assert_eq!(batch.model, "other");
    session.embed(&batch.parts[0]);
    session.finished(jobs[1]).await;
}

#[tokio::test]
async fn an_embedder_that_rests_is_sent_nothing_and_keeps_its_leases() {
    let weir = Weir::with(&[("WEIR_ORPHAN_GRACE", "3s")]).await;
    let job_id = put(&weir, "source", &["a", "bb", "ccc"]).await;
    let mut session = Session::open(&weir, 1).await;
    session.grant(1);
    let part = session.part().await;
    session.send(condition(MODEL, EmbedderState::Resting, "a quota"));
    session.grant(2);
    session.embed_and_wait(&part).await;
    // Another job is not for it either: who is fit has it.
    let other = put(&weir, "other", &["d"]).await;
    let mut fit = Session::open(&weir, 1).await;
    assert_eq!(finish(&mut fit, other).await.chunks_done, 1);
    assert!(session.is_quiet());
    let job = weir.job(job_id).await;
    assert_eq!((job.state(), job.epoch), (JobState::Running, 1), "{job:?}");

    session.send(condition(MODEL, EmbedderState::Fit, ""));
    for _ in 0..2 {
        let part = session.part().await;
        session.embed(&part);
    }
    session.finished(job_id).await;
}

#[tokio::test]
async fn nothing_is_claimed_for_an_embedder_that_nobody_has_tried() {
    let weir = Weir::start().await;
    let job_id = put(&weir, "source", &["a"]).await;
    let mut session = Session::open(&weir, 1).await;
    session.send(condition(MODEL, EmbedderState::Unspecified, ""));
    session.grant(1);
    let mut fit = Session::open(&weir, 1).await;
    fit.grant(1);
    let part = fit.part().await;
    assert_eq!((part.job_id, part.epoch), (job_id, 1));
    assert!(session.is_quiet());
}
