//! The only SQL. One public method is one transaction; each statement begins
//! with a comment that names its method, so that Postgres' logs point home.

pub mod activity;
mod address;
pub mod attempts;
pub mod batches;
pub mod chunks;
pub mod claim;
pub mod content;
mod database;
pub mod error;
pub mod failures;
pub mod fence;
pub mod forced;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
pub mod imports;
mod inspect;
pub mod lease;
pub mod leftovers;
mod locks;
pub mod migrate;
pub mod models;
pub mod overview;
mod patience;
pub mod pending;
mod planning;
pub mod prompts;
pub mod queue;
pub mod quota;
pub mod reconcile;
mod rejections;
pub mod rescue;
pub mod retention;
pub mod rows;
pub mod scope;
pub mod search;
pub mod sources;
pub mod status;
pub mod steer;
pub mod steps;
pub mod workers;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use sqlx::{
    AssertSqlSafe, Executor, PgPool, Postgres, Row as _, SqlSafeStr as _, postgres::PgPoolOptions,
};

pub use sqlx::PgPool as ConnectionPool;

pub use error::{StoreError, Violation};
pub use inspect::{Inspection, inspect};
pub use migrate::{MigrateError, SchemaSteps, migrate};
pub use scope::Scope;

use self::{
    content::Patches,
    database::Pool,
    models::Dimensions,
    patience::{LOCK_TIMEOUT, TABLE_LOCK_TIMEOUT},
    quota::Quota,
    rows::SourceKey,
    steps::STEP_CHUNKS,
};
use crate::{config::DatabaseConfig, turns::Turns};

/// Channel that says: a job is queued. Payload: the replica that queued it and
/// has told its own workers, or else anything.
pub const QUEUE_CHANNEL: &str = "weir_queue";

/// Channel that says: this source or its jobs changed. Payload: the source's id.
pub const CHANGE_CHANNEL: &str = "weir_change";

/// Channel that says: leases were revoked. Payload: the source's id.
pub const REVOKE_CHANNEL: &str = "weir_revoke";

/// How long a connection may have been idle before it is asked whether it is
/// still there, and still takes writes.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// The target of what the pools log: of every connection that cannot be had
/// again, what calls and maintenance say once.
pub const POOL_LOG: &str = "sqlx_core::pool";

/// Connections for claims, openings and results. They go in groups, so that a
/// few are enough; each has every statement planned but once.
const LEASE_CONNECTIONS: u32 = 6;

/// Connections for what waits behind no call: one to listen for wake-ups, one
/// for probes, one for the sessions of workers.
const ASIDE_CONNECTIONS: u32 = 3;

/// What makes Postgres plan a statement once, and as lookups by an index, one for
/// each row that it is given: settings and their values.
const LOOKUPS: [(&str, &str); 6] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_sort", "off"),
];

/// Returns what makes Postgres plan a statement once, as all statements of leases
/// are: lookups by an index, one for each row they are given.
pub fn lease_settings() -> String {
    let set = |(name, value)| format!("SET {name} = {value};\n");
    LOOKUPS.into_iter().map(set).collect()
}

/// Everything Weir keeps, in one Postgres.
#[derive(Debug, Clone)]
pub struct Store {
    pool: Pool,
    /// For claims, openings and results.
    leases: Pool,
    /// For probes, for sessions, and to listen.
    aside: Pool,
    quota: Quota,
    dimensions: Dimensions,
    /// Of those who want to change a source.
    turns: Turns<SourceKey>,
    /// Patches that wait for theirs.
    patches: Patches,
    /// Of those who wait for the same job, which somebody else has locked.
    job_turns: Turns<i64>,
    /// Most chunks of a source in one step.
    step_chunks: i64,
}

impl Store {
    /// Uses the database behind `pool`. Whatever it is asked is answered within
    /// `limit` for each statement, the wait for a connection included, or is
    /// [`StoreError::Unavailable`].
    pub fn new(pool: PgPool, limit: Duration) -> Self {
        let pool = Pool { inner: pool, limit };
        Self {
            leases: pool.clone(),
            aside: pool.clone(),
            pool,
            quota: Quota::default(),
            dimensions: Dimensions::default(),
            turns: Turns::default(),
            patches: Patches::default(),
            job_turns: Turns::default(),
            step_chunks: STEP_CHUNKS,
        }
    }

    /// The same, with connections of their own for claims, openings and results.
    #[must_use]
    pub fn with_leases(mut self, pool: PgPool) -> Self {
        self.leases.inner = pool;
        self
    }

    /// The same, with connections of their own for what waits behind no call.
    #[must_use]
    pub fn with_aside(mut self, pool: PgPool) -> Self {
        self.aside.inner = pool;
        self
    }

    /// The same, for namespaces that may have no more than this.
    #[must_use]
    pub fn with_quota(self, quota: Quota) -> Self {
        Self { quota, ..self }
    }

    /// The same, for models whose dimensions the operator has set.
    #[must_use]
    pub fn with_dimensions(self, dimensions: Dimensions) -> Self {
        Self { dimensions, ..self }
    }

    /// The pool of all that is not for something else.
    pub fn pool(&self) -> &PgPool {
        &self.pool.inner
    }

    /// The pool of the leases.
    pub fn leases_pool(&self) -> &PgPool {
        &self.leases.inner
    }

    /// The pool of what waits behind no call.
    pub fn aside_pool(&self) -> &PgPool {
        &self.aside.inner
    }

    /// Sees whether the database answers and takes writes.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let read_only: bool = sqlx::query_scalar(
            "-- store::ping
             SELECT current_setting('transaction_read_only')::boolean",
        )
        .fetch_one(&self.aside)
        .await?;
        if read_only {
            Err(read_only_server().into())
        } else {
            Ok(())
        }
    }
}

/// The pools of connections of a coordinator.
#[derive(Debug)]
pub struct Pools {
    /// For everything that is not for leases.
    pub general: PgPool,
    /// For claims, openings and results.
    pub leases: PgPool,
    /// For probes, for sessions, and to listen.
    pub aside: PgPool,
}

/// Opens the pools. They connect on first use, so that a database that is away
/// delays calls instead of ending the process.
pub fn connect(config: &DatabaseConfig) -> anyhow::Result<Pools> {
    let url = config.url()?;
    let options = address::options(url)
        // What is wrong is not quoted: the URL may hold a password.
        .context("--database-url (WEIR_DATABASE_URL) is not a Postgres URL such as postgres://user:password@host/database")?
        .application_name("weir-coordinator");
    let pool = |connections: u32, lock_timeout: Duration, settings: &str| {
        pool_options(config, lock_timeout, settings)
            .max_connections(connections)
            .connect_lazy_with(options.clone())
    };
    Ok(Pools {
        general: pool(config.database_connections.get(), LOCK_TIMEOUT, ""),
        // None of their statements waits for a row that a write of content has.
        leases: pool(LEASE_CONNECTIONS, TABLE_LOCK_TIMEOUT, &lease_settings()),
        aside: pool(ASIDE_CONNECTIONS, TABLE_LOCK_TIMEOUT, ""),
    })
}

fn pool_options(config: &DatabaseConfig, lock_timeout: Duration, settings: &str) -> PgPoolOptions {
    let patience = config.database_timeout;
    // Zero would mean no limit, and Postgres takes no more than this.
    let statement_ms = config
        .statement_timeout
        .as_millis()
        .clamp(1, i32::MAX.unsigned_abs().into());
    let lock_ms = lock_timeout.as_millis();
    let settings = AssertSqlSafe(format!(
        "-- store::connect
         -- A coordinator that is stopped in mid-transaction must not hold its locks for ever.
         SET idle_in_transaction_session_timeout = '30s';
         SET statement_timeout = {statement_ms};
         -- Who waits longer for a lock does so without a connection.
         SET lock_timeout = {lock_ms};
         {settings}"
    ))
    .into_sql_str();
    let refusing = Arc::new(AtomicBool::new(false));
    PgPoolOptions::new()
        .acquire_timeout(config.database_timeout)
        .max_lifetime(Duration::from_mins(30))
        .after_connect(move |connection, _| {
            let (settings, refusing) = (settings.clone(), Arc::clone(&refusing));
            Box::pin(async move {
                let writable = is_writable(&mut *connection).await?;
                // Said once: a pool connects again and again.
                if refusing.swap(!writable, Ordering::Relaxed) == writable {
                    if writable {
                        tracing::info!("The database server takes writes again.");
                    } else {
                        tracing::warn!("The database server is read-only, a standby perhaps; calls fail until it, or another at its address, takes writes.");
                    }
                }
                if !writable {
                    return Err(read_only_server());
                }
                connection.execute(settings).await?;
                Ok(())
            })
        })
        // A connection that was used a moment ago is still there.
        .test_before_acquire(false)
        .before_acquire(|connection, used| {
            Box::pin(async move {
                Ok(used.idle_for <= TRUSTED_FOR || is_writable(connection).await?)
            })
        })
        .after_release(move |connection, _| {
            // A connection that was given up in the midst of a statement comes back as well. The
            // pool would wait for its answer for ever, and have one connection less. And a server
            // that was demoted keeps its connections.
            Box::pin(async move {
                let answered = tokio::time::timeout(patience, is_writable(connection)).await;
                Ok(matches!(answered, Ok(Ok(true))))
            })
        })
}

/// Whether the server takes writes: a standby does not, nor a server that was
/// made read-only. Costs as little as a ping.
pub(crate) async fn is_writable(
    connection: impl Executor<'_, Database = Postgres>,
) -> sqlx::Result<bool> {
    let row = sqlx::raw_sql("SHOW transaction_read_only")
        .fetch_one(connection)
        .await?;
    Ok(row.try_get::<&str, _>(0)? == "off")
}

/// The error of a server that takes no writes. Another may be reached at the
/// same address in a moment.
fn read_only_server() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(
        io::ErrorKind::ReadOnlyFilesystem,
        "the database server is read-only: a standby, or set so; connections to it are not used",
    ))
}
