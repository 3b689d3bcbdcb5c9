//! A worker that is asked to end, as every deployment does it.

use std::time::Duration;

use weir_proto::v1::JobState;

use crate::world::World;

#[tokio::test]
async fn a_drained_worker_hands_its_job_back_and_repeats_nothing() {
    let world = World::start(&[]).await;
    world
        .embedder
        .set_delay(Duration::from_millis(200), Duration::ZERO);
    let job_id = world.put_logistics().await;
    let mut first = world.worker("16");
    world.embedded("logistics", 48).await;
    first.process.sigterm();
    assert_eq!(first.process.wait().await.code(), Some(0));

    // Nothing had to run out for this: the lease lasts ten minutes.
    let job = world.job(job_id).await;
    assert_eq!(job.state(), JobState::Queued, "{job:?}");
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    assert!(job.last_error.contains("draining"), "{job:?}");
    let last = world.history(job_id).await.pop();
    assert!(last.is_some_and(|was| !was.delayed), "claimable at once");
    // What the embedder was asked for is in the database.
    let persisted = world.persisted("logistics").await;
    assert!((48..203).contains(&persisted.len()));
    let mut received = world.embedder.received();
    received.remove("probe");
    assert_eq!(received, crate::world::count(&persisted));

    let _second = world.worker("16");
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (2, 0), "{job:?}");
    let chunks = world.assert_exact("logistics").await;
    assert_eq!(world.repeated(&chunks), [].into());
}
