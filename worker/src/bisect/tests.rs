use std::{
    future::pending,
    sync::atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    embedder::Probe,
    plan::{Chunk, ChunkKey},
    testing,
};

/// What none of these tests does.
fn no_probe() -> Result<Probe, EmbedError> {
    unreachable!("nobody probes here")
}

/// Refuses calls with a text that starts with `bad`, is too long or too much, is
/// down at `down` and fails at `fail`.
#[derive(Default)]
struct Picky {
    calls: AtomicUsize,
}

#[async_trait]
impl Embedder for Picky {
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let reason = format!("refused {}", texts.join(" "));
        if texts.iter().any(|text| text.starts_with("bad")) {
            return Err(EmbedError::Input { reason });
        }
        if texts
            .iter()
            .any(|text| text.len() > 200 || text.starts_with("ever too long"))
        {
            return Err(EmbedError::TooLong { reason });
        }
        if texts.len() > 8 && texts.iter().any(|text| text.starts_with("much")) {
            return Err(EmbedError::TooMany { reason });
        }
        if texts.contains(&"down") {
            let retry_after = Some(Duration::from_secs(9));
            return Err(EmbedError::Embedder {
                reason,
                retry_after,
            });
        }
        if texts.contains(&"fail") {
            return Err(EmbedError::Transient { reason });
        }
        Ok(texts.iter().map(|text| testing::vector(text)).collect())
    }

    async fn probe(&self) -> Result<Probe, EmbedError> {
        no_probe()
    }
}

/// Answers one vector, whatever it is asked.
struct Short;

#[async_trait]
impl Embedder for Short {
    async fn embed(&self, _: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        Ok(vec![vec![1.0]])
    }

    async fn probe(&self) -> Result<Probe, EmbedError> {
        no_probe()
    }
}

struct Stuck;

#[async_trait]
impl Embedder for Stuck {
    async fn embed(&self, _: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        pending().await
    }

    async fn probe(&self) -> Result<Probe, EmbedError> {
        no_probe()
    }
}

fn key(index: usize) -> ChunkKey {
    ChunkKey {
        item_id: format!("i{index}"),
        chunk_index: 0,
        text_hash: vec![index as u8],
    }
}

fn batch(texts: &[&str]) -> Batch {
    let chunks = texts.iter().enumerate().map(|(index, &text)| Chunk {
        key: key(index),
        text: text.to_owned(),
    });
    Batch {
        seq: 5,
        chunks: chunks.collect(),
    }
}

async fn run(embedder: &dyn Embedder, texts: &[&str]) -> Outcome {
    embed(embedder, &batch(texts), Duration::from_mins(1)).await
}

#[tokio::test]
async fn a_good_batch_takes_one_call() {
    let picky = Picky::default();
    let outcome = run(&picky, &["a", "b"]).await;
    assert_eq!(outcome.failure, None);
    assert_eq!(outcome.result.seq, 5);
    let expected = [(0, "a"), (1, "b")];
    let expected = expected.map(|(i, text)| (key(i), Bytes::from(testing::packed(text))));
    assert_eq!(outcome.result.embedded, expected);
    assert_eq!(picky.calls.load(Ordering::Relaxed), 1);
}

proptest! {
    #[test]
    fn exactly_the_guilty_texts_are_rejected(guilty in vec(any::<bool>(), 1..40)) {
        let texts = guilty.iter().map(|bad| if *bad { "bad" } else { "good" });
        let texts: Vec<&str> = texts.collect();
        let picky = Picky::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let outcome = runtime.block_on(run(&picky, &texts));
        prop_assert_eq!(outcome.failure, None);
        let of = |wanted: bool| {
            let indices = (0..guilty.len()).filter(|i| guilty[*i] == wanted);
            indices.map(key).collect::<Vec<_>>()
        };
        let embedded = outcome.result.embedded.into_iter().map(|(key, _)| key);
        prop_assert_eq!(embedded.collect::<Vec<_>>(), of(false));
        let rejected = outcome.result.rejected.into_iter().map(|(key, reason)| {
            assert_eq!(reason, "refused bad");
            key
        });
        prop_assert_eq!(rejected.collect::<Vec<_>>(), of(true));
        // A few calls for each guilty text, not one for each text.
        let count = guilty.iter().filter(|bad| **bad).count();
        let deep = guilty.len().next_power_of_two().ilog2() as usize;
        prop_assert!(picky.calls.into_inner() <= 1 + 2 * count * deep);
    }
}

#[tokio::test]
async fn what_was_embedded_before_a_failure_is_kept() {
    let outcome = run(&Picky::default(), &["a", "bad", "down", "c"]).await;
    let failure = Failure::Embedder {
        reason: "refused down c".to_owned(),
        retry_after: Some(Duration::from_secs(9)),
    };
    assert_eq!(outcome.failure, Some(failure));
    let keys = |keys: Vec<&ChunkKey>| keys.into_iter().cloned().collect::<Vec<_>>();
    let embedded = outcome.result.embedded.iter().map(|(key, _)| key).collect();
    assert_eq!(keys(embedded), [key(0)]);
    let rejected = outcome.result.rejected.iter().map(|(key, _)| key).collect();
    assert_eq!(keys(rejected), [key(1)]);
}

#[tokio::test]
async fn a_text_that_is_too_long_is_shortened_and_its_neighbours_are_not() {
    let (good, long) = ("g".repeat(190), "ü".repeat(405));
    let ever = format!("ever too long {good}");
    let outcome = run(&Picky::default(), &[&good, &long, &ever]).await;
    assert_eq!(outcome.failure, None);
    let embedded: Vec<_> = outcome.result.embedded;
    // 810 bytes, 405 and 202 were too many; a letter takes two.
    let expected = [(0, good), (1, "ü".repeat(50))];
    let expected = expected.map(|(i, text)| (key(i), Bytes::from(testing::packed(&text))));
    assert_eq!(embedded, expected);
    let rejected = outcome.result.rejected;
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].0, key(2));
}

#[tokio::test]
async fn texts_that_are_too_many_go_in_several_calls() {
    let picky = Picky::default();
    let outcome = run(&picky, &["much"; 20]).await;
    assert_eq!(outcome.failure, None);
    assert_eq!(outcome.result.embedded.len(), 20);
    assert_eq!(picky.calls.load(Ordering::Relaxed), 7);
}

#[tokio::test]
async fn a_transient_failure_charges_the_job() {
    let outcome = run(&Picky::default(), &["fail"]).await;
    let reason = "refused fail".to_owned();
    assert_eq!(outcome.failure, Some(Failure::Job { reason }));
    assert!(outcome.result.is_empty());
}

#[tokio::test]
async fn too_few_vectors_are_never_paired_with_texts() {
    let outcome = run(&Short, &["a", "b"]).await;
    let reason = "the embedder answered 1 vectors for 2 texts".to_owned();
    assert_eq!(outcome.failure, Some(Failure::Job { reason }));
    assert!(outcome.result.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_names_the_setting() {
    let outcome = embed(&Stuck, &batch(&["a"]), Duration::from_mins(5)).await;
    let reason = "the embedder took longer than embed_timeout (5m)".to_owned();
    assert_eq!(outcome.failure, Some(Failure::Job { reason }));
}

#[test]
fn a_rejection_has_a_reason_that_fits() {
    assert_eq!(rejection("too long"), "too long");
    assert!(rejection(" ").contains("no reason"));
    assert_eq!(rejection(&"ä".repeat(1_001)), "ä".repeat(1_000));
}
