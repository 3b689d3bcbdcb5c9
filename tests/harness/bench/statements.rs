//! Which statements take the time of Postgres, each by the method that it is of.

use sqlx::PgPool;

/// Statements that are shown.
const SHOWN: i32 = 14;

/// Begins to count.
pub async fn begin(pool: &PgPool) {
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
pub async fn print(pool: &PgPool, what: &str, chunks: f64) {
    let statements: Vec<(String, i64, i64, f64, f64, i64, f64)> = sqlx::query_as(
        "SELECT left(regexp_replace(query, '\\s+', ' ', 'g'), 60), calls, plans, total_exec_time, total_plan_time,
                rows, wal_bytes::float8
         FROM pg_stat_statements ORDER BY total_exec_time + total_plan_time DESC LIMIT $1",
    )
    .bind(SHOWN)
    .fetch_all(pool)
    .await
    .expect("the extension counts");
    println!(
        "{what}, µs and bytes a chunk:\n{:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "executed", "planned", "calls", "plans", "rows", "WAL"
    );
    for (query, calls, plans, executed, planned, rows, wal) in statements {
        let (executed, planned) = (executed * 1_000.0 / chunks, planned * 1_000.0 / chunks);
        println!(
            "{executed:>9.1} {planned:>9.1} {calls:>9} {plans:>9} {rows:>9} {:>9.0}  {query}",
            wal / chunks,
        );
    }
}
