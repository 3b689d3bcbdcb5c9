//! One embedder, shared by all sessions of a worker: their texts travel
//! together, as many at a time as the embedder can take. What is sent next and
//! what follows from its answers is decided by the [`Judge`].

mod call;
mod demand;
mod request;
mod settle;
mod silence;
mod spans;

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    hash::{BuildHasher as _, RandomState},
    num::NonZeroU32,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout_at},
};
use weir_embedder::{
    Embedder, Probe, Profile,
    judge::{self, Call, CallId, CallSize, Judge, TextId},
    pace::{Concurrency, Rates},
};
use weir_telemetry::TraceContext;

use self::{call::Work, request::Requests, settle::Rests, silence::Patience};
pub(crate) use self::{
    demand::{Demand, Share},
    request::Outcome,
    spans::CallSpans,
};
use crate::{health::Health, metrics::Metrics, plan::Batch};

/// How long a call that is not full waits for texts that sessions are about to
/// bring. Far less than any call takes.
const MERGE_WAIT: Duration = Duration::from_millis(2);

/// A text that is too long is not shortened to less than this, in bytes: a
/// vector of so little would say nothing of it.
const SHORTEST_TEXT: usize = 64;

/// How an endpoint is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// What the judge never goes beyond.
    pub(crate) judge: judge::Settings,
    /// Most calls under way.
    pub(crate) calls: usize,
    /// How long a call may take.
    pub(crate) timeout: Duration,
    /// Quotas of the embedder.
    pub(crate) requests_per_minute: Option<NonZeroU32>,
    pub(crate) tokens_per_minute: Option<NonZeroU32>,
}

impl Settings {
    /// What the profile of a model says of it.
    pub(crate) const fn of(model: &Profile) -> Self {
        Self {
            judge: judge::Settings {
                ceiling: CallSize {
                    texts: model.batch_size as usize,
                    tokens: model.batch_tokens as usize,
                },
                shortest: SHORTEST_TEXT,
            },
            calls: model.concurrency as usize,
            timeout: model.timeout,
            requests_per_minute: model.requests_per_minute,
            tokens_per_minute: model.tokens_per_minute,
        }
    }
}

/// The way to an embedder.
pub(crate) struct Endpoint {
    embedder: Arc<dyn Embedder>,
    settings: Settings,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
    rates: Rates,
    spans: CallSpans,
    began: Instant,
    /// Makes the fingerprints of texts. Its keys are random, so that nobody can
    /// make a text that is taken for another's.
    fingerprints: RandomState,
    state: Mutex<State>,
    /// Texts have come.
    work: Notify,
    /// When the embedder may next be probed beside a silent call.
    next_beside: tokio::sync::Mutex<Instant>,
    /// How many texts the sessions want to have here.
    demand: Arc<watch::Sender<Demand>>,
}

struct State {
    judge: Judge,
    requests: Requests,
    concurrency: Concurrency,
    /// What the embedder said of itself at the last probe that passed.
    said: Option<Probe>,
    /// When the texts that wait are sent, if a call of them would not be full.
    merge_until: Option<Instant>,
    under_way: HashMap<CallId, UnderWay>,
    rests: Rests,
    patience: Patience,
}

/// A call whose answer is awaited.
struct UnderWay {
    texts: Vec<TextId>,
    task: AbortHandle,
}

/// Withdraws a batch that nobody waits for any more.
struct Withdraw<'a> {
    endpoint: &'a Endpoint,
    request: u64,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        let mut state = self.endpoint.state();
        for text in state.requests.forget(self.request) {
            state.judge.remove(text);
        }
        state.end_unawaited();
        drop(state);
        self.endpoint.work.notify_one();
    }
}

impl Endpoint {
    pub(crate) fn new(embedder: Arc<dyn Embedder>, settings: Settings, metrics: Metrics) -> Self {
        Self {
            embedder,
            settings,
            health: Health::new(),
            metrics,
            rates: Rates::new(settings.requests_per_minute, settings.tokens_per_minute),
            spans: CallSpans::default(),
            began: Instant::now(),
            fingerprints: RandomState::new(),
            state: Mutex::new(State {
                judge: Judge::new(settings.judge),
                requests: Requests::default(),
                concurrency: Concurrency::new(settings.calls),
                said: None,
                merge_until: None,
                under_way: HashMap::new(),
                rests: Rests::default(),
                patience: Patience::new(),
            }),
            work: Notify::new(),
            next_beside: tokio::sync::Mutex::new(Instant::now()),
            demand: Arc::new(watch::Sender::new(Demand::default())),
        }
    }

    /// Records its calls.
    pub(crate) fn traced(self, spans: CallSpans) -> Self {
        Self { spans, ..self }
    }

    /// Embeds a batch, together with whatever else waits. Withdraws it when
    /// dropped. `trace` is that of its job; those of different namespaces take
    /// turns.
    pub(crate) async fn embed(
        &self,
        batch: Batch,
        namespace: &str,
        trace: Option<TraceContext>,
    ) -> Outcome {
        let began = Instant::now();
        let seq = batch.seq;
        let (reply, answer) = oneshot::channel();
        let whose = self.fingerprints.hash_one(namespace);
        let request = {
            let mut state = self.state();
            let batch = Arc::new(batch);
            let request = state.requests.admit(Arc::clone(&batch), trace, reply);
            for (text, chunk) in (request..).map(TextId).zip(&batch.chunks) {
                let fingerprint = self.fingerprints.hash_one(&chunk.text);
                state.judge.add(text, chunk.text.len(), fingerprint, whose);
            }
            request
        };
        let _withdraw = Withdraw {
            endpoint: self,
            request,
        };
        self.work.notify_one();
        let outcome = answer.await.unwrap_or_else(|_| Outcome {
            result: crate::plan::BatchResult {
                seq,
                ..Default::default()
            },
            failure: Some("the worker stopped embedding".to_owned()),
        });
        let seconds = began.elapsed().as_secs_f64();
        self.metrics.batch_embed.record(seconds);
        outcome
    }

    /// Sends calls, and probes the embedder when it fails. Never returns.
    pub(crate) async fn run(self: &Arc<Self>) -> Infallible {
        let mut calls = JoinSet::new();
        loop {
            let most = self.state().concurrency.calls();
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
                    let id = call.id();
                    let (texts, work) = match call {
                        Call::Probe(_, bytes) => (Vec::new(), Work::Probe(bytes)),
                        Call::Embed(_, sent) => {
                            let texts = sent.iter().map(|(text, _)| *text).collect();
                            (texts, Work::Embed(state.requests.take(&sent)))
                        }
                    };
                    let task = calls.spawn(Arc::clone(self).call(id, work, saturated));
                    state.under_way.insert(id, UnderWay { texts, task });
                }
            }
        }
    }

    /// Waits until something is to be sent. Loses nothing when it is dropped.
    async fn next_call(&self) -> Call {
        loop {
            let mut work = pin!(self.work.notified());
            self.rested().await;
            let wanted = self.demand.borrow().unanswered();
            let merge_until = self.state().merge_until(wanted);
            if let Some(until) = merge_until
                && timeout_at(until, &mut work).await.is_ok()
            {
                continue;
            }
            if let Some(call) = self.state().next_call() {
                return call;
            }
            work.await;
        }
    }

    /// Waits until the embedder is not left alone any more.
    async fn rested(&self) {
        let rest = self.state().rests.until();
        if let Some(until) = rest {
            sleep_until(until).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_call(&mut self) -> Option<Call> {
        self.merge_until = None;
        self.judge.next_call()
    }

    /// When the texts that wait are sent, if more may come to travel with them.
    /// Those that still come do not make it later. `wanted`: how many texts the
    /// sessions are to bring, or have brought.
    fn merge_until(&mut self, wanted: usize) -> Option<Instant> {
        let under_way = self.under_way.values();
        let under_way: usize = under_way.map(|call| call.texts.len()).sum();
        let is_all = wanted <= self.judge.len();
        if is_all || self.judge.len() <= under_way || self.judge.is_full() {
            self.merge_until = None;
            return None;
        }
        let until = || Instant::now() + MERGE_WAIT;
        Some(*self.merge_until.get_or_insert_with(until))
    }

    /// Ends the calls that nobody waits for any more.
    fn end_unawaited(&mut self) {
        let requests = &self.requests;
        let unawaited = self.under_way.extract_if(|_, call| {
            let mut texts = call.texts.iter();
            !call.texts.is_empty() && !texts.any(|text| requests.contains(*text))
        });
        for (id, UnderWay { task, .. }) in unawaited {
            task.abort();
            self.judge.cancelled(id);
        }
    }

    /// Gives back the batches of which nothing is under way.
    fn give_back(&mut self, reason: &str) {
        let texts = self.under_way.values().flat_map(|call| &call.texts);
        let busy: HashSet<u64> = texts.filter_map(|text| self.requests.of(*text)).collect();
        for request in self.requests.names() {
            if !busy.contains(&request) {
                for text in self.requests.fail(request, reason) {
                    self.judge.remove(text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
