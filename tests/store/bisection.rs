//! Texts that kill the workers that embed them.

use std::time::Duration;

use weir_coordinator::{
    job::{
        blame::suspected_batch,
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

use crate::fixture::{LEASE, Weir, counts, item, lease_of, many, opening, outcome};

/// What the worker asks for.
const BATCH_SIZE: i32 = 8;

async fn rescue(weir: &Weir) -> Rescued {
    let patience = Patience {
        orphan_grace: LEASE,
        progress_deadline: LEASE,
    };
    weir.store
        .rescue(10, &patience, &RetryPolicy::default(), || 0.0)
        .await
        .unwrap()
}

async fn open(weir: &Weir, job: &Job, lease: Duration) -> Job {
    match weir
        .store
        .open(&opening(lease_of(job), BATCH_SIZE), lease)
        .await
        .unwrap()
    {
        LeaseState::Held(job) => *job,
        LeaseState::Finished(job) => panic!("finished: {job:?}"),
    }
}

/// Claims the job and dies over its first batch.
async fn die(weir: &Weir) -> Job {
    let job = weir.claim().await;
    open(weir, &job, Duration::ZERO).await;
    job
}

/// Works as a worker does that dies whenever it meets `poison`. Returns the
/// last state of the job it saw, or `None` when nothing is due.
async fn live_and_die(weir: &Weir, poison: &str) -> Option<Job> {
    let job = weir.claim_many(1, LEASE).await.pop()?;
    let mut suspects = open(weir, &job, LEASE).await.suspects;
    loop {
        let texts = weir.texts(&job).await;
        let size = match suspects {
            0 => BATCH_SIZE,
            suspects => BATCH_SIZE.min(suspected_batch(suspects)),
        };
        let batch = &texts[..texts.len().min(size as usize)];
        if batch.iter().any(|chunk| chunk.text == poison) {
            weir.store
                .renew(lease_of(&job), Duration::ZERO)
                .await
                .unwrap();
            return Some(job);
        }
        let progress = weir.upsert(outcome(&job, batch)).await.unwrap();
        suspects = progress.suspects;
        if progress.finished {
            return Some(job);
        }
    }
}

#[tokio::test]
async fn a_batch_that_kills_its_worker_is_handed_out_by_halves() {
    let weir = Weir::new().await;
    weir.put("api", &many(20)).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let job = die(&weir).await;
        assert_eq!(rescue(&weir).await.retried, 1);
        seen.push((
            weir.job(job.id).await.suspects,
            weir.job(job.id).await.attempt,
        ));
    }
    assert_eq!(seen, [(8, 1), (4, 2), (2, 3), (1, 4)]);
    weir.check().await;
}

#[tokio::test]
async fn what_is_persisted_is_cleared_and_what_was_said_of_it_with_it() {
    let weir = Weir::new().await;
    weir.put("api", &many(20)).await;
    die(&weir).await;
    rescue(&weir).await;
    let job = weir.claim().await;
    assert_eq!(open(&weir, &job, LEASE).await.suspects, 8);
    let texts = weir.texts(&job).await;
    let progress = weir.upsert(outcome(&job, &texts[..3])).await.unwrap();
    assert_eq!(progress.suspects, 5);
    // Persisting the same again clears nobody.
    let progress = weir.upsert(outcome(&job, &texts[..3])).await.unwrap();
    assert_eq!(progress.suspects, 5);
    let progress = weir.upsert(outcome(&job, &texts[3..12])).await.unwrap();
    assert_eq!(progress.suspects, 0);
    assert_eq!(weir.job(job.id).await.attempt, 0);
    weir.check().await;
}

#[tokio::test]
async fn law_8_the_text_that_kills_workers_is_rejected_alone_and_the_rest_succeeds() {
    let weir = Weir::new().await;
    weir.put("api", &many(20)).await;
    let mut killed = 0;
    let mut last = None;
    while let Some(job) = live_and_die(&weir, "text 13").await {
        let rescued = rescue(&weir).await;
        killed += rescued.retried + rescued.rejected;
        last = Some(job.id);
        weir.check().await;
        assert!(killed < 20, "the search does not end");
    }
    assert_eq!(weir.counts("api").await, counts([20, 20, 0, 19, 1]));
    let reason: String =
        sqlx::query_scalar("SELECT reason FROM weir.rejections WHERE item_id = 'i0013'")
            .fetch_one(weir.pool())
            .await
            .unwrap();
    assert!(
        reason.contains("worker died") && reason.contains("this text alone"),
        "{reason}"
    );
    let job = weir.job(last.unwrap()).await;
    assert_eq!((job.state, job.chunks_rejected), (JobState::Succeeded, 1));
}

#[tokio::test]
async fn a_job_whose_last_text_is_rejected_so_succeeds_and_its_last_worker_is_told() {
    let weir = Weir::new().await;
    weir.put("api", &[item("a", &["poison"])]).await;
    let mut last = None;
    for attempt in 1..=5 {
        let job = die(&weir).await;
        let rescued = rescue(&weir).await;
        assert_eq!(rescued.rejected, usize::from(attempt == 5), "{attempt}");
        last = Some(job);
    }
    let last = last.unwrap();
    let job = weir.job(last.id).await;
    assert_eq!(
        (job.state, job.epoch),
        (JobState::Succeeded, last.epoch + 1)
    );
    assert!(job.last_error.is_some());
    match weir.store.renew(lease_of(&last), LEASE).await {
        Err(StoreError::LeaseLost { reason, .. }) => assert_eq!(reason, RevokeReason::LeaseLost),
        other => panic!("{other:?}"),
    }
    assert_eq!(weir.counts("api").await, counts([1, 1, 0, 0, 1]));
    weir.check().await;
}

#[tokio::test]
async fn a_worker_that_dies_after_progress_is_not_charged_but_the_search_goes_on() {
    let weir = Weir::new().await;
    weir.put("api", &many(20)).await;
    die(&weir).await;
    rescue(&weir).await;
    let job = weir.claim().await;
    open(&weir, &job, LEASE).await;
    let texts = weir.texts(&job).await;
    weir.store
        .upsert(&outcome(&job, &texts[..4]), Duration::ZERO)
        .await
        .unwrap();
    rescue(&weir).await;
    let queued = weir.job(job.id).await;
    assert_eq!((queued.suspects, queued.attempt), (2, 0));
}
