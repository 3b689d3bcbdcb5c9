//! Leases: as long as configured, renewed, refused, and with the database away.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    str::FromStr as _,
};

use sqlx::{ConnectOptions as _, postgres::PgConnectOptions};
use tempfile::TempDir;
use tonic::{Code, Status};
use weir_cli::postgres::{EmbeddedPostgres, Options};
use weir_proto::v1::{
    self, source_service_client::SourceServiceClient, worker_service_client::WorkerServiceClient,
};
use weir_tests::{
    clients::{Weir, assert_invalid, assert_status, claim_request, put_texts, seconds, until},
    cluster::Coordinator,
    postgres::{TestDatabase, runtime_dir},
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

/// A Postgres to stop and start again, always found at the same place.
struct Server {
    directory: TempDir,
    running: Option<EmbeddedPostgres>,
    url: String,
}

impl Server {
    fn start() -> Self {
        let readable = Permissions::from_mode(0o755);
        let directory = tempfile::Builder::new().permissions(readable).tempdir();
        let mut server = Self {
            directory: directory.unwrap(),
            running: None,
            url: String::new(),
        };
        server.start_again();
        server
    }

    fn start_again(&mut self) {
        let server = EmbeddedPostgres::start(&Options {
            runtime_dir: runtime_dir(),
            data_dir: Some(self.directory.path().join("data")),
            settings: vec![("fsync".into(), "off".into())],
        })
        .unwrap();
        // Its socket is elsewhere each time.
        let there = PgConnectOptions::from_str(&server.url()).unwrap();
        let link = self.directory.path().join("socket");
        let _ = fs::remove_file(&link);
        symlink(there.get_socket().unwrap(), &link).unwrap();
        self.url = there.socket(link).to_url_lossy().into();
        self.running = Some(server);
    }
}

#[tokio::test]
async fn a_renewal_while_the_database_is_away_is_unavailable_and_costs_nothing() {
    let mut server = Server::start();
    let settings = [("WEIR_DATABASE_TIMEOUT", "1s")];
    let coordinator = Coordinator::spawn(&server.url, &settings).await;
    let channel = coordinator.connect().await;
    let mut sources = SourceServiceClient::new(channel.clone());
    let put = sources.put_source(put_texts("source", &["one"])).await;
    assert_eq!(put.unwrap().into_inner().jobs.len(), 1);
    let mut worker = WorkerServiceClient::new(channel);
    let claimed = worker.claim_job(claim_request()).await.unwrap();
    let lease = claimed.into_inner().leases.remove(0);
    let request = v1::RenewLeaseRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        lease_duration: None,
    };
    worker.renew_lease(request).await.unwrap();

    server.running.take().unwrap().stop();
    let status = worker.renew_lease(request).await.unwrap_err();
    assert_status(&status, Code::Unavailable, "database");
    // The cause is logged, not sent.
    let place = server.directory.path().to_string_lossy().into_owned();
    assert!(!status.message().contains(&place), "{status:?}");

    server.start_again();
    until(async || worker.renew_lease(request).await.is_ok()).await;
}
