//! What happens to a job whose try did not end well.

use std::time::Duration;

use super::parking::ParkingPolicy;

/// How failed tries are spaced and when they end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries after which a job fails; at least 1.
    pub max_attempts: i16,
    /// The longest wait after the first charged try; doubles with each.
    pub backoff_base: Duration,
    /// No wait is longer than this.
    pub backoff_cap: Duration,
    /// What follows when the tries are used up.
    pub parking: ParkingPolicy,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            backoff_base: Duration::from_secs(5),
            backoff_cap: Duration::from_mins(15),
            parking: ParkingPolicy::default(),
        }
    }
}

/// What becomes of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Queued again.
    Retry {
        /// Tries charged by now.
        attempt: i16,
        /// How long from now it may not be claimed.
        delay: Duration,
    },
    /// Failed: its attempts are used up.
    Fail {
        /// Tries charged by now.
        attempt: i16,
    },
}

impl RetryPolicy {
    /// Charges one more try to a job that had `attempt` charged so far.
    /// `random`, in 0..1, spreads the delay over 0 to its bound ("full
    /// jitter"), so that jobs that failed together do not return together.
    /// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
    pub fn charge(&self, attempt: i16, random: f64) -> Decision {
        let attempt = attempt.saturating_add(1);
        if attempt >= self.max_attempts {
            return Decision::Fail { attempt };
        }
        Decision::Retry {
            attempt,
            delay: self.delay(attempt, random),
        }
    }

    /// How long to wait after `attempt` charged tries: `random`, in 0..1, of
    /// the longest wait.
    pub fn delay(&self, attempt: i16, random: f64) -> Duration {
        self.backoff(attempt).mul_f64(random.clamp(0.0, 1.0))
    }

    /// The longest wait after `attempt` charged tries: `backoff_base` doubled
    /// for each after the first, at most `backoff_cap`.
    pub fn backoff(&self, attempt: i16) -> Duration {
        let doublings = u32::from(attempt.max(1).unsigned_abs() - 1);
        2_u32
            .checked_pow(doublings)
            .and_then(|factor| self.backoff_base.checked_mul(factor))
            .map_or(self.backoff_cap, |wait| wait.min(self.backoff_cap))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let waits: Vec<u64> = (1..=9).map(|n| policy.backoff(n).as_secs()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 640, 900]);
    }

    #[test]
    fn the_last_attempt_fails_the_job() {
        let policy = RetryPolicy::default();
        assert!(matches!(
            policy.charge(3, 0.5),
            Decision::Retry { attempt: 4, delay } if delay == Duration::from_secs(20)
        ));
        assert_eq!(policy.charge(4, 0.5), Decision::Fail { attempt: 5 });
    }

    proptest! {
        #[test]
        fn a_delay_stays_within_its_bound(attempt in 0..i16::MAX, random in 0.0..1.0_f64, cap in 1..100_000_u64) {
            let policy = RetryPolicy {
                max_attempts: i16::MAX,
                backoff_base: Duration::from_secs(5),
                backoff_cap: Duration::from_secs(cap),
                parking: ParkingPolicy::default(),
            };
            match policy.charge(attempt, random) {
                Decision::Retry { attempt: charged, delay } => {
                    prop_assert_eq!(charged, attempt + 1);
                    prop_assert!(delay <= policy.backoff(charged));
                    prop_assert!(delay <= policy.backoff_cap);
                }
                Decision::Fail { attempt: charged } => prop_assert_eq!(charged, i16::MAX),
            }
        }
    }
}
