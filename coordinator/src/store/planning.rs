//! From what is pending of a source to queued jobs: what a write, a retry and
//! the reconciler have in common.

use super::{
    StoreError,
    database::Transaction,
    locks::{LockedSource, UnsettledJob, settle},
    rejections::standing_rejections,
};
use crate::job::{
    plan::{ItemRange, JobCutter, PlannedJob, merge_ranges},
    state::Trigger,
};
use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;

/// Whether a chunk `c` has neither vector nor rejection of its present text by
/// a model, which is given as SQL. Both are looked up, as `OFFSET` has it: where sets
/// are joined whose size Postgres guesses wrongly, every chunk may meet every vector.
macro_rules! is_pending {
    ($model:literal) => {
        concat!(
            "NOT EXISTS (
                 SELECT FROM weir.embeddings r
                 WHERE r.source_id = c.source_id AND r.item_id = c.item_id AND r.chunk_index = c.chunk_index
                   AND r.model = ",
            $model,
            " AND r.text_hash = c.text_hash OFFSET 0)
             AND NOT EXISTS (
                 SELECT FROM weir.rejections r
                 WHERE r.source_id = c.source_id AND r.item_id = c.item_id AND r.chunk_index = c.chunk_index
                   AND r.model = ",
            $model,
            " AND r.text_hash = c.text_hash OFFSET 0)"
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
    /// Their place in the queue; `None`: the last.
    pub(super) run_at: Option<DateTime<Utc>>,
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

/// Cuts what is `wanted` into jobs and queues these; no job overlaps what is
/// `kept` by others. The source is locked, and so are the jobs that it is taken
/// from. Returns the ids of the jobs, which nobody is told of.
pub(super) async fn queue_pending(
    tx: &mut Transaction,
    source: &LockedSource,
    wanted: Wanted,
    kept: Vec<ItemRange>,
    order: &Order<'_>,
) -> Result<Vec<i64>, StoreError> {
    let cutter = JobCutter::new(order.max_chunks_per_job, merge_ranges(kept));
    let jobs = plan(tx, source, wanted, cutter).await?;
    queue_jobs(tx, source, &jobs, order).await
}

/// Settles ended jobs of a source, `taken` out of all its `unsettled` ones, and
/// queues what they left pending. All of these are locked. Returns the ids of the
/// new jobs.
pub(super) async fn take_over(
    tx: &mut Transaction,
    source: &LockedSource,
    unsettled: &[UnsettledJob],
    taken: &[&UnsettledJob],
    order: &Order<'_>,
) -> Result<Vec<i64>, StoreError> {
    settle(tx, taken.iter().copied()).await?;
    let left = || {
        let is_taken = |job: &UnsettledJob| taken.iter().any(|it| it.id == job.id);
        unsettled.iter().filter(move |job| !is_taken(job))
    };
    // What a newer one has of their range is not theirs; but for that they are planned as one.
    let newer = |job: &UnsettledJob| {
        let range = job.range();
        let newer = left().filter(|it| !it.is_open() && it.id > job.id && it.meets(&range));
        newer.map(UnsettledJob::range).collect::<Vec<_>>()
    };
    let (whole, in_part): (Vec<&UnsettledJob>, Vec<_>) =
        taken.iter().partition(|job| newer(job).is_empty());
    let mut plans = vec![(
        whole.into_iter().map(UnsettledJob::range).collect(),
        Vec::new(),
    )];
    plans.extend(
        in_part
            .into_iter()
            .map(|job| (vec![job.range()], newer(job))),
    );
    let mut open: Vec<ItemRange> = left()
        .filter(|job| job.is_open())
        .map(UnsettledJob::range)
        .collect();
    let mut ids = Vec::new();
    for (ranges, mut kept) in plans {
        kept.extend(open.iter().cloned());
        let cutter = JobCutter::new(order.max_chunks_per_job, merge_ranges(kept));
        let jobs = plan(tx, source, Wanted::pending(ranges), cutter).await?;
        ids.extend(queue_jobs(tx, source, &jobs, order).await?);
        open.extend(jobs.into_iter().map(|job| job.range));
    }
    Ok(ids)
}

/// Queues what an ended job left pending of its range up to the item `upto`, which is
/// before its end: the job goes on with the rest. The job is locked, and so are all
/// `unsettled` ones that cover anything of that. Returns the ids of the new jobs.
pub(super) async fn take_over_beginning(
    tx: &mut Transaction,
    source: &LockedSource,
    unsettled: &[UnsettledJob],
    ended: &UnsettledJob,
    upto: &str,
    order: &Order<'_>,
) -> Result<Vec<i64>, StoreError> {
    let others = unsettled
        .iter()
        .filter(|job| job.is_open() || job.id > ended.id);
    let kept = merge_ranges(others.map(UnsettledJob::range).collect());
    let beginning = ItemRange {
        last: upto.to_owned(),
        ..ended.range()
    };
    let cutter = JobCutter::new(order.max_chunks_per_job, kept);
    let jobs = plan(tx, source, Wanted::pending(vec![beginning]), cutter).await?;
    sqlx::query(
        "-- store::planning::take_over_beginning
         UPDATE weir.jobs j
         SET chunks_total = j.chunks_total - $4, first_item_id = least(j.last_item_id, (
             SELECT item_id FROM weir.chunks WHERE source_id = $1 AND item_id > $3 ORDER BY item_id LIMIT 1))
         WHERE j.id = $2",
    )
    .bind(source.id)
    .bind(ended.id)
    .bind(upto)
    .bind(jobs.iter().map(|job| job.chunks).sum::<i32>())
    .execute(&mut **tx)
    .await?;
    queue_jobs(tx, source, &jobs, order).await
}

/// Counts anew what is pending of open jobs, which are locked, after their chunks
/// have changed; one that has nothing left ends by itself when it is claimed.
pub(super) async fn recount_jobs(
    tx: &mut Transaction,
    source: &LockedSource,
    job_ids: &[i64],
) -> Result<(), StoreError> {
    if job_ids.is_empty() {
        return Ok(());
    }
    sqlx::query(concat!(
        "-- store::planning::recount_jobs
         UPDATE weir.jobs j
         SET chunks_total = j.chunks_done + j.chunks_rejected + n.pending, changes = j.changes + 1
         FROM weir.jobs o CROSS JOIN LATERAL (
             SELECT count(*)::int AS pending FROM weir.chunks c
             WHERE c.source_id = $1 AND c.item_id BETWEEN o.first_item_id AND o.last_item_id AND ",
        is_pending!("$2"),
        " OFFSET 0) n
         WHERE o.id = ANY($3) AND j.id = o.id"
    ))
    .bind(source.id)
    .bind(&source.model)
    .bind(job_ids)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Queues jobs, none of which overlaps an open one of the locked source. Returns
/// their ids.
pub(super) async fn queue_jobs(
    tx: &mut Transaction,
    source: &LockedSource,
    jobs: &[PlannedJob],
    order: &Order<'_>,
) -> Result<Vec<i64>, StoreError> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let first: Vec<&str> = jobs.iter().map(|job| job.range.first.as_str()).collect();
    let last: Vec<&str> = jobs.iter().map(|job| job.range.last.as_str()).collect();
    let chunks: Vec<i32> = jobs.iter().map(|job| job.chunks).collect();
    Ok(sqlx::query_scalar(
        "-- store::planning::queue_jobs
         INSERT INTO weir.jobs (source_id, namespace, source, model, revision, trigger, priority, traceparent, parkings,
                                run_at, first_item_id, last_item_id, chunks_total)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, coalesce($10, now()), first, last, chunks
         FROM unnest($11::text[], $12::text[], $13::int[]) AS job(first, last, chunks)
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
    .bind(order.run_at)
    .bind(&first)
    .bind(&last)
    .bind(&chunks)
    .fetch_all(&mut **tx)
    .await?)
}

/// Cuts the chunks that are wanted into jobs, without those that are still to be
/// moved. Holds in memory what the jobs are, not what the chunks are.
pub(super) async fn plan(
    tx: &mut Transaction,
    source: &LockedSource,
    wanted: Wanted,
    mut cutter: JobCutter,
) -> Result<Vec<PlannedJob>, StoreError> {
    let ranges = wanted.pending.into_iter();
    let ranges = merge_ranges(ranges.filter_map(|it| source.planned_of(it)).collect());
    let rejected = wanted.rejected.and_then(|it| source.planned_of(it));
    let first: Vec<&str> = ranges.iter().map(|range| range.first.as_str()).collect();
    let last: Vec<&str> = ranges.iter().map(|range| range.last.as_str()).collect();
    let mut rows = sqlx::query_as::<_, (String, i64, String)>(concat!(
        "-- store::planning::plan
         SELECT item_id, count(*), min(range)
         FROM (SELECT p.item_id, dirty.first AS range
         FROM unnest($2::text[], $3::text[]) AS dirty(first, last)
         -- Range by range: of sets that are joined, Postgres may read whole tables.
         CROSS JOIN LATERAL (
             SELECT c.item_id FROM weir.chunks c
             WHERE c.source_id = $1 AND c.item_id BETWEEN dirty.first AND dirty.last AND ",
        is_pending!("$4"),
        " OFFSET 0) p
         UNION ALL
         SELECT r.item_id, '' FROM ",
        standing_rejections!("$4"),
        " AND r.item_id BETWEEN $5 AND $6) wanted
         GROUP BY item_id ORDER BY item_id"
    ))
    .bind(source.id)
    .bind(&first)
    .bind(&last)
    .bind(&source.model)
    .bind(rejected.as_ref().map(|range| &range.first))
    .bind(rejected.as_ref().map(|range| &range.last))
    .fetch(&mut **tx);
    let mut before: Option<String> = None;
    while let Some((item_id, pending, range)) = rows.try_next().await? {
        // What lies between two ranges may be pending, and another's.
        let adjoins = before.as_ref() == Some(&range);
        before = Some(range);
        cutter.push(
            item_id,
            i32::try_from(pending).map_err(StoreError::corrupt)?,
            adjoins,
        );
    }
    Ok(cutter.finish())
}
