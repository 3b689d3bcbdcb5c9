//! How many numbers the vectors of a model have, and who says so.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use weir_coordinator::store::{
    Store, StoreError,
    batches::{Outcome, Progress, Written},
    content::SourceWrite,
    models::Dimensions,
    rows::Job,
};
use weir_tests::invariants::broken_invariants;

use crate::fixture::{LEASE, MODEL, Weir, item, key, many, outcome, write};

/// All that a job has pending, with vectors of this many numbers.
async fn of(weir: &Weir, job: &Job, dimension: usize) -> Outcome {
    let mut all = outcome(job, &weir.texts(job).await);
    for chunk in &mut all.embedded {
        chunk.vector = vec![1.0; dimension];
    }
    all
}

/// Claims what is due and writes vectors of this many numbers for it.
async fn embed(weir: &Weir, dimension: usize) -> Result<Progress, StoreError> {
    let job = weir.claim().await;
    let all = of(weir, &job, dimension).await;
    let written = weir.upsert(all).await;
    if written.is_err() {
        let lease = job.lease();
        weir.store.release(lease, "refused").await.unwrap();
    }
    written
}

async fn dimension(weir: &Weir) -> i64 {
    weir.number("SELECT dimension::bigint FROM weir.models WHERE name = 'fake'")
        .await
}

#[track_caller]
fn assert_unfit(outcome: Result<Progress, StoreError>, ours: usize, theirs: usize) {
    let error = outcome.expect_err("the vectors do not fit");
    assert!(matches!(error, StoreError::Invalid(_)), "{error:?}");
    let said = error.to_string();
    let both = format!("has {ours} numbers, but vectors of the model \"fake\" have {theirs}");
    assert!(said.contains(&both), "{said}");
}

fn told(weir: &Weir, dimensions: &[(&str, u16)]) -> Store {
    let dimensions = dimensions.iter();
    let told: Dimensions = dimensions.map(|(it, n)| ((*it).to_owned(), *n)).collect();
    weir.store.clone().with_dimensions(told)
}

#[tokio::test]
async fn the_dimension_is_forgotten_with_the_last_vector() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    weir.put("pages", &many(3)).await;
    embed(&weir, 3).await.unwrap();
    assert_unfit(embed(&weir, 4).await, 4, 3);
    weir.store.delete_source(&key("api"), None).await.unwrap();
    embed(&weir, 4).await.unwrap();
    assert_eq!(dimension(&weir).await, 4);

    // A forced retry takes the vectors of the job's range.
    let jobs = weir.number("SELECT max(id) FROM weir.jobs WHERE state = 'succeeded'");
    weir.retry(jobs.await, true).await.unwrap();
    embed(&weir, 5).await.unwrap();

    // An empty source has none either.
    weir.put("pages", &[]).await;
    weir.put("api", &[item("a", &["one", "two"])]).await;
    let job = weir.claim().await;
    let mut first = of(&weir, &job, 6).await;
    let mut second = first.clone();
    second.embedded = first.embedded.split_off(1);
    weir.upsert(first).await.unwrap();
    for chunk in &mut second.embedded {
        chunk.vector = vec![1.0; 7];
    }
    assert_unfit(weir.upsert(second).await, 7, 6);
}

/// Those of the model before stay until new ones take their place.
#[tokio::test]
async fn the_vectors_of_a_source_that_changed_its_model_count() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    embed(&weir, 3).await.unwrap();
    let other = SourceWrite {
        model: Some("other".to_owned()),
        ..write("api")
    };
    weir.store.put_source(&other, &many(3)).await.unwrap();
    weir.put("pages", &many(1)).await;
    assert_unfit(embed(&weir, 4).await, 4, 3);
    let job = weir.claim_of("other").await;
    assert!(weir.embed(&job).await.finished);
    embed(&weir, 4).await.unwrap();
    assert_eq!(
        weir.number("SELECT count(*) FROM weir.former_models").await,
        1
    );
    weir.meddle("UPDATE weir.former_models SET changed_at = now() - interval '2 hours'")
        .await;
    assert_eq!(weir.store.drop_old_sources(LEASE, 10).await.unwrap(), 1);
}

#[tokio::test]
async fn who_may_not_be_first_writes_once_another_was() {
    let weir = Weir::new().await;
    weir.put("api", &many(1)).await;
    weir.put("pages", &many(1)).await;
    let (job, other) = (weir.claim().await, weir.claim().await);
    let mut limited = of(&weir, &job, 3).await;
    limited.may_be_first = false;
    // In a group it is left out, and refused alone.
    let written = weir.store.upsert_group(&[limited.clone()], LEASE).await;
    assert!(matches!(written.unwrap()[..], [Written::Busy { .. }]));
    let error = weir.upsert(limited.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::NoDimension(_)), "{error:?}");
    assert!(error.to_string().contains("--models fake=3"), "{error}");
    assert_eq!(weir.number("SELECT count(*) FROM weir.models").await, 0);

    weir.upsert(of(&weir, &other, 3).await).await.unwrap();
    let written = weir.store.upsert_group(&[limited.clone()], LEASE).await;
    assert!(matches!(written.unwrap()[..], [Written::Settled(Ok(_))]));

    // And not any more once the vectors are gone.
    for name in ["api", "pages"] {
        weir.store.delete_source(&key(name), None).await.unwrap();
    }
    weir.put("api", &many(1)).await;
    let mut limited = of(&weir, &weir.claim().await, 4).await;
    limited.may_be_first = false;
    let error = weir.upsert(limited).await.unwrap_err();
    assert!(matches!(error, StoreError::NoDimension(_)), "{error:?}");
    assert_eq!(dimension(&weir).await, 3);
}

#[tokio::test]
async fn what_the_operator_says_holds_before_and_after_the_first_vector() {
    let weir = Weir::new().await;
    let four = told(&weir, &[(MODEL, 4)]);
    four.set_dimensions().await.unwrap();
    weir.put("api", &many(1)).await;
    let job = weir.claim().await;
    let mut wrong = of(&weir, &job, 3).await;
    assert_unfit(four.upsert(&wrong, LEASE).await, 3, 4);
    // Somebody else has it otherwise, and no vector.
    weir.meddle("UPDATE weir.models SET dimension = 5").await;
    assert_unfit(four.upsert(&wrong, LEASE).await, 3, 4);
    wrong.may_be_first = false;
    let mut right = of(&weir, &job, 4).await;
    right.may_be_first = false;
    four.upsert(&right, LEASE).await.unwrap();
    assert_eq!(dimension(&weir).await, 4);

    let error = told(&weir, &[("new", 9), (MODEL, 8)])
        .set_dimensions()
        .await;
    let error = error.unwrap_err();
    assert!(matches!(error, StoreError::Precondition(_)), "{error:?}");
    let said = error.to_string();
    for part in ["\"fake\"", "8", "4", "fake=4", "delete the sources"] {
        assert!(said.contains(part), "{said}");
    }
    weir.store.delete_source(&key("api"), None).await.unwrap();
    let eight = told(&weir, &[(MODEL, 8)]);
    eight.set_dimensions().await.unwrap();
    eight.set_dimensions().await.unwrap();
    assert_eq!(dimension(&weir).await, 8);
}

/// A result is under way while another dimension would take the place of that
/// of vectors that are gone: the later one waits, and is refused.
#[tokio::test]
async fn a_result_that_is_being_written_keeps_the_dimension() {
    let weir = Weir::new().await;
    weir.put("old", &many(1)).await;
    embed(&weir, 3).await.unwrap();
    weir.store.delete_source(&key("old"), None).await.unwrap();
    weir.put("api", &many(1)).await;
    weir.put("pages", &many(1)).await;
    let (job, other) = (weir.claim().await, weir.claim().await);
    let (first, second) = (of(&weir, &job, 3).await, of(&weir, &other, 4).await);
    // The row that it writes is being written by somebody else: it waits, with its locks.
    let mut lock = weir.pool().begin().await.unwrap();
    sqlx::query(
        "INSERT INTO weir.embeddings (source_id, item_id, chunk_index, model, text_hash, embedding)
         SELECT source_id, item_id, chunk_index, 'fake', text_hash, '[1,1,1]' FROM weir.chunks WHERE source_id = $1",
    )
    .bind(job.source_id)
    .execute(&mut *lock)
    .await
    .unwrap();
    let first = weir.upsert(first);
    let second = async {
        weir.blocked(1).await;
        weir.upsert(second).await
    };
    let release = async {
        weir.blocked(2).await;
        lock.rollback().await.unwrap();
    };
    let (first, second, ()) = tokio::join!(first, second, release);
    assert!(first.unwrap().finished);
    assert_unfit(second, 4, 3);
    assert_eq!(dimension(&weir).await, 3);
}

/// Whatever is written, deleted, embedded anew and moved to another model at
/// the same time, by workers of different minds: the vectors of a model have
/// one dimension at every moment.
#[tokio::test]
async fn the_vectors_of_a_model_have_one_dimension_at_every_moment() {
    let weir = Weir::new().await;
    let mut refused = 0;
    for seed in 0..6 {
        let tenants = (0..3_u64).map(|tenant| tenant_at_work(&weir, seed, tenant));
        let watch = async {
            let dimensions = "SELECT coalesce(max(n), 0)::bigint FROM (
                SELECT count(DISTINCT vector_dims(embedding)) AS n FROM weir.embeddings GROUP BY model) of_model";
            loop {
                assert!(weir.number(dimensions).await <= 1, "seed {seed}");
            }
        };
        tokio::select! {
            each = futures::future::join_all(tenants) => refused += each.iter().sum::<i32>(),
            () = watch => unreachable!(),
        }
        let broken = broken_invariants(weir.pool()).await.unwrap();
        assert!(broken.is_empty(), "seed {seed}: {broken:?}");
    }
    assert!(refused > 0, "they were of one mind");
}

/// Writes, embeds and deletes sources of its own; returns how many results were
/// refused.
async fn tenant_at_work(weir: &Weir, seed: u64, tenant: u64) -> i32 {
    let mut random = StdRng::seed_from_u64(seed * 10 + tenant);
    let name = format!("tenant-{tenant}");
    let mut refused = 0;
    for step in 0..25 {
        match random.random_range(0..5) {
            0 => {
                let _ = weir.store.delete_source(&key(&name), None).await;
            }
            1 => {
                let jobs = "SELECT coalesce(max(id), 0) FROM weir.jobs WHERE state = 'succeeded'";
                let _ = weir.retry(weir.number(jobs).await, true).await;
            }
            _ => {
                let model = if random.random_bool(0.7) {
                    MODEL
                } else {
                    "other"
                };
                let write = SourceWrite {
                    model: Some(model.to_owned()),
                    ..write(&name)
                };
                let content = [item("a", &[&format!("text {step}")]), item("b", &["same"])];
                weir.store.put_source(&write, &content).await.unwrap();
            }
        }
        for model in [MODEL, "other"] {
            let Some(job) = weir.claim_if(model, LEASE).await else {
                continue;
            };
            let dimension = random.random_range(2..4);
            let Ok(pending) = weir.store.pending(job.lease(), 100).await else {
                continue;
            };
            let texts = weir.store.texts(job.source_id, &pending).await.unwrap();
            let mut all = outcome(&job, &texts);
            for chunk in &mut all.embedded {
                chunk.vector = vec![1.0; dimension];
            }
            let group = weir.store.upsert_group(&[all.clone()], LEASE).await;
            let result = match group.map(|mut it| it.remove(0)) {
                Ok(Written::Settled(result)) => result,
                Ok(Written::Busy { .. }) => weir.upsert(all).await,
                Err(error) => Err(error),
            };
            if let Err(StoreError::Invalid(_)) = &result {
                refused += 1;
            }
            if result.is_err() {
                let _ = weir.store.release(job.lease(), "refused").await;
            }
        }
    }
    refused
}
