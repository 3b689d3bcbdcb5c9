//! The queue as a whole: how much waits, and the word that something changed.

use super::{CHANGE_CHANNEL, QUEUE_CHANNEL, Store, StoreError};

/// For how long the jobs are summed up at most, or waited for where the table is
/// locked: longer than tens of millions take. After that what was known of them is
/// too old to be waited for. One look at a time does so.
const STATS_WITHIN: &str = "30s";

/// What of one namespace and model is open, or ended and left chunks pending.
#[derive(Debug, Clone, Default, PartialEq, sqlx::FromRow, serde::Serialize)]
pub struct QueueStats {
    /// The namespace.
    pub namespace: String,
    /// The model.
    pub model: String,
    /// Jobs that could be claimed now.
    pub jobs_ready: i64,
    /// Queued jobs that wait for their time.
    pub jobs_delayed: i64,
    /// Jobs held by workers.
    pub jobs_running: i64,
    /// Of these three, jobs with a charged try and no progress since.
    pub jobs_retrying: i64,
    /// Queued jobs whose embedder was down.
    pub jobs_embedder_down: i64,
    /// Failed jobs whose chunks are pending.
    pub jobs_failed: i64,
    /// Cancelled jobs whose chunks are pending.
    pub jobs_cancelled: i64,
    /// Chunks that open jobs have still to embed.
    pub chunks_pending: i64,
    /// Of these, chunks that workers could embed now or are embedding: those of
    /// running jobs, and of queued ones that need not wait any more.
    pub chunks_workable: i64,
    /// Chunks that failed and cancelled jobs left.
    pub chunks_left: i64,
    /// Age of the oldest ready job, in seconds.
    pub oldest_ready_age_seconds: f64,
}

impl QueueStats {
    /// Jobs that are open.
    pub fn jobs_open(&self) -> i64 {
        self.jobs_ready + self.jobs_delayed + self.jobs_running
    }
}

/// Whose work is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Share {
    /// The models.
    pub models: Vec<String>,
    /// The namespaces; all of them if `None`.
    pub namespaces: Option<Vec<String>>,
}

impl Share {
    /// Chunks of it that workers could embed now or are embedding.
    pub fn workable_chunks(&self, queue: &[QueueStats]) -> i64 {
        let mine = queue.iter().filter(|stats| {
            let namespaces = self.namespaces.as_ref();
            self.models.contains(&stats.model)
                && namespaces.is_none_or(|these| these.contains(&stats.namespace))
        });
        mine.map(|stats| stats.chunks_workable).sum()
    }
}

impl Store {
    /// Sums up the jobs that are not settled, by namespace and model. It reads
    /// all of them, and takes as long: what many ask of the queue they ask of a
    /// look that they share. It gives up after half a minute.
    pub async fn queue_stats(&self) -> Result<Vec<QueueStats>, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "-- store::queue::queue_stats
             SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', CASE
                 WHEN current_setting('statement_timeout')::interval NOT BETWEEN '1ms' AND $1::interval THEN $1
                 ELSE current_setting('statement_timeout') END, true)",
        )
        .bind(STATS_WITHIN)
        .execute(&mut *tx)
        .await?;
        let stats = sqlx::query_as(
            "-- store::queue::queue_stats
             SELECT namespace, model,
                    count(*) FILTER (WHERE state = 'queued' AND run_at <= now()) AS jobs_ready,
                    count(*) FILTER (WHERE state = 'queued' AND run_at > now()) AS jobs_delayed,
                    count(*) FILTER (WHERE state = 'running') AS jobs_running,
                    count(*) FILTER (WHERE open AND attempt > 0) AS jobs_retrying,
                    count(*) FILTER (WHERE embedder_down AND attempt = 0) AS jobs_embedder_down,
                    count(*) FILTER (WHERE state = 'failed') AS jobs_failed,
                    count(*) FILTER (WHERE state = 'cancelled') AS jobs_cancelled,
                    coalesce(sum(pending) FILTER (WHERE open), 0)::bigint AS chunks_pending,
                    coalesce(sum(pending) FILTER (WHERE state = 'running' OR (state = 'queued' AND run_at <= now())),
                             0)::bigint AS chunks_workable,
                    coalesce(sum(pending) FILTER (WHERE NOT open), 0)::bigint AS chunks_left,
                    coalesce(extract(epoch FROM now() - min(run_at) FILTER (WHERE state = 'queued' AND run_at <= now())),
                             0)::float8 AS oldest_ready_age_seconds
             FROM (SELECT namespace, model, state, run_at, attempt, embedder_down,
                          chunks_total - chunks_done - chunks_rejected AS pending,
                          state IN ('queued', 'running') AS open
                   FROM weir.jobs WHERE NOT settled) j
             GROUP BY namespace, model ORDER BY namespace, model",
        )
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(stats)
    }

    /// Tells every replica that jobs were queued at this one.
    pub async fn announce_queued(&self, replica: &str) -> Result<(), StoreError> {
        sqlx::query("-- store::queue::announce_queued\nSELECT pg_notify($1, $2)")
            .bind(QUEUE_CHANNEL)
            .bind(replica)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Tells every replica's watchers that these sources changed.
    pub async fn announce_changes(&self, source_ids: &[i64]) -> Result<(), StoreError> {
        sqlx::query(
            "-- store::queue::announce_changes
             SELECT pg_notify($1, id::text) FROM unnest($2::bigint[]) AS changed(id)",
        )
        .bind(CHANGE_CHANNEL)
        .bind(source_ids)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
