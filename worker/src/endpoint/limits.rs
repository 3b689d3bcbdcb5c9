//! How much an embedder is given at a time: learned from how it answers. Pure:
//! the time is an argument.
//!
//! One more call at a time is tried for a while and kept if more tokens pass;
//! when the embedder says that it is overloaded, or takes too long, half as many
//! are made (additive increase, multiplicative decrease). The size of a call is
//! halved when it took too long or was too large, and grows back in small steps,
//! so that one stall does not make every later call small.

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
/// One more call at a time is kept if this much more passes with it.
const WORTH_IT: f64 = 1.05;
/// Most rounds between two trials of one more call.
const LONGEST_HOLD: u32 = 64;

/// The learned limits of one embedder.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    ceiling: CallSize,
    size: CallSize,
    /// Calls of full size that went well since the size last changed.
    went_well: u32,
    most_calls: usize,
    calls: usize,
    step: Step,
    /// Rounds to hold after the next trial that was not worth it.
    hold: u32,
    /// The present round of calls: when it began, and how much passed since.
    round: Option<Round>,
}

/// What the present round is for.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// As many calls as before, for so many rounds.
    Hold(u32),
    /// One call more than what let `before` tokens pass in a second.
    Try { before: f64 },
}

#[derive(Debug, Clone, Copy)]
struct Round {
    began: Duration,
    calls: usize,
    tokens: usize,
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
            calls: most_calls.min(2),
            step: Step::Hold(1),
            hold: 1,
            round: None,
        }
    }

    /// Never goes beyond what the embedder says that it takes.
    pub(crate) fn keep_within(&mut self, said: &embedder::Limits) {
        let least =
            |ours: usize, said: Option<usize>| said.map_or(ours, |said| ours.min(said.max(1)));
        self.ceiling.texts = least(self.ceiling.texts, said.batch_size);
        self.ceiling.tokens = least(self.ceiling.tokens, said.batch_tokens);
        self.most_calls = least(self.most_calls, said.concurrent_calls);
        self.calls = self.calls.min(self.most_calls);
        self.size.texts = self.size.texts.min(self.ceiling.texts);
        self.size.tokens = self.size.tokens.min(self.ceiling.tokens);
    }

    /// What the next call may carry.
    pub(crate) fn size(&self) -> CallSize {
        self.size
    }

    /// How many calls may be under way.
    pub(crate) fn calls(&self) -> usize {
        self.calls
    }

    /// A call went well and ended at `now`, by any clock. `saturated`: as many
    /// calls as allowed were under way.
    pub(crate) fn went_well(&mut self, call: CallSize, now: Duration, saturated: bool) {
        self.measure(call, now, saturated);
        if self.is_whole(call) && self.size != self.ceiling {
            self.went_well += 1;
            if self.went_well >= GROW_AFTER {
                self.went_well = 0;
                self.grow();
            }
        }
    }

    fn measure(&mut self, call: CallSize, now: Duration, saturated: bool) {
        // A round in which not all calls were used says nothing of their number.
        let Some(round) = self.round.as_mut().filter(|_| saturated) else {
            self.round = saturated.then_some(Round {
                began: now,
                calls: 0,
                tokens: 0,
            });
            return;
        };
        round.calls += 1;
        round.tokens += call.tokens;
        let seconds = now.saturating_sub(round.began).as_secs_f64();
        if round.calls < 4 * self.calls || seconds <= 0.0 {
            return;
        }
        let rate = round.tokens as f64 / seconds;
        self.round = None;
        self.step = match self.step {
            Step::Hold(rounds) if rounds > 1 => Step::Hold(rounds - 1),
            Step::Hold(_) if self.calls < self.most_calls => {
                self.calls += 1;
                Step::Try { before: rate }
            }
            Step::Hold(_) => Step::Hold(1),
            Step::Try { before } if rate > before * WORTH_IT => {
                self.hold = 1;
                Step::Hold(1)
            }
            Step::Try { .. } => {
                self.calls -= 1;
                self.hold = (2 * self.hold).min(LONGEST_HOLD);
                Step::Hold(self.hold)
            }
        };
    }

    /// A call took too long.
    pub(crate) fn timed_out(&mut self, call: CallSize) {
        self.overloaded();
        self.shrink(call);
    }

    /// A call was too large.
    pub(crate) fn too_many(&mut self, call: CallSize) {
        self.shrink(call);
    }

    /// The embedder says that it has too much to do.
    pub(crate) fn overloaded(&mut self) {
        self.calls = (self.calls / 2).max(1);
        self.step = Step::Hold(self.hold);
        self.round = None;
    }

    /// Whether a call was about as large as it may be, so that it says something
    /// of the size.
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
    /// Runs whole calls through an embedder that lets `parallel` of them pass at
    /// the same time, a second each, and returns how many were made at a time.
    fn run(limits: &mut Limits, parallel: usize, calls: usize, saturated: bool) -> Vec<usize> {
        let mut now = 0.0;
        (0..calls)
            .map(|_| {
                now += 1.0 / limits.calls().min(parallel) as f64;
                limits.went_well(CEILING, Duration::from_secs_f64(now), saturated);
                limits.calls()
            })
            .collect()
    }

    #[test]
    fn calls_at_a_time_rise_while_more_passes_with_them() {
        let mut limits = Limits::new(CEILING, 8);
        assert_eq!(limits.calls(), 2);
        run(&mut limits, 100, 400, true);
        assert_eq!(limits.calls(), 8);
        limits.overloaded();
        assert_eq!(limits.calls(), 4);
    }

    #[test]
    fn calls_that_bring_nothing_are_not_kept() {
        for (parallel, expected) in [(1, 2.0), (4, 4.0)] {
            let mut limits = Limits::new(CEILING, 8);
            let seen = run(&mut limits, parallel, 3_000, true);
            let seen = &seen[500..];
            let mean = seen.iter().sum::<usize>() as f64 / seen.len() as f64;
            assert!(
                (expected..expected + 0.2).contains(&mean),
                "{parallel}: {mean}"
            );
        }
    }

    #[test]
    fn nothing_is_learned_of_calls_that_did_not_use_what_was_allowed() {
        let mut limits = Limits::new(CEILING, 8);
        run(&mut limits, 100, 400, false);
        assert_eq!(limits.calls(), 2);
    }

    #[test]
    fn a_stall_halves_the_size_and_it_grows_back() {
        let mut limits = Limits::new(CEILING, 2);
        limits.timed_out(CEILING);
        assert_eq!(
            limits.size(),
            CallSize {
                texts: 16,
                tokens: 4_000
            }
        );
        limits.timed_out(limits.size());
        assert_eq!(limits.size().texts, 8);
        let mut calls = 0;
        while limits.size() != CEILING {
            limits.went_well(limits.size(), Duration::ZERO, false);
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
            limits.went_well(
                CallSize {
                    texts: 1,
                    tokens: 10,
                },
                Duration::ZERO,
                false,
            );
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
