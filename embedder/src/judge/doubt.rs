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
/// Calls within which a search comes to its end.
const SEARCH: u32 = 16;
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
    /// The embedder wanted a rest after it.
    Rest,
    /// It failed a probe after it.
    Down,
    /// It came after another of which that is true: it tells nothing new.
    Echo,
    /// There was a vector, which cannot be used.
    Flaw,
}

/// Failures by their kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Failures {
    singles: u32,
    of_some: u32,
    rests: u32,
    downs: u32,
    flaws: u32,
}

impl Failures {
    pub(super) fn add(&mut self, kind: Kind) {
        match kind {
            Kind::Single => self.singles += 1,
            Kind::OneOfSome => self.of_some += 1,
            Kind::Rest => self.rests += 1,
            Kind::Down => self.downs += 1,
            Kind::Echo => {}
            Kind::Flaw => self.flaws += 1,
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            singles: self.singles + other.singles,
            of_some: self.of_some + other.of_some,
            rests: self.rests + other.rests,
            downs: self.downs + other.downs,
            flaws: self.flaws + other.flaws,
        }
    }

    /// Those of calls.
    pub(super) fn of_calls(self) -> Self {
        Self { flaws: 0, ..self }
    }

    /// Those of vectors, each of which came with a call that passed.
    pub(super) fn of_vectors(self) -> Self {
        Self {
            singles: self.flaws,
            ..Self::default()
        }
    }

    /// No more of these than of the other, those that prove most.
    pub(super) fn at_most(self, other: Self) -> Self {
        let most = other.of_calls().total();
        let singles = self.singles.min(most);
        let of_some = self.of_some.min(most - singles);
        let rests = self.rests.min(most - singles - of_some);
        let downs = self.downs.min(most - singles - of_some - rests);
        Self {
            singles,
            of_some,
            rests,
            downs,
            flaws: self.flaws.min(other.flaws),
        }
    }

    /// Returns whether one of them was not the embedder's condition.
    pub(super) fn has_single(self) -> bool {
        self.singles + self.flaws > 0
    }

    pub(super) fn total(self) -> u32 {
        self.singles + self.together() + self.flaws
    }

    /// Those that were not each between two calls that passed.
    fn together(self) -> u32 {
        self.of_some + self.rests + self.downs
    }

    /// Those that were each between two calls that passed.
    pub(super) fn singles(self) -> u32 {
        self.singles
    }

    fn halved(self) -> Self {
        Self {
            singles: self.singles / 2,
            of_some: self.of_some / 2,
            rests: self.rests / 2,
            downs: self.downs / 2,
            flaws: self.flaws / 2,
        }
    }
}

/// Counts of calls that passed, and of failures that meant nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Doubt {
    passes: u32,
    /// Of the passes, the latest of calls that others may have been beside.
    recent: u32,
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
        let mut is_known = false;
        for (at, kind) in self.open.extract_if(.., |(at, _)| *at < began) {
            let condition = matches!(kind, Kind::Rest | Kind::Down);
            let is_echo = condition && std::mem::replace(&mut is_known, true);
            self.over
                .push_back((at, if is_echo { Kind::Echo } else { kind }));
        }
        let surplus = self.over.len().saturating_sub(REMEMBERED);
        self.over.drain(..surplus);
    }

    /// Counts a call that passed and that others may have been beside.
    pub(super) fn passed_beside(&mut self, began: u64) {
        self.recent = (self.recent + 1).min(SEARCH);
        self.passed(1, began);
    }

    /// Takes in that all searches are given up: had one of the latest calls failed
    /// for nothing, that would not have been noticed.
    pub(super) fn lost(&mut self) {
        self.passes = self.passes.saturating_sub(std::mem::take(&mut self.recent));
    }

    /// Counts a call that failed at that moment.
    pub(super) fn failed(&mut self, began: u64, at: u64) {
        let mut kind = Kind::Single;
        for (_, other) in self.open.iter_mut().filter(|(at, _)| *at < began) {
            if *other == Kind::Single {
                *other = Kind::OneOfSome;
            }
            kind = *other;
        }
        if self.open.len() < REMEMBERED {
            self.open.push((at, kind));
        }
    }

    /// Takes in that the embedder is left alone, as what failed may have been its
    /// condition.
    pub(super) fn rested(&mut self, kind: Kind) {
        for (_, open) in &mut self.open {
            if kind != Kind::OneOfSome || *open == Kind::Single {
                *open = kind;
            }
        }
    }

    /// Returns what the failure at that moment was.
    pub(super) fn kind(&self, at: u64) -> Kind {
        let known = self.over.iter().find(|(other, _)| *other == at);
        known.map_or(Kind::Rest, |(_, kind)| *kind)
    }

    /// Takes in that these failures are contradicted by what passed later.
    pub(super) fn contradicted(&mut self, failures: Failures) {
        self.whims = self.whims.and(failures);
    }

    /// The same, for the failure of a call at that moment, which counts as so
    /// many.
    pub(super) fn contradicted_at(&mut self, at: u64, count: usize) {
        if let Some((_, kind)) = self.over.iter().find(|(other, _)| *other == at) {
            (0..count).for_each(|_| self.whims.add(*kind));
        }
    }

    /// Takes the single failure of a text for a whim, or no longer.
    pub(super) fn presume(&mut self, presumed: &mut bool, is_whim: bool) {
        let singles = &mut self.whims.singles;
        match (std::mem::replace(presumed, is_whim), is_whim) {
            (false, true) => *singles += 1,
            (true, false) => *singles = singles.saturating_sub(1),
            _ => {}
        }
    }

    /// Takes in that these failures are proved to be a text's own. Where it does
    /// not take the embedder down, something else did after those of them.
    pub(super) fn explained(&mut self, failures: Failures) {
        if failures.total() > 2 * failures.downs {
            self.whims.of_some += failures.downs;
        }
    }

    /// Takes in that something failed which is known to be good, after a call
    /// that passed.
    pub(super) fn good_failed(&mut self) {
        if self.passes > 0 {
            self.whims.add(Kind::OneOfSome);
        }
    }

    /// Returns whether the embedder often fails for nothing.
    pub(super) fn is_flaky(&self) -> bool {
        let whims = f64::from(self.whims.total());
        whims > 1.0 && whims > FLAKY * (PRIOR_CALLS + whims + f64::from(self.passes))
    }

    /// Returns whether so many failures of a text are too many for an innocent
    /// one. `presumed` where one of its own is taken for a whim.
    pub(super) fn proves(&self, failures: Failures, presumed: bool) -> bool {
        let fewest = if failures.together() > 0 {
            DEATHS
        } else {
            FEWEST
        };
        failures.total() >= fewest && self.chance(failures, presumed) < ACCEPTED
    }

    /// Returns how likely it is that the next failures of an innocent text are
    /// these, before anything passes.
    ///
    /// Each kind is taken for independent with a rate that is not known, of which
    /// what was seen leaves a beta distribution.
    fn chance(&self, failures: Failures, presumed: bool) -> f64 {
        let (mut chance, mut total) = (1.0, 0.0);
        // One of some may be of either kind: whims of it count as both.
        let singles = self.whims.singles.saturating_sub(u32::from(presumed));
        let kinds = [
            (singles + self.whims.of_some, failures.singles),
            (self.whims.together(), failures.together()),
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
mod tests;
