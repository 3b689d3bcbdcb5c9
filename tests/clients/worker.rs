//! The worker in Python: it embeds every text once, whatever breaks around it.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use tonic::Code;
use weir_proto::v1::{JobState, WatchSourceResponse};
use weir_tests::{
    clients::until,
    cluster::{Coordinator, MODEL, Process},
    embedder::Rude,
    proxy::{Cut, FaultProxy, Silence, Target},
    session::{Session, opening},
    world::{World, count},
};

use super::project;

/// Texts in a call of the example, and those that it has at a time.
const BATCH: usize = 32;
const ROOM: usize = 2 * BATCH;

/// Nobody takes back what runs out, however slow the machine is: a lease that is lost was given up.
const NO_RESCUE: [(&str, &str); 2] = [("WEIR_ORPHAN_GRACE", "1m"), ("WEIR_POLL_INTERVAL", "1h")];

fn start(world: &World, coordinator: &str) -> Process {
    let folder = project().join(".runtime-examples");
    let mut command = Command::new(folder.join("venv/bin/python"));
    command.env("PYTHONPATH", folder.join("stubs"));
    command.arg(project().join("examples/python/worker.py"));
    command.args([coordinator, MODEL, &world.embedder.url()]);
    Process::start("worker.py", command)
}

/// Puts so many texts, and returns their one job.
async fn put(world: &World, texts: usize) -> i64 {
    let items = (0..texts).map(|id| (format!("{id:03}"), format!("the text of item {id}")));
    let put = world.put_items("texts", items).await;
    assert_eq!(put.jobs.len(), 1);
    put.jobs[0].job_id
}

/// Waits until it has said this so many times.
async fn says(worker: &Process, what: &str, times: usize) {
    let said = || {
        worker
            .log()
            .iter()
            .filter(|line| line.contains(what))
            .count()
    };
    until(async || said() >= times).await;
}

/// Breaks the worker's stream, and lets it open the next once it has noticed.
async fn break_stream(worker: &Process, proxy: &FaultProxy, time: usize) {
    proxy.refuse();
    proxy.cut(Cut::Reset);
    says(worker, "the session broke", time).await;
    proxy.resume();
}

#[tokio::test]
async fn python_worker_keeps_what_it_holds_across_broken_streams() {
    let world = World::start(&NO_RESCUE).await;
    let proxy = FaultProxy::start([Target::Tcp(world.coordinator.address())]).await;
    // The probe goes on, and the first batch waits.
    world.embedder.let_through(1);
    let job_id = put(&world, 100).await;
    let mut worker = start(&world, &proxy.address().to_string());
    world.embedder.calls_started(2).await;

    // While it embeds.
    break_stream(&worker, &proxy, 1).await;
    says(&worker, "the session is open, with 2 parts held", 1).await;

    // While its result is on the way. It has sent it when it goes on to the next batch.
    proxy.silence(Silence::ToTarget);
    world.embedder.let_through(2);
    world.embedder.calls_started(3).await;
    break_stream(&worker, &proxy, 2).await;
    world.embedded("texts", BATCH as i64).await;

    // While a result is in the database, and the worker does not hear so.
    proxy.silence(Silence::ToClient);
    world.embedder.let_through(3);
    world.embedded("texts", ROOM as i64).await;
    break_stream(&worker, &proxy, 3).await;
    says(&worker, "the session is open", 4).await;

    world.embedder.open_gate();
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    let chunks = world.assert_exact("texts").await;
    let mut received = world.embedder.received();
    received.remove("probe");
    assert_eq!(received, count(&chunks));
    worker.sigterm();
    assert_eq!(worker.wait().await.code(), Some(0));
}

#[tokio::test]
async fn python_worker_that_stops_ends_what_it_began_and_hands_back_the_rest() {
    let world = World::start(&[]).await;
    world.embedder.let_through(1);
    let job_id = put(&world, 100).await;
    let address = world.coordinator.address().to_string();
    let mut worker = start(&world, &address);
    world.embedder.calls_started(2).await;
    worker.sigterm();
    says(&worker, "draining", 1).await;
    world.embedder.open_gate();
    assert_eq!(worker.wait().await.code(), Some(0));

    let job = world.job(job_id).await;
    assert_eq!(job.state(), JobState::Queued, "{job:?}");
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    assert!(job.last_error.contains("draining"), "{job:?}");
    let persisted = world.persisted("texts").await;
    assert_eq!(persisted.len(), BATCH);
    let mut received = world.embedder.received();
    received.remove("probe");
    assert_eq!(received, count(&persisted));

    let _next = start(&world, &address);
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (2, 0), "{job:?}");
    let chunks = world.assert_exact("texts").await;
    assert_eq!(world.repeated(&chunks), [].into());
}

#[tokio::test]
async fn python_worker_whose_coordinator_stops_goes_on_with_the_next() {
    let mut world = World::start(&NO_RESCUE).await;
    let proxy = FaultProxy::start([Target::Tcp(world.coordinator.address())]).await;
    world.embedder.let_through(1);
    let job_id = put(&world, ROOM).await;
    let worker = start(&world, &proxy.address().to_string());
    world.embedder.calls_started(2).await;
    let next = Coordinator::spawn(world.database.url(), &NO_RESCUE).await;
    proxy.set_targets([Target::Tcp(next.address())]);
    world.coordinator.process.sigterm();
    says(&worker, "the session is open, with 2 parts held", 1).await;
    world.coordinator = next;
    world.embedder.open_gate();
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    let chunks = world.assert_exact("texts").await;
    assert_eq!(world.repeated(&chunks), [].into());
}

/// Two others fall silent one after the other, each for as long as a session may, while one
/// call goes on.
#[tokio::test]
async fn python_worker_keeps_its_session_however_long_it_embeds() {
    let world = World::start(&[("WEIR_ORPHAN_GRACE", "3s")]).await;
    world.embedder.let_through(1);
    let job_id = put(&world, 1).await;
    let worker = start(&world, &world.coordinator.address().to_string());
    world.embedder.calls_started(2).await;
    for _ in 0..2 {
        let channel = world.coordinator.connect().await;
        let mut silent = Session::open_as(&channel, None, opening(1)).await;
        silent.fall_silent();
        assert_eq!(
            silent.over().await.unwrap_err().code(),
            Code::DeadlineExceeded
        );
    }
    world.embedder.open_gate();
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    let log = worker.log();
    assert!(!log.iter().any(|line| line.contains("broke")), "{log:?}");
}

#[tokio::test]
async fn python_worker_rejects_the_one_text_that_fails_alone() {
    let world = World::start(&[]).await;
    let is_bad = |texts: &[String]| texts.iter().any(|text| text.ends_with(" 7"));
    world.embedder.rule(move |texts| {
        is_bad(texts).then(|| Rude::Status(400, None, "it cannot be read".into()))
    });
    let job_id = put(&world, 10).await;
    let _worker = start(&world, &world.coordinator.address().to_string());
    let job = world.succeeded(job_id).await;
    assert_eq!((job.chunks_done, job.chunks_rejected), (9, 1), "{job:?}");
    assert_eq!(job.attempt, 0, "{job:?}");
    let rejected: Vec<(String, String)> =
        sqlx::query_as("SELECT item_id, reason FROM weir.rejections")
            .fetch_all(world.database.pool())
            .await
            .unwrap();
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].0, "007");
    assert!(rejected[0].1.contains("it cannot be read"), "{rejected:?}");
}

#[tokio::test]
async fn python_worker_whose_embedder_is_down_hands_everything_back_uncharged() {
    let world = World::start(&[]).await;
    let worker = start(&world, &world.coordinator.address().to_string());
    says(&worker, "EMBEDDER_STATE_FIT", 1).await;
    // It embeds one thing more, and so no text is to blame, as far as that goes.
    let probed = AtomicBool::new(false);
    world.embedder.rule(move |texts| {
        let embeds = texts == ["probe"] && !probed.swap(true, Ordering::SeqCst);
        (!embeds).then(|| Rude::Status(500, None, "out of memory".into()))
    });
    let job_id = put(&world, 100).await;
    let went_back = |state: &WatchSourceResponse| {
        let mut jobs = state.jobs.iter();
        jobs.any(|job| job.state() == JobState::Queued && job.last_error.contains("out of memory"))
    };
    world.watch_source("texts", went_back).await;
    world.embedder.behave();
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (2, 0), "{job:?}");
    assert_eq!(job.chunks_rejected, 0, "{job:?}");
    let chunks = world.assert_exact("texts").await;
    // What went back was embedded when it came again, and not for what had been here of it.
    let mut answered = world.embedder.answered();
    answered.remove("probe");
    assert_eq!(answered, count(&chunks));
}
