//! Writing the outcome of batches.

use weir_coordinator::{
    job::state::JobState,
    store::{
        StoreError,
        batches::{Outcome, Progress},
        rows::{ChunkText, Job},
    },
};
use weir_tests::embedder::expected_vector;

use crate::fixture::{
    ALL, LEASE, MODEL, Weir, counts, item, items, lease_of, many, outcome, rejected, write,
};

/// A source of this many items, its one job claimed, and the job's texts.
async fn held(weir: &Weir, count: usize) -> (Job, Vec<ChunkText>) {
    weir.put("api", &many(count)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    assert_eq!(texts.len(), count);
    (job, texts)
}

fn violations(error: StoreError) -> Vec<(String, String)> {
    match error {
        StoreError::Invalid(violations) => violations
            .into_iter()
            .map(|v| (v.field, v.message))
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// How a job stands, without its source.
fn standing(progress: Progress) -> (i64, i64, i64, bool) {
    (
        progress.done,
        progress.rejected,
        progress.total,
        progress.finished,
    )
}

#[tokio::test]
async fn vectors_are_stored_bit_by_bit() {
    let weir = Weir::new().await;
    let (job, texts) = held(&weir, 3).await;
    let odd = vec![
        f32::MIN_POSITIVE,
        -0.0,
        f32::MAX,
        1e-45,
        0.1,
        -1.0 / 3.0,
        1.0,
        2.0,
    ];
    let mut strange = outcome(&job, &texts);
    for chunk in &mut strange.embedded {
        chunk.vector.clone_from(&odd);
    }
    weir.upsert(strange).await.unwrap();
    for (model, vector) in weir.vectors("api").await.into_values() {
        assert_eq!(model, MODEL);
        let bits = |vector: &[f32]| vector.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&vector), bits(&odd));
    }
    assert_eq!(
        weir.number("SELECT dimension::bigint FROM weir.models")
            .await,
        8
    );
}

#[tokio::test]
async fn pending_chunks_come_shortest_first_and_bounded() {
    let weir = Weir::new().await;
    let content = [item("a", &["ccc", "a"]), item("b", &["bb", "dddd", "äö"])];
    weir.put("api", &content).await;
    let job = weir.claim().await;
    let pending = weir.store.pending(lease_of(&job), ALL).await.unwrap();
    let seen: Vec<_> = pending
        .iter()
        .map(|p| (p.item_id.as_str(), p.chunk_index, p.text_bytes))
        .collect();
    assert_eq!(
        seen,
        [
            ("a", 1, 1),
            ("b", 0, 2),
            ("a", 0, 3),
            ("b", 1, 4),
            ("b", 2, 4)
        ]
    );
    assert_eq!(
        weir.store.pending(lease_of(&job), 2).await.unwrap(),
        pending[..2]
    );
    // In the order asked for, and without what is gone.
    let mut wanted = vec![pending[3].clone(), pending[0].clone(), pending[3].clone()];
    wanted[2].chunk_index = 9;
    let texts = weir.store.texts(job.source_id, &wanted).await.unwrap();
    assert_eq!(
        texts
            .iter()
            .map(|chunk| chunk.text.as_str())
            .collect::<Vec<_>>(),
        ["dddd", "a"]
    );
}

#[tokio::test]
async fn batches_add_up_and_the_last_ends_the_job() {
    let weir = Weir::new().await;
    let (job, texts) = held(&weir, 5).await;
    for (upto, wanted) in [
        (2, (2, 0, 5, false)),
        (4, (4, 0, 5, false)),
        (5, (5, 0, 5, true)),
    ] {
        let from = if upto == 5 { 4 } else { upto - 2 };
        let progress = weir
            .upsert(outcome(&job, &texts[from..upto]))
            .await
            .unwrap();
        assert_eq!(standing(progress), wanted);
        assert_eq!(weir.counts("api").await.embedded, wanted.0);
        let left = weir.store.pending(lease_of(&job), ALL).await.unwrap();
        assert_eq!(left.len(), 5 - upto);
        weir.check().await;
    }
    let done = weir.job(job.id).await;
    assert_eq!(
        (done.state, done.epoch, done.worker_id),
        (JobState::Succeeded, job.epoch, job.worker_id)
    );
    assert!(done.finished_at.is_some());
}

#[tokio::test]
async fn a_batch_sent_again_counts_once() {
    let weir = Weir::new().await;
    let (job, texts) = held(&weir, 4).await;
    let mut first = outcome(&job, &texts[..1]);
    first.rejected = vec![rejected(&texts[1], "too odd")];
    for _ in 0..3 {
        assert_eq!(
            standing(weir.upsert(first.clone()).await.unwrap()),
            (1, 1, 4, false)
        );
    }
    // Together with something new.
    assert_eq!(
        standing(weir.upsert(outcome(&job, &texts[..3])).await.unwrap()).0,
        2
    );
    assert_eq!(weir.number("SELECT count(*) FROM weir.embeddings").await, 2);
}

#[tokio::test]
async fn law_4_a_batch_renews_its_lease() {
    let weir = Weir::new().await;
    let (job, texts) = held(&weir, 4).await;
    let short = std::time::Duration::from_secs(7);
    let mut nothing = outcome(&job, &[]);
    nothing.complete = false;
    for outcome in [outcome(&job, &texts[..1]), nothing] {
        weir.store.renew(lease_of(&job), LEASE).await.unwrap();
        weir.store.upsert(&outcome, short).await.unwrap();
        let renewed =
            "SELECT count(*) FROM weir.jobs WHERE lease_expires_at <= now() + interval '7 s'";
        assert_eq!(weir.number(renewed).await, 1);
    }
    let exact = "SELECT count(*) FROM weir.jobs j JOIN weir.embeddings e USING (source_id)
                 WHERE j.progressed_at = e.embedded_at AND j.lease_expires_at > e.embedded_at + interval '7 s'";
    assert_eq!(
        weir.number(exact).await,
        1,
        "the vectors and the renewal are of one transaction"
    );
}

/// A way to make an outcome bad.
type Spoil<'a> = Box<dyn Fn(&mut Outcome) + 'a>;

#[tokio::test]
async fn what_is_not_part_of_the_job_is_refused_whole() {
    let weir = Weir::new().await;
    let mut small = write("api");
    small.max_chunks_per_job = 2;
    weir.store.put_source(&small, &many(4)).await.unwrap();
    let jobs = weir.claim_many(2, LEASE).await;
    let (job, texts) = (&jobs[0], weir.texts(&jobs[0]).await);
    let foreign = weir.texts(&jobs[1]).await;
    let good = outcome(job, &texts);
    let spoils: Vec<(&str, Spoil<'_>)> = vec![
        (
            "embedded[1]",
            Box::new(|o| o.embedded[1].item_id = "nowhere".to_owned()),
        ),
        ("embedded[1]", Box::new(|o| o.embedded[1].chunk_index = 1)),
        ("embedded[0]", Box::new(|o| o.embedded[0].chunk_index = -1)),
        (
            "embedded[0]",
            Box::new(|o| o.embedded[0].text_hash[31] ^= 1),
        ),
        (
            "embedded[2]",
            Box::new(|o| o.embedded.push(crate::fixture::embedded(&foreign[0]))),
        ),
        (
            "rejected[0]",
            Box::new(|o| o.rejected = vec![rejected(&foreign[1], "no")]),
        ),
        (
            "rejected[0]",
            Box::new(|o| {
                o.embedded.pop();
                o.rejected = vec![rejected(&texts[1], "no")];
                o.rejected[0].text_hash = [0; 32];
            }),
        ),
    ];
    // Neither the first vectors of their model nor later ones leave a trace.
    for models in [0, 1] {
        for (field, spoil) in &spoils {
            let mut bad = good.clone();
            spoil(&mut bad);
            let found = violations(weir.upsert(bad).await.unwrap_err());
            let fields: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
            assert_eq!(fields, [*field]);
            let end = format!("is not part of job {}", job.id);
            assert!(found[0].1.ends_with(&end), "{found:?}");
            let written = "SELECT (SELECT count(*) FROM weir.embeddings) + (SELECT count(*) FROM weir.rejections)
                                + (SELECT count(*) FROM weir.models)";
            assert_eq!(weir.number(written).await, models, "{field}");
            assert_eq!(weir.job(job.id).await, *job);
        }
        let dimension = good.embedded[0].vector.len() as i32;
        sqlx::query(
            "INSERT INTO weir.models (name, dimension) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(&job.model)
        .bind(dimension)
        .execute(weir.store.pool())
        .await
        .unwrap();
    }
    assert!(weir.upsert(good).await.unwrap().finished);
    weir.check().await;
}

#[tokio::test]
async fn the_first_vectors_fix_the_dimension_of_their_model() {
    let weir = Weir::new().await;
    let (job, texts) = held(&weir, 3).await;
    let mut first = outcome(&job, &texts[..1]);
    first.embedded[0].vector.truncate(3);
    weir.upsert(first).await.unwrap();
    let found = violations(weir.upsert(outcome(&job, &texts[1..])).await.unwrap_err());
    let message = "has 16 numbers, but vectors of the model \"fake\" have 3".to_owned();
    assert_eq!(found, [("embedded[0].vector".to_owned(), message)]);
    assert_eq!(weir.embedded_items("api").await.len(), 1);
    assert_eq!(weir.job(job.id).await.chunks_done, 1);
    // Another model has its own.
    let mut other = write("other");
    other.model = Some("other".to_owned());
    weir.store.put_source(&other, &many(1)).await.unwrap();
    let other = weir.claim_of("other").await;
    assert!(weir.embed(&other).await.finished);
    // Rejections have no dimension.
    let mut refusal = outcome(&job, &[]);
    refusal.rejected = texts[1..]
        .iter()
        .map(|chunk| rejected(chunk, "no"))
        .collect();
    assert!(weir.upsert(refusal).await.unwrap().finished);
}

#[tokio::test]
async fn two_first_batches_of_a_model_agree_on_one_dimension() {
    let weir = Weir::new().await;
    weir.put("one", &many(1)).await;
    weir.put("two", &many(1)).await;
    let jobs = weir.claim_many(2, LEASE).await;
    let mut outcomes = Vec::new();
    for job in &jobs {
        outcomes.push(outcome(job, &weir.texts(job).await));
    }
    outcomes[1].embedded[0].vector.truncate(3);
    let (two, one) = (outcomes.pop().unwrap(), outcomes.pop().unwrap());
    let (one, two) = tokio::join!(weir.upsert(one), weir.upsert(two));
    let loser = if one.is_ok() { two } else { one };
    assert_eq!(violations(loser.unwrap_err())[0].0, "embedded[0].vector");
    assert_eq!(
        weir.number("SELECT count(DISTINCT vector_dims(embedding)) FROM weir.embeddings")
            .await,
        1
    );
    assert_eq!(weir.number("SELECT count(*) FROM weir.embeddings").await, 1);
}

#[tokio::test]
async fn law_8_a_rejected_chunk_is_recorded_and_its_neighbours_go_on() {
    let weir = Weir::new().await;
    let (job, texts) = held(&weir, 3).await;
    let mut refusal = outcome(&job, &texts[1..]);
    refusal.rejected = vec![rejected(&texts[0], "the input is too long")];
    assert_eq!(
        standing(weir.upsert(refusal).await.unwrap()),
        (2, 1, 3, true)
    );
    assert_eq!(weir.counts("api").await, counts([3, 3, 0, 2, 1]));
    let reason: String = sqlx::query_scalar("SELECT reason FROM weir.rejections")
        .fetch_one(weir.pool())
        .await
        .unwrap();
    assert_eq!(reason, "the input is too long");
    // The same content again does not try it again; another text does.
    assert!(weir.put("api", &many(3)).await.jobs.is_empty());
    let mut content = many(3);
    content[0] = item(&texts[0].item_id, &["shorter"]);
    weir.put("api", &content).await;
    assert_eq!(weir.counts("api").await, counts([3, 3, 1, 2, 0]));
    assert_eq!(weir.embed_all().await, ["shorter"]);
    weir.check().await;
}

#[tokio::test]
async fn the_first_verdict_on_a_text_holds() {
    let weir = Weir::new().await;
    let (job, texts) = held(&weir, 3).await;
    let mut first = outcome(&job, &texts[..1]);
    first.rejected = vec![rejected(&texts[1], "no")];
    weir.upsert(first).await.unwrap();
    // The other way round, as a worker may see it that cut its batches anew.
    let mut second = outcome(&job, &texts[1..2]);
    second.rejected = vec![rejected(&texts[0], "no")];
    assert_eq!(
        standing(weir.upsert(second).await.unwrap()),
        (1, 1, 3, false)
    );
    weir.check().await;
    assert_eq!(
        standing(weir.upsert(outcome(&job, &texts[2..])).await.unwrap()),
        (2, 1, 3, true)
    );
    weir.check().await;
}

#[tokio::test]
async fn progress_resets_the_attempts_and_a_resend_is_none() {
    let weir = Weir::new().await;
    let (job, texts) = held(&weir, 3).await;
    weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    sqlx::query("UPDATE weir.jobs SET attempt = 3, progressed_at = NULL")
        .execute(weir.pool())
        .await
        .unwrap();
    weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    assert_eq!(weir.job(job.id).await.attempt, 3, "nothing new came");
    assert_eq!(
        weir.number("SELECT count(progressed_at) FROM weir.jobs")
            .await,
        0
    );
    weir.upsert(outcome(&job, &texts[1..2])).await.unwrap();
    assert_eq!(weir.job(job.id).await.attempt, 0);
    assert_eq!(
        weir.number("SELECT count(progressed_at) FROM weir.jobs")
            .await,
        1
    );
}

#[tokio::test]
async fn law_7_a_batch_that_comes_while_the_text_changes_is_too_late() {
    let weir = Weir::new().await;
    weir.put("api", &items(&[("a", "apples"), ("b", "pears")]))
        .await;
    // The model has its dimension, so that the batch is one statement.
    weir.embed_all().await;
    weir.put("api", &items(&[("a", "figs"), ("b", "pears")]))
        .await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    // Holds up the put after it took the lock of the job.
    let mut gate = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.chunks WHERE item_id = 'a' FOR UPDATE")
        .execute(&mut *gate)
        .await
        .unwrap();
    let changed = items(&[("a", "dates"), ("b", "pears")]);
    let (_, answer, ()) = tokio::join!(
        weir.put("api", &changed),
        async {
            weir.blocked(1).await;
            weir.upsert(outcome(&job, &texts)).await
        },
        async {
            weir.blocked(2).await;
            gate.commit().await.unwrap();
        }
    );
    assert_eq!(answer.unwrap().late.embedded, 1);
    assert_eq!(weir.embedded_items("api").await, ["b"]);
    assert_eq!(weir.texts(&job).await[0].text, "dates");
    weir.check().await;
}

#[tokio::test]
async fn law_7_a_text_that_changes_while_its_batch_is_written_takes_the_vector_along() {
    let weir = Weir::new().await;
    weir.put("api", &items(&[("a", "apples"), ("b", "pears")]))
        .await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    // Holds up the batch, which is the first of its model, after it took the lock of its job.
    let mut gate = weir.pool().begin().await.unwrap();
    sqlx::query("INSERT INTO weir.models (name, dimension) VALUES ('fake', 16)")
        .execute(&mut *gate)
        .await
        .unwrap();
    let changed = items(&[("a", "dates"), ("b", "pears")]);
    let (answer, _, ()) = tokio::join!(
        weir.upsert(outcome(&job, &texts)),
        async {
            weir.blocked(1).await;
            weir.put("api", &changed).await
        },
        async {
            weir.blocked(2).await;
            gate.commit().await.unwrap();
        }
    );
    assert!(answer.unwrap().finished);
    assert_eq!(weir.embedded_items("api").await, ["b"]);
    assert_eq!(weir.counts("api").await, counts([2, 2, 1, 1, 0]));
    weir.check().await;
}

#[tokio::test]
async fn law_6_a_crash_costs_only_what_was_not_persisted() {
    let weir = Weir::new().await;
    let (job, texts) = held(&weir, 10).await;
    weir.upsert(outcome(&job, &texts[..6])).await.unwrap();
    // The worker is gone; its job goes to another.
    weir.store.release(lease_of(&job), "gone").await.unwrap();
    let next = weir.claim().await;
    let left: Vec<String> = weir
        .texts(&next)
        .await
        .into_iter()
        .map(|chunk| chunk.text)
        .collect();
    assert_eq!(
        left,
        texts[6..]
            .iter()
            .map(|chunk| chunk.text.clone())
            .collect::<Vec<_>>()
    );
    assert_eq!(standing(weir.embed(&next).await), (10, 0, 10, true));
    for ((item_id, _), (_, vector)) in weir.vectors("api").await {
        let text = &texts
            .iter()
            .find(|chunk| chunk.item_id == item_id)
            .unwrap()
            .text;
        assert_eq!(vector, expected_vector(text));
    }
    weir.check().await;
}
