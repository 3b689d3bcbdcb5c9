//! The steps of the schema, applied while older replicas and others work.
//!
//! A step is one transaction, unless its file begins with `-- no-transaction`:
//! then each statement stands for itself, and all of them run again after one
//! that failed. No lock is waited for longer than [`LOCK_PATIENCE`], for whoever
//! wants one after it waits as well; what is done CONCURRENTLY keeps nobody
//! waiting and waits for as long as it takes.

use std::{collections::HashMap, time::Duration};

use sqlx::{
    AssertSqlSafe, PgConnection, PgPool,
    migrate::{Migrate as _, MigrateError as Fault, Migration, Migrator},
};
use tokio::time::{Instant, interval_at};

use super::{MigrateError, sql};

/// How long a step waits for a lock, and others behind it. Shorter than Postgres
/// waits before it looks for a deadlock, so that no other is the one to fail.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// How often it is told what a long step waits for.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Applies what is missing, in order.
pub(super) async fn apply_missing(
    connection: &mut PgConnection,
    pool: &PgPool,
    migrator: &Migrator,
) -> Result<(), MigrateError> {
    set_patience(connection, LOCK_PATIENCE).await?;
    let table = &migrator.table_name;
    connection.ensure_migrations_table(table).await?;
    let applied = connection.list_applied_migrations(table).await?;
    for step in &applied {
        if !migrator.version_exists(step.version) {
            return Err(Fault::VersionMissing(step.version).into());
        }
    }
    let applied: HashMap<i64, _> = applied
        .iter()
        .map(|it| (it.version, &it.checksum))
        .collect();
    for step in migrator.iter() {
        match applied.get(&step.version) {
            Some(checksum) if **checksum == step.checksum => {}
            Some(_) => return Err(Fault::VersionMismatch(step.version).into()),
            None => {
                let pid = backend(connection).await?;
                let applying = apply(connection, table, step);
                tell_meanwhile(applying, pool, pid, step).await?;
                tracing::info!(
                    step = step.version,
                    description = &*step.description,
                    "Applied a step of the schema."
                );
            }
        }
    }
    Ok(())
}

async fn apply(
    connection: &mut PgConnection,
    table: &str,
    step: &Migration,
) -> Result<(), MigrateError> {
    if !step.no_tx {
        connection.apply(table, step).await?;
        return Ok(());
    }
    for statement in sql::statements(step.sql.as_str()) {
        run_alone(connection, statement)
            .await
            .map_err(|error| Fault::ExecuteMigration(error, step.version))?;
    }
    Ok(connection.skip(table, step).await?)
}

/// Runs a statement that is a transaction of its own.
async fn run_alone(connection: &mut PgConnection, statement: String) -> sqlx::Result<()> {
    if let Some(index) = sql::concurrent_index(&statement) {
        drop_remains(connection, index).await?;
    }
    let patient = sql::is_concurrent(&statement);
    if patient {
        set_patience(connection, Duration::ZERO).await?;
    }
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(&mut *connection)
        .await?;
    if patient {
        set_patience(connection, LOCK_PATIENCE).await?;
    }
    Ok(())
}

/// Drops an index of which a build that was cut off left a part: it is written
/// to and never read, and is there for `IF NOT EXISTS`.
async fn drop_remains(connection: &mut PgConnection, index: &str) -> sqlx::Result<()> {
    let remains: bool = sqlx::query_scalar(
        "-- store::migrate::drop_remains
         SELECT EXISTS (
             SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
             WHERE c.relnamespace = 'weir'::regnamespace AND c.relname = $1 AND NOT i.indisvalid)",
    )
    .bind(index)
    .fetch_one(&mut *connection)
    .await?;
    if remains {
        tracing::warn!(index, "Builds an index anew that was left unfinished.");
        set_patience(connection, Duration::ZERO).await?;
        let drop =
            format!("-- store::migrate::drop_remains\nDROP INDEX CONCURRENTLY weir.\"{index}\"");
        sqlx::raw_sql(AssertSqlSafe(drop))
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// Sets how long a lock is waited for; zero for as long as it takes.
async fn set_patience(connection: &mut PgConnection, patience: Duration) -> sqlx::Result<()> {
    let ms = patience.as_millis();
    let set = format!("-- store::migrate::set_patience\nSET lock_timeout = {ms}");
    sqlx::raw_sql(AssertSqlSafe(set))
        .execute(connection)
        .await?;
    Ok(())
}

async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::query_scalar("-- store::migrate::backend\nSELECT pg_backend_pid()")
        .fetch_one(connection)
        .await
}

/// Tells now and then that a step takes long, and of what it may wait for.
async fn tell_meanwhile(
    applying: impl Future<Output = Result<(), MigrateError>>,
    pool: &PgPool,
    pid: i32,
    step: &Migration,
) -> Result<(), MigrateError> {
    let mut applying = std::pin::pin!(applying);
    let began = Instant::now();
    let mut ticks = interval_at(began + TELL_EVERY, TELL_EVERY);
    loop {
        tokio::select! {
            applied = &mut applying => return applied,
            _ = ticks.tick() => {}
        }
        let tell = async {
            let oldest = oldest_transaction(pool, pid).await.ok().flatten();
            tracing::warn!(
                step = step.version,
                seconds = began.elapsed().as_secs(),
                oldest_transaction = oldest.map(tracing::field::display),
                "A step of the schema still runs. It ends no earlier than transactions that began before it."
            );
        };
        tokio::select! {
            applied = &mut applying => return applied,
            () = tell => {}
        }
    }
}

/// What of the database's other transactions began first, as far as this role
/// may know.
pub(super) async fn oldest_transaction(pool: &PgPool, pid: i32) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar(
        "-- store::migrate::oldest_transaction
         SELECT format('pid %s of %s, %s, for %s s', pid, coalesce(nullif(application_name, ''), 'no name'), state,
                       extract(epoch FROM clock_timestamp() - xact_start)::bigint)
         FROM pg_stat_activity
         WHERE datname = current_database() AND pid NOT IN ($1, pg_backend_pid()) AND xact_start IS NOT NULL
         ORDER BY xact_start LIMIT 1",
    )
    .bind(pid)
    .fetch_optional(pool)
    .await
}
