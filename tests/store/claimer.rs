//! Claims that wait: whom a job that comes wakes, and who asks the database.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio_util::sync::CancellationToken;
use weir_coordinator::{
    claimer::Claimer,
    store::{Store, claim::Claim},
    wakeup::Wakeup,
};
use weir_tests::{PATIENCE, clients::until};

use crate::fixture::{LEASE, MODEL, Weir, many};

/// Long enough for a look, if there were one.
const MOMENT: Duration = Duration::from_millis(200);

/// A claim, and how many jobs it got.
async fn claimed(claimer: &Claimer, max_jobs: i64, max_chunks: i64, wait: Duration) -> usize {
    let claim = Claim {
        worker_id: "w",
        models: &[MODEL.to_owned()],
        max_jobs,
        max_chunks,
        lease_duration: LEASE,
        namespaces: None,
        claimed_by: None,
    };
    let (jobs, _) = claimer.claim(&claim, wait).await.unwrap();
    jobs.len()
}

async fn count(weir: &Weir, sql: &'static str) -> i64 {
    let counted = sqlx::query_scalar(sql).fetch_one(weir.pool()).await;
    counted.unwrap()
}

#[tokio::test]
async fn a_queue_that_has_nothing_left_is_asked_again_when_something_comes() {
    let weir = Weir::new().await;
    let wakeup = Wakeup::default();
    let claimer = Claimer::new(weir.store.clone(), wakeup.clone(), CancellationToken::new());
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
    let claimer = Claimer::new(
        weir.store.clone(),
        Wakeup::default(),
        CancellationToken::new(),
    );
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
    let options = weir.url().parse::<PgConnectOptions>().unwrap();
    let pool = PgPoolOptions::new().connect_lazy_with(options.application_name("claimer"));
    let wakeup = Wakeup::default();
    let stop = CancellationToken::new();
    let store = Store::new(pool.clone(), PATIENCE);
    let claimer = Arc::new(Claimer::new(store, wakeup.clone(), stop.clone()));
    let waiting = (0..WAITING).map(|_| {
        let claimer = claimer.clone();
        tokio::spawn(async move { claimed(&claimer, 10, 100, PATIENCE).await })
    });
    let waiting: Vec<_> = waiting.collect();
    tokio::time::sleep(MOMENT).await;
    weir.put("a", &many(1)).await;
    wakeup.report_due();
    let running = "SELECT count(*) FROM weir.jobs WHERE state = 'running'";
    until(async || count(&weir, running).await == 1).await;
    stop.cancel();
    let got: usize = join_all(waiting).await.into_iter().flatten().sum();
    assert_eq!(got, 1);

    // What its connections did is told when they are gone.
    pool.close().await;
    let connections = "SELECT count(*) FROM pg_stat_activity
                       WHERE application_name = 'claimer' AND datname = current_database()";
    until(async || count(&weir, connections).await == 0).await;
    let reads =
        "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelid = 'weir.jobs_claim'::regclass";
    let read = count(&weir, reads).await;
    // Each asks the index twice: for how many are enough, and for them.
    assert!((2..40).contains(&read), "{read} reads");
}
