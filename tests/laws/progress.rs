//! Alive is not enough.

use weir_proto::v1::JobState;
use weir_tests::world::World;

use crate::words::{BRISK, items};

#[tokio::test]
async fn law_05_a_worker_that_heartbeats_and_persists_nothing_loses_the_lease() {
    let settings = [
        ("WEIR_PROGRESS_DEADLINE", "1s"),
        ("WEIR_LEASE_DURATION", "10m"),
    ];
    let world = World::start(&[&BRISK[..], &settings].concat()).await;
    let worker = world.worker("4");
    worker.process.wait_for_event("The embedder answers.").await;
    world.embedder.close_gate();
    let put = world.put_items("stuck", items(0..8, "text")).await;
    let job_id = put.jobs[0].job_id;
    world.embedder.calls_started(2).await;

    // The worker is there, and its lease would last for ten minutes.
    let dropped = "The lease ended; job dropped.";
    let dropped = worker.process.wait_for_event(dropped).await;
    assert!(
        dropped.to_string().contains("progress deadline"),
        "{dropped}"
    );
    world.embedder.open_gate();
    let job = world.succeeded(job_id).await;
    assert_eq!(job.state(), JobState::Succeeded);
    let history = world.history(job_id).await;
    let charged = history.iter().find(|was| was.attempt > 0).unwrap();
    assert_eq!((charged.state.as_str(), charged.attempt), ("queued", 1));
    assert_eq!(charged.chunks_done, 0);
    let why = charged.last_error.as_deref().unwrap();
    assert!(why.contains("progress deadline"), "{why}");
    world.assert_exact("stuck").await;
}
