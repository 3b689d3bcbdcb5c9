//! The story that Weir began with: a document that takes longer than a lease,
//! embedded on the first try, and none of it twice.

use std::time::Duration;

use crate::world::{World, assert_lost_at_most};

/// Chunks in one call of the embedder.
const BATCH: usize = 16;
/// Batches that a worker holds, its default.
const WINDOW: usize = 2;
/// A lease far shorter than the job.
const SHORT_LEASE: (&str, &str) = ("WEIR_LEASE_DURATION", "2s");

/// The rescuer begins after one orphan grace.
const SHORT_GRACE: (&str, &str) = ("WEIR_ORPHAN_GRACE", "500ms");

async fn slow_world() -> World {
    let world = World::start(&[SHORT_LEASE, SHORT_GRACE]).await;
    world
        .embedder
        .set_delay(Duration::from_millis(800), Duration::ZERO);
    world
}

#[tokio::test]
async fn a_job_longer_than_its_lease_succeeds_on_the_first_try() {
    let world = slow_world().await;
    let job_id = world.put_logistics().await;
    let _worker = world.worker(&BATCH.to_string());

    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    assert_eq!(job.last_error, "");
    let ran = seconds(job.finish_time) - seconds(job.start_time);
    assert!(ran > 4.0, "the job outlived no lease: {ran} s");

    let history = world.history(job_id).await;
    assert!(history.iter().all(|was| was.attempt == 0), "{history:?}");
    let chunks = world.assert_exact("logistics").await;
    assert_eq!(job.chunks_done, chunks.len() as i64);
    assert_eq!(world.repeated(&chunks), [].into());
}

fn seconds(time: Option<prost_types::Timestamp>) -> f64 {
    let time = time.expect("the job started and finished");
    time.seconds as f64 + f64::from(time.nanos) * 1e-9
}

#[tokio::test]
async fn one_call_longer_than_the_lease_keeps_it() {
    let world = World::start(&[SHORT_LEASE, SHORT_GRACE]).await;
    let text = "a text that takes its time";
    let put = world.put_items("slow", [("a".into(), text.into())]).await;
    let worker = world.worker("1");
    worker.process.wait_for_event("The embedder answers.").await;
    // The probe was quick; the text is not.
    world
        .embedder
        .set_delay(Duration::from_secs(5), Duration::ZERO);
    let job = world.succeeded(put.jobs[0].job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    assert_eq!(world.embedder.received()[text], 1);
}

#[tokio::test]
async fn a_killed_worker_loses_only_what_was_in_flight() {
    let world = slow_world().await;
    let job_id = world.put_logistics().await;
    let mut first = world.worker(&BATCH.to_string());
    world.embedded("logistics", 4 * BATCH as i64).await;
    first.process.sigkill().await;
    // What the coordinator had received by then may still be on its way into
    // the database; this is what surely was there.
    let persisted = world.persisted("logistics").await;
    assert!(persisted.len() >= 4 * BATCH);

    let _second = world.worker(&BATCH.to_string());
    let job = world.succeeded(job_id).await;
    assert!(job.epoch > 1, "{job:?}");
    assert_eq!(job.attempt, 0, "{job:?}");
    let history = world.history(job_id).await;
    assert!(history.iter().all(|was| was.attempt == 0), "{history:?}");

    let chunks = world.assert_exact("logistics").await;
    assert_lost_at_most(
        WINDOW * BATCH,
        &world.repeated(&chunks),
        &persisted,
        &chunks,
    );
}
