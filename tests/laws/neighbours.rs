//! One bad text never blocks its neighbours, one bad source never another.

use weir_proto::v1::JobState;
use weir_tests::{cluster::Worker, embedder::Rude, world::World};

use crate::words::items;

#[tokio::test]
async fn law_08_one_bad_source_never_blocks_another() {
    // A source that fails waits for long, and its worker has one place.
    let world = World::start(&[("WEIR_BACKOFF_BASE", "1h"), ("WEIR_BACKOFF_CAP", "1h")]).await;
    let is_bad = |texts: &[String]| texts.iter().any(|text| text.contains("bad"));
    world
        .embedder
        .rule(move |texts| is_bad(texts).then_some(Rude::WrongCount));
    let bad = world.put_items("bad", items(0..10, "bad")).await.jobs[0].job_id;
    let good = world.put_items("good", items(0..10, "good")).await.jobs[0].job_id;
    assert!(bad < good);
    let settings = [("WEIR_BATCH_SIZE", "4"), ("WEIR_CONCURRENCY", "1")];
    let _worker = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
    world.succeeded(good).await;
    let bad = world.job(bad).await;
    assert_eq!((bad.state(), bad.attempt), (JobState::Queued, 1), "{bad:?}");
    assert_eq!(world.persisted("good").await.len(), 10);
}

#[tokio::test]
async fn law_08_bad_texts_are_rejected_and_their_neighbours_embedded() {
    let world = World::start(&[]).await;
    // Two of one batch, one alone in the last, and the whole of a third.
    let bad = [1, 2, 8, 9, 10, 11, 16];
    let is_bad = move |text: &String| bad.iter().any(|id| text.contains(&format!("{id:03}")));
    world.embedder.rule(move |texts| {
        let refusal = Rude::Status(400, None, r#"{"error":"indigestible"}"#.into());
        texts.iter().any(is_bad).then_some(refusal)
    });
    let put = world.put_items("source", items(0..17, "text")).await;
    let _worker = world.worker("4");
    let job = world.succeeded(put.jobs[0].job_id).await;
    assert_eq!((job.chunks_done, job.chunks_rejected), (10, 7), "{job:?}");
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    for chunk in world.chunks("source").await {
        let embedded = chunk.current == Some(true);
        assert_eq!(embedded, !is_bad(&chunk.text), "{chunk:?}");
    }
}
