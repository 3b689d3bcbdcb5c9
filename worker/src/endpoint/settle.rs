//! What follows from how a call ended.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;
use tracing::info;

use super::{
    Ended, Endpoint, FIRST_REST, LONGEST_REST, MOST_TIMEOUTS, State,
    blame::Fault,
    limits::CallSize,
    queue::{Accused, Call, Text, size_of},
    request::Failure,
};
use crate::embedder::EmbedError;

/// A call that got no vectors.
struct Failed {
    /// What is still wanted of it.
    call: Call,
    /// All that was sent.
    size: CallSize,
    /// Several requests were in it.
    shared: bool,
    /// The text that the embedder blames.
    named: Option<Text>,
}

impl Endpoint {
    pub(super) fn settle(&self, ended: Ended) {
        let mut state = self.state();
        if state.under_way.remove(&ended.id).is_none() {
            // It was given up a moment before it ended.
            return;
        }
        match ended.answer {
            Ok(ref vectors) => {
                self.governor.worked();
                state.embedded(&ended, vectors, self.began.elapsed());
            }
            Err(error) => {
                let named = error.culprit().and_then(|at| ended.call.texts.get(at));
                let failed = Failed {
                    size: size_of(&ended.call.texts),
                    shared: ended.call.is_shared(),
                    named: named.cloned(),
                    // What was withdrawn meanwhile is not sent again.
                    call: state.wanted_of(ended.call),
                };
                self.failed(&mut state, failed, error);
                if let Some(reason) = ended.down {
                    // Only what broke is charged, and only once.
                    self.down(&mut state, &reason, None);
                }
            }
        }
        state.fail_idle();
        drop(state);
        self.work.notify_one();
    }

    fn failed(&self, state: &mut State, failed: Failed, error: EmbedError) {
        let Failed {
            mut call,
            size,
            shared,
            named,
        } = failed;
        let alone = size.texts == 1;
        let first_try = call.rest.is_empty() && call.accused.is_none();
        state.queue.put_back(std::mem::take(&mut call.rest));
        let too_long = |reason| Fault {
            reason,
            floor: Some(self.settings.shortest),
            alone,
        };
        match error {
            EmbedError::Input { reason, .. } => {
                let fault = Fault {
                    reason,
                    floor: None,
                    alone,
                };
                state.blame(call, named, &fault);
            }
            EmbedError::TooLong { reason, .. } => {
                let named = named.or_else(|| call.longest(first_try));
                state.blame(call, named, &too_long(reason));
            }
            EmbedError::TooMany { reason } => {
                state.limits.too_many(size);
                if alone {
                    state.blame(call, None, &too_long(reason));
                } else {
                    state.queue.put_back(call.acquit());
                }
            }
            EmbedError::Timeout { reason } => {
                state.limits.timed_out(size);
                state.timed_out(call.acquit(), alone, &reason);
            }
            EmbedError::Transient { reason } => {
                let texts = call.acquit();
                if shared {
                    state.queue.part(&texts);
                } else if let Some(text) = texts.first() {
                    state.fail_job(text.request, &reason);
                }
            }
            EmbedError::Overloaded {
                reason,
                retry_after,
            } => {
                state.queue.put_back(call.acquit());
                self.overloaded(state, &reason, retry_after);
            }
            EmbedError::Embedder {
                reason,
                retry_after,
            } => self.down(state, &reason, retry_after),
        }
    }

    /// Leaves the embedder alone for a while and sends the same again; one that
    /// needs too long is down.
    fn overloaded(&self, state: &mut State, reason: &str, retry_after: Option<Duration>) {
        // One that says for how long counts calls by the minute, and not how
        // many there are at a time.
        if retry_after.is_none() {
            state.limits.overloaded();
        }
        let doubled = FIRST_REST * 2_u32.saturating_pow(state.overloads.min(16));
        let rest = retry_after.unwrap_or(doubled);
        state.overloads += 1;
        if rest > LONGEST_REST {
            return self.down(state, reason, retry_after);
        }
        let until = Instant::now() + rest;
        self.metrics.pauses.overloaded.increment(1);
        let later = self.rest.send_if_modified(|old| {
            let later = old.is_none_or(|old| old < until);
            if later {
                *old = Some(until);
            }
            later
        });
        if later && state.overloads == 1 {
            info!(
                reason,
                rest_ms = rest.as_millis() as u64,
                "The embedder is overloaded; it is left alone for a while."
            );
        }
    }

    /// The embedder is at fault: no job is charged, and all go back, once what
    /// the embedder still has of them is answered.
    fn down(&self, state: &mut State, reason: &str, retry_after: Option<Duration>) {
        if self.governor.failed(reason, retry_after) {
            self.metrics.pauses.down.increment(1);
        }
        state.overloads = 0;
        state.outage = Some(reason.to_owned());
    }
}

impl State {
    fn embedded(&mut self, ended: &Ended, vectors: &[Vec<f32>], now: Duration) {
        let texts = &ended.call.texts;
        self.limits.went_well(size_of(texts), now, ended.saturated);
        self.overloads = 0;
        self.were_short(texts);
        for (text, vector) in texts.iter().zip(vectors) {
            self.requests.embedded(text, vector);
        }
        if let Some(Accused { text, rejection }) = &ended.call.accused
            && let Some(reason) = rejection
        {
            self.requests.rejected(text, reason);
        }
        let rest = self.wanted(ended.call.rest.clone());
        self.suspect(rest);
    }

    fn timed_out(&mut self, mut texts: Vec<Text>, alone: bool, reason: &str) {
        for text in &mut texts {
            text.timeouts += 1;
            if alone || text.timeouts >= MOST_TIMEOUTS {
                self.fail_job(text.request, reason);
            }
        }
        let texts = self.wanted(texts);
        self.queue.put_back(texts);
    }

    /// Fails the batches that are to fail and of which nothing is under way.
    fn fail_idle(&mut self) {
        if self.outage.is_none() && self.failing.is_empty() {
            return;
        }
        let busy: HashSet<u64> = self
            .under_way
            .values()
            .flat_map(|under_way| &under_way.call.texts)
            .map(|text| text.request)
            .collect();
        for request in self.requests.ids() {
            if busy.contains(&request) {
                continue;
            }
            let failure = match (self.failing.remove(&request), &self.outage) {
                (Some(reason), _) => Failure::Job { reason },
                (None, Some(reason)) => Failure::Embedder {
                    reason: reason.clone(),
                },
                (None, None) => continue,
            };
            self.requests.fail(request, failure);
            self.queue.withdraw(request);
        }
        let requests = &self.requests;
        self.failing
            .retain(|request, _| requests.contains(*request));
    }

    /// Sends nothing more of a batch, which then fails. The first reason stands.
    fn fail_job(&mut self, request: u64, reason: &str) {
        self.failing
            .entry(request)
            .or_insert_with(|| reason.to_owned());
        self.queue.withdraw(request);
    }

    /// Those that somebody still waits for.
    fn wanted(&self, mut texts: Vec<Text>) -> Vec<Text> {
        texts.retain(|text| self.is_wanted(text));
        texts
    }

    /// The same of a call.
    fn wanted_of(&self, mut call: Call) -> Call {
        call.retain(|text| self.is_wanted(text));
        call
    }

    fn is_wanted(&self, text: &Text) -> bool {
        self.requests.contains(text.request) && !self.failing.contains_key(&text.request)
    }
}
