//! The locks under which a source and its unsettled jobs change, always taken
//! in this order: the source's row, then its unsettled jobs' rows; results go on
//! with the model's row. And the ways in which such a job ends at the hands of
//! whoever holds them.
//!
//! A pending chunk belongs to the open job that covers it, for these do not
//! overlap, or else to the newest of the ended jobs that cover it and are not
//! settled. Every job counts what belongs to it, and nothing else.

use chrono::{DateTime, Utc};

use super::{REVOKE_CHANNEL, StoreError, database::Transaction, rows::SourceKey, sources::notify};
use crate::job::{
    plan::ItemRange,
    state::{JobState, RevokeReason},
};

/// What a write must know of a source before it changes it.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct LockedSource {
    pub(super) id: i64,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) model: String,
    pub(super) revision: i64,
    pub(super) items_total: i64,
    pub(super) chunks_total: i64,
    pub(super) prompt_id: i64,
    pub(super) next_prompt_id: Option<i64>,
    pub(super) prompted_to: Option<String>,
    /// While it moves to another model: its chunks that are not planned for that yet.
    pub(super) chunks_to_move: Option<i64>,
}

impl LockedSource {
    /// While it moves to another model: the last item that is planned for that.
    pub(super) fn moved_to(&self) -> Option<&str> {
        self.chunks_to_move.and(self.prompted_to.as_deref())
    }

    /// Whether this item is still to be moved. Nothing of it is in a job then, and
    /// what its hash is of is not known.
    pub(super) fn is_unmoved(&self, item_id: &str) -> bool {
        self.moved_to().is_some_and(|moved_to| item_id > moved_to)
    }

    /// What of a range is planned by its jobs.
    pub(super) fn planned_of(&self, range: ItemRange) -> Option<ItemRange> {
        match self.moved_to() {
            Some(moved_to) => range.within(&ItemRange {
                first: String::new(),
                last: moved_to.to_owned(),
            }),
            None => Some(range),
        }
    }
}

/// The columns of a [`LockedSource`].
macro_rules! locked_columns {
    () => {
        "id, namespace, name, model, revision, items_total, chunks_total, prompt_id, next_prompt_id, prompted_to,
         chunks_to_move"
    };
}
pub(super) use locked_columns;

/// Takes the row lock of a source: the right to change its content.
pub(super) async fn lock_source(
    tx: &mut Transaction,
    key: &SourceKey,
) -> Result<Option<LockedSource>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "-- store::locks::lock_source
         SELECT ",
        locked_columns!(),
        " FROM weir.sources WHERE namespace = $1 AND name = $2 FOR UPDATE"
    ))
    .bind(&key.namespace)
    .bind(&key.name)
    .fetch_optional(&mut **tx)
    .await?)
}

/// As [`lock_source`], of a source known by its row.
pub(super) async fn lock_source_row(
    tx: &mut Transaction,
    source_id: i64,
) -> Result<Option<LockedSource>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "-- store::locks::lock_source_row
         SELECT ",
        locked_columns!(),
        " FROM weir.sources WHERE id = $1 FOR UPDATE"
    ))
    .bind(source_id)
    .fetch_optional(&mut **tx)
    .await?)
}

/// A source that is locked unless somebody else has it.
#[derive(Debug)]
pub(super) enum Free {
    /// It is locked now.
    Locked(LockedSource),
    /// Somebody else has it.
    Busy,
    /// It was deleted.
    Gone,
}

/// As [`lock_source_row`], for whoever has other sources to go on with: it waits
/// for nobody.
pub(super) async fn lock_free_source(
    tx: &mut Transaction,
    source_id: i64,
) -> Result<Free, StoreError> {
    let source: Option<LockedSource> = sqlx::query_as(concat!(
        "-- store::locks::lock_free_source
         SELECT ",
        locked_columns!(),
        " FROM weir.sources WHERE id = $1 FOR UPDATE SKIP LOCKED"
    ))
    .bind(source_id)
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(source) = source {
        return Ok(Free::Locked(source));
    }
    let is_there: bool = sqlx::query_scalar(
        "-- store::locks::lock_free_source\nSELECT EXISTS (SELECT FROM weir.sources WHERE id = $1)",
    )
    .bind(source_id)
    .fetch_one(&mut **tx)
    .await?;
    Ok(if is_there { Free::Busy } else { Free::Gone })
}

/// An unsettled job as a write sees it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct UnsettledJob {
    pub(super) id: i64,
    first_item_id: String,
    last_item_id: String,
    pub(super) model: String,
    pub(super) priority: i16,
    pub(super) run_at: DateTime<Utc>,
    pub(super) parkings: i16,
    pub(super) traceparent: Option<String>,
    /// Not that it has succeeded.
    #[sqlx(try_from = "String")]
    pub(super) state: JobState,
    /// Failed, and its parking is over.
    pub(super) due: bool,
}

impl UnsettledJob {
    /// Queued or running; otherwise it failed or was cancelled.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, JobState::Queued | JobState::Running)
    }

    /// Whether it covers an item of a range.
    pub(super) fn meets(&self, range: &ItemRange) -> bool {
        self.first_item_id <= range.last && range.first <= self.last_item_id
    }

    /// Whether it covers this item.
    pub(super) fn covers(&self, item_id: &str) -> bool {
        (self.first_item_id.as_str()..=self.last_item_id.as_str()).contains(&item_id)
    }

    /// The items it covers.
    pub(super) fn range(&self) -> ItemRange {
        ItemRange {
            first: self.first_item_id.clone(),
            last: self.last_item_id.clone(),
        }
    }
}

/// The columns of an [`UnsettledJob`].
macro_rules! unsettled_columns {
    () => {
        "id, first_item_id, last_item_id, model, priority, run_at, parkings, traceparent,
         state, state = 'failed' AND run_at <= now() AS due"
    };
}

// Of jobs that are not open the index by range is told with `IS FALSE`: what is
// negated Postgres writes otherwise than the index has it.

/// Takes the row locks of all of a source's unsettled jobs: from here on no
/// worker persists anything for them until the transaction ends. After the lock
/// of the source, before any change of its chunks (law 7).
pub(super) async fn lock_unsettled_jobs(
    tx: &mut Transaction,
    source_id: i64,
) -> Result<Vec<UnsettledJob>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "-- store::locks::lock_unsettled_jobs\nSELECT ",
        unsettled_columns!(),
        " FROM weir.jobs WHERE source_id = $1 AND NOT settled ORDER BY id FOR UPDATE"
    ))
    .bind(source_id)
    .fetch_all(&mut **tx)
    .await?)
}

/// As [`lock_unsettled_jobs`], of the open jobs that cover some items, which are
/// in order, and of all ended ones about them.
pub(super) async fn lock_covering_jobs(
    tx: &mut Transaction,
    source_id: i64,
    item_ids: &[&str],
) -> Result<Vec<UnsettledJob>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "-- store::locks::lock_covering_jobs\nSELECT ",
        unsettled_columns!(),
        " FROM weir.jobs WHERE NOT settled AND id = ANY(ARRAY(
             -- Open jobs do not overlap: the last that begins before an item covers it, or none does.
             SELECT j.id FROM unnest($2::text[]) AS of(item_id)
             CROSS JOIN LATERAL (
                 SELECT id, last_item_id FROM weir.jobs
                 WHERE source_id = $1 AND NOT settled AND state IN ('queued', 'running')
                   AND first_item_id <= of.item_id
                 ORDER BY first_item_id DESC LIMIT 1) j
             WHERE j.last_item_id >= of.item_id
             UNION ALL
             -- Compared as a row: NOT would be turned into a condition that no index has.
             SELECT id FROM weir.jobs
             WHERE source_id = $1 AND NOT settled AND ((state IN ('queued', 'running')), first_item_id) <= (false, $4)
               AND last_item_id >= $3))
         ORDER BY id FOR UPDATE"
    ))
    .bind(source_id)
    .bind(item_ids)
    .bind(item_ids.first())
    .bind(item_ids.last())
    .fetch_all(&mut **tx)
    .await?)
}

/// As [`lock_unsettled_jobs`], of those that cover an item of a range, and the open
/// one before it.
pub(super) async fn lock_jobs_about(
    tx: &mut Transaction,
    source_id: i64,
    range: &ItemRange,
) -> Result<Vec<UnsettledJob>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "-- store::locks::lock_jobs_about\nSELECT ",
        unsettled_columns!(),
        " FROM weir.jobs WHERE NOT settled AND id = ANY(ARRAY(
             -- Open jobs do not overlap: of those that begin before the range the last alone may reach into it.
             (SELECT id FROM weir.jobs
              WHERE source_id = $1 AND NOT settled AND state IN ('queued', 'running') AND first_item_id < $2
              ORDER BY first_item_id DESC LIMIT 1)
             UNION ALL
             SELECT id FROM weir.jobs
             WHERE source_id = $1 AND NOT settled AND state IN ('queued', 'running')
               AND first_item_id BETWEEN $2 AND $3
             UNION ALL
             SELECT id FROM weir.jobs
             WHERE source_id = $1 AND NOT settled AND (state IN ('queued', 'running')) IS FALSE
               AND first_item_id <= $3 AND last_item_id >= $2))
         ORDER BY id FOR UPDATE"
    ))
    .bind(source_id)
    .bind(&range.first)
    .bind(&range.last)
    .fetch_all(&mut **tx)
    .await?)
}

/// Settles jobs that failed or were cancelled: whatever they left pending is
/// the caller's from now on, and nothing waits for their time any more.
pub(super) async fn settle(
    tx: &mut Transaction,
    jobs: impl IntoIterator<Item = &UnsettledJob>,
) -> Result<(), StoreError> {
    let ids: Vec<i64> = jobs.into_iter().map(|job| job.id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "-- store::locks::settle
         UPDATE weir.jobs SET settled = true, run_at = least(run_at, now())
         WHERE id = ANY($1) AND state IN ('failed', 'cancelled')",
    )
    .bind(&ids)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Ends and settles a source's open jobs, moving their epoch: whatever they
/// left pending is the caller's from now on.
pub(super) async fn cancel_open_jobs(
    tx: &mut Transaction,
    source_id: i64,
    reason: RevokeReason,
    why: &str,
) -> Result<i64, StoreError> {
    cancel_jobs(tx, source_id, None, reason, why).await
}

/// As [`cancel_open_jobs`], of those with these ids.
pub(super) async fn cancel_jobs(
    tx: &mut Transaction,
    source_id: i64,
    ids: Option<&[i64]>,
    reason: RevokeReason,
    why: &str,
) -> Result<i64, StoreError> {
    let (cancelled, revoked): (i64, i64) = sqlx::query_as(
        "-- store::locks::cancel_jobs
         WITH open AS (
             SELECT id, state FROM weir.jobs WHERE source_id = $1 AND state IN ('queued', 'running') AND NOT settled
               AND ($4::bigint[] IS NULL OR id = ANY($4))
         ), attempts AS (
             INSERT INTO weir.attempts (job_id, epoch, worker_id, started_at, outcome, error, chunks_done, charged)
             SELECT j.id, j.epoch, j.worker_id, j.claimed_at, 'cancelled', $3,
                    j.chunks_done + j.chunks_rejected - j.claimed_done, false
             FROM open JOIN weir.jobs j USING (id) WHERE j.state = 'running'
         ), cancelled AS (
             UPDATE weir.jobs j
             SET state = 'cancelled', settled = true, epoch = j.epoch + 1, revoke_reason = $2, last_error = $3,
                 embedder_down = false, worker_id = NULL, lease_expires_at = NULL, claimed_at = NULL, finished_at = now()
             FROM open WHERE j.id = open.id
             RETURNING open.state AS was
         )
         SELECT count(*), count(*) FILTER (WHERE was = 'running') FROM cancelled",
    )
    .bind(source_id)
    .bind(reason.as_str())
    .bind(why)
    .bind(ids)
    .fetch_one(&mut **tx)
    .await?;
    if revoked > 0 {
        notify(tx, REVOKE_CHANNEL, source_id).await?;
    }
    Ok(cancelled)
}
