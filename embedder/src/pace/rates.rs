//! The quotas of an embedder that is paid for, or shared: requests and tokens a
//! minute. Spread over the minute, so that it never has to say no.

use std::{num::NonZeroU32, time::Duration};

use crate::judge::CallSize;
use leaky_bucket::RateLimiter;

/// Parts of a minute that are given out at once.
const PARTS: u32 = 60;

/// Lets calls pass as fast as the quotas allow.
#[derive(Debug)]
pub struct Rates {
    requests: Option<RateLimiter>,
    tokens: Option<RateLimiter>,
}

impl Rates {
    /// `None` is no quota.
    pub fn new(requests: Option<NonZeroU32>, tokens: Option<NonZeroU32>) -> Self {
        Self {
            requests: requests.map(each_minute),
            tokens: tokens.map(each_minute),
        }
    }

    /// Waits until a call of this size may be made.
    pub async fn wait(&self, call: CallSize) {
        if let Some(requests) = &self.requests {
            requests.acquire_one().await;
        }
        if let Some(tokens) = &self.tokens {
            tokens.acquire(call.tokens).await;
        }
    }
}

/// A second's worth can be saved up; a call that needs more waits for it.
fn each_minute(quota: NonZeroU32) -> RateLimiter {
    let quota = quota.get();
    let (refill, interval) = match quota {
        ..PARTS => (1, Duration::from_mins(1) / quota),
        _ => (quota / PARTS, Duration::from_mins(1) / PARTS),
    };
    RateLimiter::builder()
        .initial(refill as usize)
        .max(refill as usize)
        .refill(refill as usize)
        .interval(interval)
        .build()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    async fn seconds_for(rates: &Rates, calls: usize, tokens: usize) -> u64 {
        let began = Instant::now();
        for _ in 0..calls {
            rates.wait(CallSize { texts: 1, tokens }).await;
        }
        began.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn requests_and_tokens_keep_to_their_quotas() {
        let quota = NonZeroU32::new;
        // One every other second, the first at once.
        let few = Rates::new(quota(30), None);
        assert_eq!(seconds_for(&few, 31, 1).await, 60);
        let many = Rates::new(quota(600), None);
        assert!((59..=60).contains(&seconds_for(&many, 600, 1).await));
        // A call that needs more tokens than a second has.
        let tokens = Rates::new(None, quota(6_000));
        assert!((58..=60).contains(&seconds_for(&tokens, 6, 1_000).await));
        let none = Rates::new(None, None);
        assert_eq!(seconds_for(&none, 10_000, 10_000).await, 0);
    }
}
