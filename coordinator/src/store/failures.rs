//! What goes wrong, by cause: one row for all jobs that it befalls.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::{Scope, Store, StoreError, database::Transaction, scope::in_scope};
use crate::job::cause::cause;

/// Jobs looked at for the last success beside a failure.
const LOOKED_BACK: i64 = 1_000;

/// Failures of one cause, in one namespace with one model.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Failure {
    /// The id.
    pub id: i64,
    /// The namespace of the jobs.
    pub namespace: String,
    /// Their model.
    pub model: String,
    /// What they have in common.
    pub cause: String,
    /// The error as it last was.
    pub last_error: String,
    /// The job it last befell.
    pub last_job_id: i64,
    /// The source of that job.
    pub last_source: String,
    /// When it was first seen.
    pub first_seen_at: DateTime<Utc>,
    /// When it was last seen.
    pub last_seen_at: DateTime<Utc>,
    /// How often it was seen.
    pub occurrences: i64,
    /// When a job of this namespace and model last succeeded, among its latest.
    pub last_success_at: Option<DateTime<Utc>>,
    /// Unsettled jobs that it befell last and that have not moved forward since.
    pub jobs_affected: i64,
    /// When a client dismissed it.
    pub dismissed_at: Option<DateTime<Utc>>,
}

/// The columns of [`Failure`], from `weir.failures f`. `$1` is how many jobs are
/// looked at for the last success.
macro_rules! failure_columns {
    () => {
        "f.id, f.namespace, f.model, f.cause, f.last_error, f.last_job_id, f.last_source, f.first_seen_at,
         f.last_seen_at, f.occurrences, f.dismissed_at,
         (SELECT max(finished_at) FROM (
              SELECT finished_at, state, model FROM weir.jobs j WHERE j.namespace = f.namespace
              ORDER BY j.id DESC LIMIT $1) latest
           WHERE state = 'succeeded' AND model = f.model) AS last_success_at,
         (SELECT count(*) FROM weir.jobs j
           WHERE j.failure_id = f.id AND NOT j.settled
             AND (j.state = 'failed' OR j.attempt > 0 OR j.embedder_down)) AS jobs_affected"
    };
}

/// Where a page of failures ended: when that failure was last seen, and its id.
pub type FailurePosition = (DateTime<Utc>, i64);

/// Counts what befell these jobs, whose rows are locked, in one order, so that
/// nothing deadlocks. Returns the failure of each job.
pub(super) async fn count_failures(
    tx: &mut Transaction,
    befell: &[(i64, &str)],
) -> Result<HashMap<i64, i64>, StoreError> {
    if befell.is_empty() {
        return Ok(HashMap::new());
    }
    let (jobs, errors): (Vec<i64>, Vec<&str>) = befell.iter().copied().unzip();
    let causes: Vec<String> = errors.iter().map(|error| cause(error)).collect();
    let counted: Vec<(i64, i64)> = sqlx::query_as(
        "-- store::failures::count_failures
         WITH befell AS MATERIALIZED (
             SELECT j.id, j.namespace, j.model, j.source, n.cause, n.error
             FROM unnest($1::bigint[], $2::text[], $3::text[]) AS n(job_id, cause, error)
             JOIN weir.jobs j ON j.id = n.job_id
         ), counted AS (
             INSERT INTO weir.failures AS f
                 (namespace, model, cause, last_error, last_job_id, last_source, occurrences)
             SELECT namespace, model, cause, (array_agg(error ORDER BY id DESC))[1], max(id),
                    (array_agg(source ORDER BY id DESC))[1], count(*)
             FROM befell GROUP BY namespace, model, cause ORDER BY namespace, model, cause
             ON CONFLICT (namespace, model, cause) DO UPDATE
             SET occurrences = f.occurrences + EXCLUDED.occurrences, last_seen_at = now(), dismissed_at = NULL,
                 last_error = EXCLUDED.last_error, last_job_id = EXCLUDED.last_job_id,
                 last_source = EXCLUDED.last_source
             RETURNING f.id, f.namespace, f.model, f.cause
         )
         SELECT b.id, c.id FROM befell b JOIN counted c USING (namespace, model, cause)",
    )
    .bind(&jobs)
    .bind(&causes)
    .bind(&errors)
    .fetch_all(&mut **tx)
    .await?;
    Ok(counted.into_iter().collect())
}

impl Store {
    /// Returns up to `limit` failures after `after`, last seen first; those that
    /// were dismissed only where `dismissed` says so.
    pub async fn failures(
        &self,
        scope: &Scope,
        dismissed: bool,
        after: Option<FailurePosition>,
        limit: i64,
    ) -> Result<Vec<Failure>, StoreError> {
        self.read(|| async {
            let (seen_at, id) = after.unzip();
            Ok(sqlx::query_as(concat!(
                "-- store::failures::failures\nSELECT ",
                failure_columns!(),
                " FROM weir.failures f
             WHERE ",
                in_scope!("f.namespace", "$2"),
                " AND ($3 OR f.dismissed_at IS NULL)
               AND ($4::timestamptz IS NULL OR (f.last_seen_at, f.id) < ($4, $5))
             ORDER BY f.last_seen_at DESC, f.id DESC LIMIT $6"
            ))
            .bind(LOOKED_BACK)
            .bind(scope.namespaces())
            .bind(dismissed)
            .bind(seen_at)
            .bind(id)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// Takes a failure off the list until it is seen again, and returns it.
    pub async fn dismiss_failure(&self, scope: &Scope, id: i64) -> Result<Failure, StoreError> {
        sqlx::query_as(concat!(
            "-- store::failures::dismiss_failure
             UPDATE weir.failures f SET dismissed_at = coalesce(f.dismissed_at, now())
             WHERE f.id = $2 AND ",
            in_scope!("f.namespace", "$3"),
            " RETURNING ",
            failure_columns!()
        ))
        .bind(LOOKED_BACK)
        .bind(id)
        .bind(scope.namespaces())
        .fetch_optional(&self.pool)
        .await?
        .ok_or_else(|| StoreError::NotFound(format!("there is no failure {id}")))
    }
}
