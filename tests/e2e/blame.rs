//! Faults of the embedder, and whom they are charged to.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use weir_proto::v1::{Job, JobState};
use weir_tests::{cluster::Worker, embedder::Rude};

use crate::world::World;

/// Retries within a blink.
const QUICK: [(&str, &str); 2] = [("WEIR_BACKOFF_BASE", "100ms"), ("WEIR_BACKOFF_CAP", "1s")];

fn items(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|id| (format!("{id:03}"), format!("the text of item {id}")))
}

/// Whether the texts are not the worker's probe.
fn is_work(texts: &[String]) -> bool {
    texts != ["probe"]
}

async fn is_queued_uncharged(world: &World, job_id: i64) -> Job {
    let job = world.job(job_id).await;
    assert_eq!(job.state(), JobState::Queued, "{job:?}");
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    job
}

#[tokio::test]
async fn an_embedder_that_is_down_is_charged_to_nobody() {
    let world = World::start(&[]).await;
    world
        .embedder
        .set_delay(Duration::from_millis(100), Duration::ZERO);
    let put = world.put_items("unlucky", items(80)).await;
    let job_id = put.jobs[0].job_id;
    // With no claim waiting at the coordinator that could get the job back.
    let settings = [("WEIR_CONCURRENCY", "1"), ("WEIR_BATCH_SIZE", "8")];
    let worker = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
    world.embedded("unlucky", 16).await;
    world
        .embedder
        .rule(|_| Some(Rude::Status(503, None, "starting".into())));
    let paused = "The embedder failed; claiming nothing until it answers again.";
    worker.process.wait_for_event(paused).await;
    // By the time that a probe has failed the job is back, and stays there.
    let probed = "The embedder does not answer a probe; claiming nothing until it does.";
    worker.process.wait_for_event(probed).await;
    let job = is_queued_uncharged(&world, job_id).await;
    assert!(job.last_error.contains("503"), "{job:?}");
    let calls = world.embedder.calls().len();
    world.embedder.calls_started(calls + 1).await;
    is_queued_uncharged(&world, job_id).await;

    world.embedder.behave();
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (2, 0), "{job:?}");
    let history = world.history(job_id).await;
    assert!(history.iter().all(|was| was.attempt == 0), "{history:?}");
    world.assert_exact("unlucky").await;
    // A batch that the embedder refused came to it again; no other did.
    let mut answered = world.embedder.answered();
    answered.remove("probe");
    assert!(answered.values().all(|times| *times == 1), "{answered:?}");
}

#[tokio::test]
async fn an_embedder_away_for_longer_than_all_tries_would_last_fails_no_job() {
    // The waits between five tries add up to less than a second.
    let quick = [("WEIR_BACKOFF_BASE", "50ms"), ("WEIR_BACKOFF_CAP", "200ms")];
    let world = World::start(&quick).await;
    let delay = Duration::from_millis(50);
    world.embedder.set_delay(delay, Duration::ZERO);
    let mut jobs = Vec::new();
    for name in ["a", "b", "c"] {
        let items = (0..60).map(|id| (format!("{id:03}"), format!("text {id} of {name}")));
        jobs.push(world.put_items(name, items).await.jobs[0].job_id);
    }
    let settings = [("WEIR_BATCH_SIZE", "4")];
    let worker = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
    world.embedded("a", 8).await;

    // It dies in the middle of its calls, and a proxy before it breaks each
    // connection.
    world.embedder.rule(|_| Some(Rude::CutOff));
    let paused = "The embedder failed; claiming nothing until it answers again.";
    worker.process.wait_for_event(paused).await;
    // It is not asked again before a second has passed.
    let probed = "The embedder does not answer a probe; claiming nothing until it does.";
    worker.process.wait_for_event(probed).await;
    for job_id in &jobs {
        let job = world.job(*job_id).await;
        let waits = job.state() == JobState::Queued;
        assert!(waits || job.state() == JobState::Succeeded, "{job:?}");
        assert!(job.attempt <= 1, "{job:?}");
        // Those that ran say why they do not.
        assert!(
            !waits || job.epoch == 0 || !job.last_error.is_empty(),
            "{job:?}"
        );
    }

    world.embedder.behave();
    for job_id in jobs {
        world.succeeded(job_id).await;
        let history = world.history(job_id).await;
        assert!(history.iter().all(|was| was.attempt <= 1), "{history:?}");
    }
    for name in ["a", "b", "c"] {
        assert_eq!(world.persisted(name).await.len(), 60);
    }
}

#[tokio::test]
async fn an_embedder_that_asks_for_a_moment_gets_it_and_the_job_keeps_its_lease() {
    let world = World::start(&[]).await;
    let busy = AtomicBool::new(false);
    world.embedder.rule(move |texts| {
        let first = is_work(texts) && !busy.swap(true, Ordering::Relaxed);
        first.then(|| Rude::Status(429, Some("1".into()), "slow down".into()))
    });
    let put = world.put_items("busy", items(10)).await;
    let _worker = world.worker("16");
    let job = world.succeeded(put.jobs[0].job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    let calls = world.embedder.calls().into_iter();
    assert_eq!(calls.filter(|call| is_work(&call.texts)).count(), 2);
    world.assert_exact("busy").await;
}

#[tokio::test]
async fn a_broken_answer_is_charged_once_and_tried_again_later() {
    let world = World::start(&QUICK).await;
    let broken = AtomicBool::new(false);
    world.embedder.rule(move |texts| {
        let first = is_work(texts) && !broken.swap(true, Ordering::Relaxed);
        first.then(|| Rude::Body("{}".into()))
    });
    let put = world.put_items("broken", items(10)).await;
    let job_id = put.jobs[0].job_id;
    let _worker = world.worker("4");
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (2, 0), "{job:?}");
    world.assert_exact("broken").await;

    let history = world.history(job_id).await;
    let waits: Vec<_> = history.iter().filter(|was| was.delayed).collect();
    assert_eq!(waits.len(), 1, "{history:?}");
    let wait = waits[0];
    assert_eq!((wait.state.as_str(), wait.attempt), ("queued", 1));
    assert!(wait.last_error.as_ref().is_some_and(|why| !why.is_empty()));
    // Progress wipes the slate clean.
    let charged = history.iter().rposition(|was| was.attempt == 1).unwrap();
    assert!(history[charged + 1].chunks_done > 0, "{history:?}");
}

#[tokio::test]
async fn an_embedder_that_only_talks_nonsense_fails_the_job_until_it_is_put_again() {
    let world = World::start(&[&QUICK[..], &[("WEIR_MAX_ATTEMPTS", "3")]].concat()).await;
    world
        .embedder
        .rule(|texts| is_work(texts).then_some(Rude::WrongCount));
    let put = world.put_items("hopeless", items(10)).await;
    let job_id = put.jobs[0].job_id;
    let _worker = world.worker("4");
    let job = world.ended(job_id).await;
    assert_eq!(job.state(), JobState::Failed, "{job:?}");
    assert_eq!((job.epoch, job.attempt, job.max_attempts), (3, 3, 3));
    assert!(job.last_error.contains("vectors for"), "{job:?}");
    let unsettled = world.source("hopeless").await.jobs;
    assert_eq!(unsettled, [job]);

    world.embedder.behave();
    // The same content again queues what is missing.
    let again = world.put_items("hopeless", items(10)).await;
    assert_eq!(again.change.unwrap().items_unchanged, 10);
    assert_eq!(again.jobs.len(), 1);
    world.succeeded(again.jobs[0].job_id).await;
    world.assert_exact("hopeless").await;
    assert_eq!(world.source("hopeless").await.jobs, []);
}

#[tokio::test]
async fn one_poisonous_text_is_rejected_and_its_neighbours_are_embedded() {
    let world = World::start(&[]).await;
    let poisonous = |texts: &[String]| texts.iter().any(|text| text.contains("item 13"));
    world.embedder.rule(move |texts| {
        let refusal = || {
            Rude::Status(
                400,
                None,
                r#"{"error":"this one is not digestible"}"#.into(),
            )
        };
        poisonous(texts).then(refusal)
    });
    let put = world.put_items("poisoned", items(30)).await;
    let job_id = put.jobs[0].job_id;
    let _worker = world.worker("16");
    let job = world.succeeded(job_id).await;
    assert_eq!((job.chunks_done, job.chunks_rejected), (29, 1), "{job:?}");
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    let history = world.history(job_id).await;
    assert!(history.iter().all(|was| was.attempt == 0), "{history:?}");

    let source = world.source("poisoned").await.source.unwrap();
    assert_eq!((source.chunks_embedded, source.chunks_rejected), (29, 1));
    let rejected: Vec<(String, String)> =
        sqlx::query_as("SELECT item_id, reason FROM weir.rejections")
            .fetch_all(world.database.pool())
            .await
            .unwrap();
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].0, "013");
    assert!(rejected[0].1.contains("not digestible"), "{rejected:?}");
    // The neighbours have their own vectors, and the poison has none.
    for chunk in world.chunks("poisoned").await {
        let poison = chunk.item_id == "013";
        let stored = chunk.embedding.as_ref().map(pgvector::Vector::as_slice);
        let expected = weir_tests::embedder::expected_vector(&chunk.text);
        assert_eq!(stored, (!poison).then_some(&expected[..]));
    }
    // Halving asks for each neighbour a few times, but is answered once.
    let answered = world.embedder.answered();
    assert!(answered.values().all(|times| *times == 1), "{answered:?}");
}
