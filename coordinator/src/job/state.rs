//! The words for a job's state, as they stand in the database.

use std::{fmt, str::FromStr};

/// A word that is none of an enumeration's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is not a known {what}")]
pub struct UnknownWord {
    what: &'static str,
    word: String,
}

/// Declares an enumeration together with its words, so that the two cannot
/// drift apart.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident, $what:literal { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word in the database and in logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord { what: $what, word: word.to_owned() }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = UnknownWord;

            fn try_from(word: String) -> Result<Self, UnknownWord> {
                word.parse()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Where a job is in its life. A retry is `Queued` with a future `run_at`.
    JobState, "job state" {
        /// Waiting for a worker.
        Queued = "queued",
        /// Held by a worker under a lease.
        Running = "running",
        /// Every chunk of its range is embedded or rejected.
        Succeeded = "succeeded",
        /// Out of attempts.
        Failed = "failed",
        /// Ended by a client, by a newer revision or with its source.
        Cancelled = "cancelled",
    }
}

impl JobState {
    /// Whether a job may go from this state to `next`.
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            Self::Queued => matches!(next, Self::Running | Self::Cancelled),
            Self::Running => matches!(
                next,
                Self::Queued | Self::Succeeded | Self::Failed | Self::Cancelled
            ),
            Self::Succeeded | Self::Failed | Self::Cancelled => false,
        }
    }

    /// Whether the job still has work before it.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Running)
    }
}

words! {
    /// Why a job was queued.
    Trigger, "job trigger" {
        /// A put, an import or a patch.
        Write = "write",
        /// A client's retry.
        Retry = "retry",
        /// The reconciler.
        Reconcile = "reconcile",
    }
}

words! {
    /// Why a lease was taken away.
    RevokeReason, "revoke reason" {
        /// It expired, and the job went on to another.
        LeaseLost = "lease_lost",
        /// A client cancelled the job.
        Cancelled = "cancelled",
        /// The source changed.
        Superseded = "superseded",
        /// The source was deleted.
        SourceDeleted = "source_deleted",
        /// Nothing was persisted for the progress deadline.
        NoProgress = "no_progress",
    }
}

words! {
    /// How a lease ended.
    AttemptOutcome, "outcome of an attempt" {
        /// It goes on.
        Running = "running",
        /// Its job succeeded.
        Succeeded = "succeeded",
        /// The worker handed the job back, uncharged.
        Released = "released",
        /// The worker handed the job back with a failure.
        Failed = "failed",
        /// The worker fell silent.
        Expired = "expired",
        /// The worker persisted nothing for the progress deadline.
        NoProgress = "no_progress",
        /// A client cancelled the job, or the source changed or was deleted.
        Cancelled = "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_round_trip() {
        for state in JobState::ALL {
            assert_eq!(state.as_str().parse(), Ok(*state));
        }
        for trigger in Trigger::ALL {
            assert_eq!(trigger.as_str().parse(), Ok(*trigger));
        }
        for reason in RevokeReason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
        }
        assert!("retrying".parse::<JobState>().is_err());
    }

    #[test]
    fn final_states_are_final_and_open_ones_can_end() {
        for state in JobState::ALL {
            let ways_out = JobState::ALL
                .iter()
                .filter(|next| state.may_become(**next))
                .count();
            assert_eq!(ways_out > 0, state.is_open(), "{state}");
            assert!(!state.may_become(*state), "{state} does not follow itself");
        }
        assert!(!JobState::Queued.may_become(JobState::Succeeded));
    }
}
