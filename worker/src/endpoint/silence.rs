//! How long a call is waited for while the embedder answers others.
//!
//! A load balancer's dead backend takes a call and never answers it, and `embed_timeout` has to be
//! as long as the slowest of calls takes. So a call that is silent for far longer than any was, for
//! its size, is given up once a probe passes that was sent after that. An embedder that computes one
//! call after the other answers such a probe after the call, and so is never taken for a silent one.
//! One that is slow and computes several at a time may be: it is given more time with each call of
//! the same texts, until `embed_timeout` alone holds.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use weir_embedder::judge::CallSize;

use super::{Endpoint, settle::PROBE_INTERVAL};

/// How many times as long as the slowest call one may be silent, and how much
/// longer than that.
const TIMES_THE_SLOWEST: u32 = 4;
const GRACE: Duration = Duration::from_secs(10);
/// How many times as long as its texts were given in the call before.
const TIMES_THE_LAST: u32 = 4;
/// Calls after which those before as many are forgotten: one that waited for a
/// model to be loaded says nothing of those that come much later.
const GENERATION: u32 = 128;

/// How long calls took that were answered.
#[derive(Debug, Clone, Copy)]
struct Seen {
    calls: u32,
    slowest: Duration,
    /// Most texts of one and most tokens of one.
    largest: CallSize,
}

impl Seen {
    const NOTHING: Self = Self {
        calls: 0,
        slowest: Duration::ZERO,
        largest: CallSize {
            texts: 1,
            tokens: 1,
        },
    };

    fn and(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            slowest: self.slowest.max(other.slowest),
            largest: CallSize {
                texts: self.largest.texts.max(other.largest.texts),
                tokens: self.largest.tokens.max(other.largest.tokens),
            },
        }
    }
}

/// How long a call may be silent, by how long others took.
#[derive(Debug)]
pub(super) struct Patience {
    latest: Seen,
    before: Seen,
}

impl Patience {
    /// Nothing is known.
    pub(super) const fn new() -> Self {
        Self {
            latest: Seen::NOTHING,
            before: Seen::NOTHING,
        }
    }

    /// Takes in how long a call of this size took to be answered.
    pub(super) fn answered(&mut self, size: CallSize, took: Duration) {
        if self.latest.calls == GENERATION {
            self.before = std::mem::replace(&mut self.latest, Seen::NOTHING);
        }
        self.latest = self.latest.and(Seen {
            calls: 1,
            slowest: took,
            largest: size,
        });
    }

    /// Returns how long a call of this size may be silent, of whose texts one was
    /// in so many calls before; `None` if nothing is known.
    pub(super) fn with(&self, size: CallSize, retries: u32) -> Option<Duration> {
        let seen = self.latest.and(self.before);
        if seen.calls == 0 {
            return None;
        }
        let texts = size.texts as f64 / seen.largest.texts as f64;
        let tokens = size.tokens as f64 / seen.largest.tokens as f64;
        let expected = seen.slowest.as_secs_f64() * texts.max(tokens).max(1.0);
        let expected = Duration::try_from_secs_f64(expected).ok()?;
        let first = expected
            .saturating_mul(TIMES_THE_SLOWEST)
            .saturating_add(GRACE);
        Some(first.saturating_mul(TIMES_THE_LAST.saturating_pow(retries)))
    }
}

impl Endpoint {
    /// Returns once the embedder has passed a probe that was sent when a call had
    /// been silent for so long.
    pub(super) async fn answers_others(&self, patience: Option<Duration>) {
        // The call itself has an end.
        sleep(patience.unwrap_or(Duration::MAX)).await;
        let size = CallSize {
            texts: 1,
            tokens: 1,
        };
        // Twice as long each time: a queue of probes that nobody waits for is no help to an
        // embedder that has much to do.
        let mut wait = PROBE_INTERVAL;
        loop {
            // While it is down it is probed anyway.
            self.health.fit().await;
            // However many calls are silent, they take turns.
            let mut next = self.next_beside.lock().await;
            sleep_until(*next).await;
            self.rested().await;
            self.rates.wait(size).await;
            *next = Instant::now() + PROBE_INTERVAL;
            let probe = self.bounded(self.embedder.probe(0));
            if let Ok(Ok(_)) = timeout(wait, probe).await {
                return;
            }
            wait = wait.saturating_mul(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn size(texts: usize, tokens: usize) -> CallSize {
        CallSize { texts, tokens }
    }

    /// In seconds.
    fn given(patience: &Patience, size: CallSize, retries: u32) -> u64 {
        patience.with(size, retries).unwrap().as_secs()
    }

    #[test]
    fn a_call_has_four_times_as_long_as_the_slowest_and_more_if_it_is_larger() {
        let mut patience = Patience::new();
        assert_eq!(patience.with(size(1, 1), 0), None, "nothing is known");
        patience.answered(size(4, 100), Duration::from_secs(5));
        patience.answered(size(2, 200), Duration::from_secs(1));
        for (size, expected) in [
            (size(1, 1), 30),
            (size(4, 200), 30),
            (size(8, 200), 50),
            (size(4, 600), 70),
        ] {
            assert_eq!(given(&patience, size, 0), expected, "{size:?}");
        }
    }

    #[test]
    fn the_same_texts_have_four_times_as_long_with_each_call() {
        let mut patience = Patience::new();
        patience.answered(size(1, 1), Duration::from_secs(1));
        let each = [0, 1, 2].map(|retries| given(&patience, size(1, 1), retries));
        assert_eq!(each, [14, 56, 224]);
        let longest = patience.with(size(usize::MAX, usize::MAX), u32::MAX);
        assert!(longest.is_none_or(|it| it == Duration::MAX), "{longest:?}");
    }

    #[test]
    fn what_was_slow_long_ago_is_forgotten() {
        let mut patience = Patience::new();
        patience.answered(size(1, 1), Duration::from_mins(1));
        for _ in 0..GENERATION {
            patience.answered(size(1, 1), Duration::from_secs(1));
            assert_eq!(given(&patience, size(1, 1), 0), 250);
        }
        for _ in 0..GENERATION {
            patience.answered(size(1, 1), Duration::from_secs(1));
        }
        assert_eq!(given(&patience, size(1, 1), 0), 14);
    }
}
