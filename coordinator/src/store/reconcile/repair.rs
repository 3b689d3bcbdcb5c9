//! Repairs: what a step of a check found wrong is put right under the locks of the
//! source and of the jobs about it, as far as the step reaches.

use super::check::{Checked, Miscount, chunk_of_result, is_stale_vector};
use crate::{
    job::{
        plan::{ItemRange, gaps, merge_ranges},
        state::{RevokeReason, Trigger},
    },
    store::{
        CHANGE_CHANNEL, QUEUE_CHANNEL, Store, StoreError,
        database::Transaction,
        locks::{
            Free, LockedSource, UnsettledJob, cancel_open_jobs, lock_free_source, lock_jobs_about,
            lock_unsettled_jobs,
        },
        planning::{Order, Wanted, queue_pending},
        prompts::{in_force, take_step},
        rejections::{count_up, uncount_all},
        sources::notify,
    },
};

/// What was done to put a source right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// Vectors and rejections deleted that were of no present text.
    pub stale_deleted: u64,
    /// Whether its counts were wrong.
    pub recounted: bool,
    /// Open jobs ended because their model was another.
    pub superseded: i64,
    /// Jobs queued.
    pub queued: usize,
}

impl Store {
    /// Puts right what a step of a check found: deletes results of no present text,
    /// corrects counts, ends open jobs of another model, and queues what is pending
    /// and in no unsettled job; and goes on with the check. `None` when the source is
    /// gone, somebody else has locked it, or took the step. `traceparent` is the W3C
    /// trace context of the jobs.
    pub async fn repair(
        &self,
        checked: &Checked,
        max_chunks_per_job: i32,
        traceparent: Option<&str>,
    ) -> Result<Option<Repaired>, StoreError> {
        let mut tx = self.begin_step().await?;
        let source_id = checked.check.source_id;
        if !checked.go_on(&mut tx).await? {
            return Ok(None);
        }
        let Free::Locked(mut source) = lock_free_source(&mut tx, source_id).await? else {
            return Ok(None);
        };
        let unsettled = if checked.found.other_model {
            lock_unsettled_jobs(&mut tx, source_id).await?
        } else {
            lock_jobs_about(&mut tx, source_id, &checked.step.range).await?
        };
        // Under the locks it stands as it will stay.
        let open = || unsettled.iter().filter(|job| job.is_open());
        let is_other = |job: &UnsettledJob| job.model != source.model;
        let other_model = checked.found.other_model && open().any(is_other);
        let ended: Vec<_> = open().filter(|_| other_model).collect();
        let (stale_deleted, rejections) = clear(&mut tx, &source, &checked.step.range).await?;
        if checked.found.miscounted || rejections > 0 {
            correct(&mut tx, source_id, &checked.miscount, rejections).await?;
            forget_rejections(&mut tx, source_id).await?;
        }
        let mut superseded = 0;
        if other_model {
            let why = format!("superseded: the source's model is now {:?}", source.model);
            superseded =
                cancel_open_jobs(&mut tx, source_id, RevokeReason::Superseded, &why).await?;
        }
        let order = Order {
            trigger: Trigger::Reconcile,
            priority: ended.iter().map(|job| job.priority).max().unwrap_or(0),
            max_chunks_per_job,
            traceparent,
            parkings: 0,
            run_at: None,
        };
        let queued = if other_model && !checked.step.is_last {
            move_on(&mut tx, &mut source, self.step_chunks, &order).await?
        } else {
            queue_missing(&mut tx, &source, &checked.step.range, &ended, &order).await?
        };
        notify(&mut tx, QUEUE_CHANNEL, source_id).await?;
        notify(&mut tx, CHANGE_CHANNEL, source_id).await?;
        tx.commit().await?;
        Ok(Some(Repaired {
            stale_deleted,
            recounted: checked.miscount != Miscount::default(),
            superseded,
            queued,
        }))
    }
}

/// Has a locked source that is larger than a step, and whose jobs have ended, move to
/// its model. Returns how many jobs are queued for the first of its items.
async fn move_on(
    tx: &mut Transaction,
    source: &mut LockedSource,
    step_chunks: i64,
    order: &Order<'_>,
) -> Result<usize, StoreError> {
    let prompt = in_force(tx, &source.model).await?;
    uncount_all(tx, source.id).await?;
    source.begin_to_move(prompt.id);
    source
        .note_mover(tx, order.priority, order.traceparent)
        .await?;
    source.note_prompts(tx).await?;
    let jobs = take_step(tx, source, step_chunks, order.max_chunks_per_job).await?;
    Ok(jobs.len())
}

/// Deletes a locked source's results of no present text within a range. Returns how
/// many went, and how many of them were rejections.
async fn clear(
    tx: &mut Transaction,
    source: &LockedSource,
    range: &ItemRange,
) -> Result<(u64, u64), StoreError> {
    let vectors = sqlx::query(concat!(
        "-- store::reconcile::clear
         DELETE FROM weir.embeddings r WHERE r.source_id = $1 AND r.item_id BETWEEN $2 AND $3 AND ",
        is_stale_vector!()
    ))
    .bind(source.id)
    .bind(&range.first)
    .bind(&range.last)
    .execute(&mut **tx)
    .await?;
    let Some(planned) = source.planned_of(range.clone()) else {
        return Ok((vectors.rows_affected(), 0));
    };
    let rejections = sqlx::query(concat!(
        "-- store::reconcile::clear
         DELETE FROM weir.rejections r WHERE r.source_id = $1 AND r.item_id BETWEEN $2 AND $3
           AND (r.model <> $4 OR NOT EXISTS (",
        chunk_of_result!(),
        "))"
    ))
    .bind(source.id)
    .bind(&planned.first)
    .bind(&planned.last)
    .bind(&source.model)
    .execute(&mut **tx)
    .await?;
    let (vectors, rejections) = (vectors.rows_affected(), rejections.rows_affected());
    Ok((vectors + rejections, rejections))
}

/// Corrects the counts of a locked source, of which so many rejections are gone.
async fn correct(
    tx: &mut Transaction,
    source_id: i64,
    by: &Miscount,
    rejections_gone: u64,
) -> Result<(), StoreError> {
    if by.items != 0 || by.chunks != 0 {
        sqlx::query(
            "-- store::reconcile::correct
             UPDATE weir.sources
             SET items_total = greatest(items_total + $2, 0), chunks_total = greatest(chunks_total + $3, 0)
             WHERE id = $1",
        )
        .bind(source_id)
        .bind(by.items)
        .bind(by.chunks)
        .execute(&mut **tx)
        .await?;
    }
    let gone = i64::try_from(rejections_gone).map_err(StoreError::corrupt)?;
    count_up(tx, source_id, by.rejections - gone).await
}

/// Has a check that goes on compare no count of rejections: some that it has counted
/// are gone.
async fn forget_rejections(tx: &mut Transaction, source_id: i64) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::reconcile::forget_rejections
         UPDATE weir.checks SET rejections_version = NULL WHERE source_id = $1",
    )
    .bind(source_id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Queues what is pending of a range and in no unsettled job: first what `ended` ones
/// had, for that was theirs alone, and then what nobody has. Returns how many jobs
/// that makes.
async fn queue_missing(
    tx: &mut Transaction,
    source: &LockedSource,
    range: &ItemRange,
    ended: &[&UnsettledJob],
    order: &Order<'_>,
) -> Result<usize, StoreError> {
    let within = |ranges: Vec<ItemRange>| {
        let ranges = ranges.into_iter();
        ranges.filter_map(|it| it.within(range)).collect()
    };
    let left = within(ended.iter().map(|job| job.range()).collect());
    let of_ended = queue_pending(tx, source, Wanted::pending(left), Vec::new(), order).await?;
    let kept = lock_jobs_about(tx, source.id, range).await?;
    let kept = merge_ranges(kept.iter().map(UnsettledJob::range).collect());
    let missing = Wanted::pending(within(gaps(&kept)));
    let of_nobody = queue_pending(tx, source, missing, kept, order).await?;
    Ok(of_ended.len() + of_nobody.len())
}
