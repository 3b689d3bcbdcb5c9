//! How sessions end, and what goes back when they do. Leases last ten minutes, and
//! nothing here waits for that.

use std::fs;

use tonic::Code;
use weir_proto::v1::{self, JobState, lease_ended::How, stream_batches_request::Message};
use weir_tests::{
    cluster::Coordinator,
    proxy::{FaultProxy, Silence, Target},
    session::{Session, Told, opening, result},
};

use super::{CUT, TWO_MODELS, finish, holding, jobs_that, meanwhile, put};
use crate::clients::{Weir, until};

const SHORT_GRACE: (&str, &str) = ("WEIR_ORPHAN_GRACE", "2s");
const LONG_GRACE: (&str, &str) = ("WEIR_ORPHAN_GRACE", "5m");
const QUICK_POLL: (&str, &str) = ("WEIR_POLL_INTERVAL", "50ms");
/// Nobody takes back what runs out.
const NO_RESCUE: (&str, &str) = ("WEIR_POLL_INTERVAL", "1h");

#[tokio::test]
async fn a_worker_that_drains_answers_what_it_holds_and_leaves_nothing() {
    let weir = Weir::with(&[LONG_GRACE, NO_RESCUE]).await;
    let job_id = put(&weir, "source", &["a", "bb", "ccc"]).await;
    let other = put(&weir, "other", &["d"]).await;
    let mut session = Session::open(&weir, 1).await;
    session.grant(2);
    let (first, second) = (session.part().await, session.part().await);
    assert_eq!((first.job_id, second.job_id), (job_id, job_id));
    session.send(Message::Drain(v1::Drain {}));
    // Credit that comes after it is worth nothing.
    session.grant(10);
    session.embed_and_wait(&first).await;
    assert_eq!(weir.job(job_id).await.state(), JobState::Running);
    session.embed(&second);
    assert_eq!(session.over().await.map_err(|it| it.code()), Ok(()));
    let told: Vec<&Told> = session.kept().collect();
    let [Told::Ack(ack), Told::Ended(ended)] = told[..] else {
        panic!("an ack and an end were due, not {told:?}");
    };
    assert_eq!(ack.seq, second.seq);
    assert!(matches!(ended.how, Some(How::Released(_))), "{ended:?}");

    let job = weir.job(job_id).await;
    assert_eq!((job.state(), job.attempt), (JobState::Queued, 0), "{job:?}");
    assert_eq!((job.epoch, job.chunks_done), (1, 2), "{job:?}");
    assert!(job.last_error.contains("draining"), "{job:?}");
    until(async || weir.rows("workers").await == 0).await;
    // Claimable at once.
    let mut next = Session::open(&weir, 1).await;
    next.grant(2);
    for _ in 0..2 {
        let part = next.part().await;
        next.embed(&part);
    }
    next.finished(job_id).await;
    next.finished(other).await;
}

#[tokio::test]
async fn a_worker_that_has_nothing_drains_at_once() {
    let weir = Weir::start().await;
    let mut session = Session::open(&weir, 1).await;
    // A claim waits.
    session.grant(1);
    session.send(Message::Drain(v1::Drain {}));
    assert!(session.over().await.is_ok());
    let job_id = put(&weir, "source", &["a"]).await;
    assert_eq!(weir.claim().await.epoch, 1);
    assert_eq!(weir.job(job_id).await.epoch, 1);
}

/// One text of a size that a connection does not swallow many of.
fn large(id: usize) -> String {
    format!("{id} {}", "word ".repeat(3_500))
}

#[tokio::test]
async fn what_a_session_never_got_goes_back_at_once_when_its_connection_closes() {
    const JOBS: usize = 300;
    let settings = [LONG_GRACE, NO_RESCUE, ("WEIR_CHUNK_SIZE", "20000")];
    let weir = Weir::with(&settings).await;
    for id in 0..JOBS {
        put(&weir, &format!("source-{id:03}"), &[&large(id)]).await;
    }
    let mut session = Session::open(&weir, 1).await;
    session.grant(JOBS as i32);
    session.batch().await;
    let count = async |are: &str| jobs_that(&weir, are).await;
    // All are claimed, and it reads no more of them.
    until(async || count("session IS NOT NULL").await == JOBS as i64).await;
    drop(session);
    let back =
        "state = 'queued' AND epoch = 1 AND attempt = 0 AND last_error LIKE '%before it got any%'";
    until(async || count(back).await + count(CUT).await == JOBS as i64).await;
    // What it may have got is waited for, if not for long.
    let kept = count(CUT).await;
    assert!(kept > 0 && kept < JOBS as i64 / 2, "{kept} were kept");
}

#[tokio::test]
async fn a_worker_that_falls_silent_loses_its_leases_alone_after_the_grace() {
    let weir = Weir::with(&[SHORT_GRACE, QUICK_POLL]).await;
    let jobs = [put(&weir, "silent", &["a"]).await];
    let (mut silent, held) = holding(&weir, &jobs).await;
    let loud = put(&weir, "loud", &["b", "cc"]).await;
    let mut other = Session::open(&weir, 1).await;
    other.grant(1);
    let part = other.part().await;
    assert_eq!(part.job_id, loud);
    // It reads, and says nothing.
    silent.fall_silent();
    let status = silent.over().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    until(async || weir.job(jobs[0]).await.epoch > held[0].epoch).await;
    assert_eq!(weir.job(loud).await.epoch, part.epoch);
    other.embed(&part);
    finish(&mut other, loud).await;
}

#[tokio::test]
async fn a_worker_behind_a_network_that_fell_silent_loses_its_leases_after_the_grace() {
    let weir = Weir::with(&[SHORT_GRACE, QUICK_POLL]).await;
    let proxy = FaultProxy::start([Target::Tcp(weir.coordinator.address())]).await;
    let channel = tonic::transport::Endpoint::from_shared(proxy.url()).unwrap();
    let channel = channel.connect().await.unwrap();
    let job_id = put(&weir, "source", &["a"]).await;
    let mut silent = Session::open_as(&channel, None, opening(1)).await;
    silent.grant(1);
    let part = silent.part().await;
    proxy.silence(Silence::Both);
    let mut other = Session::open(&weir, 1).await;
    other.grant(1);
    let again = other.part().await;
    assert_eq!(again.job_id, job_id);
    assert!(again.epoch > part.epoch);
    other.embed(&again);
    other.finished(job_id).await;
    proxy.resume();
    // What it embedded meanwhile comes too late.
    silent.embed(&part);
    assert!(silent.over().await.is_err());
    assert_eq!(weir.rows("embeddings").await, 1);
}

/// Memory of a process, in bytes.
fn memory(coordinator: &Coordinator) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", coordinator.process.pid()));
    let status = status.unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.unwrap().trim().parse::<usize>().unwrap() << 10
}

/// It goes on to send whatever it likes, and reads nothing. The texts that wait for it
/// are a few batches, of one large job and of many small ones alike.
#[tokio::test]
async fn a_worker_that_does_not_read_takes_no_memory_and_holds_up_nobody() {
    const MOST: usize = 48 << 20;
    let settings = [
        LONG_GRACE,
        NO_RESCUE,
        TWO_MODELS,
        ("WEIR_CHUNK_SIZE", "20000"),
    ];
    let weir = Weir::with(&settings).await;
    for id in 0..400 {
        let texts: Vec<String> = (0..8).map(|n| large(8 * id + n)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        put(&weir, &format!("small-{id}"), &texts).await;
    }
    // One that has not seen all these texts.
    let fresh = Coordinator::spawn(weir.database.url(), &settings).await;
    let channel = fresh.connect().await;
    let before = memory(&fresh);
    let mut deaf = Session::open_as(&channel, None, opening(16)).await;
    deaf.grant(10_000);
    deaf.batch().await;
    for seq in 0..20_000 {
        deaf.send(result([v1::PartResult {
            seq: 1_000_000 + seq,
            ..v1::PartResult::default()
        }]));
    }
    until(async || jobs_that(&weir, "session IS NOT NULL").await > 0).await;
    // Whatever it claims is claimed by the time that another's work is done.
    for round in 0..10 {
        meanwhile(&weir, &channel, &format!("quick-{round}")).await;
    }
    let grown = memory(&fresh) - before;
    assert!(grown < MOST, "{} MiB more", grown >> 20);
}
