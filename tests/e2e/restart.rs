//! Coordinators that end, suddenly or in order, and come back.

use std::time::Duration;

use tokio::select;
use weir_proto::v1::{
    ClaimJobRequest, GetQueueStatsRequest, WatchSourceRequest,
    job_service_client::JobServiceClient, worker_service_client::WorkerServiceClient,
};
use weir_tests::cluster::Coordinator;

use crate::{clients::until, world::World};

#[tokio::test]
async fn a_killed_coordinator_costs_nothing_but_time() {
    let mut world = World::start(&[]).await;
    world
        .embedder
        .set_delay(Duration::from_millis(300), Duration::ZERO);
    let job_id = world.put_logistics().await;
    let worker = world.worker("16");
    world.embedded("logistics", 48).await;
    let address = world.coordinator.address().to_string();
    world.coordinator.process.sigkill().await;
    let persisted = world.persisted("logistics").await;
    assert!((48..203).contains(&persisted.len()));

    let environment = [("WEIR_LISTEN", address.as_str())];
    world.coordinator = Coordinator::spawn(world.database.url(), &environment).await;
    worker
        .process
        .wait_for_event("The session is open again.")
        .await;
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    let chunks = world.assert_exact("logistics").await;
    assert_eq!(world.repeated(&chunks), [].into());
}

#[tokio::test]
async fn a_lease_that_ran_out_while_nobody_could_renew_it_is_kept() {
    let lease = [
        ("WEIR_LEASE_DURATION", "2s"),
        ("WEIR_ORPHAN_GRACE", "10s"),
        // A rescuer that does not wait comes before the worker.
        ("WEIR_POLL_INTERVAL", "10ms"),
    ];
    let mut world = World::start(&lease).await;
    let worker = world.worker("1");
    worker.process.wait_for_event("The embedder answers.").await;
    world.embedder.close_gate();
    let put = world.put_items("held", [("a".into(), "text".into())]).await;
    world.embedder.calls_started(2).await;
    let address = world.coordinator.address().to_string();
    world.coordinator.process.sigkill().await;
    let over = "SELECT count(*) FROM weir.jobs WHERE lease_expires_at < now()";
    let over = async || {
        sqlx::query_scalar(over)
            .fetch_one(world.database.pool())
            .await
    };
    until(async || over().await.is_ok_and(|jobs: i64| jobs == 1)).await;

    let mut environment = lease.to_vec();
    environment.push(("WEIR_LISTEN", address.as_str()));
    world.coordinator = Coordinator::spawn(world.database.url(), &environment).await;
    worker
        .process
        .wait_for_event("The session is open again.")
        .await;
    world.embedder.open_gate();
    let job = world.succeeded(put.jobs[0].job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    assert_eq!(world.embedder.received()["text"], 1);
}

#[tokio::test]
async fn a_coordinator_ends_in_order_with_calls_under_way() {
    let mut world = World::start(&[]).await;
    let worker = world.worker("1");
    worker.process.wait_for_event("The embedder answers.").await;
    // Holds the batch, and with it the stream, for good.
    world.embedder.close_gate();
    world.put_items("held", [("a".into(), "text".into())]).await;
    world.embedder.calls_started(2).await;

    let channel = world.coordinator.connect().await;
    let mut jobs = world.jobs().await;
    let mut watch = {
        let request = WatchSourceRequest {
            name: "held".into(),
            ..WatchSourceRequest::default()
        };
        jobs.watch_source(request).await.unwrap().into_inner()
    };
    watch.message().await.unwrap().expect("the present state");
    let mut claimer = WorkerServiceClient::new(channel.clone());
    let request = ClaimJobRequest {
        worker_id: "waiting".into(),
        models: vec!["fake".into()],
        max_jobs: 1,
        max_chunks: 0,
        busy_with: Vec::new(),
        wait: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
    };
    let mut claim = Box::pin(claimer.claim_job(request));
    let mut behind = JobServiceClient::new(channel);
    // Calls of one connection arrive in order, so that when the second is
    // answered the claim is there and waits.
    select! {
        biased;
        answer = &mut claim => panic!("the claim did not wait: {answer:?}"),
        stats = behind.get_queue_stats(GetQueueStatsRequest::default()) => { stats.unwrap(); }
    }

    world.coordinator.process.sigterm();
    let status = world.coordinator.process.wait().await;
    assert_eq!(status.code(), Some(0));
    let answer = claim.await;
    let leases = answer.map(|answer| answer.into_inner().leases.len());
    assert!(!matches!(leases, Ok(1..)), "{leases:?}");
    while let Ok(Some(_)) = watch.message().await {}
    world.coordinator.process.wait_for_event("stopped").await;
    let log = world.coordinator.process.log().join("\n");
    assert!(!log.contains("drain timeout"), "{log}");
}
