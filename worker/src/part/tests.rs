use proptest::{collection::vec, prelude::*};

use super::*;

/// The size on the wire, counted by hand from the encoding's rules: a field of
/// bytes has a tag, a length of up to 5 bytes and its content.
const fn field(content: usize) -> usize {
    1 + 5 + content
}

fn key(item_id: usize) -> ChunkKey {
    ChunkKey {
        item_id: "i".repeat(item_id),
        chunk_index: -1,
        text_hash: vec![0; 32],
    }
}

fn chunk_on_wire(item_id: usize, payload: usize) -> usize {
    // The index, and how much was embedded: a tag and up to 10 bytes each.
    field(field(item_id) + 11 + field(32) + field(payload) + 11)
}

#[test]
fn the_batch_size_is_that_of_the_profile_unless_a_result_might_not_fit_a_message() {
    assert_eq!(batch_size(32), 32);
    let bound = batch_size(10_000);
    let largest = chunk_on_wire(MAX_ITEM_ID_BYTES, 4 * MAX_DIMENSION);
    assert!(bound as usize * largest <= MAX_WORKER_MESSAGE_BYTES);
    assert_eq!(bound, 519);
    assert_eq!(batch_size(bound + 1), bound);
}

proptest! {
    #[test]
    fn a_result_takes_no_more_on_the_wire_than_is_counted(
        embedded in vec((0_usize..=MAX_ITEM_ID_BYTES, 0_usize..100), 0..20),
        rejected in vec((0_usize..=MAX_ITEM_ID_BYTES, 0..=MAX_REJECTION_BYTES), 0..20),
    ) {
        let result = PartResult {
            seq: i64::MAX,
            embedded: embedded.iter().map(|(item_id, vector)| Embedded {
                key: key(*item_id),
                vector: vec![0; *vector].into(),
                chars: Some(u32::MAX),
            }).collect(),
            rejected: rejected.iter().map(|(item_id, reason)| {
                (key(*item_id), "r".repeat(*reason))
            }).collect(),
            left_out: vec![key(MAX_ITEM_ID_BYTES)],
        };
        let chunks = embedded.iter().chain(&rejected);
        let on_wire: usize = chunks.map(|(item_id, payload)| chunk_on_wire(*item_id, *payload)).sum();
        prop_assert!(field(on_wire + 11) <= result.wire_bytes());
        prop_assert_eq!(result.outcomes(), embedded.len() + rejected.len());
        prop_assert_eq!(result.keys().count(), result.outcomes() + 1);
    }
}
