//! Chunks embedded by the beginning of their text.

use weir_coordinator::store::{
    batches::Outcome,
    rows::{ChunkText, Job},
};

use crate::fixture::{Weir, item, items, key, lease_of, many, outcome, write};

/// These chunks embedded, the first of them truncated.
fn first_truncated(job: &Job, chunks: &[ChunkText], truncated_to: i32) -> Outcome {
    let mut outcome = outcome(job, chunks);
    outcome.embedded[0].truncated_to = Some(truncated_to);
    outcome.complete = false;
    outcome
}

/// What is stored of a source's chunks, by item.
async fn truncated(weir: &Weir) -> Vec<(String, Option<i32>)> {
    let sql = "SELECT item_id, truncated_to FROM weir.embeddings ORDER BY item_id, chunk_index";
    sqlx::query_as(sql).fetch_all(weir.pool()).await.unwrap()
}

/// How many chunks the source has that are truncated.
async fn of_source(weir: &Weir, name: &str) -> i64 {
    let state = weir.store.source(&key(name)).await.unwrap();
    state.source.chunks_truncated
}

#[tokio::test]
async fn a_truncated_chunk_is_flagged_and_counted_once() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    for truncated_to in [3, 4] {
        // The second time it is sent again, and the first word on it holds.
        let part = first_truncated(&job, &texts[..2], truncated_to);
        let progress = weir.upsert(part).await.unwrap();
        assert_eq!((progress.done, progress.truncated), (2, 1));
        let expected = [("i0000".to_owned(), Some(3)), ("i0001".to_owned(), None)];
        assert_eq!(truncated(&weir).await, expected);
        assert_eq!(weir.job(job.id).await.chunks_truncated, 1);
        assert_eq!(of_source(&weir, "api").await, 1);
        weir.check().await;
    }
    let last = first_truncated(&job, &texts[2..], 1);
    assert_eq!(weir.upsert(last).await.unwrap().truncated, 2);
    let done = weir.store.complete(lease_of(&job)).await.unwrap();
    assert_eq!((done.chunks_done, done.chunks_truncated), (3, 2));
    assert_eq!(of_source(&weir, "api").await, 2);
    // Sent again after the end, it tells the same.
    let late = weir.upsert(outcome(&job, &texts[2..])).await.unwrap();
    assert_eq!((late.done, late.truncated), (3, 2));
    weir.check().await;
}

#[tokio::test]
async fn all_characters_of_a_text_are_the_whole() {
    // Characters, not bytes.
    for (truncated_to, stored) in [
        (1, Some(1)),
        (3, Some(3)),
        (4, None),
        (5, None),
        (i32::MAX, None),
    ] {
        let weir = Weir::new().await;
        weir.put("api", &items(&[("a", "äöü€")])).await;
        let job = weir.claim().await;
        let texts = weir.texts(&job).await;
        let progress = weir.upsert(first_truncated(&job, &texts, truncated_to));
        let counted = progress.await.unwrap().truncated;
        assert_eq!(counted, i64::from(stored.is_some()), "{truncated_to}");
        assert_eq!(truncated(&weir).await, [("a".to_owned(), stored)]);
        weir.check().await;
    }
}

#[tokio::test]
async fn the_flag_goes_with_the_text_it_is_of() {
    let weir = Weir::new().await;
    weir.put("api", &many(2)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    weir.upsert(first_truncated(&job, &texts, 2)).await.unwrap();
    weir.store.complete(lease_of(&job)).await.unwrap();
    weir.put(
        "api",
        &[item("i0000", &["new"]), item("i0001", &["text 1"])],
    )
    .await;
    assert_eq!(of_source(&weir, "api").await, 0);
    weir.embed_all().await;
    let whole = |item_id: &str| (item_id.to_owned(), None);
    assert_eq!(truncated(&weir).await, [whole("i0000"), whole("i0001")]);
    weir.check().await;
}

#[tokio::test]
async fn another_model_makes_its_own_flags() {
    let weir = Weir::new().await;
    weir.put("api", &many(1)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    weir.upsert(first_truncated(&job, &texts, 2)).await.unwrap();
    weir.store.complete(lease_of(&job)).await.unwrap();
    let mut other = write("api");
    other.model = Some("other".to_owned());
    weir.store.put_source(&other, &many(1)).await.unwrap();
    // The old vector stays until the new one replaces it, but says nothing of the new model.
    assert_eq!(truncated(&weir).await, [("i0000".to_owned(), Some(2))]);
    assert_eq!(of_source(&weir, "api").await, 0);
    let job = weir.claim_of("other").await;
    assert_eq!(weir.embed(&job).await.truncated, 0);
    assert_eq!(truncated(&weir).await, [("i0000".to_owned(), None)]);
}

#[tokio::test]
async fn the_count_stays_within_what_is_done() {
    let weir = Weir::new().await;
    weir.put("api", &many(2)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    weir.upsert(first_truncated(&job, &texts, 2)).await.unwrap();
    for expected in [2, 2] {
        // Vectors deleted by hand are made, and counted, again.
        weir.meddle("DELETE FROM weir.embeddings").await;
        let again = weir.upsert(first_truncated(&job, &texts, 2)).await.unwrap();
        assert_eq!((again.done, again.truncated), (2, expected));
    }
}
