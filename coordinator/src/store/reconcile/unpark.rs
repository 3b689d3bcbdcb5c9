//! Failed jobs whose parking is over: settled, and what they left is queued again.

use std::time::Duration;

use crate::{
    job::state::Trigger,
    store::{
        CHANGE_CHANNEL, QUEUE_CHANNEL, Store, StoreError,
        database::Transaction,
        lease::interval,
        locks::{Free, LockedSource, UnsettledJob, lock_free_source, lock_jobs_about},
        planning::{Order, take_over, take_over_beginning},
        sources::notify,
        steps::step_from,
    },
};

/// For how long a failed job stays parked that could not be queued again.
const PUT_OFF: Duration = Duration::from_mins(1);

/// What became of a source's failed jobs whose parking was over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unparked {
    /// Failed jobs that were settled.
    pub settled: usize,
    /// Jobs queued for what these had left pending.
    pub queued: usize,
    /// Whether there are more of them.
    pub more: bool,
}

impl Store {
    /// Returns the sources of up to `limit` failed jobs whose parking is over,
    /// those that have waited longest first, without those that had their turn.
    pub async fn parked_sources(
        &self,
        limit: i64,
        had_their_turn: &[i64],
    ) -> Result<Vec<i64>, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::reconcile::parked_sources
             SELECT source_id FROM (
                 SELECT source_id, run_at FROM weir.jobs
                 WHERE state = 'failed' AND NOT settled AND run_at <= now() AND source_id <> ALL($2)
                 ORDER BY run_at LIMIT $1) due
             GROUP BY source_id ORDER BY min(run_at)",
        )
        .bind(limit)
        .bind(had_their_turn)
        .fetch_all(&self.pool)
        .await?)
    }

    /// Takes a step of a source that has failed jobs whose parking is over: settles
    /// those within the step, which begins with the first of them, and queues what
    /// they left pending. Of one that is larger than a step the beginning is queued,
    /// and it goes on with the rest. The new jobs are parked for longer, should they
    /// fail too. Nothing happens where somebody else has locked the source.
    pub async fn unpark(
        &self,
        source_id: i64,
        max_chunks_per_job: i32,
    ) -> Result<Unparked, StoreError> {
        let mut tx = self.begin_step().await?;
        let unparked = match lock_free_source(&mut tx, source_id).await? {
            Free::Locked(source) => {
                self.unpark_step(&mut tx, &source, max_chunks_per_job)
                    .await?
            }
            Free::Gone => Unparked {
                settled: settle_deserted(&mut tx, source_id, self.step_chunks).await?,
                ..Unparked::default()
            },
            Free::Busy => return Ok(Unparked::default()),
        };
        if unparked != Unparked::default() {
            notify(&mut tx, QUEUE_CHANNEL, source_id).await?;
            notify(&mut tx, CHANGE_CHANNEL, source_id).await?;
        }
        tx.commit().await?;
        Ok(unparked)
    }

    /// Leaves the first failed job of a source whose parking is over parked for a
    /// while, for it could not be worked on.
    pub async fn put_off(&self, source_id: i64) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        if let Some((job_id, _)) = first_due(&mut tx, source_id).await? {
            sqlx::query(
                "-- store::reconcile::put_off
                 UPDATE weir.jobs SET run_at = now() + $2 WHERE id = $1 AND state = 'failed' AND NOT settled",
            )
            .bind(job_id)
            .bind(interval(PUT_OFF))
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn unpark_step(
        &self,
        tx: &mut Transaction,
        source: &LockedSource,
        max_chunks_per_job: i32,
    ) -> Result<Unparked, StoreError> {
        let mut unparked = Unparked::default();
        let Some((job_id, first)) = first_due(tx, source.id).await? else {
            return Ok(unparked);
        };
        let step = step_from(&mut **tx, source.id, first, self.step_chunks).await?;
        let unsettled = lock_jobs_about(tx, source.id, &step.range).await?;
        let is_whole = |job: &UnsettledJob| job.range().within(&step.range) == Some(job.range());
        let due = || unsettled.iter().filter(|job| job.due);
        let whole: Vec<_> = due().filter(|job| is_whole(job)).collect();
        let beginning = due().find(|job| whole.is_empty() && job.id == job_id);
        for ended in whole.iter().copied().chain(beginning) {
            let order = Order {
                trigger: Trigger::Reconcile,
                priority: ended.priority,
                max_chunks_per_job,
                traceparent: ended.traceparent.as_deref(),
                parkings: ended.parkings.saturating_add(1),
                run_at: None,
            };
            let queued = if whole.is_empty() {
                let upto = &step.range.last;
                take_over_beginning(tx, source, &unsettled, ended, upto, &order).await?
            } else {
                take_over(tx, source, &unsettled, &[ended], &order).await?
            };
            unparked.queued += queued.len();
        }
        unparked.settled = whole.len();
        unparked.more = first_due(tx, source.id).await?.is_some();
        Ok(unparked)
    }
}

/// The failed job of a source whose parking is over that begins first, and with
/// which item.
async fn first_due(
    tx: &mut Transaction,
    source_id: i64,
) -> Result<Option<(i64, String)>, StoreError> {
    Ok(sqlx::query_as(
        "-- store::reconcile::first_due
         SELECT id, first_item_id FROM weir.jobs
         WHERE source_id = $1 AND NOT settled AND (state IN ('queued', 'running')) IS FALSE
           AND state = 'failed' AND run_at <= now()
         ORDER BY first_item_id, id LIMIT 1",
    )
    .bind(source_id)
    .fetch_optional(&mut **tx)
    .await?)
}

/// Settles up to `limit` failed jobs of a source that is gone.
async fn settle_deserted(
    tx: &mut Transaction,
    source_id: i64,
    limit: i64,
) -> Result<usize, StoreError> {
    let settled = sqlx::query(
        "-- store::reconcile::settle_deserted
         UPDATE weir.jobs SET settled = true, run_at = least(run_at, now())
         WHERE id = ANY(ARRAY(
             SELECT id FROM weir.jobs
             WHERE source_id = $1 AND NOT settled AND (state IN ('queued', 'running')) IS FALSE
               AND state = 'failed' AND run_at <= now()
             LIMIT $2 FOR UPDATE))",
    )
    .bind(source_id)
    .bind(limit)
    .execute(&mut **tx)
    .await?;
    usize::try_from(settled.rows_affected()).map_err(StoreError::corrupt)
}
