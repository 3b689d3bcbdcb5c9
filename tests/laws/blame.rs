//! Blame is sorted before it is charged.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::{FutureExt as _, future::join_all};
use weir_proto::v1::{GetStatusRequest, JobState, Verdict};
use weir_tests::{
    clients::until,
    cluster::Worker,
    embedder::Rude,
    world::{Was, World},
};

use crate::words::{BRISK, is_work, items};

/// Answers the first batch rudely and all else well. What became of the job.
async fn first_batch_meets(rude: Rude) -> (World, i64, Vec<Was>) {
    let met = AtomicBool::new(false);
    job_meets(move |texts| {
        let first = is_work(texts) && !met.swap(true, Ordering::Relaxed);
        first.then(|| rude.clone())
    })
    .await
}

/// The same with all that comes before the first probe that follows, and with
/// that.
async fn outage_meets(rude: Rude) -> (World, i64, Vec<Was>) {
    let (began, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    job_meets(move |texts| {
        let is_on = if is_work(texts) {
            began.store(true, Ordering::Relaxed);
            !ended.load(Ordering::Relaxed)
        } else {
            began.load(Ordering::Relaxed) && !ended.swap(true, Ordering::Relaxed)
        };
        is_on.then(|| rude.clone())
    })
    .await
}

async fn job_meets(
    rule: impl Fn(&[String]) -> Option<Rude> + Send + Sync + 'static,
) -> (World, i64, Vec<Was>) {
    let world = World::start(&BRISK).await;
    world.embedder.rule(rule);
    let put = world.put_items("source", items(0..6, "text")).await;
    let job_id = put.jobs[0].job_id;
    let _worker = world.worker("4");
    world.succeeded(job_id).await;
    let history = world.history(job_id).await;
    (world, job_id, history)
}

#[tokio::test]
async fn law_09_an_unfit_embedder_is_charged_to_nobody() {
    let body = |why: &str| format!(r#"{{"error":"{why}"}}"#);
    let cases = [
        (401, body("who are you?")),
        (404, body("model \\\"fake\\\" not found")),
        (503, body("starting")),
    ];
    let runs = cases.map(|(code, body)| async move {
        let (world, job_id, history) = outage_meets(Rude::Status(code, None, body)).await;
        assert!(
            history.iter().all(|was| was.attempt == 0),
            "{code}: {history:?}"
        );
        // It went back to the queue, with the reason, and was claimed again.
        let back = history
            .iter()
            .rev()
            .find(|was| was.state == "queued")
            .unwrap();
        let why = back.last_error.as_deref().unwrap_or_default();
        assert!(why.contains(&code.to_string()), "{code}: {back:?}");
        assert_eq!(world.job(job_id).await.epoch, 2, "{code}");
        world.assert_exact("source").await;
    });
    join_all(runs).await;
}

#[tokio::test]
async fn law_09_what_fails_once_is_tried_again_and_charged_to_nobody() {
    let nonsense = first_batch_meets(Rude::WrongCount);
    // Refused as a whole, and then again text by text: nothing but the first call is rude.
    let input = first_batch_meets(Rude::Status(400, None, r#"{"error":"too odd"}"#.into()));
    for (world, job_id, history) in join_all([nonsense.boxed(), input.boxed()]).await {
        assert!(history.iter().all(|was| was.attempt == 0), "{history:?}");
        assert_eq!(world.job(job_id).await.epoch, 1, "{history:?}");
        world.assert_exact("source").await;
    }
}

#[tokio::test]
async fn law_09_an_embedder_that_refuses_everything_rejects_and_charges_nothing() {
    let world = World::start(&BRISK).await;
    let settings = [("WEIR_BATCH_SIZE", "4")];
    let worker = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
    worker.process.wait_for_event("The embedder answers.").await;
    let refusal = || Rude::Status(400, None, r#"{"error":"CUDA error: device lost"}"#.into());
    world.embedder.rule(move |_| Some(refusal()));
    let put = world.put_items("source", items(0..10, "text")).await;
    let job_id = put.jobs[0].job_id;
    let down = "The embedder embeds nothing; taking nothing until it does.";
    worker.process.wait_for_event(down).await;
    let told = async || {
        let job = world.job(job_id).await;
        job.state() == JobState::Queued && job.last_error.contains("device lost")
    };
    until(told).await;
    let degraded = async || {
        let status = GetStatusRequest::default();
        let status = world.jobs().await.get_status(status).await;
        status.unwrap().into_inner().total.unwrap().verdict() == Verdict::Degraded
    };
    until(degraded).await;
    let source = world.source("source").await.source.unwrap();
    assert_eq!(source.chunks_rejected, 0);

    world.embedder.behave();
    world.succeeded(job_id).await;
    world.assert_exact("source").await;
    let history = world.history(job_id).await;
    assert!(history.iter().all(|was| was.attempt == 0), "{history:?}");
}

#[tokio::test]
async fn law_09_a_call_that_is_lost_is_sent_again_and_charged_to_nobody() {
    let world = World::start(&BRISK).await;
    // No call of this test may last as long as the time that a slow embedder is given.
    let settings = [("WEIR_BATCH_SIZE", "4"), ("WEIR_EMBED_TIMEOUT", "10m")];
    let _worker = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
    // The worker learns how long calls take.
    let put = world.put_items("source", items(0..4, "text")).await;
    world.succeeded(put.jobs[0].job_id).await;
    let lost = AtomicBool::new(false);
    world.embedder.rule(move |texts| {
        let is_lost = is_work(texts) && !lost.swap(true, Ordering::Relaxed);
        is_lost.then_some(Rude::Hang)
    });
    let put = world.put_items("source", items(0..10, "other text")).await;
    let job_id = put.jobs[0].job_id;
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    assert_eq!(job.chunks_rejected, 0, "{job:?}");
    world.assert_exact("source").await;
}
