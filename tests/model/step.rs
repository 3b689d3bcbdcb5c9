//! What can happen, one step at a time.

use stateright::{Model, Property};

use crate::{
    database::CHUNKS,
    flaws::{Flaw, Flaws},
    job::{Coordinator, JobState, Lease, Term},
    laws,
    results::Verdict,
    system::{Budget, Request, System, Waiting, Worker},
};

/// The protocol, and the world that it has to live in.
#[derive(Debug, Clone)]
pub(crate) struct Protocol {
    pub(crate) flaws: Flaws,
    /// The jobs that the source is planned in: ranges of chunks.
    pub(crate) ranges: &'static [(usize, usize)],
    /// Places for chunks that a client writes to, at most [`CHUNKS`].
    pub(crate) chunks: usize,
    pub(crate) workers: usize,
    /// One or two.
    pub(crate) coordinators: Coordinator,
    /// Whether an embedder may refuse the texts of the first chunk.
    pub(crate) rejects: bool,
    /// Whether a client cancels jobs and changes the model.
    pub(crate) steers: bool,
    /// How much may happen in one history.
    pub(crate) budget: Budget,
}

/// A write of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// A chunk is new, or has another text.
    Text(usize),
    /// A chunk is deleted.
    Gone(usize),
    /// All chunks have other texts.
    All,
}

/// One step. Those that say so are mishaps, of which there is a limited number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Claim(usize, usize),
    /// The answer to a claim arrives.
    Begin(usize),
    /// A worker opens a stream, its first or another one.
    Open(usize, Coordinator),
    /// The coordinator of a worker's stream lists what is pending.
    List(usize),
    HandOut(usize, usize, Verdict),
    /// A request arrives, through a stream or as a unary call, and the answer arrives or is late
    /// for good.
    Deliver {
        request: Request,
        via: Option<Coordinator>,
        answered: bool,
    },
    /// A request arrives, and its statement begins, but others have what it needs to lock.
    Wait(Request, Option<Coordinator>),
    /// That statement has its lock.
    Lock {
        answered: bool,
    },
    /// A coordinator notices that a stream is broken.
    Notice(Coordinator, Lease),
    /// A lease is not renewed in time. A mishap when its worker is there, and merely paused.
    Expire(usize),
    Rescue(usize),
    /// What an ended job left is queued again, by a client or when its parking is over.
    Retry(usize),
    /// The progress deadline passes: a mishap.
    Stall(usize),
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
    /// A client cancels a job: a mishap.
    Cancel(usize),
    /// A client gives the source another model: a mishap.
    ChangeModel,
    /// A client writes content.
    Write(Content),
}

impl Protocol {
    /// What a worker can do, or what can befall it.
    fn worker_steps(&self, system: &System, at: usize, mishap: bool, steps: &mut Vec<Step>) {
        match &system.workers[at] {
            Worker::Idle => {
                let jobs = system.database.jobs.iter().enumerate();
                let queued = jobs.filter(|(_, job)| job.state == JobState::Queued);
                steps.extend(queued.map(|(job, _)| Step::Claim(at, job)));
            }
            Worker::Claiming(_) => {
                steps.push(Step::Begin(at));
                if mishap {
                    steps.push(Step::LoseClaim(at));
                }
            }
            Worker::Holding(held) => {
                if held.stream.is_some() {
                    steps.push(Step::List(at));
                    for chunk in (0..CHUNKS).filter(|chunk| held.listed[*chunk]) {
                        steps.push(Step::HandOut(at, chunk, Verdict::Embedded));
                        if self.rejects && chunk == 0 {
                            steps.push(Step::HandOut(at, chunk, Verdict::Rejected));
                        }
                    }
                } else {
                    let broken = |at: &Coordinator| system.streams.contains(&(*at, held.lease));
                    let open = (0..self.coordinators).filter(|at| !broken(at));
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

    fn network_steps(system: &System, steps: &mut Vec<Step>) {
        for &request in &system.network {
            let mut ways = vec![None];
            if let Request::Renew(lease) | Request::Upsert(lease, _) = request {
                let streams = system.streams.iter().filter(|(_, of)| *of == lease);
                // Also one that is broken: what came through it before is still read.
                ways.extend(streams.map(|(at, _)| Some(*at)));
            }
            let waits = system.left.waits > 0
                && system.waiting.is_none()
                && matches!(request, Request::Upsert(..) | Request::Complete(_))
                && system.database.accepts(request.lease());
            for via in ways {
                steps.extend(
                    answers(system, request)
                        .iter()
                        .map(|&answered| Step::Deliver {
                            request,
                            via,
                            answered,
                        }),
                );
                if waits {
                    steps.push(Step::Wait(request, via));
                }
            }
        }
        if let Some(Waiting { request, .. }) = system.waiting {
            let answers = answers(system, request).iter();
            steps.extend(answers.map(|&answered| Step::Lock { answered }));
        }
        for &(at, lease) in &system.streams {
            if !system.is_live(at, lease) {
                steps.push(Step::Notice(at, lease));
            }
        }
    }

    /// What can befall a job.
    fn job_steps(&self, system: &System, at: usize, mishap: bool, steps: &mut Vec<Step>) {
        let job = &system.database.jobs[at];
        match job.state {
            JobState::Running => {
                if job.running.term != Term::Over && (mishap || system.expires_by_itself(at)) {
                    steps.push(Step::Expire(at));
                }
                if job.running.term == Term::Over && !self.flaws.has(Flaw::NoRescuer) {
                    steps.push(Step::Rescue(at));
                }
                if mishap {
                    steps.push(Step::Stall(at));
                }
                if mishap && self.steers {
                    steps.push(Step::Cancel(at));
                }
            }
            JobState::Queued if mishap && self.steers => steps.push(Step::Cancel(at)),
            JobState::Ended => steps.push(Step::Retry(at)),
            _ => {}
        }
    }

    fn write_steps(&self, system: &System, steps: &mut Vec<Step>) {
        for chunk in 0..self.chunks {
            steps.push(Step::Write(Content::Text(chunk)));
            if system.database.texts[chunk].is_some() {
                steps.push(Step::Write(Content::Gone(chunk)));
            }
        }
        if self.chunks > 1 {
            steps.push(Step::Write(Content::All));
        }
    }
}

/// Whether the answer to a request arrives or not: both, if somebody waits for it.
fn answers(system: &System, request: Request) -> &'static [bool] {
    let waits = system.held().any(|held| held.lease == request.lease());
    if waits { &[true, false] } else { &[false] }
}

impl Model for Protocol {
    type State = System;
    type Action = Step;

    fn init_states(&self) -> Vec<System> {
        vec![System::new(self.ranges, self.workers, self.budget)]
    }

    fn actions(&self, system: &System, steps: &mut Vec<Step>) {
        let mishap = system.left.mishaps > 0;
        for at in 0..system.workers.len() {
            self.worker_steps(system, at, mishap, steps);
        }
        Self::network_steps(system, steps);
        for at in 0..system.database.jobs.len() {
            self.job_steps(system, at, mishap, steps);
        }
        if mishap {
            steps.extend((0..self.coordinators).map(Step::Restart));
        }
        if mishap && self.steers {
            steps.push(Step::ChangeModel);
        }
        if system.left.writes > 0 {
            self.write_steps(system, steps);
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
            Step::Wait(request, via) => self.wait(&mut system, request, via),
            Step::Lock { answered } => self.lock(&mut system, answered),
            Step::Notice(at, lease) => {
                system.streams.remove(&(at, lease));
                system.database.orphan(self.flaws, lease, at);
            }
            Step::Expire(at) => system.database.jobs[at].running.term = Term::Over,
            Step::Rescue(at) => system.database.rescue(self.flaws, at, false),
            Step::Stall(at) => system.database.rescue(self.flaws, at, true),
            Step::Retry(at) => system.database.take_over(self.flaws, at),
            Step::Cancel(at) => system.database.cancel(self.flaws, at),
            Step::ChangeModel => {
                let all: Vec<usize> = (0..CHUNKS).collect();
                system.write(&all, |database| database.change_model(self.flaws));
            }
            Step::Restart(at) => Self::restart(&mut system, at),
            Step::Write(content) => self.write(&mut system, content),
            step => self.work(&mut system, step),
        }
        if system == *before {
            return None;
        }
        let left = &mut system.left;
        match step {
            Step::Expire(at) if before.expires_by_itself(at) => {}
            Step::Expire(_)
            | Step::Stall(_)
            | Step::LoseClaim(_)
            | Step::Crash(_)
            | Step::Break(_)
            | Step::Restart(_)
            | Step::GiveUp(..)
            | Step::Cancel(_)
            | Step::ChangeModel => left.mishaps -= 1,
            Step::Write(_) => left.writes -= 1,
            Step::Wait(..) => left.waits -= 1,
            _ => {}
        }
        Some(system.canonical())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        laws::properties(self)
    }
}
