//! One bad text never blocks its neighbours, one bad source never another.

use tokio::sync::mpsc;
use weir_proto::v1::JobState;
use weir_tests::{clients::until, embedder::Rude, world::World};

use crate::words::{BRISK, items};

#[tokio::test]
async fn law_08_one_bad_source_never_blocks_another() {
    // A source that fails waits for long.
    let world = World::start(&[("WEIR_BACKOFF_BASE", "1h"), ("WEIR_BACKOFF_CAP", "1h")]).await;
    let bad = world.put_items("bad", items(0..10, "bad")).await.jobs[0].job_id;
    let failing = world.failing_worker("bad").await;
    until(async || world.job(bad).await.attempt == 1).await;
    drop(failing);
    let good = world.put_items("good", items(0..10, "good")).await.jobs[0].job_id;
    let _worker = world.worker("4");
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

#[tokio::test]
async fn law_08_a_text_that_kills_its_workers_is_found_by_halves_and_rejected() {
    let settings = [("WEIR_ORPHAN_GRACE", "1s"), ("WEIR_MAX_ATTEMPTS", "3")];
    let world = World::start(&[&BRISK[..], &settings].concat()).await;
    // Whenever the embedder sees the text, its worker dies of it.
    let is_deadly = |texts: &[String]| texts.iter().any(|text| text.contains("013"));
    let (fatal, mut deaths) = mpsc::unbounded_channel();
    world.embedder.rule(move |texts| {
        is_deadly(texts).then(|| {
            fatal.send(texts.len()).unwrap();
            Rude::Hang
        })
    });
    let put = world.put_items("source", items(0..30, "text")).await;
    let job_id = put.jobs[0].job_id;
    let mut worker = world.worker("8");
    let mut sizes = Vec::new();
    let mut ended = Box::pin(world.ended(job_id));
    let job = loop {
        tokio::select! {
            job = &mut ended => break job,
            size = deaths.recv() => {
                sizes.push(size.unwrap());
                worker.process.sigkill().await;
                worker = world.worker("8");
            }
        }
    };
    assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
    assert_eq!((job.chunks_done, job.chunks_rejected), (29, 1), "{job:?}");
    // Half the size each time, until it was alone.
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
    assert_eq!((sizes[0], sizes.last()), (8, Some(&1)), "{sizes:?}");
    // At the most: once with each of the four batches, as long as a lease persists another one
    // first; by half, a quarter and an eighth; and three times alone, which uses up the attempts.
    assert!(sizes.len() <= 10, "{sizes:?}");
    for chunk in world.chunks("source").await {
        let embedded = chunk.current == Some(true);
        assert_eq!(embedded, chunk.item_id != "013", "{chunk:?}");
    }
    let rejected: Vec<(String, String)> =
        sqlx::query_as("SELECT item_id, reason FROM weir.rejections")
            .fetch_all(world.database.pool())
            .await
            .unwrap();
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    assert_eq!(rejected[0].0, "013");
    assert!(!rejected[0].1.is_empty());
}
