//! Retention: the history of jobs ends after a while, and that of sessions sooner.

use std::time::Duration;

use crate::store::{Store, StoreError};

/// Most jobs in one step.
const STEP: i64 = 1_000;

/// How long a session is kept that nobody touches: long enough to be looked at.
const SESSIONS: Duration = Duration::from_hours(24);

/// Takes one step. Returns whether more may wait.
pub async fn tick(store: &Store, retention: Duration) -> Result<bool, StoreError> {
    let dropped = store.drop_old_jobs(retention, STEP).await?;
    if dropped > 0 {
        tracing::info!(jobs = dropped, "Deleted jobs that ended long ago.");
    }
    let forgotten = store.drop_old_failures(retention, STEP).await?;
    let sources = store.drop_old_sources(retention, STEP).await?;
    let sessions = store.forget_sessions(SESSIONS, STEP).await?;
    let most = dropped.max(forgotten).max(sources).max(sessions);
    Ok(most >= STEP.unsigned_abs())
}
