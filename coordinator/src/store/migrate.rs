//! Brings a database up to this version's schema.

mod error;
pub mod sql;
mod steps;

use std::{collections::HashSet, time::Duration};

use sqlx::{
    Connection as _, Executor as _, PgConnection, PgPool,
    migrate::{Migrate as _, Migrator},
};
use tokio::time::sleep;

pub use self::error::MigrateError;

/// The steps of this version, and where their record is inside the schema.
pub fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("../migrations");
    migrator.dangerous_set_table_name("weir.migrations");
    migrator
}

/// The oldest Postgres the SQL is written for, as `server_version_num`.
const OLDEST_SERVER: i32 = 140_000;

/// Key of the advisory lock under which replicas take turns to migrate:
/// "weir" in ASCII.
const MIGRATION_LOCK: i64 = 0x7765_6972;

/// How often a replica asks whether it is its turn.
const TURN_EVERY: Duration = Duration::from_millis(100);

/// The first and the longest pause before a step is tried again that could not
/// have its lock: longer than it kept others waiting.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Applies what is missing. Replicas that start together take turns. With
/// `apply` false it only checks that nothing is missing.
pub async fn migrate(pool: &PgPool, apply: bool) -> Result<(), MigrateError> {
    if apply {
        return apply_steps(pool, &migrator()).await;
    }
    let mut connection = connect(pool).await?;
    check(&mut connection).await
}

/// Applies those of these steps that are missing. One whose lock somebody else
/// holds for long is tried again and again.
pub async fn apply_steps(pool: &PgPool, migrator: &Migrator) -> Result<(), MigrateError> {
    // A connection of its own, closed at the end: it gives up the lock and the search_path.
    let mut connection = connect(pool).await?;
    // A step may take longer than any statement of a call.
    connection
        .execute("-- store::migrate\nSET statement_timeout = 0")
        .await?;
    let mut pause = PAUSE.0;
    loop {
        take_turn(&mut connection).await?;
        match apply_missing(&mut connection, pool, migrator).await {
            Err(error) if error.is_lock_missed() => {
                let oldest = steps::oldest_transaction(pool, 0).await.ok().flatten();
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    oldest_transaction = oldest.map(tracing::field::display),
                    pause_ms = pause.as_millis(),
                    "Another transaction holds a lock that a step of the schema needs; it is tried again."
                );
            }
            result => {
                connection.close().await?;
                return result;
            }
        }
        give_turn(&mut connection).await?;
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Takes the advisory lock of whoever migrates. It is asked for again and again
/// instead of waited for: a statement that waits has a snapshot, and an index
/// that is built CONCURRENTLY by whoever has the lock would wait for that.
async fn take_turn(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let mut told = false;
    loop {
        let taken: bool = sqlx::query_scalar("-- store::migrate\nSELECT pg_try_advisory_lock($1)")
            .bind(MIGRATION_LOCK)
            .fetch_one(&mut *connection)
            .await?;
        if taken {
            return Ok(());
        }
        if !told {
            tracing::info!("Another replica brings the database up to date; this one waits.");
            told = true;
        }
        sleep(TURN_EVERY).await;
    }
}

/// Gives others a turn. A replica of an older version waits for its turn with a
/// snapshot, and so has to come and go before an index can be built.
async fn give_turn(connection: &mut PgConnection) -> Result<(), MigrateError> {
    sqlx::query("-- store::migrate\nSELECT pg_advisory_unlock($1)")
        .bind(MIGRATION_LOCK)
        .execute(connection)
        .await?;
    Ok(())
}

/// A connection that is not the pool's. The pool waits a moment for a database
/// that is starting, but does not tell why it waited in vain; a last try does.
pub(super) async fn connect(pool: &PgPool) -> Result<PgConnection, MigrateError> {
    match pool.acquire().await {
        Ok(connection) => Ok(connection.detach()),
        Err(sqlx::Error::PoolTimedOut) => PgConnection::connect_with(&pool.connect_options())
            .await
            .map_err(MigrateError::Unreachable),
        Err(error) => Err(MigrateError::Unreachable(error)),
    }
}

async fn apply_missing(
    connection: &mut PgConnection,
    pool: &PgPool,
    migrator: &Migrator,
) -> Result<(), MigrateError> {
    check_server(connection).await?;
    create_extension(connection).await?;
    create_schema(connection).await?;
    steps::apply_missing(connection, pool, migrator).await
}

async fn check(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let there: bool =
        sqlx::query_scalar("-- store::migrate\nSELECT to_regclass('weir.migrations') IS NOT NULL")
            .fetch_one(&mut *connection)
            .await?;
    if !there {
        return Err(MigrateError::NotMigrated);
    }
    if steps(connection).await?.pending > 0 {
        return Err(MigrateError::NotMigrated);
    }
    Ok(())
}

/// Steps of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaSteps {
    /// Those of this version that the database has.
    pub applied: usize,
    /// Those of this version that it lacks.
    pub pending: usize,
    /// Those that this version does not know: a newer one was here.
    pub unknown: usize,
}

/// Which steps a database lacks that has none.
pub(super) fn no_steps() -> SchemaSteps {
    SchemaSteps {
        applied: 0,
        pending: migrator().iter().count(),
        unknown: 0,
    }
}

/// Which steps a database has, whose record of them is there.
pub(super) async fn steps(connection: &mut PgConnection) -> Result<SchemaSteps, MigrateError> {
    let migrator = migrator();
    let applied = connection
        .list_applied_migrations(&migrator.table_name)
        .await
        .map_err(MigrateError::History)?;
    let known: HashSet<i64> = migrator.iter().map(|step| step.version).collect();
    let done: HashSet<i64> = applied.iter().map(|step| step.version).collect();
    Ok(SchemaSteps {
        applied: known.intersection(&done).count(),
        pending: known.difference(&done).count(),
        unknown: done.difference(&known).count(),
    })
}

/// Returns the server's version, as it calls itself.
pub(super) async fn check_server(connection: &mut PgConnection) -> Result<String, MigrateError> {
    let (number, found): (i32, String) = sqlx::query_as(
        "-- store::migrate\nSELECT current_setting('server_version_num')::int, current_setting('server_version')",
    )
    .fetch_one(connection)
    .await?;
    if number < OLDEST_SERVER {
        return Err(MigrateError::ServerTooOld { found });
    }
    Ok(found)
}

/// Whether pgvector is switched on. Fails when it cannot be, or is out of sight.
pub(super) async fn find_extension(connection: &mut PgConnection) -> Result<bool, MigrateError> {
    let (available, schema, in_sight): (bool, Option<String>, bool) = sqlx::query_as(
        "-- store::migrate
         SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector'),
                (SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
                  WHERE e.extname = 'vector'),
                to_regtype('vector') IS NOT NULL",
    )
    .fetch_one(&mut *connection)
    .await?;
    match schema {
        Some(_) if in_sight => Ok(true),
        Some(schema) => {
            let (role, _) = whoami(connection).await?;
            Err(MigrateError::ExtensionOutOfSight { schema, role })
        }
        None if !available => Err(MigrateError::NoPgvector),
        None => Ok(false),
    }
}

async fn create_extension(connection: &mut PgConnection) -> Result<(), MigrateError> {
    if find_extension(connection).await? {
        return Ok(());
    }
    match connection
        .execute("-- store::migrate\nCREATE EXTENSION vector")
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if is_denied(&error) => {
            let (role, database) = whoami(connection).await?;
            Err(MigrateError::MayNotCreateExtension { role, database })
        }
        Err(error) => Err(error.into()),
    }
}

async fn create_schema(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let there: bool =
        sqlx::query_scalar("-- store::migrate\nSELECT to_regnamespace('weir') IS NOT NULL")
            .fetch_one(&mut *connection)
            .await?;
    if there {
        return Ok(());
    }
    match connection
        .execute(
            "-- store::migrate
             CREATE SCHEMA weir;
             COMMENT ON SCHEMA weir IS 'Weir: sources, their embeddings, and the queue of jobs that makes them.'",
        )
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if is_denied(&error) => {
            let (role, database) = whoami(connection).await?;
            Err(MigrateError::MayNotCreateSchema { role, database })
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn whoami(connection: &mut PgConnection) -> Result<(String, String), sqlx::Error> {
    sqlx::query_as("-- store::migrate\nSELECT current_user::text, current_database()::text")
        .fetch_one(connection)
        .await
}

fn is_denied(error: &sqlx::Error) -> bool {
    // insufficient_privilege
    error
        .as_database_error()
        .is_some_and(|error| error.code().as_deref() == Some("42501"))
}
