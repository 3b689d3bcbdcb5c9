//! What becomes of a job whose lease ended before it did.
//!
//! A worker that falls silent may have been killed by what it was given. So
//! the batch it fell silent over is suspected, and the next lease gets half of
//! it at a time: what is persisted is cleared, what silences a worker again is
//! halved again, until one text is alone. A worker that was killed for another
//! reason costs a few small batches.

use super::retry::{Decision, RetryPolicy};
use std::time::Duration;

/// A lease that ended before its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedLease {
    /// Tries charged to the job before this one.
    pub attempt: i16,
    /// Whether its worker was ever heard of after the claim.
    pub heard: bool,
    /// Whether it moved the job forward and was silent only then. A worker
    /// that was alive and stood still for the progress deadline did not.
    pub progressed: bool,
    /// Whether its worker stood still, alive: its embedder may be at fault, and
    /// no text is suspected of that.
    pub stalled: bool,
    /// Most chunks in its batches; `None` when it asked for none.
    pub batch_size: Option<i32>,
    /// Chunks suspected by now, less those that were persisted since.
    pub suspects: i32,
    /// Chunks of the job that are pending.
    pub pending: i32,
}

/// What becomes of its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Queued again.
    Again {
        /// Tries charged by now.
        attempt: i16,
        /// How long from now it may not be claimed.
        delay: Duration,
        /// Chunks suspected from now on.
        suspects: i32,
    },
    /// The next pending chunk is rejected, and the job goes on.
    Reject {
        /// Tries it took.
        attempt: i16,
    },
    /// The job fails.
    Fail {
        /// Tries charged by now.
        attempt: i16,
    },
}

impl Verdict {
    /// Whether the job, which had `before` tries charged, is charged with one
    /// more.
    pub fn is_charged(&self, before: i16) -> bool {
        match self {
            Self::Again { attempt, .. } => *attempt > before,
            Self::Reject { .. } | Self::Fail { .. } => true,
        }
    }
}

/// Chunks to hand out at a time while some are suspected.
pub const fn suspected_batch(suspects: i32) -> i32 {
    suspects / 2 + suspects % 2
}

impl EndedLease {
    /// Judges. `random`, in 0..1, spreads the delay.
    pub fn judge(&self, policy: &RetryPolicy, random: f64) -> Verdict {
        let Self {
            attempt, suspects, ..
        } = *self;
        if !self.heard {
            // The answer to the claim was lost on its way: nobody has tried.
            return Verdict::Again {
                attempt,
                delay: Duration::ZERO,
                suspects,
            };
        }
        let silent_over = self.silent_over();
        // Who was given nothing was silenced by nothing of it.
        let narrowed = if silent_over > 0 {
            silent_over
        } else {
            suspects
        };
        if self.progressed {
            let suspects = if suspects > 0 { narrowed } else { 0 };
            return Verdict::Again {
                attempt,
                delay: Duration::ZERO,
                suspects,
            };
        }
        match policy.charge(attempt, random) {
            Decision::Retry { attempt, delay } => Verdict::Again {
                attempt,
                delay,
                suspects: narrowed,
            },
            // The search for the text ends before the patience with its job.
            Decision::Fail { attempt } if silent_over > 1 => Verdict::Again {
                attempt,
                delay: policy.delay(attempt, random),
                suspects: silent_over,
            },
            Decision::Fail { attempt } if silent_over == 1 => Verdict::Reject { attempt },
            Decision::Fail { attempt } => Verdict::Fail { attempt },
        }
    }

    /// Chunks of the batch that the worker had when it fell silent; 0 when it
    /// did not.
    fn silent_over(&self) -> i32 {
        if self.stalled {
            return 0;
        }
        let batch = self.batch_size.unwrap_or(0).min(self.pending);
        if self.suspects > 0 {
            batch.min(suspected_batch(self.suspects))
        } else {
            batch
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: EndedLease = EndedLease {
        attempt: 0,
        heard: true,
        progressed: false,
        stalled: false,
        batch_size: Some(32),
        suspects: 0,
        pending: 100,
    };

    fn judge(lease: EndedLease) -> Verdict {
        lease.judge(&RetryPolicy::default(), 0.0)
    }

    fn again(attempt: i16, suspects: i32) -> Verdict {
        Verdict::Again {
            attempt,
            delay: Duration::ZERO,
            suspects,
        }
    }

    #[test]
    fn a_worker_that_was_never_heard_of_is_not_charged() {
        let lease = EndedLease {
            heard: false,
            attempt: 4,
            suspects: 8,
            ..LEASE
        };
        assert_eq!(judge(lease), again(4, 8));
    }

    #[test]
    fn progress_is_not_charged_and_raises_no_suspicion() {
        let lease = EndedLease {
            progressed: true,
            attempt: 2,
            ..LEASE
        };
        assert_eq!(judge(lease), again(2, 0));
    }

    #[test]
    fn silence_without_progress_suspects_the_batch_and_halves_it_from_then_on() {
        assert_eq!(judge(LEASE), again(1, 32));
        assert_eq!(
            judge(EndedLease {
                pending: 7,
                ..LEASE
            }),
            again(1, 7)
        );
        assert_eq!(
            judge(EndedLease {
                suspects: 32,
                ..LEASE
            }),
            again(1, 16)
        );
        assert_eq!(
            judge(EndedLease {
                suspects: 5,
                ..LEASE
            }),
            again(1, 3)
        );
        // The first half was persisted: it is the second that silenced the worker.
        assert_eq!(
            judge(EndedLease {
                suspects: 16,
                progressed: true,
                ..LEASE
            }),
            again(0, 8)
        );
    }

    #[test]
    fn a_text_alone_is_rejected_when_the_attempts_are_used_up_and_no_sooner() {
        let alone = EndedLease {
            suspects: 1,
            attempt: 3,
            ..LEASE
        };
        assert_eq!(judge(alone), again(4, 1));
        assert_eq!(
            judge(EndedLease {
                attempt: 4,
                ..alone
            }),
            Verdict::Reject { attempt: 5 }
        );
        let several = EndedLease {
            suspects: 8,
            attempt: 4,
            ..LEASE
        };
        assert_eq!(judge(several), again(5, 4));
        // Nothing was handed out: no text can be to blame.
        let idle = EndedLease {
            attempt: 4,
            batch_size: None,
            suspects: 1,
            ..LEASE
        };
        assert_eq!(judge(idle), Verdict::Fail { attempt: 5 });
        assert_eq!(judge(EndedLease { attempt: 0, ..idle }), again(1, 1));
    }

    #[test]
    fn a_worker_that_stands_still_alive_gets_no_text_suspected_or_rejected() {
        let stalled = EndedLease {
            stalled: true,
            ..LEASE
        };
        assert_eq!(judge(stalled), again(1, 0));
        for attempt in 0..5 {
            let alone = EndedLease {
                attempt,
                suspects: 1,
                ..stalled
            };
            let verdict = judge(alone);
            assert!(!matches!(verdict, Verdict::Reject { .. }), "{verdict:?}");
        }
    }

    proptest! {
        /// One text kills every worker that embeds it, whatever its place and
        /// the batch's size: it ends up rejected, alone, and all else embedded.
        #[test]
        fn the_text_that_kills_workers_is_found(
            chunks in 1..200_usize, place in 0..200_usize, batch_size in 1..64_i32, max_attempts in 1..6_i16
        ) {
            let culprit = place % chunks;
            let policy = RetryPolicy { max_attempts, ..RetryPolicy::default() };
            let mut pending: Vec<usize> = (0..chunks).collect();
            let (mut attempt, mut suspects, mut leases) = (0, 0, 0);
            let mut rejected = None;
            while !pending.is_empty() {
                leases += 1;
                prop_assert!(leases < 100, "the search does not end");
                let mut progressed = false;
                let killed = loop {
                    let size = if suspects > 0 { suspected_batch(suspects).min(batch_size) } else { batch_size };
                    let batch = size.min(pending.len() as i32) as usize;
                    if batch == 0 {
                        break false;
                    }
                    if pending[..batch].contains(&culprit) {
                        break true;
                    }
                    pending.drain(..batch);
                    progressed = true;
                    attempt = 0;
                    suspects = (suspects - batch as i32).max(0);
                };
                if !killed {
                    break;
                }
                let lease = EndedLease {
                    attempt, heard: true, progressed, stalled: false, batch_size: Some(batch_size), suspects,
                    pending: pending.len() as i32,
                };
                match lease.judge(&policy, 0.5) {
                    Verdict::Again { attempt: charged, suspects: narrowed, .. } => {
                        (attempt, suspects) = (charged, narrowed);
                    }
                    Verdict::Reject { .. } => {
                        rejected = Some(pending.remove(0));
                        (attempt, suspects) = (0, 0);
                    }
                    Verdict::Fail { .. } => prop_assert!(false, "the job failed for one text"),
                }
            }
            prop_assert_eq!(rejected, Some(culprit));
            // The halvings, the tries with the text alone, and one without it.
            prop_assert!(leases <= 9 + i32::from(max_attempts) + 1, "{} leases", leases);
        }
    }
}
