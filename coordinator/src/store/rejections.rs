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
/// an index, however many there are; nothing where one of a former model stands
/// there that is still to go.
macro_rules! rejections_of_source {
    () => {
        " LEFT JOIN LATERAL (
             SELECT r.rejected_at AS since, r.model FROM weir.rejections r WHERE r.source_id = s.id
             ORDER BY r.rejected_at LIMIT 1) first_rejection ON first_rejection.model = s.model
         LEFT JOIN LATERAL (
             SELECT r.rejected_at AS at, r.reason, r.model FROM weir.rejections r WHERE r.source_id = s.id
             ORDER BY r.rejected_at DESC LIMIT 1) last_rejection ON last_rejection.model = s.model"
    };
}
pub(super) use rejections_of_source;

/// Tells whether what counts the rejections of a source, which is given as SQL, was
/// touched meanwhile: another version each time.
macro_rules! counts_version {
    ($source:literal) => {
        concat!(
            "(SELECT coalesce(md5(string_agg(concat_ws(':', k.job_id, k.chunks, k.xmin), ',' ORDER BY k.job_id)), '')
              FROM weir.rejection_counts k WHERE k.source_id = ",
            $source,
            ")"
        )
    };
}
pub(super) use counts_version;

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
    let gone = sqlx::query_scalar(
        "-- store::rejections::forget
         WITH gone AS (
             DELETE FROM weir.rejections WHERE source_id = $1 AND item_id BETWEEN $2 AND $3 RETURNING item_id
         )
         SELECT count(*) FROM gone WHERE NOT EXISTS (
             -- Those of the model before are counted no more.
             SELECT FROM weir.sources s WHERE s.id = $1 AND s.chunks_to_move IS NOT NULL AND gone.item_id > s.prompted_to)",
    )
    .bind(source_id)
    .bind(&range.first)
    .bind(&range.last)
    .fetch_one(&mut **tx)
    .await?;
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
    count_up(tx, source_id, -gone).await
}

/// Counts none of a locked source's rejections any more: it gets another model. Its
/// jobs have ended.
pub(super) async fn uncount_all(tx: &mut Transaction, source_id: i64) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::rejections::uncount_all
         DELETE FROM weir.rejection_counts WHERE source_id = $1",
    )
    .bind(source_id)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Counts so many rejections of a locked source more, in one row for all of them.
/// What a job counts meanwhile is waited for, or counted after it.
pub(super) async fn count_up(
    tx: &mut Transaction,
    source_id: i64,
    by: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::rejections::count_up
         WITH counted AS (DELETE FROM weir.rejection_counts WHERE source_id = $1 RETURNING chunks),
         total AS (SELECT coalesce(sum(chunks), 0) + $2 AS chunks FROM counted)
         INSERT INTO weir.rejection_counts (source_id, job_id, chunks)
         SELECT $1, 0, chunks FROM total WHERE chunks > 0",
    )
    .bind(source_id)
    .bind(by)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
