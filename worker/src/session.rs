//! The session of a worker: its one stream, by which it takes batches and answers
//! them, whatever happens to the stream meanwhile.

mod heard;
mod held;
mod leases;
mod link;
mod spans;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use self::{held::Held, leases::Leases, link::Link};
use crate::{
    coordinator::{Message, Terms},
    health::Condition,
    part::End,
    worker::Worker,
};

/// How long an embedder that is down may go on with what it has begun, and how
/// long a draining worker that has answered everything waits for the coordinator.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

const DRAINING: &str = "the worker is draining";

/// Works until the worker is to stop and all that it holds is answered, or given
/// up.
pub(crate) async fn run(worker: Arc<Worker>) {
    Session::new(worker).run().await;
}

struct Session {
    worker: Arc<Worker>,
    held: Held,
    leases: Leases,
    link: Link,
    /// How the embedders are, as far as the coordinator was told.
    told: Vec<watch::Receiver<Condition>>,
    /// By model: when what an embedder that is down has begun goes back.
    give_back_at: Vec<Option<Instant>>,
    /// Those of the last stream that was open.
    terms: Option<Terms>,
    heartbeat_at: Instant,
    /// When the leases are given up, while there is no stream.
    lost_at: Option<Instant>,
    drain: Option<Drain>,
}

struct Drain {
    /// Whether the coordinator was told on this stream.
    is_told: bool,
    /// When nothing more is embedded, and whether that has come.
    deadline: Instant,
    is_over: bool,
    /// When the coordinator is not waited for any more; set while everything is
    /// answered.
    leave_at: Option<Instant>,
}

impl Session {
    fn new(worker: Arc<Worker>) -> Self {
        let models = worker.models.iter();
        let told = models.clone().map(|it| it.endpoint.health.subscribe());
        Self {
            held: Held::new(models.clone().map(|it| it.profile.name.clone())),
            leases: Leases::new(Arc::clone(&worker)),
            link: Link::new(worker.coordinator.clone()),
            told: told.collect(),
            give_back_at: vec![None; models.len()],
            terms: None,
            heartbeat_at: Instant::now(),
            lost_at: None,
            drain: None,
            worker,
        }
    }

    async fn run(&mut self) {
        let worker = Arc::clone(&self.worker);
        loop {
            self.take_answers();
            let is_full = self.send();
            if self.is_over() {
                break;
            }
            let requests = self.link.requests().filter(|_| is_full).cloned();
            let due = self.next_due(is_full);
            // In this order, so that a stream with much to say cannot keep the rest
            // waiting.
            tokio::select! {
                biased;
                () = worker.shutdown.cancelled(), if self.drain.is_none() => self.begin_drain(),
                () = worker.news.notified() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.on_time();
                }
                () = async { if let Some(it) = &requests { it.ready().await } }, if is_full => {}
                heard = self.link.next(self.held.has_room()) => self.heard(heard),
            }
        }
        if !self.held.is_empty() {
            warn!("The coordinator did not acknowledge everything in time; it is done again.");
        }
        let reason = "the worker stopped before the coordinator said how it ended";
        self.leases
            .end_all_but(&BTreeSet::new(), End::Unreachable, reason);
    }

    /// Takes in what the endpoints have done.
    fn take_answers(&mut self) {
        for (model, give_back_at) in self.worker.models.iter().zip(&mut self.give_back_at) {
            for answer in model.endpoint.take_answers() {
                let seq = answer.part.seq;
                if let Some(reason) = &answer.failure {
                    debug!(seq, reason, "A batch goes back unfinished.");
                }
                if !self.held.answer(&answer.part, answer.result) {
                    debug!(seq, "An answer came for a batch that is not held.");
                }
            }
            *give_back_at = model.endpoint.health.ailment().map(|_| {
                let limit = Instant::now() + SETTLE_LIMIT;
                give_back_at.unwrap_or(limit)
            });
        }
        if let Some(drain) = &mut self.drain {
            let limit = Instant::now() + SETTLE_LIMIT;
            let leave_at = drain.leave_at.unwrap_or(limit);
            drain.leave_at = self.held.is_answered().then_some(leave_at);
        }
    }

    /// Sends what there is to say. Returns whether something may be left, because
    /// too much waits to be sent.
    fn send(&mut self) -> bool {
        let Some(requests) = self.link.requests().cloned() else {
            return false;
        };
        loop {
            let Some(place) = requests.place() else {
                return true;
            };
            let Some(message) = self.next_message() else {
                return false;
            };
            place.send(message);
        }
    }

    /// What is to be said next, if anything is.
    fn next_message(&mut self) -> Option<Message<'_>> {
        let now = Instant::now();
        if now >= self.heartbeat_at
            && let Some(terms) = self.terms
        {
            self.heartbeat_at = now + terms.heartbeat_interval;
            return Some(Message::Heartbeat);
        }
        if let Some(drain) = self.drain.as_mut().filter(|drain| !drain.is_told) {
            drain.is_told = true;
            return Some(Message::Drain);
        }
        for (model, told) in self.worker.models.iter().zip(&mut self.told) {
            // Its sender lives in the endpoint.
            if told.has_changed().unwrap_or(false) {
                let condition = told.borrow_and_update().clone();
                let model = &model.profile.name;
                return Some(Message::Condition { model, condition });
            }
        }
        for (place, model) in self.worker.models.iter().enumerate() {
            let takes = self.drain.is_none() && model.endpoint.health.ailment().is_none();
            if takes && let Some(chunks) = self.held.grant(place, model.endpoint.room()) {
                let model = &model.profile.name;
                return Some(Message::Credit { model, chunks });
            }
        }
        let results = self.held.next_results();
        (!results.is_empty()).then_some(Message::Results(results))
    }

    /// When something is to be done whatever is heard, if that is so.
    fn next_due(&self, is_full: bool) -> Option<Instant> {
        let is_open = self.link.requests().is_some() && !is_full;
        let drain = self.drain.as_ref();
        let dues = [
            is_open.then_some(self.heartbeat_at),
            self.lost_at,
            drain.filter(|it| !it.is_over).map(|it| it.deadline),
            drain.and_then(|it| it.leave_at),
        ];
        dues.iter()
            .chain(&self.give_back_at)
            .flatten()
            .min()
            .copied()
    }

    /// Does what is due. Heartbeats are due whenever something is sent.
    fn on_time(&mut self) {
        let now = Instant::now();
        if self.lost_at.is_some_and(|at| now >= at) {
            self.lose_all();
        }
        for (model, give_back_at) in self.worker.models.iter().zip(&mut self.give_back_at) {
            if give_back_at.is_some_and(|at| now >= at) {
                *give_back_at = None;
                let reason = model.endpoint.health.ailment().unwrap_or_default();
                model.endpoint.give_back(&reason);
            }
        }
        if let Some(drain) = &mut self.drain
            && !drain.is_over
            && now >= drain.deadline
        {
            drain.is_over = true;
            for model in &self.worker.models {
                model.endpoint.give_back(DRAINING);
            }
        }
    }

    /// Takes nothing more.
    fn begin_drain(&mut self) {
        info!("Draining.");
        self.drain = Some(Drain {
            is_told: false,
            deadline: Instant::now() + self.worker.config.drain_timeout,
            is_over: false,
            leave_at: None,
        });
    }

    /// Whether the worker has drained: there is nothing left, or nobody who wants it.
    fn is_over(&self) -> bool {
        let Some(drain) = &self.drain else {
            return false;
        };
        let is_late = drain.leave_at.is_some_and(|at| Instant::now() >= at);
        is_late || (self.held.is_empty() && self.link.requests().is_none())
    }
}

#[cfg(test)]
mod tests;
