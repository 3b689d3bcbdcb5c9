//! Jobs whose worker is gone: the rescuer's step.

use std::time::Duration;

use super::{QUEUE_CHANNEL, REVOKE_CHANNEL, Store, StoreError, lease::interval, sources::notify};
use crate::job::{
    retry::{Decision, RetryPolicy},
    state::{JobState, RevokeReason},
};

/// A running job whose lease is over.
#[derive(Debug, sqlx::FromRow)]
struct Expired {
    id: i64,
    source_id: i64,
    attempt: i16,
    /// Whether its worker persisted anything under this lease.
    progressed: bool,
    /// Whether the lease itself has run out, and not only the progress deadline.
    lease_over: bool,
}

/// What a step of the rescuer did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rescued {
    /// Jobs queued again.
    pub retried: usize,
    /// Jobs failed, their attempts used up.
    pub failed: usize,
    /// The sources these belong to.
    pub source_ids: Vec<i64>,
}

impl Store {
    /// Takes up to `limit` jobs away from workers whose lease has expired or
    /// that have persisted nothing for `progress_deadline`, and queues them
    /// again. A try that moved forward is not charged. Replicas do this side by
    /// side; each takes what the others leave. `random` draws from 0..1.
    pub async fn rescue(
        &self,
        limit: i64,
        progress_deadline: Duration,
        policy: &RetryPolicy,
        mut random: impl FnMut() -> f64 + Send,
    ) -> Result<Rescued, StoreError> {
        let mut tx = self.pool.begin().await?;
        let expired: Vec<Expired> = sqlx::query_as(
            "-- store::rescue::rescue
             SELECT id, source_id, attempt, progressed_at IS NOT NULL AS progressed,
                    lease_expires_at <= now() AS lease_over
             FROM weir.jobs
             WHERE state = 'running'
               AND (lease_expires_at <= now() OR coalesce(progressed_at, claimed_at) <= now() - $1)
             ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED",
        )
        .bind(interval(progress_deadline))
        .bind(limit)
        .fetch_all(&mut *tx)
        .await?;
        let mut rescued = Rescued::default();
        for job in &expired {
            let stalled = !job.lease_over;
            let decision = if job.progressed && !stalled {
                Decision::Retry {
                    attempt: job.attempt,
                    delay: Duration::ZERO,
                }
            } else {
                policy.charge(job.attempt, random())
            };
            let (state, attempt, delay) = match decision {
                Decision::Retry { attempt, delay } => (JobState::Queued, attempt, delay),
                Decision::Fail { attempt } => (JobState::Failed, attempt, Duration::ZERO),
            };
            let (reason, why) = if stalled {
                (
                    RevokeReason::NoProgress,
                    "the worker persisted nothing for the progress deadline",
                )
            } else {
                (
                    RevokeReason::LeaseLost,
                    "the worker went silent and its lease expired",
                )
            };
            sqlx::query(
                "-- store::rescue::rescue
                 UPDATE weir.jobs
                 SET state = $2, attempt = $3, run_at = now() + $4, epoch = epoch + 1, revoke_reason = $5,
                     last_error = $6, worker_id = NULL, lease_expires_at = NULL, claimed_at = NULL,
                     finished_at = CASE WHEN $2 = 'failed' THEN now() END
                 WHERE id = $1",
            )
            .bind(job.id)
            .bind(state.as_str())
            .bind(attempt)
            .bind(interval(delay))
            .bind(reason.as_str())
            .bind(why)
            .execute(&mut *tx)
            .await?;
            notify(&mut tx, REVOKE_CHANNEL, job.source_id).await?;
            if state == JobState::Queued {
                rescued.retried += 1;
                notify(&mut tx, QUEUE_CHANNEL, job.source_id).await?;
            } else {
                rescued.failed += 1;
            }
            rescued.source_ids.push(job.source_id);
        }
        tx.commit().await?;
        Ok(rescued)
    }
}
