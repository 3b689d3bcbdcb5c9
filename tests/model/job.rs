//! The row of a job, and the lease on it.

/// Tries after which a job fails.
pub(crate) const MAX_ATTEMPTS: u8 = 2;

pub(crate) type Coordinator = u8;

/// A lease as its worker and every message of it name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lease {
    pub(crate) job: usize,
    pub(crate) epoch: u8,
    /// Which claim it came from. Only the laws look at it; the protocol has the epoch.
    pub(crate) claim: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum JobState {
    Queued,
    Running,
    Succeeded,
    /// Out of tries, or cancelled by a client: what it left pending is still its own.
    Ended,
    /// The same, and others have what it left pending.
    Settled,
}

/// What is left of a lease: there is no clock here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) enum Term {
    #[default]
    Full,
    /// Its stream broke: the orphan grace.
    Grace,
    Over,
}

/// The columns of a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Running {
    pub(crate) term: Term,
    pub(crate) heard: bool,
    pub(crate) progressed: bool,
    /// The stream, by its coordinator, that wrote `lease_expires_at` last, if one did.
    pub(crate) mark: Option<Coordinator>,
    /// The stream that was opened last, by its coordinator.
    pub(crate) stream: Option<Coordinator>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Job {
    pub(crate) state: JobState,
    /// The first and the last of its chunks.
    pub(crate) range: (usize, usize),
    pub(crate) epoch: u8,
    /// Writes since the claim that changed chunks of its range.
    pub(crate) changes: u8,
    pub(crate) attempt: u8,
    pub(crate) done: u8,
    pub(crate) rejected: u8,
    pub(crate) total: u8,
    pub(crate) running: Running,
    /// For the laws: claims so far, the highest epoch so far, and leases in a row that were
    /// heard of, persisted nothing, and were not handed back uncharged.
    pub(crate) claims: u8,
    pub(crate) highest: u8,
    pub(crate) idle: u8,
}

impl Job {
    pub(crate) fn new(range: (usize, usize), total: u8) -> Self {
        Self {
            state: JobState::Queued,
            range,
            epoch: 0,
            changes: 0,
            attempt: 0,
            done: 0,
            rejected: 0,
            total,
            running: Running::default(),
            claims: 0,
            highest: 0,
            idle: 0,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, JobState::Queued | JobState::Running)
    }

    pub(crate) fn is_unsettled(&self) -> bool {
        self.is_open() || self.state == JobState::Ended
    }

    pub(crate) fn covers(&self, chunk: usize) -> bool {
        (self.range.0..=self.range.1).contains(&chunk)
    }

    /// Whether its counts say that nothing of it is pending.
    pub(crate) fn is_done(&self) -> bool {
        self.done + self.rejected == self.total
    }

    pub(crate) fn move_epoch(&mut self) {
        self.epoch += 1;
        self.highest = self.highest.max(self.epoch);
    }

    pub(crate) fn extend(&mut self, via: Option<Coordinator>) {
        self.running.mark = via;
        self.running.heard = true;
        self.running.term = Term::Full;
    }

    pub(crate) fn end(&mut self, state: JobState) {
        self.state = state;
        self.running = Running::default();
        if !self.is_unsettled() {
            // All that matters from here on is its epoch: states that differ in the rest are one.
            let (epoch, highest) = (self.epoch, self.highest);
            *self = Self {
                state,
                epoch,
                highest,
                ..Self::new(self.range, 0)
            };
        } else if state == JobState::Ended {
            self.changes = 0;
        }
    }

    pub(crate) fn requeue(&mut self, charged: bool) {
        self.attempt += u8::from(charged);
        let failed = charged && self.attempt >= MAX_ATTEMPTS;
        self.end(if failed {
            JobState::Ended
        } else {
            JobState::Queued
        });
    }
}
