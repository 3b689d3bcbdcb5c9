//! Workers whose connection breaks: those that come back and those that do
//! not. Leases last ten minutes, longer than any test.

use std::time::Duration;

use weir_proto::v1::{
    self, JobState, stream_batches_request::Message as FromWorker,
    stream_batches_response::Message as ToWorker, worker_service_client::WorkerServiceClient,
};
use weir_tests::{cluster::Coordinator, embedder::expected_vector};

use crate::{
    clients::{Weir, batch, embedded, next, open, result, send, stream, stream_on, until},
    world::World,
};

const SHORT_GRACE: (&str, &str) = ("WEIR_ORPHAN_GRACE", "300ms");
const LONG_GRACE: (&str, &str) = ("WEIR_ORPHAN_GRACE", "1m");
const QUICK_POLL: (&str, &str) = ("WEIR_POLL_INTERVAL", "50ms");

#[tokio::test]
async fn a_killed_workers_job_runs_elsewhere_long_before_its_lease_ends() {
    let world = World::start(&[SHORT_GRACE, QUICK_POLL]).await;
    world
        .embedder
        .set_delay(Duration::from_millis(200), Duration::ZERO);
    let job_id = world.put_logistics().await;
    let mut first = world.worker("16");
    world.embedded("logistics", 32).await;
    first.process.sigkill().await;

    let _second = world.worker("16");
    let job = world.succeeded(job_id).await;
    assert!(job.epoch > 1, "{job:?}");
    assert_eq!(job.attempt, 0, "it had moved forward: {job:?}");
    world.assert_exact("logistics").await;
}

/// Opens the stream of a lease again, holding this batch.
fn reopen(lease: &v1::Lease, held: &v1::Batch) -> FromWorker {
    let FromWorker::Open(mut open) = open(lease) else {
        unreachable!("it opens");
    };
    let key = |chunk: &v1::Chunk| v1::ChunkKey {
        item_id: chunk.item_id.clone(),
        chunk_index: chunk.chunk_index,
        text_hash: chunk.text_hash.clone(),
    };
    open.held.push(v1::HeldBatch {
        seq: held.seq,
        chunks: held.chunks.iter().map(key).collect(),
    });
    FromWorker::Open(open)
}

fn vectors(batch: &v1::Batch) -> FromWorker {
    let vector = |chunk| embedded(chunk, &expected_vector(&chunk.text));
    result(batch.seq, batch.chunks.iter().map(vector).collect())
}

/// Seconds until the lease of a job ends, by the database's clock.
async fn seconds_left(weir: &Weir, job_id: i64) -> f64 {
    sqlx::query_scalar(
        "SELECT extract(epoch FROM lease_expires_at - now())::float8 FROM weir.jobs WHERE id = $1",
    )
    .bind(job_id)
    .fetch_one(weir.database.pool())
    .await
    .unwrap()
}

#[tokio::test]
async fn a_worker_that_comes_back_on_another_replica_within_the_grace_loses_nothing() {
    let weir = Weir::with(&[LONG_GRACE, QUICK_POLL]).await;
    let other = Coordinator::spawn(weir.database.url(), &[LONG_GRACE, QUICK_POLL]).await;
    weir.put("source", &["one"]).await;
    let lease = weir.claim().await;
    let (to, mut from) = stream(&weir, open(&lease)).await;
    let held = batch(&mut from).await;
    assert!(seconds_left(&weir, lease.job_id).await > 300.0);
    drop((to, from));
    until(async || seconds_left(&weir, lease.job_id).await <= 60.0).await;

    let worker = WorkerServiceClient::new(other.connect().await);
    let (to, mut from) = stream_on(worker, reopen(&lease, &held)).await;
    until(async || seconds_left(&weir, lease.job_id).await > 300.0).await;
    send(&to, vectors(&held)).await;
    assert!(matches!(next(&mut from).await, ToWorker::Ack(_)));
    assert!(matches!(next(&mut from).await, ToWorker::Finished(_)));
    let job = weir.job(lease.job_id).await;
    assert_eq!((job.state(), job.epoch), (JobState::Succeeded, lease.epoch));
}

#[tokio::test]
async fn the_end_of_an_older_stream_does_not_end_the_lease_of_the_newer_one() {
    let weir = Weir::with(&[SHORT_GRACE, QUICK_POLL]).await;
    let other = Coordinator::spawn(weir.database.url(), &[SHORT_GRACE, QUICK_POLL]).await;
    weir.put("source", &["one"]).await;
    let lease = weir.claim().await;
    let (old_to, mut old_from) = stream(&weir, open(&lease)).await;
    let held = batch(&mut old_from).await;
    let renewed = async || weir.job(lease.job_id).await.lease_expire_time;
    let before = renewed().await;
    // The worker is back on another replica before the first has noticed that it was gone.
    let worker = WorkerServiceClient::new(other.connect().await);
    let (to, mut from) = stream_on(worker, reopen(&lease, &held)).await;
    until(async || renewed().await != before).await;
    drop((old_to, old_from));

    // By the time that a job orphaned after it has been taken away, it would have been, too.
    weir.put("later", &["two"]).await;
    let later = weir.claim().await;
    let (to_later, mut from_later) = stream(&weir, open(&later)).await;
    batch(&mut from_later).await;
    drop((to_later, from_later));
    until(async || weir.job(later.job_id).await.epoch > later.epoch).await;

    send(&to, vectors(&held)).await;
    assert!(matches!(next(&mut from).await, ToWorker::Ack(_)));
    let job = weir.job(lease.job_id).await;
    assert_eq!((job.state(), job.epoch), (JobState::Succeeded, lease.epoch));
}

#[tokio::test]
async fn a_job_whose_claim_was_never_answered_to_is_claimed_again_uncharged() {
    let weir = Weir::with(&[SHORT_GRACE, QUICK_POLL]).await;
    weir.put("source", &["one"]).await;
    let lost = weir.claim().await;
    let job = async || weir.job(lost.job_id).await;
    until(async || job().await.state() == JobState::Queued).await;
    assert_eq!(job().await.attempt, 0);
    let why = job().await.last_error;
    assert!(why.contains("never heard of"), "{why}");
    assert!(weir.claim().await.epoch > lost.epoch);
}

#[tokio::test]
async fn a_worker_that_dies_while_its_result_is_written_is_missed_as_well() {
    let weir = Weir::with(&[SHORT_GRACE, QUICK_POLL]).await;
    weir.put("source", &["one", "two", "three"]).await;
    let lease = weir.claim().await;
    let (to, mut from) = stream(&weir, open(&lease)).await;
    let held = batch(&mut from).await;
    let mut lock = weir.database.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.jobs FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    send(&to, vectors(&held)).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let waiting = async || {
        sqlx::query_scalar(waiting)
            .fetch_one(weir.database.pool())
            .await
    };
    until(async || waiting().await.is_ok_and(|waiting: i64| waiting > 0)).await;
    drop((to, from));
    // Calls of one connection arrive in order: the stream is broken by the time of the answer.
    weir.source("source").await.unwrap();
    lock.rollback().await.unwrap();

    until(async || weir.job(lease.job_id).await.epoch > lease.epoch).await;
    let job = weir.job(lease.job_id).await;
    assert_eq!((job.chunks_done, job.attempt), (2, 0), "{job:?}");
}
