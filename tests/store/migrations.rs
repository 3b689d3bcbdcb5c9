//! Steps of the schema that are applied while others work: none keeps them
//! waiting, and one that was cut off is applied again.

use std::{str::FromStr as _, time::Duration};

use futures::future::join_all;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool, SqlSafeStr as _,
    migrate::{Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{task::JoinHandle, time};
use weir_coordinator::store::{
    MigrateError,
    migrate::{apply_steps, migrator},
};
use weir_tests::{PATIENCE, postgres::TestDatabase};

use crate::fixture::{Weir, item, many};

/// A column that the table has to be locked for, if only for a moment.
const COLUMN: &str = "ALTER TABLE weir.jobs ADD COLUMN test integer NOT NULL DEFAULT 0;
    COMMENT ON COLUMN weir.jobs.test IS 'Of a test; nothing.';";

/// An index that takes the place of another.
const INDEX: &str = "-- no-transaction
    CREATE INDEX CONCURRENTLY IF NOT EXISTS chunks_test ON weir.chunks (source_id, text_hash);
    COMMENT ON INDEX weir.chunks_test IS 'Of a test; nothing.';
    DROP INDEX CONCURRENTLY IF EXISTS weir.jobs_of_namespace;";

/// Whether the new index can be read by.
const BUILT: &str = "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('weir.chunks_test') AND indisvalid";

/// Work in steps, each a transaction of its own.
const IN_STEPS: &str = "-- no-transaction
    DO $$ BEGIN
        FOR step IN 0..3 LOOP
            UPDATE weir.chunks SET text = text || '!' WHERE item_id IN (
                SELECT item_id FROM weir.chunks WHERE text NOT LIKE '%!%' ORDER BY item_id LIMIT 1000);
            COMMIT;
        END LOOP;
    END $$;";

/// The last step that was applied while nobody else worked.
const FIRST: i64 = 14;

/// The steps up to that.
fn first() -> Migrator {
    let steps = migrator();
    let steps = steps.iter().filter(|step| step.version <= FIRST);
    made_of(steps.cloned().collect())
}

/// The steps of this version, and these after them.
fn with(later: &[&'static str]) -> Migrator {
    let mut steps: Vec<Migration> = migrator().iter().cloned().collect();
    for (version, sql) in (9_001..).zip(later) {
        let alone = sql.starts_with("-- no-transaction");
        let sql = AssertSqlSafe(*sql).into_sql_str();
        let step = Migration::new(version, "test".into(), MigrationType::Simple, sql, alone);
        steps.push(step);
    }
    made_of(steps)
}

fn made_of(steps: Vec<Migration>) -> Migrator {
    let mut all = Migrator::with_migrations(steps);
    all.dangerous_set_table_name(migrator().table_name);
    all
}

/// A database with some rows, and connections that are not the tests' own.
async fn filled() -> (Weir, PgPool) {
    let weir = Weir::new().await;
    weir.put("api", &many(3_000)).await;
    let options = PgConnectOptions::from_str(weir.url()).unwrap();
    (weir, PgPoolOptions::new().connect_lazy_with(options))
}

/// Begins to apply these steps.
fn begin(pool: &PgPool, steps: &[&'static str]) -> JoinHandle<Result<(), MigrateError>> {
    let (pool, steps) = (pool.clone(), with(steps));
    tokio::spawn(async move { apply_steps(&pool, &steps).await })
}

/// The end of what was begun.
async fn end(migrating: JoinHandle<Result<(), MigrateError>>) -> Result<(), MigrateError> {
    let ended = time::timeout(PATIENCE, migrating).await;
    ended.expect("the steps are applied").unwrap()
}

/// A transaction that has done this and stays open, with its snapshot.
async fn open(weir: &Weir, done: &'static str) -> PgConnection {
    let mut open = PgConnection::connect(weir.url()).await.unwrap();
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ";
    open.execute(begin).await.unwrap();
    open.execute(done).await.unwrap();
    open
}

/// One that has read these tables, as that of a dump has.
async fn reader(weir: &Weir) -> PgConnection {
    let read = "SELECT (SELECT count(*) FROM weir.jobs), (SELECT count(*) FROM weir.chunks)";
    open(weir, read).await
}

/// One that may have written to a table. The build of an index waits for it
/// first, and then for every snapshot that is left.
async fn writer(weir: &Weir) -> PgConnection {
    open(weir, "DELETE FROM weir.chunks WHERE false").await
}

/// Whether a step waits for the jobs, and others behind it.
const WAITS: &str = "SELECT count(*) FROM pg_locks
    WHERE relation = 'weir.jobs'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted";

/// Waits until a query counts so many.
async fn until(weir: &Weir, sql: &'static str, count: i64) {
    let counted = async {
        while weir.number(sql).await != count {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    let counted = time::timeout(PATIENCE, counted).await;
    counted.unwrap_or_else(|_| panic!("{count} of {sql}"));
}

/// Replicas that wait for their turn in a statement.
const TURN_WAITED_FOR: &str = "SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND NOT granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Waits until an index is built, and its build waits for the reader.
async fn until_build_waits(weir: &Weir) {
    let waits = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '%INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'";
    until(weir, waits, 1).await;
}

#[tokio::test]
async fn a_column_is_added_between_the_writes_of_others_that_never_wait_for_a_reader() {
    let (weir, pool) = filled().await;
    let mut reader = reader(&weir).await;
    let migrating = begin(&pool, &[COLUMN]);
    // While it waits for its lock others wait behind it; so it gives up, and tries again.
    for _ in 0..2 {
        until(&weir, WAITS, 1).await;
        // Written behind it, while the reader still reads.
        weir.put("api", &[item("i0001", &["another text"])]).await;
        until(&weir, WAITS, 0).await;
        weir.put("api", &many(3_000)).await;
    }
    assert!(!migrating.is_finished(), "the reader still reads");
    reader.execute("COMMIT").await.unwrap();
    end(migrating).await.unwrap();
    weir.number("SELECT count(test) FROM weir.jobs").await;
    weir.check().await;
}

#[tokio::test]
async fn an_index_takes_the_place_of_another_while_others_read_and_write() {
    let (weir, pool) = filled().await;
    let mut reader = reader(&weir).await;
    let migrating = begin(&pool, &[INDEX]);
    until_build_waits(&weir).await;
    weir.put("api", &[item("i0001", &["another text"])]).await;
    assert_eq!(weir.number(BUILT).await, 0);
    reader.execute("COMMIT").await.unwrap();
    end(migrating).await.unwrap();
    assert_eq!(weir.number(BUILT).await, 1);
    let former = "SELECT count(to_regclass('weir.jobs_of_namespace'))";
    assert_eq!(weir.number(former).await, 0);
    // Both are known to be there.
    apply_steps(&pool, &with(&[INDEX])).await.unwrap();
    weir.check().await;
}

#[tokio::test]
async fn an_index_whose_build_was_cut_off_is_built_anew() {
    let (weir, pool) = filled().await;
    let mut reader = reader(&weir).await;
    let migrating = begin(&pool, &[INDEX]);
    until_build_waits(&weir).await;
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '%INDEX CONCURRENTLY%' AND wait_event_type = 'Lock'";
    assert_eq!(weir.number(cut).await, 1);
    end(migrating).await.unwrap_err();
    let remains = "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('weir.chunks_test') AND NOT indisvalid";
    assert_eq!(weir.number(remains).await, 1);
    reader.execute("COMMIT").await.unwrap();
    apply_steps(&pool, &with(&[INDEX])).await.unwrap();
    assert_eq!(weir.number(BUILT).await, 1);
}

#[tokio::test]
async fn an_index_is_built_while_other_replicas_wait_for_their_turn() {
    let (weir, pool) = filled().await;
    let mut writer = writer(&weir).await;
    let first = begin(&pool, &[INDEX]);
    until_build_waits(&weir).await;
    let others: Vec<_> = (0..3).map(|_| begin(&pool, &[INDEX])).collect();
    let asked = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '%advisory_lock(%' AND query NOT LIKE '%pg_stat_activity%'";
    until(&weir, asked, 3).await;
    // Who waits in a statement has a snapshot, which the build would wait for.
    assert_eq!(weir.number(TURN_WAITED_FOR).await, 0);
    writer.execute("COMMIT").await.unwrap();
    for ended in join_all(others.into_iter().chain([first]).map(end)).await {
        ended.unwrap();
    }
    assert_eq!(weir.number(BUILT).await, 1);
}

#[tokio::test]
async fn an_older_replica_that_waits_for_its_turn_gets_it_before_the_index_is_built() {
    let (weir, pool) = filled().await;
    let mut writer = writer(&weir).await;
    let migrating = begin(&pool, &[INDEX]);
    until_build_waits(&weir).await;
    // It waits in a statement for the lock, and the build will wait for its snapshot.
    let mut older = PgConnection::connect(weir.url()).await.unwrap();
    older.execute("SET deadlock_timeout = '1h'").await.unwrap();
    let turn = tokio::spawn(async move {
        let taken = older
            .execute("SELECT pg_advisory_lock(x'77656972'::bigint)")
            .await;
        taken.map(drop)
        // It finds a schema that is newer than itself, and goes.
    });
    until(&weir, TURN_WAITED_FOR, 1).await;
    writer.execute("COMMIT").await.unwrap();
    time::timeout(PATIENCE, turn)
        .await
        .expect("it gets its turn")
        .unwrap()
        .unwrap();
    end(migrating).await.unwrap();
    assert_eq!(weir.number(BUILT).await, 1);
}

/// Writes as a replica does that knows the first steps alone.
async fn write_as_before(weir: &Weir) {
    for _ in 0..50 {
        let mut tx = weir.pool().begin().await.unwrap();
        for sql in [
            "UPDATE weir.jobs SET lease_expires_at = now() + interval '1 minute' WHERE id % 100 = 0",
            "UPDATE weir.chunks SET text = text || '.' WHERE item_id = 'i0001'",
            "UPDATE weir.sources SET revision = revision + 1",
        ] {
            sqlx::query(sql).execute(&mut *tx).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn what_came_after_the_first_steps_is_applied_beside_replicas_that_do_not_know_it() {
    let weir = Weir::of(TestDatabase::create().await);
    apply_steps(weir.pool(), &first()).await.unwrap();
    let rows = "INSERT INTO weir.sources (namespace, name, model) VALUES ('shop', 'api', 'fake');
        INSERT INTO weir.items (source_id, item_id)
            SELECT s.id, format('i%s', lpad(n::text, 4, '0')) FROM weir.sources s, generate_series(1, 3000) n;
        INSERT INTO weir.chunks (source_id, item_id, chunk_index, text_hash, text)
            SELECT source_id, item_id, 0, sha256(item_id::bytea), item_id FROM weir.items;
        INSERT INTO weir.jobs (source_id, revision, chunks_total, trigger, namespace, source, model,
                               first_item_id, last_item_id, state, worker_id, claimed_at, lease_expires_at)
            SELECT source_id, 1, 1, 'write', 'shop', 'api', 'fake', item_id, item_id, 'running', 'w', now(), now()
            FROM weir.items";
    sqlx::raw_sql(rows).execute(weir.pool()).await.unwrap();
    let mut reader = reader(&weir).await;
    let pool = weir.pool().clone();
    let migrating = begin(&pool, &[COLUMN, INDEX, IN_STEPS]);
    // It cannot end before the reader does; nobody who writes waits for either.
    let written = async { tokio::join!(until(&weir, WAITS, 1), write_as_before(&weir)) };
    let written = time::timeout(PATIENCE, written).await;
    written.expect("writes go on");
    assert!(!migrating.is_finished(), "the reader still reads");
    reader.execute("COMMIT").await.unwrap();
    let (ended, ()) = tokio::join!(end(migrating), write_as_before(&weir));
    ended.unwrap();
    let steps = with(&[COLUMN, INDEX, IN_STEPS]).iter().count();
    let applied = "SELECT count(*) FROM weir.migrations WHERE success";
    assert_eq!(weir.number(applied).await, steps as i64);
    assert_eq!(weir.number(BUILT).await, 1);
    let whole = "SELECT count(*) FROM weir.chunks WHERE text LIKE '%!%'";
    assert_eq!(weir.number(whole).await, 3_000);
}

#[tokio::test]
async fn a_step_that_fails_is_named() {
    let (_weir, pool) = filled().await;
    for step in [
        "SELECT 1; SELECT nonsense",
        "-- no-transaction\nSELECT 1; SELECT nonsense",
    ] {
        let error = apply_steps(&pool, &with(&[step])).await.unwrap_err();
        assert!(
            matches!(error, MigrateError::Step { step: 9_001, .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("nonsense"), "{error}");
    }
    // None of it is taken for done.
    apply_steps(&pool, &with(&["SELECT 1"])).await.unwrap();
}
