//! Which statements take the time of Postgres, each by the method that it is of.

use sqlx::PgPool;

/// Statements that are shown.
const SHOWN: i32 = 14;

/// Begins to count.
pub(crate) async fn begin(pool: &PgPool) {
    for sql in [
        "CREATE EXTENSION IF NOT EXISTS pg_stat_statements",
        "SELECT pg_stat_statements_reset()",
    ] {
        sqlx::query(sql)
            .execute(pool)
            .await
            .expect("the extension comes with Postgres");
    }
}

/// Prints what took the most time since.
pub(crate) async fn print(pool: &PgPool, what: &str, chunks: f64) {
    let statements: Vec<(String, i64, f64, i64, f64)> = sqlx::query_as(
        "SELECT split_part(query, chr(10), 1), calls, total_exec_time, rows, wal_bytes::float8
         FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT $1",
    )
    .bind(SHOWN)
    .fetch_all(pool)
    .await
    .expect("the extension counts");
    println!(
        "{what}: {:>10} {:>10} {:>10} {:>10}",
        "µs/chunk", "calls", "rows", "WAL/chunk"
    );
    for (query, calls, millis, rows, wal) in statements {
        let micros = millis * 1_000.0 / chunks;
        println!(
            "{micros:>10.1} {calls:>10} {rows:>10} {:>10.0}  {:.60}",
            wal / chunks,
            query
        );
    }
}
