//! How many calls an embedder is given at a time: learned from how it answers.
//! Pure: the time is an argument.
//!
//! One more call at a time is tried for a while and kept if more tokens pass;
//! when the embedder says that it is overloaded, or takes too long, half as many
//! are made (additive increase, multiplicative decrease).

use std::time::Duration;

/// One more call at a time is kept if this much more passes with it.
const WORTH_IT: f64 = 1.05;
/// Most rounds between two trials of one more call.
const LONGEST_HOLD: u32 = 64;

/// The learned limit of one embedder.
#[derive(Debug, Clone)]
pub struct Concurrency {
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

impl Concurrency {
    /// Begins with two at a time.
    pub fn new(most_calls: usize) -> Self {
        let most_calls = most_calls.max(1);
        Self {
            most_calls,
            calls: most_calls.min(2),
            step: Step::Hold(1),
            hold: 1,
            round: None,
        }
    }

    /// Never goes beyond what the embedder says that it takes.
    pub fn keep_within(&mut self, said: Option<usize>) {
        let said = said.map_or(usize::MAX, |calls| calls.max(1));
        self.most_calls = self.most_calls.min(said);
        self.calls = self.calls.min(self.most_calls);
    }

    /// How many calls may be under way.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// A call with so many tokens went well and ended at `now`, by any clock.
    /// `saturated`: as many calls as allowed were under way.
    pub fn went_well(&mut self, tokens: usize, now: Duration, saturated: bool) {
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
        round.tokens += tokens;
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

    /// The embedder says that it has too much to do, or took too long.
    pub fn overloaded(&mut self) {
        self.calls = (self.calls / 2).max(1);
        self.step = Step::Hold(self.hold);
        self.round = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs whole calls through an embedder that lets `parallel` of them pass at
    /// the same time, a second each, and returns how many were made at a time.
    fn run(
        concurrency: &mut Concurrency,
        parallel: usize,
        calls: usize,
        saturated: bool,
    ) -> Vec<usize> {
        let mut now = 0.0;
        (0..calls)
            .map(|_| {
                now += 1.0 / concurrency.calls().min(parallel) as f64;
                concurrency.went_well(8_000, Duration::from_secs_f64(now), saturated);
                concurrency.calls()
            })
            .collect()
    }

    #[test]
    fn calls_at_a_time_rise_while_more_passes_with_them() {
        let mut concurrency = Concurrency::new(8);
        assert_eq!(concurrency.calls(), 2);
        run(&mut concurrency, 100, 400, true);
        assert_eq!(concurrency.calls(), 8);
        concurrency.overloaded();
        assert_eq!(concurrency.calls(), 4);
    }

    #[test]
    fn calls_that_bring_nothing_are_not_kept() {
        for (parallel, expected) in [(1, 2.0), (4, 4.0)] {
            let mut concurrency = Concurrency::new(8);
            let seen = run(&mut concurrency, parallel, 3_000, true);
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
        let mut concurrency = Concurrency::new(8);
        run(&mut concurrency, 100, 400, false);
        assert_eq!(concurrency.calls(), 2);
    }

    proptest! {
        #[test]
        fn limits_stay_within_their_bounds(
            events in prop::collection::vec((0..3_u8, 1..9_000_usize, 1..5_000_u64), 0..200), most in 0..9_usize
        ) {
            let mut concurrency = Concurrency::new(most);
            for (event, tokens, ms) in events {
                match event {
                    0 => concurrency.overloaded(),
                    1 => concurrency.keep_within((ms % 2 == 0).then_some(tokens % 7)),
                    _ => concurrency.went_well(tokens, Duration::from_millis(ms), ms % 2 == 0),
                }
                prop_assert!((1..=most.max(1)).contains(&concurrency.calls()));
            }
        }
    }
}
