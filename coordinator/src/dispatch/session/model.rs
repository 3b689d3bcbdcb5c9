//! A model of a session: its credit, and whose chunks go next. Pure: no clock, no
//! database.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use tokio_util::sync::CancellationToken;

use super::lease::Lease;
use crate::{
    dispatch::{BatchPart, MAX_BATCH_BYTES},
    job::fair_share::{FairShare, Waiting, Wanted, Weights},
    job::plan::next_batch_len,
};

/// Whether batches are sent for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its embedder embeds.
    Fit,
    /// It is left alone for now: what the session has of it is kept.
    Resting,
    /// It embeds nothing, and why: what the session has of it goes back.
    Down(String),
}

/// A model that the worker embeds with.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) name: Arc<str>,
    /// Most chunks in a batch.
    pub(super) batch_size: usize,
    pub(super) standing: Standing,
    /// How many more chunks the worker takes.
    pub(super) credit: usize,
    /// Chunks of the jobs that were claimed and are not open yet.
    pub(super) opening: i64,
    /// Claims under way: for the credit that is left, and beside work that uses it
    /// up, for what other namespaces have.
    pub(super) claims: [Option<CancellationToken>; 2],
    share: FairShare,
}

impl Model {
    pub(super) fn new(name: &str, batch_size: usize, weights: Weights) -> Self {
        Self {
            name: name.into(),
            batch_size,
            standing: Standing::Resting,
            credit: 0,
            opening: 0,
            claims: [None, None],
            share: FairShare::new(weights),
        }
    }

    /// Takes in how its embedder is. While that does not embed, nothing is claimed for it.
    pub(super) fn stand(&mut self, standing: Standing) {
        if standing != Standing::Fit {
            self.cancel_claims();
        }
        self.standing = standing;
    }

    /// Has claims that are under way wait no longer.
    pub(super) fn cancel_claims(&self) {
        for claim in self.claims.iter().flatten() {
            claim.cancel();
        }
    }

    /// Whether anything may be sent for it.
    pub(super) fn is_open(&self) -> bool {
        self.standing == Standing::Fit && self.credit > 0
    }

    /// The next batch: of each tier and namespace its share of what the credit
    /// allows. `None` where nothing is at hand.
    pub(super) fn next_batch(
        &mut self,
        leases: &mut BTreeMap<i64, Lease>,
        next_seq: &mut i64,
        now: Instant,
    ) -> Option<Vec<BatchPart>> {
        let most = self.credit.min(self.batch_size);
        let mine = |lease: &&mut Lease| lease.of.model == self.name && lease.ready() > 0;
        let mut open: Vec<&mut Lease> = leases.values_mut().filter(mine).collect();
        open.retain(|lease| lease.most(most) > 0);
        let parts = match open.iter_mut().find(|lease| lease.suspects > 0) {
            // Alone, so that nobody else is suspected with it.
            Some(suspected) => {
                let len =
                    next_batch_len(suspected.lengths(), suspected.most(most), MAX_BATCH_BYTES);
                self.share
                    .took(&suspected.of.namespace, suspected.of.tier, len as i64);
                vec![part(suspected, len, next_seq, now)]
            }
            None => self.shared(&mut open, most, next_seq, now),
        };
        let sent: usize = parts.iter().map(|part| part.chunks.len()).sum();
        self.credit -= sent;
        (sent > 0).then_some(parts)
    }

    /// Shares a batch out among the namespaces of these leases.
    fn shared(
        &mut self,
        open: &mut [&mut Lease],
        most: usize,
        next_seq: &mut i64,
        now: Instant,
    ) -> Vec<BatchPart> {
        let mut planned: HashMap<usize, usize> = HashMap::new();
        let (mut room, mut bytes) = (most, MAX_BATCH_BYTES);
        while room > 0 {
            let (waiting, of) = waiting(open, &planned);
            let wanted = Wanted {
                jobs: room as i64,
                chunks: 0,
            };
            let portions = self.share.portions(&waiting, wanted, |_| false);
            let before = room;
            for portion in portions {
                let (namespace, tier) = (
                    waiting[portion.waiting].namespace,
                    waiting[portion.waiting].tier,
                );
                let mut due = room.min(usize::try_from(portion.jobs).unwrap_or(0));
                for &place in &of[portion.waiting] {
                    let had = planned.get(&place).copied().unwrap_or(0);
                    let texts = open[place].lengths().skip(had);
                    // A text that is larger than a batch goes alone.
                    let len = if room == most {
                        next_batch_len(texts, due, bytes)
                    } else {
                        fitting(texts, due, bytes)
                    };
                    bytes = bytes.saturating_sub(open[place].lengths().skip(had).take(len).sum());
                    (room, due) = (room - len, due - len);
                    if len > 0 {
                        planned.insert(place, had + len);
                        self.share.took(namespace, tier, len as i64);
                    }
                }
            }
            if room == before {
                break;
            }
        }
        let mut planned: Vec<(usize, usize)> = planned.into_iter().collect();
        planned.sort_unstable();
        let parts = planned.into_iter();
        let parts = parts.map(|(place, len)| part(open[place], len, next_seq, now));
        parts.collect()
    }

    /// Forgets whose turn it was where that says nothing any more.
    pub(super) fn go_on<'a>(&mut self, leases: impl Iterator<Item = &'a Lease>) {
        let mine = leases.filter(|lease| lease.of.model == self.name);
        self.share
            .go_on(mine.map(|lease| (&*lease.of.namespace, lease.of.tier)));
    }
}

/// The namespaces of these leases that have more at hand than is planned, and which of
/// the leases are theirs.
fn waiting<'a>(
    open: &'a [&mut Lease],
    planned: &HashMap<usize, usize>,
) -> (Vec<Waiting<'a>>, Vec<Vec<usize>>) {
    let mut by_turn: BTreeMap<(&str, i16), Vec<usize>> = BTreeMap::new();
    for (place, lease) in open.iter().enumerate() {
        if lease.ready() > planned.get(&place).copied().unwrap_or(0) {
            let turn = by_turn.entry((&*lease.of.namespace, lease.of.tier));
            turn.or_default().push(place);
        }
    }
    by_turn
        .into_iter()
        .map(|((namespace, tier), places)| {
            let waiting = Waiting {
                namespace,
                tier,
                chunks: 1,
                since: 0,
            };
            (waiting, places)
        })
        .unzip()
}

/// How many of these texts are within so many bytes.
fn fitting(texts: impl Iterator<Item = usize>, most: usize, bytes: usize) -> usize {
    let mut sum = 0_usize;
    let within = |text: &usize| {
        sum += text;
        sum <= bytes
    };
    texts.take(most).take_while(within).count()
}

/// Hands out the first chunks of a lease.
fn part(lease: &mut Lease, len: usize, next_seq: &mut i64, now: Instant) -> BatchPart {
    let seq = *next_seq;
    *next_seq += 1;
    BatchPart {
        seq,
        lease: lease.fence.lease,
        namespace: Arc::clone(&lease.of.namespace),
        source: Arc::clone(&lease.of.source),
        trace: lease.of.trace,
        chunks: lease.take(seq, len, now),
    }
}

#[cfg(test)]
mod tests;
