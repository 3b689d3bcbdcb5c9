//! Claims that wait: whom a job that comes wakes, and who asks the database.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use weir_coordinator::{
    dispatch::claimer::Claimer,
    job::fair_share::Weights,
    store::{Store, claim::Claim, rows::Job},
    wakeup::Wakeup,
};
use weir_tests::{PATIENCE, clients::until};

use crate::fixture::{LEASE, MODEL, Weir, many, write};

/// For how long a look may be put off.
const MOST_REST: Duration = Duration::from_millis(250);

/// Long enough for a look, if there were one.
const MOMENT: Duration = Duration::from_millis(200);

async fn claim(
    claimer: &Claimer,
    max_jobs: i64,
    max_chunks: i64,
    wait: Duration,
    over: &CancellationToken,
) -> Vec<Job> {
    let claim = Claim {
        worker_id: "w",
        models: &[MODEL.to_owned()],
        max_jobs,
        max_chunks,
        lease_duration: LEASE,
        namespaces: None,
        busy_with: &[],
        claimed_by: None,
    };
    let (jobs, _) = claimer.claim(&claim, wait, over).await.unwrap();
    jobs
}

/// How many jobs a claim gets.
async fn claimed(claimer: &Claimer, max_jobs: i64, max_chunks: i64, wait: Duration) -> usize {
    let over = CancellationToken::new();
    claim(claimer, max_jobs, max_chunks, wait, &over)
        .await
        .len()
}

/// A claimer that nobody stops, and what wakes it.
fn claimer(store: &Store) -> (Claimer, Wakeup) {
    let wakeup = Wakeup::default();
    let claimer = Claimer::new(store.clone(), wakeup.clone(), Weights::default());
    (claimer, wakeup)
}

#[tokio::test]
async fn a_queue_that_has_nothing_left_is_asked_again_when_something_comes() {
    let weir = Weir::new().await;
    let (claimer, wakeup) = claimer(&weir.store);
    weir.put("a", &many(1)).await;
    assert_eq!(claimed(&claimer, 10, 100, PATIENCE).await, 1);
    // Nobody says that this one came.
    weir.put("b", &many(1)).await;
    assert_eq!(claimed(&claimer, 10, 100, MOMENT).await, 0);
    wakeup.report_due();
    assert_eq!(claimed(&claimer, 10, 100, PATIENCE).await, 1);
    // Who does not wait is told what there is.
    weir.put("c", &many(1)).await;
    assert_eq!(claimed(&claimer, 10, 100, Duration::ZERO).await, 1);
}

#[tokio::test]
async fn what_a_claim_left_is_there_for_the_next() {
    let weir = Weir::new().await;
    let (claimer, _) = claimer(&weir.store);
    for name in ["a", "b", "c", "d", "e"] {
        weir.put(name, &many(2)).await;
    }
    // As many jobs as it may take, as many chunks, a chunk more than there are.
    for (max_jobs, max_chunks, got) in [(1, 0, 1), (1, 100, 1), (10, 2, 1), (10, 4, 2), (10, 1, 0)]
    {
        let wait = if got > 0 { PATIENCE } else { MOMENT };
        assert_eq!(claimed(&claimer, max_jobs, max_chunks, wait).await, got);
    }
}

#[tokio::test]
async fn of_many_who_wait_few_ask_for_the_one_job_that_comes() {
    const WAITING: usize = 100;
    let weir = Weir::new().await;
    let counted = weir.counted().await;
    let wakeup = Wakeup::default();
    let stop = CancellationToken::new();
    let claimer = Claimer::new(counted.store.clone(), wakeup.clone(), Weights::default());
    let claimer = Arc::new(claimer);
    let waiting = (0..WAITING).map(|_| {
        let (claimer, stop) = (claimer.clone(), stop.clone());
        tokio::spawn(async move { claim(&claimer, 10, 100, PATIENCE, &stop).await.len() })
    });
    let waiting: Vec<_> = waiting.collect();
    sleep(MOMENT).await;
    weir.put("a", &many(1)).await;
    wakeup.report_due();
    let running = "SELECT count(*) FROM weir.jobs WHERE state = 'running'";
    until(async || counted.told(running).await == 1).await;
    stop.cancel();
    let got: usize = join_all(waiting).await.into_iter().flatten().sum();
    assert_eq!(got, 1);

    let read = "SELECT sum(idx_scan)::bigint FROM pg_stat_user_indexes WHERE relid = 'weir.jobs'::regclass";
    let read = counted.told(read).await;
    // Each asks twice at least: for how many are enough, and for them.
    assert!((2..100).contains(&read), "{read} reads");
}

#[tokio::test]
async fn what_is_queued_before_the_place_that_claims_have_reached_is_found_as_well() {
    let weir = Weir::new().await;
    let (claimer, wakeup) = claimer(&weir.store);
    weir.put("a", &many(1)).await;
    assert_eq!(claimed(&claimer, 10, 100, PATIENCE).await, 1);
    // As a write that began before "a" was put and took until now.
    let earlier = "UPDATE weir.jobs SET run_at = run_at - interval '1 min' WHERE state = 'queued'";
    weir.put("b", &many(1)).await;
    weir.meddle(earlier).await;
    // This look begins after "a", and has to be followed by one at everything.
    wakeup.report_due();
    let claim = timeout(PATIENCE, claimed(&claimer, 10, 100, 10 * PATIENCE));
    assert_eq!(claim.await, Ok(1));
    weir.put("c", &many(1)).await;
    weir.meddle(earlier).await;
    assert_eq!(claimed(&claimer, 10, 100, Duration::ZERO).await, 1);
}

#[tokio::test]
async fn the_highest_priority_goes_first_also_after_others_were_claimed() {
    let weir = Weir::new().await;
    let (claimer, wakeup) = claimer(&weir.store);
    weir.put("a", &many(1)).await;
    weir.put("b", &many(1)).await;
    assert_eq!(claimed(&claimer, 1, 100, PATIENCE).await, 1);
    for (name, priority) in [("c", 0), ("d", 9), ("e", 5)] {
        let mut write = write(name);
        write.priority = priority;
        weir.store.put_source(&write, &many(1)).await.unwrap();
    }
    wakeup.report_due();
    // No look is put off for longer.
    sleep(MOST_REST).await;
    let mut order = Vec::new();
    for _ in 0..4 {
        let over = CancellationToken::new();
        let jobs = claim(&claimer, 1, 100, PATIENCE, &over).await;
        order.extend(jobs.into_iter().map(|job| job.source));
    }
    assert_eq!(order, ["d", "e", "b", "c"]);
}

#[tokio::test]
async fn beside_a_long_snapshot_a_claim_does_not_read_what_was_claimed_before() {
    const CLAIMS: i64 = 300;
    let weir = Weir::new().await;
    weir.put("api", &many(1)).await;
    weir.queue_without_source(20_000).await;
    let mut snapshot = weir.pool().acquire().await.unwrap();
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM weir.jobs")
        .execute(&mut *snapshot)
        .await
        .unwrap();
    let counted = weir.counted().await;
    let (claimer, _) = claimer(&counted.store);
    for _ in 0..CLAIMS {
        assert_eq!(claimed(&claimer, 1, 0, PATIENCE).await, 1);
    }
    let read = "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relid = 'weir.jobs'::regclass";
    let read = counted.told(read).await;
    // Each alone reads all that came before: 45,000 together.
    assert!((CLAIMS..20_000).contains(&read), "{read} entries read");
}
