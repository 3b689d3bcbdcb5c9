//! How far an embedder's failures can be trusted.
//!
//! A server that fails one call in three at random fails an innocent text
//! alone twice in a row one time in nine. So failures that are contradicted
//! later are counted, and the more there are, the more often a text has to fail
//! before it is rejected.

/// The chance of convicting an innocent text that is accepted.
const ACCEPTED: f64 = 1e-6;
/// Failures that are asked for at least, and at most.
const FEWEST: u32 = 2;
const MOST: u32 = 64;
/// Calls after which what was counted loses half of its weight.
const WINDOW: u32 = 1_000;
/// Calls that a new embedder is taken to have answered, one of which failed
/// for nothing.
const PRIOR: f64 = 8.0;
/// Failures for nothing there are for one that is noticed.
const UNNOTICED: f64 = 12.0;
/// From this rate on a call that failed is made again before it is searched.
const FLAKY: f64 = 0.15;

/// Counts of calls, and of failures that meant nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doubt {
    calls: u32,
    contradicted: u32,
}

impl Doubt {
    /// Counts a call.
    pub(crate) fn called(&mut self) {
        self.calls += 1;
        if self.calls >= WINDOW {
            self.calls /= 2;
            self.contradicted /= 2;
        }
    }

    /// Counts a failure that is contradicted by what passed later.
    pub(crate) fn contradicted(&mut self) {
        self.contradicted += 1;
    }

    /// Estimates how often a call fails for nothing.
    fn rate(&self) -> f64 {
        let failures = 1.0 + UNNOTICED * f64::from(self.contradicted);
        (failures / (PRIOR + f64::from(self.calls))).min(0.85)
    }

    /// Returns whether the embedder often fails for nothing.
    pub(crate) fn is_flaky(&self) -> bool {
        self.contradicted > 0 && self.rate() > FLAKY
    }

    /// Returns how often a text must fail alone before anything is concluded.
    pub(crate) fn failures_needed(&self) -> u32 {
        let needed = ACCEPTED.ln() / self.rate().ln();
        (needed.ceil() as u32).clamp(FEWEST, MOST)
    }
}
