//! The queue and the leases it gives.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use weir_coordinator::{
    job::{
        retry::{Decision, RetryPolicy},
        state::JobState,
    },
    store::{StoreError, claim::Claim, lease::LeaseState, rows::Job},
};
use weir_tests::PATIENCE;

use crate::fixture::{
    LEASE, MODEL, Weir, claim_at_once, counts, key, lease_of, many, outcome, write,
};

/// One item each, so that each is one job.
async fn put_one(weir: &Weir, name: &str, priority: i16) -> Job {
    let mut write = write(name);
    write.priority = priority;
    let written = weir.store.put_source(&write, &many(1)).await.unwrap();
    written.jobs.into_iter().next().unwrap()
}

#[tokio::test]
async fn the_highest_priority_comes_first_then_the_longest_waiting() {
    let weir = Weir::new().await;
    for (name, priority) in [("late", 1), ("low", 0), ("early", 1), ("high", 9)] {
        put_one(&weir, name, priority).await;
    }
    sqlx::query("UPDATE weir.jobs SET run_at = run_at - interval '1 min' WHERE source = 'early'")
        .execute(weir.pool())
        .await
        .unwrap();
    let mut order = Vec::new();
    while let Some(job) = weir.claim_many(1, LEASE).await.pop() {
        order.push(job.source);
    }
    assert_eq!(order, ["high", "early", "late", "low"]);
}

#[tokio::test]
async fn a_claim_takes_no_more_than_it_asked_for_and_the_best_of_these() {
    let weir = Weir::new().await;
    for (name, priority) in [("a", 1), ("b", 0), ("c", 2)] {
        put_one(&weir, name, priority).await;
    }
    let claimed: BTreeSet<String> = weir
        .claim_many(2, LEASE)
        .await
        .into_iter()
        .map(|job| job.source)
        .collect();
    assert_eq!(claimed, BTreeSet::from(["a".to_owned(), "c".to_owned()]));
}

#[tokio::test]
async fn no_job_is_claimed_twice() {
    let weir = Weir::new().await;
    let mut write = write("api");
    write.max_chunks_per_job = 1;
    weir.store.put_source(&write, &many(60)).await.unwrap();
    let claimers = (0..6).map(|_| async {
        let mut claimed = Vec::new();
        loop {
            let jobs = weir.claim_many(3, LEASE).await;
            if jobs.is_empty() {
                return claimed;
            }
            claimed.extend(jobs.into_iter().map(|job| (job.id, job.epoch)));
        }
    });
    let claimed: Vec<_> = join_all(claimers).await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), 60);
    assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), 60);
    assert!(claimed.iter().all(|(_, epoch)| *epoch == 1));
}

#[tokio::test]
async fn a_claim_passes_by_what_another_is_taking() {
    let weir = Weir::new().await;
    let best = put_one(&weir, "best", 9).await;
    let next = put_one(&weir, "next", 0).await;
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.jobs WHERE id = $1 FOR UPDATE")
        .bind(best.id)
        .execute(&mut *other)
        .await
        .unwrap();
    let claimed = tokio::time::timeout(PATIENCE, weir.claim())
        .await
        .expect("it does not wait");
    assert_eq!(claimed.id, next.id);
}

/// Sources `s0`, `s1` … with so many chunks, one job each, to be claimed in
/// this order.
async fn put_sizes(weir: &Weir, sizes: &[usize]) {
    for (place, size) in sizes.iter().enumerate() {
        weir.put(&format!("s{place}"), &many(*size)).await;
    }
}

#[tokio::test]
async fn a_claim_stops_when_it_has_enough_chunks() {
    // Asked for with so much: which of jobs of 2, 3, 1 and 4 chunks come.
    let cases: [(i64, i64, &[&str]); 7] = [
        (10, 1, &["s0"]),
        (10, 2, &["s0"]),
        (10, 3, &["s0", "s1"]),
        (10, 5, &["s0", "s1"]),
        (10, 6, &["s0", "s1", "s2"]),
        (2, 100, &["s0", "s1"]),
        (10, i64::MAX, &["s0", "s1", "s2", "s3"]),
    ];
    for (max_jobs, max_chunks, expected) in cases {
        let weir = Weir::new().await;
        put_sizes(&weir, &[2, 3, 1, 4]).await;
        let claimed = weir.claim_up_to(max_jobs, max_chunks, LEASE).await;
        let claimed: BTreeSet<&str> = claimed.iter().map(|job| job.source.as_str()).collect();
        assert_eq!(
            claimed,
            expected.iter().copied().collect(),
            "{max_jobs} jobs, {max_chunks} chunks"
        );
    }
}

#[tokio::test]
async fn enough_is_told_by_what_a_job_has_still_pending() {
    let weir = Weir::new().await;
    put_sizes(&weir, &[5, 5, 5]).await;
    let first = weir.claim().await;
    let texts = weir.texts(&first).await;
    weir.upsert(outcome(&first, &texts[..4])).await.unwrap();
    weir.store.release(lease_of(&first), "drain").await.unwrap();
    // Released last, but of a higher priority it comes first.
    weir.meddle("UPDATE weir.jobs SET priority = 5 WHERE source = 's0'")
        .await;
    assert_eq!(weir.claim_up_to(10, 2, LEASE).await.len(), 2);
}

#[tokio::test]
async fn a_claim_with_enough_chunks_locks_nothing_else() {
    let weir = Weir::new().await;
    put_sizes(&weir, &[5, 5, 5, 5]).await;
    assert_eq!(weir.claim_up_to(10, 5, LEASE).await.len(), 1);
    // Whoever locks a row leaves a mark on it. Were these locked, a claim at the same time would
    // have gone away with nothing.
    let marked = "SELECT count(*) FROM weir.jobs WHERE state = 'queued' AND xmax::text <> '0'";
    assert_eq!(weir.number(marked).await, 0);
}

#[tokio::test]
async fn a_claim_that_gets_others_than_it_looked_at_still_stops_at_enough() {
    let weir = Weir::new().await;
    put_sizes(&weir, &[1, 1, 1, 9, 9, 9]).await;
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.jobs WHERE chunks_total = 1 FOR UPDATE")
        .execute(&mut *other)
        .await
        .unwrap();
    let claimed = weir.claim_up_to(10, 3, LEASE).await;
    let claimed: Vec<&str> = claimed.iter().map(|job| job.source.as_str()).collect();
    assert_eq!(claimed, ["s3"]);
}

#[tokio::test]
async fn only_the_models_named_are_claimed() {
    let weir = Weir::new().await;
    let mut other = write("api");
    other.model = Some("other".to_owned());
    weir.store.put_source(&other, &many(1)).await.unwrap();
    assert!(weir.claim_many(10, LEASE).await.is_empty());
    let models = ["fake".to_owned(), "other".to_owned()];
    let claim = Claim {
        worker_id: "w",
        models: &models,
        max_jobs: 10,
        max_chunks: 0,
        lease_duration: LEASE,
        namespaces: None,
        busy_with: &[],
        claimed_by: None,
    };
    assert_eq!(claim_at_once(&weir.store, &claim).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_best_come_first_whatever_their_model() {
    let weir = Weir::new().await;
    for (name, model, priority) in [
        ("a", "fake", 1),
        ("b", "other", 2),
        ("c", "fake", 3),
        ("d", "other", 0),
    ] {
        let mut write = write(name);
        write.model = Some(model.to_owned());
        write.priority = priority;
        weir.store.put_source(&write, &many(2)).await.unwrap();
    }
    // Naming a model twice is naming it.
    let models = ["fake", "other", "fake"].map(str::to_owned);
    let mut claim = Claim {
        worker_id: "w",
        models: &models,
        max_jobs: 1,
        max_chunks: 0,
        lease_duration: LEASE,
        namespaces: None,
        busy_with: &[],
        claimed_by: None,
    };
    assert_eq!(
        claim_at_once(&weir.store, &claim).await.unwrap()[0].source,
        "c"
    );
    claim.max_jobs = 10;
    claim.max_chunks = 3;
    let claimed = claim_at_once(&weir.store, &claim).await.unwrap();
    let claimed: BTreeSet<&str> = claimed.iter().map(|job| job.source.as_str()).collect();
    assert_eq!(claimed, BTreeSet::from(["a", "b"]));
}

#[tokio::test]
async fn however_long_the_queue_a_claim_reads_no_more_than_its_head() {
    let weir = Weir::new().await;
    weir.put("api", &many(1)).await;
    weir.queue_without_source(20_000).await;
    let counted = weir.counted().await;
    let read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relid = 'weir.jobs'::regclass";
    for max_chunks in [0, 50] {
        let before = counted.told(read).await;
        let claim = Claim {
            worker_id: "w",
            models: &["fake".to_owned(), "other".to_owned()],
            max_jobs: 5,
            max_chunks,
            lease_duration: LEASE,
            namespaces: None,
            busy_with: &[],
            claimed_by: None,
        };
        assert_eq!(
            claim_at_once(&counted.store, &claim).await.unwrap().len(),
            5
        );
        let rows = counted.told(read).await - before;
        assert!(rows < 200, "{rows} rows read for {max_chunks} chunks");
    }
}

#[tokio::test]
async fn nothing_is_claimed_before_its_time() {
    let weir = Weir::new().await;
    put_one(&weir, "api", 9).await;
    assert!(weir.store.any_due(&[MODEL.to_owned()]).await.unwrap());
    sqlx::query("UPDATE weir.jobs SET run_at = now() + interval '1 hour'")
        .execute(weir.pool())
        .await
        .unwrap();
    assert!(weir.claim_many(10, LEASE).await.is_empty());
    assert!(!weir.store.any_due(&[MODEL.to_owned()]).await.unwrap());
}

#[tokio::test]
async fn law_2_a_lease_lasts_as_configured_by_the_clock_of_the_database() {
    let weir = Weir::new().await;
    put_one(&weir, "api", 0).await;
    let lease_duration = Duration::from_millis(600_123);
    let job = weir.claim_many(1, lease_duration).await.pop().unwrap();
    assert_eq!(
        (job.state, job.epoch, job.attempt),
        (JobState::Running, 1, 0)
    );
    assert_eq!(job.worker_id.as_deref(), Some("worker-1"));
    assert!(job.started_at.is_some());
    let exact = "SELECT count(*) FROM weir.jobs
                 WHERE lease_expires_at - claimed_at = interval '600.123 s' AND claimed_at <= now()
                   AND claimed_at >= created_at AND started_at = claimed_at AND progressed_at IS NULL";
    assert_eq!(weir.number(exact).await, 1);

    let before = job.lease_expires_at.unwrap();
    let LeaseState::Held(renewed) = weir
        .store
        .renew(lease_of(&job), lease_duration)
        .await
        .unwrap()
    else {
        panic!("the lease is held");
    };
    assert!(renewed.lease_expires_at.unwrap() > before);
    assert_eq!(
        (renewed.epoch, renewed.chunks_done, renewed.attempt),
        (1, 0, 0)
    );
    // A renewal may shorten a lease as well: what counts is the duration from now.
    weir.store
        .renew(lease_of(&job), Duration::from_secs(1))
        .await
        .unwrap();
    assert!(weir.job(job.id).await.lease_expires_at.unwrap() < before);
}

#[tokio::test]
async fn each_claim_has_a_new_epoch_and_keeps_the_first_start() {
    let weir = Weir::new().await;
    put_one(&weir, "api", 0).await;
    let first = weir.claim().await;
    weir.store
        .release(lease_of(&first), "draining")
        .await
        .unwrap();
    let second = weir.claim().await;
    assert_eq!((second.id, second.epoch), (first.id, first.epoch + 1));
    assert_eq!(second.started_at, first.started_at);
}

#[tokio::test]
async fn a_released_job_is_uncharged_and_due_at_once() {
    let weir = Weir::new().await;
    put_one(&weir, "api", 0).await;
    let job = weir.claim().await;
    assert_eq!(
        weir.store
            .release(lease_of(&job), "draining")
            .await
            .unwrap(),
        job.source_id
    );
    let released = weir.job(job.id).await;
    assert_eq!((released.state, released.attempt), (JobState::Queued, 0));
    assert_eq!(released.last_error.as_deref(), Some("draining"));
    assert_eq!(
        (released.worker_id, released.lease_expires_at),
        (None, None)
    );
    assert_eq!(weir.claim().await.id, job.id);
}

#[tokio::test]
async fn a_failed_try_is_charged_and_waits() {
    let weir = Weir::new().await;
    put_one(&weir, "api", 0).await;
    let job = weir.claim().await;
    let policy = RetryPolicy {
        max_attempts: 2,
        backoff_base: Duration::from_mins(1),
        backoff_cap: LEASE,
        ..RetryPolicy::default()
    };
    let failed = weir
        .store
        .fail(lease_of(&job), "the embedder crashed", &policy, 0.5)
        .await
        .unwrap();
    assert_eq!(
        failed.decision,
        Decision::Retry {
            attempt: 1,
            delay: Duration::from_secs(30)
        }
    );
    let waiting = weir.job(job.id).await;
    assert_eq!(
        (waiting.state, waiting.attempt, waiting.epoch),
        (JobState::Queued, 1, 1)
    );
    assert_eq!(waiting.last_error.as_deref(), Some("the embedder crashed"));
    assert!(weir.claim_many(1, LEASE).await.is_empty());
    let soon = "SELECT count(*) FROM weir.jobs WHERE run_at - now() BETWEEN interval '0 s' AND interval '30 s'
                AND run_at - started_at >= interval '30 s'";
    assert_eq!(weir.number(soon).await, 1);
    weir.check().await;

    sqlx::query("UPDATE weir.jobs SET run_at = now()")
        .execute(weir.pool())
        .await
        .unwrap();
    let job = weir.claim().await;
    let failed = weir
        .store
        .fail(lease_of(&job), "again", &policy, 0.5)
        .await
        .unwrap();
    assert_eq!(failed.decision, Decision::Fail { attempt: 2 });
    let dead = weir.job(job.id).await;
    assert_eq!((dead.state, dead.attempt), (JobState::Failed, 2));
    assert_eq!(dead.last_error.as_deref(), Some("again"));
    assert!(dead.finished_at.is_some());
    assert!(weir.claim_many(1, LEASE).await.is_empty());
    assert_eq!(weir.counts("api").await, counts([1, 1, 1, 0, 0]));
    assert_eq!(
        weir.store.source(&key("api")).await.unwrap().jobs[0].id,
        job.id
    );
    weir.check().await;
}

#[tokio::test]
async fn a_job_completes_only_when_nothing_is_pending() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let mut part = outcome(&job, &texts[..2]);
    part.complete = false;
    weir.upsert(part).await.unwrap();
    let error = weir.store.complete(lease_of(&job)).await.unwrap_err();
    assert!(matches!(error, StoreError::Precondition(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!(
            "job {} cannot be completed: 1 of its 3 chunks are still pending",
            job.id
        )
    );
    let mut rest = outcome(&job, &texts[2..]);
    rest.complete = false;
    assert!(
        !weir.upsert(rest).await.unwrap().finished,
        "it was not asked to end"
    );
    let done = weir.store.complete(lease_of(&job)).await.unwrap();
    assert_eq!(
        (done.state, done.chunks_done, done.lease_expires_at),
        (JobState::Succeeded, 3, None)
    );
    assert_eq!(
        weir.store.complete(lease_of(&job)).await.unwrap(),
        done,
        "asked again, the same answer"
    );
    weir.check().await;
}

#[tokio::test]
async fn a_job_whose_chunks_somebody_else_embedded_completes() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let progress = weir.upsert(outcome(&job, &texts)).await.unwrap();
    assert!(progress.finished);
    // As after a hand wrote one of the vectors: the counts fall short, the rows do not.
    sqlx::query(
        "UPDATE weir.jobs SET state = 'running', settled = false, finished_at = NULL, chunks_done = 2,
         worker_id = 'w', claimed_at = now(), lease_expires_at = now() + interval '1 hour'",
    )
    .execute(weir.pool())
    .await
    .unwrap();
    assert!(
        weir.store
            .pending(lease_of(&job), 10)
            .await
            .unwrap()
            .is_empty()
    );
    let done = weir.store.complete(lease_of(&job)).await.unwrap();
    assert_eq!((done.state, done.chunks_done), (JobState::Succeeded, 3));
    weir.check().await;
}
