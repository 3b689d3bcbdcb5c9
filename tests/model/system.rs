//! Workers, coordinators and the network around the database.

use std::collections::BTreeSet;

use crate::{
    database::{Answer, CHUNKS, Database, Version},
    job::{Coordinator, JobState, Lease, Term},
    results::{Outcome, Seen},
};

/// A worker's memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Worker {
    Idle,
    /// The answer to its claim is under way.
    Claiming(Lease),
    Holding(Held),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Held {
    pub(crate) lease: Lease,
    /// The coordinator at the other end of its stream.
    pub(crate) stream: Option<Coordinator>,
    /// What that one has listed as pending, and not handed out yet.
    pub(crate) listed: [bool; CHUNKS],
    /// Handed out and not acknowledged: what it names when it reopens.
    pub(crate) unacked: [Option<Version>; CHUNKS],
    /// For the laws: handed out under this lease, and not changed since.
    pub(crate) given: [bool; CHUNKS],
}

/// A request that is under way to any coordinator. It stays there for good, so
/// it may arrive late, often, in any order, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Request {
    Renew(Lease),
    Upsert(Lease, Outcome),
    Complete(Lease),
    HandBack { lease: Lease, charged: bool },
}

impl Request {
    pub(crate) fn lease(self) -> Lease {
        match self {
            Self::Renew(lease)
            | Self::Upsert(lease, _)
            | Self::Complete(lease)
            | Self::HandBack { lease, .. } => lease,
        }
    }
}

/// A statement that has begun, and has not yet the lock of its job's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Waiting {
    pub(crate) request: Request,
    pub(crate) via: Option<Coordinator>,
    pub(crate) seen: Seen,
}

/// How much may still happen in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// Things that go wrong.
    pub(crate) mishaps: u8,
    /// Writes of content.
    pub(crate) writes: u8,
    /// Statements that wait for others, or are overtaken by them.
    pub(crate) waits: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct System {
    pub(crate) database: Database,
    pub(crate) workers: Vec<Worker>,
    /// What coordinators remember: the streams that they have not seen break.
    pub(crate) streams: BTreeSet<(Coordinator, Lease)>,
    pub(crate) network: BTreeSet<Request>,
    pub(crate) waiting: Option<Waiting>,
    pub(crate) left: Budget,
    /// For the laws: something was handed out that was persisted, or was handed
    /// out under the same lease before.
    pub(crate) repeated: bool,
    /// For the laws: a write threw away a result under way of a text that it left as it was.
    pub(crate) wasted: bool,
}

impl System {
    /// A source that was just put, and nobody at work.
    pub(crate) fn new(ranges: &[(usize, usize)], workers: usize, left: Budget) -> Self {
        Self {
            database: Database::new(ranges),
            workers: vec![Worker::Idle; workers],
            streams: BTreeSet::new(),
            network: BTreeSet::new(),
            waiting: None,
            left,
            repeated: false,
            wasted: false,
        }
    }

    pub(crate) fn held(&self) -> impl Iterator<Item = &Held> {
        self.workers.iter().filter_map(|worker| match worker {
            Worker::Holding(held) => Some(held),
            _ => None,
        })
    }

    /// Whether a stream is open at both ends.
    pub(crate) fn is_live(&self, at: Coordinator, lease: Lease) -> bool {
        self.streams.contains(&(at, lease))
            && self
                .held()
                .any(|held| held.lease == lease && held.stream == Some(at))
    }

    /// Whether some worker has, or will have, the lease of a job that is running.
    fn is_manned(&self, at: usize) -> bool {
        let claim = self.database.jobs[at].claims;
        self.workers.iter().any(|worker| {
            matches!(worker, Worker::Claiming(lease) | Worker::Holding(Held { lease, .. })
                if lease.job == at && lease.claim == claim)
        })
    }

    pub(crate) fn expires_by_itself(&self, at: usize) -> bool {
        self.database.jobs[at].running.term == Term::Grace || !self.is_manned(at)
    }

    /// Whether nothing is left to do: everything is embedded, and every job ended.
    pub(crate) fn is_done(&self) -> bool {
        let mut jobs = self.database.jobs.iter();
        self.database.pending() == 0
            && jobs.all(|job| job.state == JobState::Succeeded || job.state == JobState::Settled)
    }

    /// The worker with this lease hears what became of its request. Where the
    /// lease has ended, so does its stream, at both ends.
    pub(crate) fn answer(&mut self, lease: Lease, acked: Option<Outcome>, answer: Answer) {
        for worker in &mut self.workers {
            if let Worker::Holding(held) = worker
                && held.lease == lease
            {
                match (answer, acked) {
                    (Answer::Held, Some(Outcome { chunk, version, .. })) => {
                        let unacked = &mut held.unacked[chunk];
                        *unacked = unacked.filter(|of| *of != version);
                    }
                    (Answer::Held, None) => {}
                    (Answer::Finished | Answer::Lost, _) => {
                        if let Some(at) = held.stream {
                            self.streams.remove(&(at, lease));
                        }
                        *worker = Worker::Idle;
                    }
                }
            }
        }
    }

    /// The results that are under way under leases that are held, of texts that
    /// are still the present ones.
    fn under_way(&self) -> BTreeSet<(Lease, usize)> {
        let held = self.held().filter(|held| self.database.accepts(held.lease));
        let chunks = |held: &Held| {
            let lease = held.lease;
            let unacked = held.unacked;
            (0..CHUNKS)
                .filter(move |chunk| unacked[*chunk].is_some())
                .map(move |chunk| (lease, chunk, unacked[chunk]))
        };
        held.flat_map(chunks)
            .filter(|(_, chunk, version)| {
                self.database.is_pending(*chunk) && self.database.texts[*chunk] == *version
            })
            .map(|(lease, chunk, _)| (lease, chunk))
            .collect()
    }

    /// Content is written: no result is thrown away but of what it changes.
    pub(crate) fn write(&mut self, chunks: &[usize], write: impl FnOnce(&mut Database)) {
        let before = self.under_way();
        write(&mut self.database);
        for worker in &mut self.workers {
            if let Worker::Holding(held) = worker {
                for chunk in chunks {
                    held.given[*chunk] = false;
                }
            }
        }
        let after = self.under_way();
        let mut lost = before.difference(&after);
        self.wasted |= lost.any(|(_, chunk)| !chunks.contains(chunk));
    }

    /// The same system with the names of the coordinators swapped.
    fn renamed(&self) -> Self {
        let mut other = self.clone();
        other.database.rename_coordinators();
        other.streams = self
            .streams
            .iter()
            .map(|(at, lease)| (1 - at, *lease))
            .collect();
        for worker in &mut other.workers {
            if let Worker::Holding(Held {
                stream: Some(at), ..
            }) = worker
            {
                *at = 1 - *at;
            }
        }
        if let Some(Waiting { via: Some(at), .. }) = &mut other.waiting {
            *at = 1 - *at;
        }
        other
    }

    /// Workers are alike, and so are coordinators: systems that differ in their
    /// names alone are one.
    pub(crate) fn canonical(mut self) -> Self {
        self.workers.sort();
        if self.streams.is_empty() {
            return self;
        }
        let mut other = self.renamed();
        other.workers.sort();
        let order = |system: &Self| {
            (
                system.streams.clone(),
                system.workers.clone(),
                system.database.marks(),
                system.waiting.and_then(|it| it.via),
            )
        };
        if order(&other) < order(&self) {
            other
        } else {
            self
        }
    }
}
