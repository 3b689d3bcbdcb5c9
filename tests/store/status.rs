//! What operators see: badges, tries, failures by cause, chunks, the last hour.

use std::time::Duration;

use weir_coordinator::{
    job::{
        badge::{BadgeState, Verdict},
        retry::RetryPolicy,
        state::{AttemptOutcome, JobState, Trigger},
    },
    store::{
        Scope, StoreError,
        activity::Persisted,
        attempts::Attempt,
        batches::Outcome,
        chunks::ChunkState,
        failures::{Failure, FailurePosition},
        overview::NamespaceFigures,
        rescue::Patience,
        rows::{ChunkText, Job},
        status::{JobFilter, Paging},
    },
};

use crate::fixture::{LEASE, Weir, key, lease_of, many, outcome, rejected, write};

impl Weir {
    async fn badge(&self, name: &str) -> (BadgeState, String) {
        let source = self.store.source(&key(name)).await.unwrap().source;
        (source.standing(true).state(), source.standing(true).text())
    }

    async fn fail(&self, job: &Job, reason: &str) {
        self.store
            .fail(lease_of(job), reason, &RetryPolicy::default(), 0.0)
            .await
            .unwrap();
    }

    /// Rejects a chunk.
    async fn reject(&self, job: &Job, chunk: &ChunkText, reason: &str) {
        let outcome = Outcome {
            rejected: vec![rejected(chunk, reason)],
            ..outcome(job, &[])
        };
        self.upsert(outcome).await.unwrap();
    }

    /// Takes jobs back from workers that were not heard of.
    async fn rescue_unheard(&self) {
        let patience = Patience {
            orphan_grace: Duration::ZERO,
            progress_deadline: LEASE,
        };
        let policy = RetryPolicy::default();
        let rescued = self.store.rescue(10, &patience, &policy, || 0.0);
        assert_eq!(rescued.await.unwrap().retried, 1);
    }

    /// The whole, and its verdict.
    async fn whole(&self) -> (NamespaceFigures, Verdict) {
        let served = ["fake".to_owned()];
        let whole = self.overview(&Scope::All, &served).await.remove(0);
        assert_eq!(whole.namespace, "");
        let verdict = whole.tally().verdict();
        (whole, verdict)
    }

    async fn failures(
        &self,
        dismissed: bool,
        after: Option<FailurePosition>,
        limit: i64,
    ) -> Vec<Failure> {
        let failures = self.store.failures(&Scope::All, dismissed, after, limit);
        failures.await.unwrap()
    }

    async fn tries(&self, job: &Job, limit: i64) -> Vec<Attempt> {
        let tries = self.store.attempts(&Scope::All, job.id, limit);
        tries.await.unwrap()
    }

    async fn affected(&self) -> Vec<(String, i64, i64)> {
        let failures = self.failures(false, None, 10).await;
        let told = failures
            .into_iter()
            .map(|it| (it.cause, it.occurrences, it.jobs_affected));
        told.collect()
    }
}

#[tokio::test]
async fn a_badge_goes_with_its_source() {
    let weir = Weir::new().await;
    weir.put("shop", &[]).await;
    assert_eq!(
        weir.badge("shop").await,
        (BadgeState::Empty, "empty".into())
    );
    assert_eq!(weir.whole().await.1, Verdict::Healthy);
    weir.put("shop", &many(4)).await;
    assert_eq!(weir.badge("shop").await.1, "queued");
    assert_eq!(weir.whole().await.1, Verdict::Indexing);

    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    assert_eq!(weir.badge("shop").await.1, "indexing 0/4");
    weir.fail(&job, "no 7 of 9").await;
    assert_eq!(weir.badge("shop").await.1, "retrying (1 try)");
    assert_eq!(weir.whole().await.1, Verdict::Degraded);
    let job = weir.claim().await;
    assert_eq!(
        weir.badge("shop").await.1,
        "retrying (1 try)",
        "nothing moved forward yet"
    );
    weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    assert_eq!(weir.badge("shop").await.1, "indexing 1/4");
    assert_eq!(
        weir.whole().await.1,
        Verdict::Indexing,
        "what moved forward is history"
    );

    weir.store
        .release(lease_of(&job), "draining")
        .await
        .unwrap();
    assert_eq!(
        weir.whole().await.1,
        Verdict::Indexing,
        "a drain is no failure"
    );
    let job = weir.claim().await;
    let down = weir
        .store
        .release_embedder_down(lease_of(&job), "503")
        .await;
    down.unwrap();
    assert_eq!(weir.badge("shop").await.1, "queued");
    let (whole, verdict) = weir.whole().await;
    assert_eq!((verdict, whole.jobs_embedder_down), (Verdict::Degraded, 1));

    let job = weir.claim().await;
    weir.fail_for_good(&job).await;
    assert_eq!(
        weir.badge("shop").await,
        (BadgeState::Failed, "failed".into())
    );
    weir.retry(job.id, false).await.unwrap();
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    weir.reject(&job, &texts[0], "too odd").await;
    weir.store.cancel_job(&Scope::All, job.id).await.unwrap();
    assert_eq!(weir.badge("shop").await.1, "1/4 indexed, 1 rejected");
    let (whole, verdict) = weir.whole().await;
    assert_eq!((verdict, whole.jobs_cancelled), (Verdict::Degraded, 1));
    weir.retry(job.id, false).await.unwrap();
    weir.embed_all().await;
    // The retry took back what had been rejected too.
    assert_eq!(weir.badge("shop").await.1, "4/4 indexed");
    assert_eq!(weir.whole().await.1, Verdict::Healthy);
    weir.check().await;
}

#[tokio::test]
async fn every_try_of_a_job_is_told() {
    let weir = Weir::new().await;
    weir.put("shop", &many(3)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    weir.fail(&job, "broken").await;
    let second = weir.claim().await;
    weir.store
        .release(lease_of(&second), "draining")
        .await
        .unwrap();
    let third = weir.claim().await;
    weir.rescue_unheard().await;
    let fourth = weir.claim().await;
    let told = |tries: Vec<Attempt>| {
        let told = tries.into_iter().map(|it| {
            (
                it.epoch,
                it.outcome,
                it.chunks_done,
                it.charged,
                it.error,
                it.ended_at.is_some(),
            )
        });
        told.collect::<Vec<_>>()
    };
    let silent = "the worker that claimed the job was never heard of again";
    let ended = [
        (
            third.epoch,
            AttemptOutcome::Expired,
            0,
            false,
            Some(silent.to_owned()),
            true,
        ),
        (
            second.epoch,
            AttemptOutcome::Released,
            0,
            false,
            Some("draining".to_owned()),
            true,
        ),
        (
            job.epoch,
            AttemptOutcome::Failed,
            1,
            true,
            Some("broken".to_owned()),
            true,
        ),
    ];
    let tries = weir.tries(&job, 10).await;
    assert!(
        tries
            .iter()
            .all(|it| it.worker_id == fourth.worker_id.clone().unwrap())
    );
    let tries = told(tries);
    assert_eq!(
        tries[0],
        (fourth.epoch, AttemptOutcome::Running, 0, false, None, false)
    );
    assert_eq!(tries[1..], ended);
    weir.upsert(outcome(&fourth, &texts[1..])).await.unwrap();
    let tries = told(weir.tries(&job, 10).await);
    assert_eq!(
        tries[0],
        (
            fourth.epoch,
            AttemptOutcome::Succeeded,
            2,
            false,
            None,
            true
        )
    );
    assert_eq!(weir.tries(&job, 2).await.len(), 2);

    weir.put("other", &many(1)).await;
    let job = weir.claim().await;
    weir.store.cancel_job(&Scope::All, job.id).await.unwrap();
    let tries = weir.tries(&job, 10).await;
    assert_eq!(
        (tries.len(), tries[0].outcome),
        (1, AttemptOutcome::Cancelled)
    );
    weir.check().await;
}

#[tokio::test]
async fn failures_are_counted_by_cause_and_dismissed_until_they_are_seen_again() {
    let weir = Weir::new().await;
    let mut small = write("shop");
    small.max_chunks_per_job = 1;
    weir.store.put_source(&small, &many(3)).await.unwrap();
    let jobs = weir.claim_many(3, LEASE).await;
    weir.fail(&jobs[0], "batch 7 is \"odd\"").await;
    weir.fail(&jobs[1], "batch 12 is \"even\"").await;
    weir.fail(&jobs[2], "the embedder answered 500 Internal Server Error")
        .await;
    let batch = "batch … is …".to_owned();
    let five_hundred = "the embedder answered 500 Internal Server Error".to_owned();
    assert_eq!(
        weir.affected().await,
        [(five_hundred.clone(), 1, 1), (batch.clone(), 2, 2)]
    );
    let failures = weir.failures(false, None, 10).await;
    let of_batches = &failures[1];
    assert_eq!(of_batches.last_error, "batch 12 is \"even\"");
    assert_eq!(
        (of_batches.last_job_id, of_batches.last_source.as_str()),
        (jobs[1].id, "shop")
    );
    assert_eq!(of_batches.last_success_at, None);
    let first = weir.failures(false, None, 1).await.remove(0);
    let after = Some((first.last_seen_at, first.id));
    let rest = weir.failures(false, after, 10).await;
    assert_eq!((rest.len(), rest[0].id), (1, of_batches.id));

    let filter = JobFilter {
        failure_id: Some(of_batches.id),
        ..JobFilter::default()
    };
    let befallen = weir
        .store
        .jobs(&Scope::All, &filter, None, 10)
        .await
        .unwrap()
        .rows;
    let ids: Vec<i64> = befallen.iter().map(|job| job.id).collect();
    assert_eq!(ids, [jobs[1].id, jobs[0].id]);

    let dismissed = weir
        .store
        .dismiss_failure(&Scope::All, of_batches.id)
        .await
        .unwrap();
    assert!(dismissed.dismissed_at.is_some());
    assert_eq!(weir.affected().await, [(five_hundred.clone(), 1, 1)]);
    assert_eq!(weir.failures(true, None, 10).await.len(), 2);
    let again = weir.claim_many(3, LEASE).await;
    let job = again.into_iter().find(|job| job.id == jobs[0].id).unwrap();
    weir.fail(&job, "batch 8 is \"odd\"").await;
    assert_eq!(weir.affected().await, [(batch, 3, 2), (five_hundred, 1, 1)]);
    assert!(matches!(
        weir.store.dismiss_failure(&Scope::All, 1_000).await,
        Err(StoreError::NotFound(_))
    ));

    let all = JobFilter::default();
    let all = weir.store.jobs(&Scope::All, &all, None, 10).await.unwrap();
    for job in all.rows {
        if job.state == JobState::Running {
            weir.embed(&job).await;
        }
    }
    weir.embed_all().await;
    let failures = weir.failures(false, None, 10).await;
    assert!(
        failures
            .iter()
            .all(|it| it.jobs_affected == 0 && it.last_success_at.is_some())
    );
    weir.check().await;
}

#[tokio::test]
async fn jobs_are_filtered_and_paged_both_ways() {
    let weir = Weir::new().await;
    let mut small = write("shop-a");
    small.max_chunks_per_job = 1;
    weir.store.put_source(&small, &many(4)).await.unwrap();
    small.key.name = "shop-b".to_owned();
    weir.store.put_source(&small, &many(2)).await.unwrap();
    let failed = weir.claim().await;
    weir.fail_for_good(&failed).await;
    let ids = async |filter: &JobFilter, paging: Option<Paging<i64>>, limit| {
        let page = weir
            .store
            .jobs(&Scope::All, filter, paging.as_ref(), limit)
            .await
            .unwrap();
        let ids: Vec<i64> = page.rows.iter().map(|job| job.id).collect();
        (ids, page.next, page.previous)
    };
    let all = JobFilter::default();
    let (whole, next, previous) = ids(&all, None, 10).await;
    assert_eq!((whole.len(), next, previous), (6, None, None));
    let (page, next, previous) = ids(&all, None, 2).await;
    assert_eq!((&page[..], previous), (&whole[..2], None));
    let (page, next, previous) = ids(&all, next.map(Paging::After), 2).await;
    assert_eq!((&page[..], next), (&whole[2..4], Some(whole[3])));
    let (page, ..) = ids(&all, next.map(Paging::After), 3).await;
    assert_eq!(page, whole[4..]);
    let (page, next, previous) = ids(&all, previous.map(Paging::Before), 10).await;
    assert_eq!(
        (&page[..], next, previous),
        (&whole[..2], Some(whole[1]), None)
    );
    let (page, ..) = ids(&all, Some(Paging::Before(whole[5])), 2).await;
    assert_eq!(page, whole[3..5], "those just before");

    for (filter, expected) in [
        (
            JobFilter {
                states: vec![JobState::Failed],
                ..JobFilter::default()
            },
            vec![failed.id],
        ),
        (
            JobFilter {
                source_prefix: Some("shop-b".to_owned()),
                ..JobFilter::default()
            },
            whole[..2].to_vec(),
        ),
        (
            JobFilter {
                source: Some("shop-a".to_owned()),
                states: vec![JobState::Queued],
                ..JobFilter::default()
            },
            whole[2..]
                .iter()
                .copied()
                .filter(|id| *id != failed.id)
                .collect(),
        ),
        (
            JobFilter {
                triggers: vec![Trigger::Retry, Trigger::Reconcile],
                ..JobFilter::default()
            },
            Vec::new(),
        ),
        (
            JobFilter {
                model: Some("another".to_owned()),
                ..JobFilter::default()
            },
            Vec::new(),
        ),
    ] {
        assert_eq!(ids(&filter, None, 10).await.0, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn a_page_looks_at_so_many_jobs_and_leads_on_both_ways() {
    let weir = Weir::new().await;
    weir.put("old", &many(1)).await;
    let old = weir
        .store
        .jobs(&Scope::All, &JobFilter::default(), None, 1)
        .await;
    let old = old.unwrap().rows[0].id;
    sqlx::query(
        "INSERT INTO weir.jobs (source_id, epoch, revision, finished_at, chunks_total, chunks_done, settled, state,
                                trigger, namespace, source, model, first_item_id, last_item_id)
         SELECT 0, 1, 1, now(), 1, 1, true, 'succeeded', 'write', 'shop', 'filler', 'fake', 'a', 'z'
         FROM generate_series(1, 12000)",
    )
    .execute(weir.pool())
    .await
    .unwrap();
    let filter = JobFilter {
        source_prefix: Some("old".to_owned()),
        ..JobFilter::default()
    };
    let shop = Scope::One("shop".to_owned());
    let ids = async |paging: Option<Paging<i64>>| {
        let page = weir
            .store
            .jobs(&shop, &filter, paging.as_ref(), 10)
            .await
            .unwrap();
        let ids: Vec<i64> = page.rows.iter().map(|job| job.id).collect();
        (ids, page.next, page.previous)
    };
    let mut pages = vec![ids(None).await];
    while let Some(next) = pages[pages.len() - 1].1 {
        pages.push(ids(Some(Paging::After(next))).await);
    }
    let found: Vec<Vec<i64>> = pages.iter().map(|page| page.0.clone()).collect();
    assert_eq!(found, [vec![], vec![], vec![old]]);
    assert_eq!(pages[0].2, None, "the first page");
    // Back from the last page, and on again from the first.
    let mut page = pages.remove(2);
    let mut back = 0;
    while let Some(previous) = page.2 {
        page = ids(Some(Paging::Before(previous))).await;
        back += 1;
        assert!(page.0.is_empty() && page.1.is_some(), "{page:?}");
    }
    assert_eq!(back, 3, "12,000 jobs, 5,000 at a time");
    let waiting = JobFilter {
        states: vec![JobState::Queued],
        ..JobFilter::default()
    };
    let page = weir
        .store
        .jobs(&Scope::All, &waiting, None, 10)
        .await
        .unwrap();
    assert_eq!((page.rows.len(), page.next), (1, None), "found at once");
}

#[tokio::test]
async fn chunks_are_listed_by_what_became_of_them() {
    let weir = Weir::new().await;
    weir.put("shop", &many(5)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let mut short = outcome(&job, &texts[..2]);
    short.embedded[0].truncated_to = Some(1);
    weir.upsert(short).await.unwrap();
    weir.reject(&job, &texts[2], "too odd").await;
    let listed = async |state, after: Option<(&str, i32)>, limit| {
        let chunks = weir
            .store
            .chunks(&key("shop"), state, after, limit)
            .await
            .unwrap();
        let told = chunks.into_iter();
        told.map(|it| (it.item_id, it.truncated_to, it.reason, it.at.is_some()))
            .collect::<Vec<_>>()
    };
    let id = |n: usize| texts[n].item_id.clone();
    assert_eq!(
        listed(ChunkState::Truncated, None, 9).await,
        [(id(0), Some(1), None, true)]
    );
    assert_eq!(
        listed(ChunkState::Embedded, None, 9).await,
        [(id(1), None, None, true)]
    );
    let why = Some("too odd".to_owned());
    assert_eq!(
        listed(ChunkState::Rejected, None, 9).await,
        [(id(2), None, why, true)]
    );
    let pending = listed(ChunkState::Pending, None, 9).await;
    assert_eq!(
        pending,
        [(id(3), None, None, false), (id(4), None, None, false)]
    );
    assert_eq!(listed(ChunkState::Pending, None, 1).await, pending[..1]);
    assert_eq!(
        listed(ChunkState::Pending, Some((&id(3), 0)), 9).await,
        pending[1..]
    );
    let missing = weir
        .store
        .chunks(&key("nowhere"), ChunkState::Pending, None, 9)
        .await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))));
}

#[tokio::test]
async fn replicas_add_up_what_they_persisted() {
    let weir = Weir::new().await;
    weir.put("shop", &many(5)).await;
    let queue = weir.queue().await;
    let sample = async |replica, embedded, rejected| {
        let persisted = Persisted { embedded, rejected };
        let sampled = weir.store.sample(replica, persisted, &queue).await;
        sampled.unwrap();
    };
    sample("one", 3, 1).await;
    sample("two", 4, 0).await;
    sample("one", 2, 0).await;
    let points = weir.store.activity(Duration::from_mins(10)).await.unwrap();
    let sum = |of: fn(&weir_coordinator::store::activity::ActivityPoint) -> i64| {
        points.iter().map(of).sum::<i64>()
    };
    // The clock may have passed from one interval to the next.
    assert_eq!(
        (sum(|it| it.chunks_embedded), sum(|it| it.chunks_rejected)),
        (9, 1)
    );
    assert!(
        points
            .iter()
            .all(|it| it.chunks_pending == 5 && it.oldest_ready_age_seconds >= 0.0)
    );
    sqlx::query("UPDATE weir.samples SET at = at - interval '70 minutes'")
        .execute(weir.pool())
        .await
        .unwrap();
    sample("two", 1, 0).await;
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM weir.samples")
        .fetch_one(weir.pool())
        .await
        .unwrap();
    assert_eq!(kept, 1, "what is too old goes");
}
