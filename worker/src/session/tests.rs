//! A whole session over real sockets, with the coordinator and the embedders in
//! the test's hands.

mod breaks;
mod ends;

use std::{collections::BTreeMap, sync::Arc};

use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::Status;
use weir_metrics::Page;
use weir_proto::v1::{self, EmbedderState, RevokeReason, lease_ended::How};
use weir_telemetry::Tracer;

use super::*;
use crate::{
    coordinator::fake::{EPOCH, FakeCoordinator, FakeSession, LEASE_DURATION, MODEL, part},
    run::{Served, assemble, embed},
    testing::{EmbedCalls, FakeEmbedder, Logs, config, packed, soon},
};

struct Scene {
    coordinator: FakeCoordinator,
    /// Of each model.
    embedders: Vec<EmbedCalls>,
    worker: Arc<Worker>,
    page: Page,
    running: AbortOnDropHandle<()>,
    _embedding: Vec<AbortOnDropHandle<()>>,
}

impl Scene {
    /// A text a call and one call at a time, unless the settings say otherwise.
    async fn start(settings: &[&str]) -> Self {
        let coordinator = FakeCoordinator::start().await;
        let mut all = settings.to_vec();
        for default in ["--embedder-concurrency=1", "--batch-size=1"] {
            let name = default.split('=').next().unwrap();
            if !all.iter().any(|it| it.starts_with(name)) {
                all.push(default);
            }
        }
        let (config, models) = config(&coordinator.uri, &all);
        let mut embedders = Vec::new();
        let served = models.into_iter().map(|model| {
            let (fake, embedder) = FakeEmbedder::new();
            embedders.push(embedder);
            Served::by(model, Arc::new(fake))
        });
        let served = served.collect();
        let page = Page::default();
        let shutdown = CancellationToken::new();
        let worker = assemble(config, served, &Tracer::OFF, &page, shutdown);
        let worker = Arc::new(worker.unwrap());
        let embedding = worker.models.iter().map(embed).collect();
        let running = tokio::spawn(run(Arc::clone(&worker)));
        Self {
            coordinator,
            embedders,
            worker,
            page,
            running: AbortOnDropHandle::new(running),
            _embedding: embedding,
        }
    }

    /// The same, with a session that is open and embedders that passed a probe.
    async fn start_fit(settings: &[&str]) -> (Self, FakeSession) {
        let mut scene = Self::start(settings).await;
        for embedder in &mut scene.embedders {
            embedder.probe().await.succeed();
        }
        let session = scene.coordinator.session().await;
        (scene, session)
    }

    fn embedder(&mut self) -> &mut EmbedCalls {
        &mut self.embedders[0]
    }

    /// Has the embedder fail a call and the probe after it.
    async fn break_down(&mut self, reason: &str) {
        self.embedder().next().await.break_down(reason);
        self.embedder().probe().await.break_down(reason);
    }

    /// How many leases ended like this.
    fn ended(&self, how: &str) -> usize {
        let name = "weir_worker_leases_ended_total";
        self.shown(&format!("{name}{{model=\"model\",how=\"{how}\"}}"))
    }

    /// What the page of metrics says of this.
    fn shown(&self, metric: &str) -> usize {
        let page = self.page.render();
        let value = page.lines().find_map(|line| line.strip_prefix(metric));
        value.map_or(0, |value| value.trim().parse().unwrap())
    }

    /// Waits until a lease has ended like this.
    async fn until_ended(&self, how: &str) {
        soon(async {
            while self.ended(how) == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// The result of a part of the fake coordinator in which all is well.
fn result_of(seq: i64, texts: &[&str]) -> v1::PartResult {
    let embedded = texts.iter().map(|text| v1::EmbeddedChunk {
        item_id: format!("i{text}"),
        chunk_index: 3,
        text_hash: text.as_bytes().to_vec(),
        vector: packed(text).into(),
        truncated_to: 0,
    });
    v1::PartResult {
        seq,
        embedded: embedded.collect(),
        rejected: Vec::new(),
    }
}

/// The result of a part that goes back.
fn nothing_of(seq: i64) -> v1::PartResult {
    result_of(seq, &[])
}

fn held(seq: i64, texts: &[&str]) -> v1::HeldPart {
    let chunks = texts.iter().map(|text| v1::ChunkKey {
        item_id: format!("i{text}"),
        chunk_index: 3,
        text_hash: text.as_bytes().to_vec(),
    });
    v1::HeldPart {
        seq,
        chunks: chunks.collect(),
    }
}

fn held_lease(job_id: i64, parts: Vec<v1::HeldPart>) -> v1::HeldLease {
    v1::HeldLease {
        job_id,
        epoch: EPOCH,
        parts,
    }
}

#[tokio::test]
async fn a_job_is_embedded_part_by_part_until_it_is_finished() {
    let (mut scene, mut session) = Scene::start_fit(&["--batch-size=2"]).await;
    let open = v1::SessionOpen {
        worker_id: "worker".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        models: vec![v1::SessionModel {
            name: MODEL.to_owned(),
            batch_size: 2,
        }],
        held: Vec::new(),
    };
    assert_eq!(session.open, open);
    session.batch(1, &["a", "bb"]).await;
    session.batch(2, &["ccc"]).await;
    scene.embedder().next().await.succeed();
    assert_eq!(session.result().await, result_of(1, &["a", "bb"]));
    session.ack(&[1]).await;
    scene.embedder().next().await.succeed();
    assert_eq!(session.result().await, result_of(2, &["ccc"]));
    session.ack(&[2]).await;
    session.finish(42).await;
    scene.until_ended("finished").await;
    assert_eq!(scene.shown("weir_worker_leases_open{model=\"model\"}"), 0);
    assert_eq!(scene.shown("weir_worker_stream_failures_total"), 0);
}

#[tokio::test]
async fn parts_of_different_jobs_travel_in_one_call_and_their_results_in_one_message() {
    let (mut scene, mut session) = Scene::start_fit(&["--batch-size=4"]).await;
    session
        .batch_of(MODEL, vec![part(1, 1, &["a", "b"]), part(2, 2, &["c"])])
        .await;
    let call = scene.embedder().next().await;
    assert_eq!(call.texts, ["a", "b", "c"]);
    call.succeed();
    assert_eq!(session.result().await, result_of(1, &["a", "b"]));
    assert_eq!(session.result().await, result_of(2, &["c"]));
    assert_eq!(session.result_messages, 1);
}

#[tokio::test]
async fn the_embedder_does_not_wait_for_the_database() {
    let (mut scene, mut session) = Scene::start_fit(&[]).await;
    session.batch(1, &["a"]).await;
    session.batch(2, &["b"]).await;
    let first = scene.embedder().next().await;
    assert_eq!(first.texts, ["a"]);
    // One call at a time.
    assert!(scene.embedder().none());
    first.succeed();
    // The second begins although the first is not acknowledged, and the first
    // is sent although the second is under way.
    let second = scene.embedder().next().await;
    assert_eq!(second.texts, ["b"]);
    assert_eq!(session.result().await.seq, 1);
    second.succeed();
    assert_eq!(session.result().await.seq, 2);
}

#[tokio::test]
async fn credit_is_for_the_calls_of_an_embedder_and_one_more() {
    let settings = ["--embedder-concurrency=2", "--batch-size=4"];
    let (mut scene, mut session) = Scene::start_fit(&settings).await;
    session.until(|it| it.credit_of(MODEL) > 0).await;
    assert_eq!(session.credit_of(MODEL), 12);
    session.batch(1, &["a", "b", "c", "d"]).await;
    session.batch(2, &["e", "f", "g", "h"]).await;
    assert_eq!(session.credit_of(MODEL), 4);
    let first = scene.embedder().next().await;
    // Granted again as a call ends, although nothing is acknowledged.
    first.succeed();
    session.result().await;
    session.until(|it| it.credit_of(MODEL) == 8).await;
    scene.embedder().next().await.succeed();
    session.until(|it| it.credit_of(MODEL) == 12).await;
}

#[tokio::test]
async fn nothing_is_taken_before_a_probe_passes() {
    let mut scene = Scene::start(&[]).await;
    let mut session = scene.coordinator.session().await;
    session.until_state(EmbedderState::Unspecified).await;
    let reason = "no such model";
    scene.embedder().probe().await.break_down(reason);
    session.until_state(EmbedderState::Down).await;
    assert_eq!(session.conditions[MODEL].reason, reason);
    scene.embedder().probe().await.succeed();
    session.until_state(EmbedderState::Fit).await;
    assert_eq!(session.conditions[MODEL].dimension, 2);
    assert_eq!(session.credit, BTreeMap::new());
    session.until(|it| it.credit_of(MODEL) == 2).await;
}

#[tokio::test]
async fn a_broken_embedder_costs_no_job_anything_and_goes_on_once_it_is_fit() {
    let (mut scene, mut session) = Scene::start_fit(&["--batch-size=2"]).await;
    let parts = vec![part(1, 1, &["a", "b"]), part(2, 2, &["c", "d"])];
    session.batch_of(MODEL, parts).await;
    // What is embedded before is not lost.
    scene.embedder().next().await.succeed();
    assert_eq!(session.result().await, result_of(1, &["a", "b"]));
    scene.break_down("503").await;
    assert_eq!(session.result().await, nothing_of(2));
    session.until_state(EmbedderState::Down).await;
    assert_eq!(session.conditions[MODEL].reason, "503");
    session.ack(&[1, 2]).await;
    session.release(1).await;
    session.release(2).await;
    scene.until_ended("released").await;
    // What was on its way goes back, too.
    let credit = session.credit_of(MODEL);
    assert!(credit > 0);
    session.batch(3, &["e"]).await;
    assert_eq!(session.result().await, nothing_of(3));
    assert!(scene.embedder().next().await.texts == ["probe"]);
    scene.embedder().probe().await.succeed();
    session.until_state(EmbedderState::Fit).await;
    session.until(|it| it.credit_of(MODEL) == 4).await;
    session.batch(4, &["f"]).await;
    scene.embedder().next().await.succeed();
    assert_eq!(session.result().await, result_of(4, &["f"]));
}

#[tokio::test]
async fn an_embedder_that_is_left_alone_is_said_to_rest_and_keeps_what_it_has() {
    let (mut scene, mut session) = Scene::start_fit(&[]).await;
    session.batch(1, &["a"]).await;
    let overloaded = weir_embedder::EmbedError::Overloaded {
        reason: "429".to_owned(),
        retry_after: None,
    };
    scene.embedder().next().await.answer(Err(overloaded));
    session.until_state(EmbedderState::Resting).await;
    assert_eq!(session.conditions[MODEL].reason, "429");
    scene.embedder().next().await.succeed();
    assert_eq!(session.result().await, result_of(1, &["a"]));
    session.until_state(EmbedderState::Fit).await;
}

#[tokio::test]
async fn what_was_embedded_before_the_embedder_went_down_goes_with_the_answer() {
    let (mut scene, mut session) = Scene::start_fit(&["--batch-size=2"]).await;
    session.batch(1, &["a", "b"]).await;
    scene.embedder().next().await.refuse("too long together");
    scene.embedder().next().await.succeed();
    scene.break_down("503").await;
    assert_eq!(session.result().await, result_of(1, &["a"]));
}

#[tokio::test]
async fn of_two_models_one_that_is_down_leaves_the_other_alone() {
    let settings = ["--model=sick,well"];
    let (mut scene, mut session) = Scene::start_fit(&settings).await;
    session.batch_of("sick", vec![part(1, 1, &["a"])]).await;
    session.batch_of("well", vec![part(2, 2, &["b"])]).await;
    scene.break_down("503").await;
    assert_eq!(session.result().await, nothing_of(1));
    session
        .until(|it| it.state_of("sick") == Some(EmbedderState::Down))
        .await;
    let credit = session.credit_of("sick");
    for seq in 2..10 {
        scene.embedders[1].next().await.succeed();
        assert_eq!(session.result().await, result_of(seq, &["b"]));
        let next = part(seq + 1, 2, &["b"]);
        session.batch_of("well", vec![next]).await;
    }
    assert_eq!(session.state_of("well"), Some(EmbedderState::Fit));
    assert_eq!(session.credit_of("sick"), credit, "no more of it");
    let [sick, well] = &scene.worker.models[..] else {
        panic!("two models");
    };
    assert_eq!(scene.worker.obstacle(sick).as_deref(), Some("503"));
    assert_eq!(scene.worker.obstacle(well), None);
}

#[tokio::test]
async fn only_the_poison_text_is_rejected() {
    let (mut scene, mut session) = Scene::start_fit(&["--batch-size=3"]).await;
    session.batch(1, &["a", "poison", "c"]).await;
    let refuse = "too long";
    scene.embedders.remove(0).answer_with(move |call| {
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
    assert_eq!(session.result().await, expected);
}

#[tokio::test]
async fn a_call_beyond_embed_timeout_is_cancelled_and_charges_nobody() {
    let (mut scene, mut session) = Scene::start_fit(&["--embed-timeout=50ms"]).await;
    session.batch(1, &["a"]).await;
    scene.embedder().next().await.cancelled().await;
    scene.embedder().probe().await.cancelled().await;
    assert_eq!(session.result().await, nothing_of(1));
    session.until_state(EmbedderState::Down).await;
    let reason = "the embedder took longer than embed_timeout (50ms)";
    assert_eq!(session.conditions[MODEL].reason, reason);
}

#[tokio::test]
async fn heartbeats_go_on_during_a_long_call_and_whatever_else_is_sent() {
    let mut scene = Scene::start(&[]).await;
    scene.embedder().probe().await.succeed();
    let opening = scene.coordinator.opening().await;
    let interval = Duration::from_millis(20);
    let mut session = opening.accept(LEASE_DURATION, interval).await;
    session.batch(1, &["a"]).await;
    let call = scene.embedder().next().await;
    session.until(|it| it.heartbeats >= 5).await;
    call.succeed();
    assert_eq!(session.result().await, result_of(1, &["a"]));
    scene.embedders.remove(0).answer_all();
    let mut seq = 1;
    while session.heartbeats < 10 {
        session.ack(&[seq]).await;
        seq += 1;
        session.batch(seq, &["a"]).await;
        assert_eq!(session.result().await.seq, seq);
    }
}

#[tokio::test]
async fn a_thousand_small_jobs_pass_by_turns() {
    let settings = ["--batch-size=8", "--embedder-concurrency=4"];
    let (mut scene, mut session) = Scene::start_fit(&settings).await;
    scene.embedders.remove(0).answer_all();
    for job_id in 1..=1_000 {
        let next = part(job_id, job_id, &["a"]);
        session.batch_of(MODEL, vec![next]).await;
    }
    for _ in 1..=1_000 {
        let seq = session.result().await.seq;
        session.ack(&[seq]).await;
        session.finish(seq).await;
    }
    soon(async {
        while scene.ended("finished") < 1_000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    session.until(|it| it.credit_of(MODEL) >= 24).await;
}

#[tokio::test]
async fn a_lease_too_short_for_the_embedder_is_warned_of_once() {
    let logs = Logs::capture();
    for (embed_timeout, warnings) in [("9m", 0), ("10m", 1)] {
        let embed_timeout = format!("--embed-timeout={embed_timeout}");
        let (mut scene, session) = Scene::start_fit(&[&embed_timeout]).await;
        drop(session);
        let mut session = scene.coordinator.session().await;
        session.until_state(EmbedderState::Fit).await;
        let logs = logs.text();
        let lines = logs.lines().filter(|line| {
            line.contains("WEIR_EMBED_TIMEOUT") && line.contains("WEIR_LEASE_DURATION")
        });
        assert_eq!(lines.count(), warnings, "{logs}");
    }
}
