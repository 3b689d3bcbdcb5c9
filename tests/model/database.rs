//! Postgres: the rows that the lease protocol lives on, and the transactions that
//! claim, renew and take back. Each method is one statement of
//! `coordinator/src/store`, and atomic as that.

use crate::{
    flaws::{Flaw, Flaws},
    job::{Coordinator, Job, JobState, Lease, Running, Term},
};

/// Places for chunks of the one source, each an item of its own.
pub(crate) const CHUNKS: usize = 3;
/// Which text a chunk has, or a result was computed from: what `text_hash` tells apart.
pub(crate) type Version = u8;

/// What a fenced statement answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Held,
    Finished,
    Lost,
}

/// What a worker may ask for under a lease.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Renew,
    Upsert,
    Complete,
    HandBack,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Database {
    /// What the versions of its texts under the present model are above.
    pub(crate) model: Version,
    pub(crate) texts: [Option<Version>; CHUNKS],
    pub(crate) vectors: [Option<Version>; CHUNKS],
    pub(crate) rejections: [Option<Version>; CHUNKS],
    /// The jobs of the source, oldest first.
    pub(crate) jobs: Vec<Job>,
    /// For the laws: chunks whose text is one that they had before.
    pub(crate) returned: [bool; CHUNKS],
    /// For the laws: texts that chunks had, as bits.
    pub(crate) had: [u8; CHUNKS],
    /// For the laws: a write was accepted that did not come under the lease of the day.
    pub(crate) stale_write: bool,
    /// For the laws: a result was refused as its worker's fault.
    pub(crate) refused: bool,
}

impl Database {
    /// A source that was just put, planned in these ranges.
    pub(crate) fn new(ranges: &[(usize, usize)]) -> Self {
        let covered = |chunk| {
            ranges
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&chunk))
        };
        let job = |range: &(usize, usize)| Job::new(*range, (range.1 - range.0) as u8 + 1);
        Self {
            model: 0,
            texts: std::array::from_fn(|chunk| covered(chunk).then_some(1)),
            vectors: [None; CHUNKS],
            rejections: [None; CHUNKS],
            jobs: ranges.iter().map(job).collect(),
            returned: [false; CHUNKS],
            had: [0; CHUNKS],
            stale_write: false,
            refused: false,
        }
    }

    /// Of each job, the stream that wrote the end of its lease, and the one
    /// opened last.
    pub(crate) fn marks(&self) -> Vec<[Option<Coordinator>; 2]> {
        let running = self.jobs.iter().map(|job| job.running);
        running.map(|it| [it.mark, it.stream]).collect()
    }

    pub(crate) fn rename_coordinators(&mut self) {
        for job in &mut self.jobs {
            let Running { mark, stream, .. } = &mut job.running;
            for named in [mark, stream] {
                *named = named.map(|at| 1 - at);
            }
        }
    }

    pub(crate) fn is_pending(&self, chunk: usize) -> bool {
        let text = self.texts[chunk];
        text.is_some() && text != self.vectors[chunk] && text != self.rejections[chunk]
    }

    pub(crate) fn pending(&self) -> usize {
        (0..CHUNKS).filter(|chunk| self.is_pending(*chunk)).count()
    }

    /// Whether anything within the range of a job is pending.
    pub(crate) fn leaves(&self, job: usize) -> bool {
        let (first, last) = self.jobs[job].range;
        (first..=last).any(|chunk| self.is_pending(chunk))
    }

    /// The job that a chunk belongs to: the open one that covers it, or else the
    /// newest of the ended ones that do.
    pub(crate) fn owner(&self, chunk: usize) -> Option<usize> {
        let last = |of: fn(&Job) -> bool| {
            self.jobs
                .iter()
                .rposition(|job| of(job) && job.covers(chunk))
        };
        last(Job::is_open).or_else(|| last(Job::is_unsettled))
    }

    /// `store::claim::claim`
    pub(crate) fn claim(&mut self, flaws: Flaws, at: usize) -> Option<Lease> {
        let job = &mut self.jobs[at];
        if job.state != JobState::Queued {
            return None;
        }
        job.state = JobState::Running;
        job.running = Running::default();
        job.changes = 0;
        job.claims += 1;
        if flaws.has(Flaw::AttemptAsFence) {
            job.epoch = job.attempt;
        } else if !flaws.has(Flaw::ClaimKeepsEpoch) {
            job.move_epoch();
        }
        Some(Lease {
            job: at,
            epoch: job.epoch,
            claim: job.claims,
        })
    }

    /// The fence: `WHERE id = $1 AND epoch = $2 AND state = 'running'`.
    pub(crate) fn fence(&mut self, flaws: Flaws, lease: Lease, write: Write) -> Answer {
        let job = &self.jobs[lease.job];
        let epoch = job.epoch == lease.epoch
            || match write {
                Write::Renew => flaws.has(Flaw::RenewWithoutEpoch),
                Write::Upsert => flaws.has(Flaw::UpsertWithoutEpoch),
                Write::Complete => false,
                Write::HandBack => flaws.has(Flaw::HandBackWithoutEpoch),
            };
        let running = job.state == JobState::Running
            || (write == Write::Upsert && flaws.has(Flaw::UpsertInAnyState));
        if epoch && running {
            self.stale_write |= job.state != JobState::Running || job.claims != lease.claim;
            Answer::Held
        } else if job.state == JobState::Succeeded && job.epoch == lease.epoch {
            Answer::Finished
        } else {
            Answer::Lost
        }
    }

    /// Whether the fence lets the holder of this lease through.
    pub(crate) fn accepts(&self, lease: Lease) -> bool {
        let job = &self.jobs[lease.job];
        job.state == JobState::Running && job.epoch == lease.epoch
    }

    /// `store::lease::renew`, through a coordinator's stream or a unary call.
    pub(crate) fn renew(&mut self, flaws: Flaws, lease: Lease, via: Option<Coordinator>) -> Answer {
        let answer = self.fence(flaws, lease, Write::Renew);
        if answer == Answer::Held {
            self.jobs[lease.job].extend(via);
        }
        answer
    }

    /// `store::lease::release`, and `store::lease::fail` when it is charged.
    /// Neither moves the epoch: the next claim does.
    pub(crate) fn hand_back(&mut self, flaws: Flaws, lease: Lease, charged: bool) {
        if self.fence(flaws, lease, Write::HandBack) == Answer::Held {
            let job = &mut self.jobs[lease.job];
            job.idle += u8::from(charged);
            job.requeue(charged);
        }
    }

    /// `store::lease::open`, by a stream at `at`.
    pub(crate) fn open(&mut self, flaws: Flaws, lease: Lease, at: Coordinator) -> Answer {
        let answer = self.renew(flaws, lease, Some(at));
        if answer == Answer::Held {
            self.jobs[lease.job].running.stream = Some(at);
        }
        answer
    }

    /// `store::lease::orphan`: a stream at `at` broke, and only the grace is
    /// left, if no other was opened and nobody else renewed since.
    pub(crate) fn orphan(&mut self, flaws: Flaws, lease: Lease, at: Coordinator) {
        let held = self.accepts(lease);
        let running = &mut self.jobs[lease.job].running;
        let latest = running.stream == Some(at) || flaws.has(Flaw::OrphanByRenewalAlone);
        let last = running.mark == Some(at) && latest;
        if held && (last || flaws.has(Flaw::OrphanTakesAnyLease)) {
            running.mark = None;
            if running.term == Term::Full {
                running.term = Term::Grace;
            }
        }
    }

    /// `store::rescue::rescue`: `stalled` is one that is renewed but persists nothing.
    pub(crate) fn rescue(&mut self, flaws: Flaws, at: usize, stalled: bool) {
        let job = &mut self.jobs[at];
        let Running {
            heard, progressed, ..
        } = job.running;
        let idle = heard && (stalled || !progressed);
        job.idle += u8::from(idle);
        let charged = idle
            || (progressed && flaws.has(Flaw::ProgressIsCharged))
            || (!heard && flaws.has(Flaw::LostClaimIsCharged));
        job.requeue(charged);
        self.revoke(flaws, at);
    }

    pub(crate) fn revoke(&mut self, flaws: Flaws, at: usize) {
        if !flaws.has(Flaw::AttemptAsFence) && !flaws.has(Flaw::RevocationKeepsEpoch) {
            self.jobs[at].move_epoch();
        }
    }
}
