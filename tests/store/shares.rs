//! Namespaces share the workers by weight, and none waits for the queue of another.

use std::{collections::BTreeMap, time::Duration};

use sqlx::AssertSqlSafe;
use tokio_util::sync::CancellationToken;
use weir_coordinator::{
    dispatch::claimer::Claimer,
    job::fair_share::{Weights, across},
    store::{Store, claim::Claim, queue::Share, rows::Job},
    wakeup::Wakeup,
};
use weir_tests::{PATIENCE, clients::until};

use crate::fixture::{LEASE, MODEL, Weir, claim_at_once};

/// Queues jobs of so many chunks.
async fn queue(weir: &Weir, namespace: &str, jobs: usize, chunks: i32, priority: i16) {
    sqlx::query(
        "INSERT INTO weir.jobs (source_id, revision, chunks_total, trigger, namespace, source, model, first_item_id,
                                last_item_id, priority)
         SELECT 0, 1, $3, 'write', $1, 'many', 'fake', 'a', 'b', $4 FROM generate_series(1, $2)",
    )
    .bind(namespace)
    .bind(jobs as i32)
    .bind(chunks)
    .bind(priority)
    .execute(weir.pool())
    .await
    .unwrap();
}

fn claimer(store: &Store, weights: &[(&str, u32)]) -> (Claimer, Wakeup) {
    let weights = weights.iter().map(|(name, it)| ((*name).to_owned(), *it));
    let weights: Weights = weights.collect();
    let wakeup = Wakeup::default();
    (Claimer::new(store.clone(), wakeup.clone(), weights), wakeup)
}

struct Asked<'a> {
    jobs: i64,
    chunks: i64,
    busy_with: &'a [String],
    wait: Duration,
}

const ONE: Asked<'static> = Asked {
    jobs: 1,
    chunks: 0,
    busy_with: &[],
    wait: Duration::ZERO,
};

async fn claim(claimer: &Claimer, asked: Asked<'_>) -> Vec<Job> {
    let claim = Claim {
        worker_id: "w",
        models: &[MODEL.to_owned()],
        max_jobs: asked.jobs,
        max_chunks: asked.chunks,
        lease_duration: LEASE,
        namespaces: None,
        busy_with: asked.busy_with,
        claimed_by: None,
    };
    claimer
        .claim(&claim, asked.wait, &CancellationToken::new())
        .await
        .unwrap()
        .0
}

/// Whose the jobs of so many claims are, and how many chunks each got.
async fn shares(
    claimer: &Claimer,
    claims: usize,
    asked: impl Fn() -> Asked<'static>,
) -> BTreeMap<String, i64> {
    let mut got = BTreeMap::new();
    for _ in 0..claims {
        for job in claim(claimer, asked()).await {
            *got.entry(job.namespace.clone()).or_default() += i64::from(job.chunks_pending());
        }
    }
    got
}

#[tokio::test]
async fn a_single_job_waits_for_no_queue_of_another_namespace() {
    let weir = Weir::new().await;
    queue(&weir, "huge", 2_000, 1_000, 9).await;
    let (claimer, wakeup) = claimer(&weir.store, &[]);
    for _ in 0..5 {
        claim(&claimer, ONE).await;
    }
    queue(&weir, "small", 1, 1, 0).await;
    wakeup.report_due();
    let waiting = Asked {
        wait: PATIENCE,
        ..ONE
    };
    // At once, or as soon as the claimer looks again.
    until(async || {
        let jobs = claim(
            &claimer,
            Asked {
                wait: PATIENCE,
                ..ONE
            },
        )
        .await;
        jobs[0].namespace == "small"
    })
    .await;
    assert_eq!(claim(&claimer, waiting).await[0].namespace, "huge");
    let huge = "SELECT count(*) FROM weir.jobs WHERE state = 'running' AND namespace = 'huge'";
    assert!(weir.number(huge).await < 1_000);
}

#[tokio::test]
async fn namespaces_are_served_by_their_weights_however_large_their_jobs() {
    let weir = Weir::new().await;
    queue(&weir, "a", 900, 10, 0).await;
    queue(&weir, "b", 900, 30, 5).await;
    queue(&weir, "c", 900, 1, 0).await;
    let (claimer, _) = claimer(&weir.store, &[("a", 3)]);
    let got = shares(&claimer, 60, || Asked {
        jobs: 20,
        chunks: 100,
        ..ONE
    })
    .await;
    let all: i64 = got.values().sum();
    for (namespace, weight) in [("a", 3), ("b", 1), ("c", 1)] {
        let due = all * weight / 5;
        let apart = (got[namespace] - due).abs();
        assert!(apart <= 60, "{namespace}: {apart} of {due}: {got:?}");
    }
}

#[tokio::test]
async fn a_claim_takes_the_share_of_each_at_once() {
    let weir = Weir::new().await;
    for namespace in ["a", "b", "c", "d"] {
        queue(&weir, namespace, 20, 5, 0).await;
    }
    let (claimer, _) = claimer(&weir.store, &[]);
    let got = shares(&claimer, 1, || Asked {
        jobs: 100,
        chunks: 40,
        ..ONE
    })
    .await;
    assert_eq!(got.into_values().collect::<Vec<_>>(), [10; 4]);
}

#[tokio::test]
async fn a_priority_goes_first_in_its_namespace_and_elsewhere_where_it_may() {
    let weir = Weir::new().await;
    queue(&weir, "a", 5, 1, 0).await;
    queue(&weir, "a", 1, 1, 9).await;
    queue(&weir, "b", 5, 1, 0).await;
    queue(&weir, "c", 2, 1, across(1)).await;
    queue(&weir, "c", 5, 1, 9).await;
    let (claimer, _) = claimer(&weir.store, &[]);
    let mut order = Vec::new();
    for _ in 0..8 {
        let job = claim(&claimer, ONE).await.pop().unwrap();
        order.push((job.namespace, job.priority));
    }
    let of = |namespace: &str| -> Vec<i16> {
        let mine = order.iter().filter(|(it, _)| it == namespace);
        mine.map(|(_, priority)| *priority).collect()
    };
    assert_eq!(order[..2], [("c".to_owned(), 11), ("c".to_owned(), 11)]);
    assert_eq!(
        [of("a"), of("b"), of("c")],
        [vec![9, 0], vec![0, 0], vec![11, 11, 9, 9]]
    );
}

#[tokio::test]
async fn full_hands_take_what_is_next_and_of_others_and_nothing_else() {
    let weir = Weir::new().await;
    queue(&weir, "a", 50, 10, 0).await;
    let (claimer, wakeup) = claimer(&weir.store, &[]);
    claim(&claimer, Asked { jobs: 3, ..ONE }).await;
    let busy_with = ["a".to_owned()];
    let beside = |wait| Asked {
        busy_with: &busy_with,
        wait,
        ..ONE
    };
    assert!(claim(&claimer, beside(Duration::ZERO)).await.is_empty());
    let comes = async {
        queue(&weir, "b", 50, 10, 0).await;
        wakeup.report_due();
    };
    let (got, ()) = tokio::join!(claim(&claimer, beside(PATIENCE)), comes);
    assert_eq!(got[0].namespace, "b");
    // It came while the last job of a was begun, so that both are served alike now:
    // of these, the one goes first of which there is nothing in hand.
    assert_eq!(
        claim(&claimer, beside(Duration::ZERO)).await[0].namespace,
        "b"
    );
    // It is the turn of a, and b does not go round it.
    let busy_with = ["a".to_owned(), "b".to_owned()];
    for names in [&busy_with[..1], &busy_with] {
        let asked = Asked {
            busy_with: names,
            ..ONE
        };
        assert!(claim(&claimer, asked).await.is_empty(), "{names:?}");
    }
    assert_eq!(claim(&claimer, ONE).await[0].namespace, "a");
}

#[tokio::test]
async fn who_has_nothing_to_do_goes_before_full_hands() {
    let weir = Weir::new().await;
    let (claimer, wakeup) = claimer(&weir.store, &[]);
    let idle = claim(
        &claimer,
        Asked {
            wait: PATIENCE,
            ..ONE
        },
    );
    let busy_with = ["a".to_owned()];
    let busy = claim(
        &claimer,
        Asked {
            busy_with: &busy_with,
            wait: PATIENCE,
            ..ONE
        },
    );
    let come = async {
        for namespace in ["b", "c"] {
            tokio::task::yield_now().await;
            queue(&weir, namespace, 1, 1, 0).await;
        }
        wakeup.report_due();
    };
    let (idle, busy, ()) = tokio::join!(idle, busy, come);
    assert_eq!(
        (idle[0].namespace.as_str(), busy[0].namespace.as_str()),
        ("b", "c")
    );
}

/// What Postgres read of jobs, in rows and in entries of their indexes.
const READ: &str = "SELECT seq_tup_read + idx_tup_fetch
                        + (SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relid = 'weir.jobs'::regclass)
                    FROM pg_stat_user_tables WHERE relid = 'weir.jobs'::regclass";

#[tokio::test]
async fn among_a_thousand_namespaces_a_claim_reads_what_it_takes() {
    const NAMESPACES: i64 = 1_000;
    let weir = Weir::new().await;
    let sql = format!(
        "INSERT INTO weir.jobs (source_id, revision, chunks_total, trigger, namespace, source, model, first_item_id,
                                last_item_id)
         SELECT 0, 1, 1, 'write', 'n' || n % {NAMESPACES}, 'many', 'fake', 'a', 'b' FROM generate_series(1, 30000) n"
    );
    sqlx::query(AssertSqlSafe(sql))
        .execute(weir.pool())
        .await
        .unwrap();
    // Delayed ones, of a higher priority, are passed by in one step.
    weir.meddle(
        "INSERT INTO weir.jobs (source_id, revision, chunks_total, trigger, namespace, source, model, first_item_id,
                                last_item_id, priority, run_at)
         SELECT 0, 1, 1, 'write', 'n7', 'many', 'fake', 'a', 'b', 5, now() + interval '1 day'
         FROM generate_series(1, 5000);
         ANALYZE weir.jobs",
    )
    .await;
    let counted = weir.counted().await;
    let share = Share {
        models: vec![MODEL.to_owned()],
        namespaces: None,
    };
    let before = counted.told(READ).await;
    let heads = counted.store.heads(&share).await.unwrap();
    assert_eq!(heads.len() as i64, NAMESPACES);
    let looked = counted.told(READ).await - before;
    assert!(looked < 12 * NAMESPACES, "{looked} read to look at all");

    let (claimer, _) = claimer(&counted.store, &[]);
    claim(&claimer, ONE).await;
    for jobs in [1, 10, 100] {
        // Looks are rare, and may fall into one of these; so the best of some counts.
        let mut reads = Vec::new();
        for _ in 0..8 {
            let before = counted.told(READ).await;
            assert_eq!(
                claim(&claimer, Asked { jobs, ..ONE }).await.len() as i64,
                jobs
            );
            reads.push(counted.told(READ).await - before);
        }
        let least = reads.iter().min().unwrap();
        assert!(*least <= 12 * jobs, "{reads:?} read for {jobs} jobs");
    }
}

#[tokio::test]
async fn a_worker_of_some_namespaces_has_turns_among_these() {
    let weir = Weir::new().await;
    for namespace in ["a", "b", "c"] {
        queue(&weir, namespace, 3, 1, 0).await;
    }
    let claim = Claim {
        worker_id: "w",
        models: &[MODEL.to_owned()],
        max_jobs: 4,
        max_chunks: 0,
        lease_duration: LEASE,
        namespaces: Some(&["c".to_owned(), "a".to_owned(), "c".to_owned()]),
        busy_with: &[],
        claimed_by: None,
    };
    let jobs = claim_at_once(&weir.store, &claim).await.unwrap();
    let mut got: Vec<String> = jobs.into_iter().map(|job| job.namespace).collect();
    got.sort();
    assert_eq!(got, ["a", "a", "c", "c"]);
}
