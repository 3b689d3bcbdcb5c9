//! Leases: renew, and the ways a worker hands a job back. Everything here is
//! fenced by job and epoch (law 3), and every time is the database's (law 2).

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::types::PgInterval;

use super::{
    QUEUE_CHANNEL, Store, StoreError,
    attempts::{Ended, record_attempt},
    failures::count_failures,
    fence::{Fence, holders, is_of},
    rows::{Job, LeaseKey, job_columns},
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

/// A new stream of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The lease.
    pub fence: Fence,
    /// Most chunks in a batch of it.
    pub batch_size: i32,
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

    /// Extends a lease as [`Self::renew`] does, for batches of up to
    /// `batch_size` chunks on a new stream, whose number the job then has.
    pub async fn open(
        &self,
        fence: impl Into<Fence>,
        lease_duration: Duration,
        batch_size: i32,
    ) -> Result<LeaseState, StoreError> {
        self.renew_for(&fence.into(), lease_duration, Some(batch_size))
            .await
    }

    /// Does what [`Self::open`] does for streams of several jobs, each named
    /// once. Returns the jobs of those it opened: it passes by what is not held,
    /// and by what somebody else has locked.
    pub async fn open_group(
        &self,
        openings: &[Opening],
        lease_duration: Duration,
    ) -> Result<Vec<Job>, StoreError> {
        let column = |of: fn(&Opening) -> i64| openings.iter().map(of).collect::<Vec<_>>();
        let sizes: Vec<i32> = openings.iter().map(|it| it.batch_size).collect();
        let fences = openings.iter().map(|it| &it.fence);
        let (names, namespaces) = holders(fences);
        Ok(sqlx::query_as(concat!(
            "-- store::lease::open_group
             WITH opened AS MATERIALIZED (
                 SELECT j.id, o.batch_size
                 FROM unnest($1::bigint[], $2::bigint[], $3::int[], $5::text[], $6::text[])
                     AS o(job_id, epoch, batch_size, claimed_by, namespaces)
                 JOIN weir.jobs j ON j.id = o.job_id AND j.epoch = o.epoch
                 WHERE j.state = 'running' AND ",
            is_of!("o.claimed_by", "o.namespaces"),
            " FOR NO KEY UPDATE OF j SKIP LOCKED
             )
             UPDATE weir.jobs j
             SET lease_expires_at = now() + $4, heard = true, batch_size = o.batch_size, stream = j.stream + 1
             FROM opened o WHERE j.id = o.id
             RETURNING ",
            job_columns!()
        ))
        .bind(column(|it| it.fence.lease.job_id))
        .bind(column(|it| it.fence.lease.epoch))
        .bind(sizes)
        .bind(interval(lease_duration))
        .bind(names)
        .bind(namespaces)
        .fetch_all(&self.leases)
        .await?)
    }

    async fn renew_for(
        &self,
        fence: &Fence,
        lease_duration: Duration,
        batch_size: Option<i32>,
    ) -> Result<LeaseState, StoreError> {
        self.at_job(fence.lease.job_id, || {
            self.try_renew(fence, lease_duration, batch_size)
        })
        .await
    }

    async fn try_renew(
        &self,
        fence: &Fence,
        lease_duration: Duration,
        batch_size: Option<i32>,
    ) -> Result<LeaseState, StoreError> {
        let job: Option<Job> = sqlx::query_as(concat!(
            "-- store::lease::renew
             UPDATE weir.jobs j
             SET lease_expires_at = now() + $3, heard = true, batch_size = coalesce($4, j.batch_size),
                 stream = CASE WHEN $4 IS NULL THEN j.stream ELSE j.stream + 1 END
             WHERE j.id = $1 AND j.epoch = $2 AND j.state = 'running' AND ",
            is_of!("$5", "$6"),
            " RETURNING ",
            job_columns!()
        ))
        .bind(fence.lease.job_id)
        .bind(fence.lease.epoch)
        .bind(interval(lease_duration))
        .bind(batch_size)
        .bind(fence.name())
        .bind(fence.namespaces())
        .fetch_optional(&self.pool)
        .await?;
        match job {
            Some(job) => Ok(LeaseState::Held(Box::new(job))),
            None => Ok(LeaseState::Finished(Box::new(self.not_held(fence).await?))),
        }
    }

    /// Ends a lease early, `grace` from now, because the worker's connection
    /// broke; whatever renews it before then undoes this. Nothing happens where
    /// the worker is back already: it has opened another stream than this one,
    /// or the lease ends at another time than `renewed_until`, when this one
    /// had it last. Returns whether the lease was cut short.
    pub async fn orphan(
        &self,
        lease: LeaseKey,
        stream: i32,
        renewed_until: DateTime<Utc>,
        grace: Duration,
    ) -> Result<bool, StoreError> {
        self.at_job(lease.job_id, || {
            self.try_orphan(lease, stream, renewed_until, grace)
        })
        .await
    }

    async fn try_orphan(
        &self,
        lease: LeaseKey,
        stream: i32,
        renewed_until: DateTime<Utc>,
        grace: Duration,
    ) -> Result<bool, StoreError> {
        let result = sqlx::query(
            "-- store::lease::orphan
             UPDATE weir.jobs SET lease_expires_at = now() + $4
             WHERE id = $1 AND epoch = $2 AND state = 'running'
               AND stream = $5 AND lease_expires_at = $3 AND lease_expires_at > now() + $4",
        )
        .bind(lease.job_id)
        .bind(lease.epoch)
        .bind(renewed_until)
        .bind(interval(grace))
        .bind(stream)
        .execute(&self.pool)
        .await?;
        Ok(result.rows_affected() > 0)
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
             SELECT revoke_reason FROM weir.jobs WHERE id = $1 AND epoch - 1 = $2 AND state <> 'running'",
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
