//! Every worker write is fenced by job and epoch, and who is fenced off is told.

use std::time::Duration;

use tonic::Code;
use weir_proto::v1::{
    self, JobState, RevokeReason, lease_ended::How, stream_batches_request::Message as FromWorker,
};
use weir_tests::{
    clients::{Weir, assert_status, until},
    session::{Session, held, opening},
    world::World,
};

use crate::words::{BRISK, every_call, items, set_leases, snapshot};

const BATCH: i64 = 4;

/// Stops a worker in mid-job, has another one finish the job under a new
/// lease, and lets the first go on. `expire` ends the first lease.
async fn pause_past_the_lease(lease_duration: &str, expire: impl AsyncFn(&World, i64)) {
    let settings = [
        ("WEIR_LEASE_DURATION", lease_duration),
        // Until then its session is given the job anew as it sleeps.
        ("WEIR_ORPHAN_GRACE", "2s"),
    ];
    let world = World::start(&[&BRISK[..], &settings].concat()).await;
    let pool = world.database.pool();
    let per_call = Duration::from_millis(50);
    world.embedder.set_delay(per_call, Duration::ZERO);
    // Far more than is embedded before the watch below sees the first of it.
    let put = world.put_items("source", items(0..400, "text")).await;
    let paused = world.worker("4");
    world.embedded("source", 2 * BATCH).await;
    // One more goes through, and the next is held, whenever either begins.
    let calls = world.embedder.calls().len() + 1;
    world.embedder.let_through(calls);
    world.embedder.calls_started(calls + 1).await;
    paused.process.sigstop();
    // The vectors that it was waiting for are there when it wakes.
    world.embedder.open_gate();
    let job_id = put.jobs[0].job_id;
    expire(&world, job_id).await;

    let other = world.worker("4");
    let job = world.succeeded(job_id).await;
    assert!(job.epoch > 1, "{job:?}");
    let rows = async || {
        let jobs = snapshot(pool, "jobs").await;
        (jobs, snapshot(pool, "embeddings").await)
    };
    let before = rows().await;
    paused.process.sigcont();
    let dropped = "The lease ended; job dropped.";
    let dropped = paused.process.wait_for_event(dropped).await;
    let told = dropped.to_string();
    assert!(told.contains("given to another"), "{told}");
    assert_eq!(before, rows().await);
    world.assert_exact("source").await;

    // It is none the worse for it.
    drop(other);
    let put = world.put_items("source", items(0..401, "text")).await;
    world.succeeded(put.jobs[0].job_id).await;
}

#[tokio::test]
async fn law_03_a_worker_paused_past_its_lease_renews_nothing_and_is_told() {
    // When it wakes a heartbeat is due.
    pause_past_the_lease("2s", async |_, _| {}).await;
}

#[tokio::test]
async fn law_03_a_worker_paused_past_its_lease_writes_nothing_and_is_told() {
    // When it wakes it sends what it has, for no heartbeat is due in minutes.
    pause_past_the_lease("10m", async |world, job_id| {
        // Something that it sent before may still renew the lease once.
        until(async || {
            set_leases(world.database.pool(), "0 s").await;
            world.job(job_id).await.state() != JobState::Running
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn law_03_every_unary_call_at_a_stale_epoch_is_aborted() {
    let weir = Weir::with(&BRISK).await;
    let job_id = weir.put("source", &["one", "three"]).await.jobs[0].job_id;
    let stale = weir.claim().await;
    let chunks = weir.batch(&stale).await;
    let pool = weir.database.pool();
    set_leases(pool, "0 s").await;
    until(async || weir.job(job_id).await.state() == JobState::Queued).await;
    let mut current = None;
    until(async || {
        let request = weir_tests::clients::claim_request();
        let answer = weir.worker().claim_job(request).await.unwrap();
        current = answer.into_inner().leases.pop();
        current.is_some()
    })
    .await;
    let current = current.unwrap();
    assert!(current.epoch > stale.epoch);
    // The first word under the new lease, which alone may change the row.
    weir.batch(&current).await;

    let before = (
        snapshot(pool, "jobs").await,
        snapshot(pool, "embeddings").await,
    );
    for (call, answer) in every_call(weir.worker(), &stale, &chunks).await {
        let status = answer.expect_err(call);
        assert_status(&status, Code::Aborted, "lease lost");
    }
    let part = v1::BatchPart {
        seq: 1,
        job_id,
        epoch: stale.epoch,
        chunks: chunks.clone(),
        ..v1::BatchPart::default()
    };
    let open = v1::SessionOpen {
        held: held([&part]),
        ..opening(4)
    };
    let mut session = Session::open_as(&weir.channel, None, open).await;
    assert_lost(&session.ended(job_id).await);
    // What it holds of it nobody takes.
    session.embed(&part);
    session.send(heartbeat());
    weir.source("source").await.unwrap();
    let after = (
        snapshot(pool, "jobs").await,
        snapshot(pool, "embeddings").await,
    );
    assert_eq!(before, after);
    // The same calls under the lease of the day are none of them lost.
    let answers = every_call(weir.worker(), &current, &chunks).await;
    let lost = |(_, answer): &&(_, Result<(), tonic::Status>)| matches!(answer, Err(status) if status.code() == Code::Aborted);
    assert_eq!(answers.iter().find(lost).map(|(call, _)| call), None);
}

fn heartbeat() -> FromWorker {
    FromWorker::Heartbeat(v1::Heartbeat {})
}

#[track_caller]
fn assert_lost(how: &How) {
    let How::Revoked(revoked) = how else {
        panic!("the lease is lost, not {how:?}");
    };
    assert_eq!(revoked.reason(), RevokeReason::LeaseLost);
}

#[tokio::test]
async fn law_03_a_result_of_a_lost_lease_ends_that_lease_alone() {
    let weir = Weir::start().await;
    let [lost, other] =
        ["lost", "other"].map(async |name| weir.put(name, &["one"]).await.jobs[0].job_id);
    let (lost, other) = (lost.await, other.await);
    let mut session = Session::open(&weir, 1).await;
    session.grant(3);
    let parts = [session.part().await, session.part().await];
    // Without a word to anybody: only the fence can know.
    let sql = format!("UPDATE weir.jobs SET epoch = epoch + 1 WHERE id = {lost}");
    crate::words::run(weir.database.pool(), &sql).await;
    for part in &parts {
        session.embed(part);
    }
    assert_lost(&session.ended(lost).await);
    assert_eq!(session.finished(other).await.chunks_done, 1);
    assert_eq!(weir.rows("embeddings").await, 1);
    let next = weir.put("next", &["three"]).await.jobs[0].job_id;
    let part = session.part().await;
    session.embed(&part);
    session.finished(next).await;
}
