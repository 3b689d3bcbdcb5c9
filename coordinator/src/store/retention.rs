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

    /// Forgets up to `limit` sources that were deleted longer than `retention`
    /// ago, and the former models of sources that have no vectors of these any
    /// more. Returns how many went.
    pub async fn drop_old_sources(
        &self,
        retention: Duration,
        limit: i64,
    ) -> Result<u64, StoreError> {
        let sources = sqlx::query(
            "-- store::retention::drop_old_sources
             WITH old AS MATERIALIZED (
                 SELECT namespace, name FROM weir.deleted_sources WHERE deleted_at <= now() - $1
                 ORDER BY deleted_at LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             DELETE FROM weir.deleted_sources d USING old WHERE (d.namespace, d.name) = (old.namespace, old.name)",
        )
        .bind(interval(retention))
        .bind(limit)
        .execute(&self.pool)
        .await?;
        // What is settled has vectors of its present model alone.
        let models = sqlx::query(
            "-- store::retention::drop_old_sources
             WITH old AS MATERIALIZED (
                 SELECT source_id, model FROM weir.former_models f WHERE changed_at <= now() - $1 AND NOT EXISTS (
                     SELECT FROM weir.jobs j WHERE j.source_id = f.source_id AND NOT j.settled)
                   AND NOT EXISTS (
                     SELECT FROM weir.sources s WHERE s.id = f.source_id AND s.chunks_to_move IS NOT NULL)
                 LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             DELETE FROM weir.former_models f USING old WHERE (f.source_id, f.model) = (old.source_id, old.model)",
        )
        .bind(interval(retention))
        .bind(limit)
        .execute(&self.pool)
        .await?;
        Ok(sources.rows_affected().max(models.rows_affected()))
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
