//! The only SQL. One public method is one transaction; each statement begins
//! with a comment that names its method, so that Postgres' logs point home.

pub mod batches;
pub mod content;
pub mod error;
pub mod imports;
pub mod lease;
mod locks;
mod migrate;
pub mod pending;
mod planning;
pub mod queue;
pub mod reconcile;
pub mod rescue;
pub mod retention;
pub mod rows;
pub mod search;
pub mod sources;
pub mod status;
pub mod steer;

use std::{str::FromStr, time::Duration};

use sqlx::{
    Executor as _, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

pub use error::{StoreError, Violation};
pub use migrate::{MigrateError, migrate};

use crate::config::DatabaseConfig;

/// Channel that says: a job is queued. No payload.
pub const QUEUE_CHANNEL: &str = "weir_queue";

/// Channel that says: this source or its jobs changed. Payload: the source's id.
pub const CHANGE_CHANNEL: &str = "weir_change";

/// Channel that says: leases were revoked. Payload: the source's id.
pub const REVOKE_CHANNEL: &str = "weir_revoke";

/// Everything Weir keeps, in one Postgres.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
}

impl Store {
    /// Uses the database behind `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The pool, for the listener and for health checks.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Asks the database for nothing, to see whether it answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("-- store::ping\nSELECT 1")
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// Opens a pool of connections. Connects on first use, so that a database that
/// is away delays calls instead of ending the process.
pub fn connect(config: &DatabaseConfig) -> anyhow::Result<PgPool> {
    let options = PgConnectOptions::from_str(config.url()?)
        .map_err(|error| {
            // The error may quote the URL, which may hold a password.
            tracing::debug!(%error, "the database URL does not parse");
            anyhow::anyhow!("--database-url (WEIR_DATABASE_URL) is not a Postgres URL such as postgres://user:password@host/database")
        })?
        .application_name("weir-coordinator");
    Ok(PgPoolOptions::new()
        .max_connections(config.database_connections.get())
        .acquire_timeout(config.database_timeout)
        .max_lifetime(Duration::from_mins(30))
        .after_connect(|connection, _| {
            Box::pin(async move {
                // A coordinator that is stopped in mid-transaction must not hold its locks for ever.
                connection
                    .execute("-- store::connect\nSET idle_in_transaction_session_timeout = '30s'")
                    .await?;
                Ok(())
            })
        })
        .connect_lazy_with(options))
}
