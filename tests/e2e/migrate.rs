//! `weir-coordinator migrate` beside others: what it waits for is told.

use weir_tests::{clients::until, cluster::Process, postgres::TestDatabase};

#[tokio::test]
async fn whose_lock_a_step_of_the_schema_waits_for_is_told() {
    let database = TestDatabase::create().await;
    let environment = [
        ("WEIR_DATABASE_URL", database.url()),
        ("WEIR_LOG_FORMAT", "json"),
    ];
    let migrate = || Process::spawn("weir-coordinator", &["migrate"], &environment);
    assert!(migrate().wait().await.success());
    let mut other = database.pool().begin().await.unwrap();
    for sql in [
        "SET LOCAL application_name = 'a report'",
        "LOCK TABLE weir.migrations",
    ] {
        sqlx::query(sql).execute(&mut *other).await.unwrap();
    }
    let mut waiting = migrate();
    let event =
        "Another transaction holds a lock that a step of the schema needs; it is tried again.";
    let told = waiting.wait_for_event(event).await;
    let oldest = told["oldest_transaction"].as_str().unwrap();
    assert!(
        oldest.contains("of a report, idle in transaction"),
        "{oldest}"
    );
    assert!(
        told["error"].as_str().unwrap().contains("lock timeout"),
        "{told}"
    );
    // Meanwhile it is not its turn: another replica may have what this one has not.
    let turn = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    until(async || {
        let held: i64 = sqlx::query_scalar(turn)
            .fetch_one(database.pool())
            .await
            .unwrap();
        held == 0
    })
    .await;
    other.rollback().await.unwrap();
    assert!(waiting.wait().await.success());
}
