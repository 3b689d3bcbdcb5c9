//! Leases: renew, and the ways a worker hands a job back. Everything here is
//! fenced by job and epoch (law 3), and every time is the database's (law 2).

mod group;

use std::{sync::Arc, time::Duration};

use sqlx::postgres::types::PgInterval;

use super::{
    QUEUE_CHANNEL, Store, StoreError,
    attempts::{Ended, record_attempt},
    failures::count_failures,
    fence::{Fence, is_of},
    rows::{Job, job_columns},
    sources::notify,
};
use crate::job::{
    retry::{Decision, RetryPolicy},
    state::{AttemptOutcome, JobState, RevokeReason},
};

/// Whether a lease is held.
#[derive(Debug, Clone, PartialEq)]
pub enum LeaseState {
    /// It is; here is its job.
    Held(Box<Job>),
    /// The job succeeded under this lease.
    Finished(Box<Job>),
}

/// A lease whose work begins, or goes on elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The lease.
    pub fence: Fence,
    /// Most chunks in a batch of it.
    pub batch_size: i32,
    /// The session that works on it from now on; `None` where that is done by
    /// unary calls.
    pub session: Option<Arc<str>>,
}

/// What a charged try led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// The job's source.
    pub source_id: i64,
    /// Retried or failed.
    pub decision: Decision,
}

/// A `Duration` as Postgres has it.
pub(super) fn interval(duration: Duration) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
    }
}

impl Store {
    /// Extends a lease and returns its job. A job that succeeded under this
    /// lease is not an error, so that an answer lost on the way can be asked
    /// for again.
    pub async fn renew(
        &self,
        fence: impl Into<Fence>,
        lease_duration: Duration,
    ) -> Result<LeaseState, StoreError> {
        self.renew_for(&fence.into(), lease_duration, None).await
    }

    /// Extends a lease as [`Self::renew`] does, for batches of up to so many
    /// chunks. From now on it is of this session, or of none.
    pub async fn open(
        &self,
        opening: &Opening,
        lease_duration: Duration,
    ) -> Result<LeaseState, StoreError> {
        self.renew_for(&opening.fence, lease_duration, Some(opening))
            .await
    }

    async fn renew_for(
        &self,
        fence: &Fence,
        lease_duration: Duration,
        opening: Option<&Opening>,
    ) -> Result<LeaseState, StoreError> {
        self.at_job(fence.lease.job_id, || {
            self.try_renew(fence, lease_duration, opening)
        })
        .await
    }

    async fn try_renew(
        &self,
        fence: &Fence,
        lease_duration: Duration,
        opening: Option<&Opening>,
    ) -> Result<LeaseState, StoreError> {
        let job: Option<Job> = sqlx::query_as(concat!(
            "-- store::lease::renew
             UPDATE weir.jobs j
             SET lease_expires_at = now() + $3, heard = true, batch_size = coalesce($4, j.batch_size),
                 session = CASE WHEN $4 IS NULL THEN j.session ELSE $7 END
             WHERE j.id = $1 AND j.epoch = $2 AND j.state = 'running' AND ",
            is_of!("$5", "$6"),
            " RETURNING ",
            job_columns!()
        ))
        .bind(fence.lease.job_id)
        .bind(fence.lease.epoch)
        .bind(interval(lease_duration))
        .bind(opening.map(|it| it.batch_size))
        .bind(fence.name())
        .bind(fence.namespaces())
        .bind(opening.and_then(|it| it.session.as_deref()))
        .fetch_optional(&self.pool)
        .await?;
        match job {
            Some(job) => Ok(LeaseState::Held(Box::new(job))),
            None => Ok(LeaseState::Finished(Box::new(self.not_held(fence).await?))),
        }
    }

    /// Looks whether a lease is held, without renewing it.
    pub async fn lease(&self, fence: impl Into<Fence>) -> Result<LeaseState, StoreError> {
        let fence = fence.into();
        let job = self.job_of(&fence).await?;
        if job.state == JobState::Running && job.epoch == fence.lease.epoch {
            return Ok(LeaseState::Held(Box::new(job)));
        }
        Ok(LeaseState::Finished(Box::new(self.not_held(&fence).await?)))
    }

    /// Ends a job as succeeded when nothing of it is pending.
    pub async fn complete(&self, fence: impl Into<Fence>) -> Result<Job, StoreError> {
        let fence = fence.into();
        self.at_job(fence.lease.job_id, || self.try_complete(&fence))
            .await
    }

    async fn try_complete(&self, fence: &Fence) -> Result<Job, StoreError> {
        let job: Option<Job> = sqlx::query_as(concat!(
            "-- store::lease::complete
             UPDATE weir.jobs j
             SET state = 'succeeded', settled = true, finished_at = now(), attempt = 0,
                 chunks_done = j.chunks_total - j.chunks_rejected, lease_expires_at = NULL
             WHERE j.id = $1 AND j.epoch = $2 AND j.state = 'running' AND ",
            is_of!("$3", "$4"),
            "  AND (j.chunks_done + j.chunks_rejected = j.chunks_total
                    -- The counts are of what this job wrote; somebody else may have written the rest. The chunks are
                    -- read as they were when the statement began: not after a write that it waited for.
                    OR j.changes = (SELECT s.changes FROM weir.jobs s WHERE s.id = j.id) AND NOT EXISTS (
                        SELECT FROM weir.chunks c
                        WHERE c.source_id = j.source_id AND c.item_id BETWEEN j.first_item_id AND j.last_item_id
                          AND NOT EXISTS (
                              SELECT FROM weir.embeddings e
                              WHERE e.source_id = c.source_id AND e.item_id = c.item_id
                                AND e.chunk_index = c.chunk_index AND e.model = j.model AND e.text_hash = c.text_hash)
                          AND NOT EXISTS (
                              SELECT FROM weir.rejections r
                              WHERE r.source_id = c.source_id AND r.item_id = c.item_id
                                AND r.chunk_index = c.chunk_index AND r.model = j.model AND r.text_hash = c.text_hash)))
             RETURNING ",
            job_columns!()
        ))
        .bind(fence.lease.job_id)
        .bind(fence.lease.epoch)
        .bind(fence.name())
        .bind(fence.namespaces())
        .fetch_optional(&self.pool)
        .await?;
        if let Some(job) = job {
            return Ok(job);
        }
        match self.lease(fence).await? {
            LeaseState::Finished(job) => Ok(*job),
            LeaseState::Held(job) => Err(StoreError::Precondition(format!(
                "job {} cannot be completed: {} of its {} chunks are still pending",
                job.id,
                job.chunks_pending(),
                job.chunks_total
            ))),
        }
    }

    /// Takes a job back, charged with one try. `random` is in 0..1.
    pub async fn fail(
        &self,
        fence: impl Into<Fence>,
        reason: &str,
        policy: &RetryPolicy,
        random: f64,
    ) -> Result<Failed, StoreError> {
        let fence = fence.into();
        self.at_job(fence.lease.job_id, || {
            self.try_fail(&fence, reason, policy, random)
        })
        .await
    }

    async fn try_fail(
        &self,
        fence: &Fence,
        reason: &str,
        policy: &RetryPolicy,
        random: f64,
    ) -> Result<Failed, StoreError> {
        let lease = fence.lease;
        let mut tx = self.pool.begin().await?;
        let held: Option<(i64, i16, i16)> = sqlx::query_as(concat!(
            "-- store::lease::fail
             SELECT source_id, attempt, parkings FROM weir.jobs j
             WHERE id = $1 AND epoch = $2 AND state = 'running' AND ",
            is_of!("$3", "$4"),
            " FOR UPDATE"
        ))
        .bind(lease.job_id)
        .bind(lease.epoch)
        .bind(fence.name())
        .bind(fence.namespaces())
        .fetch_optional(&mut *tx)
        .await?;
        let Some((source_id, attempt, parkings)) = held else {
            drop(tx);
            return Err(self.not_fallible(fence).await);
        };
        let decision = policy.charge(attempt, random);
        let (state, attempt, delay) = match decision {
            Decision::Retry { attempt, delay } => (JobState::Queued, attempt, delay),
            Decision::Fail { attempt } => {
                (JobState::Failed, attempt, policy.parking.delay(parkings))
            }
        };
        let ended = Ended {
            outcome: AttemptOutcome::Failed,
            error: reason,
            charged: true,
        };
        record_attempt(&mut tx, lease.job_id, &ended).await?;
        let failures = count_failures(&mut tx, &[(lease.job_id, reason)]).await?;
        sqlx::query(
            "-- store::lease::fail
             UPDATE weir.jobs
             SET state = $2, attempt = $3, last_error = $4, failure_id = $6, worker_id = NULL, lease_expires_at = NULL,
                 claimed_at = NULL, run_at = now() + $5,
                 finished_at = CASE WHEN $2 = 'failed' THEN now() END
             WHERE id = $1",
        )
        .bind(lease.job_id)
        .bind(state.as_str())
        .bind(attempt)
        .bind(reason)
        .bind(interval(delay))
        .bind(failures.get(&lease.job_id))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Failed {
            source_id,
            decision,
        })
    }

    /// Takes a job back, uncharged, and queues it at once. Returns its source.
    pub async fn release(&self, fence: impl Into<Fence>, reason: &str) -> Result<i64, StoreError> {
        self.release_as(&fence.into(), reason, false, Duration::ZERO)
            .await
    }

    /// Takes a job back as [`Self::release`] does, for want of an embedder: a
    /// failure, if not one of the job.
    pub async fn release_embedder_down(
        &self,
        fence: impl Into<Fence>,
        reason: &str,
    ) -> Result<i64, StoreError> {
        self.release_as(&fence.into(), reason, true, Duration::ZERO)
            .await
    }

    /// The same, for want of an embedder whose results can be taken; it is not
    /// claimed again before `delay` is over.
    pub async fn release_refused(
        &self,
        fence: impl Into<Fence>,
        reason: &str,
        delay: Duration,
    ) -> Result<i64, StoreError> {
        self.release_as(&fence.into(), reason, true, delay).await
    }

    async fn release_as(
        &self,
        fence: &Fence,
        reason: &str,
        embedder_down: bool,
        delay: Duration,
    ) -> Result<i64, StoreError> {
        self.at_job(fence.lease.job_id, || {
            self.try_release(fence, reason, embedder_down, delay)
        })
        .await
    }

    async fn try_release(
        &self,
        fence: &Fence,
        reason: &str,
        embedder_down: bool,
        delay: Duration,
    ) -> Result<i64, StoreError> {
        let lease = fence.lease;
        let mut tx = self.pool.begin().await?;
        let source_id: Option<i64> = sqlx::query_scalar(concat!(
            "-- store::lease::release
             SELECT source_id FROM weir.jobs j WHERE id = $1 AND epoch = $2 AND state = 'running' AND ",
            is_of!("$3", "$4"),
            " FOR UPDATE"
        ))
        .bind(lease.job_id)
        .bind(lease.epoch)
        .bind(fence.name())
        .bind(fence.namespaces())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(source_id) = source_id else {
            drop(tx);
            return Err(self.not_fallible(fence).await);
        };
        let ended = Ended {
            outcome: AttemptOutcome::Released,
            error: reason,
            charged: false,
        };
        record_attempt(&mut tx, lease.job_id, &ended).await?;
        let befell = [(lease.job_id, reason)];
        let befell = if embedder_down { &befell[..] } else { &[] };
        let failures = count_failures(&mut tx, befell).await?;
        sqlx::query(
            "-- store::lease::release
             UPDATE weir.jobs
             SET state = 'queued', last_error = $2, embedder_down = $3, failure_id = coalesce($4, failure_id),
                 run_at = now() + $5, worker_id = NULL, lease_expires_at = NULL, claimed_at = NULL
             WHERE id = $1",
        )
        .bind(lease.job_id)
        .bind(reason)
        .bind(embedder_down)
        .bind(failures.get(&lease.job_id))
        .bind(interval(delay))
        .execute(&mut *tx)
        .await?;
        notify(&mut tx, QUEUE_CHANNEL, source_id).await?;
        tx.commit().await?;
        Ok(source_id)
    }

    /// The error for a lease that is not held, told apart by what became of it:
    /// the job itself when it succeeded under that very lease.
    pub(super) async fn not_held(&self, fence: &Fence) -> Result<Job, StoreError> {
        let lease = fence.lease;
        let job = self.job_of(fence).await?;
        if job.state == JobState::Succeeded && job.epoch == lease.epoch {
            return Ok(job);
        }
        let revoked: Option<String> = sqlx::query_scalar(
            "-- store::lease::not_held
             SELECT coalesce(
                 (SELECT revoke_reason FROM weir.jobs WHERE id = $1 AND epoch - 1 = $2 AND state <> 'running'),
                 -- It has been claimed again since.
                 (SELECT outcome FROM weir.attempts WHERE job_id = $1 AND epoch = $2 AND outcome = 'no_progress'))",
        )
        .bind(lease.job_id)
        .bind(lease.epoch)
        .fetch_optional(&self.pool)
        .await?
        .flatten();
        let reason = revoked
            .map_or(Ok(RevokeReason::LeaseLost), RevokeReason::try_from)
            .map_err(StoreError::corrupt)?;
        Err(StoreError::LeaseLost {
            reason,
            why: format!(
                "job {} is {} at epoch {}, not running at epoch {}",
                job.id, job.state, job.epoch, lease.epoch
            ),
        })
    }

    /// As [`Self::not_held`], where having succeeded is an error as well.
    async fn not_fallible(&self, fence: &Fence) -> StoreError {
        match self.not_held(fence).await {
            Ok(job) => StoreError::Precondition(format!("job {} has already succeeded", job.id)),
            Err(error) => error,
        }
    }
}
