use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::Status;
use weir_proto::v1;

use super::*;
use crate::{
    coordinator::{
        HandBack,
        fake::{FakeCoordinator, FakeStream, LEASE_DURATION, lease},
    },
    testing::{EmbedCalls, FakeEmbedder, Logs, config, soon},
};

/// A whole worker, with the coordinator and the embedder in the test's hands.
struct Scene {
    coordinator: FakeCoordinator,
    embedder: EmbedCalls,
    shutdown: CancellationToken,
    worker: JoinHandle<anyhow::Result<()>>,
}

impl Scene {
    async fn start(settings: &[&str]) -> Self {
        let coordinator = FakeCoordinator::start().await;
        let (fake, embedder) = FakeEmbedder::new();
        let shutdown = CancellationToken::new();
        let (config, model) = config(&coordinator.uri, settings);
        let served = vec![Served::by(model, Arc::new(fake))];
        let worker = tokio::spawn(run(config, served, shutdown.clone()));
        Self {
            coordinator,
            embedder,
            shutdown,
            worker,
        }
    }

    /// The same, with an embedder that has answered the first probe.
    async fn start_fit(settings: &[&str]) -> Self {
        let mut scene = Self::start(settings).await;
        scene.embedder.next().await.succeed();
        scene
    }

    /// Answers the next claim with the given jobs and takes their streams.
    async fn lease(&mut self, job_ids: &[i64]) -> Vec<FakeStream> {
        let leases = job_ids
            .iter()
            .map(|id| lease(*id, LEASE_DURATION))
            .collect();
        self.coordinator.claim().await.answer(leases);
        let mut streams = Vec::new();
        for _ in job_ids {
            streams.push(self.coordinator.stream().await);
        }
        streams
    }

    async fn drained(self) {
        soon(self.worker).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_claim_names_the_worker_its_model_and_its_free_permits() {
    let mut scene = Scene::start_fit(&["--concurrency=3", "--claim-wait=7s"]).await;
    let claim = scene.coordinator.claim().await;
    let expected = v1::ClaimJobRequest {
        worker_id: "worker".to_owned(),
        models: vec!["model".to_owned()],
        max_jobs: 3,
        max_chunks: 128,
        busy_with: Vec::new(),
        wait: prost_types::Duration::try_from(Duration::from_secs(7)).ok(),
    };
    assert_eq!(claim.request, expected);
    claim.answer(vec![lease(1, LEASE_DURATION), lease(2, LEASE_DURATION)]);
    let claim = scene.coordinator.claim().await;
    assert_eq!(claim.request.max_jobs, 1);
    claim.answer(vec![lease(3, LEASE_DURATION)]);
    let streams = [
        scene.coordinator.stream().await,
        scene.coordinator.stream().await,
        scene.coordinator.stream().await,
    ];
    // Nothing is claimed without a permit; one comes back with a job.
    assert!(scene.coordinator.no_claim());
    streams[0].finish().await;
    assert_eq!(scene.coordinator.claim().await.request.max_jobs, 1);
}

#[tokio::test]
async fn a_worker_that_has_enough_asks_for_what_another_namespace_has() {
    let settings = ["--concurrency=4", "--batch-size=5", "--window=2"];
    let mut scene = Scene::start_fit(&settings).await;
    let streams = scene.lease(&[1, 2]).await;
    let claim = scene.coordinator.claim().await;
    assert_eq!(claim.request.busy_with, ["namespace"]);
    assert_eq!((claim.request.max_jobs, claim.request.max_chunks), (1, 5));
    let other = |job_id| v1::Lease {
        namespace: "other".to_owned(),
        ..lease(job_id, LEASE_DURATION)
    };
    // A job that is done soon is not named with the next question, and it counts as
    // nobody's turn any more.
    claim.answer(vec![other(3)]);
    scene.coordinator.stream().await.finish().await;
    let claim = scene.coordinator.claim().await;
    assert_eq!(claim.request.busy_with, ["namespace"]);
    let whole = claim.request.wait;
    claim.answer(vec![other(4)]);
    scene.coordinator.stream().await;
    // One that is not may be done any moment: what is named is not stale for long.
    let claim = scene.coordinator.claim().await;
    assert_eq!(claim.request.busy_with, ["namespace", "other"]);
    assert!(claim.request.wait.unwrap().seconds < 1 && whole.unwrap().seconds == 20);
    // Meanwhile there is room again.
    streams[0].finish().await;
    streams[1].finish().await;
    let with_room = scene.coordinator.claim().await.request;
    assert_eq!((with_room.busy_with, with_room.max_jobs), (vec![], 2));
}

#[tokio::test]
async fn an_empty_answer_and_a_failing_coordinator_are_asked_again() {
    let mut scene = Scene::start_fit(&[]).await;
    scene.coordinator.claim().await.answer(Vec::new());
    let claim = scene.coordinator.claim().await;
    claim.fail(Status::unavailable("the database is away"));
    let claim = scene.coordinator.claim().await;
    claim.fail(Status::invalid_argument("worker_id: taken"));
    assert_eq!(scene.coordinator.claim().await.request.max_jobs, 64);
}

#[tokio::test]
async fn nothing_is_claimed_before_a_probe_succeeds() {
    let mut scene = Scene::start(&[]).await;
    scene.embedder.next().await.break_down("no such model");
    let probe = scene.embedder.next().await;
    assert!(scene.coordinator.no_claim());
    probe.succeed();
    scene.coordinator.claim().await;
}

#[tokio::test]
async fn a_worker_that_never_found_its_embedder_stops_at_once() {
    let mut scene = Scene::start(&[]).await;
    scene.embedder.next().await.break_down("no such model");
    scene.shutdown.cancel();
    scene.drained().await;
}

#[tokio::test]
async fn a_broken_embedder_stops_all_claims_until_it_is_back() {
    let mut scene = Scene::start_fit(&["--concurrency=2"]).await;
    let streams = scene.lease(&[1, 2]).await;
    streams[0].batch(1, &["a"]).await;
    scene.embedder.next().await.break_down("503");
    scene.embedder.probe().await.break_down("503");
    // Both jobs go back, also that of the session that noticed nothing.
    let mut released = Vec::new();
    for _ in 0..2 {
        let call = scene.coordinator.hand_back().await;
        assert_eq!(
            (call.how, call.reason.as_str()),
            (HandBack::EmbedderDown, "503")
        );
        released.push(call.job_id);
        call.accept();
    }
    released.sort_unstable();
    assert_eq!(released, [1, 2]);
    let probe = scene.embedder.next().await;
    assert!(scene.coordinator.no_claim());
    probe.succeed();
    assert_eq!(scene.coordinator.claim().await.request.max_jobs, 2);
}

#[tokio::test]
async fn a_job_claimed_while_the_embedder_broke_goes_back() {
    let mut scene = Scene::start_fit(&["--concurrency=2"]).await;
    let streams = scene.lease(&[1]).await;
    let waiting = scene.coordinator.claim().await;
    streams[0].batch(1, &["a"]).await;
    scene.embedder.next().await.break_down("503");
    scene.embedder.probe().await.break_down("503");
    scene.coordinator.hand_back().await.accept();
    waiting.answer(vec![lease(2, LEASE_DURATION)]);
    let call = scene.coordinator.hand_back().await;
    assert_eq!((call.how, call.job_id), (HandBack::EmbedderDown, 2));
    call.accept();
}

#[tokio::test]
async fn a_drain_gives_the_claim_up_and_waits_for_the_jobs() {
    let mut scene = Scene::start_fit(&["--concurrency=2"]).await;
    let mut streams = scene.lease(&[1]).await;
    let waiting = scene.coordinator.claim().await;
    let mut stream = streams.remove(0);
    stream.batch(1, &["a"]).await;
    let call = scene.embedder.next().await;
    scene.shutdown.cancel();
    waiting.cancelled().await;
    assert!(!scene.worker.is_finished());
    call.succeed();
    stream.result().await;
    stream.ack(1, 1, 2).await;
    let call = scene.coordinator.hand_back().await;
    assert_eq!(call.how, HandBack::Drain);
    assert!(!scene.worker.is_finished());
    call.accept();
    scene.drained().await;
}

#[tokio::test]
async fn a_whole_job_runs_and_the_next_is_claimed() {
    let mut scene = Scene::start_fit(&["--concurrency=1"]).await;
    let mut stream = scene.lease(&[1]).await.remove(0);
    scene.embedder.answer_all();
    for seq in 1..=20 {
        stream.batch(seq, &["a", "b"]).await;
        assert_eq!(stream.result().await.seq, seq);
        stream.ack(seq, 2 * seq, 40).await;
    }
    stream.finish().await;
    scene.coordinator.claim().await;
}

#[tokio::test]
async fn a_lease_too_short_for_the_embedder_is_warned_of_once() {
    let logs = Logs::capture();
    for (embed_timeout, warnings) in [("9m", 0), ("10m", 1)] {
        let embed_timeout = format!("--embed-timeout={embed_timeout}");
        let mut scene = Scene::start_fit(&["--concurrency=2", &embed_timeout]).await;
        scene.coordinator.claim().await.answer(Vec::new());
        scene.lease(&[1]).await;
        let logs = logs.text();
        let lines = logs.lines().filter(|line| {
            line.contains("WEIR_EMBED_TIMEOUT") && line.contains("WEIR_LEASE_DURATION")
        });
        assert_eq!(lines.count(), warnings, "{logs}");
    }
}

#[tokio::test]
async fn an_outage_of_the_coordinator_is_said_once_and_so_is_its_end() {
    let logs = Logs::capture();
    let mut scene = Scene::start_fit(&[]).await;
    for _ in 0..3 {
        let claim = scene.coordinator.claim().await;
        claim.fail(Status::unavailable("the database is away"));
    }
    scene.coordinator.claim().await.answer(Vec::new());
    scene.coordinator.claim().await;
    let logs = logs.text();
    assert_eq!(logs.matches("the database is away").count(), 1, "{logs}");
    assert_eq!(logs.matches("answers again").count(), 1, "{logs}");
}
