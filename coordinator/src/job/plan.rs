//! Planning: what a write changes, and how the pending chunks are cut into
//! jobs and batches.

use std::collections::{BTreeMap, HashMap};

use weir_proto::limits::MAX_ITEM_ID_BYTES;

use super::chunk::Chunk;

/// SHA-256 of what is embedded for a chunk: the prompt of its source, and then its
/// text.
pub type TextHash = [u8; 32];

/// A span of item ids in bytewise order, both ends included.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ItemRange {
    /// The first item.
    pub first: String,
    /// The last item, not before the first.
    pub last: String,
}

impl ItemRange {
    /// The range of one item.
    pub fn one(item_id: &str) -> Self {
        Self {
            first: item_id.to_owned(),
            last: item_id.to_owned(),
        }
    }

    /// Whether an item may be in both.
    pub fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The range of every item there can be: no id is longer than
    /// [`MAX_ITEM_ID_BYTES`], and no character sorts behind U+10FFFF.
    pub fn everything() -> Self {
        Self {
            first: String::new(),
            last: "\u{10FFFF}".repeat(MAX_ITEM_ID_BYTES / 4 + 1),
        }
    }

    /// What of it is within another range.
    pub fn within(&self, other: &Self) -> Option<Self> {
        let first = self.first.as_str().max(&other.first);
        let last = self.last.as_str().min(&other.last);
        (first <= last).then(|| Self {
            first: first.to_owned(),
            last: last.to_owned(),
        })
    }
}

/// The least id after this one in bytewise order, which no item has: ids are of no
/// control characters.
pub fn successor(item_id: &str) -> String {
    format!("{item_id}\u{1}")
}

/// Sorts ranges and joins those that overlap, so that no item is in two.
pub fn merge_ranges(mut ranges: Vec<ItemRange>) -> Vec<ItemRange> {
    ranges.sort();
    ranges.dedup_by(|next, kept| {
        let overlap = next.first <= kept.last;
        if overlap && next.last > kept.last {
            kept.last = std::mem::take(&mut next.last);
        }
        overlap
    });
    ranges
}

/// The ranges between `kept` ones, which are in order and do not overlap, and
/// around them. Each ends where its neighbour begins, so that both have that
/// item: what precedes an id in bytewise order cannot be written down.
pub fn gaps(kept: &[ItemRange]) -> Vec<ItemRange> {
    let ItemRange { mut first, last } = ItemRange::everything();
    let mut gaps = Vec::with_capacity(kept.len() + 1);
    for range in kept {
        gaps.push(ItemRange {
            first: std::mem::replace(&mut first, range.last.clone()),
            last: range.first.clone(),
        });
    }
    gaps.push(ItemRange { first, last });
    gaps
}

/// A job to queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedJob {
    /// The items it covers.
    pub range: ItemRange,
    /// The pending chunks in that range.
    pub chunks: i32,
}

/// Cuts pending items into jobs as they come, in order of item id.
///
/// A job ends before the item that would take it over `max_chunks`; an item
/// that alone has more is a job of its own, for an item is never divided. It
/// also ends before a range that another job keeps: jobs never overlap.
#[derive(Debug)]
pub struct JobCutter {
    max_chunks: i32,
    /// What other jobs keep of that which is still to come.
    kept: std::iter::Peekable<std::vec::IntoIter<ItemRange>>,
    jobs: Vec<PlannedJob>,
}

impl JobCutter {
    /// Cuts jobs of up to `max_chunks` chunks around the ranges `kept` by
    /// other jobs, which are in order and do not overlap.
    pub fn new(max_chunks: i32, kept: Vec<ItemRange>) -> Self {
        Self {
            max_chunks,
            kept: kept.into_iter().peekable(),
            jobs: Vec::new(),
        }
    }

    /// Takes the next item, which has `pending` (> 0) chunks to embed. One that
    /// another job keeps is left to it. `adjoins` says that a job may reach to it
    /// from the item before.
    pub fn push(&mut self, item_id: String, pending: i32, adjoins: bool) {
        let mut behind_kept = false;
        while self.kept.next_if(|kept| kept.last < item_id).is_some() {
            behind_kept = true;
        }
        if self.kept.peek().is_some_and(|kept| kept.first <= item_id) {
            return;
        }
        match self.jobs.last_mut() {
            Some(job)
                if adjoins
                    && !behind_kept
                    && job.chunks.saturating_add(pending) <= self.max_chunks =>
            {
                job.chunks += pending;
                job.range.last = item_id;
            }
            _ => self.jobs.push(PlannedJob {
                range: ItemRange {
                    first: item_id.clone(),
                    last: item_id,
                },
                chunks: pending,
            }),
        }
    }

    /// The jobs, in order, no two overlapping.
    pub fn finish(self) -> Vec<PlannedJob> {
        self.jobs
    }
}

/// An item of new content, split into its chunks.
#[derive(Debug, Clone)]
pub struct PlannedItem {
    /// The item's id.
    pub item_id: String,
    /// What the client wants back, as JSON text.
    pub metadata: Option<String>,
    /// Its chunks, by index.
    pub chunks: Vec<Chunk>,
}

/// Which of an item's chunks differ from what is stored.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ItemDiff {
    /// Indexes whose text is new or other than the stored one.
    pub changed: Vec<usize>,
    /// Of these, how many are new indexes.
    pub added: usize,
    /// Stored chunks from this index on are gone; `None` when all remain.
    pub removed_from: Option<usize>,
    /// How many stored chunks are gone.
    pub removed: usize,
}

/// Compares the hashes of an item's chunks with those stored for it, by index.
pub fn diff_item(hashes: &[TextHash], stored: &BTreeMap<usize, TextHash>) -> ItemDiff {
    let changed: Vec<usize> = (0..hashes.len())
        .filter(|index| stored.get(index) != Some(&hashes[*index]))
        .collect();
    let added = changed
        .iter()
        .filter(|index| !stored.contains_key(index))
        .count();
    let removed = stored.range(hashes.len()..).count();
    ItemDiff {
        changed,
        added,
        removed_from: (removed > 0).then_some(hashes.len()),
        removed,
    }
}

/// A pending chunk without its text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PendingChunk {
    /// The item.
    pub item_id: String,
    /// The place in the item.
    pub chunk_index: i32,
    /// Length of what is embedded in bytes, the prompt included.
    pub text_bytes: usize,
}

/// How many of the pending chunks, whose lengths in bytes are `text_bytes`, go
/// into the next batch: at most `max_chunks`, and at most `max_bytes` of text,
/// but always one.
pub fn next_batch_len(
    text_bytes: impl IntoIterator<Item = usize>,
    max_chunks: usize,
    max_bytes: usize,
) -> usize {
    let mut bytes = 0_usize;
    text_bytes
        .into_iter()
        .take(max_chunks)
        .enumerate()
        .take_while(|(index, text_bytes)| {
            bytes += text_bytes;
            *index == 0 || bytes <= max_bytes
        })
        .count()
}

/// Sorts items by id, as every plan wants them; fails with an id that occurs
/// twice.
pub fn sort_items(items: &mut [PlannedItem]) -> Result<(), String> {
    items.sort_by(|a, b| a.item_id.cmp(&b.item_id));
    match items
        .windows(2)
        .find(|pair| pair[0].item_id == pair[1].item_id)
    {
        Some(pair) => Err(pair[0].item_id.clone()),
        None => Ok(()),
    }
}

/// Stored hashes of some items, by item and index.
pub type StoredHashes = HashMap<String, BTreeMap<usize, TextHash>>;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(text: &str) -> TextHash {
        Chunk::new(text.to_owned()).text_hash
    }

    fn range(first: &str, last: &str) -> ItemRange {
        ItemRange {
            first: first.to_owned(),
            last: last.to_owned(),
        }
    }

    #[test]
    fn the_same_chunks_differ_in_nothing() {
        let hashes = [hash("one"), hash("two")];
        let stored = BTreeMap::from([(0, hashes[0]), (1, hashes[1])]);
        assert_eq!(diff_item(&hashes, &stored), ItemDiff::default());
    }

    #[test]
    fn a_diff_tells_changed_added_and_removed() {
        let stored = BTreeMap::from([(0, hash("one")), (1, hash("two")), (2, hash("three"))]);
        assert_eq!(
            diff_item(&[hash("one"), hash("zwei")], &stored),
            ItemDiff {
                changed: vec![1],
                added: 0,
                removed_from: Some(2),
                removed: 1
            }
        );
        assert_eq!(
            diff_item(&[hash("one")], &BTreeMap::new()),
            ItemDiff {
                changed: vec![0],
                added: 1,
                removed_from: None,
                removed: 0
            }
        );
    }

    #[test]
    fn a_job_ends_before_an_item_that_does_not_adjoin() {
        let mut cutter = JobCutter::new(10, Vec::new());
        for (id, adjoins) in [("a", false), ("b", true), ("d", false), ("e", true)] {
            cutter.push(id.to_owned(), 1, adjoins);
        }
        let ranges: Vec<_> = cutter.finish().into_iter().map(|job| job.range).collect();
        assert_eq!(ranges, [range("a", "b"), range("d", "e")]);
    }

    #[test]
    fn an_item_over_the_limit_is_a_job_of_its_own() {
        let mut cutter = JobCutter::new(10, Vec::new());
        for (id, pending) in [("a", 4), ("b", 6), ("c", 25), ("d", 1)] {
            cutter.push(id.to_owned(), pending, true);
        }
        let jobs: Vec<_> = cutter
            .finish()
            .into_iter()
            .map(|job| (job.range, job.chunks))
            .collect();
        assert_eq!(
            jobs,
            [
                (range("a", "b"), 10),
                (range("c", "c"), 25),
                (range("d", "d"), 1)
            ]
        );
    }

    fn ids() -> impl Strategy<Value = String> {
        "[a-f]{1,3}"
    }

    proptest! {
            #[test]
            fn merged_ranges_cover_the_same_items_once(
                pairs in prop::collection::vec((ids(), ids()), 0..20), probe in ids()
            ) {
                let ranges: Vec<ItemRange> = pairs
                    .into_iter()
                    .map(|(a, b)| if a <= b { range(&a, &b) } else { range(&b, &a) })
                    .collect();
                let covers = |ranges: &[ItemRange]| {
                    ranges.iter().filter(|r| r.first <= probe && probe <= r.last).count()
                };
                let merged = merge_ranges(ranges.clone());
                prop_assert_eq!(covers(&merged), usize::from(covers(&ranges) > 0));
                prop_assert!(merged.windows(2).all(|pair| pair[0].last < pair[1].first));
            }

            #[test]
            fn cut_jobs_cover_every_item_once_in_order(
                counts in prop::collection::vec(1..40_i32, 0..60), max in 1..50_i32
            ) {
                let mut cutter = JobCutter::new(max, Vec::new());
                for (index, count) in counts.iter().enumerate() {
                    cutter.push(format!("{index:04}"), *count, true);
                }
                let jobs = cutter.finish();
                prop_assert_eq!(jobs.iter().map(|job| job.chunks).sum::<i32>(), counts.iter().sum::<i32>());
                prop_assert!(jobs.windows(2).all(|pair| pair[0].range.last < pair[1].range.first));
                for job in &jobs {
                    prop_assert!(job.chunks <= max || job.range.first == job.range.last);
                }
    // No two neighbours would have fitted into one.
                for pair in jobs.windows(2) {
                    let next: usize = pair[1].range.first.parse().unwrap();
                    prop_assert!(pair[0].chunks + counts[next] > max);
                }
            }

            #[test]
            fn cut_jobs_leave_alone_what_others_keep(
                items in prop::collection::btree_set(0..60_u8, 0..40), edges in prop::collection::btree_set(0..60_u8, 0..8),
                max in 1..20_i32
            ) {
                let edges: Vec<String> = edges.iter().map(|edge| format!("{edge:02}")).collect();
                let kept: Vec<ItemRange> = edges.chunks_exact(2).map(|pair| range(&pair[0], &pair[1])).collect();
                let ids: Vec<String> = items.iter().map(|id| format!("{id:02}")).collect();
                let covers = |ranges: &[ItemRange], id: &String| ranges.iter().any(|r| r.first <= *id && *id <= r.last);
                let mut cutter = JobCutter::new(max, kept.clone());
                for id in &ids {
                    cutter.push(id.clone(), 1, true);
                }
                let jobs = cutter.finish();
                let mut all: Vec<ItemRange> = jobs.iter().map(|job| job.range.clone()).collect();
                for id in &ids {
                    prop_assert!(covers(&all, id) != covers(&kept, id), "{id} in one or the other");
                    prop_assert!(covers(&kept, id) || covers(&gaps(&kept), id), "{id} is in no gap");
                }
                all.extend(kept);
                all.sort();
                prop_assert!(all.windows(2).all(|pair| pair[0].last < pair[1].first), "{all:?}");
            }

            #[test]
            fn a_batch_keeps_both_bounds_but_is_never_empty(
                lengths in prop::collection::vec(0..500_i32, 1..50), max_chunks in 1..20_usize, max_bytes in 1..2000_usize
            ) {
                let text_bytes = lengths.iter().map(|length| *length as usize);
                let len = next_batch_len(text_bytes, max_chunks, max_bytes);
                prop_assert!((1..=max_chunks).contains(&len));
                let bytes: i32 = lengths[..len].iter().sum();
                prop_assert!(len == 1 || bytes as usize <= max_bytes);
            }

            #[test]
            fn a_diff_applied_gives_the_new_chunks(
                old in prop::collection::vec("[a-c]{1,2}", 0..6), new in prop::collection::vec("[a-c]{1,2}", 0..6)
            ) {
                let stored: BTreeMap<usize, TextHash> =
                    old.iter().enumerate().map(|(index, text)| (index, hash(text))).collect();
                let hashes: Vec<TextHash> = new.iter().map(|text| hash(text)).collect();
                let diff = diff_item(&hashes, &stored);
                let mut applied = stored.clone();
                if let Some(from) = diff.removed_from {
                    applied.retain(|index, _| *index < from);
                }
                for index in &diff.changed {
                    applied.insert(*index, hashes[*index]);
                }
                let wanted: BTreeMap<usize, TextHash> = hashes.iter().copied().enumerate().collect();
                prop_assert_eq!(&applied, &wanted);
                prop_assert_eq!(stored.len() + diff.added - diff.removed, wanted.len());
            }
        }
}
