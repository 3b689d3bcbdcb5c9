//! How namespaces stand: sources, chunks and unsettled jobs, counted.

use chrono::{DateTime, Utc};

use super::{Scope, Store, StoreError, rejections::rejections_of_source, scope::in_scope};
use crate::job::badge::{Rejections, Tally};

/// Most namespaces that are told apart.
pub const MAX_NAMESPACES: i64 = 1_000;

/// The figures of a namespace.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct NamespaceFigures {
    /// The namespace.
    pub namespace: String,
    /// Sources in it.
    pub sources: i64,
    /// Chunks of these.
    pub chunks: i64,
    /// Chunks that unsettled jobs have still to embed, or failed to.
    pub chunks_pending: i64,
    /// Chunks rejected.
    pub chunks_rejected: i64,
    /// When the first of these was rejected.
    pub rejected_since: Option<DateTime<Utc>>,
    /// Why the last of them was.
    pub last_rejection: Option<String>,
    /// Queued jobs that could be claimed now.
    pub jobs_ready: i64,
    /// Queued jobs that wait for their time.
    pub jobs_delayed: i64,
    /// Jobs held by workers.
    pub jobs_running: i64,
    /// Open jobs with a charged try and no progress since.
    pub jobs_retrying: i64,
    /// Queued jobs whose embedder was down.
    pub jobs_embedder_down: i64,
    /// Failed jobs whose chunks are pending.
    pub jobs_failed: i64,
    /// Cancelled jobs whose chunks are pending.
    pub jobs_cancelled: i64,
    /// Queued jobs of models that are not served.
    pub jobs_unserved: i64,
    /// One of these models.
    pub unserved_model: Option<String>,
    /// Age of the oldest ready job, in seconds.
    pub oldest_ready_age_seconds: f64,
}

impl NamespaceFigures {
    /// What of it is open or wrong, counted.
    pub fn tally(&self) -> Tally {
        Tally {
            open: self.jobs_ready + self.jobs_delayed + self.jobs_running,
            retrying: self.jobs_retrying,
            embedder_down: self.jobs_embedder_down,
            failed: self.jobs_failed,
            cancelled: self.jobs_cancelled,
            unserved: self.jobs_unserved,
            unserved_model: self.unserved_model.clone(),
            rejections: Rejections {
                chunks: self.chunks_rejected,
                total: self.chunks,
                since: self.rejected_since,
                last_reason: self.last_rejection.clone(),
            },
        }
    }
}

impl Store {
    /// Returns the figures of all that was asked about together, under an empty
    /// name, and of each namespace by name; where there are more than
    /// [`MAX_NAMESPACES`], those first that something is wrong with. `served` are
    /// the models that workers can claim jobs of.
    pub async fn overview(
        &self,
        scope: &Scope,
        served: &[String],
    ) -> Result<Vec<NamespaceFigures>, StoreError> {
        Ok(sqlx::query_as(concat!(
            "-- store::overview::overview
             WITH sources AS (
                 SELECT namespace, count(*) AS sources, sum(chunks_total) AS chunks
                 FROM weir.sources WHERE ",
            in_scope!("namespace", "$1"),
            " GROUP BY namespace
             ), rejections AS (
                 -- Of each source that has any, its count and two ends of an index.
                 SELECT s.namespace, sum(k.chunks) AS rejected, min(first_rejection.since) AS since,
                        max(last_rejection.at) AS last_at,
                        (array_agg(last_rejection.reason ORDER BY last_rejection.at DESC NULLS LAST))[1] AS last_reason
                 FROM (SELECT source_id, sum(chunks) AS chunks FROM weir.rejection_counts GROUP BY source_id) k
                 JOIN weir.sources s ON s.id = k.source_id",
            rejections_of_source!(),
            " WHERE ",
            in_scope!("s.namespace", "$1"),
            " GROUP BY s.namespace
             ), jobs AS (
                 SELECT namespace,
                        sum(chunks_total - chunks_done - chunks_rejected) AS pending,
                        count(*) FILTER (WHERE state = 'queued' AND run_at <= now()) AS ready,
                        count(*) FILTER (WHERE state = 'queued' AND run_at > now()) AS delayed,
                        count(*) FILTER (WHERE state = 'running') AS running,
                        count(*) FILTER (WHERE state IN ('queued', 'running') AND attempt > 0) AS retrying,
                        count(*) FILTER (WHERE embedder_down AND attempt = 0) AS embedder_down,
                        count(*) FILTER (WHERE state = 'failed') AS failed,
                        count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
                        count(*) FILTER (WHERE state = 'queued' AND model <> ALL($3)) AS unserved,
                        min(model) FILTER (WHERE state = 'queued' AND model <> ALL($3)) AS unserved_model,
                        min(run_at) FILTER (WHERE state = 'queued' AND run_at <= now()) AS oldest
                 FROM weir.jobs WHERE NOT settled AND ",
            in_scope!("namespace", "$1"),
            " GROUP BY namespace
             ), figures AS (
                 SELECT namespace, sources, chunks, pending, rejected, since, last_at, last_reason, ready, delayed, running,
                        retrying, embedder_down, failed, cancelled, unserved, unserved_model, oldest,
                        coalesce(failed, 0) + coalesce(retrying, 0) + coalesce(embedder_down, 0)
                            + coalesce(cancelled, 0) + coalesce(unserved, 0) + coalesce(rejected, 0) > 0 AS degraded
                 FROM sources FULL JOIN jobs USING (namespace) LEFT JOIN rejections USING (namespace)
             ), told AS (
                 SELECT * FROM (SELECT * FROM figures ORDER BY degraded DESC, namespace LIMIT $2) first
                 UNION ALL
                 SELECT '', sum(sources), sum(chunks), sum(pending), sum(rejected), min(since), max(last_at),
                        (array_agg(last_reason ORDER BY last_at DESC NULLS LAST))[1], sum(ready), sum(delayed), sum(running), sum(retrying), sum(embedder_down), sum(failed), sum(cancelled), sum(unserved),
                        min(unserved_model), min(oldest), true
                 FROM figures
             )
             SELECT namespace, coalesce(sources, 0)::bigint AS sources, coalesce(chunks, 0)::bigint AS chunks,
                    coalesce(pending, 0)::bigint AS chunks_pending, coalesce(rejected, 0)::bigint AS chunks_rejected,
                    since AS rejected_since, last_reason AS last_rejection,
                    coalesce(ready, 0)::bigint AS jobs_ready, coalesce(delayed, 0)::bigint AS jobs_delayed,
                    coalesce(running, 0)::bigint AS jobs_running, coalesce(retrying, 0)::bigint AS jobs_retrying,
                    coalesce(embedder_down, 0)::bigint AS jobs_embedder_down,
                    coalesce(failed, 0)::bigint AS jobs_failed, coalesce(cancelled, 0)::bigint AS jobs_cancelled,
                    coalesce(unserved, 0)::bigint AS jobs_unserved, unserved_model,
                    coalesce(extract(epoch FROM now() - oldest), 0)::float8 AS oldest_ready_age_seconds
             FROM told ORDER BY namespace"
        ))
        .bind(scope.namespaces())
        .bind(MAX_NAMESPACES)
        .bind(served)
        .fetch_all(&self.pool)
        .await?)
    }
}
