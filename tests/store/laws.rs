//! What must hold of the store whatever is done to it, and in whatever order.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use weir_coordinator::{
    job::{plan::PlannedItem, retry::RetryPolicy},
    maintenance::{reconciler::Reconciler, steps},
    store::{Scope, StoreError, content::SourceWrite, lease::Opening, rescue::Patience, rows::Job},
};
use weir_telemetry::Tracer;

use crate::fixture::{
    LEASE, Weir, counts_of, item, key, lease_of, opening, outcome, rejected, session, write,
};

/// One thing that is done.
#[derive(Debug, Clone)]
enum Step {
    /// The whole content: each item's texts, by the number of the item.
    Put(BTreeMap<u8, Vec<u8>>),
    Patch(BTreeMap<u8, Vec<u8>>, Vec<u8>),
    Delete,
    /// Claim; with a lease that is over at once, if so.
    Claim(bool),
    /// Ask for batches of this size; with a lease that is over at once, if so.
    Open(usize, i32, bool),
    /// The stream breaks.
    Orphan(usize),
    /// Embed this many chunks of a job held, and reject the next so many.
    Embed(usize, usize, usize),
    Fail(usize),
    Release(usize),
    Complete(usize),
    Rescue,
    /// Cancel one of the newest jobs.
    Cancel(usize),
    /// Have one of the newest jobs run again; with force, if so.
    Retry(usize, bool),
    /// Lose vectors and counts behind the store's back, if so, end all
    /// parking, and reconcile.
    Reconcile(bool),
    /// Another model from now on.
    Model(bool),
    /// A coordinator starts that has this prompt for the models.
    Prompt(u8),
    /// Give so many chunks the prompt in force.
    Reprompt(i64),
    /// Delete some of what is left of deleted sources, and go on with what is embedded anew.
    Sweep,
}

fn content() -> impl Strategy<Value = BTreeMap<u8, Vec<u8>>> {
    prop::collection::btree_map(0..8_u8, prop::collection::vec(0..4_u8, 0..4), 0..8)
}

fn step() -> impl Strategy<Value = Step> {
    let held = 0..4_usize;
    prop_oneof![
        3 => content().prop_map(Step::Put),
        3 => (content(), prop::collection::vec(0..8_u8, 0..3)).prop_map(|(upsert, delete)| Step::Patch(upsert, delete)),
        1 => Just(Step::Delete),
        6 => any::<bool>().prop_map(Step::Claim),
        8 => (held.clone(), 0..5_usize, 0..2_usize).prop_map(|(job, done, refused)| Step::Embed(job, done, refused)),
        3 => (held.clone(), 1..5_i32, any::<bool>()).prop_map(|(job, size, over)| Step::Open(job, size, over)),
        1 => held.clone().prop_map(Step::Orphan),
        2 => held.clone().prop_map(Step::Fail),
        1 => held.clone().prop_map(Step::Release),
        2 => held.prop_map(Step::Complete),
        2 => Just(Step::Rescue),
        2 => (0..6_usize).prop_map(Step::Cancel),
        3 => (0..6_usize, any::<bool>()).prop_map(|(job, force)| Step::Retry(job, force)),
        2 => any::<bool>().prop_map(Step::Reconcile),
        2 => any::<bool>().prop_map(Step::Model),
        2 => (0..3_u8).prop_map(Step::Prompt),
        4 => (1..5_i64).prop_map(Step::Reprompt),
        2 => Just(Step::Sweep),
    ]
}

fn planned(content: &BTreeMap<u8, Vec<u8>>) -> Vec<PlannedItem> {
    content
        .iter()
        .map(|(number, texts)| {
            let texts: Vec<String> = texts.iter().map(|text| format!("text {text}")).collect();
            item(
                &format!("i{number}"),
                &texts.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        })
        .collect()
}

/// What the test knows of the source.
#[derive(Default)]
struct Model {
    /// The content, while the source is there.
    content: Option<BTreeMap<u8, Vec<u8>>>,
    /// Every lease that was ever given.
    leases: Vec<Job>,
    write: Option<SourceWrite>,
}

/// A lease that is lost, or input for a text that has changed, is an answer;
/// anything else is a fault.
fn fenced<T>(answer: Result<T, StoreError>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(StoreError::LeaseLost { .. } | StoreError::Precondition(_)) => None,
        Err(error) => panic!("{error:?}"),
    }
}

/// Vectors that no unsettled job counts, every third of them, and the counts.
const LOSE: &str = "
    DELETE FROM weir.embeddings e WHERE hashtext(e.item_id) % 3 = 0 AND NOT EXISTS (
        SELECT FROM weir.jobs j WHERE j.source_id = e.source_id AND NOT j.settled
           AND e.item_id BETWEEN j.first_item_id AND j.last_item_id);
    UPDATE weir.sources SET items_total = items_total + 1, chunks_total = 0";

/// The newest job but so many, if there is one.
async fn newest(weir: &Weir, place: usize) -> Option<i64> {
    sqlx::query_scalar("SELECT id FROM weir.jobs ORDER BY id DESC LIMIT 1 OFFSET $1")
        .bind(place as i64)
        .fetch_optional(weir.pool())
        .await
        .unwrap()
}

#[expect(clippy::too_many_lines, reason = "one arm for each step")]
async fn take(weir: &Weir, model: &mut Model, step: &Step) {
    let policy = RetryPolicy {
        max_attempts: 2,
        backoff_base: Duration::ZERO,
        backoff_cap: Duration::ZERO,
        ..RetryPolicy::default()
    };
    let job = |place: usize| model.leases.iter().rev().nth(place).cloned();
    let write = model.write.clone().unwrap();
    match step {
        Step::Put(content) => {
            weir.store
                .put_source(&write, &planned(content))
                .await
                .unwrap();
            model.content = Some(content.clone());
        }
        Step::Patch(upsert, delete) => {
            let delete: Vec<u8> = delete
                .iter()
                .filter(|number| !upsert.contains_key(number))
                .copied()
                .collect();
            let ids: Vec<String> = delete.iter().map(|number| format!("i{number}")).collect();
            let answer = weir
                .store
                .patch_source(&write, &planned(upsert), &ids)
                .await;
            assert_eq!(answer.is_ok(), model.content.is_some(), "{answer:?}");
            if let Some(content) = &mut model.content {
                content.extend(upsert.clone());
                content.retain(|number, _| !delete.contains(number));
            }
        }
        Step::Delete => {
            let answer = weir.store.delete_source(&write.key, None).await;
            assert_eq!(answer.is_ok(), model.content.take().is_some(), "{answer:?}");
        }
        Step::Claim(over) => {
            let lease = if *over { Duration::ZERO } else { LEASE };
            model.leases.extend(weir.claim_many(1, lease).await);
            model.leases.extend(weir.claim_if("other", lease).await);
        }
        Step::Open(place, size, over) => {
            if let Some(job) = job(*place) {
                let lease = if *over { Duration::ZERO } else { LEASE };
                // A session of which no replica has ever told, or unary calls.
                let opening = Opening {
                    session: (size % 2 == 0).then(|| session('a').into()),
                    ..opening(lease_of(&job), *size)
                };
                fenced(weir.store.open(&opening, lease).await);
            }
        }
        Step::Orphan(place) => {
            if let Some(job) = job(*place) {
                let (session, ids) = (session('a'), [job.id]);
                let orphaned = weir.store.orphan_session(&session, &ids, Duration::ZERO);
                orphaned.await.unwrap();
            }
        }
        Step::Embed(place, done, refused) => {
            let Some(job) = job(*place) else { return };
            let Some(pending) = fenced(weir.store.pending(lease_of(&job), 100).await) else {
                return;
            };
            let texts = weir.store.texts(job.source_id, &pending).await.unwrap();
            let done = (*done).min(texts.len());
            let mut part = outcome(&job, &texts[..done]);
            for (chunk, truncated_to) in part.embedded.iter_mut().step_by(2).zip(1..) {
                chunk.truncated_to = Some(truncated_to);
            }
            part.rejected = texts[done..]
                .iter()
                .take(*refused)
                .map(|chunk| rejected(chunk, "no"))
                .collect();
            fenced(weir.upsert(part).await);
        }
        Step::Fail(place) => {
            if let Some(job) = job(*place) {
                fenced(
                    weir.store
                        .fail(lease_of(&job), "it broke", &policy, 0.0)
                        .await,
                );
            }
        }
        Step::Release(place) => {
            if let Some(job) = job(*place) {
                fenced(weir.store.release(lease_of(&job), "draining").await);
            }
        }
        Step::Complete(place) => {
            if let Some(job) = job(*place) {
                fenced(weir.store.complete(lease_of(&job)).await);
            }
        }
        Step::Rescue => {
            let patience = Patience {
                orphan_grace: Duration::ZERO,
                progress_deadline: LEASE,
            };
            weir.store
                .rescue(10, &patience, &policy, || 0.0)
                .await
                .unwrap();
        }
        Step::Cancel(place) => {
            if let Some(job_id) = newest(weir, *place).await {
                fenced(weir.store.cancel_job(&Scope::All, job_id).await);
            }
        }
        Step::Retry(place, force) => {
            if let Some(job_id) = newest(weir, *place).await {
                fenced(weir.retry(job_id, *force).await);
            }
        }
        Step::Reconcile(lose) => {
            if *lose {
                weir.meddle(LOSE).await;
            }
            weir.meddle(
                "UPDATE weir.jobs SET run_at = finished_at WHERE state = 'failed' AND NOT settled",
            )
            .await;
            weir.meddle("UPDATE weir.sources SET checked_at = now() - interval '1 day'")
                .await;
            let reconciler = Reconciler {
                store: weir.store.clone(),
                interval: LEASE,
                max_chunks_per_job: 5,
                tracer: Tracer::OFF,
            };
            while reconciler.tick().await.unwrap().more {}
            assert_eq!(
                weir.number(
                    "SELECT count(*) FROM weir.jobs WHERE state = 'failed' AND NOT settled"
                )
                .await,
                0
            );
        }
        Step::Model(other) => {
            let name = if *other {
                "other"
            } else {
                crate::fixture::MODEL
            };
            model.write = Some(SourceWrite {
                model: Some(name.to_owned()),
                ..write
            });
        }
        Step::Prompt(number) => {
            let prompt = ["", "text 1", "the prompt: "][usize::from(*number)];
            let prompts = [(crate::fixture::MODEL, prompt), ("other", prompt)];
            weir.store.set_prompts(&prompts).await.unwrap();
        }
        Step::Reprompt(chunks) => {
            for source_id in weir.store.sources_to_prompt(10).await.unwrap() {
                let step = weir.store.reprompt(source_id, *chunks, 5).await.unwrap();
                assert!(
                    step.is_some(),
                    "nobody else holds it, and something is to be done"
                );
            }
        }
        Step::Sweep => {
            steps::tick(&weir.store).await.unwrap();
        }
    }
}

/// Whether the source holds what was last written to it.
async fn agrees(weir: &Weir, model: &Model) {
    weir.check().await;
    let Some(content) = &model.content else {
        weir.store.source(&key("api")).await.unwrap_err();
        return;
    };
    let state = weir.store.source(&key("api")).await.unwrap();
    let stored: Vec<(String, i32, String)> = sqlx::query_as(
        "SELECT item_id, chunk_index, text FROM weir.chunks JOIN weir.sources s ON s.id = source_id
         ORDER BY item_id, chunk_index",
    )
    .fetch_all(weir.pool())
    .await
    .unwrap();
    let wanted: Vec<(String, i32, String)> = planned(content)
        .into_iter()
        .flat_map(|item| {
            (0..)
                .zip(item.chunks)
                .map(move |(index, chunk)| (item.item_id.clone(), index, chunk.text))
        })
        .collect();
    assert_eq!(stored, wanted);
    let counts = counts_of(&state.source);
    assert_eq!(
        counts.pending + counts.embedded + counts.rejected,
        counts.chunks,
        "{counts:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_laws_hold_in_any_order(steps in prop::collection::vec(step(), 1..40), chunks in 1..12_i64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let weir = Weir::in_steps_of(chunks).await;
            let mut small = write("api");
            small.max_chunks_per_job = 5;
            let mut model = Model { write: Some(small), ..Model::default() };
            for step in &steps {
                take(&weir, &mut model, step).await;
                agrees(&weir, &model).await;
            }
        });
    }
}

/// Does everything that takes the locks of a source and its jobs, from all
/// sides at once. None of it may meet another in a deadlock, and the reconciler
/// may at no moment find anything wrong.
#[tokio::test]
async fn what_changes_jobs_takes_turns() {
    const ROUNDS: usize = 30;

    let weir = Weir::new().await;
    let mut small = write("api");
    small.max_chunks_per_job = 2;
    let content = |round: usize| -> Vec<PlannedItem> {
        let text = |n: usize| format!("text {n} {}", if n % 4 == round % 4 { round } else { 0 });
        (0..10)
            .map(|n| item(&format!("i{n}"), &[&text(n)]))
            .collect()
    };
    weir.store.put_source(&small, &content(0)).await.unwrap();
    let policy = RetryPolicy {
        max_attempts: 1,
        ..RetryPolicy::default()
    };
    let writer = async {
        for round in 0..ROUNDS {
            let content = content(round / 2);
            weir.store.put_source(&small, &content).await.unwrap();
        }
    };
    let canceller = async {
        for round in 0..ROUNDS {
            let job_id = newest(&weir, round % 5).await.unwrap();
            fenced(weir.store.cancel_job(&Scope::All, job_id).await);
        }
    };
    let retrier = async |force: bool| {
        for round in 0..ROUNDS {
            let job_id = newest(&weir, round % 7).await.unwrap();
            fenced(weir.retry(job_id, force).await);
        }
    };
    let worker = async |fails: usize| {
        for round in 0..ROUNDS {
            for job in weir.claim_many(2, LEASE).await {
                let lease = lease_of(&job);
                if round % 3 == fails {
                    fenced(weir.store.fail(lease, "it broke", &policy, 0.0).await);
                } else if let Some(pending) = fenced(weir.store.pending(lease, 100).await) {
                    let texts = weir.store.texts(job.source_id, &pending).await.unwrap();
                    fenced(weir.upsert(outcome(&job, &texts)).await);
                }
            }
        }
    };
    let reconciler = async {
        let reconciler = Reconciler {
            store: weir.store.clone(),
            interval: Duration::ZERO,
            max_chunks_per_job: 2,
            tracer: Tracer::OFF,
        };
        for _ in 0..ROUNDS {
            weir.meddle(
                "UPDATE weir.jobs SET run_at = finished_at WHERE state = 'failed' AND NOT settled",
            )
            .await;
            assert_eq!(reconciler.tick().await.unwrap().repaired, 0);
        }
    };
    tokio::join!(
        writer,
        canceller,
        retrier(false),
        retrier(true),
        worker(0),
        worker(1),
        reconciler
    );
    weir.check().await;
}
