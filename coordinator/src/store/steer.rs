//! Jobs as clients steer them: cancelled, and run again.

use super::{
    CHANGE_CHANNEL, QUEUE_CHANNEL, REVOKE_CHANNEL, Scope, Store, StoreError,
    database::Transaction,
    locks::{
        LockedSource, UnsettledJob, cancel_open_jobs, lock_source_row, lock_unsettled_jobs, settle,
    },
    planning::{Order, queue_pending},
    rows::{Job, job_columns},
    scope::in_scope,
    sources::{MAX_JOBS_WITH_SOURCE, notify},
};
use crate::job::{
    plan::ItemRange,
    state::{JobState, RevokeReason, Trigger},
};

/// A client's wish to have a job run again.
#[derive(Debug, Clone)]
pub struct Retry {
    /// Where it may be.
    pub scope: Scope,
    /// The job.
    pub job_id: i64,
    /// Embed every chunk of the job's range anew.
    pub force: bool,
    /// Most pending chunks in one of the jobs it queues.
    pub max_chunks_per_job: i32,
    /// W3C trace context of the caller.
    pub traceparent: Option<String>,
}

impl Store {
    /// Cancels an open job and returns it. One that is cancelled already is
    /// returned as it is; one that has succeeded or failed is an error. Its
    /// chunks stay pending, and counted so, until a write or a retry takes them
    /// up.
    pub async fn cancel_job(&self, scope: &Scope, job_id: i64) -> Result<Job, StoreError> {
        let mut tx = self.pool.begin().await?;
        let cancelled: Option<Job> = sqlx::query_as(concat!(
            "-- store::steer::cancel_job
             WITH open AS MATERIALIZED (
                 SELECT * FROM weir.jobs WHERE id = $1 AND state IN ('queued', 'running') AND ",
            in_scope!("namespace", "$3"),
            " FOR UPDATE
             ), attempts AS (
                 INSERT INTO weir.attempts (job_id, epoch, worker_id, started_at, outcome, error, chunks_done, charged)
                 SELECT id, epoch, worker_id, claimed_at, 'cancelled', 'cancelled by a client',
                        chunks_done + chunks_rejected - claimed_done, false
                 FROM open WHERE state = 'running'
             )
             UPDATE weir.jobs j
             SET state = 'cancelled', epoch = j.epoch + 1, revoke_reason = $2, last_error = 'cancelled by a client',
                 embedder_down = false, worker_id = NULL, lease_expires_at = NULL, claimed_at = NULL, finished_at = now()
             FROM open WHERE j.id = open.id
             RETURNING ",
            job_columns!()
        ))
        .bind(job_id)
        .bind(RevokeReason::Cancelled.as_str())
        .bind(scope.namespaces())
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(job) = cancelled {
            notify(&mut tx, REVOKE_CHANNEL, job.source_id).await?;
            notify(&mut tx, CHANGE_CHANNEL, job.source_id).await?;
            tx.commit().await?;
            return Ok(job);
        }
        drop(tx);
        let job = self.job(scope, job_id).await?;
        if job.state == JobState::Cancelled {
            return Ok(job);
        }
        Err(StoreError::Precondition(format!(
            "job {job_id} has {} already, and only an open job can be cancelled",
            job.state
        )))
    }

    /// Has a job run again, and returns the jobs that are queued for it, newest
    /// first, at most [`MAX_JOBS_WITH_SOURCE`]. A job that waits for its next
    /// try may run at once; what a failed or cancelled one left pending is
    /// queued again; with `force` all of its range is embedded anew. Fails
    /// where there is nothing to do, or the source is gone.
    pub async fn retry_job(&self, retry: &Retry) -> Result<Vec<Job>, StoreError> {
        let source_id = self.job(&retry.scope, retry.job_id).await?.source_id;
        let mut tx = self.pool.begin().await?;
        let source = lock_source_row(&mut tx, source_id).await?;
        let unsettled = lock_unsettled_jobs(&mut tx, source_id).await?;
        // Under the locks it stands as it will stay.
        let job = job_in(&mut tx, retry).await?;
        let Some(source) = source else {
            return Err(StoreError::Precondition(format!(
                "the source {:?} of job {}, in namespace {:?}, was deleted: there is nothing to embed",
                job.source, job.id, job.namespace
            )));
        };
        let ids = if retry.force {
            embed_anew(&mut tx, &source, &unsettled, &job, retry).await?
        } else {
            let here = unsettled.iter().find(|unsettled| unsettled.id == job.id);
            match (job.state, here) {
                (JobState::Queued, _) => run_now(&mut tx, &job).await?,
                (JobState::Running, _) => return Err(StoreError::Precondition(running(&job))),
                (_, Some(ended)) => {
                    let order = Order {
                        trigger: Trigger::Retry,
                        priority: ended.priority,
                        max_chunks_per_job: retry.max_chunks_per_job,
                        traceparent: retry.traceparent.as_deref(),
                        parkings: 0,
                    };
                    resume(&mut tx, &source, ended, &order).await?
                }
                (_, None) => return Err(StoreError::Precondition(settled(&job))),
            }
        };
        let jobs = jobs_in(&mut tx, &ids).await?;
        notify(&mut tx, QUEUE_CHANNEL, source_id).await?;
        notify(&mut tx, CHANGE_CHANNEL, source_id).await?;
        tx.commit().await?;
        Ok(jobs)
    }
}

fn running(job: &Job) -> String {
    format!(
        "job {} is running: cancel it first, or use force to embed its range anew",
        job.id
    )
}

fn settled(job: &Job) -> String {
    let why = match job.state {
        JobState::Succeeded => "nothing of it is pending",
        _ => "later jobs have taken over what it left pending",
    };
    format!(
        "job {} has {}, and {why}; force embeds its range anew",
        job.id,
        match job.state {
            JobState::Cancelled => "been cancelled",
            state => state.as_str(),
        }
    )
}

/// Settles a job that failed or was cancelled and queues what it left pending.
/// Its source and that one's unsettled jobs are locked; its range is its own.
pub(super) async fn resume(
    tx: &mut Transaction,
    source: &LockedSource,
    ended: &UnsettledJob,
    order: &Order<'_>,
) -> Result<Vec<i64>, StoreError> {
    settle(tx, [ended]).await?;
    queue_pending(tx, source, vec![ended.range()], Vec::new(), order).await
}

/// Lets a queued job run at once, with all its tries before it.
async fn run_now(tx: &mut Transaction, job: &Job) -> Result<Vec<i64>, StoreError> {
    sqlx::query(
        "-- store::steer::run_now
         UPDATE weir.jobs SET run_at = least(run_at, now()), attempt = 0 WHERE id = $1 AND state = 'queued'",
    )
    .bind(job.id)
    .execute(&mut **tx)
    .await?;
    Ok(vec![job.id])
}

/// Forgets what was made of the job's range, ends the source's open jobs and
/// queues all that is pending then. Vectors of two models behind one name must
/// never be compared, so the old ones go before the new ones come.
async fn embed_anew(
    tx: &mut Transaction,
    source: &LockedSource,
    unsettled: &[UnsettledJob],
    job: &Job,
    retry: &Retry,
) -> Result<Vec<i64>, StoreError> {
    let why = format!(
        "superseded: a client has the range of job {} embedded anew",
        job.id
    );
    cancel_open_jobs(tx, source.id, RevokeReason::Superseded, &why).await?;
    settle(tx, unsettled.iter().filter(|job| !job.open)).await?;
    sqlx::query(
        "-- store::steer::embed_anew
         WITH rejections AS (
             DELETE FROM weir.rejections WHERE source_id = $1 AND item_id BETWEEN $2 AND $3
         )
         DELETE FROM weir.embeddings WHERE source_id = $1 AND item_id BETWEEN $2 AND $3",
    )
    .bind(source.id)
    .bind(&job.first_item_id)
    .bind(&job.last_item_id)
    .execute(&mut **tx)
    .await?;
    let mut dirty: Vec<ItemRange> = unsettled.iter().map(UnsettledJob::range).collect();
    dirty.push(ItemRange {
        first: job.first_item_id.clone(),
        last: job.last_item_id.clone(),
    });
    let order = Order {
        trigger: Trigger::Retry,
        priority: job.priority,
        max_chunks_per_job: retry.max_chunks_per_job,
        traceparent: retry.traceparent.as_deref(),
        parkings: 0,
    };
    queue_pending(tx, source, dirty, Vec::new(), &order).await
}

async fn job_in(tx: &mut Transaction, retry: &Retry) -> Result<Job, StoreError> {
    sqlx::query_as(concat!(
        "-- store::steer::job_in\nSELECT ",
        job_columns!(),
        " FROM weir.jobs j WHERE j.id = $1 AND ",
        in_scope!("j.namespace", "$2")
    ))
    .bind(retry.job_id)
    .bind(retry.scope.namespaces())
    .fetch_optional(&mut **tx)
    .await?
    .ok_or_else(|| StoreError::no_job(retry.job_id))
}

async fn jobs_in(tx: &mut Transaction, ids: &[i64]) -> Result<Vec<Job>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "-- store::steer::jobs_in\nSELECT ",
        job_columns!(),
        " FROM weir.jobs j WHERE j.id = ANY($1) ORDER BY j.id DESC LIMIT $2"
    ))
    .bind(ids)
    .bind(MAX_JOBS_WITH_SOURCE)
    .fetch_all(&mut **tx)
    .await?)
}
