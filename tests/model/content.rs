//! Writes of content, and what they and others mean for the jobs of the source.
//! Each holds the lock of the source, and of all the jobs' rows that it reads.

use crate::{
    database::{CHUNKS, Database, Version},
    flaws::{Flaw, Flaws},
    job::{Job, JobState},
};

impl Database {
    /// Another text than a chunk has: one that it had before, maybe.
    pub(crate) fn another_text(&self, chunk: usize) -> Version {
        let first = self.model + 1;
        match self.texts[chunk] {
            Some(version) if version == first => first + 1,
            _ => first,
        }
    }

    /// `store::content`: the texts of some chunks change, or go (`None`), with
    /// what was made of the old ones. It ends no job that has anything left: what
    /// is pending belongs to the open job that covers it, or to a new one.
    pub(crate) fn change(&mut self, flaws: Flaws, changes: &[(usize, Option<Version>)]) {
        let mut touched: Vec<usize> = Vec::new();
        let mut uncovered: Vec<usize> = Vec::new();
        for &(chunk, text) in changes {
            let owner = self.owner(chunk);
            let was_pending = self.is_pending(chunk);
            self.set_text(chunk, text);
            if !(text.is_none() && flaws.has(Flaw::DeletionLeavesVectors)) {
                self.vectors[chunk] = None;
            }
            self.rejections[chunk] = None;
            let open = owner.filter(|at| self.jobs[*at].is_open());
            if let Some(at) = open {
                self.shift(flaws, at, was_pending, text.is_some());
                touched.push(at);
                continue;
            }
            if let Some(at) = owner.filter(|_| was_pending) {
                self.jobs[at].total -= 1;
                if self.jobs[at].is_done() {
                    self.jobs[at].end(JobState::Settled);
                }
            }
            if text.is_some() {
                uncovered.push(chunk);
            }
        }
        for at in touched {
            if self.jobs[at].is_open() && self.jobs[at].is_done() {
                self.jobs[at].end(JobState::Succeeded);
            }
        }
        if flaws.has(Flaw::WriteEndsJobs) {
            self.supersede(flaws);
            uncovered = (0..CHUNKS)
                .filter(|chunk| self.is_pending(*chunk))
                .collect();
        }
        self.queue(flaws, &uncovered);
    }

    fn set_text(&mut self, chunk: usize, text: Option<Version>) {
        let bit = |text: Option<Version>| text.map_or(0, |version| 1 << version);
        self.had[chunk] |= bit(self.texts[chunk]);
        self.returned[chunk] = self.had[chunk] & bit(text) > 0;
        self.texts[chunk] = text;
    }

    /// Tells an open job, which covers it, what became of a chunk.
    fn shift(&mut self, flaws: Flaws, at: usize, was_pending: bool, is_pending: bool) {
        let job = &mut self.jobs[at];
        if is_pending && !was_pending && !flaws.has(Flaw::TotalNotRaised) {
            job.total += 1;
        }
        if !is_pending && (was_pending || flaws.has(Flaw::DoneIsTakenOff)) {
            job.total = job.total.saturating_sub(1);
        }
        // What a queued one counts means nothing: its claim begins anew.
        if job.state == JobState::Running && (is_pending || !flaws.has(Flaw::DeletionUnversioned)) {
            job.changes += 1;
        }
    }

    /// Queues jobs of pending chunks that no open job covers, in order.
    fn queue(&mut self, flaws: Flaws, chunks: &[usize]) {
        if flaws.has(Flaw::NewJobOverlaps) && !chunks.is_empty() {
            self.jobs
                .push(Job::new((0, CHUNKS - 1), chunks.len() as u8));
            return;
        }
        let mut planned: Vec<Job> = Vec::new();
        for &chunk in chunks {
            let adjoins = |job: &&mut Job| {
                let between = job.range.1 + 1..chunk;
                let is_free = |other: &Job| {
                    !other.is_unsettled() || !between.clone().any(|at| other.covers(at))
                };
                self.jobs.iter().all(is_free)
            };
            match planned.last_mut().filter(adjoins) {
                Some(job) => {
                    job.range.1 = chunk;
                    job.total += 1;
                }
                None => planned.push(Job::new((chunk, chunk), 1)),
            }
        }
        self.jobs.extend(planned);
    }

    /// A client cancels an open job, which keeps what it left pending.
    pub(crate) fn cancel(&mut self, flaws: Flaws, at: usize) {
        self.jobs[at].end(JobState::Ended);
        self.revoke(flaws, at);
    }

    /// `store::planning::take_over`: what an ended job left pending is queued
    /// anew, but for what newer ones have of it.
    pub(crate) fn take_over(&mut self, flaws: Flaws, at: usize) {
        let own: Vec<usize> = (0..CHUNKS)
            .filter(|chunk| self.is_pending(*chunk) && self.owner(*chunk) == Some(at))
            .collect();
        self.jobs[at].end(JobState::Settled);
        self.queue(flaws, &own);
    }

    /// The source gets another model: nothing that was made holds any more, and
    /// all of its jobs end.
    pub(crate) fn change_model(&mut self, flaws: Flaws) {
        self.model += 2;
        for chunk in 0..CHUNKS {
            self.set_text(chunk, self.texts[chunk].map(|version| version + 2));
            (self.vectors[chunk], self.rejections[chunk]) = (None, None);
        }
        self.supersede(flaws);
        let all: Vec<usize> = (0..CHUNKS)
            .filter(|chunk| self.is_pending(*chunk))
            .collect();
        self.queue(flaws, &all);
    }

    /// Ends all jobs, and leaves what they had to the caller.
    fn supersede(&mut self, flaws: Flaws) {
        for at in 0..self.jobs.len() {
            let job = &mut self.jobs[at];
            let open = job.is_open();
            if job.is_unsettled() {
                job.end(JobState::Settled);
            }
            if open {
                self.revoke(flaws, at);
            }
        }
    }
}
