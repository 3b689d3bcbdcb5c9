//! Law 3: what a worker may not do when its lease is not the present one, or not
//! its own.

use std::{slice, sync::Arc};

use weir_coordinator::{
    job::{
        retry::RetryPolicy,
        state::{JobState, RevokeReason},
    },
    store::{
        StoreError,
        batches::{Outcome, Written},
        fence::{Fence, Holder},
        lease::LeaseState,
        rows::{ChunkText, Job, LeaseKey},
    },
};

use crate::fixture::{
    ALL, LEASE, MODEL, Weir, items, key, lease_of, many, opening, outcome, rejected, write,
};

/// Every way to use a lease.
const USES: [&str; 13] = [
    "pending",
    "renew",
    "renew with others",
    "open",
    "open with others",
    "lease",
    "upsert vectors",
    "upsert rejections",
    "upsert nothing",
    "upsert with others",
    "complete",
    "fail",
    "release",
];

/// What one of [`USES`] answers. `texts` are those of the job.
async fn use_of(
    weir: &Weir,
    name: &str,
    fence: &Fence,
    (job, texts): (&Job, &[ChunkText]),
) -> Result<(), StoreError> {
    let store = &weir.store;
    let vectors = Outcome {
        fence: fence.clone(),
        ..outcome(job, texts)
    };
    let nothing = Outcome {
        embedded: Vec::new(),
        ..vectors.clone()
    };
    let opening = opening(fence, 2);
    match name {
        "pending" => store.pending(fence.lease, ALL).await.map(drop),
        "renew" => store.renew(fence, LEASE).await.map(drop),
        "renew with others" => match &store.renew_group(slice::from_ref(fence), LEASE).await?[..] {
            [] => store.renew(fence, LEASE).await.map(drop),
            _ => Ok(()),
        },
        "open" => store.open(&opening, LEASE).await.map(drop),
        // As the opener does, and the writer: what a group leaves out is tried alone.
        "open with others" => {
            match &store.open_group(slice::from_ref(&opening), LEASE).await?[..] {
                [] => store.open(&opening, LEASE).await.map(drop),
                _ => Ok(()),
            }
        }
        "lease" => store.lease(fence).await.map(drop),
        "upsert vectors" => weir.upsert(vectors).await.map(drop),
        "upsert rejections" => {
            let rejected = texts.iter().map(|chunk| rejected(chunk, "no")).collect();
            let outcome = Outcome {
                rejected,
                ..nothing
            };
            weir.upsert(outcome).await.map(drop)
        }
        "upsert nothing" => weir.upsert(nothing).await.map(drop),
        "upsert with others" => {
            let group = slice::from_ref(&vectors);
            match store.upsert_group(group, LEASE).await?.remove(0) {
                Written::Settled(written) => written.map(drop),
                Written::Busy { .. } => weir.upsert(vectors).await.map(drop),
            }
        }
        "complete" => store.complete(fence).await.map(drop),
        "fail" => {
            let policy = RetryPolicy::default();
            store.fail(fence, "no", &policy, 0.5).await.map(drop)
        }
        "release" => store.release(fence, "no").await.map(drop),
        other => unreachable!("{other}"),
    }
}

/// What every way to use a lease answers, by its name.
async fn every_use(
    weir: &Weir,
    lease: LeaseKey,
    job: &Job,
) -> Vec<(&'static str, Result<(), StoreError>)> {
    let pending = weir.store.pending(lease_of(job), ALL).await;
    let pending = pending.unwrap_or_default();
    let texts = weir.store.texts(job.source_id, &pending).await.unwrap();
    let mut answers = Vec::new();
    for name in USES {
        let answer = use_of(weir, name, &lease.into(), (job, &texts)).await;
        answers.push((name, answer));
    }
    answers
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
    let other_model = |model: &str| weir_coordinator::store::content::SourceWrite {
        model: Some(model.to_owned()),
        ..write("api")
    };
    for model in ["other", MODEL] {
        let write = other_model(model);
        weir.store.put_source(&write, &many(2)).await.unwrap();
    }
    assert_lost(
        every_use(&weir, lease_of(&superseded), &superseded).await,
        RevokeReason::Superseded,
    );
    let deleted = weir.claim().await;
    weir.store.delete_source(&key("api"), None).await.unwrap();
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

/// A lease, as the bearer of this token names it.
fn named_by(token: &str, namespaces: Option<&str>, job_id: i64, epoch: i64) -> Fence {
    let holder = Holder {
        name: token.to_owned(),
        namespaces: namespaces.map(|one| vec!["other".to_owned(), one.to_owned()]),
    };
    Fence {
        lease: LeaseKey { job_id, epoch },
        holder: Some(Arc::new(holder)),
    }
}

/// What the store asks of everybody.
fn assert_fenced_off(name: &str, answer: &Result<(), StoreError>) {
    let told = matches!(
        answer,
        Err(StoreError::Denied(_) | StoreError::LeaseLost { .. })
    );
    assert!(told, "{name}: {answer:?}");
}

/// All uses but that which comes after a lease was opened, and asks no more.
fn uses_by_name() -> impl Iterator<Item = &'static str> {
    USES.into_iter().filter(|name| *name != "pending")
}

#[tokio::test]
async fn law_3_another_token_changes_nothing_whichever_epoch_it_names() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let first = weir.claim_as("mine").await;
    let texts = weir.texts(&first).await;
    let mine = |epoch| named_by("mine", Some("shop"), first.id, epoch);
    let release = weir.store.release(&mine(first.epoch), "draining").await;
    release.unwrap();
    // Before the claim, and after it.
    for claimed in [false, true] {
        if claimed {
            weir.claim_as("mine").await;
        }
        let job = weir.job(first.id).await;
        for epoch in first.epoch - 1..=job.epoch + 2 {
            let fence = named_by("theirs", None, job.id, epoch);
            for name in uses_by_name() {
                let answer = use_of(&weir, name, &fence, (&job, &texts)).await;
                assert_fenced_off(name, &answer);
            }
            assert_eq!(weir.job(job.id).await, job, "epoch {epoch}");
        }
        assert!(weir.vectors("api").await.is_empty());
    }
    // Its own token, of which the namespace was taken away: as if there were no such job.
    let job = weir.job(first.id).await;
    let elsewhere = named_by("mine", Some("elsewhere"), job.id, job.epoch);
    for name in uses_by_name() {
        let answer = use_of(&weir, name, &elsewhere, (&job, &texts)).await;
        assert!(
            matches!(answer, Err(StoreError::NotFound(_))),
            "{name}: {answer:?}"
        );
    }
    assert_eq!(weir.job(job.id).await, job);
    // And whose it is goes on undisturbed.
    let own = Outcome {
        fence: mine(job.epoch),
        ..outcome(&job, &texts)
    };
    assert!(weir.upsert(own).await.unwrap().finished);
    let fence = named_by("theirs", None, job.id, job.epoch);
    for name in uses_by_name() {
        let answer = use_of(&weir, name, &fence, (&job, &texts)).await;
        assert!(
            matches!(answer, Err(StoreError::Denied(_))),
            "{name} of a job that has succeeded: {answer:?}"
        );
    }
    weir.check().await;
}
