//! What a store method can fail with.

use std::{error::Error, sync::Arc};

use sqlx::error::DatabaseError;

use crate::job::state::RevokeReason;

/// A fault in what the caller asked for: which field, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field, such as `embedded[3].vector`.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Violation {
    /// Names a field and its fault.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// Why a store method changed nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The lease named is not, or no longer, held.
    #[error("lease lost: {why}")]
    LeaseLost {
        /// Why it was taken away.
        reason: RevokeReason,
        /// The same in words for a person.
        why: String,
    },
    /// It is somebody else's.
    #[error("{0}")]
    Denied(String),
    /// The thing is in the wrong state for this.
    #[error("{0}")]
    Precondition(String),
    /// The model's dimension is not fixed, and the caller may not fix it.
    #[error("{0}")]
    NoDimension(String),
    /// What the call built on is gone; it has to begin again.
    #[error("{0}")]
    Aborted(String),
    /// It would be more than the namespace may have.
    #[error("{0}")]
    Exhausted(String),
    /// The input does not fit what is stored.
    #[error("{}", .0.iter().map(|v| format!("{}: {}", v.field, v.message)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Violation>),
    /// The database is away, overloaded or restarting; trying again helps.
    #[error("the database is unavailable")]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// Somebody else has locked what it needs; trying again helps.
    #[error("{0}")]
    Locked(String),
    /// A fault of ours.
    #[error("internal error")]
    Internal(#[source] Arc<dyn Error + Send + Sync>),
}

impl StoreError {
    /// One field's fault.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation::new(field, message)])
    }

    /// There is no such job.
    pub fn no_job(job_id: i64) -> Self {
        Self::NotFound(format!("there is no job {job_id}"))
    }

    /// Whether the database ended a statement that took too long.
    pub fn is_timeout(&self) -> bool {
        // query_canceled
        matches!(self, Self::Unavailable(error)
            if error.as_database_error().and_then(DatabaseError::code).as_deref() == Some("57014"))
    }

    /// Whether the database is away: not where it is there, and ended a statement that
    /// took too long.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Unavailable(_)) && !self.is_timeout()
    }

    /// Whether trying again helps, sooner or later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Locked(_))
    }

    /// A fault of ours, in words.
    pub fn internal(why: &str) -> Self {
        Self::Internal(Box::<dyn Error + Send + Sync>::from(why).into())
    }

    /// A row that does not read as it was written.
    pub fn corrupt(error: impl Error + Send + Sync + 'static) -> Self {
        Self::Internal(Arc::new(error))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        // lock_not_available: a lock was waited for as long as the connection allows.
        if let E::Database(database) = &error
            && database.code().is_some_and(|code| code == "55P03")
        {
            return Self::Locked("another transaction has locked what this needs".to_owned());
        }
        let passing = match &error {
            E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => true,
            // Of a server: connection trouble (08), too many connections and out of memory (53),
            // shutting down or starting (57P), a statement that took too long (57014), a deadlock or
            // serialization failure (40), a statement cut off by a failover to a standby (25006).
            // https://www.postgresql.org/docs/current/errcodes-appendix.html
            E::Database(database) => database.code().is_some_and(|code| {
                ["08", "53", "57P", "57014", "40", "25006"]
                    .iter()
                    .any(|class| code.starts_with(class))
            }),
            _ => false,
        };
        if passing {
            Self::Unavailable(Arc::new(error))
        } else {
            Self::Internal(Arc::new(error))
        }
    }
}
