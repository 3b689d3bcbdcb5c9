//! How fast something goes. Pure: the time is an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::output::brief;

/// The rate is that of this last stretch of time.
const WINDOW: Duration = Duration::from_secs(20);
/// Most moments kept of that stretch; the coordinator sends at most five
/// states a second.
const MAX_SAMPLES: usize = 200;

/// When how much was done, oldest first.
#[derive(Debug, Default)]
pub(super) struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// Takes how much is done by now. Where that is less than before, the
    /// measuring begins anew.
    pub(super) fn sample(&mut self, done: u64, now: Instant) {
        if self.samples.back().is_some_and(|(_, last)| *last > done) {
            self.forget();
        }
        self.samples.push_back((now, done));
        let outside = |(time, _): &(Instant, u64)| now - *time >= WINDOW;
        while self.samples.len() > MAX_SAMPLES || self.samples.get(1).is_some_and(outside) {
            self.samples.pop_front();
        }
    }

    /// Begins anew.
    pub(super) fn forget(&mut self) {
        self.samples.clear();
    }

    /// Chunks a second, and how long `left` of them take at that; nothing until
    /// something was done while we watched.
    pub(super) fn figures(&self, left: u64, now: Instant) -> Vec<String> {
        let Some(rate) = self.a_second(now) else {
            return Vec::new();
        };
        let mut parts = vec![if rate < 10.0 {
            format!("{rate:.1} chunks/s")
        } else {
            format!("{rate:.0} chunks/s")
        }];
        if let Ok(left) = Duration::try_from_secs_f64((left as f64 / rate).ceil()) {
            parts.push(format!("{} left", brief(left)));
        }
        parts
    }

    fn a_second(&self, now: Instant) -> Option<f64> {
        let ((start, first), (_, last)) = (self.samples.front()?, self.samples.back()?);
        let seconds = now.saturating_duration_since(*start).as_secs_f64();
        (last > first && seconds > 0.0).then(|| (last - first) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_what_was_done_while_watching() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        rate.sample(40, start);
        assert!(rate.figures(60, start).is_empty());
        let now = start + Duration::from_secs(4);
        rate.sample(60, now);
        assert_eq!(rate.figures(40, now), ["5.0 chunks/s", "8 s left"]);
        rate.sample(0, now);
        assert!(rate.figures(100, now).is_empty());
    }

    #[test]
    fn the_rate_forgets_and_its_memory_is_bounded() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        for second in 0..60 {
            let done = if second < 20 { 0 } else { second };
            rate.sample(done, start + Duration::from_secs(second));
        }
        let now = start + Duration::from_secs(59);
        assert_eq!(rate.figures(1, now), ["1.0 chunks/s", "1 s left"]);
        for _ in 0..1_000 {
            rate.sample(60, now);
        }
        assert!(rate.samples.len() <= MAX_SAMPLES);
    }
}
