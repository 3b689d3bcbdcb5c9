//! No single loss costs more than seconds.

use weir_tests::{
    cluster::{Coordinator, Worker},
    world::World,
};

use crate::words::{BRISK, items};

/// The lease would last for ten minutes, longer than any test waits.
const SETTINGS: [(&str, &str); 2] = [("WEIR_LEASE_DURATION", "10m"), ("WEIR_ORPHAN_GRACE", "2s")];

#[tokio::test]
async fn law_15_a_node_that_takes_coordinator_and_worker_with_it_does_not_cost_the_lease() {
    let settings = [&BRISK[..], &SETTINGS].concat();
    let mut world = World::start(&settings).await;
    let replica = Coordinator::spawn(world.database.url(), &settings).await;
    let mut worker = world.worker("4");
    worker.process.wait_for_event("The embedder answers.").await;
    let probes = world.embedder.calls().len();
    world.embedder.close_gate();
    let put = world.put_items("source", items(0..60, "text")).await;
    let job_id = put.jobs[0].job_id;
    world.embedder.let_through(probes + 2);
    world.embedded("source", 8).await;
    // It holds batches when it dies.
    world.embedder.calls_started(probes + 3).await;
    let persisted = async || {
        let sql = "SELECT count(*) FROM weir.embeddings";
        crate::words::number(world.database.pool(), sql).await
    };
    assert!(persisted().await < 60);
    world.coordinator.process.sigkill().await;
    worker.process.sigkill().await;
    let kept = persisted().await;

    world.embedder.open_gate();
    let settings = [("WEIR_BATCH_SIZE", "4")];
    let _worker = Worker::spawn(&replica.url(), &world.embedder.url(), &settings);
    world.coordinator = replica;
    let job = world.succeeded(job_id).await;
    assert!(job.epoch > 1, "{job:?}");
    assert_eq!(job.attempt, 0, "it had moved forward: {job:?}");
    world.assert_exact("source").await;
    assert!(kept >= 8);
}
