//! What can go wrong with a database that is to be brought up to date, and
//! what to do about it.

use sqlx::{error::DatabaseError, migrate::MigrateError as Fault};

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
    History(Fault),
    /// The schema is older than this version, and migrating was switched off.
    #[error(
        "the database is not up to date and --migrate (WEIR_MIGRATE) is false: run `weir-coordinator migrate`"
    )]
    NotMigrated,
    /// There is no connection to be had.
    #[error("the database of --database-url (WEIR_DATABASE_URL) cannot be reached: {0}")]
    Unreachable(sqlx::Error),
    /// A step of the schema failed.
    #[error("step {step} of the schema failed: {error}")]
    Step {
        /// The number of its file.
        step: i64,
        /// What the database said.
        error: sqlx::Error,
    },
    /// Anything else the database said.
    #[error("the database refused: {0}")]
    Database(#[from] sqlx::Error),
}

impl From<Fault> for MigrateError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Execute(error) => Self::Database(error),
            Fault::ExecuteMigration(error, step) => Self::Step { step, error },
            other => Self::History(other),
        }
    }
}

impl MigrateError {
    /// Whether it only could not have a lock, and may the next time.
    pub(super) fn is_lock_missed(&self) -> bool {
        let (Self::Step { error, .. } | Self::Database(error)) = self else {
            return false;
        };
        // lock_not_available, deadlock_detected
        let missed = ["55P03", "40P01"];
        let code = error.as_database_error().and_then(DatabaseError::code);
        code.is_some_and(|code| missed.contains(&&*code))
    }
}
