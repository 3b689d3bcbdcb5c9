//! Workers, coordinators and the network around the database.

use std::collections::BTreeSet;

use crate::{
    database::{Answer, CHUNKS, Database, Version},
    job::{Coordinator, Lease, Term},
};

const WORKERS: usize = 2;

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
    /// Handed out and not acknowledged: what it names when it reopens.
    pub(crate) unacked: [Option<Version>; CHUNKS],
    /// For the laws: handed out under this lease.
    pub(crate) given: [Option<Version>; CHUNKS],
}

/// A request that is under way to any coordinator. It stays there for good, so
/// it may arrive late, often, in any order, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Request {
    Renew(Lease),
    Upsert(Lease, (usize, Version)),
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

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct System {
    pub(crate) database: Database,
    pub(crate) workers: [Worker; WORKERS],
    /// What coordinators remember: the streams that they have not seen break.
    pub(crate) streams: BTreeSet<(Coordinator, Lease)>,
    pub(crate) network: BTreeSet<Request>,
    pub(crate) mishaps: u8,
    /// An upsert between its check and its write: only ever with a flaw.
    pub(crate) torn: Option<(Lease, (usize, Version))>,
    /// For the laws: something was handed out that was persisted, or was handed
    /// out under the same lease before.
    pub(crate) repeated: bool,
}

impl System {
    /// A source that was just put, and nobody at work.
    pub(crate) fn new(chunks: usize, mishaps: u8) -> Self {
        Self {
            database: Database::new(chunks),
            workers: [const { Worker::Idle }; WORKERS],
            streams: BTreeSet::new(),
            network: BTreeSet::new(),
            mishaps,
            torn: None,
            repeated: false,
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

    /// Whether some worker has, or will have, the lease that is running.
    fn is_manned(&self) -> bool {
        let at = self.database.jobs.len() - 1;
        let claim = self.database.newest().claims;
        self.workers.iter().any(|worker| {
            matches!(worker, Worker::Claiming(lease) | Worker::Holding(Held { lease, .. })
                if lease.job == at && lease.claim == claim)
        })
    }

    pub(crate) fn expires_by_itself(&self) -> bool {
        self.database.newest().running.term == Term::Grace || !self.is_manned()
    }

    /// The worker with this lease hears what became of its request. Where the
    /// lease has ended, so does its stream, at both ends.
    pub(crate) fn answer(&mut self, lease: Lease, acked: Option<usize>, answer: Answer) {
        for worker in &mut self.workers {
            if let Worker::Holding(held) = worker
                && held.lease == lease
            {
                match (answer, acked) {
                    (Answer::Held, Some(chunk)) => held.unacked[chunk] = None,
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
            )
        };
        if order(&other) < order(&self) {
            other
        } else {
            self
        }
    }
}
