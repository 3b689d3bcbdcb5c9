//! How a step changes the system: requests and their statements, what streams
//! hand out, and what workers do.

use crate::{
    database::{Answer, CHUNKS},
    flaws::Flaw,
    job::Coordinator,
    results::{Outcome, Verdict},
    step::{Content, Protocol, Step},
    system::{Held, Request, System, Waiting, Worker},
};

impl Protocol {
    pub(crate) fn deliver(
        &self,
        system: &mut System,
        request: Request,
        via: Option<Coordinator>,
        answered: bool,
    ) {
        let (flaws, database) = (self.flaws, &mut system.database);
        let (lease, acked, answer) = match request {
            Request::Renew(lease) => (lease, None, database.renew(flaws, lease, via)),
            Request::HandBack { lease, charged } => {
                database.hand_back(flaws, lease, charged);
                return;
            }
            Request::Complete(lease) => {
                let seen = database.see_complete(flaws, lease);
                (lease, None, database.complete(flaws, lease, seen))
            }
            Request::Upsert(lease, outcome) => {
                let early = answered && flaws.has(Flaw::AckBeforeCommit);
                let answer = if early && database.accepts(lease) {
                    Answer::Held
                } else if flaws.has(Flaw::UpsertWithoutLocks) && !database.accepts(lease) {
                    Answer::Lost
                } else {
                    let seen = database.see_upsert(flaws, lease, outcome);
                    database.upsert(flaws, lease, outcome, via, seen)
                };
                (lease, Some(outcome), answer)
            }
        };
        if answered {
            system.answer(lease, acked, answer);
        }
    }

    /// A statement begins.
    pub(crate) fn wait(&self, system: &mut System, request: Request, via: Option<Coordinator>) {
        let database = &system.database;
        let seen = match request {
            Request::Upsert(lease, outcome) => database.see_upsert(self.flaws, lease, outcome),
            Request::Complete(lease) => database.see_complete(self.flaws, lease),
            _ => unreachable!("no statement that reads chunks: {request:?}"),
        };
        system.waiting = Some(Waiting { request, via, seen });
    }

    /// It has its lock, and ends.
    pub(crate) fn lock(&self, system: &mut System, answered: bool) {
        let Some(Waiting { request, via, seen }) = system.waiting.take() else {
            return;
        };
        let (lease, database) = (request.lease(), &mut system.database);
        let (acked, answer) = match request {
            Request::Upsert(_, outcome) => {
                let answer = database.upsert(self.flaws, lease, outcome, via, seen);
                (Some(outcome), answer)
            }
            _ => (None, database.complete(self.flaws, lease, seen)),
        };
        if answered {
            system.answer(lease, acked, answer);
        }
    }

    fn list(&self, system: &mut System, at: usize) {
        let database = &system.database;
        let Worker::Holding(held) = &mut system.workers[at] else {
            return;
        };
        let again = held.given.contains(&true);
        if held.listed.contains(&true)
            || !database.accepts(held.lease)
            || (again && self.flaws.has(Flaw::ListsOnce))
        {
            return;
        }
        let job = &database.jobs[held.lease.job];
        for chunk in (0..CHUNKS).filter(|chunk| job.covers(*chunk)) {
            let wanted = database.is_pending(chunk) || self.flaws.has(Flaw::HandOutFromTheStart);
            held.listed[chunk] = wanted && held.unacked[chunk].is_none();
        }
    }

    fn hand_out(system: &mut System, at: usize, chunk: usize, verdict: Verdict) {
        let pending = system.database.is_pending(chunk);
        let Worker::Holding(held) = &mut system.workers[at] else {
            return;
        };
        // A stream of a lost lease hands out nothing: it looks before it reads.
        if !system.database.accepts(held.lease) {
            return;
        }
        held.listed[chunk] = false;
        let Some(version) = system.database.texts[chunk] else {
            return;
        };
        // A result that is late by two writes may be of a text that has come back since it was listed.
        let stray = system.database.returned[chunk];
        system.repeated |= (!pending && !stray) || held.given[chunk];
        held.unacked[chunk] = Some(version);
        held.given[chunk] = true;
        let outcome = Outcome {
            chunk,
            version,
            verdict,
        };
        system.network.insert(Request::Upsert(held.lease, outcome));
    }

    fn open(&self, system: &mut System, worker: usize, at: Coordinator) {
        let Worker::Holding(held) = &mut system.workers[worker] else {
            return;
        };
        if system.database.open(self.flaws, held.lease, at) == Answer::Held {
            held.stream = Some(at);
            system.streams.insert((at, held.lease));
            if self.flaws.has(Flaw::ReopenForgetsHeld) {
                held.unacked = [None; CHUNKS];
            }
        } else {
            system.workers[worker] = Worker::Idle;
        }
    }

    /// The steps of one worker.
    pub(crate) fn work(&self, system: &mut System, step: Step) {
        match step {
            Step::Claim(at, job) => {
                if let Some(lease) = system.database.claim(self.flaws, job) {
                    system.workers[at] = Worker::Claiming(lease);
                }
            }
            Step::Begin(at) => {
                if let Worker::Claiming(lease) = system.workers[at] {
                    system
                        .network
                        .extend([Request::Renew(lease), Request::Complete(lease)]);
                    system.workers[at] = Worker::Holding(Held {
                        lease,
                        stream: None,
                        listed: [false; CHUNKS],
                        unacked: [None; CHUNKS],
                        given: [false; CHUNKS],
                    });
                }
            }
            Step::Open(worker, at) => self.open(system, worker, at),
            Step::List(at) => self.list(system, at),
            Step::HandOut(worker, chunk, verdict) => Self::hand_out(system, worker, chunk, verdict),
            Step::LoseClaim(at) | Step::Crash(at) => system.workers[at] = Worker::Idle,
            Step::Break(at) => {
                if let Worker::Holding(held) = &mut system.workers[at] {
                    held.stream = None;
                    held.listed = [false; CHUNKS];
                }
            }
            Step::GiveUp(at, charged) => {
                if let Worker::Holding(Held { lease, .. }) = system.workers[at] {
                    system.network.insert(Request::HandBack { lease, charged });
                    system.workers[at] = Worker::Idle;
                }
            }
            _ => unreachable!("no step of a worker: {step:?}"),
        }
    }

    pub(crate) fn restart(system: &mut System, at: Coordinator) {
        system.streams.retain(|(of, _)| *of != at);
        for worker in &mut system.workers {
            if let Worker::Holding(held) = worker
                && held.stream == Some(at)
            {
                held.stream = None;
                held.listed = [false; CHUNKS];
            }
        }
    }

    pub(crate) fn write(&self, system: &mut System, content: Content) {
        let database = &system.database;
        let other = |chunk| (chunk, Some(database.another_text(chunk)));
        let changes = match content {
            Content::Text(chunk) => vec![other(chunk)],
            Content::Gone(chunk) => vec![(chunk, None)],
            Content::All => (0..CHUNKS)
                .filter(|chunk| database.texts[*chunk].is_some())
                .map(other)
                .collect(),
        };
        let chunks: Vec<usize> = changes.iter().map(|(chunk, _)| *chunk).collect();
        system.write(&chunks, |database| database.change(self.flaws, &changes));
    }
}
