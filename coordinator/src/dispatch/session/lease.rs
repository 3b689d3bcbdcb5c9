//! What a session knows of one of its leases: what is at hand of it, what the
//! worker has, and what is still to be read. Pure: no clock, no database.
//!
//! All of it can be read off the database again, but for the parts that the worker
//! holds, and these it names when it opens another session.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use weir_telemetry::TraceContext;

use crate::{
    job::{blame::suspected_batch, fair_share::tier, plan::PendingChunk},
    store::{
        fence::Fence,
        rows::{ChunkText, Job},
    },
};

/// Pending chunks that are listed at a time, without their texts.
pub(super) const LISTED: i64 = 4_096;

/// What a lease is of.
#[derive(Debug, Clone)]
pub(super) struct Of {
    pub(super) source_id: i64,
    pub(super) model: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) source: Arc<str>,
    /// What the spans of this attempt hang on.
    pub(super) trace: Option<TraceContext>,
    /// It goes before those of lower tiers.
    pub(super) tier: i16,
}

impl Of {
    pub(super) fn new(job: &Job, trace: Option<TraceContext>) -> Self {
        Self {
            source_id: job.source_id,
            model: job.model.as_str().into(),
            namespace: job.namespace.as_str().into(),
            source: job.source.as_str().into(),
            trace,
            tier: tier(job.priority),
        }
    }
}

/// A lease of the session.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) fence: Fence,
    pub(super) of: Of,
    /// How many of the next chunks may hold a text that kills its worker.
    pub(super) suspects: i32,
    /// The parts that were sent and are not settled, by number.
    parts: HashMap<i64, Part>,
    /// Pending chunks not handed out yet, shortest first.
    listed: VecDeque<PendingChunk>,
    /// The first of these, with their texts.
    ready: VecDeque<ChunkText>,
    /// Bytes of these texts.
    ready_bytes: usize,
    /// How many are being read.
    reading: usize,
    /// Chunks that may be pending beyond what is listed; `None` where the last
    /// listing held everything.
    unlisted: Option<i64>,
    /// What is under way for it.
    pub(super) busy: Option<Busy>,
    /// Whether there is reason to list again beyond the listing that is under way.
    is_outdated: bool,
    /// Chunks that were settled while something was read: a listing may be of before.
    settled: HashSet<(String, i32)>,
}

/// What is under way for a lease; one thing at a time, but for its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Busy {
    /// Its next chunks are read.
    Reading,
    /// It is completed, released, or handed back.
    Ending,
}

/// A part that was sent.
#[derive(Debug)]
struct Part {
    chunks: Vec<(String, i32)>,
    /// When this session sent it; `None` where the one before did.
    sent: Option<Instant>,
    /// Whether the worker has answered, and its result is being written.
    answered: bool,
}

/// What is to be done for a lease next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: something is at hand, with the worker, or under way.
    Wait,
    /// To list what is pending.
    List,
    /// To read the texts of what is listed.
    Read,
    /// To complete the job: nothing of it seems to be pending.
    Complete,
}

impl Lease {
    /// A lease on a job of which so many chunks are pending, and all their texts, if they
    /// were read when it was opened.
    pub(super) fn new(
        fence: Fence,
        of: Of,
        suspects: i32,
        pending: i64,
        texts: Vec<ChunkText>,
    ) -> Self {
        Self {
            fence,
            of,
            suspects,
            parts: HashMap::new(),
            listed: VecDeque::new(),
            unlisted: texts.is_empty().then_some(pending),
            ready_bytes: texts.iter().map(|it| it.text.len()).sum(),
            reading: 0,
            ready: texts.into(),
            busy: None,
            is_outdated: false,
            settled: HashSet::new(),
        }
    }

    /// Takes in a part that the worker got on the session before.
    pub(super) fn hold(&mut self, seq: i64, chunks: Vec<(String, i32)>) {
        let part = Part {
            chunks,
            sent: None,
            answered: false,
        };
        self.parts.insert(seq, part);
        let held = self.held();
        let ready = std::mem::take(&mut self.ready);
        let free = |it: &ChunkText| !held.contains(&(it.item_id.clone(), it.chunk_index));
        self.ready = ready.into_iter().filter(free).collect();
        self.ready_bytes = self.lengths().sum();
    }

    /// How many chunks of it are still to be handed out, as far as is known.
    pub(super) fn left(&self) -> i64 {
        let at_hand = self.listed.len() + self.reading + self.ready.len();
        at_hand as i64 + self.unlisted.unwrap_or(0)
    }

    /// Bytes of the texts at hand.
    pub(super) fn bytes(&self) -> usize {
        self.ready_bytes
    }

    /// How many are at hand.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Bytes of the texts at hand, the first first.
    pub(super) fn lengths(&self) -> impl Iterator<Item = usize> {
        self.ready.iter().map(|chunk| chunk.text.len())
    }

    /// Most chunks in its next part. While a text is suspected there is no doubt
    /// over which part a worker dies: it is sent alone, and nothing else of the job.
    pub(super) fn most(&self, batch_size: usize) -> usize {
        if self.suspects == 0 {
            return batch_size;
        }
        if self.parts.is_empty() {
            batch_size.min(suspected_batch(self.suspects) as usize)
        } else {
            0
        }
    }

    /// How many chunks the worker has not answered.
    pub(super) fn with_worker(&self) -> usize {
        let open = self.parts.values().filter(|part| !part.answered);
        open.map(|part| part.chunks.len()).sum()
    }

    /// Whether nothing of it is with the worker or being written.
    pub(super) fn is_settled(&self) -> bool {
        self.parts.is_empty()
    }

    /// The numbers of its parts.
    pub(super) fn seqs(&self) -> impl Iterator<Item = i64> {
        self.parts.keys().copied()
    }

    /// Hands out the first chunks at hand as the part of this number.
    pub(super) fn take(&mut self, seq: i64, chunks: usize, now: Instant) -> Vec<ChunkText> {
        let taken: Vec<ChunkText> = self.ready.drain(..chunks).collect();
        self.ready_bytes -= taken.iter().map(|it| it.text.len()).sum::<usize>();
        let names = taken.iter().map(|it| (it.item_id.clone(), it.chunk_index));
        let part = Part {
            chunks: names.collect(),
            sent: Some(now),
            answered: false,
        };
        self.parts.insert(seq, part);
        taken
    }

    /// Takes in that a part was answered. Returns of how many chunks it is, and when it
    /// was sent; `None` where it was answered before.
    pub(super) fn answered(&mut self, seq: i64) -> Option<(usize, Option<Instant>)> {
        let part = self.parts.get_mut(&seq).filter(|part| !part.answered)?;
        part.answered = true;
        Some((part.chunks.len(), part.sent))
    }

    /// Takes in that a part is settled. Where it is not `whole`, some of it is
    /// pending again.
    pub(super) fn settled(&mut self, seq: i64, whole: bool) {
        let part = self.parts.remove(&seq);
        if self.busy == Some(Busy::Reading) {
            self.settled
                .extend(part.into_iter().flat_map(|part| part.chunks));
        }
        if !whole {
            self.look_again();
        }
    }

    /// Has what is pending listed once more: there may be more than was seen.
    pub(super) fn look_again(&mut self) {
        self.is_outdated = self.busy == Some(Busy::Reading);
        self.unlisted = self.unlisted.max(Some(1));
    }

    /// What is to be done next, where nothing is under way.
    pub(super) fn next(&self) -> Next {
        if self.busy.is_some() || !self.ready.is_empty() {
            return Next::Wait;
        }
        if !self.listed.is_empty() {
            return Next::Read;
        }
        if self.unlisted.is_some() {
            return Next::List;
        }
        if self.parts.is_empty() {
            return Next::Complete;
        }
        Next::Wait
    }

    /// Takes in a listing of what is pending.
    pub(super) fn listed(&mut self, pending: Vec<PendingChunk>) {
        let mut held = self.held();
        held.extend(self.settled.drain());
        // What was settled only in part while it was listed is pending again.
        let again = self.unlisted.filter(|_| self.is_outdated).map(|_| 1);
        self.is_outdated = false;
        self.unlisted = (pending.len() as i64 >= LISTED).then_some(LISTED).or(again);
        let free = |it: &PendingChunk| !held.contains(&(it.item_id.clone(), it.chunk_index));
        self.listed = pending.into_iter().filter(free).collect();
    }

    /// The first of what is listed, as many as are wanted and fit.
    pub(super) fn take_to_read(
        &mut self,
        len: impl FnOnce(&mut dyn Iterator<Item = usize>) -> usize,
    ) -> Vec<PendingChunk> {
        let len = len(&mut self.listed.iter().map(|chunk| chunk.text_bytes));
        self.reading = len;
        self.listed.drain(..len).collect()
    }

    /// Takes in texts.
    pub(super) fn read(&mut self, texts: Vec<ChunkText>) {
        self.reading = 0;
        self.settled.clear();
        self.ready_bytes += texts.iter().map(|it| it.text.len()).sum::<usize>();
        self.ready.extend(texts);
    }

    /// Item and place of each chunk that is not settled.
    fn held(&self) -> HashSet<(String, i32)> {
        let chunks = self.parts.values().flat_map(|part| part.chunks.iter());
        chunks.cloned().collect()
    }
}
