//! Workers and coordinators that are asked to end, as every deployment does it.

use std::time::Duration;

use tokio::{select, time::timeout};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use weir_proto::v1::{
    ClaimJobRequest, GetQueueStatsRequest, JobState, job_service_client::JobServiceClient,
    worker_service_client::WorkerServiceClient,
};
use weir_tests::{
    PATIENCE,
    clients::{Weir, http},
    cluster::{MODEL, Worker},
    postgres::{OwnPostgres, TestDatabase},
    session::Session,
};

use crate::{
    session::{TWO_MODELS, meanwhile},
    world::World,
};

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

#[tokio::test]
async fn a_worker_whose_batches_take_too_long_releases_its_job_all_the_same() {
    let world = World::start(&[]).await;
    let environment = [("WEIR_DRAIN_TIMEOUT", "1s"), ("WEIR_BATCH_SIZE", "1")];
    let mut worker = Worker::spawn(
        &world.coordinator.url(),
        &world.embedder.url(),
        &environment,
    );
    worker.process.wait_for_event("The embedder answers.").await;
    world.embedder.close_gate();
    let items = ["a", "b", "c"].map(|id| (id.to_owned(), format!("text {id}")));
    let put = world.put_items("held", items).await;
    let job_id = put.jobs[0].job_id;
    world.embedder.calls_started(2).await;
    worker.process.sigterm();
    assert_eq!(worker.process.wait().await.code(), Some(0));
    let job = world.job(job_id).await;
    assert_eq!(job.state(), JobState::Queued, "{job:?}");
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    let last = world.history(job_id).await.pop();
    assert!(last.is_some_and(|was| !was.delayed), "claimable at once");

    world.embedder.open_gate();
    let _second = world.worker("1");
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (2, 0), "{job:?}");
    world.assert_exact("held").await;
}

fn claim(wait_seconds: i64) -> ClaimJobRequest {
    ClaimJobRequest {
        worker_id: "other".into(),
        models: vec![MODEL.into()],
        max_jobs: 1,
        max_chunks: 0,
        busy_with: Vec::new(),
        wait: Some(prost_types::Duration {
            seconds: wait_seconds,
            nanos: 0,
        }),
    }
}

#[tokio::test]
async fn a_coordinator_is_unready_before_it_refuses_anybody() {
    // Long enough for everything below, so that nothing here is a matter of time.
    let mut world = World::start(&[("WEIR_DRAIN_DELAY", "1h")]).await;
    let mut health = HealthClient::new(world.coordinator.connect().await);
    let request = HealthCheckRequest::default();
    let mut said = health.watch(request.clone()).await.unwrap().into_inner();
    let channel = world.coordinator.connect().await;
    let mut claimer = WorkerServiceClient::new(channel.clone());
    let mut waiting = Box::pin(claimer.claim_job(claim(60)));
    let mut behind = JobServiceClient::new(channel);
    select! {
        biased;
        answer = &mut waiting => panic!("the claim did not wait: {answer:?}"),
        stats = behind.get_queue_stats(GetQueueStatsRequest::default()) => { stats.unwrap(); }
    }
    world.coordinator.process.sigterm();
    let status = async {
        while let Some(said) = said.message().await.unwrap() {
            if said.status() == ServingStatus::NotServing {
                return;
            }
        }
        panic!("the health is not watched any more");
    };
    timeout(PATIENCE, status).await.unwrap();
    // Each of these is a new connection.
    let readyz = http()
        .get(format!("{}/readyz", world.coordinator.url()))
        .send()
        .await;
    assert_eq!(readyz.unwrap().status().as_u16(), 503);
    let mut health = HealthClient::new(world.coordinator.connect().await);
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
    world.put_items("late", [("a".into(), "text".into())]).await;
    // Who is connected is served, or every next call would be turned away until the delay is over.
    let answer = timeout(PATIENCE, waiting)
        .await
        .expect("the job is handed out");
    assert_eq!(answer.unwrap().into_inner().leases.len(), 1);
    world.coordinator.process.sigkill().await;
}

#[tokio::test]
async fn who_watches_the_health_holds_no_coordinator_up() {
    let mut world = World::start(&[("WEIR_DRAIN_TIMEOUT", "1h")]).await;
    let mut health = HealthClient::new(world.coordinator.connect().await);
    let request = HealthCheckRequest::default();
    let mut said = health.watch(request).await.unwrap().into_inner();
    said.message().await.unwrap().expect("the present state");
    world.coordinator.process.sigterm();
    assert_eq!(world.coordinator.process.wait().await.code(), Some(0));
    let mut last = None;
    while let Ok(Some(status)) = said.message().await {
        last = Some(status.status());
    }
    assert_eq!(last, Some(ServingStatus::NotServing));
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_a_coordinator_up_no_longer_than_the_drain_timeout() {
    let environment = [
        TWO_MODELS,
        ("WEIR_DRAIN_TIMEOUT", "1s"),
        ("WEIR_CHUNK_SIZE", "20000"),
    ];
    let mut weir = Weir::with(&environment).await;
    // More than the connection takes up unread.
    let text = "word ".repeat(3_000);
    let texts: Vec<String> = (0..500).map(|n| format!("{n} {text}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    weir.put("large", &texts).await;
    let mut session = Session::open(&weir, 16).await;
    session.grant(500);
    session.batch().await;
    // By the time that another's work is done, it has been sent what fits.
    for name in ["one", "two", "three"] {
        meanwhile(&weir, &weir.channel, name).await;
    }
    let coordinator = &mut weir.coordinator.process;
    coordinator.sigterm();
    assert_eq!(coordinator.wait().await.code(), Some(0));
    // It was held up, or this test shows nothing.
    let event = "Calls were still under way after the drain timeout; they are cut off.";
    coordinator.wait_for_event(event).await;
}

#[tokio::test]
async fn a_coordinator_ends_in_order_while_the_database_is_away() {
    let mut postgres = OwnPostgres::start(&[]).await;
    let database = TestDatabase::create_on(&postgres).await;
    let mut world = World::start_on(database, &[("WEIR_DRAIN_TIMEOUT", "2s")]).await;
    postgres.sigstop().await;
    // A call that waits for the database when the signal comes.
    let mut jobs = JobServiceClient::new(world.coordinator.connect().await);
    let mut call = Box::pin(jobs.get_queue_stats(GetQueueStatsRequest::default()));
    assert!(futures::poll!(&mut call).is_pending());
    world.coordinator.process.sigterm();
    assert_eq!(world.coordinator.process.wait().await.code(), Some(0));
    world.coordinator.process.wait_for_event("stopped").await;
    postgres.sigcont();
}
