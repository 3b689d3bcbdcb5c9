//! Ranges of sources that a client has embedded anew: what was made of them is
//! forgotten, and all of it queued. A range of more than one step goes in steps,
//! the first of them in the transaction of the call; in between a note says how far
//! it is.

use super::{
    CHANGE_CHANNEL, QUEUE_CHANNEL, Store, StoreError,
    database::Transaction,
    locks::{Free, LockedSource, UnsettledJob, cancel_jobs, lock_free_source, lock_unsettled_jobs},
    planning::{Order, Wanted, queue_pending, take_over},
    rejections,
    sources::notify,
};
use crate::job::{
    plan::ItemRange,
    state::{RevokeReason, Trigger},
};

/// What a client wants embedded anew, and how.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Force {
    /// The job whose range it is.
    pub(super) job_id: i64,
    pub(super) model: String,
    pub(super) priority: i16,
    /// Most pending chunks in one of the jobs that are queued.
    pub(super) max_chunks_per_job: i32,
    /// W3C trace context of the caller.
    pub(super) traceparent: Option<String>,
}

/// What is noted of a range that is under way.
#[derive(Debug, sqlx::FromRow)]
struct Noted {
    next_item_id: String,
    last_item_id: String,
    #[sqlx(flatten)]
    force: Force,
}

/// What became of a range at once.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// The jobs that were queued, or those that are there where the range is under
    /// way already.
    pub(super) jobs: Vec<i64>,
    /// Whether some of it is still to be queued.
    pub(super) goes_on: bool,
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forced {
    /// The namespace of the source.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The job whose range it is.
    pub job_id: i64,
    /// Jobs queued.
    pub queued: usize,
    /// Whether all of the range is queued now.
    pub finished: bool,
}

/// Has a range of a locked source embedded anew, about `chunks` of its chunks at
/// once, and notes the rest. What is under way already, as an earlier call wants it,
/// is not begun again.
pub(super) async fn begin(
    tx: &mut Transaction,
    source: &LockedSource,
    unsettled: &[UnsettledJob],
    range: &ItemRange,
    force: &Force,
    chunks: i64,
) -> Result<Begun, StoreError> {
    let under_way = under_way(tx, source.id).await?;
    let parts = outside(tx, source.id, range, &under_way).await?;
    let mut begun = Begun {
        jobs: Vec::new(),
        goes_on: under_way.iter().any(|it| it.meets(range)),
    };
    if parts.is_empty() {
        let open = unsettled.iter().filter(|job| job.is_open());
        let open = open.filter(|job| job.meets(range));
        begun.jobs = open.map(|job| job.id).collect();
    }
    for (place, part) in parts.into_iter().enumerate() {
        let mut next = Some(part.first.clone());
        if place == 0 {
            let step = step(tx, source, unsettled, &part, force, chunks).await?;
            begun.jobs = step.jobs;
            next = step.next;
        }
        if let Some(next) = next {
            note(tx, source.id, &part, &next, force).await?;
            begun.goes_on = true;
        }
    }
    Ok(begun)
}

/// The ranges of a source that are under way, in order; no two overlap.
async fn under_way(tx: &mut Transaction, source_id: i64) -> Result<Vec<ItemRange>, StoreError> {
    let ranges: Vec<(String, String)> = sqlx::query_as(
        "-- store::forced::under_way
         SELECT first_item_id, last_item_id FROM weir.forced_ranges WHERE source_id = $1 ORDER BY first_item_id",
    )
    .bind(source_id)
    .fetch_all(&mut **tx)
    .await?;
    let ranges = ranges.into_iter();
    Ok(ranges
        .map(|(first, last)| ItemRange { first, last })
        .collect())
}

/// The parts of a range that lie outside of others, which are in order and do not
/// overlap. Between two items that the source has none is missed.
async fn outside(
    tx: &mut Transaction,
    source_id: i64,
    range: &ItemRange,
    others: &[ItemRange],
) -> Result<Vec<ItemRange>, StoreError> {
    let mut parts = Vec::new();
    let mut first = range.first.clone();
    for other in others {
        if other.last < first || range.last < other.first {
            continue;
        }
        if first < other.first
            && let Some(last) = last_before(tx, source_id, &first, &other.first).await?
        {
            parts.push(ItemRange { first, last });
        }
        match first_after(tx, source_id, &other.last, &range.last).await? {
            Some(next) => first = next,
            None => return Ok(parts),
        }
    }
    let last = range.last.clone();
    parts.push(ItemRange { first, last });
    Ok(parts)
}

/// The last item with chunks from `first` on that is before `end`.
async fn last_before(
    tx: &mut Transaction,
    source_id: i64,
    first: &str,
    end: &str,
) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "-- store::forced::last_before
         SELECT item_id FROM weir.chunks WHERE source_id = $1 AND item_id >= $2 AND item_id < $3
         ORDER BY item_id DESC, chunk_index DESC LIMIT 1",
    )
    .bind(source_id)
    .bind(first)
    .bind(end)
    .fetch_optional(&mut **tx)
    .await?)
}

/// The first item with chunks after this one, up to and with `last`.
async fn first_after(
    tx: &mut Transaction,
    source_id: i64,
    after: &str,
    last: &str,
) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "-- store::forced::first_after
         SELECT item_id FROM weir.chunks WHERE source_id = $1 AND item_id > $2 AND item_id <= $3
         ORDER BY item_id, chunk_index LIMIT 1",
    )
    .bind(source_id)
    .bind(after)
    .bind(last)
    .fetch_optional(&mut **tx)
    .await?)
}

/// The end of a step that begins with a range: the last of its items, where the
/// range has more than `chunks` chunks. No item is done in part, and no open job
/// that begins within the step: another one would take the place of the rest of it.
async fn end_of_step(
    tx: &mut Transaction,
    source_id: i64,
    unsettled: &[UnsettledJob],
    range: &ItemRange,
    chunks: i64,
) -> Result<Option<String>, StoreError> {
    let beyond: Option<String> = sqlx::query_scalar(
        "-- store::forced::end_of_step
         SELECT item_id FROM weir.chunks WHERE source_id = $1 AND item_id BETWEEN $2 AND $3
         ORDER BY item_id, chunk_index OFFSET $4 LIMIT 1",
    )
    .bind(source_id)
    .bind(&range.first)
    .bind(&range.last)
    .bind(chunks)
    .fetch_optional(&mut **tx)
    .await?;
    let Some(beyond) = beyond else {
        return Ok(None);
    };
    let cut = unsettled.iter().filter(|job| job.is_open());
    let cut = cut
        .map(UnsettledJob::range)
        .find(|job| range.first < job.first && job.first < beyond && beyond <= job.last);
    if let Some(cut) = cut
        && let Some(last) = last_before(tx, source_id, &range.first, &cut.first).await?
    {
        return Ok(Some(last));
    }
    let last = last_before(tx, source_id, &range.first, &beyond).await?;
    // An item that alone has more is a step of its own.
    Ok(Some(last.unwrap_or(beyond)))
}

/// What one step did.
struct Step {
    jobs: Vec<i64>,
    /// Where the next one begins.
    next: Option<String>,
}

/// Forgets what was made of the first `chunks` chunks of a range, ends the open
/// jobs that have to do with these, and queues all that is pending of them then.
/// Vectors of two models behind one name must never be compared: what is on its way
/// from the old one must not come after the new ones. The source is locked, and
/// `unsettled` are all of its unsettled jobs.
async fn step(
    tx: &mut Transaction,
    source: &LockedSource,
    unsettled: &[UnsettledJob],
    range: &ItemRange,
    force: &Force,
    chunks: i64,
) -> Result<Step, StoreError> {
    let end = end_of_step(tx, source.id, unsettled, range, chunks).await?;
    let next = match &end {
        Some(end) => first_after(tx, source.id, end, &range.last).await?,
        None => None,
    };
    let range = ItemRange {
        first: range.first.clone(),
        last: end.unwrap_or_else(|| range.last.clone()),
    };
    let open = unsettled.iter().filter(|job| job.is_open());
    let open: Vec<_> = open.filter(|job| job.meets(&range)).collect();
    if !open.is_empty() {
        let ids: Vec<i64> = open.iter().map(|job| job.id).collect();
        let why = format!(
            "superseded: a client has the range of job {} embedded anew",
            force.job_id
        );
        cancel_jobs(tx, source.id, Some(&ids), RevokeReason::Superseded, &why).await?;
    }
    rejections::forget(tx, source.id, &range).await?;
    sqlx::query(
        "-- store::forced::step
         DELETE FROM weir.embeddings WHERE source_id = $1 AND item_id BETWEEN $2 AND $3",
    )
    .bind(source.id)
    .bind(&range.first)
    .bind(&range.last)
    .execute(&mut **tx)
    .await?;
    let order = Order {
        trigger: Trigger::Retry,
        priority: force.priority,
        max_chunks_per_job: force.max_chunks_per_job,
        traceparent: force.traceparent.as_deref(),
        parkings: 0,
        run_at: None,
    };
    let left = unsettled
        .iter()
        .filter(|job| !(job.is_open() && job.meets(&range)));
    let mut left: Vec<UnsettledJob> = left.cloned().collect();
    let mut dirty: Vec<ItemRange> = open.into_iter().map(UnsettledJob::range).collect();
    let ended = left.iter().filter(|job| !job.is_open());
    let ended: Vec<_> = ended.filter(|job| job.meets(&range)).collect();
    let mut jobs = Vec::new();
    if !ended.is_empty() {
        jobs = take_over(tx, source, &left, &ended, &order).await?;
        left = lock_unsettled_jobs(tx, source.id).await?;
    }
    dirty.push(range);
    let kept = left.iter().filter(|job| job.is_open());
    let kept = kept.map(UnsettledJob::range).collect();
    jobs.extend(queue_pending(tx, source, Wanted::pending(dirty), kept, &order).await?);
    Ok(Step { jobs, next })
}

/// Notes a range whose next step begins with the item `next`.
async fn note(
    tx: &mut Transaction,
    source_id: i64,
    range: &ItemRange,
    next: &str,
    force: &Force,
) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::forced::note
         INSERT INTO weir.forced_ranges (source_id, first_item_id, last_item_id, next_item_id, job_id, model, priority,
                                         max_chunks_per_job, traceparent)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(source_id)
    .bind(&range.first)
    .bind(&range.last)
    .bind(next)
    .bind(force.job_id)
    .bind(&force.model)
    .bind(force.priority)
    .bind(force.max_chunks_per_job)
    .bind(&force.traceparent)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Store {
    /// Returns up to `limit` ranges that are under way, of each source the one that
    /// was asked for first.
    pub async fn forced_ranges(&self, limit: i64) -> Result<Vec<i64>, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::forced::forced_ranges
             SELECT min(id) FROM weir.forced_ranges GROUP BY source_id ORDER BY min(id) LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }

    /// Returns how many ranges are under way.
    pub async fn ranges_under_way(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::forced::ranges_under_way\nSELECT count(*) FROM weir.forced_ranges",
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// Takes one step of a range. `None`: it is done, or somebody else has locked its
    /// source.
    pub async fn force_on(&self, range_id: i64) -> Result<Option<Forced>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let source_id: Option<i64> = sqlx::query_scalar(
            "-- store::forced::force_on\nSELECT source_id FROM weir.forced_ranges WHERE id = $1",
        )
        .bind(range_id)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(source_id) = source_id else {
            return Ok(None);
        };
        let Free::Locked(source) = lock_free_source(&mut tx, source_id).await? else {
            return Ok(None);
        };
        // Whoever has the source has its ranges. It is read anew: another may have taken a step.
        let noted: Option<Noted> = sqlx::query_as(
            "-- store::forced::force_on
             SELECT next_item_id, last_item_id, job_id, model, priority, max_chunks_per_job, traceparent
             FROM weir.forced_ranges WHERE id = $1",
        )
        .bind(range_id)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(noted) = noted else {
            return Ok(None);
        };
        let force = noted.force;
        let mut forced = Forced {
            namespace: source.namespace.clone(),
            name: source.name.clone(),
            job_id: force.job_id,
            queued: 0,
            finished: true,
        };
        // All of another model is embedded anew as it is.
        if force.model == source.model {
            let unsettled = lock_unsettled_jobs(&mut tx, source_id).await?;
            let range = ItemRange {
                first: noted.next_item_id,
                last: noted.last_item_id,
            };
            let chunks = self.step_chunks;
            let step = step(&mut tx, &source, &unsettled, &range, &force, chunks).await?;
            forced.queued = step.jobs.len();
            forced.finished = step.next.is_none();
            if let Some(next) = step.next {
                sqlx::query(
                    "-- store::forced::force_on\nUPDATE weir.forced_ranges SET next_item_id = $2 WHERE id = $1",
                )
                .bind(range_id)
                .bind(next)
                .execute(&mut *tx)
                .await?;
            }
        }
        if forced.finished {
            sqlx::query("-- store::forced::force_on\nDELETE FROM weir.forced_ranges WHERE id = $1")
                .bind(range_id)
                .execute(&mut *tx)
                .await?;
        }
        notify(&mut tx, QUEUE_CHANNEL, source_id).await?;
        notify(&mut tx, CHANGE_CHANNEL, source_id).await?;
        tx.commit().await?;
        Ok(Some(forced))
    }
}
