//! Law 3: what a worker may not do when its lease is not the present one.

use weir_coordinator::{
    job::{
        retry::RetryPolicy,
        state::{JobState, RevokeReason},
    },
    store::{
        StoreError,
        lease::LeaseState,
        rows::{Job, LeaseKey},
    },
};

use crate::fixture::{ALL, LEASE, Weir, items, key, lease_of, many, outcome, rejected};

/// What every way to use a lease answers, by its name.
async fn every_use(
    weir: &Weir,
    lease: LeaseKey,
    job: &Job,
) -> Vec<(&'static str, Result<(), StoreError>)> {
    let pending = weir
        .store
        .pending(lease_of(job), ALL)
        .await
        .unwrap_or_default();
    let texts = weir.store.texts(job.source_id, &pending).await.unwrap();
    let mut vectors = outcome(job, &texts);
    vectors.lease = lease;
    let mut rejections = vectors.clone();
    rejections.embedded = Vec::new();
    rejections.rejected = texts.iter().map(|chunk| rejected(chunk, "no")).collect();
    let mut nothing = vectors.clone();
    nothing.embedded = Vec::new();
    let policy = RetryPolicy::default();
    vec![
        ("pending", weir.store.pending(lease, ALL).await.map(|_| ())),
        ("renew", weir.store.renew(lease, LEASE).await.map(|_| ())),
        ("lease", weir.store.lease(lease).await.map(|_| ())),
        ("upsert vectors", weir.upsert(vectors).await.map(|_| ())),
        (
            "upsert rejections",
            weir.upsert(rejections).await.map(|_| ()),
        ),
        ("upsert nothing", weir.upsert(nothing).await.map(|_| ())),
        ("complete", weir.store.complete(lease).await.map(|_| ())),
        (
            "fail",
            weir.store.fail(lease, "no", &policy, 0.5).await.map(|_| ()),
        ),
        ("release", weir.store.release(lease, "no").await.map(|_| ())),
    ]
}

fn assert_lost(answers: Vec<(&'static str, Result<(), StoreError>)>, wanted: RevokeReason) {
    for (name, answer) in answers {
        match answer {
            Err(StoreError::LeaseLost { reason, .. }) => assert_eq!(reason, wanted, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn law_3_another_epoch_changes_nothing() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let first = weir.claim().await;
    weir.store
        .release(lease_of(&first), "draining")
        .await
        .unwrap();
    let job = weir.claim().await;
    for epoch in [first.epoch, job.epoch + 1, 0, -1] {
        let lease = LeaseKey {
            job_id: job.id,
            epoch,
        };
        assert_lost(every_use(&weir, lease, &job).await, RevokeReason::LeaseLost);
        assert_eq!(weir.job(job.id).await, job, "epoch {epoch}");
    }
    assert!(weir.vectors("api").await.is_empty());
    assert_eq!(weir.number("SELECT count(*) FROM weir.rejections").await, 0);
    assert!(
        weir.embed(&job).await.finished,
        "the holder goes on undisturbed"
    );
    weir.check().await;
}

#[tokio::test]
async fn law_3_the_right_epoch_of_a_job_that_is_not_running_changes_nothing() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let job = weir.claim().await;
    weir.store
        .release(lease_of(&job), "draining")
        .await
        .unwrap();
    let queued = weir.job(job.id).await;
    assert_lost(
        every_use(&weir, lease_of(&job), &job).await,
        RevokeReason::LeaseLost,
    );
    assert_eq!(weir.job(job.id).await, queued);
    let job = weir.claim().await;
    weir.fail_for_good(&job).await;
    let failed = weir.job(job.id).await;
    assert_lost(
        every_use(&weir, lease_of(&job), &job).await,
        RevokeReason::LeaseLost,
    );
    assert_eq!(weir.job(job.id).await, failed);
    assert!(weir.vectors("api").await.is_empty());
}

#[tokio::test]
async fn a_lost_lease_says_why() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let superseded = weir.claim().await;
    weir.put("api", &many(2)).await;
    assert_lost(
        every_use(&weir, lease_of(&superseded), &superseded).await,
        RevokeReason::Superseded,
    );
    let deleted = weir.claim().await;
    weir.store.delete_source(&key("api")).await.unwrap();
    assert_lost(
        every_use(&weir, lease_of(&deleted), &deleted).await,
        RevokeReason::SourceDeleted,
    );
    let error = weir
        .store
        .renew(lease_of(&deleted), LEASE)
        .await
        .unwrap_err();
    let id = deleted.id;
    assert_eq!(
        error.to_string(),
        format!("lease lost: job {id} is cancelled at epoch 2, not running at epoch 1")
    );
}

#[tokio::test]
async fn a_job_that_never_was_is_not_found() {
    let weir = Weir::new().await;
    weir.put("api", &many(1)).await;
    let job = weir.claim().await;
    let lease = LeaseKey {
        job_id: job.id + 1_000,
        epoch: 1,
    };
    for (name, answer) in every_use(&weir, lease, &job).await {
        assert!(
            matches!(answer, Err(StoreError::NotFound(_))),
            "{name}: {answer:?}"
        );
    }
    assert_eq!(weir.job(job.id).await, job);
}

#[tokio::test]
async fn what_is_sent_again_to_a_job_that_succeeded_is_harmless() {
    let weir = Weir::new().await;
    weir.put("api", &items(&[("a", "apples"), ("b", "pears")]))
        .await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let first = weir.upsert(outcome(&job, &texts)).await.unwrap();
    let done = weir.job(job.id).await;
    assert_eq!(done.state, JobState::Succeeded);
    let stored = weir
        .number(
            "SELECT sum(extract(epoch FROM embedded_at) * 1000000)::bigint FROM weir.embeddings",
        )
        .await;

    assert_eq!(weir.upsert(outcome(&job, &texts)).await.unwrap(), first);
    let finished = LeaseState::Finished(Box::new(done.clone()));
    assert_eq!(
        weir.store.renew(lease_of(&job), LEASE).await.unwrap(),
        finished
    );
    assert_eq!(weir.store.lease(lease_of(&job)).await.unwrap(), finished);
    assert_eq!(weir.store.complete(lease_of(&job)).await.unwrap(), done);
    assert!(
        weir.store
            .pending(lease_of(&job), ALL)
            .await
            .unwrap()
            .is_empty()
    );
    for error in [
        weir.store
            .fail(lease_of(&job), "no", &RetryPolicy::default(), 0.5)
            .await
            .map(|_| ())
            .unwrap_err(),
        weir.store
            .release(lease_of(&job), "no")
            .await
            .map(|_| ())
            .unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Precondition(_)), "{error:?}");
        assert_eq!(
            error.to_string(),
            format!("job {} has already succeeded", job.id)
        );
    }
    assert_eq!(weir.job(job.id).await, done);
    let now = weir
        .number(
            "SELECT sum(extract(epoch FROM embedded_at) * 1000000)::bigint FROM weir.embeddings",
        )
        .await;
    assert_eq!(now, stored, "nothing was written again");
    weir.check().await;
}
