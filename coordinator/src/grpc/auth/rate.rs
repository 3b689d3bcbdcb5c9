//! How often a caller may call.

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use governor::{DefaultKeyedRateLimiter, Quota, clock::Clock as _};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// After so many calls, callers that have not called for long are forgotten.
const FORGET_EVERY: u32 = 4_096;

/// Whose calls are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A token, by its name.
    Token(String),
    /// Whoever calls from an address without one.
    Address(IpAddr),
}

/// A number of calls a second for each caller, all of which may come at once.
#[derive(Debug)]
pub(super) struct Rate {
    limiter: DefaultKeyedRateLimiter<Key>,
    calls: AtomicU32,
}

impl Rate {
    pub(super) fn new(per_second: NonZeroU32) -> Self {
        Self {
            limiter: DefaultKeyedRateLimiter::keyed(Quota::per_second(per_second)),
            calls: AtomicU32::new(0),
        }
    }

    /// Counts a call; `RESOURCE_EXHAUSTED`, with when to call again, where it
    /// is one too many.
    pub(super) fn count(&self, key: &Key) -> Result<(), Status> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        if calls.is_multiple_of(FORGET_EVERY) {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        self.limiter.check_key(key).map_err(|not_until| {
            let wait = not_until.wait_time_from(self.limiter.clock().now());
            too_many(wait)
        })
    }
}

fn too_many(wait: Duration) -> Status {
    Status::with_error_details(
        Code::ResourceExhausted,
        format!("too many calls; call again in {} ms", wait.as_millis() + 1),
        ErrorDetails::with_retry_info(Some(wait)),
    )
}

/// In how many whole seconds to call again, where a status says so.
pub(super) fn seconds(status: &Status) -> Option<u64> {
    let delay = status.get_details_retry_info()?.retry_delay?;
    Some(delay.as_secs() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_its_own_count_and_is_told_when_to_come_back() {
        let rate = Rate::new(NonZeroU32::MIN);
        let (one, other) = (
            Key::Token("one".to_owned()),
            Key::Address(IpAddr::from([127, 0, 0, 1])),
        );
        rate.count(&one).unwrap();
        let status = rate.count(&one).unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(seconds(&status), Some(1));
        rate.count(&other).unwrap();
    }
}
