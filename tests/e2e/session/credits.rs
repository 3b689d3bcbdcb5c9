//! Credit, and how work is packed into it.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
};

use futures::future::join_all;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio_util::sync::CancellationToken;
use weir_proto::v1::{PutSourceRequest, lease_ended::How};
use weir_tests::{
    cluster::MODEL,
    invariants::broken_invariants,
    session::{Session, Told, credit, embeds, hands_back, opening, rejects, result},
};

use super::{jobs_that, put};
use crate::clients::{Weir, put_texts, until};

/// What all workers of a population have done.
#[derive(Default)]
struct Tally {
    /// How often each text got its outcome.
    outcomes: RefCell<HashMap<String, usize>>,
    finished: RefCell<HashSet<i64>>,
}

/// Works until all is done, and answers in every way that there is. As much credit as
/// an answer frees is granted again.
async fn work(
    mut session: Session,
    granted: i32,
    random: &RefCell<StdRng>,
    tally: &Tally,
    jobs: usize,
    done: &CancellationToken,
) {
    for _ in 0..granted {
        session.grant(1);
    }
    while let Some(told) = done.run_until_cancelled(session.next()).await {
        let batch = match told {
            Told::Batch(batch) => batch,
            Told::Ack(_) => continue,
            Told::Ended(ended) => {
                let finished = matches!(ended.how, Some(How::Finished(_)));
                assert!(finished, "{ended:?}");
                assert!(tally.finished.borrow_mut().insert(ended.job_id));
                if tally.finished.borrow().len() == jobs {
                    done.cancel();
                }
                continue;
            }
        };
        let mut answers = Vec::new();
        for part in &batch.parts {
            let mut answer = match random.borrow_mut().random_range(0..10) {
                0 => hands_back(part),
                1 => rejects(part, "not to my taste"),
                _ => embeds(part),
            };
            if random.borrow_mut().random_bool(0.2) {
                answer.embedded.pop();
            }
            let embedded = answer.embedded.iter().map(|it| &it.item_id);
            let settled = embedded.chain(answer.rejected.iter().map(|it| &it.item_id));
            for item_id in settled {
                let text = format!("{}/{item_id}", part.source);
                *tally.outcomes.borrow_mut().entry(text).or_default() += 1;
            }
            answers.push(answer);
        }
        let freed: usize = batch.parts.iter().map(|part| part.chunks.len()).sum();
        // Apart or together, before or after the credit.
        if random.borrow_mut().random() {
            session.send(result(answers));
            session.send(credit(MODEL, freed as i32));
        } else {
            for _ in 0..freed {
                session.grant(1);
            }
            for answer in answers {
                session.send(result([answer]));
            }
        }
    }
}

#[tokio::test]
async fn credit_is_never_exceeded_and_everything_is_done_once() {
    let settings = [
        ("WEIR_MAX_CHUNKS_PER_JOB", "12"),
        ("WEIR_MODELS", "fake=16"),
    ];
    let weir = Weir::with(&settings).await;
    for seed in 0..4 {
        let random = RefCell::new(StdRng::seed_from_u64(seed));
        let (mut jobs, mut chunks) = (0, 0);
        for source in 0..12 {
            let size = random.borrow_mut().random_range(1..40);
            let texts: Vec<String> = (0..size)
                .map(|id| format!("{seed} {source} {id}"))
                .collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let put = PutSourceRequest {
                namespace: format!("space-{}", source % 3),
                ..put_texts(&format!("{seed}-{source}"), &texts)
            };
            let put = weir.sources().put_source(put).await.unwrap();
            jobs += put.into_inner().jobs.len();
            chunks += size;
        }
        let (tally, done) = (Tally::default(), CancellationToken::new());
        let mut workers = Vec::new();
        for worker in 0..4 {
            let batch_size = random.borrow_mut().random_range(1..12);
            let open = opening(batch_size);
            let session = Session::open_as(&weir.channel, None, open).await;
            // One gets by on a credit of one.
            let granted = if worker == 0 {
                1
            } else {
                random.borrow_mut().random_range(1..30)
            };
            workers.push(work(session, granted, &random, &tally, jobs, &done));
        }
        join_all(workers).await;
        let outcomes = tally.outcomes.take();
        assert_eq!(outcomes.len(), chunks, "seed {seed}");
        let twice: Vec<_> = outcomes.iter().filter(|(_, times)| **times != 1).collect();
        assert!(twice.is_empty(), "seed {seed}: {twice:?}");
        let broken = broken_invariants(weir.database.pool()).await.unwrap();
        assert!(broken.is_empty(), "seed {seed}: {broken:?}");
    }
}

#[tokio::test]
async fn a_batch_carries_parts_of_several_small_jobs_and_one_result_answers_them() {
    const JOBS: usize = 40;
    let weir = Weir::start().await;
    let mut jobs = HashSet::new();
    for id in 0..JOBS {
        jobs.insert(put(&weir, &format!("source-{id}"), &["a"]).await);
    }
    let mut session = Session::open(&weir, 16).await;
    session.grant(JOBS as i32);
    let mut parts = Vec::new();
    let mut most = 0;
    while parts.len() < JOBS {
        let batch = session.batch().await;
        assert_eq!(batch.model, MODEL);
        most = most.max(batch.parts.len());
        parts.extend(batch.parts);
    }
    assert!(most > 1, "each job was a batch of its own");
    session.send(result(parts.iter().map(embeds)));
    for part in &parts {
        assert!(jobs.remove(&part.job_id));
        assert_eq!(session.finished(part.job_id).await.chunks_done, 1);
    }
    assert_eq!(weir.rows("embeddings").await, JOBS as i64);
}

/// A worker that has its hands full of one namespace is sent of another beside it.
#[tokio::test]
async fn a_large_job_of_one_namespace_does_not_keep_out_another() {
    let weir = Weir::start().await;
    let texts: Vec<String> = (0..200).map(|id| format!("text {id}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    put(&weir, "large", &texts).await;
    let mut session = Session::open(&weir, 2).await;
    session.grant(4);
    let mut held = vec![session.part().await, session.part().await];
    let small = PutSourceRequest {
        namespace: "other".to_owned(),
        ..put_texts("small", &["one"])
    };
    weir.sources().put_source(small).await.unwrap();
    // With all of its credit used up.
    let claimed = "namespace = 'other' AND session IS NOT NULL";
    until(async || jobs_that(&weir, claimed).await == 1).await;
    for batches in 0.. {
        assert!(batches < 10, "it waits for the large one to be done");
        let part = held.remove(0);
        session.embed_and_wait(&part).await;
        session.grant(part.chunks.len() as i32);
        let batch = session.batch().await;
        if batch.parts.iter().any(|part| part.namespace == "other") {
            break;
        }
        held.extend(batch.parts);
    }
}
