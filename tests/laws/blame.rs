//! Blame is sorted before it is charged.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use weir_tests::{
    cluster::Worker,
    embedder::Rude,
    world::{Was, World},
};

use crate::words::{BRISK, is_work, items};

/// Answers the first batch rudely and all else well. What became of the job.
async fn first_batch_meets(rude: Rude) -> (World, i64, Vec<Was>) {
    let world = World::start(&BRISK).await;
    let met = AtomicBool::new(false);
    world.embedder.rule(move |texts| {
        let first = is_work(texts) && !met.swap(true, Ordering::Relaxed);
        first.then(|| rude.clone())
    });
    let put = world.put_items("source", items(0..6, "text")).await;
    let job_id = put.jobs[0].job_id;
    // With no claim waiting at the coordinator that could get the job back at once.
    let settings = [("WEIR_BATCH_SIZE", "4"), ("WEIR_CONCURRENCY", "1")];
    let _worker = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
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
        let (world, job_id, history) = first_batch_meets(Rude::Status(code, None, body)).await;
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
async fn law_09_a_bad_input_is_charged_to_its_chunk_and_nonsense_to_the_job() {
    let nonsense = first_batch_meets(Rude::WrongCount);
    // Refused as a whole, and then again text by text: nothing but the first call is rude.
    let input = first_batch_meets(Rude::Status(400, None, r#"{"error":"too odd"}"#.into()));
    let ((world, job_id, charged), (_, _, uncharged)) = futures::join!(nonsense, input);
    let attempts = charged.iter().map(|was| was.attempt).max();
    assert_eq!(attempts, Some(1), "{charged:?}");
    assert_eq!(world.job(job_id).await.epoch, 2);
    world.assert_exact("source").await;
    assert!(
        uncharged.iter().all(|was| was.attempt == 0),
        "{uncharged:?}"
    );
    assert!(uncharged.iter().all(|was| was.epoch <= 1), "{uncharged:?}");
}
