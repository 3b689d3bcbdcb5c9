//! How much an embedder is given at a time: learned from how it answers. Pure:
//! the time a call took is an argument.
//!
//! Calls at the same time follow AIMD: one more after a round of calls that
//! went well, fewer when the embedder slows down or says that it is overloaded.
//! <https://www.rfc-editor.org/rfc/rfc5681> The size of a call is halved when it
//! took too long or was too large, and grows back in small steps, so that one
//! stall does not make every later call small.

use std::time::Duration;

use crate::embedder;

/// What one call may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallSize {
    /// Texts; at least 1.
    pub(crate) texts: usize,
    /// Estimated tokens of these; one text may have more.
    pub(crate) tokens: usize,
}

/// Calls of full size that must go well before the size grows a step.
const GROW_AFTER: u32 = 8;
/// Steps from nothing to the ceiling.
const STEPS: usize = 16;
/// A call may take this much longer for each token than the quickest did: with
/// two calls at a time an embedder that computes one after the other takes
/// twice as long, and that is fine, for it never waits for the next.
const SLOW: f64 = 2.5;
/// How fast the memory of the quickest call fades, for each call.
const FADE: f64 = 1.02;

/// The learned limits of one embedder.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    ceiling: CallSize,
    size: CallSize,
    /// Calls of full size that went well since the size last changed.
    went_well: u32,
    most_calls: usize,
    calls: f64,
    /// Seconds for each token of the quickest call, fading.
    quickest: Option<f64>,
}

impl Limits {
    /// Begins with whole calls, two at a time.
    pub(crate) fn new(ceiling: CallSize, most_calls: usize) -> Self {
        let most_calls = most_calls.max(1);
        Self {
            ceiling,
            size: ceiling,
            went_well: 0,
            most_calls,
            calls: most_calls.min(2) as f64,
            quickest: None,
        }
    }

    /// Never goes beyond what the embedder says that it takes.
    pub(crate) fn keep_within(&mut self, said: &embedder::Limits) {
        let least = |ours: usize, said: Option<usize>| said.map_or(ours, |said| ours.min(said.max(1)));
        self.ceiling.texts = least(self.ceiling.texts, said.batch_size);
        self.ceiling.tokens = least(self.ceiling.tokens, said.batch_tokens);
        self.most_calls = least(self.most_calls, said.concurrent_calls);
        self.size.texts = self.size.texts.min(self.ceiling.texts);
        self.size.tokens = self.size.tokens.min(self.ceiling.tokens);
    }

    /// What the next call may carry.
    pub(crate) fn size(&self) -> CallSize {
        self.size
    }

    /// How many calls may be under way.
    pub(crate) fn calls(&self) -> usize {
        (self.calls as usize).clamp(1, self.most_calls)
    }

    /// A call went well. `saturated`: as many calls as allowed were under way.
    pub(crate) fn went_well(&mut self, call: CallSize, took: Duration, saturated: bool) {
        let each = took.as_secs_f64() / call.tokens.max(1) as f64;
        let quickest = self.quickest.map_or(each, |quickest| (quickest * FADE).min(each));
        self.quickest = Some(quickest);
        if each > quickest * SLOW && self.is_whole(call) {
            self.calls = (self.calls * 0.75).max(1.0);
        } else if saturated {
            self.calls = (self.calls + 1.0 / self.calls).min(self.most_calls as f64);
        }
        if self.is_whole(call) && self.size != self.ceiling {
            self.went_well += 1;
            if self.went_well >= GROW_AFTER {
                self.went_well = 0;
                self.grow();
            }
        }
    }

    /// A call took too long.
    pub(crate) fn timed_out(&mut self, call: CallSize) {
        self.calls = (self.calls / 2.0).max(1.0);
        self.shrink(call);
    }

    /// A call was too large.
    pub(crate) fn too_many(&mut self, call: CallSize) {
        self.shrink(call);
    }

    /// The embedder says that it has too much to do.
    pub(crate) fn overloaded(&mut self) {
        self.calls = (self.calls / 2.0).max(1.0);
    }

    /// Whether a call was as large as it may be, so that it says something of
    /// the size. Small calls spend their time on other things than tokens.
    fn is_whole(&self, call: CallSize) -> bool {
        2 * call.texts > self.size.texts || 2 * call.tokens > self.size.tokens
    }

    fn shrink(&mut self, call: CallSize) {
        self.went_well = 0;
        self.size.texts = (call.texts.min(self.size.texts) / 2).max(1);
        self.size.tokens = (call.tokens.min(self.size.tokens) / 2).max(1);
    }

    fn grow(&mut self) {
        let step = |ceiling: usize| ceiling.div_ceil(STEPS);
        self.size.texts = (self.size.texts + step(self.ceiling.texts)).min(self.ceiling.texts);
        self.size.tokens = (self.size.tokens + step(self.ceiling.tokens)).min(self.ceiling.tokens);
    }
}

/// Estimates the tokens of a text: a token of a BERT-like or GPT-like model is
/// about four bytes of English; every text has at least one.
pub(crate) fn estimate_tokens(bytes: usize) -> usize {
    bytes.div_ceil(4).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CEILING: CallSize = CallSize {
        texts: 32,
        tokens: 8_000,
    };
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn calls_at_a_time_rise_while_the_embedder_keeps_up() {
        let mut limits = Limits::new(CEILING, 8);
        assert_eq!(limits.calls(), 2);
        for _ in 0..60 {
            limits.went_well(CEILING, SECOND, true);
        }
        assert_eq!(limits.calls(), 8);
        limits.overloaded();
        assert_eq!(limits.calls(), 4);
    }

    #[test]
    fn nothing_is_learned_of_calls_that_did_not_use_what_was_allowed() {
        let mut limits = Limits::new(CEILING, 8);
        for _ in 0..60 {
            limits.went_well(CEILING, SECOND, false);
        }
        assert_eq!(limits.calls(), 2);
    }

    /// One after the other: with n calls under way each takes n times as long.
    #[test]
    fn an_embedder_that_computes_one_call_at_a_time_has_two_at_most() {
        let mut limits = Limits::new(CEILING, 8);
        limits.went_well(CEILING, SECOND, false);
        let mut seen = Vec::new();
        for _ in 0..200 {
            let calls = limits.calls();
            limits.went_well(CEILING, SECOND * calls as u32, true);
            seen.push(limits.calls());
        }
        assert!(seen[20..].iter().all(|calls| (1..=3).contains(calls)), "{seen:?}");
        let mean = seen[20..].iter().sum::<usize>() as f64 / 180.0;
        assert!((1.5..2.6).contains(&mean), "{mean}");
    }

    #[test]
    fn a_stall_halves_the_size_and_it_grows_back() {
        let mut limits = Limits::new(CEILING, 2);
        limits.timed_out(CEILING);
        assert_eq!(limits.size(), CallSize { texts: 16, tokens: 4_000 });
        limits.timed_out(limits.size());
        assert_eq!(limits.size().texts, 8);
        let mut calls = 0;
        while limits.size() != CEILING {
            limits.went_well(limits.size(), SECOND, false);
            calls += 1;
            assert!(calls < 200);
        }
        assert!(calls > 50, "slowly: {calls}");
    }

    #[test]
    fn a_small_call_says_nothing_of_the_size() {
        let mut limits = Limits::new(CEILING, 2);
        limits.too_many(CEILING);
        let before = limits.size();
        for _ in 0..100 {
            limits.went_well(CallSize { texts: 1, tokens: 10 }, SECOND, false);
        }
        assert_eq!(limits.size(), before);
    }

    proptest! {
        #[test]
        fn limits_stay_within_their_bounds(
            events in prop::collection::vec((0..4_u8, 1..64_usize, 1..9_000_usize, 1..5_000_u64), 0..200),
            most in 0..9_usize
        ) {
            let mut limits = Limits::new(CEILING, most);
            for (event, texts, tokens, ms) in events {
                let call = CallSize { texts, tokens };
                match event {
                    0 => limits.timed_out(call),
                    1 => limits.too_many(call),
                    2 => limits.overloaded(),
                    _ => limits.went_well(call, Duration::from_millis(ms), ms % 2 == 0),
                }
                prop_assert!((1..=most.max(1)).contains(&limits.calls()));
                let size = limits.size();
                prop_assert!((1..=CEILING.texts).contains(&size.texts));
                prop_assert!((1..=CEILING.tokens).contains(&size.tokens));
            }
        }
    }
}
