//! Postgres: the rows that the lease protocol lives on, and its transactions.
//! Each method is one statement of `coordinator/src/store`, and atomic as that.

use crate::{
    flaws::{Flaw, Flaws},
    job::{Coordinator, Job, JobState, Lease, Running, Term},
};

/// Chunks of the one source, each an item of its own.
pub(crate) const CHUNKS: usize = 2;
/// Which text a chunk has, or a vector was computed from: what `text_hash` tells apart.
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
enum Write {
    Renew,
    Upsert,
    Complete,
    HandBack,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Database {
    pub(crate) texts: [Option<Version>; CHUNKS],
    pub(crate) vectors: [Option<Version>; CHUNKS],
    /// The jobs of the source, oldest first. Only the last can be open.
    pub(crate) jobs: Vec<Job>,
    /// For the laws: a write was accepted that did not come under the lease of the day.
    pub(crate) stale_write: bool,
}

impl Database {
    /// A source that was just put.
    pub(crate) fn new(chunks: usize) -> Self {
        let mut database = Self {
            texts: std::array::from_fn(|chunk| (chunk < chunks).then_some(1)),
            vectors: [None; CHUNKS],
            jobs: Vec::new(),
            stale_write: false,
        };
        database.plan();
        database
    }

    /// The stream that wrote the end of the present lease, and the one opened
    /// last.
    pub(crate) fn marks(&self) -> [Option<Coordinator>; 2] {
        let running = self.newest().running;
        [running.mark, running.stream]
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
        self.texts[chunk].is_some() && self.texts[chunk] != self.vectors[chunk]
    }

    pub(crate) fn pending(&self) -> usize {
        (0..CHUNKS).filter(|chunk| self.is_pending(*chunk)).count()
    }

    pub(crate) fn newest(&self) -> &Job {
        &self.jobs[self.jobs.len() - 1]
    }

    fn plan(&mut self) {
        if self.pending() > 0 {
            self.jobs.push(Job::new(self.pending() as u8));
        }
    }

    /// `store::claim::claim`
    pub(crate) fn claim(&mut self, flaws: Flaws) -> Option<Lease> {
        let at = self.jobs.len() - 1;
        let job = &mut self.jobs[at];
        if job.state != JobState::Queued {
            return None;
        }
        job.state = JobState::Running;
        job.running = Running::default();
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
    fn fence(&mut self, flaws: Flaws, lease: Lease, write: Write) -> Answer {
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

    /// `store::batches::upsert` of one chunk, completing.
    pub(crate) fn upsert(
        &mut self,
        flaws: Flaws,
        lease: Lease,
        (chunk, version): (usize, Version),
        via: Option<Coordinator>,
    ) -> Answer {
        let answer = self.fence(flaws, lease, Write::Upsert);
        if answer != Answer::Held {
            return answer;
        }
        if self.texts[chunk] != Some(version) && !flaws.has(Flaw::UpsertWithoutHash) {
            // The whole result is refused, and the worker told so.
            return Answer::Lost;
        }
        self.write(lease, (chunk, version), via)
    }

    /// What follows once lease and hash were found to be right.
    pub(crate) fn write(
        &mut self,
        lease: Lease,
        (chunk, version): (usize, Version),
        via: Option<Coordinator>,
    ) -> Answer {
        let fresh = self.vectors[chunk] != Some(version);
        self.vectors[chunk] = Some(version);
        let job = &mut self.jobs[lease.job];
        job.extend(via);
        if fresh {
            job.done = (job.done + 1).min(job.total);
            job.running.progressed = true;
            job.attempt = 0;
            job.idle = 0;
        }
        if job.done == job.total {
            job.end(JobState::Succeeded);
            return Answer::Finished;
        }
        Answer::Held
    }

    /// `store::lease::complete`
    pub(crate) fn complete(&mut self, flaws: Flaws, lease: Lease) -> Answer {
        if self.pending() > 0 && !flaws.has(Flaw::CompleteUnasked) {
            return Answer::Held;
        }
        let answer = self.fence(flaws, lease, Write::Complete);
        if answer == Answer::Held {
            self.jobs[lease.job].end(JobState::Succeeded);
            return Answer::Finished;
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
    pub(crate) fn rescue(&mut self, flaws: Flaws, stalled: bool) {
        let at = self.jobs.len() - 1;
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
        if !flaws.has(Flaw::AttemptAsFence) && !flaws.has(Flaw::RevocationKeepsEpoch) {
            job.move_epoch();
        }
    }

    /// `store::content`: the chunk's text changes, or goes (`None`), with the
    /// vector of the old one. The open job is superseded; what is pending is
    /// planned anew, in the same transaction.
    pub(crate) fn change(&mut self, flaws: Flaws, chunk: usize, text: Option<Version>) {
        self.texts[chunk] = text;
        if !(text.is_none() && flaws.has(Flaw::DeletionLeavesVectors)) {
            self.vectors[chunk] = None;
        }
        let at = self.jobs.len() - 1;
        let job = &mut self.jobs[at];
        if job.is_open() {
            if flaws.has(Flaw::ChangeKeepsLease) {
                return;
            }
            job.end(JobState::Cancelled);
            // All that matters from here on is that its epoch has moved on.
            (job.attempt, job.idle, job.claims, job.done, job.total) = (0, 0, 0, 0, 0);
            if !flaws.has(Flaw::AttemptAsFence) && !flaws.has(Flaw::RevocationKeepsEpoch) {
                job.move_epoch();
            }
        }
        self.plan();
    }
}
