//! Faults of the embedder, and whom they are charged to.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use weir_proto::v1::{Job, JobState};
use weir_tests::{cluster::Worker, embedder::Rude};

use crate::{clients::until, world::World};

/// What a worker says whose embedder is down.
const DOWN: &str = "The embedder embeds nothing; taking nothing until it does.";

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
    let put = world.put_items("unlucky", items(400)).await;
    let job_id = put.jobs[0].job_id;
    let worker = world.worker("8");
    world.embedded("unlucky", 16).await;
    world
        .embedder
        .rule(|_| Some(Rude::Status(503, None, "starting".into())));
    worker.process.wait_for_event(DOWN).await;
    // The job comes back, and stays there.
    until(async || world.job(job_id).await.state() == JobState::Queued).await;
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
    worker.process.wait_for_event(DOWN).await;
    for job_id in &jobs {
        // Those that ran say why they do not. A claim that waited may run one once more.
        let is_back = async || {
            let job = world.job(*job_id).await;
            match job.state() {
                JobState::Queued => job.epoch == 0 || !job.last_error.is_empty(),
                JobState::Succeeded => true,
                state => {
                    assert_eq!(state, JobState::Running, "{job:?}");
                    false
                }
            }
        };
        until(is_back).await;
    }

    world.embedder.behave();
    for job_id in jobs {
        world.succeeded(job_id).await;
        let history = world.history(job_id).await;
        assert!(history.iter().all(|was| was.attempt == 0), "{history:?}");
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
async fn a_broken_answer_is_asked_for_again_and_charged_to_nobody() {
    let world = World::start(&[]).await;
    let broken = AtomicBool::new(false);
    world.embedder.rule(move |texts| {
        let first = is_work(texts) && !broken.swap(true, Ordering::Relaxed);
        first.then(|| Rude::Body("{}".into()))
    });
    let put = world.put_items("broken", items(10)).await;
    let job_id = put.jobs[0].job_id;
    let _worker = world.worker("4");
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    world.assert_exact("broken").await;
}

#[tokio::test]
async fn an_embedder_that_only_talks_nonsense_holds_its_jobs_up_and_costs_them_nothing() {
    let world = World::start(&[("WEIR_MAX_ATTEMPTS", "1")]).await;
    let worker = world.worker("4");
    worker.process.wait_for_event("The embedder answers.").await;
    world.embedder.rule(|_| Some(Rude::WrongCount));
    let put = world.put_items("hopeless", items(10)).await;
    let job_id = put.jobs[0].job_id;
    worker.process.wait_for_event(DOWN).await;
    until(async || world.job(job_id).await.state() == JobState::Queued).await;
    let job = world.job(job_id).await;
    assert_eq!((job.attempt, job.chunks_rejected), (0, 0), "{job:?}");
    assert!(job.last_error.contains("vectors for"), "{job:?}");

    world.embedder.behave();
    world.succeeded(job_id).await;
    world.assert_exact("hopeless").await;
}

#[tokio::test]
async fn a_quota_that_is_used_up_rejects_and_charges_nothing() {
    for retry_after in [None, Some("1".to_owned())] {
        let world = World::start(&[("WEIR_MAX_ATTEMPTS", "1")]).await;
        let calls = AtomicUsize::new(0);
        world.embedder.rule(move |texts| {
            let is_used_up = is_work(texts) && calls.fetch_add(1, Ordering::Relaxed) < 3;
            is_used_up.then(|| Rude::Status(429, retry_after.clone(), "slow down".into()))
        });
        let job_id = world.put_items("busy", items(10)).await.jobs[0].job_id;
        let _worker = world.worker("4");
        let job = world.succeeded(job_id).await;
        assert_eq!((job.attempt, job.chunks_rejected), (0, 0), "{job:?}");
        world.assert_exact("busy").await;
    }
}

#[tokio::test]
async fn a_text_that_breaks_its_call_is_rejected_and_its_neighbours_are_embedded() {
    let cases: [fn() -> Rude; 2] = [
        || Rude::Status(500, None, r#"{"error":"NaN in the logits"}"#.into()),
        || Rude::CutOff,
    ];
    for rude in cases {
        let world = World::start(&[]).await;
        world.embedder.rule(move |texts| {
            let is_met = texts.iter().any(|text| text.contains("NANTEXT"));
            is_met.then(rude)
        });
        let mut items: Vec<_> = items(20).collect();
        items[7].1 = "a NANTEXT among good ones".to_owned();
        let job_id = world.put_items("source", items).await.jobs[0].job_id;
        let _worker = world.worker("16");
        let job = world.succeeded(job_id).await;
        assert_eq!((job.chunks_done, job.chunks_rejected), (19, 1), "{job:?}");
        assert_eq!(job.attempt, 0, "{job:?}");
        let rejected: Vec<String> = sqlx::query_scalar("SELECT item_id FROM weir.rejections")
            .fetch_all(world.database.pool())
            .await
            .unwrap();
        assert_eq!(rejected, ["007"]);
        let answered = world.embedder.answered();
        assert!(
            answered
                .iter()
                .all(|(text, times)| text.starts_with("probe") || *times == 1),
            "{answered:?}"
        );
    }
}

#[tokio::test]
async fn work_goes_on_with_the_first_probe_that_passes_and_nothing_is_embedded_twice() {
    let world = World::start(&[]).await;
    world
        .embedder
        .set_delay(Duration::from_millis(50), Duration::ZERO);
    // Far more than is embedded before the watch below sees the first of it.
    let put = world.put_items("source", items(400)).await;
    let job_id = put.jobs[0].job_id;
    let worker = world.worker("4");
    world.embedded("source", 8).await;
    world
        .embedder
        .rule(|_| Some(Rude::Status(503, None, "starting".into())));
    worker.process.wait_for_event(DOWN).await;
    until(async || world.job(job_id).await.state() == JobState::Queued).await;
    let before = world.embedder.calls().len();
    world.embedder.calls_started(before + 3).await;
    world.embedder.behave();
    world.succeeded(job_id).await;
    let calls = world.embedder.calls().split_off(before);
    // Nothing but probes while it was down, and one that passed; then work at once.
    let probes = calls.iter().take_while(|call| !is_work(&call.texts));
    let probes: Vec<_> = probes.collect();
    assert!(
        probes.iter().rev().skip(1).all(|call| !call.answered),
        "{calls:?}"
    );
    assert!(probes.last().unwrap().answered, "{calls:?}");
    world.assert_exact("source").await;
    let mut answered = world.embedder.answered();
    answered.remove("probe");
    assert!(answered.values().all(|times| *times == 1), "{answered:?}");
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
    let mut answered = world.embedder.answered();
    answered.remove("probe");
    assert!(answered.values().all(|times| *times == 1), "{answered:?}");
}
