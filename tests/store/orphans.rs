//! Workers whose connection broke, and workers that were never heard of.

use std::time::Duration;

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

use crate::fixture::{
    LEASE, Weir, lease_of, many, opening, opening_of, outcome, session, session_row,
};

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

/// A job that the session `a` works on.
async fn running(weir: &Weir) -> Job {
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    weir.enter(&session_row(&session('a'))).await;
    opened(weir, &session('a'), &job).await;
    job
}

/// The job, which this session works on from now on.
async fn opened(weir: &Weir, session: &str, job: &Job) -> Job {
    let opening = opening_of(session, job);
    match weir.store.open(&opening, LEASE).await.unwrap() {
        LeaseState::Held(job) => *job,
        LeaseState::Finished(job) => panic!("finished: {job:?}"),
    }
}

/// No job.
const NOBODY: [i64; 0] = [];

/// Cuts the leases of a session short, and returns those that were.
async fn orphaned(weir: &Weir, session: &str, job: &Job, grace: Duration) -> Vec<i64> {
    let ids = [job.id];
    let orphaned = weir.store.orphan_session(session, &ids, grace);
    orphaned.await.unwrap()
}

#[tokio::test]
async fn an_orphaned_lease_ends_after_the_grace() {
    let weir = Weir::new().await;
    let job = running(&weir).await;
    let grace = Duration::from_mins(1);
    assert_eq!(orphaned(&weir, &session('a'), &job, grace).await, [job.id]);
    let soon = "SELECT count(*) FROM weir.jobs
                WHERE lease_expires_at BETWEEN now() + interval '50 s' AND now() + interval '60 s'";
    assert_eq!(weir.number(soon).await, 1);
    assert_eq!(rescue(&weir, LEASE).await, Rescued::default());
    orphaned(&weir, &session('a'), &job, Duration::ZERO).await;
    assert_eq!(rescue(&weir, LEASE).await.retried, 1);
    weir.check().await;
}

#[tokio::test]
async fn a_worker_that_comes_back_within_the_grace_goes_on() {
    let weir = Weir::new().await;
    let job = running(&weir).await;
    orphaned(&weir, &session('a'), &job, Duration::ZERO).await;
    // Nobody has taken the job away yet, so the same epoch still counts.
    let texts = weir.texts(&job).await;
    weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    assert_eq!(rescue(&weir, LEASE).await, Rescued::default());
    assert!(weir.embed(&job).await.finished);
    weir.check().await;
}

#[tokio::test]
async fn a_broken_stream_does_not_end_the_lease_of_the_session_that_came_after_it() {
    let weir = Weir::new().await;
    let job = running(&weir).await;
    let (old, new) = (session('a'), session('b'));
    weir.enter(&session_row(&new)).await;
    // On another replica, before this one sees that the stream broke.
    let until = opened(&weir, &new, &job).await.lease_expires_at;
    assert_eq!(orphaned(&weir, &old, &job, Duration::ZERO).await, NOBODY);
    assert_eq!(weir.job(job.id).await.lease_expires_at, until);
    // What is renewed late, for the old stream, does not make it the latest.
    weir.store.renew(lease_of(&job), LEASE).await.unwrap();
    assert_eq!(orphaned(&weir, &old, &job, Duration::ZERO).await, NOBODY);
    assert_eq!(orphaned(&weir, &new, &job, Duration::ZERO).await, [job.id]);
}

#[tokio::test]
async fn an_orphaned_lease_is_never_made_longer() {
    let weir = Weir::new().await;
    let job = running(&weir).await;
    let until = weir.job(job.id).await.lease_expires_at;
    assert_eq!(
        orphaned(&weir, &session('a'), &job, 2 * LEASE).await,
        NOBODY
    );
    assert_eq!(weir.job(job.id).await.lease_expires_at, until);
}

#[tokio::test]
async fn an_orphaning_that_comes_late_changes_nothing() {
    let weir = Weir::new().await;
    let job = running(&weir).await;
    weir.store
        .release(lease_of(&job), "draining")
        .await
        .unwrap();
    assert_eq!(
        orphaned(&weir, &session('a'), &job, Duration::ZERO).await,
        NOBODY
    );
    // The same job, claimed anew: it is of no session until one opens it.
    let next = weir.claim().await;
    assert_eq!(
        orphaned(&weir, &session('a'), &job, Duration::ZERO).await,
        NOBODY
    );
    assert_eq!(weir.job(next.id).await, next);
}

#[tokio::test]
async fn an_orphaning_passes_by_what_is_locked_and_what_was_not_named() {
    let weir = Weir::new().await;
    for name in ["free", "locked", "not named"] {
        weir.put(name, &many(1)).await;
    }
    let jobs = weir.claim_many(3, LEASE).await;
    let by_name = |name: &str| jobs.iter().find(|job| job.source == name).unwrap();
    let (free, locked) = (by_name("free"), by_name("locked"));
    let openings: Vec<_> = jobs
        .iter()
        .map(|it| opening_of(&session('a'), it))
        .collect();
    weir.store.open_group(&openings, LEASE).await.unwrap();
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.jobs WHERE id = $1 FOR UPDATE")
        .bind(locked.id)
        .execute(&mut *other)
        .await
        .unwrap();
    let (a, ids) = (session('a'), [free.id, locked.id]);
    let cut = weir.store.orphan_session(&a, &ids, Duration::ZERO);
    assert_eq!(cut.await.unwrap(), [free.id]);
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
    match weir.store.open(&opening(lease_of(&job), 8), LEASE).await {
        Err(StoreError::LeaseLost { reason, .. }) => assert_eq!(reason, RevokeReason::LeaseLost),
        other => panic!("{other:?}"),
    }
    // Any sign of life will do, and counts for this lease only.
    let next = weir.claim().await;
    weir.store.renew(lease_of(&next), LEASE).await.unwrap();
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
