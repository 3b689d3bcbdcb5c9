//! The claim: queued jobs become leases. Every time is the database's (law 2).

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{
    Store, StoreError,
    lease::interval,
    rows::{Job, job_columns},
};

/// Priorities that a job may have, from 0.
const PRIORITIES: usize = 10;

/// What a worker wants to claim.
#[derive(Debug, Clone)]
pub struct Claim<'a> {
    /// Who claims.
    pub worker_id: &'a str,
    /// Models it embeds with.
    pub models: &'a [String],
    /// Most jobs it takes.
    pub max_jobs: i64,
    /// Pending chunks with which it has enough: no job is added once those
    /// taken have so many together. 0: no such bound.
    pub max_chunks: i64,
    /// How long each lease lasts from now.
    pub lease_duration: Duration,
    /// The namespaces that it is limited to; `None` where it is not.
    pub namespaces: Option<&'a [String]>,
    /// The name of the token that the leases are bound to, if there is one.
    pub claimed_by: Option<&'a str>,
}

/// What a claim took.
#[derive(Debug)]
pub struct Claimed {
    /// The jobs, each with a lease now.
    pub jobs: Vec<Job>,
    /// Whether no other claim could take any more: what is queued besides is
    /// not due, or is being taken.
    pub nothing_left: bool,
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    /// Whether `max_chunks` was more than all that is due.
    whole: bool,
    #[sqlx(flatten)]
    job: Job,
}

/// How far claims have come in a queue: of each priority, the last that was
/// taken.
#[derive(Debug, Clone)]
pub struct Reached {
    run_at: [DateTime<Utc>; PRIORITIES],
    id: [i64; PRIORITIES],
}

impl Default for Reached {
    fn default() -> Self {
        Self {
            run_at: [DateTime::UNIX_EPOCH; PRIORITIES],
            id: [0; PRIORITIES],
        }
    }
}

impl Reached {
    /// Goes on to these.
    pub fn advance(&mut self, jobs: &[Job]) {
        for job in jobs {
            let of = usize::from(job.priority.unsigned_abs()).min(PRIORITIES - 1);
            if (self.run_at[of], self.id[of]) < (job.run_at, job.id) {
                (self.run_at[of], self.id[of]) = (job.run_at, job.id);
            }
        }
    }
}

/// The claim, from the queues it looks at: what they are, and which of the
/// queued jobs are in one.
macro_rules! claim_statement {
    ($name:literal, $queues:expr, $in_queue:expr) => {
        concat!(
            "-- store::claim::",
            $name,
            "
             WITH queues AS (",
            $queues,
            "), enough AS MATERIALIZED (
                 SELECT count(*) FILTER (WHERE before < $5) AS jobs,
                        count(*) < $3 AND coalesce(sum(pending), 0) < $5 AS whole
                 FROM (
                     SELECT pending, sum(pending) OVER (ORDER BY priority DESC, run_at, id) - pending AS before
                     FROM queues q CROSS JOIN LATERAL (
                         SELECT id, priority, run_at, chunks_total - chunks_done - chunks_rejected AS pending
                         FROM weir.jobs
                         WHERE $5 > 0 AND state = 'queued' AND run_at <= now() AND ",
            $in_queue,
            "            ORDER BY priority DESC, run_at, id LIMIT $3) head) sums
             ), candidates AS MATERIALIZED (
                 -- Queue by queue, for the index has them so: however long one is, only its head is read.
                 SELECT j.* FROM queues q CROSS JOIN LATERAL (
                     SELECT id, priority, run_at, chunks_total - chunks_done - chunks_rejected AS pending
                     FROM weir.jobs
                     WHERE state = 'queued' AND run_at <= now() AND ",
            $in_queue,
            "        ORDER BY priority DESC, run_at, id
                     LIMIT CASE WHEN $5 > 0 THEN least($3, (SELECT jobs FROM enough)) ELSE $3 END
                     FOR UPDATE SKIP LOCKED) j
             ), due AS (
                 SELECT id FROM (
                     SELECT id, priority, run_at,
                            sum(pending) OVER (ORDER BY priority DESC, run_at, id) - pending AS before
                     FROM candidates) sums
                 WHERE $5 = 0 OR before < $5
                 ORDER BY priority DESC, run_at, id LIMIT $3
             )
             UPDATE weir.jobs j
             SET state = 'running', epoch = j.epoch + 1, worker_id = $1, claimed_by = $7, claimed_at = now(),
                 progressed_at = NULL, changes = 0, heard = false, batch_size = NULL, embedder_down = false,
                 claimed_done = j.chunks_done + j.chunks_rejected, lease_expires_at = now() + $4,
                 started_at = coalesce(j.started_at, now())
             FROM due WHERE j.id = due.id
             RETURNING (SELECT whole FROM enough) AS whole, ",
            job_columns!()
        )
    };
}

/// The models, and the models in the namespaces. Each has an index of its own,
/// and a statement that is planned for it.
macro_rules! models {
    () => {
        "SELECT DISTINCT unnest($2::text[]) AS model WHERE $6::text[] IS NULL"
    };
}
macro_rules! models_in_namespaces {
    () => {
        "SELECT DISTINCT model, namespace FROM unnest($2::text[]) AS model CROSS JOIN unnest($6::text[]) AS namespace"
    };
}

/// Each of these a queue for every priority, which begins after what was
/// reached.
macro_rules! after {
    ($queues:expr) => {
        concat!(
            "SELECT * FROM (",
            $queues,
            ") whole CROSS JOIN LATERAL (
                 SELECT n - 1 AS reached_priority, run_at AS reached_run_at, id AS reached_id
                 FROM unnest($8::timestamptz[], $9::bigint[]) WITH ORDINALITY AS reached(run_at, id, n)) reached"
        )
    };
}
macro_rules! is_after {
    ($in_queue:expr) => {
        concat!(
            $in_queue,
            " AND priority = q.reached_priority::smallint AND (run_at, id) > (q.reached_run_at, q.reached_id)"
        )
    };
}

impl Store {
    /// Takes queued jobs that are due, highest priority first, then the longest
    /// waiting, and leases them to a worker.
    ///
    /// With `max_chunks` the head of the queue tells how many jobs are enough,
    /// and no more are looked at: a claim that locked all it might take would
    /// hide them from the claims beside it. Those it gets may be others, so what
    /// is too many of them is left.
    pub async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed, StoreError> {
        self.claim_from(None, claim).await
    }

    /// The same; only of what comes after what was `reached`, if that is given.
    pub async fn claim_from(
        &self,
        reached: Option<&Reached>,
        claim: &Claim<'_>,
    ) -> Result<Claimed, StoreError> {
        let statement = match (claim.namespaces, reached) {
            (None, None) => claim_statement!("claim", models!(), "model = q.model"),
            (None, Some(_)) => {
                claim_statement!(
                    "claim_after",
                    after!(models!()),
                    is_after!("model = q.model")
                )
            }
            (Some(_), None) => claim_statement!(
                "claim",
                models_in_namespaces!(),
                "model = q.model AND namespace = q.namespace"
            ),
            (Some(_), Some(_)) => claim_statement!(
                "claim_after",
                after!(models_in_namespaces!()),
                is_after!("model = q.model AND namespace = q.namespace")
            ),
        };
        let mut query = sqlx::query_as(statement)
            .bind(claim.worker_id)
            .bind(claim.models)
            .bind(claim.max_jobs)
            .bind(interval(claim.lease_duration))
            .bind(claim.max_chunks)
            .bind(claim.namespaces)
            .bind(claim.claimed_by);
        if let Some(reached) = reached {
            query = query.bind(&reached.run_at[..]).bind(&reached.id[..]);
        }
        let rows: Vec<Row> = query.fetch_all(&self.leases).await?;
        let nothing_left = match claim.max_chunks {
            0 => (rows.len() as i64) < claim.max_jobs,
            _ => rows.iter().all(|row| row.whole),
        };
        Ok(Claimed {
            jobs: rows.into_iter().map(|row| row.job).collect(),
            nothing_left,
        })
    }
}
