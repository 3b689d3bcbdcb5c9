//! Jobs that clients cancel and have run again.

use std::collections::BTreeMap;

use weir_coordinator::{
    job::state::{JobState, RevokeReason, Trigger},
    store::{Scope, StoreError, rows::Job},
};
use weir_tests::PATIENCE;

use crate::fixture::{LEASE, Weir, counts, item, items, key, lease_of, many, outcome, write};

/// A source of one job whose first chunk is embedded and whose second is not.
async fn half_done(weir: &Weir) -> Job {
    let content = items(&[("a", "aa"), ("b", "bbb")]);
    weir.put("api", &content).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    job
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(answer: Result<T, StoreError>, what: &str) {
    match answer {
        Err(StoreError::Precondition(why)) => assert!(why.contains(what), "{why}"),
        other => panic!("{other:?}"),
    }
}

async fn unsettled(weir: &Weir) -> Vec<(i64, JobState)> {
    let state = weir.store.source(&key("api")).await.unwrap();
    let jobs = state.jobs.into_iter();
    jobs.map(|job| (job.id, job.state)).collect()
}

#[tokio::test]
async fn a_cancelled_job_is_its_workers_no_more() {
    let weir = Weir::new().await;
    let job = half_done(&weir).await;
    let texts = weir.texts(&job).await;
    let cancelled = weir.store.cancel_job(&Scope::All, job.id).await.unwrap();
    assert_eq!(
        (cancelled.state, cancelled.epoch),
        (JobState::Cancelled, job.epoch + 1)
    );
    assert_eq!(
        cancelled.last_error.as_deref(),
        Some("cancelled by a client")
    );
    assert!(cancelled.finished_at.is_some() && cancelled.worker_id.is_none());
    for lost in [
        weir.upsert(outcome(&job, &texts)).await.unwrap_err(),
        weir.store.renew(lease_of(&job), LEASE).await.unwrap_err(),
        weir.store
            .release(lease_of(&job), "late")
            .await
            .unwrap_err(),
    ] {
        let StoreError::LeaseLost { reason, .. } = lost else {
            panic!("{lost:?}");
        };
        assert_eq!(reason, RevokeReason::Cancelled);
    }
    // What is there stays, what is not stays pending, and nobody gets it.
    assert_eq!(weir.counts("api").await, counts([2, 2, 1, 1, 0]));
    assert!(weir.claim_many(10, LEASE).await.is_empty());
    assert_eq!(unsettled(&weir).await, [(job.id, JobState::Cancelled)]);
    weir.check().await;
}

#[tokio::test]
async fn the_same_content_takes_up_what_was_cancelled_and_leaves_the_rest_running() {
    let weir = Weir::new().await;
    let mut write = write("api");
    write.max_chunks_per_job = 2;
    let content = many(6);
    weir.store.put_source(&write, &content).await.unwrap();
    let [first, second, third] = weir.claim_many(3, LEASE).await.try_into().unwrap();
    for job in [&first, &third] {
        weir.store.cancel_job(&Scope::All, job.id).await.unwrap();
    }
    write.max_chunks_per_job = 1_000;
    let written = weir.store.put_source(&write, &content).await.unwrap();
    assert_eq!(written.change.jobs_superseded, 0);
    // Two jobs, for the one that runs lies between them.
    let jobs: Vec<_> = written.jobs.iter().rev().collect();
    let ranges = |job: &Job| (job.first_item_id.clone(), job.last_item_id.clone());
    assert_eq!(jobs.len(), 2);
    assert_eq!(ranges(jobs[0]), ranges(&first));
    assert_eq!(ranges(jobs[1]), ranges(&third));
    assert_eq!(weir.job(second.id).await, second);
    weir.check().await;
    assert!(weir.embed(&second).await.finished);
    assert_eq!(weir.embed_all().await.len(), 4);
    assert_eq!(weir.counts("api").await, counts([6, 6, 0, 6, 0]));
    assert_eq!(unsettled(&weir).await, []);
    weir.check().await;
}

#[tokio::test]
async fn only_open_jobs_are_cancelled_and_twice_is_once() {
    let weir = Weir::new().await;
    weir.put("api", &many(1)).await;
    let job = weir.claim().await;
    let cancelled = weir.store.cancel_job(&Scope::All, job.id).await.unwrap();
    assert_eq!(
        weir.store.cancel_job(&Scope::All, job.id).await.unwrap(),
        cancelled
    );

    weir.put("api", &many(1)).await;
    let done = weir.claim().await;
    weir.embed(&done).await;
    assert_refused(
        weir.store.cancel_job(&Scope::All, done.id).await,
        "succeeded already",
    );
    weir.put("api", &many(2)).await;
    let failed = weir.claim().await;
    weir.fail_for_good(&failed).await;
    assert_refused(
        weir.store.cancel_job(&Scope::All, failed.id).await,
        "failed already",
    );
    assert!(matches!(
        weir.store.cancel_job(&Scope::All, 4_711).await,
        Err(StoreError::NotFound(_))
    ));
    weir.check().await;
}

#[tokio::test]
async fn a_cancel_waits_for_no_write_of_the_source() {
    let weir = Weir::new().await;
    weir.put("api", &many(1)).await;
    let job = weir.claim().await;
    let mut write = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.sources FOR UPDATE")
        .execute(&mut *write)
        .await
        .unwrap();
    let cancelled =
        tokio::time::timeout(PATIENCE, weir.store.cancel_job(&Scope::All, job.id)).await;
    cancelled.expect("it does not wait").unwrap();
}

#[tokio::test]
async fn what_failed_is_queued_again_and_only_that() {
    let weir = Weir::new().await;
    let content = items(&[("a", "aa"), ("b", "bbb")]);
    let mut write = write("api");
    write.priority = 3;
    write.traceparent = Some("the writer's".to_owned());
    weir.store.put_source(&write, &content).await.unwrap();
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    weir.fail_for_good(&job).await;
    weir.meddle("UPDATE weir.jobs SET parkings = 4, trigger = 'reconcile'")
        .await;

    let [again] = weir.retry(job.id, false).await.unwrap().try_into().unwrap();
    assert_eq!(
        (again.trigger, again.state, again.priority, again.attempt),
        (Trigger::Retry, JobState::Queued, 3, 0)
    );
    assert_eq!(again.traceparent.as_deref(), Some("the caller's"));
    assert_eq!((again.chunks_total, again.first_item_id.as_str()), (1, "b"));
    assert_eq!(
        weir.number("SELECT max(parkings)::bigint FROM weir.jobs WHERE NOT settled")
            .await,
        0
    );
    assert_eq!(unsettled(&weir).await, [(again.id, JobState::Queued)]);
    weir.check().await;
    // Whoever lost the answer and asks again does no harm.
    assert_refused(weir.retry(job.id, false).await, "taken over");
    assert_eq!(unsettled(&weir).await, [(again.id, JobState::Queued)]);
    assert_eq!(weir.embed_all().await, ["bbb"]);
    assert_eq!(unsettled(&weir).await, []);
    weir.check().await;
}

#[tokio::test]
async fn what_was_cancelled_is_queued_again() {
    let weir = Weir::new().await;
    let job = half_done(&weir).await;
    weir.store.cancel_job(&Scope::All, job.id).await.unwrap();
    let [again] = weir.retry(job.id, false).await.unwrap().try_into().unwrap();
    assert_eq!(again.chunks_total, 1);
    weir.check().await;
    assert_eq!(weir.embed_all().await, ["bbb"]);
    weir.check().await;
}

#[tokio::test]
async fn a_retry_of_what_has_nothing_pending_only_settles_it() {
    let weir = Weir::new().await;
    weir.put("api", &many(2)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let mut all = outcome(&job, &texts);
    all.complete = false;
    weir.upsert(all).await.unwrap();
    weir.store.cancel_job(&Scope::All, job.id).await.unwrap();
    assert_eq!(weir.retry(job.id, false).await.unwrap(), []);
    assert_eq!(unsettled(&weir).await, []);
    weir.check().await;
}

#[tokio::test]
async fn a_job_that_waits_runs_at_once() {
    let weir = Weir::new().await;
    weir.put("api", &many(2)).await;
    let job = weir.claim().await;
    let policy = weir_coordinator::job::retry::RetryPolicy::default();
    weir.store
        .fail(lease_of(&job), "it broke", &policy, 1.0)
        .await
        .unwrap();
    assert!(weir.claim_many(1, LEASE).await.is_empty());
    for _ in 0..2 {
        let [again] = weir.retry(job.id, false).await.unwrap().try_into().unwrap();
        assert_eq!((again.id, again.attempt), (job.id, 0));
        assert_eq!(again.last_error.as_deref(), Some("it broke"));
    }
    weir.check().await;
    assert_eq!(weir.claim().await.id, job.id);
}

#[tokio::test]
async fn a_job_that_is_ready_keeps_its_place() {
    let weir = Weir::new().await;
    let first = weir.put("first", &many(1)).await.jobs.remove(0);
    weir.put("second", &many(1)).await;
    let first_id = first.id;
    assert_eq!(weir.retry(first_id, false).await.unwrap(), [first]);
    assert_eq!(weir.claim().await.id, first_id);
}

#[tokio::test]
async fn a_retry_that_cannot_be_says_why() {
    let weir = Weir::new().await;
    weir.put("api", &many(1)).await;
    let job = weir.claim().await;
    assert_refused(weir.retry(job.id, false).await, "is running");
    weir.embed(&job).await;
    assert_refused(
        weir.retry(job.id, false).await,
        "nothing of it is pending or rejected",
    );
    assert_refused(weir.retry(job.id, false).await, "force");
    assert!(matches!(
        weir.retry(4_711, true).await,
        Err(StoreError::NotFound(_))
    ));
    weir.store.delete_source(&key("api"), None).await.unwrap();
    for force in [false, true] {
        assert_refused(weir.retry(job.id, force).await, "was deleted");
    }
    // Another source of that name is another source.
    weir.put("api", &many(1)).await;
    assert_refused(weir.retry(job.id, true).await, "was deleted");
    weir.check().await;
}

#[tokio::test]
async fn force_embeds_the_range_anew_and_nothing_else() {
    let weir = Weir::new().await;
    let mut small = write("api");
    small.max_chunks_per_job = 2;
    weir.store.put_source(&small, &many(4)).await.unwrap();
    let first = weir.claim().await;
    let texts = weir.texts(&first).await;
    let mut part = outcome(&first, &texts[..1]);
    part.rejected = vec![crate::fixture::rejected(&texts[1], "no")];
    assert!(weir.upsert(part).await.unwrap().finished);
    let second = weir.claim().await;
    weir.embed(&second).await;
    let kept: BTreeMap<_, _> = weir.vectors("api").await.split_off(&("i0002".into(), 0));

    let [anew] = weir
        .retry(first.id, true)
        .await
        .unwrap()
        .try_into()
        .unwrap();
    assert_eq!((anew.trigger, anew.chunks_total), (Trigger::Retry, 2));
    assert_eq!(weir.vectors("api").await, kept, "the old vectors are gone");
    assert_eq!(weir.counts("api").await, counts([4, 4, 2, 2, 0]));
    weir.check().await;
    assert_eq!(weir.embed_all().await, ["text 0", "text 1"]);
    assert_eq!(weir.counts("api").await, counts([4, 4, 0, 4, 0]));
    weir.check().await;
}

#[tokio::test]
async fn force_takes_its_range_from_whoever_works_on_it() {
    let weir = Weir::new().await;
    let mut small = write("api");
    small.max_chunks_per_job = 2;
    weir.store.put_source(&small, &many(4)).await.unwrap();
    let [done, other] = weir.claim_many(2, LEASE).await.try_into().unwrap();
    weir.embed(&done).await;
    // A text of its range is with another job, and of the other range none.
    let mut content = many(4);
    content[0] = item("i0000", &["new"]);
    weir.store.put_source(&small, &content).await.unwrap();
    let running = weir.claim().await;
    let texts = weir.texts(&running).await;

    let [anew] = weir.retry(done.id, true).await.unwrap().try_into().unwrap();
    assert_eq!(anew.chunks_total, 2);
    let late = weir.upsert(outcome(&running, &texts)).await.unwrap_err();
    assert!(
        matches!(late, StoreError::LeaseLost { reason, .. } if reason == RevokeReason::Superseded)
    );
    let left = [(anew.id, JobState::Queued), (other.id, JobState::Running)];
    assert_eq!(unsettled(&weir).await, left);
    weir.check().await;
    // Asked again, while the first answer is on its way, it begins again.
    let worker = weir.claim().await;
    let texts = weir.texts(&worker).await;
    weir.upsert(outcome(&worker, &texts[..1])).await.unwrap();
    let [again] = weir.retry(done.id, true).await.unwrap().try_into().unwrap();
    let left = [(again.id, JobState::Queued), (other.id, JobState::Running)];
    assert_eq!(unsettled(&weir).await, left);
    weir.check().await;
    assert_eq!(weir.embed_all().await.len(), 2);
    assert!(weir.embed(&other).await.finished);
    // A job that failed over a part of the range is taken up with all that it left.
    for place in [1, 3] {
        content[place] = item(&format!("i000{place}"), &["other"]);
    }
    weir.store.put_source(&small, &content).await.unwrap();
    let failed = weir.claim().await;
    assert_eq!(
        (&*failed.first_item_id, &*failed.last_item_id),
        ("i0001", "i0003")
    );
    weir.fail_for_good(&failed).await;
    let jobs = weir.retry(done.id, true).await.unwrap();
    assert_eq!(jobs.iter().map(|job| job.chunks_total).sum::<i32>(), 3);
    assert_eq!(weir.embed_all().await.len(), 3);
    weir.check().await;
}

#[tokio::test]
async fn force_on_a_job_of_old_content_embeds_what_is_there_now() {
    let weir = Weir::new().await;
    weir.put("api", &items(&[("a", "old"), ("c", "gone")]))
        .await;
    let job = weir.claim().await;
    weir.embed(&job).await;
    weir.put(
        "api",
        &[
            item("a", &["new"]),
            item("b", &["more"]),
            item("z", &["far"]),
        ],
    )
    .await;
    weir.embed_all().await;
    weir.retry(job.id, true).await.unwrap();
    assert_eq!(weir.embed_all().await, ["more", "new"]);
    weir.check().await;
}
