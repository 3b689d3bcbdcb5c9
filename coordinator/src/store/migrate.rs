//! Brings a database up to this version's schema.

use std::collections::HashSet;

use sqlx::{
    Connection as _, Executor as _, PgConnection, PgPool,
    migrate::{Migrate as _, Migrator},
};

/// The steps, and their record inside the schema.
fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("../migrations");
    migrator.dangerous_set_table_name("weir.migrations");
    migrator
}

/// The oldest Postgres the SQL is written for, as `server_version_num`.
const OLDEST_SERVER: i32 = 140_000;

/// Key of the advisory lock under which replicas take turns to migrate:
/// "weir" in ASCII.
const MIGRATION_LOCK: i64 = 0x7765_6972;

/// Why a database could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The server lacks a feature.
    #[error("the database server is PostgreSQL {found}; Weir needs version 14 or newer")]
    ServerTooOld {
        /// Its version, as it calls itself.
        found: String,
    },
    /// The server has no pgvector.
    #[error(
        "the database server has no pgvector: install the extension on the server (the package \
         postgresql-NN-pgvector, or an image that carries it), then start again"
    )]
    NoPgvector,
    /// pgvector is there but this role may not switch it on.
    #[error(
        "the role {role:?} may not create the extension pgvector in the database {database:?}: have \
         a superuser run CREATE EXTENSION vector; there, then start again"
    )]
    MayNotCreateExtension {
        /// The role.
        role: String,
        /// The database.
        database: String,
    },
    /// pgvector is in a schema that is not searched.
    #[error(
        "pgvector is installed in the database's schema {schema:?}, which is not on this role's search_path: \
         run ALTER ROLE {role:?} SET search_path = \"$user\", public, {schema:?}; then start again"
    )]
    ExtensionOutOfSight {
        /// Where it is.
        schema: String,
        /// The role.
        role: String,
    },
    /// The role may not create the schema.
    #[error(
        "the role {role:?} may not create the schema weir in the database {database:?}: have its owner run \
         CREATE SCHEMA weir AUTHORIZATION {role:?}; then start again"
    )]
    MayNotCreateSchema {
        /// The role.
        role: String,
        /// The database.
        database: String,
    },
    /// The role may not read or write the schema.
    #[error(
        "the role {role:?} may not read and write {what} of the schema weir: have its owner run \
         GRANT USAGE ON SCHEMA weir TO {role:?}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA weir \
         TO {role:?}; or let the owner be the role"
    )]
    MayNotUseSchema {
        /// The role.
        role: String,
        /// What of the schema.
        what: String,
    },
    /// The database was migrated by a newer Weir, or its history was changed.
    #[error("the database does not fit this version of Weir: {0}")]
    History(sqlx::migrate::MigrateError),
    /// The schema is older than this version, and migrating was switched off.
    #[error(
        "the database is not up to date and --migrate (WEIR_MIGRATE) is false: run `weir-coordinator migrate`"
    )]
    NotMigrated,
    /// There is no connection to be had.
    #[error("the database of --database-url (WEIR_DATABASE_URL) cannot be reached: {0}")]
    Unreachable(sqlx::Error),
    /// Anything else the database said.
    #[error("the database refused: {0}")]
    Database(#[from] sqlx::Error),
}

/// Applies what is missing, under an advisory lock, so that replicas that start
/// together take turns. With `apply` false it only checks that nothing is.
pub async fn migrate(pool: &PgPool, apply: bool) -> Result<(), MigrateError> {
    // A connection of its own, closed at the end: it gives up the lock and the search_path.
    let mut connection = connect(pool).await?;
    // A step may take longer than any statement of a call, and so may another replica's turn.
    connection
        .execute("-- store::migrate\nSET statement_timeout = 0; SET lock_timeout = 0")
        .await?;
    if !apply {
        return check(&mut connection).await;
    }
    sqlx::query("-- store::migrate\nSELECT pg_advisory_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut connection)
        .await?;
    let result = apply_missing(&mut connection).await;
    connection.close().await?;
    result
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

async fn apply_missing(connection: &mut PgConnection) -> Result<(), MigrateError> {
    check_server(connection).await?;
    create_extension(connection).await?;
    create_schema(connection).await?;
    run(connection).await
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

async fn run(connection: &mut PgConnection) -> Result<(), MigrateError> {
    migrator()
        .run(&mut *connection)
        .await
        .map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) => MigrateError::Database(error),
            other => MigrateError::History(other),
        })
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
