//! The tries of a job: leases, from claim to end.

use chrono::{DateTime, Utc};

use super::{Scope, Store, StoreError, database::Transaction, scope::in_scope};
use crate::job::state::AttemptOutcome;

/// One try of a job.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Attempt {
    /// The job.
    pub job_id: i64,
    /// The epoch it was claimed at.
    pub epoch: i64,
    /// Who held the lease.
    pub worker_id: String,
    /// When it was claimed.
    pub started_at: DateTime<Utc>,
    /// When it ended; `None` while it goes on.
    pub ended_at: Option<DateTime<Utc>>,
    /// How it ended.
    #[sqlx(try_from = "String")]
    pub outcome: AttemptOutcome,
    /// Why it ended.
    pub error: Option<String>,
    /// Chunks embedded or rejected under it.
    pub chunks_done: i32,
    /// Whether it was charged.
    pub charged: bool,
}

/// How a lease ended that did not finish its job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended<'a> {
    pub(super) outcome: AttemptOutcome,
    pub(super) error: &'a str,
    pub(super) charged: bool,
}

/// Records the lease of a running job, whose row is locked, before it is taken
/// away.
pub(super) async fn record_attempt(
    tx: &mut Transaction,
    job_id: i64,
    ended: &Ended<'_>,
) -> Result<(), StoreError> {
    sqlx::query(
        "-- store::attempts::record_attempt
         INSERT INTO weir.attempts (job_id, epoch, worker_id, started_at, outcome, error, chunks_done, charged)
         SELECT id, epoch, worker_id, claimed_at, $2, $3, chunks_done + chunks_rejected - claimed_done, $4
         FROM weir.jobs WHERE id = $1 AND state = 'running'",
    )
    .bind(job_id)
    .bind(ended.outcome.as_str())
    .bind(ended.error)
    .bind(ended.charged)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Store {
    /// Returns up to `limit` tries of a job, newest first.
    pub async fn attempts(
        &self,
        scope: &Scope,
        job_id: i64,
        limit: i64,
    ) -> Result<Vec<Attempt>, StoreError> {
        self.read(|| async {
            Ok(sqlx::query_as(concat!(
                "-- store::attempts::attempts
             WITH job AS MATERIALIZED (SELECT * FROM weir.jobs WHERE id = $1 AND ",
                in_scope!("namespace", "$3"),
                ")
             SELECT id AS job_id, epoch, worker_id, claimed_at AS started_at, finished_at AS ended_at, state AS outcome,
                    NULL AS error, chunks_done + chunks_rejected - claimed_done AS chunks_done, false AS charged
             FROM job WHERE state IN ('running', 'succeeded') AND worker_id IS NOT NULL
             UNION ALL
             SELECT job_id, epoch, worker_id, started_at, ended_at, outcome, error, chunks_done, charged
             FROM weir.attempts WHERE job_id = (SELECT id FROM job)
             ORDER BY epoch DESC LIMIT $2"
            ))
            .bind(job_id)
            .bind(limit)
            .bind(scope.namespaces())
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }
}
