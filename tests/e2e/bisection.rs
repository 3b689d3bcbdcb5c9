//! Batches that are halved because a worker fell silent over them.

use weir_proto::v1::{self, stream_batches_response::Message as ToWorker};
use weir_tests::embedder::{Rude, expected_vector};

use crate::{
    clients::{From, To, Weir, batch, embedded, next, open, result, send, stream, until, upsert},
    world::World,
};

const TEXTS: [&str; 9] = ["1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// A claimed job of nine chunks of which the first five are suspected.
async fn suspected(weir: &Weir) -> v1::Lease {
    weir.put("source", &TEXTS).await;
    let lease = weir.claim().await;
    sqlx::query("UPDATE weir.jobs SET suspects = 5")
        .execute(weir.database.pool())
        .await
        .unwrap();
    lease
}

fn open_wide(lease: &v1::Lease) -> v1::stream_batches_request::Message {
    let v1::stream_batches_request::Message::Open(mut open) = open(lease) else {
        unreachable!("it opens");
    };
    open.batch_size = 4;
    v1::stream_batches_request::Message::Open(open)
}

fn texts(batch: &v1::Batch) -> Vec<&str> {
    batch
        .chunks
        .iter()
        .map(|chunk| chunk.text.as_str())
        .collect()
}

async fn embed(to: &To, batch: &v1::Batch) {
    let vector = |chunk: &v1::Chunk| embedded(chunk, &expected_vector(&chunk.text));
    send(
        to,
        result(batch.seq, batch.chunks.iter().map(vector).collect()),
    )
    .await;
}

/// The next batch, when it follows the ack with none before it.
async fn acked(from: &mut From) -> v1::Batch {
    match next(from).await {
        ToWorker::Ack(_) => batch(from).await,
        other => panic!("more than one batch was outstanding: {other:?}"),
    }
}

#[tokio::test]
async fn suspected_chunks_come_by_halves_one_batch_at_a_time_and_then_all_is_as_before() {
    let weir = Weir::start().await;
    let lease = suspected(&weir).await;
    let (to, mut from) = stream(&weir, open_wide(&lease)).await;
    let mut handed_out = batch(&mut from).await;
    for half in [&["1", "2", "3"][..], &["4"], &["5"]] {
        assert_eq!(texts(&handed_out), half);
        embed(&to, &handed_out).await;
        handed_out = acked(&mut from).await;
    }
    // All suspects are cleared: whole batches, a window of them.
    assert_eq!(texts(&handed_out), ["6", "7", "8", "9"]);
    embed(&to, &handed_out).await;
    assert!(matches!(next(&mut from).await, ToWorker::Ack(_)));
    assert!(matches!(next(&mut from).await, ToWorker::Finished(_)));
}

#[tokio::test]
async fn without_suspicion_the_window_is_filled() {
    let weir = Weir::start().await;
    weir.put("source", &TEXTS).await;
    let lease = weir.claim().await;
    let (_to, mut from) = stream(&weir, open_wide(&lease)).await;
    assert_eq!(texts(&batch(&mut from).await), ["1", "2", "3", "4"]);
    assert_eq!(texts(&batch(&mut from).await), ["5", "6", "7", "8"]);
}

#[tokio::test]
async fn unary_workers_get_halves_as_well() {
    let weir = Weir::start().await;
    let lease = suspected(&weir).await;
    let chunks = weir.batch(&lease).await;
    assert_eq!(chunks.len(), 3);
    let vector = |chunk| embedded(chunk, &expected_vector(&chunk.text));
    let request = upsert(&lease, chunks.iter().map(vector).collect());
    weir.worker().upsert_batch(request).await.unwrap();
    assert_eq!(weir.batch(&lease).await.len(), 1);
}

/// Settings under which a search takes a moment.
const QUICK: [(&str, &str); 5] = [
    ("WEIR_ORPHAN_GRACE", "50ms"),
    ("WEIR_POLL_INTERVAL", "50ms"),
    ("WEIR_BACKOFF_BASE", "10ms"),
    ("WEIR_BACKOFF_CAP", "10ms"),
    ("WEIR_MAX_ATTEMPTS", "2"),
];

#[tokio::test]
async fn a_text_that_kills_every_worker_is_rejected_and_its_neighbours_are_embedded() {
    let world = World::start(&QUICK).await;
    let poisoned = |texts: &[String]| texts.iter().any(|text| text == "poison");
    // The worker never gets past it: the test kills it there.
    world
        .embedder
        .rule(move |texts| poisoned(texts).then_some(Rude::Hang));
    let texts = ["one", "two", "three", "poison", "eleven", "fourteen"];
    let items = texts.map(|text| (text.to_owned(), text.to_owned()));
    let job_id = world.put_items("source", items).await.jobs[0].job_id;

    let mut kills = 0;
    loop {
        let mut worker = world.worker("4");
        let seen = world.embedder.calls().len();
        let killing = async || {
            let calls = world.embedder.calls();
            calls[seen..].iter().any(|call| poisoned(&call.texts))
        };
        let ended = "SELECT finished_at IS NOT NULL FROM weir.jobs";
        let ended = async || {
            sqlx::query_scalar(ended)
                .fetch_one(world.database.pool())
                .await
        };
        let ended = async || ended().await.is_ok_and(|ended: bool| ended);
        until(async || killing().await || ended().await).await;
        if ended().await {
            break;
        }
        worker.process.sigkill().await;
        kills += 1;
        assert!(kills < 12, "the search does not end");
    }
    // Four, two, one, and one again before the attempts are used up.
    assert!(kills >= 3, "{kills}");
    let job = world.succeeded(job_id).await;
    assert_eq!((job.chunks_done, job.chunks_rejected), (5, 1), "{job:?}");
    let chunks = world.chunks("source").await;
    for chunk in &chunks {
        assert_eq!(chunk.current.is_some(), chunk.text != "poison", "{chunk:?}");
    }
    let reason: String = sqlx::query_scalar("SELECT reason FROM weir.rejections")
        .fetch_one(world.database.pool())
        .await
        .unwrap();
    assert!(reason.contains("this text alone"), "{reason}");
}
