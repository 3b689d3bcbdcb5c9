//! Rejections: counted where they are written and deleted, so that nobody has
//! to read them to know how many there are; and taken back.

use super::{
    StoreError,
    database::Transaction,
    locks::{LockedSource, UnsettledJob, lock_unsettled_jobs},
    planning::{Order, Wanted, queue_pending, take_over},
};
use crate::job::plan::ItemRange;

/// How many chunks of the source `s` stand rejected.
macro_rules! rejected_of_source {
    () => {
        "(SELECT coalesce(sum(k.chunks), 0)::bigint FROM weir.rejection_counts k WHERE k.source_id = s.id)"
    };
}
pub(super) use rejected_of_source;

/// What is told of the rejections of the source `s`, after its row: since when
/// the first has stood, and when and why the last came. Two looks at the ends of
/// an index, however many there are.
macro_rules! rejections_of_source {
    () => {
        " LEFT JOIN LATERAL (
             SELECT r.rejected_at AS since FROM weir.rejections r WHERE r.source_id = s.id
             ORDER BY r.rejected_at LIMIT 1) first_rejection ON true
         LEFT JOIN LATERAL (
             SELECT r.rejected_at AS at, r.reason FROM weir.rejections r WHERE r.source_id = s.id
             ORDER BY r.rejected_at DESC LIMIT 1) last_rejection ON true"
    };
}
pub(super) use rejections_of_source;

/// The rejections `r` of the source `$1` that stand: of a present text, by the
/// source's model, which is given as SQL.
macro_rules! standing_rejections {
    ($model:literal) => {
        concat!(
            "weir.rejections r
             JOIN weir.chunks c ON c.source_id = r.source_id AND c.item_id = r.item_id
                 AND c.chunk_index = r.chunk_index AND c.text_hash = r.text_hash
             WHERE r.source_id = $1 AND r.model = ",
            $model
        )
    };
}
pub(super) use standing_rejections;

/// What is queued again.
#[derive(Debug, Default)]
pub(super) struct Resumed {
    /// Rejected chunks that are pending again.
    pub(super) taken_back: i64,
    /// Jobs queued for these and for what the ended ones left pending, and those
    /// that were there and have more to embed now.
    pub(super) jobs: Vec<i64>,
}

/// Settles `ended` jobs that failed or were cancelled, queues what they left
/// pending, and takes back the rejections within `range`: a chunk that belongs to
/// an unsettled job is pending there, the others are queued. The source is locked,
/// and `unsettled` are all of its unsettled jobs. Nobody is told.
pub(super) async fn resume(
    tx: &mut Transaction,
    source: &LockedSource,
    unsettled: &[UnsettledJob],
    ended: &[&UnsettledJob],
    range: ItemRange,
    order: &Order<'_>,
) -> Result<Resumed, StoreError> {
    let mut resumed = Resumed {
        taken_back: 0,
        jobs: take_over(tx, source, unsettled, ended, order).await?,
    };
    for job_id in give_to_unsettled(tx, source, &range).await? {
        if !resumed.jobs.contains(&job_id) {
            resumed.jobs.push(job_id);
        }
    }
    let kept = lock_unsettled_jobs(tx, source.id).await?;
    let kept = kept.iter().map(UnsettledJob::range).collect();
    let wanted = Wanted {
        pending: Vec::new(),
        rejected: Some(range.clone()),
    };
    let queued = queue_pending(tx, source, wanted, kept, order).await?;
    resumed.jobs.extend(queued);
    resumed.taken_back = forget(tx, source.id, &range).await?;
    Ok(resumed)
}

/// Counts the rejected chunks within `range` as pending to the unsettled jobs
/// that they belong to, and returns those jobs. What a job rejected itself it did
/// not do; what was rejected before it was planned is more than it was planned with.
async fn give_to_unsettled(
    tx: &mut Transaction,
    source: &LockedSource,
    range: &ItemRange,
) -> Result<Vec<i64>, StoreError> {
    Ok(sqlx::query_scalar(concat!(
        "-- store::rejections::give_to_unsettled
         UPDATE weir.jobs j
         SET chunks_total = j.chunks_total + greatest(k.chunks - j.chunks_rejected, 0),
             chunks_rejected = greatest(j.chunks_rejected - k.chunks, 0),
             claimed_done = least(j.claimed_done, j.chunks_done + greatest(j.chunks_rejected - k.chunks, 0)),
             changes = j.changes + 1
         FROM (SELECT u.id, count(*)::int AS chunks
               FROM (SELECT r.item_id FROM ",
        standing_rejections!("$2"),
        " AND r.item_id BETWEEN $3 AND $4) r
               CROSS JOIN LATERAL (
                   SELECT id FROM weir.jobs
                   WHERE source_id = $1 AND NOT settled AND r.item_id BETWEEN first_item_id AND last_item_id
                   ORDER BY (state IN ('queued', 'running')) DESC, id DESC LIMIT 1) u
               GROUP BY u.id) k
         WHERE j.id = k.id
         RETURNING j.id"
    ))
    .bind(source.id)
    .bind(&source.model)
    .bind(&range.first)
    .bind(&range.last)
    .fetch_all(&mut **tx)
    .await?)
}

/// Deletes the rejections of a locked source within `range`. Returns how many
/// there were.
pub(super) async fn forget(
    tx: &mut Transaction,
    source_id: i64,
    range: &ItemRange,
) -> Result<i64, StoreError> {
    let gone = sqlx::query(
        "-- store::rejections::forget
         DELETE FROM weir.rejections WHERE source_id = $1 AND item_id BETWEEN $2 AND $3",
    )
    .bind(source_id)
    .bind(&range.first)
    .bind(&range.last)
    .execute(&mut **tx)
    .await?;
    let gone = i64::try_from(gone.rows_affected()).map_err(StoreError::corrupt)?;
    uncount(tx, source_id, gone).await?;
    Ok(gone)
}

/// Counts rejections as gone, which were deleted in the same transaction. The
/// source and its unsettled jobs are locked.
pub(super) async fn uncount(
    tx: &mut Transaction,
    source_id: i64,
    gone: i64,
) -> Result<(), StoreError> {
    if gone == 0 {
        return Ok(());
    }
    sqlx::query(
        "-- store::rejections::uncount
         WITH counted AS (DELETE FROM weir.rejection_counts WHERE source_id = $1 RETURNING chunks)
         INSERT INTO weir.rejection_counts (source_id, job_id, chunks)
         SELECT $1, 0, sum(chunks) - $2 FROM counted HAVING sum(chunks) > $2",
    )
    .bind(source_id)
    .bind(gone)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Counts the rejections of a locked source anew. Returns whether the count was
/// wrong.
pub(super) async fn recount(tx: &mut Transaction, source_id: i64) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "-- store::rejections::recount
         WITH counted AS (DELETE FROM weir.rejection_counts WHERE source_id = $1 RETURNING chunks),
         present AS (SELECT count(*) AS chunks FROM weir.rejections WHERE source_id = $1),
         anew AS (
             INSERT INTO weir.rejection_counts (source_id, job_id, chunks)
             -- Read after the old ones are gone: one of them may have the same key.
             SELECT $1, 0, p.chunks FROM present p CROSS JOIN (SELECT count(*) FROM counted) gone WHERE p.chunks > 0
         )
         SELECT (SELECT coalesce(sum(chunks), 0) FROM counted) <> (SELECT chunks FROM present)",
    )
    .bind(source_id)
    .fetch_one(&mut **tx)
    .await?)
}
