//! What several laws are asked with.

use sqlx::{AssertSqlSafe, PgPool};
use tonic::{Status, transport::Channel};
use weir_proto::v1::{self, worker_service_client::WorkerServiceClient};
use weir_tests::{
    clients::{embedded, upsert},
    embedder::expected_vector,
};

/// The rescuer looks often, and a retry waits for next to nothing.
pub(crate) const BRISK: [(&str, &str); 2] =
    [("WEIR_POLL_INTERVAL", "50ms"), ("WEIR_BACKOFF_BASE", "1ms")];

/// Numbered items, and a text for each that names its version.
pub(crate) fn items(
    ids: impl IntoIterator<Item = usize>,
    version: &str,
) -> impl Iterator<Item = (String, String)> {
    let item = move |id| (format!("{id:03}"), format!("item {id:03} {version}"));
    ids.into_iter().map(item)
}

/// Whether the texts are not a worker's probe.
pub(crate) fn is_work(texts: &[String]) -> bool {
    texts != ["probe"]
}

/// Runs a statement on the test's database.
pub(crate) async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(pool)
        .await
        .unwrap();
}

/// Asks the test's database for a number.
pub(crate) async fn number(pool: &PgPool, sql: &str) -> i64 {
    let answer = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await;
    answer.unwrap()
}

/// A table of the schema as it stands, row for row, with the transactions that
/// wrote it: whatever is written, even the same again, shows.
pub(crate) async fn snapshot(pool: &PgPool, table: &str) -> Vec<String> {
    let sql =
        format!("SELECT t.xmin::text || t.ctid::text || t::text FROM weir.{table} t ORDER BY 1");
    let rows = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(pool).await;
    rows.unwrap()
}

/// Sets the end of every lease, as if time had passed, or had not.
pub(crate) async fn set_leases(pool: &PgPool, from_now: &str) {
    let sql = format!(
        "UPDATE weir.jobs SET lease_expires_at = now() + interval '{from_now}' WHERE state = 'running'"
    );
    run(pool, &sql).await;
}

/// The right vectors of some chunks.
pub(crate) fn vectors(chunks: &[v1::Chunk]) -> Vec<v1::EmbeddedChunk> {
    let vector = |chunk: &v1::Chunk| embedded(chunk, &expected_vector(&chunk.text));
    chunks.iter().map(vector).collect()
}

/// What each unary call under a lease answers.
pub(crate) async fn every_call(
    mut worker: WorkerServiceClient<Channel>,
    lease: &v1::Lease,
    chunks: &[v1::Chunk],
) -> [(&'static str, Result<(), Status>); 6] {
    let (job_id, epoch) = (lease.job_id, lease.epoch);
    let renew = v1::RenewLeaseRequest {
        job_id,
        epoch,
        lease_duration: None,
    };
    let get = v1::GetBatchRequest {
        job_id,
        epoch,
        batch_size: 0,
    };
    let fail = v1::FailJobRequest {
        job_id,
        epoch,
        reason: "why".to_owned(),
    };
    let release = v1::ReleaseJobRequest {
        job_id,
        epoch,
        reason: "why".to_owned(),
        ..v1::ReleaseJobRequest::default()
    };
    let upsert = upsert(lease, vectors(chunks));
    let complete = v1::CompleteJobRequest { job_id, epoch };
    [
        ("renew", worker.renew_lease(renew).await.map(drop)),
        ("get", worker.get_batch(get).await.map(drop)),
        ("upsert", worker.upsert_batch(upsert).await.map(drop)),
        ("complete", worker.complete_job(complete).await.map(drop)),
        ("fail", worker.fail_job(fail).await.map(drop)),
        ("release", worker.release_job(release).await.map(drop)),
    ]
}
