//! Reading and deleting sources.

use sqlx::{Postgres, QueryBuilder};

use super::{
    CHANGE_CHANNEL, Scope, Store, StoreError,
    database::Transaction,
    leftovers::{self, Sweep},
    locks::{cancel_open_jobs, lock_source, lock_unsettled_jobs, settle},
    rejections::rejected_of_source,
    rows::{Job, Source, SourceKey, job_columns, source_columns, source_jobs},
    status::{Page, Paging},
};
use crate::job::state::RevokeReason;

/// Most jobs that ride along with a source.
pub const MAX_JOBS_WITH_SOURCE: i64 = 1_000;

/// Which sources to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub struct SourceFilter {
    /// Only those whose name begins so.
    pub name_prefix: Option<String>,
    /// Only with this model.
    pub model: Option<String>,
    /// Only those with an unsettled job or a range that is embedded anew, and those
    /// that move to another model.
    pub unsettled_only: bool,
}

impl SourceFilter {
    fn push(&self, query: &mut QueryBuilder<Postgres>) {
        if let Some(prefix) = &self.name_prefix {
            query
                .push(" AND starts_with(s.name, ")
                .push_bind(prefix.clone())
                .push(")");
        }
        if let Some(model) = &self.model {
            query.push(" AND s.model = ").push_bind(model.clone());
        }
        if self.unsettled_only {
            query.push(
                " AND (s.chunks_to_move IS NOT NULL
                       OR s.id IN (SELECT source_id FROM weir.jobs WHERE NOT settled
                                   UNION ALL SELECT source_id FROM weir.forced_ranges))",
            );
        }
    }
}

fn key_of((source, _): &(Source, Option<Job>)) -> SourceKey {
    SourceKey {
        namespace: source.namespace.clone(),
        name: source.name.clone(),
    }
}

/// A source and its unsettled jobs, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceState {
    /// The source.
    pub source: Source,
    /// Its open jobs, and those that left chunks pending.
    pub jobs: Vec<Job>,
}

/// What a deletion took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// The source's row.
    pub source_id: i64,
    /// Items gone.
    pub items: i64,
    /// Chunks gone that had the vector of their present text.
    pub embeddings: i64,
    /// Open jobs cancelled.
    pub jobs: i64,
}

impl SourceKey {
    /// The error for a source that is not there.
    pub(crate) fn not_found(&self) -> StoreError {
        StoreError::NotFound(format!(
            "there is no source {:?} in namespace {:?}",
            self.name, self.namespace
        ))
    }
}

impl SourceKey {
    /// The error for a source that is not at the revision a write expected.
    pub(super) fn not_at(&self, expected: Option<i64>, present: Option<i64>) -> StoreError {
        let expected = match expected.unwrap_or_default() {
            0 => "that it does not exist yet".to_owned(),
            revision => format!("revision {revision}"),
        };
        let present = match present {
            None => "there is none".to_owned(),
            Some(revision) => format!("it is at revision {revision}"),
        };
        StoreError::Aborted(format!(
            "of the source {:?} in namespace {:?} the write expected {expected}, but {present}: it was changed by \
             another write; nothing was done",
            self.name, self.namespace
        ))
    }
}

impl Store {
    /// Returns the row of a source.
    pub async fn source_id(&self, key: &SourceKey) -> Result<i64, StoreError> {
        self.read(|| async {
            let source_id = sqlx::query_scalar(
                "-- store::sources::source_id\nSELECT id FROM weir.sources WHERE namespace = $1 AND name = $2",
            )
            .bind(&key.namespace)
            .bind(&key.name)
            .fetch_optional(&self.pool)
            .await?;
            source_id.ok_or_else(|| key.not_found())
        })
        .await
    }

    /// Returns a source with its unsettled jobs, both as of one moment.
    pub async fn source(&self, key: &SourceKey) -> Result<SourceState, StoreError> {
        self.read(|| async {
            let mut tx = self.pool.begin().await?;
            sqlx::query(
            "-- store::sources::source\nSET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        )
        .execute(&mut *tx)
        .await?;
            let state = source_in(&mut tx, key).await?;
            tx.commit().await?;
            Ok(state)
        })
        .await
    }

    /// Returns a page of up to `limit` sources, by namespace and name, each with
    /// its most telling unsettled job.
    pub async fn sources(
        &self,
        scope: &Scope,
        filter: &SourceFilter,
        paging: Option<&Paging<SourceKey>>,
        limit: i64,
    ) -> Result<Page<(Source, Option<Job>), SourceKey>, StoreError> {
        self.read(|| self.try_sources(scope, filter, paging, limit))
            .await
    }

    async fn try_sources(
        &self,
        scope: &Scope,
        filter: &SourceFilter,
        paging: Option<&Paging<SourceKey>>,
        limit: i64,
    ) -> Result<Page<(Source, Option<Job>), SourceKey>, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("-- store::sources::sources\nSET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            .execute(&mut *tx)
            .await?;
        let (bound, order, from) = match paging {
            Some(Paging::Before(key)) => ("<", " DESC", Some(key)),
            Some(Paging::After(key)) => (">", "", Some(key)),
            None => (">", "", None),
        };
        let mut query = QueryBuilder::new(concat!(
            "-- store::sources::sources\nSELECT ",
            source_columns!(),
            " FROM weir.sources s",
            source_jobs!(),
            " WHERE (s.namespace, s.name) "
        ));
        query.push(bound).push(" (");
        query.push_bind(from.map_or("", |key| &key.namespace).to_owned());
        query.push(", ");
        query.push_bind(from.map_or("", |key| &key.name).to_owned());
        query.push(")");
        scope.push(&mut query, "s.namespace");
        filter.push(&mut query);
        query.push(" ORDER BY s.namespace").push(order);
        query.push(", s.name").push(order).push(" LIMIT ");
        // One more than are wanted, to know whether others follow.
        query.push_bind(limit + 1);
        let mut sources: Vec<Source> = query.build_query_as().fetch_all(&mut *tx).await?;
        let others_follow = sources.len() as i64 > limit;
        sources.truncate(usize::try_from(limit).unwrap_or_default());
        let ids: Vec<i64> = sources.iter().map(|source| source.id).collect();
        let jobs: Vec<Job> = sqlx::query_as(concat!(
            "-- store::sources::sources\nSELECT ",
            job_columns!(),
            " FROM unnest($1::bigint[]) AS wanted(source_id)
             CROSS JOIN LATERAL (
                 SELECT * FROM weir.jobs u WHERE u.source_id = wanted.source_id AND NOT u.settled
                 ORDER BY array_position('{failed}', u.state), (u.state <> 'cancelled' AND u.attempt > 0) DESC,
                          u.embedder_down DESC, array_position('{running,queued,cancelled}', u.state), u.attempt DESC,
                          u.run_at, u.id
                 LIMIT 1) j"
        ))
        .bind(&ids)
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        let rows: Vec<(Source, Option<Job>)> = sources
            .into_iter()
            .map(|source| {
                let job = jobs.iter().find(|job| job.source_id == source.id).cloned();
                (source, job)
            })
            .collect();
        let more = rows.last().filter(|_| others_follow).map(key_of);
        Ok(Page::of(rows, paging, more, key_of))
    }

    /// Deletes a source and cancels its open jobs. What else belongs to it goes with
    /// it as far as that is one step; the rest of a large one is left to
    /// [`Store::sweep`], and found by nobody else. With an `expected` revision, only the source at that.
    pub async fn delete_source(
        &self,
        key: &SourceKey,
        expected: Option<i64>,
    ) -> Result<Deleted, StoreError> {
        self.at_source(key, || self.try_delete(key, expected)).await
    }

    async fn try_delete(
        &self,
        key: &SourceKey,
        expected: Option<i64>,
    ) -> Result<Deleted, StoreError> {
        let mut tx = self.pool.begin().await?;
        let source = lock_source(&mut tx, key)
            .await?
            .ok_or_else(|| key.not_found())?;
        if expected.is_some_and(|revision| revision != source.revision) {
            return Err(key.not_at(expected, Some(source.revision)));
        }
        let source_id = source.id;
        let unsettled = lock_unsettled_jobs(&mut tx, source_id).await?;
        let (items, chunks, embedded, rejected) = totals(&mut tx, source_id).await?;
        settle(&mut tx, unsettled.iter().filter(|job| !job.is_open())).await?;
        let jobs = cancel_open_jobs(
            &mut tx,
            source_id,
            RevokeReason::SourceDeleted,
            "the source was deleted",
        )
        .await?;
        sqlx::query(
            "-- store::sources::delete_source
             WITH counts AS (DELETE FROM weir.rejection_counts WHERE source_id = $1),
                  former AS (DELETE FROM weir.former_models WHERE source_id = $1),
                  forced AS (DELETE FROM weir.forced_ranges WHERE source_id = $1),
                  source AS (DELETE FROM weir.sources WHERE id = $1 RETURNING namespace, name, revision)
             -- One that is put again goes on from there.
             INSERT INTO weir.deleted_sources (namespace, name, revision)
             SELECT namespace, name, revision FROM source
             ON CONFLICT (namespace, name) DO UPDATE
             SET revision = EXCLUDED.revision, deleted_at = EXCLUDED.deleted_at",
        )
        .bind(source_id)
        .execute(&mut *tx)
        .await?;
        let mut sweep = Sweep::default();
        let rows = (self.step_rows() - unsettled.len() as i64).max(0);
        let swept = sweep.step(&mut tx, source_id, rows).await?;
        let rows_left = items + chunks + embedded + rejected - swept;
        leftovers::note(&mut tx, source_id, &sweep, rows_left).await?;
        notify(&mut tx, CHANGE_CHANNEL, source_id).await?;
        tx.commit().await?;
        Ok(Deleted {
            source_id,
            items,
            embeddings: embedded,
            jobs,
        })
    }
}

/// Counts the items of a locked source, its chunks, and of these the embedded
/// and the rejected ones, off the rows that count them.
async fn totals(tx: &mut Transaction, source_id: i64) -> Result<(i64, i64, i64, i64), StoreError> {
    Ok(sqlx::query_as(concat!(
        "-- store::sources::totals
         SELECT s.items_total, s.chunks_total, greatest(s.chunks_total - p.pending - r.rejected, 0), r.rejected
         FROM weir.sources s
         CROSS JOIN LATERAL (
             SELECT coalesce(sum(chunks_total - chunks_done - chunks_rejected), 0)::bigint AS pending
             FROM weir.jobs WHERE source_id = s.id AND NOT settled) p
         CROSS JOIN LATERAL (SELECT ",
        rejected_of_source!(),
        " AS rejected) r
         WHERE s.id = $1"
    ))
    .bind(source_id)
    .fetch_one(&mut **tx)
    .await?)
}

/// Reads a source with its unsettled jobs.
async fn source_in(tx: &mut Transaction, key: &SourceKey) -> Result<SourceState, StoreError> {
    let source: Source = sqlx::query_as(concat!(
        "-- store::sources::source_in\nSELECT ",
        source_columns!(),
        " FROM weir.sources s",
        source_jobs!(),
        " WHERE s.namespace = $1 AND s.name = $2"
    ))
    .bind(&key.namespace)
    .bind(&key.name)
    .fetch_optional(&mut **tx)
    .await?
    .ok_or_else(|| key.not_found())?;
    let jobs = sqlx::query_as(concat!(
        "-- store::sources::source_in\nSELECT ",
        job_columns!(),
        " FROM weir.jobs j WHERE j.source_id = $1 AND NOT j.settled ORDER BY j.id DESC LIMIT $2"
    ))
    .bind(source.id)
    .bind(MAX_JOBS_WITH_SOURCE)
    .fetch_all(&mut **tx)
    .await?;
    Ok(SourceState { source, jobs })
}

/// Reads some jobs, newest first, at most [`MAX_JOBS_WITH_SOURCE`].
pub(super) async fn jobs_in(tx: &mut Transaction, ids: &[i64]) -> Result<Vec<Job>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "-- store::sources::jobs_in\nSELECT ",
        job_columns!(),
        " FROM weir.jobs j WHERE j.id = ANY($1) ORDER BY j.id DESC LIMIT $2"
    ))
    .bind(ids)
    .bind(MAX_JOBS_WITH_SOURCE)
    .fetch_all(&mut **tx)
    .await?)
}

/// Sends a notification with a source's id when the transaction commits.
pub(super) async fn notify(
    tx: &mut Transaction,
    channel: &'static str,
    source_id: i64,
) -> Result<(), StoreError> {
    sqlx::query("-- store::sources::notify\nSELECT pg_notify($1, $2::bigint::text)")
        .bind(channel)
        .bind(source_id)
        .execute(&mut **tx)
        .await?;
    Ok(())
}
