//! The statements that read chunks and lock a job's row: they read the chunks as
//! they were when they began, and the row as it is once they have its lock.

use crate::{
    database::{Answer, Database, Version, Write},
    flaws::{Flaw, Flaws},
    job::{Coordinator, JobState, Lease},
};

/// What became of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verdict {
    Embedded,
    Rejected,
}

/// A worker's result of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Outcome {
    pub(crate) chunk: usize,
    pub(crate) version: Version,
    pub(crate) verdict: Verdict,
}

/// What a statement saw when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Seen {
    Upsert {
        /// Whether the outcome's text is the present one.
        matches: bool,
        /// Whether the chunk has the other verdict already.
        settled: bool,
        version: RowVersion,
    },
    Complete {
        /// Whether anything of the job was pending.
        pending: bool,
        version: RowVersion,
    },
}

/// What a statement compares of the job's row as it saw and as it locked it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RowVersion {
    epoch: u8,
    changes: u8,
    done: u8,
    rejected: u8,
}

impl Database {
    fn version(&self, flaws: Flaws, lease: Lease) -> RowVersion {
        let job = &self.jobs[lease.job];
        let has = !flaws.has(Flaw::NoVersion);
        let whole = !flaws.has(Flaw::EpochAsVersion) && has;
        let results = !flaws.has(Flaw::ResultsUnversioned) && whole;
        RowVersion {
            epoch: if has { job.epoch } else { 0 },
            changes: if whole { job.changes } else { 0 },
            done: if results { job.done } else { 0 },
            rejected: if results { job.rejected } else { 0 },
        }
    }

    /// What `store::batches::write_outcomes` sees when it begins.
    pub(crate) fn see_upsert(&self, flaws: Flaws, lease: Lease, outcome: Outcome) -> Seen {
        let Outcome {
            chunk,
            version,
            verdict,
        } = outcome;
        let other = match verdict {
            Verdict::Embedded => self.rejections[chunk],
            Verdict::Rejected => self.vectors[chunk],
        };
        let covered = self.jobs[lease.job].covers(chunk);
        Seen::Upsert {
            matches: covered && self.texts[chunk] == Some(version),
            settled: other == Some(version),
            version: self.version(flaws, lease),
        }
    }

    /// What `store::lease::complete` sees when it begins.
    pub(crate) fn see_complete(&self, flaws: Flaws, lease: Lease) -> Seen {
        Seen::Complete {
            pending: self.leaves(lease.job),
            version: self.version(flaws, lease),
        }
    }

    /// `store::batches::upsert` of one chunk, completing, once it has the lock. It
    /// began when `seen` was so; where a write came between, it is repeated.
    pub(crate) fn upsert(
        &mut self,
        flaws: Flaws,
        lease: Lease,
        outcome: Outcome,
        via: Option<Coordinator>,
        seen: Seen,
    ) -> Answer {
        if !flaws.has(Flaw::UpsertWithoutLocks) {
            let answer = self.fence(flaws, lease, Write::Upsert);
            if answer != Answer::Held {
                return answer;
            }
        }
        let now = self.version(flaws, lease);
        let seen = match seen {
            Seen::Upsert { version, .. } if version == now => seen,
            _ if flaws.has(Flaw::UpsertWithoutLocks) => seen,
            _ => self.see_upsert(flaws, lease, outcome),
        };
        let Seen::Upsert {
            matches, settled, ..
        } = seen
        else {
            unreachable!("an upsert saw {seen:?}");
        };
        let job = &mut self.jobs[lease.job];
        if !matches && !flaws.has(Flaw::UpsertWithoutHash) {
            if job.changes == 0 {
                self.refused = true;
                return Answer::Lost;
            }
            job.extend(via);
            job.done += u8::from(flaws.has(Flaw::LeftOutIsDone));
            return Answer::Held;
        }
        job.extend(via);
        let fresh = !settled && self.write(outcome);
        self.count(flaws, lease, outcome.verdict, fresh)
    }

    /// Writes the outcome, unless it is there.
    fn write(
        &mut self,
        Outcome {
            chunk,
            version,
            verdict,
        }: Outcome,
    ) -> bool {
        let (into, from) = match verdict {
            Verdict::Embedded => (&mut self.vectors, &mut self.rejections),
            Verdict::Rejected => (&mut self.rejections, &mut self.vectors),
        };
        let fresh = into[chunk] != Some(version);
        into[chunk] = Some(version);
        if from[chunk] != Some(version) {
            from[chunk] = None;
        }
        fresh
    }

    fn count(&mut self, flaws: Flaws, lease: Lease, verdict: Verdict, fresh: bool) -> Answer {
        let job = &mut self.jobs[lease.job];
        if fresh || flaws.has(Flaw::CountsTwice) {
            match verdict {
                Verdict::Embedded => job.done += 1,
                Verdict::Rejected => job.rejected += 1,
            }
        }
        if fresh {
            job.running.progressed = true;
            job.attempt = 0;
            job.idle = 0;
        }
        if job.is_done() {
            job.end(JobState::Succeeded);
            return Answer::Finished;
        }
        Answer::Held
    }

    /// `store::lease::complete`, once it has the lock.
    pub(crate) fn complete(&mut self, flaws: Flaws, lease: Lease, seen: Seen) -> Answer {
        let answer = self.fence(flaws, lease, Write::Complete);
        if answer != Answer::Held {
            return answer;
        }
        let now = self.version(flaws, lease);
        let Seen::Complete { pending, version } = seen else {
            unreachable!("a completion saw {seen:?}");
        };
        let nothing = !pending && (version == now || flaws.has(Flaw::CompleteWithoutVersion));
        let job = &mut self.jobs[lease.job];
        if nothing || job.is_done() || flaws.has(Flaw::CompleteUnasked) {
            job.end(JobState::Succeeded);
            return Answer::Finished;
        }
        Answer::Held
    }
}
