//! How namespaces stand: sources, chunks and unsettled jobs, counted.

use chrono::{DateTime, Utc};
use sqlx::types::Json;

use super::{
    Scope, Store, StoreError, queue::QueueStats, rejections::rejections_of_source, scope::in_scope,
};
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
    /// the models that workers can claim jobs of. What there is to be told of jobs
    /// is `queue`, which was summed up before.
    pub async fn overview(
        &self,
        scope: &Scope,
        served: &[String],
        queue: &[QueueStats],
    ) -> Result<Vec<NamespaceFigures>, StoreError> {
        self.read(|| self.try_overview(scope, served, queue)).await
    }

    async fn try_overview(
        &self,
        scope: &Scope,
        served: &[String],
        queue: &[QueueStats],
    ) -> Result<Vec<NamespaceFigures>, StoreError> {
        let queue = queue.iter().filter(|it| scope.has(&it.namespace));
        Ok(sqlx::query_as(concat!(
            "-- store::overview::overview
             WITH sources AS (
                 SELECT namespace, count(*) AS sources, sum(chunks_total) AS chunks, sum(chunks_to_move) AS to_move
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
                 SELECT namespace COLLATE \"C\" AS namespace,
                        sum(chunks_pending + chunks_left) AS pending, sum(jobs_ready) AS ready,
                        sum(jobs_delayed) AS delayed, sum(jobs_running) AS running, sum(jobs_retrying) AS retrying,
                        sum(jobs_embedder_down) AS embedder_down, sum(jobs_failed) AS failed,
                        sum(jobs_cancelled) AS cancelled,
                        sum(jobs_ready + jobs_delayed) FILTER (WHERE model <> ALL($3)) AS unserved,
                        min(model) FILTER (WHERE model <> ALL($3) AND jobs_ready + jobs_delayed > 0) AS unserved_model,
                        max(oldest_ready_age_seconds) AS oldest
                 FROM jsonb_to_recordset($4) AS q(
                     namespace text, model text, jobs_ready bigint, jobs_delayed bigint, jobs_running bigint,
                     jobs_retrying bigint, jobs_embedder_down bigint, jobs_failed bigint, jobs_cancelled bigint,
                     chunks_pending bigint, chunks_left bigint, oldest_ready_age_seconds float8)
                 GROUP BY namespace
             ), figures AS (
                 -- What is still to be moved to another model is in no job.
                 SELECT namespace, sources, chunks, coalesce(pending, 0) + coalesce(to_move, 0) AS pending, rejected, since, last_at, last_reason, ready, delayed, running,
                        retrying, embedder_down, failed, cancelled, unserved, unserved_model, oldest,
                        coalesce(failed, 0) + coalesce(retrying, 0) + coalesce(embedder_down, 0)
                            + coalesce(cancelled, 0) + coalesce(unserved, 0) + coalesce(rejected, 0) > 0 AS degraded
                 FROM sources FULL JOIN jobs USING (namespace) LEFT JOIN rejections USING (namespace)
             ), told AS (
                 SELECT * FROM (SELECT * FROM figures ORDER BY degraded DESC, namespace LIMIT $2) first
                 UNION ALL
                 SELECT '', sum(sources), sum(chunks), sum(pending), sum(rejected), min(since), max(last_at),
                        (array_agg(last_reason ORDER BY last_at DESC NULLS LAST))[1], sum(ready), sum(delayed), sum(running), sum(retrying), sum(embedder_down), sum(failed), sum(cancelled), sum(unserved),
                        min(unserved_model), max(oldest), true
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
                    coalesce(oldest, 0)::float8 AS oldest_ready_age_seconds
             FROM told ORDER BY namespace"
        ))
        .bind(scope.namespaces())
        .bind(MAX_NAMESPACES)
        .bind(served)
        .bind(Json(queue.collect::<Vec<_>>()))
        .fetch_all(&self.pool)
        .await?)
    }
}
