//! Large sources that are deleted: gone at once, and swept in steps.

use std::time::Duration;

use weir_coordinator::{
    job::{
        badge::Verdict,
        state::{JobState, RevokeReason},
    },
    maintenance::steps,
    store::{
        Scope, Store, StoreError,
        activity::Persisted,
        chunks::ChunkState,
        quota::Quota,
        rows::{Job, SourceKey},
        search::Search,
        sources::{Deleted, SourceFilter},
        status::JobFilter,
    },
};
use weir_tests::{PATIENCE, embedder::expected_vector};

use crate::fixture::{LEASE, MODEL, Weir, counts, key, lease_of, many, outcome, rejected, write};

/// Rows of one step.
const STEP: i64 = 8;

/// Rows of all tables that a source has many of.
const ROWS: &str = "SELECT (SELECT count(*) FROM weir.items) + (SELECT count(*) FROM weir.chunks)
    + (SELECT count(*) FROM weir.embeddings) + (SELECT count(*) FROM weir.rejections)";

/// The same, of sources that are there.
const ROWS_IN_PLACE: &str = "
    SELECT count(*) FROM weir.sources s JOIN (
        SELECT source_id FROM weir.items UNION ALL SELECT source_id FROM weir.chunks
        UNION ALL SELECT source_id FROM weir.embeddings UNION ALL SELECT source_id FROM weir.rejections) r
        ON r.source_id = s.id";

/// A source of many steps in every state: ten chunks are embedded and two
/// rejected, the others pending in a running job, a failed, a cancelled and a
/// queued one. Returns the running one.
async fn put_large(weir: &Weir, name: &str) -> Job {
    let mut small = write(name);
    small.max_chunks_per_job = 10;
    weir.store.put_source(&small, &many(50)).await.unwrap();
    let jobs = weir.claim_many(4, LEASE).await;
    let texts = weir.texts(&jobs[0]).await;
    weir.upsert(outcome(&jobs[0], &texts)).await.unwrap();
    let texts = weir.texts(&jobs[1]).await;
    let mut refused = outcome(&jobs[1], &[]);
    refused.rejected = texts[..2].iter().map(|it| rejected(it, "no")).collect();
    refused.complete = false;
    weir.upsert(refused).await.unwrap();
    weir.fail_for_good(&jobs[2]).await;
    let cancelled = weir.store.cancel_job(&Scope::All, jobs[3].id).await;
    assert_eq!(cancelled.unwrap().state, JobState::Cancelled);
    jobs[1].clone()
}

fn near_everything(source: Option<&str>) -> Search<'_> {
    Search {
        namespace: "shop",
        source,
        model: Some(MODEL),
        default_model: MODEL,
        vector: expected_vector("text 1"),
        limit: 1_000,
    }
}

/// Sweeps until nothing is left, each time as a coordinator that has just
/// started, and returns how many steps it took.
async fn sweep_all(weir: &Weir) -> usize {
    let mut steps = 0;
    loop {
        let before = weir.number(ROWS).await;
        let store = Store::new(weir.pool().clone(), PATIENCE).with_steps_of(STEP / 2);
        let left = store.leftovers(10).await.unwrap();
        let Some(source_id) = left.first() else {
            return steps;
        };
        let swept = store.sweep(*source_id).await.unwrap().unwrap();
        assert!(swept.rows <= STEP, "{swept:?}");
        assert_eq!(before - weir.number(ROWS).await, swept.rows);
        weir.check().await;
        steps += 1;
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "whatever may be asked, in turn")]
async fn nothing_finds_what_is_left_of_a_deleted_source() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    let running = put_large(&weir, "api").await;
    let texts = weir.texts(&running).await;
    let source_id = running.source_id;
    let deleted = weir.store.delete_source(&key("api"), None).await.unwrap();
    let wanted = Deleted {
        source_id,
        items: 50,
        embeddings: 10,
        jobs: 2,
    };
    assert_eq!(deleted, wanted);
    assert!(weir.number(ROWS).await > 100, "the rest goes in steps");
    assert_eq!(weir.number(ROWS_IN_PLACE).await, 0);
    weir.check().await;

    // Whoever asks for the source.
    let store = &weir.store;
    let gone = |error: StoreError| assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    gone(store.source(&key("api")).await.unwrap_err());
    gone(store.source_id(&key("api")).await.unwrap_err());
    gone(store.delete_source(&key("api"), None).await.unwrap_err());
    for state in [
        ChunkState::Pending,
        ChunkState::Embedded,
        ChunkState::Truncated,
        ChunkState::Rejected,
    ] {
        gone(store.chunks(&key("api"), state, None, 9).await.unwrap_err());
    }
    gone(
        store
            .patch_source(&write("api"), &many(1), &[])
            .await
            .unwrap_err(),
    );
    let search = store.search(&near_everything(Some("api"))).await;
    gone(search.unwrap_err());

    // Whoever lists, counts or searches.
    let everything = SourceFilter::default();
    let listed = store.sources(&Scope::All, &everything, None, 9).await;
    assert!(listed.unwrap().rows.is_empty());
    let hits = store.search(&near_everything(None)).await.unwrap();
    assert!(hits.is_empty(), "{hits:?}");
    let served = [MODEL.to_owned()];
    let overview = weir.overview(&Scope::All, &served).await;
    assert_eq!(overview.len(), 1, "no namespace is left");
    let whole = &overview[0];
    assert_eq!(
        (whole.sources, whole.chunks, whole.chunks_pending),
        (0, 0, 0)
    );
    assert_eq!((whole.chunks_rejected, whole.rejected_since), (0, None));
    assert_eq!(whole.tally().verdict(), Verdict::Healthy);
    let queue = weir.queue().await;
    assert!(queue.is_empty(), "{queue:?}");
    assert!(store.unserved_models(&[], 9).await.unwrap().is_empty());
    let failures = store.failures(&Scope::All, true, None, 9).await.unwrap();
    assert_eq!(failures.len(), 1, "that is history");
    assert_eq!(failures[0].jobs_affected, 0);
    let sampled = store.sample("here", Persisted::default(), &queue).await;
    sampled.unwrap();
    let activity = store.activity(Duration::from_mins(1)).await.unwrap();
    assert_eq!(activity[0].chunks_pending, 0);
    let open = JobFilter {
        states: vec![JobState::Queued, JobState::Running],
        ..JobFilter::default()
    };
    let open = store.jobs(&Scope::All, &open, None, 9).await.unwrap();
    assert!(open.rows.is_empty());

    // Workers, and whoever keeps the house.
    assert!(weir.claim_many(9, LEASE).await.is_empty());
    let lease = lease_of(&running);
    for error in [
        weir.upsert(outcome(&running, &texts)).await.unwrap_err(),
        store.renew(lease, LEASE).await.map(|_| ()).unwrap_err(),
        store.pending(lease, 9).await.map(|_| ()).unwrap_err(),
        store.complete(lease).await.map(|_| ()).unwrap_err(),
    ] {
        let StoreError::LeaseLost { reason, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(reason, RevokeReason::SourceDeleted);
    }
    for (job_id, force) in [(running.id, false), (running.id, true)] {
        let error = weir.retry(job_id, force).await.unwrap_err();
        assert!(error.to_string().contains("was deleted"), "{error}");
    }
    weir.meddle("UPDATE weir.jobs SET run_at = now() - interval '1 hour' WHERE state = 'failed'")
        .await;
    assert!(store.parked_sources(9, &[]).await.unwrap().is_empty());
    let checks = store.take_checks(Duration::ZERO, 9).await.unwrap();
    assert!(checks.is_empty());
    assert!(!weir.findings(source_id).await.any());
    store.set_prompts(&[(MODEL, "another: ")]).await.unwrap();
    assert!(store.sources_to_prompt(9).await.unwrap().is_empty());

    // Quotas are free again, and so is the dimension of the model.
    let limited = store.clone().with_quota(Quota {
        max_sources: Some(1),
        max_pending_chunks: Some(3),
    });
    limited.put_source(&write("one"), &many(3)).await.unwrap();
    let other: [(String, u16); 1] = [(MODEL.to_owned(), 2)];
    let told = store.clone().with_dimensions(other.into_iter().collect());
    told.set_dimensions().await.unwrap();
    assert!(
        weir.number(ROWS).await > 100,
        "all of this was asked meanwhile"
    );
}

#[tokio::test]
async fn a_sweep_goes_on_after_a_crash_until_nothing_is_left() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    put_large(&weir, "api").await;
    weir.put("other", &many(9)).await;
    weir.store.delete_source(&key("api"), None).await.unwrap();
    // 50 items, 50 chunks, 10 vectors and 2 rejections; two of the jobs were open, two unsettled.
    let left = weir.number(ROWS).await - 18;
    assert_eq!(left, 112 - (STEP - 4));
    assert_eq!(weir.store.rows_left().await.unwrap(), left);

    // The same name put again is another source; the other one is written meanwhile.
    let mut again = write("api");
    again.expected_revision = Some(0);
    weir.store.put_source(&again, &many(3)).await.unwrap();
    weir.store
        .patch_source(&write("other"), &many(1), &["i0008".to_owned()])
        .await
        .unwrap();
    assert_eq!(
        sweep_all(&weir).await as i64,
        (left + STEP - 1).div_euclid(STEP)
    );
    assert_eq!(weir.number(ROWS).await, weir.number(ROWS_IN_PLACE).await);
    assert_eq!(weir.store.rows_left().await.unwrap(), 0);
    assert_eq!(weir.number("SELECT count(*) FROM weir.leftovers").await, 0);
    weir.embed_all().await;
    assert_eq!(weir.counts("api").await, counts([3, 3, 0, 3, 0]));
    assert_eq!(weir.counts("other").await, counts([8, 8, 0, 8, 0]));
    weir.check().await;
}

/// Each of two large sources goes by a step in each round, although somebody is
/// at another one, and what a step cannot delete does not hold up the others.
#[tokio::test]
async fn sources_that_were_deleted_take_turns() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let written = weir.put(name, &many(20)).await;
        weir.store.delete_source(&key(name), None).await.unwrap();
        ids.push(written.source.id);
    }
    let left = async |source_id: i64| -> i64 {
        sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM weir.chunks WHERE source_id = $1)
                  + (SELECT count(*) FROM weir.items WHERE source_id = $1)",
        )
        .bind(source_id)
        .fetch_one(weir.pool())
        .await
        .unwrap()
    };
    let mut before = Vec::new();
    for id in &ids {
        before.push(left(*id).await);
    }
    let mut other_replica = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.leftovers WHERE source_id = $1 FOR UPDATE")
        .bind(ids[0])
        .execute(&mut *other_replica)
        .await
        .unwrap();
    sqlx::raw_sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk is full'; END $$",
    )
    .execute(weir.pool())
    .await
    .unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "CREATE TRIGGER refuse BEFORE DELETE ON weir.chunks FOR EACH ROW WHEN (OLD.source_id = {}) EXECUTE FUNCTION refuse()",
        ids[1]
    )))
    .execute(weir.pool())
    .await
    .unwrap();
    steps::tick(&weir.store).await.unwrap_err();
    let mut after = Vec::new();
    for id in &ids {
        after.push(left(*id).await);
    }
    let gone: Vec<i64> = before.iter().zip(&after).map(|(a, b)| a - b).collect();
    assert_eq!(gone, [0, 0, STEP, STEP]);

    other_replica.rollback().await.unwrap();
    weir.meddle("DROP TRIGGER refuse ON weir.chunks").await;
    while steps::tick(&weir.store).await.unwrap().done > 0 {}
    assert_eq!(weir.number(ROWS).await, 0);
    weir.check().await;
}

/// What a source of one step has goes with it.
#[tokio::test]
async fn a_small_source_leaves_nothing_to_sweep() {
    let weir = Weir::new().await;
    put_large(&weir, "api").await;
    weir.store.delete_source(&key("api"), None).await.unwrap();
    assert_eq!(weir.number(ROWS).await, 0);
    assert!(weir.store.leftovers(9).await.unwrap().is_empty());
}

/// An item may have more chunks than a step has rows.
#[tokio::test]
async fn a_large_item_goes_in_steps() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    let texts: Vec<String> = (0..20).map(|n| format!("text {n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let one = crate::fixture::item("i", &texts);
    weir.put("api", &[one, crate::fixture::item("j", &["last"])])
        .await;
    weir.embed_all().await;
    weir.store.delete_source(&key("api"), None).await.unwrap();
    assert_eq!(
        sweep_all(&weir).await,
        5,
        "of 44 rows, after the first step"
    );
    assert_eq!(weir.number(ROWS).await, 0);
}

/// Law 14: however large the source is, the deletion and each step read what they
/// delete, and no more.
#[tokio::test]
async fn a_step_reads_what_it_deletes() {
    // Entries of indexes too, also of what is dead.
    let read = "SELECT sum(t.seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes i WHERE i.relid = t.relid))
                    ::bigint
                FROM pg_stat_user_tables t
                WHERE schemaname = 'weir' AND relname IN ('items', 'chunks', 'embeddings', 'rejections')";
    let weir = Weir::new().await;
    for name in ["api", "other"] {
        weir.put(name, &many(6_000)).await;
    }
    weir.meddle(
        "INSERT INTO weir.embeddings (source_id, item_id, chunk_index, model, text_hash, embedding)
         SELECT c.source_id, c.item_id, c.chunk_index, s.model, c.text_hash, '[1]'
         FROM weir.chunks c JOIN weir.sources s ON s.id = c.source_id;
         DELETE FROM weir.jobs",
    )
    .await;
    weir.meddle("VACUUM ANALYZE").await;
    let counted = weir.counted_with("SELECT").await;
    let store = counted.store.clone().with_steps_of(500);
    // What was deleted before is there until a vacuum: nothing of it is read again.
    let mut oldest = weir.pool().begin().await.unwrap();
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM weir.sources")
        .execute(&mut *oldest)
        .await
        .unwrap();
    let mut before = counted.told(read).await;
    let deleted = store.delete_source(&key("api"), None).await.unwrap();
    assert_eq!((deleted.items, deleted.embeddings), (6_000, 6_000));
    let mut costs = vec![counted.told(read).await - before];
    while let Some(source_id) = store.leftovers(1).await.unwrap().first() {
        before = counted.told(read).await;
        store.sweep(*source_id).await.unwrap().unwrap();
        costs.push(counted.told(read).await - before);
    }
    assert_eq!(costs.len(), 19);
    assert!(costs.iter().all(|rows| *rows <= 1_010), "{costs:?}");
}

/// A worker holds a job of the source: as the source goes so does the lease, of
/// however many jobs.
#[tokio::test]
async fn the_deletion_of_many_jobs_leaves_their_rows_to_the_sweep() {
    let weir = Weir::in_steps_of(STEP / 2).await;
    let mut small = write("api");
    small.max_chunks_per_job = 1;
    weir.store.put_source(&small, &many(20)).await.unwrap();
    let running = weir.claim_many(20, LEASE).await;
    let deleted = weir.store.delete_source(&key("api"), None).await.unwrap();
    assert_eq!((deleted.items, deleted.jobs), (20, 20));
    assert_eq!(
        weir.number(ROWS).await,
        40,
        "the jobs were more than a step"
    );
    for job in running {
        let error = weir.store.renew(lease_of(&job), LEASE).await.unwrap_err();
        assert!(matches!(error, StoreError::LeaseLost { .. }), "{error}");
    }
    sweep_all(&weir).await;
    assert_eq!(weir.number(ROWS).await, 0);
    let anew = SourceKey { ..key("api") };
    weir.store.source(&anew).await.unwrap_err();
}
