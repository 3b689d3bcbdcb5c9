//! How long a failed job's chunks rest before they are queued again.

use std::time::Duration;

/// How failed jobs are parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParkingPolicy {
    /// The wait after the first failure; doubles with each that follows.
    pub base: Duration,
    /// No wait is longer than this.
    pub cap: Duration,
}

impl Default for ParkingPolicy {
    fn default() -> Self {
        Self {
            base: Duration::from_mins(30),
            cap: Duration::from_hours(6),
        }
    }
}

impl ParkingPolicy {
    /// The wait of a job that failed for good after `parkings` others failed
    /// over the same chunks: `base` doubled for each of these, at most `cap`.
    pub fn delay(&self, parkings: i16) -> Duration {
        2_u32
            .checked_pow(u32::from(parkings.max(0).unsigned_abs()))
            .and_then(|factor| self.base.checked_mul(factor))
            .map_or(self.cap, |wait| wait.min(self.cap))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let policy = ParkingPolicy::default();
        let minutes: Vec<u64> = (0..6).map(|n| policy.delay(n).as_secs() / 60).collect();
        assert_eq!(minutes, [30, 60, 120, 240, 360, 360]);
        assert_eq!(policy.delay(i16::MAX), policy.cap);
    }

    proptest! {
        #[test]
        fn a_later_wait_is_never_shorter(parkings in 0..i16::MAX, base in 1..10_000_u64, more in 0..100_000_u64) {
            let policy = ParkingPolicy {
                base: Duration::from_secs(base),
                cap: Duration::from_secs(base + more),
            };
            let (this, next) = (policy.delay(parkings), policy.delay(parkings + 1));
            prop_assert!(policy.base <= this && this <= next && next <= policy.cap);
        }
    }
}
