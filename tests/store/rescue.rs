//! Jobs whose worker is gone.

use std::time::Duration;

use weir_coordinator::{
    job::{
        retry::RetryPolicy,
        state::{JobState, RevokeReason},
    },
    store::{
        StoreError,
        rescue::{Patience, Rescued, RescuedLease},
        rows::Job,
    },
};

use crate::fixture::{LEASE, Weir, lease_of, many, outcome, write};

/// Never reached.
const NO_DEADLINE: Duration = LEASE;

/// Patience with silence, and none with a lease that is over.
const PATIENCE: Patience = Patience {
    orphan_grace: LEASE,
    progress_deadline: LEASE,
};

async fn rescue(weir: &Weir, limit: i64, progress_deadline: Duration) -> Rescued {
    let patience = Patience {
        progress_deadline,
        ..PATIENCE
    };
    weir.store
        .rescue(limit, &patience, &RetryPolicy::default(), || 0.0)
        .await
        .unwrap()
}

/// A job whose worker was heard of, and whose lease is over.
async fn expired(weir: &Weir) -> Job {
    weir.put("api", &many(3)).await;
    weir.claim_expired().await
}

async fn lost(weir: &Weir, job: &Job) -> RevokeReason {
    match weir.store.renew(lease_of(job), LEASE).await {
        Err(StoreError::LeaseLost { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_silent_worker_loses_its_job_and_the_try_is_charged() {
    let weir = Weir::new().await;
    let job = expired(&weir).await;
    let rescued = rescue(&weir, 10, NO_DEADLINE).await;
    assert_eq!(
        rescued,
        Rescued {
            retried: 1,
            silent: 1,
            source_ids: vec![job.source_id],
            leases: vec![RescuedLease {
                lease: lease_of(&job),
                why: "the worker went silent and its lease expired",
                traceparent: job.traceparent.clone(),
            }],
            ..Rescued::default()
        }
    );
    let queued = weir.job(job.id).await;
    assert_eq!(
        (queued.state, queued.attempt, queued.epoch),
        (JobState::Queued, 1, job.epoch + 1)
    );
    assert_eq!(
        queued.last_error.as_deref(),
        Some("the worker went silent and its lease expired")
    );
    assert_eq!(lost(&weir, &job).await, RevokeReason::LeaseLost);
    assert_eq!(rescue(&weir, 10, NO_DEADLINE).await, Rescued::default());
    let again = weir.claim().await;
    assert_eq!((again.id, again.epoch), (job.id, job.epoch + 2));
    assert_eq!(lost(&weir, &job).await, RevokeReason::LeaseLost);
    weir.check().await;
}

#[tokio::test]
async fn a_live_lease_is_left_alone() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    assert_eq!(rescue(&weir, 10, NO_DEADLINE).await, Rescued::default());
    assert_eq!(weir.job(job.id).await, job);
}

#[tokio::test]
async fn the_last_attempt_fails_the_job() {
    let weir = Weir::new().await;
    let job = expired(&weir).await;
    let policy = RetryPolicy {
        max_attempts: 1,
        ..RetryPolicy::default()
    };
    let rescued = weir
        .store
        .rescue(10, &PATIENCE, &policy, || 0.0)
        .await
        .unwrap();
    assert_eq!((rescued.retried, rescued.failed), (0, 1));
    let failed = weir.job(job.id).await;
    assert_eq!(
        (failed.state, failed.attempt, failed.epoch),
        (JobState::Failed, 1, job.epoch + 1)
    );
    assert!(failed.finished_at.is_some() && failed.last_error.is_some());
    let parked = failed.run_at - failed.finished_at.unwrap();
    assert_eq!(parked, chrono::TimeDelta::minutes(30));
    weir.check().await;
}

#[tokio::test]
async fn a_charged_try_waits_before_the_next() {
    let weir = Weir::new().await;
    expired(&weir).await;
    weir.store
        .rescue(10, &PATIENCE, &RetryPolicy::default(), || 0.5)
        .await
        .unwrap();
    let spread = "SELECT count(*) FROM weir.jobs WHERE run_at > now() AND run_at - started_at >= interval '2.5 s'";
    assert_eq!(weir.number(spread).await, 1);
    assert!(weir.claim_many(1, LEASE).await.is_empty());
}

#[tokio::test]
async fn a_try_that_moved_forward_is_not_charged() {
    let weir = Weir::new().await;
    let job = expired(&weir).await;
    let texts = weir.texts(&job).await;
    let part = outcome(&job, &texts[..1]);
    weir.store.upsert(&part, Duration::ZERO).await.unwrap();
    assert_eq!(rescue(&weir, 10, NO_DEADLINE).await.retried, 1);
    let queued = weir.job(job.id).await;
    assert_eq!(
        (queued.state, queued.attempt, queued.epoch),
        (JobState::Queued, 0, job.epoch + 1)
    );
    // What an earlier lease persisted does not count for the next.
    weir.claim_expired().await;
    rescue(&weir, 10, NO_DEADLINE).await;
    assert_eq!(weir.job(job.id).await.attempt, 1);
    weir.check().await;
}

#[tokio::test]
async fn law_5_being_alive_is_not_enough() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    // Heartbeats hold the lease, but the last progress was long ago.
    sqlx::query("UPDATE weir.jobs SET progressed_at = now() - interval '1 hour', claimed_at = now() - interval '2 hours'")
        .execute(weir.pool())
        .await
        .unwrap();
    weir.store.renew(lease_of(&job), LEASE).await.unwrap();
    let mut heartbeat = outcome(&job, &texts[..1]);
    heartbeat.complete = false;
    weir.upsert(heartbeat).await.unwrap();
    assert_eq!(
        rescue(&weir, 10, Duration::from_secs(3_700)).await,
        Rescued::default()
    );
    assert_eq!(
        rescue(&weir, 10, Duration::from_secs(3_500)).await.retried,
        1
    );
    let queued = weir.job(job.id).await;
    assert_eq!(
        (queued.state, queued.attempt),
        (JobState::Queued, 1),
        "charged, for it stood still"
    );
    assert_eq!(
        queued.last_error.as_deref(),
        Some("the worker persisted nothing for the progress deadline")
    );
    assert_eq!(lost(&weir, &job).await, RevokeReason::NoProgress);
    weir.check().await;
}

#[tokio::test]
async fn a_job_without_any_progress_is_timed_from_its_claim() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    weir.store.renew(lease_of(&job), LEASE).await.unwrap();
    assert_eq!(rescue(&weir, 10, Duration::ZERO).await.retried, 1);
    assert_eq!(lost(&weir, &job).await, RevokeReason::NoProgress);
}

#[tokio::test]
async fn rescuers_side_by_side_charge_once() {
    let weir = Weir::new().await;
    let mut small = write("api");
    small.max_chunks_per_job = 1;
    weir.store.put_source(&small, &many(20)).await.unwrap();
    for job in weir.claim_many(20, LEASE).await {
        weir.store
            .renew(lease_of(&job), Duration::ZERO)
            .await
            .unwrap();
    }
    let (a, b, c) = tokio::join!(
        rescue(&weir, 20, NO_DEADLINE),
        rescue(&weir, 20, NO_DEADLINE),
        rescue(&weir, 20, NO_DEADLINE)
    );
    assert_eq!(a.retried + b.retried + c.retried, 20);
    let charged =
        "SELECT count(*) FROM weir.jobs WHERE state = 'queued' AND attempt = 1 AND epoch = 2";
    assert_eq!(weir.number(charged).await, 20);
}

#[tokio::test]
async fn a_step_takes_no_more_than_its_limit_and_passes_by_what_another_takes() {
    let weir = Weir::new().await;
    let mut small = write("api");
    small.max_chunks_per_job = 1;
    weir.store.put_source(&small, &many(4)).await.unwrap();
    let mut ids: Vec<i64> = weir
        .claim_many(4, Duration::ZERO)
        .await
        .iter()
        .map(|job| job.id)
        .collect();
    ids.sort_unstable();
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.jobs WHERE id = $1 FOR UPDATE")
        .bind(ids[0])
        .execute(&mut *other)
        .await
        .unwrap();
    let step = tokio::time::timeout(weir_tests::PATIENCE, rescue(&weir, 2, NO_DEADLINE));
    assert_eq!(step.await.expect("it does not wait").retried, 2);
    other.rollback().await.unwrap();
    assert_eq!(weir.job(ids[0]).await.state, JobState::Running);
    assert_eq!(rescue(&weir, 10, NO_DEADLINE).await.retried, 2);
}
