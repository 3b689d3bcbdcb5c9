//! Large ranges that are embedded anew, in steps.

use weir_coordinator::{
    job::{
        badge::BadgeState,
        state::{JobState, RevokeReason},
    },
    maintenance::steps,
    store::{Scope, Store, StoreError, rows::Job, sources::SourceFilter},
};
use weir_tests::PATIENCE;

use crate::fixture::{LEASE, MODEL, Weir, counts, item, key, many, outcome, wish, write};

/// Rows of one step, and so twice the chunks.
const STEP: i64 = 8;

/// The next step of a source's range, as a coordinator takes it that has just
/// started. Returns whether there was one.
async fn step(weir: &Weir) -> bool {
    let store = Store::new(weir.pool().clone(), PATIENCE).with_steps_of(STEP / 2);
    let Some(range) = store.forced_ranges(9).await.unwrap().pop() else {
        return false;
    };
    let before = weir.number("SELECT count(*) FROM weir.embeddings").await;
    store.force_on(range).await.unwrap().unwrap();
    let after = weir.number("SELECT count(*) FROM weir.embeddings").await;
    assert!(
        before - after <= STEP / 2,
        "from {before} vectors to {after}"
    );
    weir.check().await;
    true
}

/// A source of so many items, all embedded by one job, which is returned.
async fn embedded(weir: &Weir, name: &str, count: usize) -> Job {
    weir.put(name, &many(count)).await;
    let job = weir.claim().await;
    weir.embed(&job).await;
    job
}

async fn badge(weir: &Weir, name: &str) -> BadgeState {
    let source = weir.store.source(&key(name)).await.unwrap().source;
    source.standing(true).state()
}

fn texts(numbers: impl Iterator<Item = usize>) -> Vec<String> {
    let mut texts: Vec<String> = numbers.map(|n| format!("text {n}")).collect();
    texts.sort();
    texts
}

#[tokio::test]
async fn a_large_range_is_embedded_anew_in_steps_that_a_crash_does_not_end() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    let job = embedded(&weir, "api", 18).await;
    let begun = weir.retry_whole(job.id, true).await.unwrap();
    assert!(begun.goes_on);
    let [first] = begun.jobs.try_into().unwrap();
    assert_eq!((first.chunks_total, &*first.last_item_id), (4, "i0003"));
    assert_eq!(weir.counts("api").await, counts([18, 18, 4, 14, 0]));
    weir.check().await;

    // Nothing of it is open, and it is not done.
    assert_eq!(weir.embed_all().await, texts(0..4));
    let state = weir.store.source(&key("api")).await.unwrap();
    assert!(state.source.embedding_anew && state.jobs.is_empty());
    assert_eq!(badge(&weir, "api").await, BadgeState::Queued);
    let open = SourceFilter {
        unsettled_only: true,
        ..SourceFilter::default()
    };
    let open = weir.store.sources(&Scope::All, &open, None, 9).await;
    assert_eq!(open.unwrap().rows.len(), 1);
    assert_eq!(weir.store.ranges_under_way().await.unwrap(), 1);

    let mut steps = 0;
    let mut embedded = texts(0..4);
    while step(&weir).await {
        steps += 1;
        embedded.extend(weir.embed_all().await);
    }
    assert_eq!(steps, 4);
    embedded.sort();
    assert_eq!(embedded, texts(0..18), "each is embedded once");
    assert_eq!(weir.counts("api").await, counts([18, 18, 0, 18, 0]));
    assert_eq!(badge(&weir, "api").await, BadgeState::Indexed);
    assert_eq!(weir.store.ranges_under_way().await.unwrap(), 0);
    weir.check().await;
}

#[tokio::test]
async fn a_range_of_one_step_is_queued_at_once() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    let job = embedded(&weir, "api", 4).await;
    let begun = weir.retry_whole(job.id, true).await.unwrap();
    assert!(!begun.goes_on);
    assert_eq!(begun.jobs.len(), 1);
    assert!(weir.store.forced_ranges(9).await.unwrap().is_empty());
    // So it is again, as often as it is asked for.
    assert_eq!(weir.embed_all().await, texts(0..4));
    assert_eq!(weir.retry(job.id, true).await.unwrap().len(), 1);
    assert_eq!(weir.embed_all().await, texts(0..4));
    weir.check().await;
}

#[tokio::test]
async fn what_is_under_way_is_not_begun_again() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    let mut job = embedded(&weir, "api", 40).await;
    // Jobs of other ranges, from another time.
    let mut others = Vec::new();
    for (first, last) in [("i0000", "i0029"), ("i0010", "i0019"), ("i0015", "i0035")] {
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO weir.jobs (source_id, revision, chunks_total, chunks_done, trigger, namespace, source, model,
                                    first_item_id, last_item_id, state, settled, finished_at)
             VALUES ($1, 1, 1, 1, 'write', 'shop', 'api', 'fake', $2, $3, 'succeeded', true, now()) RETURNING id",
        )
        .bind(job.source_id)
        .bind(first)
        .bind(last)
        .fetch_one(weir.pool())
        .await
        .unwrap();
        others.push(id);
    }
    // First a part in the midst, then what lies about it.
    assert!(weir.retry_whole(others[1], true).await.unwrap().goes_on);
    let mut embedded = weir.embed_all().await;
    for id in [others[1], others[0], others[2], others[0], job.id] {
        assert!(weir.retry_whole(id, true).await.unwrap().goes_on);
        weir.check().await;
        embedded.extend(weir.embed_all().await);
    }
    // Another retry of a job of the range tells who is at it.
    job = weir
        .retry_whole(others[0], true)
        .await
        .unwrap()
        .jobs
        .pop()
        .unwrap_or(job);
    assert_eq!(weir.job(job.id).await.source, "api");
    while step(&weir).await {
        embedded.extend(weir.embed_all().await);
    }
    embedded.sort();
    assert_eq!(embedded, texts(0..40), "each is embedded once");
    weir.check().await;
}

/// A worker has a job of what is still to come, and one of what was queued anew:
/// a step ends what meets its range, and no result of before comes after it.
#[tokio::test]
async fn what_is_on_its_way_does_not_come_after_its_step() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    let job = embedded(&weir, "api", 16).await;
    let mut small = write("api");
    small.max_chunks_per_job = 3;
    let changed: Vec<_> = (6..16)
        .map(|n| item(&format!("i{n:04}"), &[&format!("newer {n}")]))
        .collect();
    weir.store
        .patch_source(&small, &changed, &[])
        .await
        .unwrap();
    let held = weir.claim_many(9, LEASE).await;
    assert_eq!(held.len(), 4);
    let mut late = Vec::new();
    for job in &held {
        late.push(outcome(job, &weir.texts(job).await));
    }
    assert!(weir.retry_whole(job.id, true).await.unwrap().goes_on);
    weir.check().await;
    while step(&weir).await {
        let forgotten = weir.number(
            "SELECT count(*) FROM weir.jobs WHERE state = 'running' AND first_item_id < (
                 SELECT min(next_item_id) FROM weir.forced_ranges)",
        );
        assert_eq!(
            forgotten.await,
            0,
            "they end before their vectors are forgotten"
        );
    }
    for (job, late) in held.iter().zip(late) {
        let error = weir.upsert(late).await.unwrap_err();
        assert!(
            matches!(error, StoreError::LeaseLost { reason, .. } if reason == RevokeReason::Superseded),
            "{error}"
        );
        assert_eq!(weir.job(job.id).await.state, JobState::Cancelled);
    }
    assert_eq!(weir.embed_all().await.len(), 16);
    weir.check().await;
}

/// No step divides a job that it would have to plan again each time, unless it is
/// larger than a step.
#[tokio::test]
async fn a_step_ends_where_an_open_job_begins() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    let job = embedded(&weir, "api", 16).await;
    let mut small = write("api");
    small.max_chunks_per_job = 3;
    let changed: Vec<_> = (2..16)
        .map(|n| item(&format!("i{n:04}"), &[&format!("newer {n}")]))
        .collect();
    weir.store
        .patch_source(&small, &changed, &[])
        .await
        .unwrap();
    // Two and two items with the first of them, and then a job in each step.
    weir.retry_whole(job.id, true).await.unwrap();
    while step(&weir).await {}
    let cancelled = weir.number("SELECT count(*) FROM weir.jobs WHERE state = 'cancelled'");
    assert_eq!(cancelled.await, 5, "only those of the write");
    assert_eq!(weir.embed_all().await.len(), 16);
    weir.check().await;
}

#[tokio::test]
async fn a_range_is_left_where_its_source_goes_or_gets_another_model() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    let gone = embedded(&weir, "gone", 20).await;
    assert!(weir.retry_whole(gone.id, true).await.unwrap().goes_on);
    weir.store.delete_source(&key("gone"), None).await.unwrap();
    assert!(weir.store.forced_ranges(9).await.unwrap().is_empty());
    weir.check().await;

    let moved = embedded(&weir, "moved", 20).await;
    assert!(weir.retry_whole(moved.id, true).await.unwrap().goes_on);
    let mut other = write("moved");
    other.model = Some("other".to_owned());
    let at_once = weir.store.clone().with_steps_of(100);
    at_once.put_source(&other, &many(20)).await.unwrap();
    let job = weir.claim_of("other").await;
    weir.embed(&job).await;
    while step(&weir).await {}
    assert_eq!(weir.counts("moved").await, counts([20, 20, 0, 20, 0]));
    assert!(weir.claim_if("other", LEASE).await.is_none());
    assert!(weir.claim_if(MODEL, LEASE).await.is_none());
    weir.check().await;
}

/// A round takes one step of each source, and passes by one that is locked; writes
/// go on in between.
#[tokio::test]
async fn sources_with_ranges_under_way_take_turns() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    let mut jobs = Vec::new();
    for name in ["a", "b", "c"] {
        jobs.push(embedded(&weir, name, 20).await);
    }
    for job in jobs {
        assert!(weir.retry_whole(job.id, true).await.unwrap().goes_on);
    }
    let mut lock = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.sources WHERE name = 'a' FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let round = steps::tick(&weir.store).await.unwrap();
    assert_eq!((round.done, round.ranges), (2, 3));
    for (name, pending) in [("a", 4), ("b", 8), ("c", 8)] {
        let found = weir.counts(name).await;
        assert_eq!(found, counts([20, 20, pending, 20 - pending, 0]), "{name}");
    }
    lock.rollback().await.unwrap();
    weir.store
        .patch_source(&write("a"), &[item("i0009", &["new"])], &[])
        .await
        .unwrap();
    while steps::tick(&weir.store).await.unwrap().done > 0 {}
    assert_eq!(weir.embed_all().await.len(), 60);
    weir.check().await;
}

/// Law 14: a step reads about what it does, however large the range is.
#[tokio::test]
async fn a_step_of_a_range_reads_what_it_queues() {
    let read = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables
                WHERE schemaname = 'weir' AND relname IN ('items', 'chunks', 'embeddings', 'rejections')";
    let weir = Weir::new().await;
    weir.put("api", &many(6_000)).await;
    weir.meddle(
        "INSERT INTO weir.embeddings (source_id, item_id, chunk_index, model, text_hash, embedding)
         SELECT c.source_id, c.item_id, c.chunk_index, s.model, c.text_hash, '[1]'
         FROM weir.chunks c JOIN weir.sources s ON s.id = c.source_id;
         DELETE FROM weir.jobs WHERE id > 1;
         UPDATE weir.jobs SET last_item_id = 'z', state = 'succeeded', settled = true, finished_at = now(),
                              chunks_done = chunks_total",
    )
    .await;
    weir.meddle("VACUUM ANALYZE").await;
    let counted = weir.counted_with("SELECT").await;
    let store = counted.store.clone().with_steps_of(500);
    let mut costs = Vec::new();
    let mut before = counted.told(read).await;
    assert!(store.retry_job(&wish(1, true)).await.unwrap().goes_on);
    costs.push(counted.told(read).await - before);
    while let Some(range) = store.forced_ranges(1).await.unwrap().first() {
        before = counted.told(read).await;
        store.force_on(*range).await.unwrap().unwrap();
        costs.push(counted.told(read).await - before);
    }
    assert_eq!(costs.len(), 12);
    // Its end is looked for, its vectors go, and what is pending is planned.
    assert!(costs.iter().all(|rows| *rows <= 2_500), "{costs:?}");
}
