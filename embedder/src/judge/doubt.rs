//! How far an embedder's failures can be trusted.
//!
//! A server that fails one call in three at random fails an innocent text
//! alone twice in a row one time in nine. So calls that passed are counted, and
//! failures that meant nothing, and from both follows how likely it is that so
//! many failures in a row mean nothing, too: the fewer calls were seen, and the
//! more of them failed for nothing, the more often a text has to fail before
//! anything is concluded from it.
//!
//! A failure meant nothing when what failed passed later. Those between two
//! calls that passed are told apart from the others, which came with more of
//! their kind: an outage, a quota that was used up, the death of a server. An
//! embedder may be steady and its quota small; then it proves much if a text
//! fails while calls pass right before and after it, and little otherwise.

use std::collections::VecDeque;

/// The chance of convicting an innocent text that is accepted.
const ACCEPTED: f64 = 1e-9;
/// Calls after which what was counted loses half of its weight.
const WINDOW: u32 = 2_000;
/// What is taken for seen of a new embedder: so many calls, half a one of which
/// failed for nothing.
const PRIOR_CALLS: f64 = 64.0;
const PRIOR_FAILURES: f64 = 0.5;
/// From this rate on a call that failed is made again before it is searched.
const FLAKY: f64 = 0.05;
/// Failures remembered until it is known what they were.
const REMEMBERED: usize = 256;
/// How often a text must fail at least, and how often if its failures were not
/// each between calls that passed.
const FEWEST: u32 = 2;
pub(super) const DEATHS: u32 = 4;

/// What a failure was, as far as what came before and after it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Between two calls that passed.
    Single,
    /// One of several, each of which may have had its own reason.
    OneOfSome,
    /// The embedder was down after it, or left alone.
    Onset,
}

/// Failures by their kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Failures {
    singles: u32,
    of_some: u32,
    onsets: u32,
}

impl Failures {
    pub(super) fn add(&mut self, kind: Kind) {
        match kind {
            Kind::Single => self.singles += 1,
            Kind::OneOfSome => self.of_some += 1,
            Kind::Onset => self.onsets += 1,
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            singles: self.singles + other.singles,
            of_some: self.of_some + other.of_some,
            onsets: self.onsets + other.onsets,
        }
    }

    pub(super) fn total(self) -> u32 {
        self.singles + self.of_some + self.onsets
    }

    fn halved(self) -> Self {
        Self {
            singles: self.singles / 2,
            of_some: self.of_some / 2,
            onsets: self.onsets / 2,
        }
    }
}

/// Counts of calls that passed, and of failures that meant nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Doubt {
    passes: u32,
    whims: Failures,
    /// Failures since something passed that began after them.
    open: Vec<(u64, Kind)>,
    /// Failures that are over.
    over: VecDeque<(u64, Kind)>,
}

impl Doubt {
    /// Counts so much that passed in a call that began at that moment.
    pub(super) fn passed(&mut self, count: usize, began: u64) {
        self.passes += u32::try_from(count).unwrap_or(WINDOW);
        while self.passes + self.whims.total() >= WINDOW {
            self.passes /= 2;
            self.whims = self.whims.halved();
        }
        self.over
            .extend(self.open.extract_if(.., |(at, _)| *at < began));
        let surplus = self.over.len().saturating_sub(REMEMBERED);
        self.over.drain(..surplus);
    }

    /// Counts a call that failed at that moment.
    pub(super) fn failed(&mut self, began: u64, at: u64) {
        let mut kind = Kind::Single;
        for (_, other) in self.open.iter_mut().filter(|(at, _)| *at < began) {
            if *other == Kind::Single {
                *other = Kind::OneOfSome;
            }
            kind = Kind::OneOfSome;
        }
        if self.open.len() < REMEMBERED {
            self.open.push((at, kind));
        }
    }

    /// Takes in that the embedder is left alone, as it is down or wants a rest.
    pub(super) fn rested(&mut self) {
        for (_, kind) in &mut self.open {
            *kind = Kind::Onset;
        }
    }

    /// Returns what the failure at that moment was.
    pub(super) fn kind(&self, at: u64) -> Kind {
        let known = self.over.iter().find(|(other, _)| *other == at);
        known.map_or(Kind::Onset, |(_, kind)| *kind)
    }

    /// Takes in that these failures are contradicted by what passed later.
    pub(super) fn contradicted(&mut self, failures: Failures) {
        self.whims = self.whims.and(failures);
    }

    /// The same, for the failure of a call at that moment.
    pub(super) fn contradicted_at(&mut self, at: u64) {
        if let Some((_, kind)) = self.over.iter().find(|(other, _)| *other == at) {
            self.whims.add(*kind);
        }
    }

    /// Takes in that something failed which is known to be good, after a call
    /// that passed.
    pub(super) fn good_failed(&mut self) {
        if self.passes > 0 {
            self.whims.add(Kind::Onset);
        }
    }

    /// Returns whether the embedder often fails for nothing.
    pub(super) fn is_flaky(&self) -> bool {
        let whims = f64::from(self.whims.total());
        whims > 1.0 && whims > FLAKY * (PRIOR_CALLS + whims + f64::from(self.passes))
    }

    /// Returns whether so many failures of a text are too many for an innocent
    /// one.
    pub(super) fn proves(&self, failures: Failures) -> bool {
        let fewest = if failures.singles < failures.total() {
            DEATHS
        } else {
            FEWEST
        };
        failures.total() >= fewest && self.chance(failures) < ACCEPTED
    }

    /// Returns how likely it is that the next failures of an innocent text are
    /// these, before anything passes.
    ///
    /// Each kind is taken for independent with a rate that is not known, of which
    /// what was seen leaves a beta distribution.
    fn chance(&self, failures: Failures) -> f64 {
        let (mut chance, mut total) = (1.0, 0.0);
        // One of some may be of either kind: whims of it count as both.
        let Failures {
            singles,
            of_some,
            onsets,
        } = self.whims;
        let kinds = [
            (singles + of_some, failures.singles),
            (of_some + onsets, failures.of_some + failures.onsets),
        ];
        for (whims, count) in kinds {
            let whims = PRIOR_FAILURES + f64::from(whims);
            let calls = PRIOR_CALLS + whims + f64::from(self.passes);
            for more in (0..count).map(f64::from) {
                total += 1.0;
                // In any order.
                chance *= (whims + more) / (calls + more) * total / (more + 1.0);
            }
        }
        chance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(doubt: &Doubt, kind: Kind) -> u32 {
        let mut failures = Failures::default();
        while !doubt.proves(failures) {
            failures.add(kind);
        }
        failures.total()
    }

    fn seen(passes: usize, whims: u32, kind: Kind) -> Doubt {
        let mut doubt = Doubt::default();
        doubt.passed(passes, 1);
        for _ in 0..whims {
            let mut failures = Failures::default();
            failures.add(kind);
            doubt.contradicted(failures);
        }
        doubt
    }

    #[test]
    fn the_more_calls_were_seen_the_fewer_failures_prove_something() {
        let needed = [0, 30, 100, 300, 1_500].map(|passes| {
            let doubt = seen(passes, 0, Kind::Single);
            needed(&doubt, Kind::Single)
        });
        assert_eq!(needed, [7, 6, 5, 4, 3]);
    }

    #[test]
    fn what_fails_for_nothing_has_to_fail_more_often() {
        // Of calls of which one in eight fails, ten in a row do once in a thousand million times.
        let once = |whims| needed(&seen(8 * whims as usize, whims, Kind::Single), Kind::Single);
        assert_eq!([0, 1, 10, 100].map(once), [7, 8, 9, 10]);
    }

    #[test]
    fn a_failure_between_calls_that_pass_proves_more_where_failures_come_together() {
        let doubt = seen(500, 100, Kind::Onset);
        assert_eq!(needed(&doubt, Kind::Single), 4);
        assert!(needed(&doubt, Kind::Onset) > 10);
        // One of some may have been on its own.
        let doubt = seen(500, 100, Kind::OneOfSome);
        assert!(needed(&doubt, Kind::Single) > 10);
    }

    #[test]
    fn what_came_before_and_after_tells_what_a_failure_was() {
        let mut doubt = Doubt::default();
        doubt.failed(1, 2);
        doubt.passed(1, 3);
        doubt.failed(5, 6);
        doubt.failed(7, 8);
        doubt.passed(1, 9);
        doubt.failed(11, 12);
        doubt.rested();
        doubt.passed(1, 13);
        let kinds = [2, 6, 8, 12].map(|at| doubt.kind(at));
        let some = Kind::OneOfSome;
        assert_eq!(kinds, [Kind::Single, some, some, Kind::Onset]);
    }
}
