//! Sources larger than a step that change their model: they move to it step by step,
//! and say so.

use weir_coordinator::{
    job::{badge::BadgeState, state::Trigger},
    maintenance::{prompts, steps},
    store::{
        Scope, Store, StoreError,
        content::{SourceWrite, Written},
        quota::Quota,
        reconcile::Findings,
        sources::SourceFilter,
    },
};

use crate::fixture::{
    LEASE, MODEL, Weir, counts, item, items, key, many, outcome, rejected, write,
};

/// Chunks in a step.
const STEP: i64 = 4;

/// A write of the source `api` that changes its model.
fn to(model: &str) -> SourceWrite {
    SourceWrite {
        model: Some(model.to_owned()),
        ..write("api")
    }
}

/// One with steps of few chunks.
async fn weir() -> Weir {
    let mut weir = Weir::new().await;
    weir.store = weir.store.with_steps_of(STEP);
    weir
}

/// One whose source `api` of twelve items is embedded.
async fn embedded() -> Weir {
    let weir = weir().await;
    weir.put("api", &many(12)).await;
    weir.embed_all().await;
    weir
}

/// Changes the model by a patch of nothing.
async fn change(weir: &Weir, model: &str) -> Written {
    weir.store.patch_source(&to(model), &[], &[]).await.unwrap()
}

/// Takes a step of the source; `false` when there is none to take.
async fn step(weir: &Weir) -> bool {
    let id = weir.store.source_id(&key("api")).await.unwrap();
    let step = weir.store.reprompt(id, STEP, 1_000).await.unwrap();
    weir.check().await;
    step.is_some()
}

async fn finish(weir: &Weir) {
    while step(weir).await {}
}

/// Embeds all jobs of a model that can be claimed; returns the texts, sorted.
async fn embed(weir: &Weir, model: &str) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(job) = weir.claim_if(model, LEASE).await {
        texts.extend(weir.texts(&job).await.into_iter().map(|it| it.text));
        weir.embed(&job).await;
    }
    texts.sort();
    texts
}

async fn badge(weir: &Weir) -> BadgeState {
    let source = weir.store.source(&key("api")).await.unwrap().source;
    source.standing(true).state()
}

fn texts(prompt: &str, numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    let mut texts: Vec<_> = numbers
        .into_iter()
        .map(|n| format!("{prompt}text {n}"))
        .collect();
    texts.sort();
    texts
}

#[tokio::test]
async fn a_large_source_moves_in_steps_whatever_the_words() {
    for [one, two] in [
        ["", ""],
        ["same: ", "same: "],
        ["one: ", "two: "],
        ["", "two: "],
    ] {
        let weir = weir().await;
        weir.store
            .set_prompts(&[(MODEL, one), ("other", two)])
            .await
            .unwrap();
        weir.put("api", &many(12)).await;
        weir.embed_all().await;
        let caller = SourceWrite {
            priority: 4,
            traceparent: Some("the caller's".to_owned()),
            ..to("other")
        };
        let written = weir.store.patch_source(&caller, &[], &[]).await.unwrap();
        weir.check().await;
        assert!(written.changed);
        let status = weir.store.source(&key("api")).await.unwrap().source;
        let whole = weir.overview(&Scope::All, &[]).await.remove(0);
        assert_eq!((whole.chunks, whole.chunks_pending), (12, 12));
        assert_eq!(
            (written.change.chunks_pending, status.chunks_pending),
            (12, 12)
        );
        // The first step is taken at once.
        let mut done = embed(&weir, "other").await;
        assert_eq!(done, texts(two, 0..4));
        weir.check().await;
        // It is not finished, although nothing is queued.
        assert_eq!(weir.counts("api").await, counts([12, 12, 8, 4, 0]));
        assert_eq!(badge(&weir).await, BadgeState::Queued);
        assert_eq!(weir.vectors("api").await.len(), 12, "searches go on");
        assert!(step(&weir).await);
        let jobs = weir.store.source(&key("api")).await.unwrap().jobs;
        assert_eq!(jobs.len(), 1);
        assert_eq!((jobs[0].priority, jobs[0].trigger), (4, Trigger::Write));
        assert_eq!(jobs[0].traceparent.as_deref(), Some("the caller's"));
        // Whoever begins anew goes on where it was.
        let anew = Store::new(weir.pool().clone(), LEASE);
        while prompts::tick(&anew, 1_000).await.unwrap() {
            weir.check().await;
        }
        done.extend(embed(&weir, "other").await);
        done.sort();
        assert_eq!(done, texts(two, 0..12), "each once");
        assert_eq!(weir.counts("api").await, counts([12, 12, 0, 12, 0]));
        assert_eq!(badge(&weir).await, BadgeState::Indexed);
        let vectors = weir.vectors("api").await;
        assert!(vectors.values().all(|(model, _)| model == "other"));
        assert!(!step(&weir).await);
        assert!(!change(&weir, "other").await.changed);
    }
}

#[tokio::test]
async fn a_source_of_a_step_moves_at_once() {
    let weir = weir().await;
    weir.put("api", &many(4)).await;
    weir.embed_all().await;
    change(&weir, "other").await;
    assert_eq!(
        weir.number("SELECT count(*) FROM weir.sources WHERE next_prompt_id IS NOT NULL")
            .await,
        0
    );
    assert_eq!(embed(&weir, "other").await.len(), 4);
    weir.check().await;
}

/// What is open ends, and what was computed by the model before is late.
#[tokio::test]
async fn work_of_the_model_before_ends() {
    let weir = weir().await;
    weir.put_in_twos("api", &many(12)).await;
    let [running, failed, cancelled] = weir.claim_many(3, LEASE).await.try_into().unwrap();
    let read = weir.texts(&running).await;
    weir.fail_for_good(&failed).await;
    weir.store
        .cancel_job(&Scope::All, cancelled.id)
        .await
        .unwrap();
    let written = change(&weir, "other").await;
    assert_eq!(written.change.jobs_superseded, 4);
    let late = weir.upsert(outcome(&running, &read)).await;
    assert!(
        matches!(late, Err(StoreError::LeaseLost { .. })),
        "{late:?}"
    );
    weir.check().await;
    finish(&weir).await;
    assert_eq!(embed(&weir, "other").await.len(), 12);
}

#[tokio::test]
async fn a_second_change_under_way_begins_anew_and_embeds_nothing_again() {
    for back in [false, true] {
        let weir = weir().await;
        let prompts = [(MODEL, "one: "), ("other", "two: "), ("third", "")];
        weir.store.set_prompts(&prompts).await.unwrap();
        weir.put("api", &many(12)).await;
        weir.embed_all().await;
        change(&weir, "other").await;
        assert!(step(&weir).await);
        // The first step was embedded, the second is queued, the third is still to be moved.
        let job = weir.claim_of("other").await;
        weir.embed(&job).await;
        let (model, prompt, wanted) = if back {
            (MODEL, "one: ", texts("one: ", 0..4))
        } else {
            ("third", "", texts("", 0..12))
        };
        let written = change(&weir, model).await;
        let status = weir.store.source(&key("api")).await.unwrap().source;
        assert_eq!(status.chunks_pending, 12, "{prompt}");
        assert_eq!(written.change.chunks_pending, 12, "{prompt}");
        weir.check().await;
        finish(&weir).await;
        assert_eq!(embed(&weir, model).await, wanted);
        assert_eq!(embed(&weir, "other").await, [""; 0]);
        assert_eq!(weir.counts("api").await, counts([12, 12, 0, 12, 0]));
    }
}

/// Also when it was in the midst of a change of its prompt, and when another comes.
#[tokio::test]
async fn a_change_of_the_prompt_under_way_gives_way() {
    let weir = embedded().await;
    weir.store.set_prompts(&[(MODEL, "one: ")]).await.unwrap();
    assert!(step(&weir).await);
    weir.store.set_prompts(&[("other", "two: ")]).await.unwrap();
    change(&weir, "other").await;
    weir.check().await;
    weir.store
        .set_prompts(&[("other", "three: ")])
        .await
        .unwrap();
    assert!(step(&weir).await);
    finish(&weir).await;
    assert_eq!(embed(&weir, "other").await, texts("three: ", 0..12));
    weir.check().await;
}

#[tokio::test]
async fn writes_under_way_are_part_of_it() {
    let weir = weir().await;
    weir.store
        .set_prompts(&[(MODEL, "one: "), ("other", "two: ")])
        .await
        .unwrap();
    let mut content = many(12);
    weir.put("api", &content).await;
    weir.embed_all().await;
    change(&weir, "other").await;
    // The same again changes nothing, before where it has come and behind.
    let again = weir.put("api", &content).await;
    assert_eq!((again.changed, again.change.items_unchanged), (false, 12));
    weir.check().await;
    // A patch: changed, new and gone on either side.
    let upsert = [
        item("i0000", &["new 0", "more 0"]),
        item("i0001-a", &["added"]),
        item("i0008", &["new 8"]),
        item("i0009", &["text 9", "more 9"]),
        item("i0009-a", &["added, too"]),
    ];
    let gone = ["i0002".to_owned(), "i0010".to_owned()];
    weir.store
        .patch_source(&write("api"), &upsert, &gone)
        .await
        .unwrap();
    weir.check().await;
    assert_eq!(weir.counts("api").await.pending, 14);
    assert!(step(&weir).await);
    let mut done = embed(&weir, "other").await;
    // A whole put: what it leaves out is gone, what it has not changed stays.
    content = items(&[
        ("i0000", "new 0"),
        ("i0003", "text 3"),
        ("i0008", "newer 8"),
        ("i0009", "text 9"),
        ("z", "last"),
    ]);
    let put = weir.put("api", &content).await;
    assert!(put.changed);
    weir.check().await;
    finish(&weir).await;
    done.extend(embed(&weir, "other").await);
    assert_eq!(weir.counts("api").await, counts([5, 5, 0, 5, 0]));
    done.sort();
    for wanted in ["new 0", "text 3", "newer 8", "text 9", "last"] {
        let times = done
            .iter()
            .filter(|text| **text == format!("two: {wanted}"))
            .count();
        assert_eq!(times, 1, "{wanted:?} in {done:?}");
    }
    weir.check().await;
}

#[tokio::test]
async fn a_whole_put_may_change_the_model_and_the_content() {
    let weir = embedded().await;
    let mut content = many(12);
    content[3] = item("i0003", &["new"]);
    content.remove(7);
    content.push(item("z", &["added", "and more"]));
    let put = weir.store.put_source(&to("other"), &content).await.unwrap();
    let change = put.change;
    assert_eq!(
        (
            change.items_added,
            change.items_changed,
            change.items_deleted
        ),
        (1, 1, 1)
    );
    weir.check().await;
    assert_eq!(weir.counts("api").await, counts([12, 13, 13, 0, 0]));
    finish(&weir).await;
    assert_eq!(embed(&weir, "other").await.len(), 13);
    weir.check().await;
}

#[tokio::test]
async fn a_deletion_under_way_leaves_nothing() {
    let weir = embedded().await;
    change(&weir, "other").await;
    weir.store.delete_source(&key("api"), None).await.unwrap();
    assert_eq!(weir.store.sources_to_prompt(10).await.unwrap(), [0; 0]);
    weir.check().await;
    while steps::tick(&weir.store).await.unwrap().done > 0 {}
    let left = "SELECT (SELECT count(*) FROM weir.items) + (SELECT count(*) FROM weir.chunks)
                     + (SELECT count(*) FROM weir.embeddings) + (SELECT count(*) FROM weir.jobs WHERE NOT settled)";
    assert_eq!(weir.number(left).await, 0);
    weir.put("api", &many(2)).await;
    assert_eq!(weir.embed_all().await.len(), 2);
    weir.check().await;
}

/// What the model before rejected is pending, and counted so.
#[tokio::test]
async fn rejections_of_the_model_before_count_no_more() {
    let weir = weir().await;
    weir.put("api", &many(12)).await;
    let job = weir.claim().await;
    let mut all = outcome(&job, &[]);
    let read = weir.texts(&job).await;
    all.rejected = read.iter().map(|chunk| rejected(chunk, "no")).collect();
    weir.upsert(all).await.unwrap();
    assert_eq!(weir.counts("api").await.rejected, 12);
    change(&weir, "other").await;
    weir.check().await;
    assert_eq!(weir.counts("api").await, counts([12, 12, 12, 0, 0]));
    let source = weir.store.source(&key("api")).await.unwrap().source;
    assert_eq!((source.rejected_since, source.last_rejection), (None, None));
    // Some are rejected by the new model, deleted, taken back and rejected again.
    let job = weir.claim_of("other").await;
    let mut part = outcome(&job, &[]);
    part.rejected = weir
        .texts(&job)
        .await
        .iter()
        .map(|chunk| rejected(chunk, "not I"))
        .collect();
    weir.upsert(part).await.unwrap();
    weir.check().await;
    assert_eq!(weir.counts("api").await, counts([12, 12, 8, 0, 4]));
    let gone = ["i0000".to_owned(), "i0011".to_owned()];
    weir.store
        .patch_source(&write("api"), &[item("i0010", &["new"])], &gone)
        .await
        .unwrap();
    weir.check().await;
    let retry = weir_coordinator::store::steer::SourceRetry {
        key: key("api"),
        max_chunks_per_job: 1_000,
        traceparent: None,
    };
    assert_eq!(weir.store.retry_source(&retry).await.unwrap().taken_back, 3);
    weir.check().await;
    // By force of a job of the model before, whose range is still to be moved.
    let first = weir.number("SELECT min(id) FROM weir.jobs").await;
    weir.retry(first, true).await.unwrap();
    weir.check().await;
    assert_eq!(weir.counts("api").await, counts([10, 10, 10, 0, 0]));
    finish(&weir).await;
    assert_eq!(embed(&weir, "other").await.len(), 10);
    assert_eq!(weir.number("SELECT count(*) FROM weir.rejections").await, 0);
}

/// Whoever waits for the source to be done finds it, and vectors of the model before
/// hold its dimension.
#[tokio::test]
async fn it_is_not_settled_while_it_moves() {
    let weir = embedded().await;
    change(&weir, "other").await;
    embed(&weir, "other").await;
    assert_eq!(
        weir.number("SELECT count(*) FROM weir.jobs WHERE NOT settled")
            .await,
        0
    );
    let unsettled = SourceFilter {
        unsettled_only: true,
        ..SourceFilter::default()
    };
    let listed = weir
        .store
        .sources(&Scope::All, &unsettled, None, 10)
        .await
        .unwrap();
    assert_eq!(listed.rows.len(), 1);
    weir.meddle("UPDATE weir.former_models SET changed_at = now() - interval '2 hours'")
        .await;
    assert_eq!(weir.store.drop_old_sources(LEASE, 10).await.unwrap(), 0);
    weir.put("new", &many(1)).await;
    let job = weir.claim().await;
    let mut wrong = outcome(&job, &weir.texts(&job).await);
    wrong.embedded[0].vector.push(1.0);
    let refused = weir.upsert(wrong).await;
    assert!(
        matches!(refused, Err(StoreError::Invalid(_))),
        "{refused:?}"
    );
    finish(&weir).await;
    embed(&weir, "other").await;
    assert_eq!(weir.store.drop_old_sources(LEASE, 10).await.unwrap(), 1);
}

#[tokio::test]
async fn what_is_still_to_be_moved_counts_against_the_quota() {
    let weir = embedded().await;
    let quota = Quota {
        max_pending_chunks: Some(10),
        ..Quota::default()
    };
    let bounded = weir.store.clone().with_quota(quota);
    let refused = bounded.patch_source(&to("other"), &[], &[]).await;
    assert!(
        matches!(refused, Err(StoreError::Exhausted(_))),
        "{refused:?}"
    );
    weir.check().await;
    change(&weir, "other").await;
    let more = SourceWrite {
        model: None,
        ..write("another")
    };
    let refused = bounded.put_source(&more, &many(1)).await;
    assert!(
        matches!(refused, Err(StoreError::Exhausted(_))),
        "{refused:?}"
    );
}

/// The reconciler finds nothing wrong with what is still to be moved, and what is
/// lost of what was.
#[tokio::test]
async fn a_check_under_way_looks_at_what_was_moved() {
    let weir = embedded().await;
    change(&weir, "other").await;
    embed(&weir, "other").await;
    weir.meddle("DELETE FROM weir.embeddings WHERE item_id IN ('i0001', 'i0009')")
        .await;
    let id = weir.store.source_id(&key("api")).await.unwrap();
    let lost = Findings {
        uncovered: true,
        ..Findings::default()
    };
    assert_eq!(weir.findings(id).await, lost);
    assert_eq!(weir.put_right(id).await.unwrap().queued, 1);
    weir.check().await;
    assert_eq!(embed(&weir, "other").await, ["text 1"]);
    finish(&weir).await;
    assert_eq!(embed(&weir, "other").await, texts("", 4..12));
}

/// The write and each step read what a step is, however large the source and however
/// many its jobs.
#[tokio::test]
async fn a_step_reads_what_it_moves() {
    const CHUNKS: i64 = 100;
    let read = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables
                WHERE schemaname = 'weir' AND relname IN ('items', 'chunks', 'embeddings', 'rejections', 'jobs')";
    let weir = Weir::new().await;
    let content: Vec<_> = (0..20_000)
        .map(|n| item(&format!("i{n:05}"), &["text"]))
        .collect();
    let small = SourceWrite {
        max_chunks_per_job: 10,
        ..write("api")
    };
    weir.store.put_source(&small, &content).await.unwrap();
    weir.meddle(
        "INSERT INTO weir.embeddings (source_id, item_id, chunk_index, model, text_hash, embedding)
         SELECT c.source_id, c.item_id, c.chunk_index, s.model, c.text_hash, '[1]'
         FROM weir.chunks c JOIN weir.sources s ON s.id = c.source_id;
         DELETE FROM weir.jobs",
    )
    .await;
    weir.meddle("VACUUM ANALYZE").await;
    // A thousand jobs are read whole, unless that is forbidden.
    let counted = weir.counted_with("SET enable_seqscan = off").await;
    let store = counted.store.clone().with_steps_of(CHUNKS);
    let other = SourceWrite {
        model: Some("other".to_owned()),
        ..small
    };
    let before = counted.told(read).await;
    store.patch_source(&other, &[], &[]).await.unwrap();
    let rows = counted.told(read).await - before;
    assert!(rows <= 20 * CHUNKS, "{rows} rows for the write");
    let id = store.source_id(&key("api")).await.unwrap();
    // Many jobs of what was moved wait.
    for _ in 0..110 {
        store.reprompt(id, CHUNKS, 10).await.unwrap();
    }
    weir.meddle("VACUUM ANALYZE").await;
    let before = counted.told(read).await;
    store.reprompt(id, CHUNKS, 10).await.unwrap();
    let rows = counted.told(read).await - before;
    assert!(rows <= 10 * CHUNKS, "{rows} rows for a step");
    assert!(
        weir.number("SELECT count(*) FROM weir.jobs WHERE NOT settled")
            .await
            > 1_000
    );
}
