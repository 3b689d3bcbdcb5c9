use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    dispatch::session::lease::Of,
    store::rows::{ChunkText, LeaseKey},
};

fn text(job_id: i64, place: i32, bytes: usize) -> ChunkText {
    ChunkText {
        item_id: format!("{job_id}"),
        chunk_index: place,
        text_hash: vec![0; 32],
        text: "x".repeat(bytes),
    }
}

/// A lease of a namespace with texts of these lengths at hand.
fn lease(job_id: i64, namespace: &str, suspects: i32, lengths: &[usize]) -> Lease {
    let of = Of {
        source_id: job_id,
        model: "model".into(),
        namespace: namespace.into(),
        source: "source".into(),
        trace: None,
        tier: 0,
    };
    let texts = (0..).zip(lengths);
    let texts = texts.map(|(place, bytes)| text(job_id, place, *bytes));
    let fence = LeaseKey { job_id, epoch: 1 };
    Lease::new(fence.into(), of, suspects, 0, texts.collect())
}

fn model(batch_size: usize, credit: usize, weights: &[(&str, u32)]) -> Model {
    let weights = weights
        .iter()
        .map(|(name, weight)| ((*name).to_owned(), *weight));
    let mut model = Model::new("model", batch_size, weights.collect());
    (model.standing, model.credit) = (Standing::Fit, credit);
    model
}

/// Chunks of each namespace in a batch.
fn of_namespaces(parts: &[BatchPart]) -> BTreeMap<&str, usize> {
    let mut of: BTreeMap<&str, usize> = BTreeMap::new();
    for part in parts {
        *of.entry(&part.namespace).or_default() += part.chunks.len();
    }
    of
}

prop_compose! {
    fn leases()(drawn in vec((0..4_usize, 0..3_i32, vec(1..40_usize, 0..30)), 0..12)) -> BTreeMap<i64, Lease> {
        let leases = (1..).zip(drawn);
        leases.map(|(job_id, (namespace, suspects, lengths))| {
            (job_id, lease(job_id, ["a", "b", "c", "d"][namespace], suspects / 2 * 8, &lengths))
        }).collect()
    }
}

proptest! {
    /// Whatever is at hand, each chunk goes out once, in order, within credit and size.
    #[test]
    fn all_goes_out_once_within_credit_and_size(
        mut leases in leases(),
        batch_size in 1..20_usize,
        credits in vec(1..30_usize, 1..8),
    ) {
        let mut model = model(batch_size, 0, &[("a", 3)]);
        let suspected = |leases: &BTreeMap<i64, Lease>| -> BTreeSet<i64> {
            leases.iter().filter(|(_, it)| it.suspects > 0).map(|(id, _)| *id).collect()
        };
        let doubtful = suspected(&leases);
        let due: BTreeMap<i64, usize> = leases.iter().map(|(id, it)| (*id, it.ready())).collect();
        let (mut sent, mut next_seq): (BTreeMap<i64, usize>, i64) = (BTreeMap::new(), 1);
        for credit in credits.into_iter().chain([10_000]) {
            model.credit += credit;
            loop {
                let before = model.credit;
                let Some(parts) = model.next_batch(&mut leases, &mut next_seq, Instant::now()) else {
                    break;
                };
                let chunks: usize = parts.iter().map(|part| part.chunks.len()).sum();
                prop_assert!(chunks > 0 && chunks <= batch_size.min(before));
                prop_assert_eq!(model.credit, before - chunks);
                for part in &parts {
                    let job_id = part.lease.job_id;
                    if doubtful.contains(&job_id) {
                        prop_assert_eq!(parts.len(), 1, "a suspected text goes alone");
                        prop_assert!(chunks <= 4, "half of the suspects");
                    }
                    for chunk in &part.chunks {
                        let place = sent.entry(job_id).or_default();
                        prop_assert_eq!(chunk.chunk_index as usize, *place, "in order");
                        *place += 1;
                    }
                }
                // What is suspected is settled before more of it goes out.
                for part in parts {
                    if let Some(lease) = leases.get_mut(&part.lease.job_id) {
                        lease.answered(part.seq);
                        lease.settled(part.seq, true);
                    }
                }
            }
        }
        sent.retain(|_, sent| *sent > 0);
        let due: BTreeMap<i64, usize> = due.into_iter().filter(|(_, due)| *due > 0).collect();
        prop_assert_eq!(sent, due);
    }
}

#[test]
fn namespaces_share_each_batch_by_weight() {
    let many = [1; 100];
    let mut leases: BTreeMap<i64, Lease> = [
        (1, lease(1, "heavy", 0, &many)),
        (2, lease(2, "light", 0, &many)),
        // Two jobs give a namespace no larger share.
        (3, lease(3, "light", 0, &many)),
        (4, lease(4, "small", 0, &[1])),
    ]
    .into();
    let mut model = model(10, 1_000, &[("heavy", 3)]);
    let mut next_seq = 1;
    let first = model.next_batch(&mut leases, &mut next_seq, Instant::now());
    let first = first.unwrap();
    // What one does not use up is for the others.
    assert_eq!(of_namespaces(&first)["small"], 1);
    let mut all: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..8 {
        let parts = model.next_batch(&mut leases, &mut next_seq, Instant::now());
        for (namespace, chunks) in of_namespaces(&parts.unwrap()) {
            *all.entry(namespace.to_owned()).or_default() += chunks;
        }
    }
    assert!(all["heavy"].abs_diff(60) <= 3, "{all:?}");
    assert!(all["light"].abs_diff(20) <= 3, "{all:?}");
}

#[test]
fn a_text_larger_than_a_batch_goes_alone() {
    let huge = MAX_BATCH_BYTES + 1;
    let mut leases: BTreeMap<i64, Lease> = [
        (1, lease(1, "a", 0, &[huge, huge])),
        (2, lease(2, "b", 0, &[1])),
    ]
    .into();
    let mut model = model(10, 100, &[]);
    let mut next_seq = 1;
    let mut sizes = Vec::new();
    while let Some(parts) = model.next_batch(&mut leases, &mut next_seq, Instant::now()) {
        sizes.push(parts.iter().map(|part| part.chunks.len()).sum::<usize>());
        assert!(sizes.len() < 10, "{sizes:?}");
    }
    assert_eq!(sizes.iter().sum::<usize>(), 3);
    assert!(sizes.len() >= 2, "{sizes:?}");
}
