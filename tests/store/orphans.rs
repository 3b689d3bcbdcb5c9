//! Workers whose connection broke, and workers that were never heard of.

use std::time::Duration;

use chrono::{DateTime, Utc};
use weir_coordinator::{
    job::{
        retry::RetryPolicy,
        state::{JobState, RevokeReason},
    },
    store::{
        StoreError,
        lease::LeaseState,
        rescue::{Patience, Rescued},
        rows::Job,
    },
};

use crate::fixture::{LEASE, Weir, lease_of, many, outcome};

async fn rescue(weir: &Weir, orphan_grace: Duration) -> Rescued {
    let patience = Patience {
        orphan_grace,
        progress_deadline: LEASE,
    };
    weir.store
        .rescue(10, &patience, &RetryPolicy::default(), || 0.0)
        .await
        .unwrap()
}

/// A job in the hands of a worker that was heard of, and until when.
async fn running(weir: &Weir) -> (Job, DateTime<Utc>) {
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    let until = renewed(weir, &job).await;
    (job, until)
}

async fn renewed(weir: &Weir, job: &Job) -> DateTime<Utc> {
    match weir.store.renew(lease_of(job), LEASE).await.unwrap() {
        LeaseState::Held(job) => job.lease_expires_at.unwrap(),
        LeaseState::Finished(job) => panic!("finished: {job:?}"),
    }
}

#[tokio::test]
async fn an_orphaned_lease_ends_after_the_grace() {
    let weir = Weir::new().await;
    let (job, until) = running(&weir).await;
    let grace = Duration::from_mins(1);
    assert!(
        weir.store
            .orphan(lease_of(&job), 0, until, grace)
            .await
            .unwrap()
    );
    let soon = "SELECT count(*) FROM weir.jobs
                WHERE lease_expires_at BETWEEN now() + interval '50 s' AND now() + interval '60 s'";
    assert_eq!(weir.number(soon).await, 1);
    assert_eq!(rescue(&weir, LEASE).await, Rescued::default());
    let until = weir.job(job.id).await.lease_expires_at.unwrap();
    weir.store
        .orphan(lease_of(&job), 0, until, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(rescue(&weir, LEASE).await.retried, 1);
    weir.check().await;
}

#[tokio::test]
async fn a_worker_that_comes_back_within_the_grace_goes_on() {
    let weir = Weir::new().await;
    let (job, until) = running(&weir).await;
    weir.store
        .orphan(lease_of(&job), 0, until, Duration::ZERO)
        .await
        .unwrap();
    // Nobody has taken the job away yet, so the same epoch still counts.
    let texts = weir.texts(&job).await;
    weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    assert_eq!(rescue(&weir, LEASE).await, Rescued::default());
    assert!(weir.embed(&job).await.finished);
    weir.check().await;
}

#[tokio::test]
async fn a_broken_stream_does_not_end_the_lease_of_the_one_that_came_after_it() {
    let weir = Weir::new().await;
    let (job, until) = running(&weir).await;
    let reopened = renewed(&weir, &job).await;
    assert!(reopened > until);
    assert!(
        !weir
            .store
            .orphan(lease_of(&job), 0, until, Duration::ZERO)
            .await
            .unwrap()
    );
    assert_eq!(weir.job(job.id).await.lease_expires_at, Some(reopened));
    // A result renews as well as a heartbeat does.
    let texts = weir.texts(&job).await;
    let progress = weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    let written = progress.lease_expires_at.unwrap();
    assert_eq!(weir.job(job.id).await.lease_expires_at, Some(written));
    assert!(
        !weir
            .store
            .orphan(lease_of(&job), 0, reopened, Duration::ZERO)
            .await
            .unwrap()
    );
    assert!(
        weir.store
            .orphan(lease_of(&job), 0, written, Duration::ZERO)
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn what_is_read_late_from_a_broken_stream_does_not_make_it_the_latest() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    let opened = async || match weir.store.open(lease_of(&job), LEASE, 8).await.unwrap() {
        LeaseState::Held(job) => job.stream,
        LeaseState::Finished(job) => panic!("finished: {job:?}"),
    };
    let (old, new) = (opened().await, opened().await);
    // The worker is back, and only then its last message on the old stream is read.
    let until = renewed(&weir, &job).await;
    let orphan = |stream| {
        weir.store
            .orphan(lease_of(&job), stream, until, Duration::ZERO)
    };
    assert!(!orphan(old).await.unwrap());
    assert!(orphan(new).await.unwrap());
}

#[tokio::test]
async fn an_orphaned_lease_is_never_made_longer() {
    let weir = Weir::new().await;
    let (job, until) = running(&weir).await;
    assert!(
        !weir
            .store
            .orphan(lease_of(&job), 0, until, 2 * LEASE)
            .await
            .unwrap()
    );
    assert_eq!(weir.job(job.id).await.lease_expires_at, Some(until));
}

#[tokio::test]
async fn an_orphaning_that_comes_late_changes_nothing() {
    let weir = Weir::new().await;
    let (job, until) = running(&weir).await;
    weir.store
        .release(lease_of(&job), "draining")
        .await
        .unwrap();
    let next = weir.claim().await;
    let until_next = renewed(&weir, &next).await;
    for (lease, until) in [(&job, until), (&job, until_next), (&next, until)] {
        let orphaned = weir.store.orphan(lease_of(lease), 0, until, Duration::ZERO);
        assert!(!orphaned.await.unwrap());
    }
    assert_eq!(weir.job(next.id).await.lease_expires_at, Some(until_next));
}

#[tokio::test]
async fn a_claim_that_nobody_answers_to_goes_back_uncharged() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    assert_eq!(rescue(&weir, LEASE).await, Rescued::default());
    assert_eq!(rescue(&weir, Duration::ZERO).await.retried, 1);
    let queued = weir.job(job.id).await;
    assert_eq!(
        (queued.state, queued.attempt, queued.epoch, queued.suspects),
        (JobState::Queued, 0, job.epoch + 1, 0)
    );
    assert_eq!(
        queued.last_error.as_deref(),
        Some("the worker that claimed the job was never heard of again")
    );
    // It may have got the answer after all, and be late.
    match weir.store.open(lease_of(&job), LEASE, 8).await {
        Err(StoreError::LeaseLost { reason, .. }) => assert_eq!(reason, RevokeReason::LeaseLost),
        other => panic!("{other:?}"),
    }
    // Any sign of life will do, and counts for this lease only.
    let next = weir.claim().await;
    renewed(&weir, &next).await;
    assert_eq!(rescue(&weir, Duration::ZERO).await, Rescued::default());
    weir.store
        .release(lease_of(&next), "draining")
        .await
        .unwrap();
    let last = weir.claim().await;
    let texts = weir.texts(&last).await;
    weir.upsert(outcome(&last, &texts[..1])).await.unwrap();
    assert_eq!(rescue(&weir, Duration::ZERO).await, Rescued::default());
    weir.store
        .release(lease_of(&last), "draining")
        .await
        .unwrap();
    weir.claim().await;
    assert_eq!(rescue(&weir, Duration::ZERO).await.retried, 1);
    weir.check().await;
}
