//! What was persisted, and how much waited, over the last hour.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Store, StoreError, lease::interval, queue::QueueStats};

/// The interval between two samples, in seconds.
pub const SAMPLE_SECONDS: i32 = 10;

/// How long samples are kept.
const KEPT: Duration = Duration::from_mins(65);

/// What one replica persisted in an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Persisted {
    /// Chunks with their vectors.
    pub embedded: i64,
    /// Chunks that the embedder refused.
    pub rejected: i64,
}

/// An interval, of all replicas together.
#[derive(Debug, Clone, Copy, PartialEq, sqlx::FromRow)]
pub struct ActivityPoint {
    /// When it ended.
    pub at: DateTime<Utc>,
    /// Chunks embedded in it.
    pub chunks_embedded: i64,
    /// Chunks rejected in it.
    pub chunks_rejected: i64,
    /// Chunks pending in open jobs at its end.
    pub chunks_pending: i64,
    /// Age of the oldest ready job at its end, in seconds.
    pub oldest_ready_age_seconds: f64,
}

impl Store {
    /// Notes what this replica persisted since its last sample, and how much
    /// waits in the whole queue, and forgets what is too old.
    pub async fn sample(
        &self,
        replica: &str,
        persisted: Persisted,
        queue: &[QueueStats],
    ) -> Result<(), StoreError> {
        let oldest = queue.iter().map(|it| it.oldest_ready_age_seconds);
        sqlx::query(
            "-- store::activity::sample
             WITH old AS (
                 DELETE FROM weir.samples WHERE at < now() - $4
             )
             INSERT INTO weir.samples
                 (at, replica, chunks_embedded, chunks_rejected, chunks_pending, oldest_ready_age_seconds)
             VALUES (to_timestamp(ceil(extract(epoch FROM now()) / $5) * $5), $1, $2, $3, $6, $7)
             ON CONFLICT (at, replica) DO UPDATE
             SET chunks_embedded = samples.chunks_embedded + EXCLUDED.chunks_embedded,
                 chunks_rejected = samples.chunks_rejected + EXCLUDED.chunks_rejected,
                 chunks_pending = EXCLUDED.chunks_pending,
                 oldest_ready_age_seconds = EXCLUDED.oldest_ready_age_seconds",
        )
        .bind(replica)
        .bind(persisted.embedded)
        .bind(persisted.rejected)
        .bind(interval(KEPT))
        .bind(SAMPLE_SECONDS)
        .bind(queue.iter().map(|it| it.chunks_pending).sum::<i64>())
        .bind(oldest.fold(0.0, f64::max))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Returns the intervals of the last `past`, oldest first.
    pub async fn activity(&self, past: Duration) -> Result<Vec<ActivityPoint>, StoreError> {
        self.read(|| async {
            Ok(sqlx::query_as(
                "-- store::activity::activity
             SELECT at, sum(chunks_embedded)::bigint AS chunks_embedded, sum(chunks_rejected)::bigint AS chunks_rejected,
                    max(chunks_pending) AS chunks_pending, max(oldest_ready_age_seconds) AS oldest_ready_age_seconds
             FROM weir.samples WHERE at > now() - $1 GROUP BY at ORDER BY at",
            )
            .bind(interval(past))
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }
}
