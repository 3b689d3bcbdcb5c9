//! The reconciler's steps: failed jobs whose parking is over are queued again,
//! and sources whose vectors do not match their chunks are put right.

use std::time::Duration;

use super::{
    CHANGE_CHANNEL, QUEUE_CHANNEL, Store, StoreError,
    database::Transaction,
    lease::interval,
    locks::{
        Free, LockedSource, UnsettledJob, cancel_open_jobs, lock_free_source, lock_unsettled_jobs,
        settle,
    },
    planning::{Order, Wanted, is_pending, queue_pending, take_over},
    rejections,
    sources::notify,
};
use crate::job::{
    plan::{ItemRange, gaps, merge_ranges},
    state::{RevokeReason, Trigger},
};

/// The chunk whose present text the result `r` was made of.
macro_rules! chunk_of_result {
    () => {
        "SELECT FROM weir.chunks c
         WHERE c.source_id = r.source_id AND c.item_id = r.item_id AND c.chunk_index = r.chunk_index
           AND c.text_hash = r.text_hash"
    };
}

/// Jobs of a source that count rejections, each in a row of its own, before these
/// are summed up.
const MANY_COUNTS: i64 = 100;

/// The vectors of the source `$1` that are of no present text. Those made with
/// another prompt that their model had, or without any, are of one: they stay
/// until they are replaced. Only where the hash is not that of the chunk are
/// texts hashed for that.
macro_rules! stale_vectors {
    () => {
        concat!(
            "SELECT r.item_id, r.chunk_index FROM (
                 SELECT r.source_id, r.item_id, r.chunk_index, r.model, r.text_hash FROM weir.embeddings r
                 WHERE r.source_id = $1 AND NOT EXISTS (",
            chunk_of_result!(),
            ") OFFSET 0) r
             WHERE NOT EXISTS (
                 SELECT FROM weir.chunks c
                 WHERE c.source_id = r.source_id AND c.item_id = r.item_id AND c.chunk_index = r.chunk_index
                   AND (r.text_hash = sha256(convert_to(c.text, 'UTF8'))
                        OR EXISTS (
                            SELECT FROM weir.prompts p
                            WHERE p.model = r.model AND r.text_hash = sha256(convert_to(p.prompt || c.text, 'UTF8')))))"
        )
    };
}

/// What became of a source's failed jobs whose parking was over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unparked {
    /// Failed jobs that were settled.
    pub settled: usize,
    /// Jobs queued for what these had left pending.
    pub queued: usize,
}

/// What is wrong with a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, sqlx::FromRow)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each fault is there or not, whatever the others"
)]
pub struct Findings {
    /// Chunks are pending that no unsettled job covers.
    pub uncovered: bool,
    /// There are results of chunks that are gone or have another text, or
    /// rejections by another model.
    pub stale: bool,
    /// An open job embeds with a model that is not the source's.
    pub other_model: bool,
    /// The counts of items, chunks or rejections are wrong, or those of rejections
    /// have become many.
    pub miscounted: bool,
}

impl Findings {
    /// Whether anything is wrong.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// What was done to put a source right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
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
    /// Returns the sources of up to `limit` failed jobs whose parking is over,
    /// those that have waited longest first.
    pub async fn parked_sources(&self, limit: i64) -> Result<Vec<i64>, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::reconcile::parked_sources
             SELECT source_id FROM (
                 SELECT source_id, run_at FROM weir.jobs WHERE state = 'failed' AND NOT settled AND run_at <= now()
                 ORDER BY run_at LIMIT $1) due
             GROUP BY source_id ORDER BY min(run_at)",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }

    /// Settles up to `limit` failed jobs of a source whose parking is over, and
    /// queues what they left pending. The new jobs are parked for longer,
    /// should they fail too. Nothing happens where somebody else has locked the
    /// source.
    pub async fn unpark(
        &self,
        source_id: i64,
        limit: usize,
        max_chunks_per_job: i32,
    ) -> Result<Unparked, StoreError> {
        let mut tx = self.pool.begin().await?;
        let source = match lock_free_source(&mut tx, source_id).await? {
            Free::Locked(source) => Some(source),
            Free::Gone => None,
            Free::Busy => return Ok(Unparked::default()),
        };
        let unsettled = lock_unsettled_jobs(&mut tx, source_id).await?;
        let mut unparked = Unparked::default();
        for ended in unsettled.iter().filter(|job| job.due).take(limit) {
            unparked.settled += 1;
            let Some(source) = &source else {
                settle(&mut tx, [ended]).await?;
                continue;
            };
            let order = Order {
                trigger: Trigger::Reconcile,
                priority: ended.priority,
                max_chunks_per_job,
                traceparent: ended.traceparent.as_deref(),
                parkings: ended.parkings.saturating_add(1),
                run_at: None,
            };
            let queued = take_over(&mut tx, source, &unsettled, &[ended], &order).await?;
            unparked.queued += queued.len();
        }
        if unparked.settled > 0 {
            notify(&mut tx, QUEUE_CHANNEL, source_id).await?;
            notify(&mut tx, CHANGE_CHANNEL, source_id).await?;
        }
        tx.commit().await?;
        Ok(unparked)
    }

    /// Takes up to `limit` sources that have not been checked for `every`,
    /// those that have waited longest first, and marks them as checked.
    /// Replicas do this side by side; each takes what the others leave.
    pub async fn take_unchecked(
        &self,
        every: Duration,
        limit: i64,
    ) -> Result<Vec<i64>, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::reconcile::take_unchecked
             WITH due AS MATERIALIZED (
                 SELECT id FROM weir.sources WHERE checked_at <= now() - $1
                 ORDER BY checked_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
             )
             UPDATE weir.sources s SET checked_at = now() FROM due WHERE s.id = due.id RETURNING s.id",
        )
        .bind(interval(every))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }

    /// Compares a source with its vectors, jobs and counts, as of one moment
    /// and without a lock. Nothing is wrong with a source that is not there.
    pub async fn check_source(&self, source_id: i64) -> Result<Findings, StoreError> {
        let found: Option<Findings> = sqlx::query_as(concat!(
            "-- store::reconcile::check_source
             WITH job AS (
                 -- Ended jobs may lie within others.
                 SELECT max(last_item_id) OVER before AS reach,
                        lead(first_item_id) OVER (ORDER BY first_item_id, last_item_id) AS next
                 FROM weir.jobs WHERE source_id = $1 AND NOT settled
                 WINDOW before AS (ORDER BY first_item_id, last_item_id ROWS UNBOUNDED PRECEDING)
             ), gap AS (
                 SELECT reach AS after, coalesce(next, $2) AS before FROM job WHERE next > reach OR next IS NULL
                 UNION ALL
                 SELECT '', coalesce(min(j.first_item_id), $2) FROM weir.jobs j
                 WHERE j.source_id = $1 AND NOT j.settled
             )
             SELECT EXISTS (
                        -- Gap by gap, each through the index: joined as sets, every chunk would meet every gap.
                        SELECT FROM gap g CROSS JOIN LATERAL (
                            SELECT FROM weir.chunks c
                            WHERE c.source_id = $1 AND c.item_id > g.after AND c.item_id < g.before AND ",
            is_pending!("s.model"),
            " LIMIT 1) pending) AS uncovered,
                    EXISTS (
                        ",
            stale_vectors!(),
            ")
                    OR EXISTS (
                        SELECT FROM weir.rejections r WHERE r.source_id = $1 AND (r.model <> s.model OR NOT EXISTS (",
            chunk_of_result!(),
            "))) AS stale,
                    EXISTS (
                        SELECT FROM weir.jobs j WHERE j.source_id = $1 AND NOT j.settled
                          AND j.state IN ('queued', 'running') AND j.model <> s.model) AS other_model,
                    s.items_total <> (SELECT count(*) FROM weir.items i WHERE i.source_id = $1)
                    OR s.chunks_total <> (SELECT count(*) FROM weir.chunks c WHERE c.source_id = $1)
                    OR (SELECT coalesce(sum(k.chunks), 0) FROM weir.rejection_counts k WHERE k.source_id = $1)
                       <> (SELECT count(*) FROM weir.rejections r WHERE r.source_id = $1)
                    OR (SELECT count(*) FROM weir.rejection_counts k WHERE k.source_id = $1) > $3 AS miscounted
             FROM weir.sources s WHERE s.id = $1"
        ))
        .bind(source_id)
        .bind(ItemRange::everything().last)
        .bind(MANY_COUNTS)
        .fetch_optional(&self.pool)
        .await?;
        Ok(found.unwrap_or_default())
    }

    /// Puts a source right: deletes results of no present text, corrects its
    /// counts, ends open jobs of another model, and queues what is pending and
    /// in no unsettled job. `None` when the source is gone, or somebody else has locked
    /// it. `traceparent` is the W3C
    /// trace context of the jobs.
    pub async fn repair_source(
        &self,
        source_id: i64,
        max_chunks_per_job: i32,
        traceparent: Option<&str>,
    ) -> Result<Option<Repaired>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let Free::Locked(source) = lock_free_source(&mut tx, source_id).await? else {
            return Ok(None);
        };
        let unsettled = lock_unsettled_jobs(&mut tx, source_id).await?;
        let (stale_deleted, recounted) = clear(&mut tx, &source).await?;
        let other_model = unsettled
            .iter()
            .any(|job| job.is_open() && job.model != source.model);
        let mut superseded = 0;
        if other_model {
            let why = format!("superseded: the source's model is now {:?}", source.model);
            superseded =
                cancel_open_jobs(&mut tx, source_id, RevokeReason::Superseded, &why).await?;
        }
        let ended: Vec<_> = unsettled
            .iter()
            .filter(|job| other_model && job.is_open())
            .collect();
        let order = Order {
            trigger: Trigger::Reconcile,
            priority: ended.iter().map(|job| job.priority).max().unwrap_or(0),
            max_chunks_per_job,
            traceparent,
            parkings: 0,
            run_at: None,
        };
        // First what they had, for that was theirs alone, and then what nobody has.
        let left = ended.into_iter().map(UnsettledJob::range).collect();
        let mut queued =
            queue_pending(&mut tx, &source, Wanted::pending(left), Vec::new(), &order).await?;
        let kept = lock_unsettled_jobs(&mut tx, source_id).await?;
        let kept = merge_ranges(kept.iter().map(UnsettledJob::range).collect());
        let wanted = Wanted::pending(gaps(&kept));
        queued.extend(queue_pending(&mut tx, &source, wanted, kept, &order).await?);
        notify(&mut tx, QUEUE_CHANNEL, source_id).await?;
        notify(&mut tx, CHANGE_CHANNEL, source_id).await?;
        tx.commit().await?;
        Ok(Some(Repaired {
            namespace: source.namespace,
            name: source.name,
            stale_deleted,
            recounted,
            superseded,
            queued: queued.len(),
        }))
    }
}

/// Deletes a locked source's results of no present text, and corrects its
/// counts. Returns how many results went, and whether a count was wrong.
async fn clear(tx: &mut Transaction, source: &LockedSource) -> Result<(u64, bool), StoreError> {
    let vectors = sqlx::query(concat!(
        "-- store::reconcile::clear
         DELETE FROM weir.embeddings e USING (",
        stale_vectors!(),
        ") stale
         WHERE e.source_id = $1 AND e.item_id = stale.item_id AND e.chunk_index = stale.chunk_index"
    ))
    .bind(source.id)
    .execute(&mut **tx)
    .await?;
    let stale = sqlx::query(concat!(
        "-- store::reconcile::clear
         DELETE FROM weir.rejections r WHERE r.source_id = $1 AND (r.model <> $2 OR NOT EXISTS (",
        chunk_of_result!(),
        "))"
    ))
    .bind(source.id)
    .bind(&source.model)
    .execute(&mut **tx)
    .await?;
    let recounted = sqlx::query(
        "-- store::reconcile::clear
         UPDATE weir.sources s SET items_total = n.items, chunks_total = n.chunks
         FROM (SELECT (SELECT count(*) FROM weir.items WHERE source_id = $1) AS items,
                      (SELECT count(*) FROM weir.chunks WHERE source_id = $1) AS chunks) n
         WHERE s.id = $1 AND (s.items_total, s.chunks_total) <> (n.items, n.chunks)",
    )
    .bind(source.id)
    .execute(&mut **tx)
    .await?;
    let rejections_recounted = rejections::recount(tx, source.id).await?;
    Ok((
        vectors.rows_affected() + stale.rows_affected(),
        recounted.rows_affected() > 0 || rejections_recounted,
    ))
}
