//! Jobs whose worker is gone: the rescuer's step.

use std::time::Duration;

use super::{
    QUEUE_CHANNEL, REVOKE_CHANNEL, Store, StoreError,
    attempts::{Ended, record_attempt},
    batches::{Outcome, upsert_rejected},
    database::Transaction,
    failures::count_failures,
    lease::interval,
    pending::{pending_in, texts_in},
    rows::{LeaseKey, Rejected},
    sources::notify,
    workers::session_grace,
};
use crate::job::{
    blame::{EndedLease, Verdict},
    retry::RetryPolicy,
    state::{AttemptOutcome, RevokeReason},
};

/// How long workers are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long a worker may stay unheard of after its claim. See
    /// [`session_grace`] for how long nobody may have touched its session.
    pub orphan_grace: Duration,
    /// How long a job may hold its lease without persisting anything.
    pub progress_deadline: Duration,
}

/// A running job whose lease is over.
#[derive(Debug, sqlx::FromRow)]
struct Expired {
    id: i64,
    epoch: i64,
    source_id: i64,
    attempt: i16,
    parkings: i16,
    heard: bool,
    /// Whether its worker persisted anything under this lease.
    progressed: bool,
    /// Whether the lease itself has run out, or its session has, and not only the
    /// progress deadline.
    lease_over: bool,
    batch_size: Option<i32>,
    suspects: i32,
    pending: i32,
    /// What the end of its lease was counted under.
    #[sqlx(default)]
    failure_id: Option<i64>,
    traceparent: Option<String>,
}

/// What a step of the rescuer did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rescued {
    /// Jobs queued again.
    pub retried: usize,
    /// Jobs failed, their attempts used up.
    pub failed: usize,
    /// Texts rejected because workers went silent over them.
    pub rejected: usize,
    /// Of all these jobs, those whose worker was never heard of after its claim.
    pub unheard: usize,
    /// Those whose worker fell silent.
    pub silent: usize,
    /// Those whose worker persisted nothing for the progress deadline.
    pub stalled: usize,
    /// The sources these belong to.
    pub source_ids: Vec<i64>,
    /// The leases that were taken away.
    pub leases: Vec<RescuedLease>,
}

/// A lease that was taken away from its worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RescuedLease {
    /// The lease.
    pub lease: LeaseKey,
    /// Why, for a person.
    pub why: &'static str,
    /// W3C trace context of the job.
    pub traceparent: Option<String>,
}

impl Expired {
    fn lease(&self) -> LeaseKey {
        LeaseKey {
            job_id: self.id,
            epoch: self.epoch,
        }
    }

    /// Whether its worker is alive and stands still.
    fn stalled(&self) -> bool {
        self.heard && !self.lease_over
    }

    fn ended(&self) -> EndedLease {
        EndedLease {
            attempt: self.attempt,
            heard: self.heard,
            progressed: self.progressed && !self.stalled(),
            stalled: self.stalled(),
            batch_size: self.batch_size,
            suspects: self.suspects,
            pending: self.pending,
        }
    }

    fn outcome(&self) -> AttemptOutcome {
        if self.stalled() {
            AttemptOutcome::NoProgress
        } else {
            AttemptOutcome::Expired
        }
    }

    /// Why the lease was taken away, for the worker and for a person.
    fn reason(&self) -> (RevokeReason, &'static str) {
        if !self.heard {
            let why = "the worker that claimed the job was never heard of again";
            (RevokeReason::LeaseLost, why)
        } else if self.stalled() {
            let why = "the worker persisted nothing for the progress deadline";
            (RevokeReason::NoProgress, why)
        } else {
            let why = "the worker went silent and its lease expired";
            (RevokeReason::LeaseLost, why)
        }
    }
}

impl Store {
    /// Takes up to `limit` jobs away from workers whose lease has expired, whose
    /// session no replica has touched for the grace, that were not heard of since
    /// the claim, or that have persisted nothing for too long, and queues them
    /// again. A try that moved forward is not
    /// charged. Replicas do this side by side; each takes what the others
    /// leave. `random` draws from 0..1.
    pub async fn rescue(
        &self,
        limit: i64,
        patience: &Patience,
        policy: &RetryPolicy,
        mut random: impl FnMut() -> f64 + Send,
    ) -> Result<Rescued, StoreError> {
        let mut tx = self.pool.begin().await?;
        let mut expired: Vec<Expired> = sqlx::query_as(
            "-- store::rescue::rescue
             -- Laws 4 and 15: a lease of a session that nobody serves is over, however long it is. Which these are is
             -- told by one snapshot: a job that another session took up since then is not of them.
             WITH gone AS MATERIALIZED (
                 SELECT session FROM (
                     SELECT DISTINCT session FROM weir.jobs WHERE state = 'running' AND session IS NOT NULL) held
                 WHERE NOT EXISTS (
                     SELECT FROM weir.workers w WHERE w.session = held.session AND w.touched_at > now() - $4)
             )
             SELECT id, epoch, source_id, attempt, parkings, heard, progressed_at IS NOT NULL AS progressed,
                    lease_expires_at <= now() OR coalesce(session IN (SELECT session FROM gone), false) AS lease_over,
                    batch_size, suspects, chunks_total - chunks_done - chunks_rejected AS pending, traceparent
             FROM weir.jobs
             WHERE state = 'running'
               AND (lease_expires_at <= now()
                    OR session IN (SELECT session FROM gone)
                    OR coalesce(progressed_at, claimed_at) <= now() - $1
                    OR (NOT heard AND claimed_at <= now() - $2))
             ORDER BY id LIMIT $3 FOR UPDATE SKIP LOCKED",
        )
        .bind(interval(patience.progress_deadline))
        .bind(interval(patience.orphan_grace))
        .bind(limit)
        .bind(interval(session_grace(patience.orphan_grace)))
        .fetch_all(&mut *tx)
        .await?;
        // One that was never heard of did not fail.
        let failed = expired.iter().filter(|job| job.heard);
        let failed: Vec<_> = failed.map(|job| (job.id, job.reason().1)).collect();
        let failures = count_failures(&mut tx, &failed).await?;
        for job in &mut expired {
            job.failure_id = failures.get(&job.id).copied();
        }
        let mut rescued = Rescued::default();
        for job in &expired {
            let (_, why) = job.reason();
            match (job.heard, job.stalled()) {
                (false, _) => rescued.unheard += 1,
                (true, true) => rescued.stalled += 1,
                (true, false) => rescued.silent += 1,
            }
            let verdict = job.ended().judge(policy, random());
            let ended = Ended {
                outcome: job.outcome(),
                error: why,
                charged: verdict.is_charged(job.attempt),
            };
            record_attempt(&mut tx, job.id, &ended).await?;
            match verdict {
                Verdict::Again {
                    attempt,
                    delay,
                    suspects,
                } => {
                    requeue(&mut tx, job, attempt, delay, suspects, why).await?;
                    rescued.retried += 1;
                }
                Verdict::Fail { attempt } => {
                    fail(
                        &mut tx,
                        job,
                        attempt,
                        policy.parking.delay(job.parkings),
                        why,
                    )
                    .await?;
                    rescued.failed += 1;
                }
                Verdict::Reject { attempt } => {
                    reject(&mut tx, job, attempt).await?;
                    rescued.rejected += 1;
                }
            }
            notify(&mut tx, REVOKE_CHANNEL, job.source_id).await?;
            rescued.source_ids.push(job.source_id);
            rescued.leases.push(RescuedLease {
                lease: job.lease(),
                why,
                traceparent: job.traceparent.clone(),
            });
        }
        tx.commit().await?;
        Ok(rescued)
    }
}

async fn requeue(
    tx: &mut Transaction,
    job: &Expired,
    attempt: i16,
    delay: Duration,
    suspects: i32,
    why: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::rescue::requeue
         UPDATE weir.jobs
         SET state = 'queued', epoch = epoch + 1, attempt = $2, run_at = now() + $3, suspects = $4,
             revoke_reason = $5, last_error = $6, failure_id = coalesce($7, failure_id), worker_id = NULL,
             lease_expires_at = NULL, claimed_at = NULL
         WHERE id = $1",
    )
    .bind(job.id)
    .bind(attempt)
    .bind(interval(delay))
    .bind(suspects)
    .bind(job.reason().0.as_str())
    .bind(why)
    .bind(job.failure_id)
    .execute(&mut **tx)
    .await?;
    notify(tx, QUEUE_CHANNEL, job.source_id).await
}

async fn fail(
    tx: &mut Transaction,
    job: &Expired,
    attempt: i16,
    parked_for: Duration,
    why: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::rescue::fail
         UPDATE weir.jobs
         SET state = 'failed', epoch = epoch + 1, attempt = $2, finished_at = now(), run_at = now() + $3,
             revoke_reason = $4, last_error = $5, failure_id = coalesce($6, failure_id), worker_id = NULL,
             lease_expires_at = NULL, claimed_at = NULL
         WHERE id = $1",
    )
    .bind(job.id)
    .bind(attempt)
    .bind(interval(parked_for))
    .bind(job.reason().0.as_str())
    .bind(why)
    .bind(job.failure_id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Rejects the chunk that is handed out next, which nobody survived alone, and
/// lets the job go on without it.
async fn reject(tx: &mut Transaction, job: &Expired, attempt: i16) -> Result<(), StoreError> {
    let next = pending_in(&mut **tx, job.lease(), 1).await?;
    let texts = texts_in(&mut **tx, job.source_id, &next).await?;
    let mut rejected = Vec::new();
    for chunk in texts {
        rejected.push(Rejected {
            text_hash: chunk
                .text_hash
                .as_slice()
                .try_into()
                .map_err(StoreError::corrupt)?,
            item_id: chunk.item_id,
            chunk_index: chunk.chunk_index,
            reason: format!(
                "the worker died or fell silent over this text alone, the last of {attempt} tries in a row \
                 without progress"
            ),
        });
    }
    let outcome = Outcome {
        fence: job.lease().into(),
        embedded: Vec::new(),
        rejected,
        complete: true,
        may_be_first: false,
    };
    let progress = upsert_rejected(tx, &outcome, Duration::ZERO).await?;
    let why = "a text was rejected because workers died or fell silent over it";
    if progress.is_some_and(|progress| !progress.finished) {
        return requeue(tx, job, 0, Duration::ZERO, 0, why).await;
    }
    // It was the last. Whoever may still work on it is to hear that the lease is lost.
    sqlx::query(
        "-- store::rescue::reject
         UPDATE weir.jobs SET epoch = epoch + 1, revoke_reason = $2, last_error = $3 WHERE id = $1",
    )
    .bind(job.id)
    .bind(job.reason().0.as_str())
    .bind(why)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
