//! The end of history: jobs past their time.

use std::time::Duration;

use super::{Store, StoreError, lease::interval};

impl Store {
    /// Deletes up to `limit` settled jobs that ended longer than `retention`
    /// ago. A failed or cancelled one whose chunks are still pending stays.
    /// Returns how many went.
    pub async fn drop_old_jobs(&self, retention: Duration, limit: i64) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "-- store::retention::drop_old_jobs
             WITH old AS MATERIALIZED (
                 SELECT id FROM weir.jobs WHERE settled AND finished_at <= now() - $1
                 ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             , attempts AS (
                 DELETE FROM weir.attempts a USING old WHERE a.job_id = old.id
             )
             DELETE FROM weir.jobs j USING old WHERE j.id = old.id",
        )
        .bind(interval(retention))
        .bind(limit)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    /// Deletes up to `limit` failures that were last seen longer than
    /// `retention` ago and that no unsettled job stands still because of.
    /// Returns how many went.
    pub async fn drop_old_failures(
        &self,
        retention: Duration,
        limit: i64,
    ) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "-- store::retention::drop_old_failures
             WITH old AS MATERIALIZED (
                 SELECT id FROM weir.failures f WHERE last_seen_at <= now() - $1 AND NOT EXISTS (
                     SELECT FROM weir.jobs j WHERE j.failure_id = f.id AND NOT j.settled)
                 ORDER BY last_seen_at LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             DELETE FROM weir.failures f USING old WHERE f.id = old.id",
        )
        .bind(interval(retention))
        .bind(limit)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }
}
