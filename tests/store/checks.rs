//! Checks of sources larger than a step: whatever lies where, it is found and put
//! right, and nothing is found that is no fault.

use std::time::Duration;

use weir_coordinator::{
    maintenance::{
        prompts,
        reconciler::{Reconciled, Reconciler},
    },
    store::{Store, StoreError, content::SourceWrite, reconcile::Check, reconcile::Findings},
};
use weir_telemetry::Tracer;

use crate::fixture::{LEASE, Weir, counts, item, key, many, write};

/// Chunks in a step.
const STEP: i64 = 4;

fn reconciler(store: &Store) -> Reconciler {
    Reconciler {
        store: store.clone().with_steps_of(STEP),
        interval: LEASE,
        max_chunks_per_job: 1_000,
        tracer: Tracer::OFF,
    }
}

async fn round(weir: &Weir) -> Reconciled {
    reconciler(&weir.store).tick().await.unwrap()
}

/// Makes the checks of all sources due.
const DUE: &str = "UPDATE weir.sources SET checked_at = now() - interval '1 day'";

/// The check of the one source that is checked.
async fn under_way(weir: &Weir) -> Option<Check> {
    weir.meddle("UPDATE weir.checks SET due_at = now()").await;
    let store = weir.store.clone();
    let mut checks = store.take_checks(LEASE, 10).await.unwrap();
    assert!(checks.len() < 2, "{checks:?}");
    weir.meddle("UPDATE weir.checks SET due_at = now()").await;
    checks.pop()
}

/// Checks all sources to the end; returns how many rounds that took, and in how many
/// something had to be put right.
async fn check_all(weir: &Weir) -> (usize, usize) {
    weir.meddle(DUE).await;
    let (mut rounds, mut repaired) = (0, 0);
    loop {
        let round = round(weir).await;
        assert_eq!(round.failed, 0);
        rounds += 1;
        repaired += round.repaired;
        if !round.more {
            assert_eq!(weir.number("SELECT count(*) FROM weir.checks").await, 0);
            return (rounds, repaired);
        }
    }
}

/// Twenty items, all embedded; the tenth has more chunks than a step.
async fn embedded() -> Weir {
    let weir = Weir::new().await;
    let mut content = many(20);
    content[10] = item("i0010", &["a", "b", "c", "d", "e", "f"]);
    weir.put("api", &content).await;
    weir.embed_all().await;
    weir
}

#[tokio::test]
async fn a_step_has_so_many_chunks_and_no_item_in_part() {
    for vectors in ["SELECT", "DELETE FROM weir.embeddings"] {
        let weir = embedded().await;
        weir.meddle(vectors).await;
        weir.meddle(DUE).await;
        let mut ends = Vec::new();
        while {
            round(&weir).await;
            under_way(&weir).await.is_some()
        } {
            ends.push(under_way(&weir).await.unwrap().checked_to);
        }
        assert_eq!(ends, ["i0003", "i0007", "i0009", "i0010", "i0014", "i0018"]);
        weir.check().await;
    }
}

/// Each fault, wherever it lies.
#[tokio::test]
async fn every_fault_is_found_in_every_step() {
    let faults: [(&'static str, usize); 8] = [
        // A vector lost.
        ("DELETE FROM weir.embeddings WHERE item_id = 'i0002'", 1),
        ("DELETE FROM weir.embeddings WHERE item_id = 'i0010'", 1),
        ("DELETE FROM weir.embeddings WHERE item_id IN ('i0000', 'i0013', 'i0019')", 3),
        // A vector of another text, and a rejection of no text at all and of no model.
        ("UPDATE weir.embeddings SET text_hash = sha256('x') WHERE item_id IN ('i0005', 'i0019')", 2),
        ("INSERT INTO weir.rejections (source_id, item_id, chunk_index, model, text_hash, reason)
          SELECT source_id, item_id, 7, 'fake', text_hash, 'no' FROM weir.chunks WHERE item_id = 'i0018'", 1),
        ("DELETE FROM weir.embeddings WHERE item_id = 'i0009';
          INSERT INTO weir.rejections (source_id, item_id, chunk_index, model, text_hash, reason)
          SELECT source_id, item_id, chunk_index, 'strange', text_hash, 'no' FROM weir.chunks WHERE item_id = 'i0009'", 1),
        // Vectors of chunks that are gone, behind all that are there.
        ("INSERT INTO weir.embeddings (source_id, item_id, chunk_index, model, text_hash, embedding)
          SELECT source_id, 'x' || item_id, chunk_index, model, text_hash, embedding FROM weir.embeddings", 7),
        // Wrong counts.
        ("UPDATE weir.sources SET items_total = items_total + 3, chunks_total = 0;
          INSERT INTO weir.rejection_counts SELECT id, 9, 5 FROM weir.sources", 1),
    ];
    for (fault, steps) in faults {
        let weir = embedded().await;
        assert_eq!(check_all(&weir).await, (7, 0), "all is well");
        weir.meddle(fault).await;
        let (_, repaired) = check_all(&weir).await;
        assert_eq!(repaired, steps, "{fault}");
        weir.check().await;
        weir.embed_all().await;
        assert_eq!(
            weir.counts("api").await,
            counts([20, 25, 0, 25, 0]),
            "{fault}"
        );
        assert_eq!(check_all(&weir).await.1, 0, "{fault}");
    }
}

#[tokio::test]
async fn a_job_of_another_model_is_found_in_a_large_source() {
    let weir = Weir::new().await;
    weir.put_in_twos("api", &many(20)).await;
    let running = weir.claim().await;
    weir.meddle("UPDATE weir.sources SET model = 'other'").await;
    assert_eq!(check_all(&weir).await.1, 1);
    assert_eq!(weir.counts("api").await, counts([20, 20, 20, 0, 0]));
    weir.check().await;
    while prompts::tick(&weir.store, 1_000).await.unwrap() {}
    let lost = weir
        .store
        .renew(crate::fixture::lease_of(&running), LEASE)
        .await;
    assert!(
        matches!(lost, Err(StoreError::LeaseLost { .. })),
        "{lost:?}"
    );
    assert_eq!(weir.counts("api").await, counts([20, 20, 20, 0, 0]));
    weir.check().await;
}

/// Jobs are queued around those that are there, which reach over the ends of steps.
#[tokio::test]
async fn jobs_that_reach_over_steps_are_no_fault() {
    let weir = Weir::new().await;
    let seven = SourceWrite {
        max_chunks_per_job: 7,
        ..write("api")
    };
    weir.store.put_source(&seven, &many(20)).await.unwrap();
    let [first, second, third] = weir.claim_many(3, LEASE).await.try_into().unwrap();
    weir.fail_for_good(&second).await;
    assert_eq!(check_all(&weir).await, (5, 0));
    // A failed one of all, and a newer cancelled one within it.
    weir.fail_for_good(&first).await;
    weir.fail_for_good(&third).await;
    weir.meddle(
        "UPDATE weir.jobs SET last_item_id = 'i0019', chunks_total = 14 WHERE first_item_id = 'i0000';
         UPDATE weir.jobs SET settled = true WHERE first_item_id = 'i0014'",
    )
    .await;
    let everything = "SELECT count(*) FROM weir.jobs WHERE NOT settled";
    assert_eq!(weir.number(everything).await, 2);
    assert_eq!(check_all(&weir).await, (5, 0));
}

/// What is written between two steps is no fault, and hides none for ever.
#[tokio::test]
async fn writes_between_steps_are_no_fault() {
    let weir = embedded().await;
    weir.meddle(DUE).await;
    let mut n = 0;
    loop {
        let round = round(&weir).await;
        assert_eq!(round.repaired, 0, "step {n}");
        if !round.more {
            break;
        }
        n += 1;
        // Behind where the check has come, before it, and there: more and less.
        let upsert = [
            item("i0000", &[&format!("{n}")]),
            item(&format!("i0000-{n}"), &["new", "and more"]),
            item(&format!("i0008-{n}"), &["new"]),
            item("i0019", &[&format!("{n}")]),
        ];
        let delete = [format!("i000{}", n + 1), format!("i001{n}")];
        let api = write("api");
        let patched = weir.store.patch_source(&api, &upsert, &delete);
        patched.await.unwrap();
        if n % 2 == 0 {
            weir.embed_all_but("new").await;
        }
        weir.check().await;
    }
    assert!(n > 3, "{n} steps");
    // A wrong count that a write kept from being found is found by the next check.
    weir.meddle(DUE).await;
    weir.meddle("UPDATE weir.sources SET chunks_total = chunks_total - 1; DELETE FROM weir.rejection_counts")
        .await;
    round(&weir).await;
    weir.put("other", &many(1)).await;
    let upsert = [item("i0000", &["another"])];
    weir.store
        .patch_source(&write("api"), &upsert, &[])
        .await
        .unwrap();
    while round(&weir).await.more {}
    let found = weir.findings(weir.source_row("api").await.id).await;
    assert!(found.miscounted, "it was left");
    assert_eq!(check_all(&weir).await.1, 1);
    weir.check().await;
}

/// What is rejected, and taken back, between two steps is no fault either.
#[tokio::test]
async fn rejections_between_steps_are_no_fault() {
    let weir = Weir::new().await;
    weir.put_in_twos("api", &many(20)).await;
    weir.meddle(DUE).await;
    let mut repaired = 0;
    while {
        let round = round(&weir).await;
        repaired += round.repaired;
        round.more
    } {
        let job = weir.claim_many(1, LEASE).await.pop();
        if let Some(job) = job {
            weir.embed_but(&job, "text").await;
        }
        weir.check().await;
    }
    assert_eq!(repaired, 0);
}

/// A correction counts what was found amiss, whatever was written since.
#[tokio::test]
async fn a_count_is_corrected_by_what_is_amiss() {
    let weir = embedded().await;
    weir.meddle(
        "UPDATE weir.sources SET items_total = items_total + 3, chunks_total = chunks_total - 2",
    )
    .await;
    let id = weir.source_row("api").await.id;
    let checked = weir.begin_check(id).await;
    weir.store
        .patch_source(
            &write("api"),
            &[item("new", &["a", "b"]), item("newer", &["c"])],
            &["i0001".to_owned()],
        )
        .await
        .unwrap();
    assert!(
        weir.store
            .repair(&checked, 1_000, None)
            .await
            .unwrap()
            .unwrap()
            .recounted
    );
    weir.check().await;
}

/// A coordinator that dies in the midst of a check leaves it to others, who go on
/// where it was.
#[tokio::test]
async fn a_check_goes_on_after_a_crash() {
    let weir = embedded().await;
    weir.meddle("DELETE FROM weir.embeddings WHERE item_id IN ('i0001', 'i0018')")
        .await;
    weir.meddle(DUE).await;
    assert_eq!(round(&weir).await.repaired, 1);
    let before = under_way(&weir).await.unwrap();
    // It has looked, and does not come back.
    let taken = weir.store.take_checks(LEASE, 10).await.unwrap();
    let checked = weir
        .store
        .clone()
        .with_steps_of(STEP)
        .check(&taken[0])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(round(&weir).await.checked, 0, "it may be at it");
    assert_eq!(under_way(&weir).await, Some(before));
    let another = Store::new(weir.pool().clone(), LEASE);
    let mut repaired = 0;
    for _ in 0..2 {
        repaired += reconciler(&another).tick().await.unwrap().repaired;
    }
    // What the first one comes with, should it have slept, is late.
    assert!(!checked.found.any());
    let on = under_way(&weir).await.unwrap();
    assert_eq!(on.checked_to, "i0009");
    weir.store.pass_check(&checked).await.unwrap();
    assert_eq!(under_way(&weir).await, Some(on));
    loop {
        let round = reconciler(&another).tick().await.unwrap();
        repaired += round.repaired;
        if !round.more {
            break;
        }
    }
    assert_eq!(repaired, 1);
    weir.store.pass_check(&checked).await.unwrap();
    assert_eq!(weir.number("SELECT count(*) FROM weir.checks").await, 0);
    weir.check().await;
}

#[tokio::test]
async fn replicas_check_side_by_side() {
    let weir = embedded().await;
    for n in 0..12 {
        weir.put(&format!("s{n}"), &many(9)).await;
    }
    weir.embed_all().await;
    weir.meddle("DELETE FROM weir.embeddings WHERE item_id IN ('i0001', 'i0008', 'i0017')")
        .await;
    weir.meddle(DUE).await;
    let replica = async || {
        let (mut checked, mut repaired) = (0, 0);
        let reconciler = reconciler(&weir.store);
        while weir
            .number("SELECT (SELECT count(*) FROM weir.checks) + (SELECT count(*) FROM weir.sources WHERE checked_at < now() - interval '1 hour')")
            .await
            > 0
        {
            let round = reconciler.tick().await.unwrap();
            checked += round.checked;
            repaired += round.repaired;
        }
        (checked, repaired)
    };
    let (one, two) = tokio::join!(replica(), replica());
    assert_eq!(one.0 + two.0, 7 + 12 * 3, "each step once: {one:?} {two:?}");
    assert_eq!(one.1 + two.1, 3 + 12 * 2);
    weir.check().await;
}

/// A huge source takes no more than its turn, and one that is locked, or at which
/// every step fails, is passed by and told.
#[tokio::test]
async fn others_do_not_wait_for_a_source_that_is_huge_or_sick() {
    let weir = Weir::new().await;
    weir.put("huge", &many(100)).await;
    for n in 0..9 {
        weir.put(&format!("s{n}"), &many(3)).await;
    }
    weir.put("sick", &many(3)).await;
    weir.embed_all().await;
    weir.meddle("DELETE FROM weir.embeddings WHERE source_id IN (SELECT id FROM weir.sources WHERE name = 'sick')")
        .await;
    weir.meddle(
        "CREATE FUNCTION weir.sick() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
             IF NEW.source = 'sick' THEN RAISE 'it is sick'; END IF; RETURN NEW; END$$;
         CREATE TRIGGER sick BEFORE INSERT ON weir.jobs FOR EACH ROW EXECUTE FUNCTION weir.sick()",
    )
    .await;
    weir.meddle(DUE).await;
    let mut failed = 0;
    for _ in 0..2 {
        failed += round(&weir).await.failed;
    }
    assert_eq!(failed, 1);
    let left: Vec<String> = sqlx::query_scalar(
        "SELECT s.name FROM weir.checks c JOIN weir.sources s ON s.id = c.source_id ORDER BY s.name",
    )
    .fetch_all(weir.pool())
    .await
    .unwrap();
    assert_eq!(left, ["huge", "sick"]);
    while round(&weir).await.more {}
    weir.meddle("DROP TRIGGER sick ON weir.jobs; UPDATE weir.checks SET due_at = now()")
        .await;
    let round = round(&weir).await;
    assert_eq!((round.checked, round.repaired), (1, 1));
    weir.check().await;
}

/// A statement that takes too long ends, and the others go on.
#[tokio::test]
async fn a_step_that_takes_too_long_is_no_sign_that_the_database_is_away() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    weir.embed_all().await;
    weir.meddle("DELETE FROM weir.embeddings").await;
    weir.meddle(
        "CREATE FUNCTION weir.slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
             RAISE query_canceled; END$$;
         CREATE TRIGGER slow BEFORE INSERT ON weir.jobs FOR EACH ROW EXECUTE FUNCTION weir.slow()",
    )
    .await;
    weir.meddle(DUE).await;
    let round = round(&weir).await;
    assert_eq!((round.checked, round.failed, round.more), (1, 1, false));
}

/// What a failed job left is queued again in steps, however much it is.
#[tokio::test]
async fn what_a_huge_failed_job_left_is_queued_in_steps() {
    let weir = Weir::new().await;
    let large = SourceWrite {
        max_chunks_per_job: 15,
        priority: 3,
        ..write("api")
    };
    weir.store.put_source(&large, &many(20)).await.unwrap();
    for job in weir.claim_many(2, LEASE).await {
        let texts = weir.texts(&job).await;
        let mut part = crate::fixture::outcome(&job, &texts[2..4]);
        part.complete = false;
        weir.upsert(part).await.unwrap();
        weir.fail_for_good(&job).await;
    }
    weir.meddle("UPDATE weir.jobs SET run_at = finished_at")
        .await;
    let mut rounds = 0;
    loop {
        let round = round(&weir).await;
        rounds += 1;
        assert!(round.unparked.queued <= 1, "{round:?}");
        let state = weir.store.source(&key("api")).await.unwrap();
        assert_eq!(state.source.chunks_pending, 16);
        weir.check().await;
        if !round.more {
            break;
        }
    }
    assert_eq!(rounds, 6, "four steps of the one, and two of the other");
    let jobs = weir.store.source(&key("api")).await.unwrap().jobs;
    assert!(
        jobs.iter()
            .all(|job| job.chunks_total <= 4 && job.priority == 3),
        "{jobs:?}"
    );
    assert_eq!(weir.embed_all().await.len(), 16);
    assert_eq!(
        weir.number("SELECT count(*) FROM weir.jobs WHERE NOT settled")
            .await,
        0
    );
    weir.check().await;
}

/// What newer jobs have of its range is left to them.
#[tokio::test]
async fn what_a_huge_failed_job_left_is_queued_around_newer_jobs() {
    let weir = Weir::new().await;
    weir.put("api", &many(20)).await;
    let huge = weir.claim().await;
    weir.fail_for_good(&huge).await;
    let patch = async |item_id: &str| {
        let changed = [item(item_id, &["new"])];
        let api = write("api");
        let patched = weir.store.patch_source(&api, &changed, &[]);
        patched.await.unwrap();
    };
    patch("i0001").await;
    let newer = weir.claim().await;
    weir.fail_for_good(&newer).await;
    patch("i0002").await;
    patch("i0009").await;
    weir.check().await;
    weir.meddle("UPDATE weir.jobs SET run_at = finished_at WHERE chunks_total > 10")
        .await;
    while round(&weir).await.more {
        weir.check().await;
    }
    weir.check().await;
    let parked =
        weir.number("SELECT count(*) FROM weir.jobs WHERE state = 'failed' AND NOT settled");
    assert_eq!(parked.await, 1, "not before its time");
    let texts = weir.embed_all().await;
    assert_eq!(texts.len(), 19);
    assert_eq!(texts.iter().filter(|text| *text == "new").count(), 2);
}

/// One step reads what it looks at, in a source of many steps and with many jobs.
#[tokio::test]
async fn a_step_reads_what_it_looks_at() {
    const CHUNKS: i64 = 100;
    let read = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables
                WHERE schemaname = 'weir' AND relname IN ('items', 'chunks', 'embeddings', 'rejections', 'jobs')";
    for embedded in [true, false] {
        let weir = Weir::new().await;
        let mut small = write("api");
        small.max_chunks_per_job = 10;
        let content: Vec<_> = (0..20_000)
            .map(|n| item(&format!("i{n:05}"), &["text"]))
            .collect();
        weir.store.put_source(&small, &content).await.unwrap();
        if embedded {
            weir.meddle(
                "INSERT INTO weir.embeddings (source_id, item_id, chunk_index, model, text_hash, embedding)
                 SELECT c.source_id, c.item_id, c.chunk_index, s.model, c.text_hash, '[1]'
                 FROM weir.chunks c JOIN weir.sources s ON s.id = c.source_id;
                 DELETE FROM weir.jobs",
            )
            .await;
        } else {
            // Half of them have failed.
            weir.meddle(
                "UPDATE weir.jobs SET state = 'failed', finished_at = now(), last_error = 'no' WHERE id % 2 = 0",
            )
            .await;
        }
        weir.meddle("VACUUM ANALYZE").await;
        let source_id = weir.source_row("api").await.id;
        let counted = weir.counted_with("SELECT").await;
        let store = counted.store.clone().with_steps_of(CHUNKS);
        for checked_to in ["i10000", "i19000"] {
            let check = Check {
                source_id,
                checked_to: checked_to.to_owned(),
                ..Check::default()
            };
            let before = counted.told(read).await;
            let checked = store.check(&check).await.unwrap().unwrap();
            let rows = counted.told(read).await - before;
            assert_eq!(checked.found, Findings::default());
            assert!(rows <= 20 * CHUNKS, "{rows} rows, embedded: {embedded}");
        }
    }
}

#[tokio::test]
async fn a_check_that_is_not_over_is_not_begun_again() {
    let weir = embedded().await;
    weir.meddle(DUE).await;
    round(&weir).await;
    assert_eq!(under_way(&weir).await.unwrap().checked_to, "i0003");
    weir.meddle(DUE).await;
    round(&weir).await;
    assert_eq!(under_way(&weir).await.unwrap().checked_to, "i0007");
    assert!(
        weir.store
            .take_checks(Duration::from_secs(1), 10)
            .await
            .unwrap()
            .len()
            <= 1
    );
}
