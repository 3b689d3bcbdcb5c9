//! What follows from how a call ended.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};
use weir_embedder::judge::{Answer, CallId, CallSize, Verdict};

use super::{
    Endpoint,
    call::{Answered, Ended},
    state::State,
};
use weir_embedder::{EmbedError, Embedding};

/// An embedder that needs more patience than this before anything passes is
/// down: the jobs go back to the queue meanwhile. Less than a lease, and long
/// enough for a quota that is counted by the minute.
const LONGEST_REST: Duration = Duration::from_secs(90);
/// The rest after the first time that an embedder wants one and does not say
/// for how long; doubles with each time after it.
const FIRST_REST: Duration = Duration::from_millis(500);
/// How long after a probe that failed, or is not answered, the next one follows.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// However long an embedder that is down asks to be left alone, it is probed
/// by then.
const LONGEST_PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// How long the embedder is left alone.
#[derive(Debug, Default)]
pub(super) struct Rests {
    until: Option<Instant>,
    /// Rests since something passed, and how long they were together.
    count: u32,
    total: Duration,
}

impl Rests {
    /// Until when nothing is sent, if it is still to come.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until.filter(|until| *until > Instant::now())
    }

    /// Forgets how many there were: something passed.
    fn passed(&mut self) {
        (self.count, self.total) = (0, Duration::ZERO);
    }

    /// Lengthens the rest to what the embedder asked for, or doubles it.
    /// Returns the new one, if it is longer.
    fn rest(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let now = Instant::now();
        let from = self.until();
        let rest = match (asked, from) {
            (Some(asked), _) => asked,
            // It was sent before the rest that has begun.
            (None, Some(_)) => return None,
            (None, None) => FIRST_REST * 2_u32.saturating_pow(self.count.min(16)),
        };
        let (from, until) = (from.unwrap_or(now), now + rest);
        let longer = until.checked_duration_since(from)?;
        self.count += 1;
        self.total += longer;
        self.until = Some(until);
        Some(rest)
    }
}

impl Endpoint {
    pub(super) fn settle(&self, ended: Ended) {
        let Ended {
            id,
            size,
            saturated,
            answer,
        } = ended;
        let mut state = self.state();
        if state.under_way.remove(&id).is_none() {
            // It was given up a moment before it ended.
            return;
        }
        match answer {
            Some(answer) => {
                let retry_after = answer.as_ref().err().and_then(EmbedError::retry_after);
                let (answer, vectors) = self.learn(&mut state, answer, size, saturated);
                self.judge(&mut state, id, answer, &vectors, retry_after);
            }
            None => state.judge.cancelled(id),
        }
        self.relieve(&mut state);
        drop(state);
        self.work.notify_one();
    }

    /// Does what follows from an answer.
    fn judge(
        &self,
        state: &mut State,
        id: CallId,
        answer: Answer,
        vectors: &[Embedding],
        retry_after: Option<Duration>,
    ) {
        let failure = match &answer {
            Answer::Failed { reason, .. } => reason.clone(),
            Answer::Vectors(_) => String::new(),
        };
        for verdict in state.judge.answered(id, answer) {
            match verdict {
                Verdict::Embedded { text, place, bytes } => {
                    if let Some(Ok(vector)) = vectors.get(place) {
                        state.requests.embedded(text, bytes, vector);
                    }
                }
                Verdict::Rejected { text, reason } => state.requests.rejected(text, &reason),
                Verdict::Fit => self.fit(state),
                Verdict::Down { reason } => self.down(state, &reason, retry_after),
                Verdict::Rest => self.rest(state, &failure, retry_after),
            }
        }
    }

    /// Takes what it can from an answer, and puts it for the judge.
    fn learn(
        &self,
        state: &mut State,
        answer: Result<Answered, EmbedError>,
        size: CallSize,
        saturated: bool,
    ) -> (Answer, Vec<Embedding>) {
        match answer {
            Ok(Answered::Probe(probe)) => {
                state.said = Some(probe);
                state.rests.passed();
                (Answer::Vectors(vec![None]), Vec::new())
            }
            Ok(Answered::Vectors(vectors)) => {
                let flaws: Vec<_> = vectors
                    .iter()
                    .map(|it| it.as_ref().err().cloned())
                    .collect();
                if flaws.iter().any(Option::is_none) {
                    state.rests.passed();
                    self.health.rested();
                    let now = self.began.elapsed();
                    state.concurrency.went_well(size.tokens, now, saturated);
                }
                (Answer::Vectors(flaws), vectors)
            }
            Err(error) => {
                if error.asks_for_less() {
                    state.concurrency.overloaded();
                }
                let (hint, reason) = (error.hint(), error.to_string());
                (Answer::Failed { hint, reason }, Vec::new())
            }
        }
    }

    /// The embedder embeds again.
    fn fit(&self, state: &mut State) {
        let Some(probe) = state.said else { return };
        let said = probe.limits;
        state.judge.keep_within(CallSize {
            texts: said.batch_size.unwrap_or(usize::MAX),
            tokens: said.batch_tokens.unwrap_or(usize::MAX),
        });
        state.concurrency.keep_within(said.concurrent_calls);
        state.rests.until = None;
        self.health.recovered(probe);
    }

    /// Leaves the embedder alone for a while. One that needs too long is down.
    fn rest(&self, state: &mut State, reason: &str, retry_after: Option<Duration>) {
        let Some(rest) = state.rests.rest(retry_after) else {
            return;
        };
        if state.rests.total > LONGEST_REST {
            state.judge.give_up();
            return self.down(state, reason, retry_after);
        }
        self.health.rests(reason);
        self.metrics.pauses.overloaded.increment(1);
        let rest_ms = rest.as_millis() as u64;
        if state.rests.count == 1 {
            info!(reason, rest_ms, "The embedder is left alone for a while.");
        } else {
            debug!(reason, rest_ms, "The embedder is left alone for longer.");
        }
    }

    /// The embedder embeds nothing. No job is charged, and all go back, once
    /// what the embedder still has of them is answered.
    fn down(&self, state: &mut State, reason: &str, retry_after: Option<Duration>) {
        let asked = retry_after.unwrap_or_default().min(LONGEST_PROBE_INTERVAL);
        state.rests = Rests {
            until: Some(Instant::now() + PROBE_INTERVAL.max(asked)),
            ..Rests::default()
        };
        if self.health.failed(reason) {
            self.metrics.pauses.down.increment(1);
        }
    }
}
