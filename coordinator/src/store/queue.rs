//! The queue as a whole: whether anything is due, how much waits, and the
//! word that something changed.

use super::{CHANGE_CHANNEL, QUEUE_CHANNEL, Scope, Store, StoreError, scope::in_scope};

/// How much work one namespace and model has open.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
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
    /// Chunks these have still to embed.
    pub chunks_pending: i64,
    /// Of these, chunks that workers could embed now or are embedding: those of
    /// running jobs, and of queued ones that need not wait any more.
    pub chunks_workable: i64,
    /// Age of the oldest ready job, in seconds.
    pub oldest_ready_age_seconds: f64,
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
    /// Whether a queued job of these models may run by now.
    pub async fn any_due(&self, models: &[String]) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::queue::any_due
             SELECT EXISTS (
                 SELECT FROM unnest($1) AS m(model) CROSS JOIN generate_series(0, 9) AS p(priority)
                 CROSS JOIN LATERAL (
                     SELECT FROM weir.jobs j
                     WHERE j.state = 'queued' AND j.model = m.model AND j.priority = p.priority::smallint
                       AND j.run_at <= now()
                     LIMIT 1) due)",
        )
        .bind(models)
        .fetch_one(&self.pool)
        .await?)
    }

    /// Sums up the open jobs by namespace and model.
    pub async fn queue_stats(
        &self,
        scope: &Scope,
        model: Option<&str>,
    ) -> Result<Vec<QueueStats>, StoreError> {
        Ok(sqlx::query_as(concat!(
            "-- store::queue::queue_stats
             SELECT namespace, model,
                    count(*) FILTER (WHERE state = 'queued' AND run_at <= now()) AS jobs_ready,
                    count(*) FILTER (WHERE state = 'queued' AND run_at > now()) AS jobs_delayed,
                    count(*) FILTER (WHERE state = 'running') AS jobs_running,
                    sum(chunks_total - chunks_done - chunks_rejected)::bigint AS chunks_pending,
                    coalesce(sum(chunks_total - chunks_done - chunks_rejected)
                                 FILTER (WHERE state = 'running' OR run_at <= now()), 0)::bigint AS chunks_workable,
                    coalesce(extract(epoch FROM now() - min(run_at) FILTER (WHERE state = 'queued' AND run_at <= now())),
                             0)::float8 AS oldest_ready_age_seconds
             FROM weir.jobs
             WHERE state IN ('queued', 'running') AND NOT settled
               AND ",
            in_scope!("namespace", "$1"),
            " AND ($2::text IS NULL OR model = $2)
             GROUP BY namespace, model ORDER BY namespace, model"
        ))
        .bind(scope.namespaces())
        .bind(model)
        .fetch_all(&self.pool)
        .await?)
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
