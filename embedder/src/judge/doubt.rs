//! How far an embedder's failures can be trusted.
//!
//! A server that fails one call in three at random fails an innocent text
//! alone twice in a row one time in nine. So failures that meant nothing are
//! counted, and the more there are, the more often a text has to fail before
//! anything is concluded from it.
//!
//! A failure meant nothing when what failed passed later. Those after which the
//! embedder was down, or wanted a rest, are the beginning of an outage, or of a
//! quota that was used up, and counted apart: they are an accident of a text
//! that was just sent, and prove less against one that fails in the same way.

use std::collections::VecDeque;

/// The chance of convicting an innocent text that is accepted.
const ACCEPTED: f64 = 1e-8;
/// Failures that are asked for at least, and at most.
const FEWEST: u32 = 2;
const MOST: u32 = 64;
/// Calls after which what was counted loses half of its weight.
const WINDOW: u32 = 1_000;
/// Calls that a new embedder is taken to have answered, half a one of which
/// failed for nothing.
const PRIOR: f64 = 8.0;
/// Failures for nothing there are for one that is noticed.
const UNNOTICED: f64 = 3.0;
/// From this rate on a call that failed is made again before it is searched.
const FLAKY: f64 = 0.1;
/// From this rate on one failure more is asked for.
const UNSTEADY: f64 = 0.04;
/// Failures remembered that may turn out to have meant nothing.
const REMEMBERED: usize = 256;

/// What a failure was, as far as what came before and after it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One of a call, or the first of some calls that had their own reasons.
    Single,
    /// The first of a time in which the embedder was down, or wanted a rest.
    Onset,
}

/// Counts of calls that passed, and of failures that meant nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doubt {
    passes: u32,
    whims: u32,
    onsets: u32,
    /// When calls failed since something passed that began after them.
    open: Vec<u64>,
    /// Whether the embedder has been left alone since.
    rested: bool,
    /// Failures that are over, with what they were.
    over: VecDeque<(u64, Kind)>,
}

impl Doubt {
    /// Counts so much that passed in a call that began at that moment.
    pub(crate) fn passed(&mut self, count: usize, began: u64) {
        self.passes += u32::try_from(count).unwrap_or(WINDOW);
        while self.passes + self.whims + self.onsets >= WINDOW {
            self.passes /= 2;
            self.whims /= 2;
            self.onsets /= 2;
        }
        self.proved(began);
    }

    /// Takes in that the embedder worked at that moment.
    pub(crate) fn proved(&mut self, began: u64) {
        let mut over = self.open.extract_if(.., |at| *at < began);
        let first = over.next();
        over.for_each(drop);
        let Some(first) = first else { return };
        let kind = if std::mem::take(&mut self.rested) {
            Kind::Onset
        } else {
            Kind::Single
        };
        if self.over.len() >= REMEMBERED {
            self.over.pop_front();
        }
        self.over.push_back((first, kind));
    }

    /// Counts a call that failed at that moment.
    pub(crate) fn failed(&mut self, at: u64) {
        if self.open.len() < REMEMBERED && self.open.last() != Some(&at) {
            self.open.push(at);
        }
    }

    /// Takes in that the embedder is left alone, as it is down or wants a rest.
    pub(crate) fn rested(&mut self) {
        self.rested = true;
    }

    /// Returns whether the embedder was left alone after the failure at that
    /// moment, which may have been the beginning of something else.
    pub(crate) fn is_onset(&self, at: u64) -> bool {
        self.over.contains(&(at, Kind::Onset))
    }

    /// Takes in that the failure at that moment is contradicted by what passed
    /// later.
    pub(crate) fn contradicted(&mut self, at: u64) {
        let Some(place) = self.over.iter().position(|(other, _)| *other == at) else {
            return;
        };
        match self.over.remove(place) {
            Some((_, Kind::Single)) => self.whims += 1,
            Some((_, Kind::Onset)) => self.onsets += 1,
            None => {}
        }
    }

    /// Estimates how often a call fails for nothing, if that was noticed so often.
    fn rate(&self, noticed: u32) -> f64 {
        let whims = 0.5 + UNNOTICED * f64::from(noticed);
        (whims / (PRIOR + whims + f64::from(self.passes))).min(0.85)
    }

    /// Returns whether the embedder often fails for nothing.
    pub(crate) fn is_flaky(&self) -> bool {
        self.whims > 1 && self.rate(self.whims) > FLAKY
    }

    /// Returns how often a text must fail alone before anything is concluded.
    pub(crate) fn failures_needed(&self) -> u32 {
        self.needed(self.whims)
    }

    /// The same, for a text after some of whose failures the embedder was left
    /// alone.
    pub(crate) fn onsets_needed(&self) -> u32 {
        self.needed(self.whims + self.onsets)
    }

    fn needed(&self, noticed: u32) -> u32 {
        let needed = ACCEPTED.ln() / self.rate(noticed).ln();
        // Where whims are no rarity one more, for the rate is an estimate.
        let is_unsteady = self.whims > 1 && self.rate(self.whims) > UNSTEADY;
        let needed = needed.ceil() as u32 + u32::from(is_unsteady);
        needed.clamp(FEWEST, MOST)
    }
}
