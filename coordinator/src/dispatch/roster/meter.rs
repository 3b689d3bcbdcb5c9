//! How much was done in a second, over the last few.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// What a rate is told of.
const WINDOW: Duration = Duration::from_secs(10);

/// Readings closer together than this count as one.
const APART: Duration = Duration::from_millis(500);

/// Counts chunks, and tells the rate when it is read.
#[derive(Debug)]
pub(super) struct Meter {
    total: u64,
    /// The total at readings of the last [`WINDOW`], and at the one before it.
    readings: VecDeque<(Instant, u64)>,
}

impl Meter {
    /// A meter that has counted nothing before `start`.
    pub(super) fn new(start: Instant) -> Self {
        Self {
            total: 0,
            readings: VecDeque::from([(start, 0)]),
        }
    }

    pub(super) fn add(&mut self, chunks: usize) {
        self.total = self.total.saturating_add(chunks as u64);
    }

    /// All that was counted.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.readings.len()
    }

    /// Reads it: chunks in a second since the first reading of the last
    /// [`WINDOW`], or the one before that.
    pub(super) fn read(&mut self, now: Instant) -> f64 {
        let ago = |at: Instant| now.saturating_duration_since(at);
        while self.readings.len() > 1 && ago(self.readings[1].0) >= WINDOW {
            self.readings.pop_front();
        }
        // What was counted in a moment says nothing of a second.
        let rate = self.readings.front().map_or(0.0, |(at, total)| {
            let seconds = ago(*at).max(Duration::from_secs(1)).as_secs_f64();
            self.total.saturating_sub(*total) as f64 / seconds
        });
        if self.readings.back().is_none_or(|(at, _)| ago(*at) >= APART) {
            self.readings.push_back((now, self.total));
        }
        rate
    }
}
