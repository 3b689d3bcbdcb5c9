//! Leases: as long as configured, renewed, refused, and with the database away.

use sqlx::AssertSqlSafe;
use tonic::{Code, Status};
use weir_proto::v1;
use weir_tests::{
    clients::{Weir, assert_invalid, assert_status, seconds, until},
    postgres::TestDatabase,
};

async fn renew(weir: &Weir, lease: &v1::Lease, wanted: Option<i64>) -> Result<i64, Status> {
    let request = v1::RenewLeaseRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        lease_duration: wanted.map(seconds),
    };
    let answer = weir.worker().renew_lease(request).await?;
    Ok(answer.into_inner().lease_duration.unwrap().seconds)
}

/// How long the running lease lasts from its last renewal, read off the row
/// that the transaction of that moment wrote.
async fn stamped(database: &TestDatabase) -> i64 {
    sqlx::query_scalar(
        "SELECT extract(epoch FROM lease_expires_at - claimed_at)::bigint FROM weir.jobs
         WHERE state = 'running'",
    )
    .fetch_one(database.pool())
    .await
    .unwrap()
}

#[tokio::test]
async fn a_claim_stamps_the_configured_lease() {
    let weir = Weir::with(&[("WEIR_LEASE_DURATION", "90s")]).await;
    weir.put("source", &["one"]).await;
    let lease = weir.claim().await;
    assert_eq!(lease.lease_duration, Some(seconds(90)));
    assert_eq!(stamped(&weir.database).await, 90);
}

#[tokio::test]
async fn a_renewal_extends_the_lease_by_what_is_asked_and_never_by_nothing() {
    let weir = Weir::with(&[("WEIR_LEASE_DURATION", "90s")]).await;
    weir.put("source", &["one"]).await;
    let lease = weir.claim().await;
    let left = async || -> i64 {
        let sql =
            "SELECT round(extract(epoch FROM lease_expires_at - now()))::bigint FROM weir.jobs";
        let query = sqlx::query_scalar(sql);
        query.fetch_one(weir.database.pool()).await.unwrap()
    };
    assert_eq!(renew(&weir, &lease, Some(30)).await.unwrap(), 30);
    assert!(left().await <= 30);
    assert_eq!(renew(&weir, &lease, None).await.unwrap(), 90);
    assert!(left().await > 30);
    for wanted in [0, -1, 91] {
        let status = renew(&weir, &lease, Some(wanted)).await.unwrap_err();
        assert_invalid(&status, "lease_duration", "more than zero");
    }
    assert!(left().await > 30, "a refused renewal changes nothing");
    // Handed on to another, it is lost.
    sqlx::raw_sql("UPDATE weir.jobs SET epoch = epoch + 1")
        .execute(weir.database.pool())
        .await
        .unwrap();
    let status = renew(&weir, &lease, None).await.unwrap_err();
    assert_status(&status, Code::Aborted, "lease lost");
}

#[tokio::test]
async fn a_renewal_while_the_database_is_away_is_unavailable_and_costs_nothing() {
    let weir = Weir::with(&[("WEIR_DATABASE_TIMEOUT", "1s")]).await;
    weir.put("source", &["one"]).await;
    let lease = weir.claim().await;
    renew(&weir, &lease, None).await.unwrap();
    let mut kept = weir.database.pool().acquire().await.unwrap();
    let name: String = sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(&mut *kept)
        .await
        .unwrap();
    let lock_out = format!(
        "ALTER DATABASE {name} CONNECTION LIMIT 0; ALTER DATABASE {name} ALLOW_CONNECTIONS false"
    );
    for sql in lock_out.split(';') {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&mut *kept).await.unwrap();
    }
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()";
    sqlx::raw_sql(terminate).execute(&mut *kept).await.unwrap();

    let status = renew(&weir, &lease, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    // The cause is logged, not sent.
    assert!(!status.message().contains(&name), "{status:?}");

    let let_in = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true");
    sqlx::raw_sql(AssertSqlSafe(let_in))
        .execute(&mut *kept)
        .await
        .unwrap();
    until(async || renew(&weir, &lease, None).await.is_ok()).await;
    assert_eq!(weir.job(lease.job_id).await.epoch, lease.epoch);
}
