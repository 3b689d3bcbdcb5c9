//! The schema: how it is brought about, what it refuses, how it is worn.

use futures::future::join_all;
use rand::RngExt as _;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{str::FromStr as _, time::Duration};
use weir_coordinator::store::{MigrateError, Store, migrate};
use weir_tests::{PATIENCE, postgres::TestDatabase};

use crate::fixture::{LEASE, Weir, lease_of, many, opening_of, session};

#[tokio::test]
async fn a_database_that_is_away_is_named_with_the_cause() {
    // A port that was free a moment ago: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port();
    let pool = PgPoolOptions::new()
        .acquire_timeout(Duration::from_millis(100))
        .connect_lazy(&format!("postgres://nobody@127.0.0.1:{port}/weir"))
        .unwrap();
    let error = migrate(&pool, true).await.unwrap_err().to_string();
    assert!(error.contains("WEIR_DATABASE_URL"), "{error}");
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let steps = "SELECT count(*) FROM weir.migrations";
    let before = weir.number(steps).await;
    assert!(before > 0);
    migrate(weir.pool(), true).await.unwrap();
    migrate(weir.pool(), false).await.unwrap();
    assert_eq!(weir.number(steps).await, before);
    weir.check().await;
}

#[tokio::test]
async fn replicas_that_start_together_take_turns() {
    let database = TestDatabase::create().await;
    for result in join_all((0..6).map(|_| migrate(database.pool(), true))).await {
        result.unwrap();
    }
    Store::new(database.pool().clone(), PATIENCE)
        .source(&crate::fixture::key("api"))
        .await
        .unwrap_err();
}

#[tokio::test]
async fn a_database_that_is_not_up_to_date_is_told_from_one_that_is() {
    let database = TestDatabase::create().await;
    let error = migrate(database.pool(), false).await.unwrap_err();
    assert!(matches!(error, MigrateError::NotMigrated), "{error:?}");
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_namespace WHERE nspname = 'weir'")
        .fetch_one(database.pool())
        .await
        .unwrap();
    assert_eq!(left, 0, "looking changes nothing");
    migrate(database.pool(), true).await.unwrap();
    sqlx::query(
        "DELETE FROM weir.migrations WHERE version = (SELECT max(version) FROM weir.migrations)",
    )
    .execute(database.pool())
    .await
    .unwrap();
    let error = migrate(database.pool(), false).await.unwrap_err();
    assert!(matches!(error, MigrateError::NotMigrated), "{error:?}");
}

#[tokio::test]
async fn a_database_of_a_newer_weir_is_left_alone() {
    let weir = Weir::new().await;
    sqlx::query(
        "INSERT INTO weir.migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'the future', true, '', 0)",
    )
    .execute(weir.pool())
    .await
    .unwrap();
    let error = migrate(weir.pool(), true).await.unwrap_err();
    assert!(matches!(error, MigrateError::History(_)), "{error:?}");
    assert!(error.to_string().contains("9999"), "{error}");
}

/// A role without any right, and connections that have no other.
struct Powerless {
    name: String,
    pool: PgPool,
}

async fn powerless(database: &TestDatabase) -> Powerless {
    let name = format!("weir_test_{:016x}", rand::rng().random::<u64>());
    run(database, format!("CREATE ROLE {name}")).await;
    let options = PgConnectOptions::from_str(database.url())
        .unwrap()
        .options([("role", name.as_str())]);
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect_with(options)
        .await
        .unwrap();
    Powerless { name, pool }
}

async fn run(database: &TestDatabase, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(database.pool())
        .await
        .unwrap();
}

#[tokio::test]
async fn missing_rights_are_named_and_the_advice_helps() {
    let database = TestDatabase::create().await;
    let Powerless { name, pool } = powerless(&database).await;
    let error = migrate(&pool, true).await.unwrap_err();
    assert!(
        matches!(&error, MigrateError::MayNotCreateExtension { role, .. } if *role == name),
        "{error:?}"
    );
    let of_database = PgConnectOptions::from_str(database.url()).unwrap();
    let base = of_database.get_database().unwrap().to_owned();
    assert!(error.to_string().contains(&format!("{base:?}")), "{error}");

    run(&database, "CREATE EXTENSION vector".to_owned()).await;
    let error = migrate(&pool, true).await.unwrap_err();
    assert!(
        matches!(&error, MigrateError::MayNotCreateSchema { role, database } if *role == name && *database == base),
        "{error:?}"
    );
    // What the message says to do.
    let advice = format!("CREATE SCHEMA weir AUTHORIZATION {name:?}");
    assert!(error.to_string().contains(&advice), "{error}");
    run(&database, advice).await;
    migrate(&pool, true).await.unwrap();
    let store = Store::new(pool.clone(), PATIENCE);
    store
        .put_source(&crate::fixture::write("api"), &many(3))
        .await
        .unwrap();
    pool.close().await;
    run(&database, format!("DROP OWNED BY {name}; DROP ROLE {name}")).await;
}

#[tokio::test]
async fn pgvector_out_of_sight_is_found_and_the_advice_helps() {
    let database = TestDatabase::create().await;
    let setup = "CREATE SCHEMA tools; CREATE EXTENSION vector SCHEMA tools";
    run(&database, setup.to_owned()).await;
    let error = migrate(database.pool(), true).await.unwrap_err();
    assert!(
        matches!(&error, MigrateError::ExtensionOutOfSight { schema, .. } if schema == "tools"),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains(r#"SET search_path = "$user", public, "tools""#),
        "{error}"
    );
    let options = PgConnectOptions::from_str(database.url())
        .unwrap()
        .options([("search_path", r#""$user",public,"tools""#)]);
    options.connect().await.unwrap().close().await.unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect_with(options)
        .await
        .unwrap();
    migrate(&pool, true).await.unwrap();
}

#[tokio::test]
async fn everything_is_commented() {
    let weir = Weir::new().await;
    let silent: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname || coalesce('.' || a.attname, '') FROM pg_class c
         LEFT JOIN LATERAL (
             SELECT attname, attnum FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
             UNION ALL SELECT NULL, 0) a ON true
         WHERE c.relnamespace = 'weir'::regnamespace AND c.relkind = 'r' AND c.relname <> 'migrations'
           AND col_description(c.oid, a.attnum) IS NULL
           AND (a.attnum > 0 OR obj_description(c.oid, 'pg_class') IS NULL)",
    )
    .fetch_all(weir.pool())
    .await
    .unwrap();
    assert!(silent.is_empty(), "no comment on {silent:?}");
    assert_eq!(
        weir.number("SELECT count(obj_description('weir'::regnamespace, 'pg_namespace'))")
            .await,
        1
    );
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of what is refused")]
async fn the_tables_refuse_nonsense_by_name() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    weir.put("run", &many(3)).await;
    sqlx::query("UPDATE weir.jobs SET run_at = now() + interval '1 day' WHERE source = 'api'")
        .execute(weir.pool())
        .await
        .unwrap();
    weir.claim().await;
    let refused = [
        (
            "jobs_lease_exactly_while_running",
            "UPDATE weir.jobs SET lease_expires_at = now() WHERE source = 'api'",
        ),
        (
            "jobs_claimed_while_running_or_succeeded",
            "UPDATE weir.jobs SET worker_id = 'w' WHERE source = 'api'",
        ),
        (
            "jobs_claimed_while_running_or_succeeded",
            "UPDATE weir.jobs SET claimed_at = now() WHERE source = 'api'",
        ),
        (
            "jobs_embedder_down_while_queued",
            "UPDATE weir.jobs SET state = 'failed', finished_at = now(), embedder_down = true WHERE source = 'api'",
        ),
        (
            "jobs_lease_exactly_while_running",
            "UPDATE weir.jobs SET lease_expires_at = NULL WHERE source = 'run'",
        ),
        (
            "jobs_lease_exactly_while_running",
            "UPDATE weir.jobs SET state = 'queued', worker_id = NULL, claimed_at = NULL WHERE source = 'run'",
        ),
        (
            "jobs_finished_exactly_in_a_final_state",
            "UPDATE weir.jobs SET finished_at = now() WHERE source = 'api'",
        ),
        (
            "jobs_finished_exactly_in_a_final_state",
            "UPDATE weir.jobs SET state = 'failed' WHERE source = 'api'",
        ),
        (
            "jobs_state_known",
            "UPDATE weir.jobs SET state = 'retrying' WHERE source = 'api'",
        ),
        (
            "jobs_trigger_known",
            "UPDATE weir.jobs SET trigger = 'whim'",
        ),
        (
            "jobs_revoke_reason_known",
            "UPDATE weir.jobs SET revoke_reason = 'whim'",
        ),
        (
            "jobs_parkings_not_negative",
            "UPDATE weir.jobs SET parkings = -1",
        ),
        ("jobs_counts_add_up", "UPDATE weir.jobs SET chunks_done = 4"),
        (
            "jobs_counts_add_up",
            "UPDATE weir.jobs SET chunks_done = 2, chunks_rejected = 2",
        ),
        (
            "jobs_counts_add_up",
            "UPDATE weir.jobs SET chunks_rejected = -1",
        ),
        (
            "jobs_counts_add_up",
            "UPDATE weir.jobs SET chunks_total = -1",
        ),
        (
            "jobs_truncated_are_done",
            "UPDATE weir.jobs SET chunks_truncated = -1",
        ),
        (
            "jobs_truncated_are_done",
            "UPDATE weir.jobs SET chunks_truncated = 1 WHERE source = 'api'",
        ),
        (
            "embeddings_truncated_to_positive",
            "INSERT INTO weir.embeddings (source_id, chunk_index, item_id, model, text_hash, embedding, truncated_to)
             SELECT source_id, chunk_index, item_id, 'fake', text_hash, '[1]', 0 FROM weir.chunks",
        ),
        (
            "jobs_succeeded_is_whole",
            "UPDATE weir.jobs SET state = 'succeeded', settled = true, finished_at = now() WHERE source = 'api'",
        ),
        (
            "jobs_succeeded_is_settled",
            "UPDATE weir.jobs SET state = 'succeeded', chunks_done = 3, finished_at = now() WHERE source = 'api'",
        ),
        (
            "jobs_open_is_not_settled",
            "UPDATE weir.jobs SET settled = true",
        ),
        (
            "jobs_range_in_order",
            "UPDATE weir.jobs SET last_item_id = 'a'",
        ),
        ("jobs_priority_range", "UPDATE weir.jobs SET priority = 10"),
        (
            "jobs_attempt_not_negative",
            "UPDATE weir.jobs SET attempt = -1",
        ),
        ("jobs_epoch_not_negative", "UPDATE weir.jobs SET epoch = -1"),
        (
            "sources_counts_not_negative",
            "UPDATE weir.sources SET items_total = -1",
        ),
        (
            "sources_namespace_name_key",
            "UPDATE weir.sources SET name = 'api'",
        ),
        (
            "items_metadata_is_object",
            "UPDATE weir.items SET metadata = '[]'",
        ),
        (
            "chunks_index_not_negative",
            "UPDATE weir.chunks SET chunk_index = -1",
        ),
        (
            "chunks_text_hash_is_sha256",
            "UPDATE weir.chunks SET text_hash = 'short'",
        ),
        (
            "models_dimension_fits_vector",
            "INSERT INTO weir.models (name, dimension) VALUES ('m', 0)",
        ),
        (
            "models_dimension_fits_vector",
            "INSERT INTO weir.models (name, dimension) VALUES ('m', 16001)",
        ),
    ];
    for (name, sql) in refused {
        let error = sqlx::query(sql).execute(weir.pool()).await.unwrap_err();
        let refusal = error
            .as_database_error()
            .and_then(|error| error.constraint());
        assert_eq!(refusal, Some(name), "{sql}: {error}");
    }
    weir.check().await;
}

#[tokio::test]
async fn renewals_touch_no_index() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    let counted = weir.counted().await;
    let updates = async |which: &str| {
        let sql =
            format!("SELECT {which} FROM pg_stat_user_tables WHERE relid = 'weir.jobs'::regclass");
        counted.told(&sql).await
    };
    let updates = async || (updates("n_tup_upd").await, updates("n_tup_hot_upd").await);
    let before = updates().await;
    for text in weir.texts(&job).await.iter().take(2) {
        for _ in 0..10 {
            counted.store.renew(lease_of(&job), LEASE).await.unwrap();
        }
        for _ in 0..10 {
            let opening = [opening_of(&session('a'), &job)];
            let opened = counted.store.open_group(&opening, LEASE).await.unwrap();
            assert_eq!(opened.len(), 1);
            let fences = [job.lease().into()];
            let renewed = counted.store.renew_group(&fences, LEASE).await.unwrap();
            assert_eq!(renewed, [job.id]);
            let (a, ids, grace) = (session('a'), [job.id], Duration::from_secs(1));
            let cut = counted.store.orphan_session(&a, &ids, grace);
            assert_eq!(cut.await.unwrap(), [job.id]);
        }
        let batch = crate::fixture::outcome(&job, std::slice::from_ref(text));
        counted.store.upsert(&batch, LEASE).await.unwrap();
    }
    let after = updates().await;
    assert_eq!((after.0 - before.0, after.1 - before.1), (82, 82));
}
