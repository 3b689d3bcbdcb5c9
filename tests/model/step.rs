//! What can happen, one step at a time.

use stateright::{Model, Property};

use crate::{
    database::{Answer, CHUNKS, Version},
    flaws::{Flaw, Flaws},
    job::{Coordinator, JobState, Lease, Term},
    laws,
    system::{Held, Request, System, Worker},
};

/// How many coordinators there are.
const COORDINATORS: Coordinator = 2;

/// The protocol, and the world that it has to live in.
#[derive(Debug, Clone)]
pub(crate) struct Protocol {
    pub(crate) flaws: Flaws,
    /// Chunks of the source, at most [`CHUNKS`].
    pub(crate) chunks: usize,
    /// How many things may go wrong, or change, in one history.
    pub(crate) mishaps: u8,
}

/// One step. Those that say so are mishaps, of which there is a limited number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Claim(usize),
    /// The answer to a claim arrives.
    Begin(usize),
    /// A worker opens a stream, its first or another one.
    Open(usize, Coordinator),
    HandOut(usize, usize),
    /// A request arrives, through a stream or as a unary call, and the answer arrives or is late
    /// for good.
    Deliver {
        request: Request,
        via: Option<Coordinator>,
        answered: bool,
    },
    /// The second half of a torn upsert.
    FinishTorn,
    /// A coordinator notices that a stream is broken.
    Notice(Coordinator, Lease),
    /// A lease is not renewed in time. A mishap when its worker is there, and merely paused.
    Expire,
    Rescue,
    /// The progress deadline passes: a mishap.
    Stall,
    /// The answer to a claim is lost: a mishap.
    LoseClaim(usize),
    /// A worker dies and comes back knowing nothing: a mishap.
    Crash(usize),
    /// A stream breaks, and its worker knows: a mishap.
    Break(usize),
    /// A coordinator dies and comes back knowing nothing: a mishap.
    Restart(Coordinator),
    /// A worker hands its job back, charged or not: a mishap.
    GiveUp(usize, bool),
    /// A client changes the text of a chunk, or deletes it: a mishap.
    Change(usize, Option<Version>),
}

/// What a worker can do, or what can befall it.
fn worker_steps(system: &System, at: usize, mishap: bool, steps: &mut Vec<Step>) {
    match &system.workers[at] {
        Worker::Idle => steps.push(Step::Claim(at)),
        Worker::Claiming(_) => {
            steps.push(Step::Begin(at));
            if mishap {
                steps.push(Step::LoseClaim(at));
            }
        }
        Worker::Holding(held) => {
            if held.stream.is_some() {
                steps.extend((0..CHUNKS).map(|chunk| Step::HandOut(at, chunk)));
            } else {
                let broken = |at: &Coordinator| system.streams.contains(&(*at, held.lease));
                let open = (0..COORDINATORS).filter(|at| !broken(at));
                steps.extend(open.map(|coordinator| Step::Open(at, coordinator)));
            }
            if mishap {
                steps.push(Step::Crash(at));
                steps.extend([true, false].map(|charged| Step::GiveUp(at, charged)));
                if held.stream.is_some() {
                    steps.push(Step::Break(at));
                }
            }
        }
    }
}

impl Protocol {
    fn network_steps(system: &System, steps: &mut Vec<Step>) {
        for &request in &system.network {
            let mut ways = vec![None];
            if let Request::Renew(lease) | Request::Upsert(lease, _) = request {
                let streams = system.streams.iter().filter(|(_, of)| *of == lease);
                // Also one that is broken: what came through it before is still read.
                ways.extend(streams.map(|(at, _)| Some(*at)));
            }
            for via in ways {
                let waits = system.held().any(|held| held.lease == request.lease());
                let answers: &[bool] = if waits { &[true, false] } else { &[false] };
                steps.extend(answers.iter().map(|&answered| Step::Deliver {
                    request,
                    via,
                    answered,
                }));
            }
        }
        for &(at, lease) in &system.streams {
            if !system.is_live(at, lease) {
                steps.push(Step::Notice(at, lease));
            }
        }
        if system.torn.is_some() {
            steps.push(Step::FinishTorn);
        }
    }

    fn deliver(
        &self,
        system: &mut System,
        request: Request,
        via: Option<Coordinator>,
        answered: bool,
    ) {
        let (flaws, database) = (self.flaws, &mut system.database);
        let (lease, acked, answer) = match request {
            Request::Renew(lease) => (lease, None, database.renew(flaws, lease, via)),
            Request::Complete(lease) => (lease, None, database.complete(flaws, lease)),
            Request::HandBack { lease, charged } => {
                database.hand_back(flaws, lease, charged);
                return;
            }
            Request::Upsert(lease, chunk) => {
                let early = answered && flaws.has(Flaw::AckBeforeCommit);
                let torn = flaws.has(Flaw::UpsertWithoutLocks);
                let answer = if early && database.accepts(lease) {
                    Answer::Held
                } else if torn {
                    let fine = database.accepts(lease) && database.texts[chunk.0] == Some(chunk.1);
                    system.torn = fine.then_some((lease, chunk));
                    return;
                } else {
                    database.upsert(flaws, lease, chunk, via)
                };
                (lease, Some(chunk.0), answer)
            }
        };
        if answered {
            system.answer(lease, acked, answer);
        }
    }

    fn hand_out(&self, system: &mut System, at: usize, chunk: usize) {
        let pending = system.database.is_pending(chunk);
        let (Worker::Holding(held), Some(version)) =
            (&mut system.workers[at], system.database.texts[chunk])
        else {
            return;
        };
        let wanted = pending || self.flaws.has(Flaw::HandOutFromTheStart);
        // A stream of a lost lease hands out nothing: it looks before it reads.
        if !wanted || held.unacked[chunk].is_some() || !system.database.accepts(held.lease) {
            return;
        }
        system.repeated |= !pending || held.given[chunk] == Some(version);
        held.unacked[chunk] = Some(version);
        held.given[chunk] = Some(version);
        let result = Request::Upsert(held.lease, (chunk, version));
        system.network.insert(result);
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
    fn work(&self, system: &mut System, step: Step) {
        match step {
            Step::Claim(at) => {
                if let Some(lease) = system.database.claim(self.flaws) {
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
                        unacked: [None; CHUNKS],
                        given: [None; CHUNKS],
                    });
                }
            }
            Step::Open(worker, at) => self.open(system, worker, at),
            Step::HandOut(worker, chunk) => self.hand_out(system, worker, chunk),
            Step::LoseClaim(at) | Step::Crash(at) => system.workers[at] = Worker::Idle,
            Step::Break(at) => {
                if let Worker::Holding(held) = &mut system.workers[at] {
                    held.stream = None;
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
}

impl Model for Protocol {
    type State = System;
    type Action = Step;

    fn init_states(&self) -> Vec<System> {
        vec![System::new(self.chunks, self.mishaps)]
    }

    fn actions(&self, system: &System, steps: &mut Vec<Step>) {
        let mishap = system.mishaps > 0;
        for at in 0..system.workers.len() {
            worker_steps(system, at, mishap, steps);
        }
        Self::network_steps(system, steps);
        let job = system.database.newest();
        if job.state == JobState::Running {
            if job.running.term != Term::Over && (mishap || system.expires_by_itself()) {
                steps.push(Step::Expire);
            }
            if job.running.term == Term::Over && !self.flaws.has(Flaw::NoRescuer) {
                steps.push(Step::Rescue);
            }
            if mishap {
                steps.push(Step::Stall);
            }
        }
        if mishap {
            steps.extend((0..COORDINATORS).map(Step::Restart));
            for chunk in 0..CHUNKS {
                if let Some(version) = system.database.texts[chunk] {
                    steps.push(Step::Change(chunk, Some(version + 1)));
                    steps.push(Step::Change(chunk, None));
                }
            }
        }
    }

    fn next_state(&self, before: &System, step: Step) -> Option<System> {
        let mut system = before.clone();
        match step {
            Step::Deliver {
                request,
                via,
                answered,
            } => self.deliver(&mut system, request, via, answered),
            Step::FinishTorn => {
                if let Some((lease, chunk)) = system.torn.take() {
                    let answer = system.database.write(lease, chunk, None);
                    system.answer(lease, Some(chunk.0), answer);
                }
            }
            Step::Notice(at, lease) => {
                system.streams.remove(&(at, lease));
                system.database.orphan(self.flaws, lease, at);
            }
            Step::Expire => {
                let at = system.database.jobs.len() - 1;
                system.database.jobs[at].running.term = Term::Over;
            }
            Step::Rescue => system.database.rescue(self.flaws, false),
            Step::Stall => system.database.rescue(self.flaws, true),
            Step::Restart(at) => {
                system.streams.retain(|(of, _)| *of != at);
                for worker in &mut system.workers {
                    if let Worker::Holding(held) = worker
                        && held.stream == Some(at)
                    {
                        held.stream = None;
                    }
                }
            }
            Step::Change(chunk, text) => system.database.change(self.flaws, chunk, text),
            step => self.work(&mut system, step),
        }
        if system == *before {
            return None;
        }
        system.mishaps -= u8::from(match step {
            Step::Expire => !before.expires_by_itself(),
            Step::Stall
            | Step::LoseClaim(_)
            | Step::Crash(_)
            | Step::Break(_)
            | Step::Restart(_)
            | Step::GiveUp(..)
            | Step::Change(..) => true,
            _ => false,
        });
        Some(system.canonical())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        laws::properties()
    }
}
