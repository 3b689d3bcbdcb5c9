use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};
use prost_like::wire_size;

use super::*;

/// The size on the wire, counted by hand from the encoding's rules.
mod prost_like {
    use super::*;

    /// A length-delimited field: tag, length (up to 5 bytes) and content.
    fn field(content: usize) -> usize {
        1 + 5 + content
    }

    pub(super) fn wire_size(key: &ChunkKey, payload: usize) -> usize {
        let index = 1 + 10;
        let fields = field(key.item_id.len()) + field(key.text_hash.len()) + index;
        field(fields + field(payload))
    }
}

fn key(item_id: &str) -> ChunkKey {
    ChunkKey {
        item_id: item_id.to_owned(),
        chunk_index: 0,
        text_hash: vec![0; 32],
    }
}

fn batch(seq: i64) -> Batch {
    let chunk = Chunk {
        key: key(&seq.to_string()),
        text: "text".to_owned(),
    };
    Batch {
        seq,
        chunks: vec![chunk],
    }
}

fn embedded(key: ChunkKey) -> Embedded {
    Embedded {
        key,
        vector: Bytes::from_static(&[0; 4]),
        chars: None,
    }
}

fn result(batch: &Batch) -> BatchResult {
    let keys = batch.chunks.iter().map(|chunk| chunk.key.clone());
    BatchResult {
        seq: batch.seq,
        embedded: keys.map(embedded).collect(),
        rejected: Vec::new(),
    }
}

fn seqs(held: &Held) -> Vec<i64> {
    held.keys().into_iter().map(|(seq, _)| seq).collect()
}

#[test]
fn the_batch_size_is_the_least_of_setting_lease_and_message() {
    assert_eq!(batch_size(32, 100, 2, 384), 32);
    assert_eq!(batch_size(32, 8, 2, 384), 8);
    assert_eq!(batch_size(10_000, 10_000, 2, 384), 10_000);
    assert!(batch_size(10_000, 10_000, 2, 16_000) < 1_000);
    assert!(batch_size(10_000, 10_000, 64, 1) < 1_000);
}

proptest! {
    #[test]
    fn what_a_batch_makes_the_worker_send_fits_a_message(
        setting in 1_u32..=10_000,
        lease in 1_u32..=10_000,
        window in 1_u32..=64,
        dimension in 0_usize..=16_000,
    ) {
        let size = batch_size(setting, lease, window, dimension) as usize;
        let longest = key(&"i".repeat(MAX_ITEM_ID_BYTES));
        let payload = (4 * dimension).max(MAX_REJECTION_BYTES);
        prop_assert!(size >= 1);
        prop_assert!(size * wire_size(&longest, payload) <= MAX_WORKER_MESSAGE_BYTES);
        let held = window as usize * size * wire_size(&longest, 0);
        prop_assert!(held <= MAX_WORKER_MESSAGE_BYTES);
    }

    /// Whatever happens in whatever order: batches go to the embedder in turn,
    /// none twice, none but an acknowledged one is let go, and the window
    /// holds.
    #[test]
    fn a_batch_is_embedded_once_and_held_until_it_is_acknowledged(
        window in 1_u32..=4,
        steps in vec(0_u8..4, 0..200),
    ) {
        let mut held = Held::new(window);
        let mut sent = 0;
        let mut started = 0;
        let mut embedding: Vec<Batch> = Vec::new();
        let mut embedded = BTreeSet::new();
        let mut expected = BTreeSet::new();
        for step in steps {
            match step {
                0 => match held.receive(batch(sent)) {
                    Ok(()) => {
                        expected.insert(sent);
                        sent += 1;
                    }
                    Err(breach) => {
                        let window = window as usize;
                        prop_assert_eq!(breach, Breach::OverWindow { seq: sent, window });
                        prop_assert_eq!(seqs(&held).len(), window);
                    }
                },
                1 => if let Some(next) = held.start_next() {
                    prop_assert_eq!(next.seq, started);
                    started += 1;
                    embedding.push(next);
                } else {
                    prop_assert_eq!(started, sent);
                },
                // The embedder answers in any order.
                2 => if let Some(batch) = embedding.pop() {
                    embedded.insert(batch.seq);
                    held.embedded(result(&batch));
                },
                _ => {
                    let known = embedded.pop_last();
                    let seq = known.unwrap_or(sent);
                    prop_assert_eq!(held.acknowledge(seq), known.map(|_| 1));
                    expected.remove(&seq);
                }
            }
            let results: BTreeSet<i64> = held.results().map(|result| result.seq).collect();
            prop_assert_eq!(&results, &embedded);
            let held: BTreeSet<i64> = seqs(&held).into_iter().collect();
            prop_assert_eq!(&held, &expected);
        }
    }
}

#[test]
fn a_batch_that_is_held_is_not_taken_again() {
    let mut held = Held::new(2);
    held.receive(batch(1)).unwrap();
    assert_eq!(held.receive(batch(1)), Err(Breach::Twice { seq: 1 }));
}

#[test]
fn every_state_names_the_chunks_it_came_with() {
    let mut held = Held::new(3);
    for seq in 1..=3 {
        held.receive(batch(seq)).unwrap();
    }
    let first = held.start_next().unwrap();
    let mut outcome = result(&first);
    let rejected = outcome.embedded.remove(0).key;
    outcome.rejected.push((rejected, "refused".to_owned()));
    held.embedded(outcome);
    held.start_next().unwrap();
    let expected = [1, 2, 3].map(|seq: i64| (seq, vec![key(&seq.to_string())]));
    assert_eq!(held.keys(), expected);
}

#[test]
fn only_what_has_no_result_is_forgotten() {
    let mut held = Held::new(3);
    for seq in 1..=3 {
        held.receive(batch(seq)).unwrap();
    }
    let first = held.start_next().unwrap();
    held.embedded(result(&first));
    held.start_next().unwrap();
    held.forget_queued();
    assert_eq!(seqs(&held), [1, 2]);
    held.forget(2);
    assert_eq!(seqs(&held), [1]);
    assert_eq!(held.acknowledge(1), Some(1));
    assert!(held.is_empty());
}

#[test]
fn an_ack_without_a_result_changes_nothing() {
    let mut held = Held::new(1);
    held.receive(batch(1)).unwrap();
    assert_eq!(held.acknowledge(1), None);
    assert_eq!(held.acknowledge(2), None);
    assert_eq!(seqs(&held), [1]);
}
