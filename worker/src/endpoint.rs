//! One embedder: the texts of all jobs travel together, as many at a time as it
//! can take. What is sent next and what follows from its answers is decided by
//! the judge.

mod call;
mod request;
mod settle;
mod silence;
mod spans;
mod state;

use std::{
    convert::Infallible,
    hash::{BuildHasher as _, RandomState},
    num::NonZeroU32,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use weir_embedder::{
    Embedder, Profile,
    judge::{self, Call, CallSize, TextId},
    pace::Rates,
};
use weir_telemetry::TraceContext;

use self::{
    call::Work,
    state::{State, UnderWay},
};
pub(crate) use self::{request::Answer, spans::CallSpans};
use crate::{
    health::{Health, State::Down},
    metrics::Metrics,
    part::Part,
};

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
    /// Told when there may be answers, another condition or more room.
    news: Arc<Notify>,
}

impl Endpoint {
    /// An endpoint that rings `news` when something of it may have changed.
    pub(crate) fn new(
        embedder: Arc<dyn Embedder>,
        settings: Settings,
        metrics: Metrics,
        news: Arc<Notify>,
    ) -> Self {
        Self {
            embedder,
            settings,
            health: Health::new(),
            metrics,
            rates: Rates::new(settings.requests_per_minute, settings.tokens_per_minute),
            spans: CallSpans::default(),
            began: Instant::now(),
            fingerprints: RandomState::new(),
            state: Mutex::new(State::new(settings)),
            work: Notify::new(),
            next_beside: tokio::sync::Mutex::new(Instant::now()),
            news,
        }
    }

    /// Records its calls.
    pub(crate) fn traced(self, spans: CallSpans) -> Self {
        Self { spans, ..self }
    }

    /// Takes parts in, each with the trace of its job, to be embedded together with
    /// whatever else waits; those of different namespaces take turns. Each is
    /// answered once it is whole, or with what there is of it once the embedder is
    /// down.
    pub(crate) fn ask(&self, parts: Vec<(Arc<Part>, Option<TraceContext>)>) {
        let mut state = self.state();
        for (part, trace) in parts {
            let whose = self.fingerprints.hash_one(&part.namespace);
            let span = self.spans.part(&part, trace);
            let first = state.requests.admit(Arc::clone(&part), trace, span);
            for (text, chunk) in (first..).map(TextId).zip(&part.chunks) {
                let fingerprint = self.fingerprints.hash_one(&chunk.text);
                state.judge.add(text, chunk.text.len(), fingerprint, whose);
            }
        }
        self.relieve(&mut state);
        drop(state);
        self.work.notify_one();
    }

    /// Takes what became of parts since this was called.
    pub(crate) fn take_answers(&self) -> Vec<Answer> {
        let answers = self.state().requests.take_answers();
        for answer in &answers {
            let seconds = answer.began.elapsed().as_secs_f64();
            self.metrics.batch_embed.record(seconds);
            spans::embedded(answer);
        }
        answers
    }

    /// Lets go of parts that nobody waits for any more: no answer of them comes.
    pub(crate) fn withdraw(&self, parts: &[Arc<Part>]) {
        let mut state = self.state();
        for text in state.requests.forget(parts) {
            state.judge.remove(text);
        }
        state.end_unawaited();
        drop(state);
        self.work.notify_one();
    }

    /// Answers all parts with what there is of them, also those of which something
    /// is at the embedder.
    pub(crate) fn give_back(&self, reason: &str) {
        let mut state = self.state();
        for name in state.requests.names() {
            state.give_back(name, reason);
        }
        state.end_unawaited();
        drop(state);
        self.work.notify_one();
        self.news.notify_one();
    }

    /// Returns how many texts more there may be here, so that there are enough for
    /// the calls under way and for one that is ready to follow.
    pub(crate) fn room(&self) -> usize {
        let state = self.state();
        let most = (state.concurrency.calls() + 1) * state.judge.size().texts;
        most.saturating_sub(state.judge.len())
    }

    /// Shows how the embedder is now.
    pub(crate) fn show(&self) {
        let shown = &self.metrics.embedder;
        let condition = self.health.condition();
        shown.up.set(f64::from(condition.is_fit()));
        shown.resting.set(f64::from(condition.is_resting()));
        let state = self.state();
        shown.under_way.set(state.under_way.len() as f64);
        shown.allowed.set(state.concurrency.calls() as f64);
        shown.texts_allowed.set(state.judge.size().texts as f64);
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
            let work = pin!(self.work.notified());
            self.rested().await;
            if let Some(call) = self.begin_call() {
                return call;
            }
            work.await;
        }
    }

    /// Returns what is to be sent now, if anything is.
    fn begin_call(&self) -> Option<Call> {
        let mut state = self.state();
        if state.judge.is_empty() && self.health.rested() {
            // Nothing is left that would show it.
            self.news.notify_one();
        }
        state.judge.next_call()
    }

    /// Waits until the embedder is not left alone any more.
    async fn rested(&self) {
        let rest = self.state().rests.until();
        if let Some(until) = rest {
            sleep_until(until).await;
        }
    }

    /// Gives back what an embedder that is down has not begun.
    fn relieve(&self, state: &mut State) {
        if let Down(reason) = self.health.condition().state {
            state.give_back_idle(&reason);
        }
        self.news.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
