//! Jobs as clients steer them: cancelled, and run again.

use super::{
    CHANGE_CHANNEL, QUEUE_CHANNEL, REVOKE_CHANNEL, Scope, Store, StoreError,
    database::Transaction,
    forced::{self, Begun, Force},
    locks::{
        Free, LockedSource, UnsettledJob, lock_free_source, lock_source_row, lock_unsettled_jobs,
    },
    planning::Order,
    rejections::{self, Resumed},
    rows::{Job, SourceKey, job_columns},
    scope::in_scope,
    sources::{MAX_JOBS_WITH_SOURCE, jobs_in, notify},
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

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Retried {
    /// The jobs that run, newest first, at most [`MAX_JOBS_WITH_SOURCE`].
    pub jobs: Vec<Job>,
    /// Whether some of a range that is embedded anew is still to be queued.
    pub goes_on: bool,
}

/// A client's wish to have all of a source run again that came to a stop.
#[derive(Debug, Clone)]
pub struct SourceRetry {
    /// The source.
    pub key: SourceKey,
    /// Most pending chunks in one of the jobs it queues.
    pub max_chunks_per_job: i32,
    /// W3C trace context of the caller.
    pub traceparent: Option<String>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceRetried {
    /// Rejected chunks that are pending again.
    pub taken_back: i64,
    /// The source's open jobs, newest first, at most [`MAX_JOBS_WITH_SOURCE`].
    pub jobs: Vec<Job>,
}

impl Store {
    /// Cancels an open job and returns it. One that is cancelled already is
    /// returned as it is; one that has succeeded or failed is an error. Its
    /// chunks stay pending, and counted so, until a write of the whole content or a retry takes them
    /// up.
    pub async fn cancel_job(&self, scope: &Scope, job_id: i64) -> Result<Job, StoreError> {
        self.at_job(job_id, || self.try_cancel(scope, job_id)).await
    }

    async fn try_cancel(&self, scope: &Scope, job_id: i64) -> Result<Job, StoreError> {
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

    /// Has a job run again, and returns the jobs that do it, newest first, at most [`MAX_JOBS_WITH_SOURCE`]. A job that waits for its next
    /// try may run at once; what a failed or cancelled one left pending is
    /// queued again, and so is what was rejected of its range, whatever its
    /// state; with `force` all of its range is embedded anew, what is more than one
    /// step of it by [`Store::force_on`]. Fails
    /// where there is nothing to do, or the source is gone.
    pub async fn retry_job(&self, retry: &Retry) -> Result<Retried, StoreError> {
        let job = self.job(&retry.scope, retry.job_id).await?;
        let key = SourceKey {
            namespace: job.namespace,
            name: job.source,
        };
        self.at_source(&key, || self.try_retry_job(retry, job.source_id))
            .await
    }

    async fn try_retry_job(&self, retry: &Retry, source_id: i64) -> Result<Retried, StoreError> {
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
        let begun = if retry.force {
            let force = Force {
                job_id: job.id,
                model: source.model.clone(),
                priority: job.priority,
                max_chunks_per_job: retry.max_chunks_per_job,
                traceparent: retry.traceparent.clone(),
            };
            let chunks = self.step_chunks;
            forced::begin(
                &mut tx,
                &source,
                &unsettled,
                &range_of(&job),
                &force,
                chunks,
            )
            .await?
        } else {
            let jobs = run_again(&mut tx, &source, &unsettled, &job, retry).await?;
            let goes_on = false;
            Begun { jobs, goes_on }
        };
        let jobs = jobs_in(&mut tx, &begun.jobs).await?;
        tell(&mut tx, source_id).await?;
        tx.commit().await?;
        Ok(Retried {
            jobs,
            goes_on: begun.goes_on,
        })
    }

    /// Has all of a source run again that came to a stop: what was rejected, what
    /// failed and cancelled jobs left pending, and jobs that wait for their next
    /// try. What is embedded stays. Doing it twice is doing it once.
    pub async fn retry_source(&self, retry: &SourceRetry) -> Result<SourceRetried, StoreError> {
        self.at_source(&retry.key, || self.try_retry_source(retry))
            .await
    }

    async fn try_retry_source(&self, retry: &SourceRetry) -> Result<SourceRetried, StoreError> {
        let source_id = self.source_id(&retry.key).await?;
        let mut tx = self.pool.begin().await?;
        let Some(source) = lock_source_row(&mut tx, source_id).await? else {
            return Err(retry.key.not_found());
        };
        let unsettled = lock_unsettled_jobs(&mut tx, source_id).await?;
        let ended: Vec<_> = unsettled.iter().filter(|job| !job.is_open()).collect();
        let order = Order {
            trigger: Trigger::Retry,
            priority: ended.iter().map(|job| job.priority).max().unwrap_or(0),
            max_chunks_per_job: retry.max_chunks_per_job,
            traceparent: retry.traceparent.as_deref(),
            parkings: 0,
            run_at: None,
        };
        let everything = ItemRange::everything();
        let resumed =
            rejections::resume(&mut tx, &source, &unsettled, &ended, everything, &order).await?;
        let hastened = run_now(&mut tx, source_id, None).await?;
        let jobs = open_jobs_in(&mut tx, source_id).await?;
        // Transactions that notify are committed one after the other: no more of them than news.
        if resumed.taken_back > 0 || hastened || !ended.is_empty() {
            tell(&mut tx, source_id).await?;
        }
        tx.commit().await?;
        Ok(SourceRetried {
            taken_back: resumed.taken_back,
            jobs,
        })
    }

    /// Takes back what was rejected of a source, and nothing else of it: what a
    /// client cancelled stays so, and what waits goes on waiting. Returns how many
    /// chunks are pending again; none where the source is gone, or somebody else has
    /// locked it. For whoever finds
    /// that the embedder has become another.
    pub async fn retry_rejected(
        &self,
        source_id: i64,
        max_chunks_per_job: i32,
        traceparent: Option<&str>,
    ) -> Result<i64, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Free::Locked(source) = lock_free_source(&mut tx, source_id).await? else {
            return Ok(0);
        };
        let unsettled = lock_unsettled_jobs(&mut tx, source_id).await?;
        let order = Order {
            trigger: Trigger::Retry,
            priority: 0,
            max_chunks_per_job,
            traceparent,
            parkings: 0,
            run_at: None,
        };
        let everything = ItemRange::everything();
        let resumed =
            rejections::resume(&mut tx, &source, &unsettled, &[], everything, &order).await?;
        if resumed.taken_back > 0 {
            tell(&mut tx, source_id).await?;
        }
        tx.commit().await?;
        Ok(resumed.taken_back)
    }
}

/// Tells who waits for jobs, and who watches, once the transaction is committed.
async fn tell(tx: &mut Transaction, source_id: i64) -> Result<(), StoreError> {
    notify(tx, QUEUE_CHANNEL, source_id).await?;
    notify(tx, CHANGE_CHANNEL, source_id).await
}

fn running(job: &Job) -> String {
    format!(
        "job {} is running, and nothing of its range is rejected: cancel it first, or use force to embed its range anew",
        job.id
    )
}

fn settled(job: &Job) -> String {
    let why = match job.state {
        JobState::Succeeded => "nothing of it is pending or rejected",
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

fn range_of(job: &Job) -> ItemRange {
    ItemRange {
        first: job.first_item_id.clone(),
        last: job.last_item_id.clone(),
    }
}

/// Has a job run again without touching what is embedded. Its source and that
/// one's unsettled jobs are locked.
async fn run_again(
    tx: &mut Transaction,
    source: &LockedSource,
    unsettled: &[UnsettledJob],
    job: &Job,
    retry: &Retry,
) -> Result<Vec<i64>, StoreError> {
    let here = unsettled.iter().find(|unsettled| unsettled.id == job.id);
    let ended: Vec<_> = here.into_iter().filter(|job| !job.is_open()).collect();
    let range = range_of(job);
    let order = Order {
        trigger: Trigger::Retry,
        priority: job.priority,
        max_chunks_per_job: retry.max_chunks_per_job,
        traceparent: retry.traceparent.as_deref(),
        parkings: 0,
        run_at: None,
    };
    let Resumed {
        taken_back,
        mut jobs,
    } = rejections::resume(tx, source, unsettled, &ended, range, &order).await?;
    match job.state {
        JobState::Queued => {
            run_now(tx, source.id, Some(job.id)).await?;
            if !jobs.contains(&job.id) {
                jobs.push(job.id);
            }
        }
        JobState::Running if taken_back == 0 => return Err(StoreError::Precondition(running(job))),
        _ if taken_back == 0 && here.is_none() => {
            return Err(StoreError::Precondition(settled(job)));
        }
        _ => {}
    }
    Ok(jobs)
}

/// Lets queued jobs of a source, or one of them, run at once, with all their
/// tries before them. Returns whether any had to wait.
async fn run_now(
    tx: &mut Transaction,
    source_id: i64,
    job_id: Option<i64>,
) -> Result<bool, StoreError> {
    let hastened = sqlx::query(
        "-- store::steer::run_now
         UPDATE weir.jobs SET run_at = least(run_at, now()), attempt = 0
         WHERE source_id = $1 AND NOT settled AND state = 'queued' AND ($2::bigint IS NULL OR id = $2)
           AND (run_at > now() OR attempt > 0)",
    )
    .bind(source_id)
    .bind(job_id)
    .execute(&mut **tx)
    .await?;
    Ok(hastened.rows_affected() > 0)
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

async fn open_jobs_in(tx: &mut Transaction, source_id: i64) -> Result<Vec<Job>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "-- store::steer::open_jobs_in\nSELECT ",
        job_columns!(),
        " FROM weir.jobs j WHERE j.source_id = $1 AND NOT j.settled AND j.state IN ('queued', 'running')
         ORDER BY j.id DESC LIMIT $2"
    ))
    .bind(source_id)
    .bind(MAX_JOBS_WITH_SOURCE)
    .fetch_all(&mut **tx)
    .await?)
}
