//! From what is pending of a source to queued jobs: what a write, a retry and
//! the reconciler have in common.

use super::{
    StoreError, database::Transaction, locks::LockedSource, rejections::standing_rejections,
};
use crate::job::{
    plan::{ItemRange, JobCutter, PlannedJob, merge_ranges},
    state::Trigger,
};
use futures::TryStreamExt as _;

/// Whether a chunk `c` has neither vector nor rejection of its present text by
/// a model, which is given as SQL.
macro_rules! is_pending {
    ($model:literal) => {
        concat!(
            "NOT EXISTS (
                 SELECT FROM weir.embeddings e
                 WHERE e.source_id = c.source_id AND e.item_id = c.item_id AND e.chunk_index = c.chunk_index
                   AND e.model = ",
            $model,
            " AND e.text_hash = c.text_hash)
             AND NOT EXISTS (
                 SELECT FROM weir.rejections r
                 WHERE r.source_id = c.source_id AND r.item_id = c.item_id AND r.chunk_index = c.chunk_index
                   AND r.model = ",
            $model,
            " AND r.text_hash = c.text_hash)"
        )
    };
}
pub(super) use is_pending;

/// What the jobs of one plan have in common.
#[derive(Debug)]
pub(super) struct Order<'a> {
    /// Why they are queued.
    pub(super) trigger: Trigger,
    pub(super) priority: i16,
    /// Most pending chunks in one of them.
    pub(super) max_chunks_per_job: i32,
    /// W3C trace context of who caused them.
    pub(super) traceparent: Option<&'a str>,
    /// Jobs before them that failed over the same chunks.
    pub(super) parkings: i16,
}

/// What is to be queued.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// What is pending in these ranges.
    pub(super) pending: Vec<ItemRange>,
    /// What was rejected in this range, and is pending once the caller has deleted
    /// the rejections.
    pub(super) rejected: Option<ItemRange>,
}

impl Wanted {
    /// What is pending in these ranges.
    pub(super) fn pending(ranges: Vec<ItemRange>) -> Self {
        Self {
            pending: ranges,
            rejected: None,
        }
    }
}

/// Cuts what is `wanted` into jobs and queues these; no
/// job overlaps what is `kept` by others. The source and its unsettled jobs are
/// locked. Returns the ids of the jobs, which nobody is told of.
pub(super) async fn queue_pending(
    tx: &mut Transaction,
    source: &LockedSource,
    wanted: Wanted,
    kept: Vec<ItemRange>,
    order: &Order<'_>,
) -> Result<Vec<i64>, StoreError> {
    let cutter = JobCutter::new(order.max_chunks_per_job, merge_ranges(kept));
    let jobs = plan(tx, source, wanted, cutter).await?;
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let first: Vec<&str> = jobs.iter().map(|job| job.range.first.as_str()).collect();
    let last: Vec<&str> = jobs.iter().map(|job| job.range.last.as_str()).collect();
    let chunks: Vec<i32> = jobs.iter().map(|job| job.chunks).collect();
    let ids = sqlx::query_scalar(
        "-- store::planning::queue_pending
         INSERT INTO weir.jobs (source_id, namespace, source, model, revision, trigger, priority, traceparent, parkings,
                                first_item_id, last_item_id, chunks_total)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, first, last, chunks
         FROM unnest($10::text[], $11::text[], $12::int[]) AS job(first, last, chunks)
         RETURNING id",
    )
    .bind(source.id)
    .bind(&source.namespace)
    .bind(&source.name)
    .bind(&source.model)
    .bind(source.revision)
    .bind(order.trigger.as_str())
    .bind(order.priority)
    .bind(order.traceparent)
    .bind(order.parkings)
    .bind(&first)
    .bind(&last)
    .bind(&chunks)
    .fetch_all(&mut **tx)
    .await?;
    Ok(ids)
}

/// Cuts the chunks that are wanted into jobs. Holds in
/// memory what the jobs are, not what the chunks are.
async fn plan(
    tx: &mut Transaction,
    source: &LockedSource,
    wanted: Wanted,
    mut cutter: JobCutter,
) -> Result<Vec<PlannedJob>, StoreError> {
    let ranges = merge_ranges(wanted.pending);
    let first: Vec<&str> = ranges.iter().map(|range| range.first.as_str()).collect();
    let last: Vec<&str> = ranges.iter().map(|range| range.last.as_str()).collect();
    let mut rows = sqlx::query_as::<_, (String, i64)>(concat!(
        "-- store::planning::plan
         SELECT item_id, count(*)
         FROM (SELECT c.item_id
         FROM unnest($2::text[], $3::text[]) AS dirty(first, last)
         JOIN weir.chunks c ON c.source_id = $1 AND c.item_id BETWEEN dirty.first AND dirty.last
         WHERE ",
        is_pending!("$4"),
        "
         UNION ALL
         SELECT r.item_id FROM ",
        standing_rejections!("$4"),
        " AND r.item_id BETWEEN $5 AND $6) wanted
         GROUP BY item_id ORDER BY item_id"
    ))
    .bind(source.id)
    .bind(&first)
    .bind(&last)
    .bind(&source.model)
    .bind(wanted.rejected.as_ref().map(|range| &range.first))
    .bind(wanted.rejected.as_ref().map(|range| &range.last))
    .fetch(&mut **tx);
    while let Some((item_id, pending)) = rows.try_next().await? {
        cutter.push(
            item_id,
            i32::try_from(pending).map_err(StoreError::corrupt)?,
        );
    }
    Ok(cutter.finish())
}
