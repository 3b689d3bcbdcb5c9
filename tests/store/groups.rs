//! Writing the outcomes of several jobs together, past what others have locked.

use std::sync::Arc;

use futures::future::join_all;
use sqlx::{Postgres, Transaction};
use tokio_util::task::TaskTracker;
use weir_coordinator::{
    dispatch::writer::Writer,
    metrics::Metrics,
    store::{
        StoreError,
        batches::{Outcome, Written},
        rows::Job,
    },
};
use weir_telemetry::Tracer;
use weir_tests::PATIENCE;

use crate::fixture::{LEASE, Weir, counts, many, outcome, write};

fn finished(written: &Written) -> bool {
    matches!(written, Written::Settled(Ok(progress)) if progress.finished)
}

/// Whether an outcome was left out, for a lock of this job's source.
fn busy(written: &Written, job: &Job) -> bool {
    matches!(written, Written::Busy { source_id } if *source_id == job.source_id)
}

/// A database with a model that has vectors: the first vectors of a model go
/// alone.
async fn settled() -> Weir {
    let weir = Weir::new().await;
    weir.put("first", &many(1)).await;
    weir.embed_all().await;
    weir
}

/// Puts a source of so many jobs of one chunk, claims them, and returns each
/// with all that it has to embed.
async fn put_and_claim(weir: &Weir, name: &str, jobs: usize) -> Vec<(Job, Outcome)> {
    let mut write = write(name);
    write.max_chunks_per_job = 1;
    weir.store.put_source(&write, &many(jobs)).await.unwrap();
    let mut outcomes = Vec::new();
    for job in weir.claim_many(1_000, LEASE).await {
        let all = outcome(&job, &weir.texts(&job).await);
        outcomes.push((job, all));
    }
    assert_eq!(outcomes.len(), jobs);
    outcomes
}

/// Locks the rows of a source's jobs, as a long write of it does.
async fn lock(weir: &Weir, source_id: i64) -> Transaction<'static, Postgres> {
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.jobs WHERE source_id = $1 FOR UPDATE")
        .bind(source_id)
        .execute(&mut *other)
        .await
        .unwrap();
    other
}

#[tokio::test]
async fn a_group_passes_by_a_locked_job() {
    let weir = settled().await;
    let (locked, all_of_it) = put_and_claim(&weir, "locked", 1).await.remove(0);
    let (_, other) = put_and_claim(&weir, "other", 1).await.remove(0);
    let lock = lock(&weir, locked.source_id).await;
    let group = [all_of_it.clone(), other];
    let written = tokio::time::timeout(PATIENCE, weir.store.upsert_group(&group, LEASE));
    let written = written.await.expect("it does not wait").unwrap();
    assert!(busy(&written[0], &locked), "{written:?}");
    assert!(finished(&written[1]), "{written:?}");
    assert_eq!(weir.counts("locked").await, counts([1, 1, 1, 0, 0]));
    assert_eq!(weir.counts("other").await, counts([1, 1, 0, 1, 0]));
    lock.rollback().await.unwrap();
    let written = weir.store.upsert_group(&[all_of_it], LEASE).await.unwrap();
    assert!(finished(&written[0]), "{written:?}");
    weir.check().await;
}

#[tokio::test]
async fn a_lease_that_is_gone_is_not_taken_for_a_locked_one() {
    let weir = settled().await;
    let (job, mut late) = put_and_claim(&weir, "api", 1).await.remove(0);
    late.fence.lease.epoch -= 1;
    let _lock = lock(&weir, job.source_id).await;
    let written = weir.store.upsert_group(&[late], LEASE).await.unwrap();
    assert!(
        matches!(
            written[0],
            Written::Settled(Err(StoreError::LeaseLost { .. }))
        ),
        "{written:?}"
    );
}

#[tokio::test]
async fn the_first_vectors_of_a_model_go_alone() {
    // Another transaction may be about to add the model too, and would be waited for.
    let weir = Weir::new().await;
    let (job, first) = put_and_claim(&weir, "api", 1).await.remove(0);
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("INSERT INTO weir.models (name, dimension) VALUES ('fake', 16)")
        .execute(&mut *other)
        .await
        .unwrap();
    let group = [first.clone()];
    let written = tokio::time::timeout(PATIENCE, weir.store.upsert_group(&group, LEASE));
    let written = written.await.expect("it does not wait").unwrap();
    assert!(busy(&written[0], &job), "{written:?}");
    other.rollback().await.unwrap();
    assert!(weir.upsert(first).await.unwrap().finished);
    weir.check().await;
}

#[tokio::test]
async fn an_outcome_that_is_refused_does_not_hinder_the_others() {
    let weir = Weir::new().await;
    weir.put("first", &many(1)).await;
    weir.embed_all().await;
    for name in ["a", "b", "c", "d"] {
        weir.put(name, &many(2)).await;
    }
    let mut jobs = weir.claim_many(4, LEASE).await;
    jobs.sort_by_key(|job| job.id);
    let mut outcomes = Vec::new();
    for job in &jobs {
        outcomes.push(outcome(job, &weir.texts(job).await));
    }
    outcomes[0].embedded[0].text_hash = [7; 32];
    outcomes[1].fence.lease.epoch += 1;
    outcomes[2]
        .embedded
        .iter_mut()
        .for_each(|chunk| chunk.vector.truncate(1));
    // The answers are in the order of the outcomes, whatever that is.
    outcomes.swap(0, 3);
    let written = weir.store.upsert_group(&outcomes, LEASE).await.unwrap();
    assert!(finished(&written[0]), "{written:?}");
    // Whether there are vectors that it does not fit is found out apart from the group.
    assert!(matches!(written[2], Written::Busy { .. }), "{written:?}");
    let alone = weir.upsert(outcomes[2].clone()).await;
    assert!(matches!(alone, Err(StoreError::Invalid(_))), "{alone:?}");
    for (place, invalid) in [(1, false), (3, true)] {
        let Written::Settled(Err(error)) = &written[place] else {
            panic!("{written:?}");
        };
        match error {
            StoreError::Invalid(_) => assert!(invalid, "{written:?}"),
            StoreError::LeaseLost { .. } => assert!(!invalid, "{written:?}"),
            _ => panic!("{written:?}"),
        }
    }
    for name in ["a", "b", "c"] {
        assert_eq!(weir.counts(name).await, counts([2, 2, 2, 0, 0]));
    }
    assert_eq!(weir.counts("d").await, counts([2, 2, 0, 2, 0]));
    weir.check().await;
}

#[tokio::test]
async fn law_8_a_source_whose_jobs_are_locked_holds_up_no_other() {
    let weir = settled().await;
    // Enough results of one source to keep every writer at it.
    let mut locked = put_and_claim(&weir, "locked", 8).await;
    let (_, other) = put_and_claim(&weir, "other", 1).await.remove(0);
    let lock = lock(&weir, locked[0].0.source_id).await;
    let tasks = TaskTracker::new();
    let writer = Writer::start(
        &weir.store,
        LEASE,
        &tasks,
        Arc::new(Metrics::new(&[])),
        &Tracer::OFF,
    );
    let first = writer.upsert(locked.remove(0).1, None);
    let rest = async {
        // They come when the first waits for the lock, and in good time before the other's.
        weir.blocked(1).await;
        let rest = join_all(locked.into_iter().map(|(_, all)| writer.upsert(all, None)));
        let other = async {
            let written = tokio::time::timeout(PATIENCE, writer.upsert(other, None));
            let written = written.await.expect("the other source goes on");
            assert!(written.unwrap().finished);
            // The others of the source wait for the first, not for the lock.
            weir.blocked(1).await;
            lock.rollback().await.unwrap();
        };
        tokio::join!(rest, other).0
    };
    let (first, rest) = tokio::join!(first, rest);
    assert!(first.unwrap().finished);
    assert!(rest.iter().all(|one| one.as_ref().unwrap().finished));
    weir.check().await;
    drop(writer);
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn law_8_a_locked_source_holds_up_no_other_locked_one() {
    let weir = settled().await;
    let long = put_and_claim(&weir, "long", 8).await;
    let (short, all_of_it) = put_and_claim(&weir, "short", 1).await.remove(0);
    let long_lock = lock(&weir, long[0].0.source_id).await;
    let short_lock = lock(&weir, short.source_id).await;
    let tasks = TaskTracker::new();
    let writer = Writer::start(
        &weir.store,
        LEASE,
        &tasks,
        Arc::new(Metrics::new(&[])),
        &Tracer::OFF,
    );
    let waiting = join_all(long.into_iter().map(|(_, all)| writer.upsert(all, None)));
    let meanwhile = async {
        weir.blocked(1).await;
        let release = async {
            weir.blocked(2).await;
            short_lock.rollback().await.unwrap();
        };
        let written = tokio::time::timeout(PATIENCE, writer.upsert(all_of_it, None));
        let (written, ()) = tokio::join!(written, release);
        let written = written.expect("it waits for its own lock only");
        assert!(written.unwrap().finished);
        weir.blocked(1).await;
        long_lock.rollback().await.unwrap();
    };
    let (written, ()) = tokio::join!(waiting, meanwhile);
    assert!(written.iter().all(|one| one.as_ref().unwrap().finished));
    weir.check().await;
    drop(writer);
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn what_waits_for_a_lock_is_written_before_the_writer_is_gone() {
    let weir = settled().await;
    let (job, all_of_it) = put_and_claim(&weir, "api", 1).await.remove(0);
    let lock = lock(&weir, job.source_id).await;
    let tasks = TaskTracker::new();
    let writer = Writer::start(
        &weir.store,
        LEASE,
        &tasks,
        Arc::new(Metrics::new(&[])),
        &Tracer::OFF,
    );
    tokio::select! {
        written = writer.upsert(all_of_it, None) => panic!("{written:?}"),
        () = weir.blocked(1) => {}
    }
    drop(writer);
    tasks.close();
    let (unlocked, ()) = tokio::join!(lock.rollback(), tasks.wait());
    unlocked.unwrap();
    assert_eq!(weir.counts("api").await, counts([1, 1, 0, 1, 0]));
    weir.check().await;
}
