//! Content that changes, or goes away, while it is being embedded.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use weir_proto::v1::{DeleteSourceRequest, Item, JobState, PatchSourceRequest};

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
async fn a_change_ends_no_job_and_leaves_no_trace_of_the_old() {
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
    assert_eq!(change.jobs_superseded, 0);
    let counts = (
        change.items_added,
        change.items_changed,
        change.items_deleted,
        change.items_unchanged,
    );
    assert_eq!(counts, (10, 33, 33, 34));
    worker.process.sigcont();

    let old = world.ended(old_job).await;
    assert_eq!(
        (old.state(), old.epoch),
        (JobState::Succeeded, 1),
        "{old:?}"
    );
    for job in &put.jobs {
        world.succeeded(job.job_id).await;
    }

    let chunks = world.assert_exact("changing").await;
    let stored: HashMap<_, _> = chunks
        .iter()
        .map(|chunk| (chunk.item_id.clone(), chunk.text.clone()))
        .collect();
    assert_eq!(stored, content);
    // What did not change is embedded once, whether it was persisted, held or waiting.
    let received = world.embedder.received();
    for text in content.values() {
        assert_eq!(received[text], 1, "embedded again: {text}");
    }
    let texts: HashSet<_> = content.values().collect();
    let kept = count(&before)
        .keys()
        .filter(|it| texts.contains(it))
        .count();
    assert!(kept > 0, "the test kept nothing");
}

/// One item is written again and again while all of the source is embedded.
#[tokio::test]
async fn what_is_written_all_the_time_keeps_nothing_else_from_being_embedded() {
    let world = World::start(&[]).await;
    let per_call = Duration::from_millis(20);
    world.embedder.set_delay(per_call, Duration::ZERO);
    let mut content = items(0..200, "still");
    let put = world.put_items("hot", content.clone()).await;
    let job_id = put.jobs[0].job_id;
    let _worker = world.worker(&BATCH.to_string());
    let mut sources = world.sources().await;
    for version in 0.. {
        let text = format!("item 007 version {version}");
        content.insert("007".to_owned(), text.clone());
        let patch = PatchSourceRequest {
            name: "hot".to_owned(),
            upsert: vec![Item {
                item_id: "007".to_owned(),
                text,
                ..Item::default()
            }],
            ..PatchSourceRequest::default()
        };
        sources.patch_source(patch).await.unwrap();
        let source = world.source("hot").await.source.unwrap();
        if source.chunks_embedded >= 190 {
            break;
        }
    }
    let job = world.ended(job_id).await;
    assert_eq!(
        (job.state(), job.epoch),
        (JobState::Succeeded, 1),
        "{job:?}"
    );
    world.embedded("hot", 200).await;
    world.assert_exact("hot").await;
    let received = world.embedder.received();
    for text in content.values() {
        assert_eq!(received[text], 1, "embedded again: {text}");
    }
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
