//! Sessions of workers: who is connected, with which models, and whether anybody
//! still serves them (law 15). Every time is the database's (law 2).

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;

use super::{Scope, Store, StoreError, database::Pool, lease::interval};

/// However short the orphan grace is: a session is not over before so long a
/// silence, which a busy machine, or a database that fails over, may cause.
const SHORTEST_GRACE: Duration = Duration::from_secs(3);

/// How long a session may be untouched before it is over.
pub fn session_grace(orphan_grace: Duration) -> Duration {
    orphan_grace.max(SHORTEST_GRACE)
}

/// Whether an embedder embeds, as its worker says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbedderState {
    /// It embeds.
    Fit,
    /// It asked to be left alone for a while.
    Resting,
    /// It embeds nothing.
    Down,
    /// Not tried yet, or in a state that only a newer replica knows.
    #[default]
    #[serde(other)]
    Untried,
}

/// How an embedder is, as its worker says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Whether it embeds.
    pub state: EmbedderState,
    /// Where it does not: why, in its own words as far as it has any.
    pub reason: String,
    /// Numbers in each of its vectors, once that is known.
    pub dimension: Option<i32>,
    /// Most tokens that it takes of a text, where that is known.
    pub longest_input: Option<i32>,
}

/// A model of a session, as its replica tells: one of another version, perhaps,
/// which leaves something out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionModel {
    /// Its name.
    pub name: String,
    /// How its embedder is.
    #[serde(flatten)]
    pub condition: Condition,
    /// For how long it had been in its state when the row was written, in
    /// milliseconds.
    pub in_state_ms: u64,
    /// Chunks that were sent to the worker and are not answered.
    pub chunks_in_hand: u64,
    /// Chunks embedded by the session in all.
    pub chunks_embedded: u64,
    /// Chunks embedded in a second, over the last few.
    pub chunks_per_second: f64,
}

/// A session, as its replica tells.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionRow {
    /// Its id: 32 hexadecimal digits.
    pub session: Arc<str>,
    /// What the worker calls itself.
    pub worker_id: Arc<str>,
    /// The version that it says it is of.
    pub version: Arc<str>,
    /// Who serves it.
    pub replica: Arc<str>,
    /// The namespaces that its token is limited to; `None` where it is not.
    pub namespaces: Option<Arc<[String]>>,
    /// What it embeds with.
    pub models: Vec<SessionModel>,
    /// How long it has been open: a row that was lost comes back with its age.
    pub open_for: Duration,
    /// Whether the worker is to stop.
    pub draining: bool,
}

/// A worker that is connected: a session, as it is read.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Worker {
    /// The session.
    pub session: String,
    /// What the worker calls itself.
    pub worker_id: String,
    /// The version that it says it is of.
    pub version: String,
    /// The replica that serves it.
    pub replica: String,
    /// When the session was opened.
    pub connected_at: DateTime<Utc>,
    /// When its replica last told of it: the rest is of then.
    pub touched_at: DateTime<Utc>,
    /// How long ago that is, in seconds.
    pub age_seconds: f64,
    /// Whether the worker is to stop.
    pub draining: bool,
    /// What it embeds with.
    pub models: Json<Vec<SessionModel>>,
}

/// Where a page of workers ended: the name of the last, and its session.
pub type WorkerPosition = (String, String);

/// Which workers are asked for.
#[derive(Debug, Clone, Copy)]
pub struct WorkerFilter<'a> {
    /// The namespaces that they may serve one of.
    pub scope: &'a Scope,
    /// Only those that embed with this model.
    pub model: Option<&'a str>,
    /// Only those whose replica told of them within this.
    pub touched_within: Duration,
}

impl Store {
    /// Enters a session that has just been opened. It is there, for all replicas,
    /// before it holds a lease.
    pub async fn enter_session(&self, row: &SessionRow) -> Result<(), StoreError> {
        // The session of one worker waits behind no call.
        write(&self.leases, std::slice::from_ref(row)).await
    }

    /// Says of all sessions of a replica that they go on, in one statement. Whole
    /// rows are written, so that one that was lost comes back. What is not
    /// answered within `patience` is given up, for it is said again soon, and
    /// perhaps by a connection that is not lost.
    pub async fn touch_sessions(
        &self,
        rows: &[SessionRow],
        patience: Duration,
    ) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut pool = self.aside.clone();
        pool.limit = pool.limit.min(patience);
        write(&pool, rows).await
    }

    /// Removes a session that has ended and holds no lease any more.
    pub async fn leave_session(&self, session: &str) -> Result<(), StoreError> {
        sqlx::query(
            "-- store::workers::leave_session
             DELETE FROM weir.workers WHERE session = $1",
        )
        .bind(session)
        .execute(&self.leases)
        .await?;
        Ok(())
    }

    /// Returns up to `limit` workers after `after`, ordered by name and session.
    pub async fn workers(
        &self,
        filter: &WorkerFilter<'_>,
        after: Option<&WorkerPosition>,
        limit: i64,
    ) -> Result<Vec<Worker>, StoreError> {
        self.read(|| async {
            let (worker_id, session) = after.map(|(id, session)| (id, session)).unzip();
            Ok(sqlx::query_as(
                "-- store::workers::workers
                 SELECT session, worker_id, version, replica, connected_at, touched_at, draining, models,
                        greatest(extract(epoch FROM now() - touched_at), 0)::float8 AS age_seconds
                 FROM weir.workers
                 WHERE ($1::text[] IS NULL OR namespaces IS NULL OR namespaces && $1)
                   AND ($2::text IS NULL OR models @> jsonb_build_array(jsonb_build_object('name', $2)))
                   AND touched_at > now() - $3
                   AND ($4::text IS NULL OR (worker_id, session) > ($4, $5))
                 ORDER BY worker_id, session LIMIT $6",
            )
            .bind(filter.scope.namespaces())
            .bind(filter.model)
            .bind(interval(filter.touched_within))
            .bind(worker_id)
            .bind(session)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// Forgets up to `limit` sessions that nobody has touched for `age`. Returns
    /// how many went.
    pub async fn forget_sessions(&self, age: Duration, limit: i64) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "-- store::workers::forget_sessions
             WITH old AS MATERIALIZED (
                 SELECT session FROM weir.workers WHERE touched_at <= now() - $1 LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             DELETE FROM weir.workers w USING old WHERE w.session = old.session",
        )
        .bind(interval(age))
        .bind(limit)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }
}

/// Writes these rows, whether they are there or not.
async fn write(pool: &Pool, rows: &[SessionRow]) -> Result<(), StoreError> {
    let open_for: Vec<_> = rows.iter().map(|row| interval(row.open_for)).collect();
    // One text, for there are no arrays of arrays of different lengths. No namespace has a comma.
    let namespaces: Vec<Option<String>> = rows
        .iter()
        .map(|row| row.namespaces.as_ref().map(|these| these.join(",")))
        .collect();
    sqlx::query(
        "-- store::workers::write
         INSERT INTO weir.workers AS w
             (session, worker_id, version, replica, namespaces, models, draining, connected_at)
         SELECT session, worker_id, version, replica, string_to_array(namespaces, ','), models, draining, now() - open_for
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::jsonb[], $7::boolean[],
                     $8::interval[])
             AS it(session, worker_id, version, replica, namespaces, models, draining, open_for)
         ON CONFLICT (session) DO UPDATE
         SET touched_at = now(), models = EXCLUDED.models, draining = EXCLUDED.draining",
    )
    .bind(column(rows, |row| &*row.session))
    .bind(column(rows, |row| &*row.worker_id))
    .bind(column(rows, |row| &*row.version))
    .bind(column(rows, |row| &*row.replica))
    .bind(namespaces)
    .bind(column(rows, |row| Json(&row.models)))
    .bind(column(rows, |row| row.draining))
    .bind(open_for)
    .execute(pool)
    .await?;
    Ok(())
}

/// What each of these has, as an array for Postgres.
fn column<'a, V>(rows: &'a [SessionRow], of: impl Fn(&'a SessionRow) -> V) -> Vec<V> {
    rows.iter().map(of).collect()
}
