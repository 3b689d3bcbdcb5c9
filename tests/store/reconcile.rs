//! What the reconciler queues: what failed jobs left, when their time has come,
//! and whatever a source lacks although nobody is to see to it.

use std::time::Duration;

use weir_coordinator::{
    job::state::{JobState, RevokeReason, Trigger},
    maintenance::reconciler::{Reconciled, Reconciler},
    store::{
        Scope, StoreError,
        reconcile::{Findings, Unparked},
        rows::Job,
    },
};
use weir_telemetry::Tracer;
use weir_tests::PATIENCE;

use crate::fixture::{LEASE, Weir, counts, item, key, lease_of, many, outcome, write};

/// One step of a reconciler that checks every source at each.
async fn tick(weir: &Weir) -> Reconciled {
    tick_every(weir, Duration::ZERO).await
}

async fn tick_every(weir: &Weir, interval: Duration) -> Reconciled {
    let reconciler = Reconciler {
        store: weir.store.clone(),
        interval,
        max_chunks_per_job: 1_000,
        tracer: Tracer::OFF,
    };
    reconciler.tick().await.unwrap()
}

/// Lets the time of failed jobs come.
const LATER: &str =
    "UPDATE weir.jobs SET run_at = finished_at WHERE state = 'failed' AND NOT settled";

async fn unsettled(weir: &Weir) -> Vec<Job> {
    weir.store.source(&key("api")).await.unwrap().jobs
}

/// The minutes for which the one unsettled job is parked, and its parkings.
async fn parked(weir: &Weir) -> (i64, i64) {
    let row: (i64, i64) = sqlx::query_as(
        "SELECT round(extract(epoch FROM run_at - finished_at) / 60)::bigint, parkings::bigint
         FROM weir.jobs WHERE NOT settled AND state = 'failed'",
    )
    .fetch_one(weir.pool())
    .await
    .unwrap();
    row
}

async fn fail_next(weir: &Weir) {
    let job = weir.claim().await;
    weir.fail_for_good(&job).await;
}

#[tokio::test]
async fn a_failed_job_is_parked_longer_each_time_until_a_retry() {
    let weir = Weir::new().await;
    let content = many(3);
    weir.put("api", &content).await;
    fail_next(&weir).await;
    for (parkings, minutes) in [30, 60, 120, 240, 360, 360].into_iter().enumerate() {
        assert_eq!(parked(&weir).await, (minutes, parkings as i64));
        assert_eq!(
            tick(&weir).await.unparked,
            Unparked::default(),
            "not before its time"
        );
        weir.meddle(LATER).await;
        let unparked = tick(&weir).await.unparked;
        assert_eq!((unparked.settled, unparked.queued), (1, 1));
        let [job] = unsettled(&weir).await.try_into().unwrap();
        assert_eq!(
            (job.trigger, job.state),
            (Trigger::Reconcile, JobState::Queued)
        );
        assert_eq!(job.chunks_total, 3);
        weir.check().await;
        fail_next(&weir).await;
    }
    let before = unsettled(&weir).await;
    weir.put("api", &content).await;
    assert_eq!(
        unsettled(&weir).await,
        before,
        "a write touches what it changes"
    );
    let failed = unsettled(&weir).await.remove(0);
    weir.retry(failed.id, false).await.unwrap();
    fail_next(&weir).await;
    assert_eq!(parked(&weir).await, (30, 0), "a retry unparks");
    weir.check().await;
}

#[tokio::test]
async fn what_is_queued_again_is_the_failed_jobs_own() {
    let weir = Weir::new().await;
    let mut write = write("api");
    write.max_chunks_per_job = 2;
    write.priority = 4;
    write.traceparent = Some("the writer's".to_owned());
    weir.store.put_source(&write, &many(6)).await.unwrap();
    let [first, second, third] = weir.claim_many(3, LEASE).await.try_into().unwrap();
    let texts = weir.texts(&first).await;
    weir.upsert(outcome(&first, &texts[..1])).await.unwrap();
    weir.fail_for_good(&first).await;
    weir.fail_for_good(&third).await;
    weir.meddle(LATER).await;
    assert_eq!(tick(&weir).await.unparked.queued, 2);
    let [of_third, of_first, still] = unsettled(&weir).await.try_into().unwrap();
    assert_eq!(still, second, "what runs is not disturbed");
    assert_eq!((of_first.chunks_total, of_third.chunks_total), (1, 2));
    assert_eq!(of_third.priority, 4);
    assert_eq!(of_third.traceparent.as_deref(), Some("the writer's"));
    weir.check().await;
    weir.embed(&second).await;
    assert_eq!(weir.embed_all().await.len(), 3);
    assert_eq!(unsettled(&weir).await, []);
    weir.check().await;
}

#[tokio::test]
async fn a_failed_job_that_left_nothing_is_only_settled() {
    let weir = Weir::new().await;
    weir.put("api", &many(2)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let mut all = outcome(&job, &texts);
    all.complete = false;
    weir.upsert(all).await.unwrap();
    weir.fail_for_good(&job).await;
    weir.meddle(LATER).await;
    let unparked = tick(&weir).await.unparked;
    assert_eq!((unparked.settled, unparked.queued), (1, 0));
    assert_eq!(unsettled(&weir).await, []);
    weir.check().await;
}

#[tokio::test]
async fn a_failed_job_whose_source_is_gone_is_settled() {
    let weir = Weir::new().await;
    weir.put("api", &many(2)).await;
    fail_next(&weir).await;
    weir.meddle(LATER).await;
    weir.meddle("DELETE FROM weir.sources; DELETE FROM weir.items; DELETE FROM weir.chunks")
        .await;
    let unparked = tick(&weir).await.unparked;
    assert_eq!((unparked.settled, unparked.queued), (1, 0));
    assert_eq!(tick(&weir).await, Reconciled::default());
    weir.check().await;
}

#[tokio::test]
async fn a_later_success_settles_earlier_failures() {
    for way in ["put", "retry", "reconcile"] {
        let weir = Weir::new().await;
        let mut small = write("api");
        small.max_chunks_per_job = 1;
        weir.store.put_source(&small, &many(3)).await.unwrap();
        for _ in 0..3 {
            fail_next(&weir).await;
        }
        match way {
            "put" => {
                let all_new: Vec<_> = many(3)
                    .iter()
                    .map(|it| item(&it.item_id, &["new"]))
                    .collect();
                weir.put("api", &all_new).await;
            }
            "retry" => {
                for job in unsettled(&weir).await {
                    weir.retry(job.id, false).await.unwrap();
                }
            }
            _ => {
                weir.meddle(LATER).await;
                tick(&weir).await;
            }
        }
        weir.check().await;
        weir.embed_all().await;
        assert_eq!(unsettled(&weir).await, [], "{way}");
        assert_eq!(weir.counts("api").await.pending, 0, "{way}");
        weir.meddle(LATER).await;
        assert_eq!(tick(&weir).await.unparked, Unparked::default(), "{way}");
        weir.check().await;
    }
}

#[tokio::test]
async fn what_a_client_cancelled_stays_cancelled() {
    let weir = Weir::new().await;
    let mut write = write("api");
    write.max_chunks_per_job = 2;
    weir.store.put_source(&write, &many(6)).await.unwrap();
    let [_, second, _] = weir.claim_many(3, LEASE).await.try_into().unwrap();
    weir.store.cancel_job(&Scope::All, second.id).await.unwrap();
    assert_eq!(tick(&weir).await.repaired, 0);
    // Also when there is something to do all around it.
    weir.meddle("UPDATE weir.sources SET model = 'other'").await;
    assert_eq!(tick(&weir).await.repaired, 1);
    let mut left = unsettled(&weir).await;
    let cancelled = left.pop().unwrap();
    assert_eq!(
        (cancelled.id, cancelled.state),
        (second.id, JobState::Cancelled)
    );
    assert_eq!(left.len(), 2, "one on each side: {left:?}");
    weir.check().await;
}

#[tokio::test]
async fn lost_vectors_are_made_again_and_no_others() {
    let weir = Weir::new().await;
    let content = many(5);
    weir.put("api", &content).await;
    weir.put("other", &content).await;
    weir.embed_all().await;
    assert_eq!(tick(&weir).await.repaired, 0, "all is well");
    weir.meddle(
        "DELETE FROM weir.embeddings WHERE item_id IN ('i0001', 'i0003')
         AND source_id = (SELECT id FROM weir.sources WHERE name = 'api')",
    )
    .await;
    let step = tick(&weir).await;
    assert_eq!((step.checked, step.repaired), (2, 1));
    let [job] = unsettled(&weir).await.try_into().unwrap();
    assert_eq!((job.trigger, job.chunks_total), (Trigger::Reconcile, 2));
    assert_eq!(weir.counts("api").await, counts([5, 5, 2, 3, 0]));
    weir.check().await;
    assert_eq!(tick(&weir).await.repaired, 0, "it is queued already");
    assert_eq!(weir.embed_all().await, ["text 1", "text 3"]);
    weir.check().await;
}

#[tokio::test]
async fn jobs_are_queued_around_those_that_are_there() {
    let weir = Weir::new().await;
    let mut write = write("api");
    write.max_chunks_per_job = 2;
    weir.store.put_source(&write, &many(10)).await.unwrap();
    let mut jobs = weir.claim_many(5, LEASE).await;
    let fourth = jobs.remove(3);
    let second = jobs.remove(1);
    for job in jobs {
        weir.embed(&job).await;
    }
    weir.fail_for_good(&fourth).await;
    weir.meddle("DELETE FROM weir.embeddings").await;
    assert_eq!(tick(&weir).await.repaired, 1);
    let mut ranges: Vec<_> = unsettled(&weir)
        .await
        .into_iter()
        .map(|job| (job.first_item_id, job.last_item_id, job.trigger))
        .collect();
    ranges.sort_by(|a, b| a.0.cmp(&b.0));
    let range = |first: &str, last: &str, trigger| (first.to_owned(), last.to_owned(), trigger);
    assert_eq!(
        ranges,
        [
            range("i0000", "i0001", Trigger::Reconcile),
            range("i0002", "i0003", Trigger::Write),
            range("i0004", "i0005", Trigger::Reconcile),
            range("i0006", "i0007", Trigger::Write),
            range("i0008", "i0009", Trigger::Reconcile),
        ]
    );
    weir.store.renew(lease_of(&second), LEASE).await.unwrap();
    weir.check().await;
}

#[tokio::test]
async fn another_model_on_the_source_replaces_the_work_under_way() {
    let weir = Weir::new().await;
    let mut write = write("api");
    write.max_chunks_per_job = 2;
    write.priority = 2;
    weir.store.put_source(&write, &many(4)).await.unwrap();
    let [done, running] = weir.claim_many(2, LEASE).await.try_into().unwrap();
    let texts = weir.texts(&done).await;
    let mut part = outcome(&done, &texts[..1]);
    part.rejected = vec![crate::fixture::rejected(&texts[1], "no")];
    weir.upsert(part).await.unwrap();
    weir.meddle("UPDATE weir.sources SET model = 'other'").await;
    assert_eq!(tick(&weir).await.repaired, 1);
    let lost = weir.store.renew(lease_of(&running), LEASE).await;
    let Err(StoreError::LeaseLost { reason, .. }) = lost else {
        panic!("{lost:?}");
    };
    assert_eq!(reason, RevokeReason::Superseded);
    let old = weir.job(running.id).await;
    assert!(old.last_error.unwrap().contains("\"other\""));
    assert_eq!(weir.counts("api").await, counts([4, 4, 4, 0, 0]));
    weir.check().await;
    assert!(weir.claim_many(1, LEASE).await.is_empty());
    for chunks in [2, 2] {
        let new = weir.claim_of("other").await;
        assert_eq!((new.chunks_total, new.priority), (chunks, 2));
        assert!(weir.embed(&new).await.finished);
    }
    let models: Vec<_> = weir.vectors("api").await.into_values().collect();
    assert!(models.iter().all(|(model, _)| model == "other"));
    assert_eq!(models.len(), 4);
    weir.check().await;
}

#[tokio::test]
async fn results_of_no_text_go_and_counts_are_corrected() {
    let weir = Weir::new().await;
    weir.put("api", &many(4)).await;
    weir.put("well", &many(1)).await;
    weir.embed_all().await;
    // A vector without its chunk, one of another text, a rejection of either kind, and wrong counts.
    weir.meddle(
        "UPDATE weir.embeddings SET text_hash = sha256('another') WHERE item_id = 'i0001';
         DELETE FROM weir.chunks WHERE item_id = 'i0002';
         DELETE FROM weir.embeddings WHERE item_id = 'i0003';
         INSERT INTO weir.rejections (source_id, item_id, chunk_index, model, text_hash, reason)
         SELECT source_id, item_id, chunk_index + n, 'fake', sha256('another'), 'no'
         FROM weir.chunks, (VALUES (0), (7)) AS n(n) WHERE item_id = 'i0003';",
    )
    .await;
    let source_id = weir.store.source(&key("api")).await.unwrap().source.id;
    let found = weir.findings(source_id).await;
    let all = Findings {
        uncovered: true,
        stale: true,
        other_model: false,
        miscounted: true,
    };
    assert_eq!(found, all);
    let repaired = weir.put_right(source_id).await.unwrap();
    assert_eq!(repaired.stale_deleted, 4);
    assert!(repaired.recounted);
    assert_eq!((repaired.superseded, repaired.queued), (0, 1));
    assert_eq!(weir.counts("api").await, counts([4, 3, 2, 1, 0]));
    weir.check().await;
    assert_eq!(weir.embed_all().await, ["text 1", "text 3"]);
    assert_eq!(weir.counts("well").await, counts([1, 1, 0, 1, 0]));
    weir.check().await;
}

#[tokio::test]
async fn each_source_is_checked_once_in_an_interval_by_one_replica() {
    let weir = Weir::new().await;
    for name in ["a", "b", "c"] {
        weir.put(name, &many(1)).await;
    }
    assert_eq!(tick_every(&weir, LEASE).await.checked, 0, "all are new");
    weir.meddle("UPDATE weir.sources SET checked_at = now() - interval '1 hour' WHERE name <> 'c'")
        .await;
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.sources WHERE name = 'a' FOR UPDATE")
        .execute(&mut *other)
        .await
        .unwrap();
    let step = tokio::time::timeout(PATIENCE, tick_every(&weir, LEASE)).await;
    assert_eq!(step.expect("it does not wait").checked, 1);
    other.rollback().await.unwrap();
    assert_eq!(tick_every(&weir, LEASE).await.checked, 1);
    assert_eq!(tick_every(&weir, LEASE).await.checked, 0);
}

#[tokio::test]
async fn a_source_that_goes_between_check_and_repair_is_no_fault() {
    let weir = Weir::new().await;
    let source_id = weir.put("api", &many(1)).await.source.id;
    let checked = weir.begin_check(source_id).await;
    weir.store.delete_source(&key("api"), None).await.unwrap();
    assert!(!weir.findings(source_id).await.any());
    assert_eq!(weir.store.repair(&checked, 10, None).await.unwrap(), None);
    weir.meddle("UPDATE weir.checks SET due_at = now()").await;
    tick(&weir).await;
    assert_eq!(weir.number("SELECT count(*) FROM weir.checks").await, 0);
}
