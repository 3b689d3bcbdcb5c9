use tokio::{net::TcpListener, task::JoinHandle};
use tonic::Status;
use weir_proto::v1::{self, RevokeReason};
use weir_telemetry::Tracer;

use super::*;
use crate::{
    coordinator::fake::{FakeCoordinator, FakeStream, lease},
    endpoint::Settings,
    metrics::Metrics,
    testing::{EmbedCalls, FakeEmbedder, config, packed, soon},
};

const LONG: Duration = Duration::from_mins(10);

/// A session on a lease, with the coordinator and the embedder in the test's
/// hands. The embedder was found fit.
struct Scene {
    coordinator: FakeCoordinator,
    embedder: EmbedCalls,
    context: Arc<Context>,
    session: JoinHandle<End>,
}

impl Scene {
    async fn start(lease_duration: Duration, settings: &[&str]) -> Self {
        let coordinator = FakeCoordinator::start().await;
        let uri = coordinator.uri.clone();
        Self::start_at(&uri, coordinator, lease_duration, settings).await
    }

    async fn start_at(
        uri: &tonic::transport::Uri,
        coordinator: FakeCoordinator,
        lease_duration: Duration,
        settings: &[&str],
    ) -> Self {
        let (fake, mut embedder) = FakeEmbedder::new();
        // A text a call and one call at a time, unless the test says otherwise.
        let mut settings = settings.to_vec();
        settings.push("--embedder-concurrency=1");
        if !settings.iter().any(|s| s.starts_with("--batch-size")) {
            settings.push("--batch-size=1");
        }
        let (config, model) = config(uri, &settings);
        let endpoint = Endpoint::new(Arc::new(fake), Settings::of(&model), Metrics::unseen());
        let endpoint = Arc::new(endpoint);
        let running = Arc::clone(&endpoint);
        tokio::spawn(async move { running.run().await });
        embedder.next().await.succeed();
        endpoint.health.fit().await;
        let context = Arc::new(Context {
            tracer: Tracer::OFF,
            config: Arc::new(config),
            model,
            coordinator: Coordinator::new(uri, &crate::config::Credentials::default()).unwrap(),
            endpoint,
            refusal: watch::Sender::new(None),
            shutdown: CancellationToken::new(),
        });
        let lease = Lease::try_from(lease(42, lease_duration)).unwrap();
        let session = tokio::spawn(work(Arc::clone(&context), lease, 2));
        Self {
            coordinator,
            embedder,
            context,
            session,
        }
    }

    async fn end(&mut self) -> End {
        soon(&mut self.session).await.unwrap()
    }

    /// Accepts that the job is handed back, and returns the session's end.
    async fn handed_back(&mut self) -> End {
        let call = self.coordinator.hand_back().await;
        assert_eq!((call.job_id, call.epoch), (42, 7));
        let (how, reason) = (call.how, call.reason.clone());
        call.accept();
        let end = self.end().await;
        assert_eq!(end, End::HandBack { how, reason });
        assert!(self.coordinator.no_hand_back());
        end
    }
}

fn drained() -> End {
    let (how, reason) = (HandBack::Drain, "the worker is draining".to_owned());
    End::HandBack { how, reason }
}

fn embedder_down(reason: &str) -> End {
    let (how, reason) = (HandBack::EmbedderDown, reason.to_owned());
    End::HandBack { how, reason }
}

fn failed(reason: &str) -> End {
    let (how, reason) = (HandBack::Fail, reason.to_owned());
    End::HandBack { how, reason }
}

/// The result of a batch of the fake coordinator in which all is well.
fn result_of(seq: i64, texts: &[&str]) -> v1::BatchResult {
    let embedded = texts.iter().map(|text| v1::EmbeddedChunk {
        item_id: format!("i{text}"),
        chunk_index: 3,
        text_hash: text.as_bytes().to_vec(),
        vector: packed(text).into(),
        truncated_to: 0,
    });
    v1::BatchResult {
        seq,
        embedded: embedded.collect(),
        rejected: Vec::new(),
    }
}

fn held(seq: i64, texts: &[&str]) -> v1::HeldBatch {
    let chunks = texts.iter().map(|text| v1::ChunkKey {
        item_id: format!("i{text}"),
        chunk_index: 3,
        text_hash: text.as_bytes().to_vec(),
    });
    v1::HeldBatch {
        seq,
        chunks: chunks.collect(),
    }
}

/// Cuts a stream and takes the one that replaces it.
async fn cut(scene: &mut Scene, stream: FakeStream) -> FakeStream {
    drop(stream);
    scene.coordinator.stream().await
}

#[tokio::test]
async fn a_job_is_embedded_batch_by_batch_until_it_is_finished() {
    let mut scene = Scene::start(LONG, &["--window=3", "--batch-size=2"]).await;
    let mut stream = scene.coordinator.stream().await;
    let open = v1::StreamOpen {
        job_id: 42,
        epoch: 7,
        window: 3,
        batch_size: 2,
        held: Vec::new(),
    };
    assert_eq!(stream.open, open);
    stream.batch(1, &["a", "bb"]).await;
    stream.batch(2, &["ccc"]).await;
    scene.embedder.next().await.succeed();
    assert_eq!(stream.result().await, result_of(1, &["a", "bb"]));
    stream.ack(1, 2, 3).await;
    scene.embedder.next().await.succeed();
    assert_eq!(stream.result().await, result_of(2, &["ccc"]));
    stream.ack(2, 3, 3).await;
    stream.finish().await;
    assert_eq!(scene.end().await, End::Finished);
    assert!(scene.coordinator.no_hand_back());
}

#[tokio::test]
async fn the_batch_size_of_the_lease_bounds_the_setting() {
    let mut scene = Scene::start(LONG, &["--batch-size=500"]).await;
    assert_eq!(scene.coordinator.stream().await.open.batch_size, 100);
}

#[tokio::test]
async fn the_embedder_does_not_wait_for_the_database() {
    let mut scene = Scene::start(LONG, &[]).await;
    let mut stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    stream.batch(2, &["b"]).await;
    let first = scene.embedder.next().await;
    assert_eq!(first.texts, ["a"]);
    // One call at a time.
    assert!(scene.embedder.none());
    first.succeed();
    // The second begins although the first is not acknowledged, and the first
    // is sent although the second is under way.
    let second = scene.embedder.next().await;
    assert_eq!(second.texts, ["b"]);
    assert_eq!(stream.result().await.seq, 1);
    second.succeed();
    assert_eq!(stream.result().await.seq, 2);
}

#[tokio::test]
async fn a_coordinator_that_overruns_the_window_is_not_believed() {
    let mut scene = Scene::start(LONG, &["--window=2"]).await;
    let stream = scene.coordinator.stream().await;
    for seq in 1..=3 {
        stream.batch(seq, &["a"]).await;
    }
    let end = scene.handed_back().await;
    assert_eq!(
        end,
        failed("the coordinator sent batch 3 beyond the window of 2")
    );
}

#[tokio::test]
async fn heartbeats_go_on_during_a_long_call() {
    let mut scene = Scene::start(Duration::from_millis(150), &[]).await;
    let mut stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    let call = scene.embedder.next().await;
    for _ in 0..5 {
        stream.heartbeat().await;
    }
    call.succeed();
    assert_eq!(stream.result().await.seq, 1);
    stream.finish().await;
    assert_eq!(scene.end().await, End::Finished);
}

#[tokio::test]
async fn a_broken_stream_goes_on_where_it_was() {
    let mut scene = Scene::start(LONG, &["--window=3"]).await;
    let mut stream = scene.coordinator.stream().await;
    for (seq, text) in [(1, "a"), (2, "b"), (3, "c")] {
        stream.batch(seq, &[text]).await;
    }
    // One result without an ack, one batch in the embedder, one waiting.
    scene.embedder.next().await.succeed();
    assert_eq!(stream.result().await, result_of(1, &["a"]));
    let in_flight = scene.embedder.next().await;
    let mut stream = cut(&mut scene, stream).await;
    let mut everything = vec![held(1, &["a"]), held(2, &["b"]), held(3, &["c"])];
    assert_eq!(stream.open.held, everything);
    assert_eq!((stream.open.job_id, stream.open.epoch), (42, 7));
    // What has no ack comes again, and is not embedded again.
    assert_eq!(stream.result().await, result_of(1, &["a"]));
    stream.ack(1, 1, 3).await;
    in_flight.succeed();
    assert_eq!(stream.result().await, result_of(2, &["b"]));
    let last = scene.embedder.next().await;
    // Broken by a status this time, while the last is in the embedder; what
    // was acknowledged is not held any more.
    stream.end_with(Status::unavailable("restarting")).await;
    let mut stream = scene.coordinator.stream().await;
    everything.remove(0);
    assert_eq!(stream.open.held, everything);
    assert_eq!(stream.result().await, result_of(2, &["b"]));
    last.succeed();
    assert_eq!(stream.result().await, result_of(3, &["c"]));
    stream.finish().await;
    assert_eq!(scene.end().await, End::Finished);
    assert!(scene.embedder.none());
}

#[tokio::test]
async fn a_result_that_is_ready_during_an_outage_is_sent_after_it() {
    let mut scene = Scene::start(LONG, &[]).await;
    let stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    stream.batch(2, &["b"]).await;
    let first = scene.embedder.next().await;
    stream.end_with(Status::internal("h2")).await;
    first.succeed();
    // The next call begins: the outage does not stop the embedder.
    let second = scene.embedder.next().await;
    let mut stream = scene.coordinator.stream().await;
    assert_eq!(stream.open.held, [held(1, &["a"]), held(2, &["b"])]);
    assert_eq!(stream.result().await, result_of(1, &["a"]));
    second.succeed();
    assert_eq!(stream.result().await, result_of(2, &["b"]));
}

#[tokio::test]
async fn a_revoked_lease_cancels_the_call_at_once() {
    let mut scene = Scene::start(LONG, &[]).await;
    let stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    let call = scene.embedder.next().await;
    stream.revoke(RevokeReason::Superseded).await;
    call.cancelled().await;
    let reason =
        "the source has another model now, or its range is embedded anew; newer jobs cover it"
            .to_owned();
    assert_eq!(scene.end().await, End::Lost(reason));
    assert!(scene.coordinator.no_hand_back());
}

#[tokio::test]
async fn a_lost_lease_cancels_the_call_at_once() {
    let mut scene = Scene::start(LONG, &[]).await;
    let stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    let call = scene.embedder.next().await;
    stream.end_with(Status::aborted("epoch 8")).await;
    call.cancelled().await;
    assert_eq!(scene.end().await, End::Lost("epoch 8".to_owned()));
    assert!(scene.coordinator.no_hand_back());
}

#[tokio::test]
async fn a_refused_result_is_charged_with_the_coordinators_words() {
    let mut scene = Scene::start(LONG, &[]).await;
    let mut stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    scene.embedder.next().await.succeed();
    stream.result().await;
    let status = Status::invalid_argument("the model has dimension 3, not 2");
    stream.end_with(status).await;
    let reason = "the model has dimension 3, not 2 (InvalidArgument)";
    assert_eq!(scene.handed_back().await, failed(reason));
}

#[tokio::test]
async fn a_coordinator_that_stays_away_is_given_up() {
    // A port that nobody listens on.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let fake = FakeCoordinator::start().await;
    let lease = Duration::from_millis(50);
    let mut scene = Scene::start_at(&uri.parse().unwrap(), fake, lease, &[]).await;
    let end = scene.end().await;
    assert!(matches!(end, End::Unreachable(_)), "{end:?}");
}

#[tokio::test]
async fn a_broken_embedder_costs_the_job_nothing() {
    let mut scene = Scene::start(LONG, &["--window=3"]).await;
    let mut stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    stream.batch(2, &["b"]).await;
    stream.batch(3, &["c"]).await;
    scene.embedder.next().await.succeed();
    assert_eq!(stream.result().await.seq, 1);
    scene.embedder.next().await.break_down("503");
    scene.embedder.probe().await.break_down("503");
    // Everyone knows; what is embedded is still waited for, and nothing
    // further is tried.
    assert_eq!(soon(scene.context.endpoint.health.down()).await, "503");
    assert!(scene.coordinator.no_hand_back());
    stream.ack(1, 1, 3).await;
    assert_eq!(scene.handed_back().await, embedder_down("503"));
    assert!(scene.embedder.none());
}

#[tokio::test]
async fn a_session_releases_its_job_when_another_finds_the_embedder_broken() {
    let mut scene = Scene::start(LONG, &[]).await;
    let mut stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    stream.batch(2, &["b"]).await;
    let in_flight = scene.embedder.next().await;
    scene.context.endpoint.health.failed("401");
    // The call in flight may still succeed; the batch behind it is not tried.
    in_flight.succeed();
    assert_eq!(stream.result().await.seq, 1);
    stream.ack(1, 1, 2).await;
    assert_eq!(scene.handed_back().await, embedder_down("401"));
    assert!(scene.embedder.none());
}

#[tokio::test]
async fn a_call_beyond_embed_timeout_is_cancelled_and_charges_nobody() {
    let mut scene = Scene::start(LONG, &["--embed-timeout=50ms"]).await;
    let stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    scene.embedder.next().await.cancelled().await;
    scene.embedder.probe().await.cancelled().await;
    let reason = "the embedder took longer than embed_timeout (50ms)";
    assert_eq!(scene.handed_back().await, embedder_down(reason));
}

#[tokio::test]
async fn only_the_poison_text_is_rejected() {
    let mut scene = Scene::start(LONG, &["--batch-size=3"]).await;
    let mut stream = scene.coordinator.stream().await;
    stream.batch(1, &["a", "poison", "c"]).await;
    let refuse = "too long";
    scene.embedder.answer_with(move |call| {
        if call.texts.iter().any(|text| text == "poison") {
            call.refuse(refuse);
        } else {
            call.succeed();
        }
    });
    let mut expected = result_of(1, &["a", "c"]);
    expected.rejected.push(v1::RejectedChunk {
        item_id: "ipoison".to_owned(),
        chunk_index: 3,
        text_hash: b"poison".to_vec(),
        reason: refuse.to_owned(),
    });
    assert_eq!(stream.result().await, expected);
}

#[tokio::test]
async fn what_was_embedded_before_the_embedder_went_down_is_persisted_first() {
    let mut scene = Scene::start(LONG, &["--batch-size=2"]).await;
    let mut stream = scene.coordinator.stream().await;
    stream.batch(1, &["a", "b"]).await;
    scene.embedder.next().await.refuse("too long together");
    scene.embedder.next().await.succeed();
    scene.embedder.next().await.break_down("503");
    scene.embedder.probe().await.break_down("503");
    assert_eq!(stream.result().await, result_of(1, &["a"]));
    assert!(scene.coordinator.no_hand_back());
    stream.ack(1, 1, 2).await;
    assert_eq!(scene.handed_back().await, embedder_down("503"));
}

#[tokio::test]
async fn a_draining_session_finishes_what_it_has_and_takes_nothing_more() {
    let mut scene = Scene::start(LONG, &[]).await;
    let mut stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    stream.batch(2, &["b"]).await;
    let first = scene.embedder.next().await;
    scene.context.shutdown.cancel();
    first.succeed();
    assert_eq!(stream.result().await, result_of(1, &["a"]));
    let second = scene.embedder.next().await;
    stream.ack(1, 1, 9).await;
    stream.batch(3, &["c"]).await;
    second.succeed();
    assert_eq!(stream.result().await, result_of(2, &["b"]));
    assert!(scene.coordinator.no_hand_back());
    stream.ack(2, 2, 9).await;
    assert_eq!(scene.handed_back().await, drained());
    assert!(scene.embedder.none());
    stream.closed().await;
}

#[tokio::test]
async fn a_draining_session_outlives_a_break_of_the_stream() {
    let mut scene = Scene::start(LONG, &[]).await;
    let stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    let call = scene.embedder.next().await;
    scene.context.shutdown.cancel();
    let mut stream = cut(&mut scene, stream).await;
    call.succeed();
    assert_eq!(stream.result().await, result_of(1, &["a"]));
    stream.ack(1, 1, 2).await;
    assert_eq!(scene.handed_back().await, drained());
}

#[tokio::test]
async fn a_job_that_is_complete_is_not_handed_back_by_a_drain() {
    let mut scene = Scene::start(LONG, &[]).await;
    let mut stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    let call = scene.embedder.next().await;
    scene.context.shutdown.cancel();
    call.succeed();
    stream.result().await;
    stream.ack(1, 1, 1).await;
    stream.finish().await;
    assert_eq!(scene.end().await, End::Finished);
    assert!(scene.coordinator.no_hand_back());
}

#[tokio::test]
async fn a_drain_that_takes_too_long_gives_the_call_up() {
    let mut scene = Scene::start(LONG, &["--drain-timeout=50ms"]).await;
    let stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    let call = scene.embedder.next().await;
    scene.context.shutdown.cancel();
    call.cancelled().await;
    assert_eq!(scene.handed_back().await, drained());
}

#[tokio::test]
async fn what_is_embedded_but_not_acknowledged_is_persisted_before_the_job_is_handed_back() {
    let mut scene = Scene::start(LONG, &["--drain-timeout=50ms"]).await;
    let mut stream = scene.coordinator.stream().await;
    stream.batch(1, &["a"]).await;
    stream.batch(2, &["b"]).await;
    scene.embedder.next().await.succeed();
    let result = stream.result().await;
    let second = scene.embedder.next().await;
    scene.context.shutdown.cancel();
    second.cancelled().await;
    let upsert = scene.coordinator.upsert().await;
    assert_eq!((upsert.job_id, upsert.epoch), (42, 7));
    assert_eq!(upsert.embedded, result.embedded);
    assert_eq!(scene.handed_back().await, drained());
}

#[tokio::test]
async fn handing_back_is_tried_again_while_the_coordinator_is_away() {
    let mut scene = Scene::start(LONG, &[]).await;
    let _stream = scene.coordinator.stream().await;
    scene.context.shutdown.cancel();
    let call = scene.coordinator.hand_back().await;
    call.fail(Status::unavailable("restarting"));
    assert_eq!(scene.handed_back().await, drained());
}

#[tokio::test]
async fn a_lease_that_ended_before_the_hand_back_is_left_alone() {
    let mut scene = Scene::start(LONG, &[]).await;
    let _stream = scene.coordinator.stream().await;
    scene.context.shutdown.cancel();
    let call = scene.coordinator.hand_back().await;
    call.fail(Status::aborted("epoch 8"));
    assert_eq!(scene.end().await, drained());
    assert!(scene.coordinator.no_hand_back());
}
