//! One embedder, shared by all sessions of a worker: their texts travel
//! together, as many at a time as the embedder can take, and whatever goes
//! wrong is sorted by whose fault it is.

mod blame;
mod call;
mod demand;
pub(crate) mod limits;
mod queue;
mod rates;
mod request;
mod settle;
mod spans;

use std::{
    collections::HashMap,
    convert::Infallible,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout_at},
};
use weir_telemetry::TraceContext;

pub(crate) use self::{
    demand::{Demand, Share},
    request::{Failure, Outcome},
    spans::CallSpans,
};
use self::{
    limits::{CallSize, Limits},
    queue::{Call, Queue, Text},
    rates::Rates,
    request::Requests,
};
use crate::{
    embedder::{EmbedError, Embedder},
    governor::Governor,
    metrics::Metrics,
    plan::Batch,
};

/// How long a call that is not full waits for texts that sessions are about to
/// bring. Far less than any call takes.
const MERGE_WAIT: Duration = Duration::from_millis(2);
/// An embedder that asks for more patience than this is down: the jobs go back
/// to the queue meanwhile. Less than a lease, and long enough for a quota that
/// is counted by the minute.
const LONGEST_REST: Duration = Duration::from_secs(90);
/// The rest after the first time that an embedder says it is overloaded and
/// not for how long; doubles with each time after it.
const FIRST_REST: Duration = Duration::from_millis(500);
/// How often a text may be in a call that took too long before its job is
/// charged.
const MOST_TIMEOUTS: u8 = 3;

/// How an endpoint is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Most that one call carries.
    pub(crate) call: CallSize,
    /// Most calls under way.
    pub(crate) calls: usize,
    /// How long a call may take.
    pub(crate) timeout: Duration,
    /// Texts are not shortened to less than this, in bytes.
    pub(crate) shortest: usize,
    /// Quotas of the embedder.
    pub(crate) requests_per_minute: Option<NonZeroU32>,
    pub(crate) tokens_per_minute: Option<NonZeroU32>,
}

/// The way to an embedder.
pub(crate) struct Endpoint {
    embedder: Arc<dyn Embedder>,
    settings: Settings,
    pub(crate) governor: Governor,
    pub(crate) metrics: Metrics,
    rates: Rates,
    spans: CallSpans,
    began: Instant,
    state: Mutex<State>,
    /// Texts have come.
    work: Notify,
    /// Until when nothing is sent, because the embedder asked for it.
    rest: watch::Sender<Option<Instant>>,
    /// How many texts the sessions want to have here.
    demand: watch::Sender<Demand>,
}

struct State {
    queue: Queue,
    requests: Requests,
    limits: Limits,
    /// When the texts that wait are sent, if a call of them would not be full.
    merge_until: Option<Instant>,
    under_way: HashMap<u64, UnderWay>,
    last_call: u64,
    /// Bytes of the shortest text that was too long by itself, as far as is
    /// known. No proof that another of that length is.
    too_long: usize,
    /// Times in a row that the embedder was overloaded.
    overloads: u32,
    /// Why the embedder is down, while batches wait for calls made before.
    outage: Option<String>,
    /// Batches that fail, and why, once what the embedder still has of them is
    /// answered.
    failing: HashMap<u64, String>,
}

/// A call whose answer is awaited.
struct UnderWay {
    call: Call,
    task: AbortHandle,
}

/// How a call ended.
struct Ended {
    id: u64,
    call: Call,
    answer: Result<Vec<Vec<f32>>, EmbedError>,
    /// Why it did not answer a probe after that.
    down: Option<String>,
    /// As many calls as allowed were under way when it began.
    saturated: bool,
}

/// Withdraws a batch that nobody waits for any more.
struct Withdraw<'a> {
    endpoint: &'a Endpoint,
    request: u64,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        let mut state = self.endpoint.state();
        if state.requests.forget(self.request) {
            state.queue.withdraw(self.request);
            state.failing.remove(&self.request);
            state.give_up();
        }
    }
}

impl Endpoint {
    pub(crate) fn new(embedder: Arc<dyn Embedder>, settings: Settings, metrics: Metrics) -> Self {
        Self {
            embedder,
            settings,
            governor: Governor::new(),
            metrics,
            rates: Rates::new(settings.requests_per_minute, settings.tokens_per_minute),
            spans: CallSpans::default(),
            began: Instant::now(),
            state: Mutex::new(State {
                queue: Queue::default(),
                requests: Requests::default(),
                limits: Limits::new(settings.call, settings.calls),
                merge_until: None,
                under_way: HashMap::new(),
                last_call: 0,
                too_long: usize::MAX,
                overloads: 0,
                outage: None,
                failing: HashMap::new(),
            }),
            work: Notify::new(),
            rest: watch::Sender::new(None),
            demand: watch::Sender::new(Demand::default()),
        }
    }

    /// Records its calls.
    pub(crate) fn traced(self, spans: CallSpans) -> Self {
        Self { spans, ..self }
    }

    /// Embeds a batch, together with whatever else waits. Withdraws it when
    /// dropped. `trace` is that of its job.
    pub(crate) async fn embed(&self, batch: Batch, trace: Option<TraceContext>) -> Outcome {
        let began = Instant::now();
        let batch = Arc::new(batch);
        let (reply, answer) = oneshot::channel();
        let request = {
            let mut state = self.state();
            let request = state.requests.admit(Arc::clone(&batch), trace, reply);
            state.queue.push(request, &batch);
            request
        };
        let _withdraw = Withdraw {
            endpoint: self,
            request,
        };
        self.work.notify_one();
        let outcome = answer.await.unwrap_or_else(|_| Outcome {
            result: crate::plan::BatchResult {
                seq: batch.seq,
                ..Default::default()
            },
            failure: Some(Failure::Job {
                reason: "the worker stopped embedding".to_owned(),
            }),
        });
        let seconds = began.elapsed().as_secs_f64();
        self.metrics.batch_embed.record(seconds);
        outcome
    }

    /// Sends calls, and probes the embedder when it fails. Never returns.
    pub(crate) async fn run(self: &Arc<Self>) -> Infallible {
        let (embedder, limit) = (&*self.embedder, self.settings.timeout);
        tokio::select! {
            never = self.governor.run(embedder, limit) => never,
            never = self.dispatch() => never,
        }
    }

    /// Sends calls. Never returns.
    pub(crate) async fn dispatch(self: &Arc<Self>) -> Infallible {
        let mut calls = JoinSet::new();
        loop {
            let most = self.state().limits.calls();
            tokio::select! {
                Some(ended) = calls.join_next(), if !calls.is_empty() => {
                    // A call catches its panics; one that was given up has no end to settle.
                    if let Ok(ended) = ended {
                        self.settle(ended);
                    }
                }
                call = self.next_call(), if calls.len() < most => {
                    let saturated = calls.len() + 1 >= most;
                    let mut state = self.state();
                    state.last_call += 1;
                    let id = state.last_call;
                    let traces = state.requests.traces(&call);
                    let retries = state.retries(&call);
                    let running = Arc::clone(self).call(id, call.clone(), saturated, (traces, retries));
                    let task = calls.spawn(running);
                    state.under_way.insert(id, UnderWay { call, task });
                }
            }
        }
    }

    /// Waits for texts and takes those of the next call. Loses nothing when it
    /// is dropped.
    async fn next_call(&self) -> Call {
        loop {
            let work = self.work.notified();
            let said = self.governor.fit().await;
            self.rested().await;
            let until = {
                let mut state = self.state();
                state.limits.keep_within(&said.limits);
                state.outage = None;
                let wanted = self.demand.borrow().unanswered();
                let is_all = wanted <= state.texts() && !state.queue.is_empty();
                if (is_all || state.queue.fills(state.limits.size()))
                    && let Some(call) = state.next_call()
                {
                    return call;
                }
                state.merge_until()
            };
            let Some(until) = until else {
                work.await;
                continue;
            };
            if timeout_at(until, work).await.is_err()
                && let Some(call) = self.state().next_call()
            {
                return call;
            }
        }
    }

    /// Waits while the embedder wants to be left alone.
    async fn rested(&self) {
        let mut rest = self.rest.subscribe();
        loop {
            let until = *rest.borrow_and_update();
            match until {
                Some(until) if until > Instant::now() => tokio::select! {
                    () = sleep_until(until) => {}
                    _ = rest.changed() => {}
                },
                _ => return,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How often the embedder failed these texts, or whatever was sent it last,
    /// for no fault of theirs.
    fn retries(&self, call: &Call) -> u32 {
        let timeouts = call.texts.iter().map(|text| u32::from(text.timeouts)).max();
        timeouts.unwrap_or(0) + self.overloads
    }

    /// How many texts are here, waiting or at the embedder.
    fn texts(&self) -> usize {
        let under_way = self.under_way.values();
        let under_way = under_way.map(|under_way| under_way.call.texts.len());
        self.queue.texts() + under_way.sum::<usize>()
    }

    fn next_call(&mut self) -> Option<Call> {
        self.merge_until = None;
        self.queue.next(self.limits.size())
    }

    /// When the texts that wait are sent, however few there are; `None` when
    /// none wait. Those that still come do not make it later.
    fn merge_until(&mut self) -> Option<Instant> {
        if self.queue.is_empty() {
            self.merge_until = None;
            return None;
        }
        let until = || Instant::now() + MERGE_WAIT;
        Some(*self.merge_until.get_or_insert_with(until))
    }

    /// Ends the calls that nobody waits for any more.
    fn give_up(&mut self) {
        let requests = &self.requests;
        let awaited = |text: &Text| requests.contains(text.request);
        let given_up = self
            .under_way
            .extract_if(|_, under_way| !under_way.call.texts.iter().any(awaited));
        for (_, UnderWay { call, task }) in given_up {
            task.abort();
            let mut call = call;
            call.retain(awaited);
            self.queue.put_back_untried(call);
        }
    }
}

#[cfg(test)]
mod tests;
