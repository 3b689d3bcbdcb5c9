//! The claim: queued jobs become leases. Every time is the database's (law 2).

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{
    Store, StoreError,
    lease::interval,
    queue::Share,
    rows::{Job, job_columns},
};

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
    /// Namespaces of which it has its hands full: while one of these is next,
    /// it takes nothing.
    pub busy_with: &'a [String],
    /// The name of the token that the leases are bound to, if there is one.
    pub claimed_by: Option<&'a str>,
}

/// Where the jobs of one namespace, model and priority begin that are due: each
/// such queue is in the order in which its jobs have waited.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Head {
    /// Its namespace.
    pub namespace: String,
    /// Its model.
    pub model: String,
    /// Its priority.
    pub priority: i16,
    /// It begins after the job that was due then …
    pub run_at: DateTime<Utc>,
    /// … and has this id.
    pub id: i64,
    /// Pending chunks of its first job.
    pub chunks: i64,
}

/// What may be taken of some queues together.
#[derive(Debug, Clone)]
pub struct Portion<'a> {
    /// Where these begin, the highest priority first.
    pub heads: Vec<&'a Head>,
    /// Most jobs.
    pub jobs: i64,
    /// Chunks with which it is enough: no job is added once those taken have so
    /// many.
    pub chunks: i64,
    /// All of a higher tier go first.
    pub tier: i16,
    /// In a tier jobs are taken in the order of the times at which they begin: the
    /// first at this one, and each later than the one before it by `step` for
    /// every chunk of that.
    pub from: i64,
    /// See `from`.
    pub step: i64,
}

/// The queues of some models that have something due: a walk from namespace to
/// namespace, and in each from priority to priority, which reads an entry of the
/// index for each and none of what is behind it.
macro_rules! heads {
    () => {
        "WITH RECURSIVE walk AS (
             (SELECT namespace FROM weir.jobs WHERE state = 'queued' AND $2::text[] IS NULL
              ORDER BY namespace, model, priority DESC, run_at, id LIMIT 1)
             UNION ALL
             SELECT (SELECT j.namespace FROM weir.jobs j WHERE j.state = 'queued' AND j.namespace > w.namespace
                     ORDER BY j.namespace, j.model, j.priority DESC, j.run_at, j.id LIMIT 1)
             FROM walk w WHERE w.namespace IS NOT NULL
         ), namespaces AS (
             SELECT namespace FROM walk WHERE namespace IS NOT NULL
             UNION ALL
             SELECT DISTINCT unnest($2::text[]) COLLATE \"C\"
         ), heads AS (
             SELECT n.namespace, m.model, level.*
             FROM namespaces n CROSS JOIN (SELECT DISTINCT unnest($1::text[]) AS model) m
             CROSS JOIN LATERAL (
                 WITH RECURSIVE level AS (
                     (SELECT priority, run_at, id, chunks_total - chunks_done - chunks_rejected AS chunks
                      FROM weir.jobs
                      WHERE state = 'queued' AND namespace = n.namespace AND model = m.model
                      ORDER BY priority DESC, run_at, id LIMIT 1)
                     UNION ALL
                     SELECT next.* FROM level CROSS JOIN LATERAL (
                         SELECT j.priority, j.run_at, j.id, j.chunks_total - j.chunks_done - j.chunks_rejected
                         FROM weir.jobs j
                         WHERE j.state = 'queued' AND j.namespace = n.namespace AND j.model = m.model
                           AND j.priority < level.priority
                         ORDER BY j.priority DESC, j.run_at, j.id LIMIT 1) next
                 )
                 SELECT * FROM level WHERE run_at <= now()) level
         )"
    };
}

/// The jobs of each portion, and of these the first that are wanted in all, from
/// `$from`, which has the columns of a portion and `priority`, `run_at`, `id` and
/// `pending` of a job.
macro_rules! wanted {
    ($columns:literal, $from:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM (
                 SELECT portioned.*, row_number() OVER in_turn AS nth, sum(pending) OVER in_turn - pending AS before
                 FROM (
                     SELECT sums.* FROM (
                         SELECT it.*, row_number() OVER of_portion AS nth_of_portion,
                                sum(pending) OVER of_portion - pending AS before_of_portion
                         FROM ",
            $from,
            " it WINDOW of_portion AS (PARTITION BY portion ORDER BY priority DESC, run_at, id)) sums
                     WHERE nth_of_portion <= most_jobs AND before_of_portion < most_chunks) portioned
                 WINDOW in_turn AS (ORDER BY tier DESC, starts + before_of_portion * step, portion, nth_of_portion)
             ) summed
             WHERE nth <= $3 AND ($5 = 0 OR before < $5)"
        )
    };
}

impl Store {
    /// Returns where the queues begin that have something due, ordered by
    /// namespace; in each the highest priority, and the longest waiting, first.
    pub async fn heads(&self, share: &Share) -> Result<Vec<Head>, StoreError> {
        Ok(sqlx::query_as(concat!(
            "-- store::claim::heads
             ",
            heads!(),
            // What is there itself is not before its place.
            " SELECT namespace, model, priority, run_at, id - 1 AS id, chunks::bigint FROM heads
             ORDER BY namespace, priority DESC, run_at, id"
        ))
        .bind(&share.models)
        .bind(share.namespaces.as_deref())
        .fetch_all(&self.leases)
        .await?)
    }

    /// Whether a queued job of these models may run by now.
    pub async fn any_due(&self, models: &[String]) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(concat!(
            "-- store::claim::any_due
             ",
            heads!(),
            " SELECT EXISTS (SELECT FROM heads)"
        ))
        .bind(models)
        .bind(None::<&[String]>)
        .fetch_one(&self.leases)
        .await?)
    }

    /// Takes queued jobs that are due and leases them to a worker: of each portion
    /// those of the highest priority, then the longest waiting, in the order of the
    /// portions until it is enough.
    ///
    /// What is there tells how many jobs are enough, and no more are locked: a
    /// claim that locked all it might take would hide them from the claims beside
    /// it. Those it gets may be others, so what is too many of them is left.
    pub async fn claim(
        &self,
        claim: &Claim<'_>,
        portions: &[Portion<'_>],
    ) -> Result<Vec<Job>, StoreError> {
        let heads: Vec<(i32, &Head)> = (1..)
            .zip(portions)
            .flat_map(|(place, portion)| portion.heads.iter().map(move |head| (place, *head)))
            .collect();
        Ok(sqlx::query_as(concat!(
            "-- store::claim::claim
             WITH queues AS MATERIALIZED (
                 SELECT q.*, p.* FROM unnest($6::int[], $7::text[], $8::text[], $9::smallint[], $10::timestamptz[],
                                             $11::bigint[])
                     WITH ORDINALITY AS q(portion, namespace, model, priority, run_at, id, n)
                 CROSS JOIN LATERAL (
                     SELECT ($12::bigint[])[portion] AS most_jobs, ($13::bigint[])[portion] AS most_chunks,
                            ($14::smallint[])[portion] AS tier, ($15::bigint[])[portion] AS starts,
                            ($16::bigint[])[portion] AS step) p
             ), there AS (
                 -- Queue by queue, for the index has them so: however long one is, only its head is read.
                 SELECT q.n, q.portion, q.most_jobs, q.most_chunks, q.tier, q.starts, q.step, j.*
                 FROM queues q CROSS JOIN LATERAL (
                     SELECT id, priority, run_at, chunks_total - chunks_done - chunks_rejected AS pending
                     FROM weir.jobs
                     WHERE state = 'queued' AND namespace = q.namespace AND model = q.model AND priority = q.priority
                       AND run_at <= now() AND (run_at, id) > (q.run_at, q.id)
                     ORDER BY run_at, id LIMIT least(q.most_jobs, $3)) j
             ), enough AS MATERIALIZED (
                 SELECT n, count(*) AS jobs FROM (", wanted!("n", "there"), ") first GROUP BY n
             ), candidates AS MATERIALIZED (
                 SELECT q.portion, q.most_jobs, q.most_chunks, q.tier, q.starts, q.step, j.*
                 FROM enough CROSS JOIN LATERAL (SELECT * FROM queues WHERE queues.n = enough.n) q
                 CROSS JOIN LATERAL (
                     SELECT id, priority, run_at, chunks_total - chunks_done - chunks_rejected AS pending
                     FROM weir.jobs
                     WHERE state = 'queued' AND namespace = q.namespace AND model = q.model AND priority = q.priority
                       AND run_at <= now() AND (run_at, id) > (q.run_at, q.id)
                     ORDER BY run_at, id LIMIT enough.jobs
                     FOR UPDATE SKIP LOCKED) j
             ), due AS (", wanted!("id", "candidates"), ")
             UPDATE weir.jobs j
             SET state = 'running', epoch = j.epoch + 1, worker_id = $1, claimed_by = $2, claimed_at = now(),
                 progressed_at = NULL, changes = 0, heard = false, batch_size = NULL, session = NULL,
                 embedder_down = false, claimed_done = j.chunks_done + j.chunks_rejected, lease_expires_at = now() + $4,
                 started_at = coalesce(j.started_at, now())
             FROM due WHERE j.id = due.id
             RETURNING ", job_columns!()
        ))
        .bind(claim.worker_id)
        .bind(claim.claimed_by)
        .bind(claim.max_jobs)
        .bind(interval(claim.lease_duration))
        .bind(claim.max_chunks)
        .bind(each(&heads, |(place, _)| *place))
        .bind(each(&heads, |(_, head)| head.namespace.as_str()))
        .bind(each(&heads, |(_, head)| head.model.as_str()))
        .bind(each(&heads, |(_, head)| head.priority))
        .bind(each(&heads, |(_, head)| head.run_at))
        .bind(each(&heads, |(_, head)| head.id))
        .bind(each(portions, |portion| portion.jobs))
        .bind(each(portions, |portion| portion.chunks))
        .bind(each(portions, |portion| portion.tier))
        .bind(each(portions, |portion| portion.from))
        .bind(each(portions, |portion| portion.step))
        .fetch_all(&self.leases)
        .await?)
    }
}

/// What each of these has, as an array for Postgres.
fn each<'a, T, V>(these: &'a [T], of: impl Fn(&'a T) -> V) -> Vec<V> {
    these.iter().map(of).collect()
}
