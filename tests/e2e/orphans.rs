//! Workers whose connection breaks: those that come back and those that do
//! not. Leases last ten minutes, longer than any test.

use std::time::Duration;

use weir_proto::v1::{self, JobState};
use weir_tests::{
    cluster::Coordinator,
    proxy::{Cut, FaultProxy, Silence, Target},
    session::{Session, opening, texts},
};

use crate::{
    clients::{Weir, http, until},
    world::World,
};

const SHORT_GRACE: (&str, &str) = ("WEIR_ORPHAN_GRACE", "1s");
const LONG_GRACE: (&str, &str) = ("WEIR_ORPHAN_GRACE", "1m");
const QUICK_POLL: (&str, &str) = ("WEIR_POLL_INTERVAL", "50ms");
/// Nobody takes back what runs out, however slow the machine is.
const NO_RESCUE: (&str, &str) = ("WEIR_POLL_INTERVAL", "1h");

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

/// Awaits that a replica has nothing to do for any session any more.
async fn has_no_session(coordinator: &Coordinator) {
    let url = format!("{}/metrics", coordinator.url());
    until(async || {
        let page = http().get(&url).send().await.unwrap().text().await.unwrap();
        page.lines().any(|line| line == "weir_sessions 0")
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_comes_back_on_another_replica_loses_nothing_and_is_sent_nothing_twice() {
    let weir = Weir::with(&[LONG_GRACE, NO_RESCUE]).await;
    let other = Coordinator::spawn(weir.database.url(), &[LONG_GRACE, NO_RESCUE]).await;
    let job_id = weir.put("source", &["a", "bb", "ccc"]).await.jobs[0].job_id;
    let mut session = Session::open(&weir, 1).await;
    session.grant(2);
    let (first, second) = (session.part().await, session.part().await);
    assert!(seconds_left(&weir, job_id).await > 300.0);
    // It closes its connection: if it lives, it is back at once.
    let held = session.break_off();
    assert_eq!(held, [first.clone(), second.clone()]);
    until(async || seconds_left(&weir, job_id).await <= 2.0).await;

    let mut session = Session::resume(&other.connect().await, 1, &held).await;
    until(async || seconds_left(&weir, job_id).await > 300.0).await;
    // The book of the session sees to it that nothing comes that it holds.
    session.grant(3);
    let third = session.part().await;
    assert_eq!(texts(&third), ["ccc"]);
    assert!(third.seq > second.seq);
    for part in [&second, &third, &first] {
        session.embed_and_wait(part).await;
    }
    assert_eq!(session.finished(job_id).await.chunks_done, 3);
    let job = weir.job(job_id).await;
    assert_eq!((job.state(), job.epoch), (JobState::Succeeded, 1));
    assert!(session.is_quiet());
}

/// A session behind a proxy, and the parts that it was sent of a source: one a chunk.
async fn behind_a_proxy(weir: &Weir, chunks: i32) -> (FaultProxy, Session, Vec<v1::BatchPart>) {
    let target = Target::Tcp(weir.coordinator.address());
    let proxy = FaultProxy::start([target]).await;
    let channel = tonic::transport::Endpoint::from_shared(proxy.url())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut session = Session::open_as(&channel, None, opening(1)).await;
    session.grant(chunks);
    let mut parts = Vec::new();
    for _ in 0..chunks {
        parts.push(session.part().await);
    }
    (proxy, session, parts)
}

#[tokio::test]
async fn the_end_of_an_older_session_does_not_end_the_leases_of_the_newer_one() {
    let weir = Weir::with(&[LONG_GRACE, QUICK_POLL]).await;
    let other = Coordinator::spawn(weir.database.url(), &[LONG_GRACE, QUICK_POLL]).await;
    let job_id = weir.put("source", &["one"]).await.jobs[0].job_id;
    let (_proxy, old, held) = behind_a_proxy(&weir, 1).await;
    let of = async || -> Option<String> {
        let of = sqlx::query_scalar("SELECT session FROM weir.jobs");
        of.fetch_one(weir.database.pool()).await.unwrap()
    };
    let first = of().await;
    // The worker is back on another replica before the first has noticed that it was gone.
    let mut session = Session::resume(&other.connect().await, 1, &held).await;
    until(async || of().await != first).await;
    drop(old);
    has_no_session(&weir.coordinator).await;

    assert!(seconds_left(&weir, job_id).await > 300.0);
    session.embed_and_wait(&held[0]).await;
    session.finished(job_id).await;
    assert_eq!(weir.job(job_id).await.epoch, 1);
}

/// The first replica has the result of all that the worker holds, and the worker does
/// not know. Elsewhere it goes on with the same lease, which is not the first one's to
/// give back any more.
#[tokio::test]
async fn a_session_whose_last_ack_was_lost_does_not_give_back_what_goes_on_elsewhere() {
    let weir = Weir::with(&[LONG_GRACE, QUICK_POLL]).await;
    let other = Coordinator::spawn(weir.database.url(), &[LONG_GRACE, QUICK_POLL]).await;
    let job_id = weir.put("source", &["a", "bb", "ccc"]).await.jobs[0].job_id;
    let (proxy, mut old, held) = behind_a_proxy(&weir, 1).await;
    proxy.silence(Silence::ToClient);
    old.embed(&held[0]);
    until(async || weir.rows("embeddings").await == 1).await;

    let mut session = Session::resume(&other.connect().await, 1, &held).await;
    session.grant(1);
    let next = session.part().await;
    assert_eq!(texts(&next), ["bb"]);
    proxy.cut(Cut::Reset);
    has_no_session(&weir.coordinator).await;

    // What was sent twice is acknowledged, and what is next is wanted.
    session.embed_and_wait(&held[0]).await;
    session.embed_and_wait(&next).await;
    session.grant(1);
    let last = session.part().await;
    session.embed(&last);
    session.finished(job_id).await;
    let job = weir.job(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
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
    let job_id = weir.put("source", &["one", "two", "three"]).await.jobs[0].job_id;
    let mut session = Session::open(&weir, 2).await;
    session.grant(2);
    let part = session.part().await;
    let mut lock = weir.database.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.jobs FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    session.embed(&part);
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let waiting = async || {
        sqlx::query_scalar(waiting)
            .fetch_one(weir.database.pool())
            .await
    };
    until(async || waiting().await.is_ok_and(|waiting: i64| waiting > 0)).await;
    drop(session);
    // Calls of one connection arrive in order: the session is broken by the time of the answer.
    weir.source("source").await.unwrap();
    lock.rollback().await.unwrap();

    until(async || weir.job(job_id).await.state() == JobState::Queued).await;
    let job = weir.job(job_id).await;
    assert_eq!((job.chunks_done, job.attempt), (2, 0), "{job:?}");
}
