//! Content that changes, or goes away, while it is being embedded.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use weir_proto::v1::{DeleteSourceRequest, JobState};

use crate::world::{World, count};

const BATCH: usize = 8;

fn items(ids: impl IntoIterator<Item = usize>, version: &str) -> HashMap<String, String> {
    let text = |id| format!("item {id:03} {version}");
    let item = |id| (format!("{id:03}"), text(id));
    ids.into_iter().map(item).collect()
}

/// 100 items of which some are persisted, one batch is in the embedder, which
/// holds it, and the rest waits. Returns the world, its worker and the job.
async fn held_in_the_middle() -> (World, weir_tests::cluster::Worker, i64) {
    let world = World::start(&[]).await;
    world
        .embedder
        .set_delay(Duration::from_millis(100), Duration::ZERO);
    let put = world.put_items("changing", items(0..100, "old")).await;
    let worker = world.worker(&BATCH.to_string());
    world.embedded("changing", 3 * BATCH as i64).await;
    world.embedder.close_gate();
    // The next call, if one was under way when the gate fell, is the last.
    let calls = world.embedder.calls().len();
    world.embedder.calls_started(calls + 1).await;
    (world, worker, put.jobs[0].job_id)
}

#[tokio::test]
async fn a_change_ends_the_job_and_leaves_no_trace_of_the_old() {
    let (world, worker, old_job) = held_in_the_middle().await;
    let before = world.persisted("changing").await;
    // The worker cannot hear of the change before it has the old vectors, so
    // that it sends them although they are of the past.
    worker.process.sigstop();
    world.embedder.open_gate();

    // Every third item stays, every third changes, every third goes, so that
    // there are some of each among the persisted, the held and the waiting.
    let mut content = items((0..100).step_by(3), "old");
    content.extend(items((1..100).step_by(3), "new"));
    content.extend(items(100..110, "new"));
    let put = world.put_items("changing", content.clone()).await;
    let change = put.change.unwrap();
    assert_eq!(change.jobs_superseded, 1);
    let counts = (
        change.items_added,
        change.items_changed,
        change.items_deleted,
        change.items_unchanged,
    );
    assert_eq!(counts, (10, 33, 33, 34));
    worker.process.sigcont();

    let old = world.ended(old_job).await;
    assert_eq!(old.state(), JobState::Cancelled, "{old:?}");
    assert!(
        old.epoch > 1 && old.last_error.contains("supersede"),
        "{old:?}"
    );
    let dropped = "The lease ended; job dropped.";
    let dropped = worker.process.wait_for_event(dropped).await;
    assert!(dropped.to_string().contains("has changed"), "{dropped}");
    let new_job = put.jobs[0].job_id;
    assert_ne!(new_job, old_job);
    world.succeeded(new_job).await;

    let chunks = world.assert_exact("changing").await;
    let stored: HashMap<_, _> = chunks
        .iter()
        .map(|chunk| (chunk.item_id.clone(), chunk.text.clone()))
        .collect();
    assert_eq!(stored, content);
    // Law 6: what was persisted and did not change is not embedded again.
    let texts: HashSet<_> = content.values().collect();
    let received = world.embedder.received();
    let mut kept = 0;
    for text in count(&before).keys().filter(|text| texts.contains(text)) {
        assert_eq!(received[text], 1, "embedded again: {text}");
        kept += 1;
    }
    assert!(kept > 0, "the test kept nothing");
}

#[tokio::test]
async fn a_deleted_source_leaves_nothing_and_its_worker_goes_on() {
    let (world, worker, job_id) = held_in_the_middle().await;
    let request = DeleteSourceRequest {
        name: "changing".into(),
        ..DeleteSourceRequest::default()
    };
    worker.process.sigstop();
    world.embedder.open_gate();
    let mut sources = world.sources().await;
    let deleted = sources.delete_source(request).await.unwrap().into_inner();
    assert_eq!((deleted.items_deleted, deleted.jobs_cancelled), (100, 1));
    assert!(deleted.embeddings_deleted >= 3 * BATCH as i64);
    worker.process.sigcont();

    let dropped = "The lease ended; job dropped.";
    let dropped = worker.process.wait_for_event(dropped).await;
    assert!(dropped.to_string().contains("deleted"), "{dropped}");
    assert_eq!(world.job(job_id).await.state(), JobState::Cancelled);

    // The same worker takes what comes next; only that is there.
    let put = world.put_items("next", items(0..20, "next")).await;
    world.succeeded(put.jobs[0].job_id).await;
    assert_eq!(world.assert_exact("next").await.len(), 20);
    for (table, rows) in [
        ("sources", 1),
        ("items", 20),
        ("chunks", 20),
        ("rejections", 0),
    ] {
        assert_eq!(world.rows(table).await, rows, "{table}");
    }
}
