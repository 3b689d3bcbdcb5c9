//! A pool of workers that is scaled by the work there is for it.

use std::ops::RangeInclusive;

/// Chunks that there may be one worker for.
pub const CHUNKS_PER_WORKER: RangeInclusive<i64> = 1..=1_000_000;

/// Chunks that may be pending without a worker.
pub const ACTIVATION_CHUNKS: RangeInclusive<i64> = 0..=1_000_000;

/// How many workers a pool should have. Whoever scales it divides the pending
/// chunks by `chunks_per_worker` and rounds up; that there are none at all is
/// decided here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Pending chunks that there is one worker for.
    pub chunks_per_worker: i64,
    /// While no more than this many are pending, there is no worker.
    pub activation_chunks: i64,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            chunks_per_worker: 2_000,
            activation_chunks: 0,
        }
    }
}

impl Pool {
    /// Whether the pool should have any workers.
    pub fn is_active(&self, pending_chunks: i64) -> bool {
        pending_chunks > self.activation_chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_sleeps_until_more_is_pending_than_its_activation() {
        let pool = Pool::default();
        assert!(!pool.is_active(0));
        assert!(pool.is_active(1));
        let patient = Pool {
            activation_chunks: 10,
            ..pool
        };
        assert!(!patient.is_active(10));
        assert!(patient.is_active(11));
    }
}
