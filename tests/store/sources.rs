//! Writing, reading and deleting sources.

use weir_coordinator::{
    job::{
        plan::PlannedItem,
        state::{JobState, RevokeReason},
    },
    store::{
        Scope, StoreError,
        content::{Change, SourceWrite, WrittenSource},
        quota::Quota,
        rows::{Job, Source},
        sources::{Deleted, SourceFilter},
        status::Paging,
    },
};

use crate::fixture::{
    MODEL, Weir, counts, counts_of, item, items, key, lease_of, many, outcome, rejected, write,
};

/// What a write says of a source that stands so.
fn left(source: &Source) -> WrittenSource {
    WrittenSource {
        id: source.id,
        namespace: source.namespace.clone(),
        name: source.name.clone(),
        model: source.model.clone(),
        revision: source.revision,
        items_total: source.items_total,
        chunks_total: source.chunks_total,
        created_at: source.created_at,
        updated_at: source.updated_at,
    }
}

#[tokio::test]
async fn a_source_goes_from_put_to_embedded() {
    let weir = Weir::new().await;
    let written = weir
        .put("api", &items(&[("a", "apples"), ("b", "pears")]))
        .await;
    assert_eq!(written.source.revision, 1);
    assert_eq!(
        written.change,
        Change {
            items_added: 2,
            chunks_pending: 2,
            ..Change::default()
        }
    );
    assert_eq!(weir.counts("api").await, counts([2, 2, 2, 0, 0]));
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    assert_eq!(
        texts.iter().map(|c| c.text.as_str()).collect::<Vec<_>>(),
        ["pears", "apples"]
    );
    let progress = weir.upsert(outcome(&job, &texts)).await.unwrap();
    assert!(progress.finished);
    assert_eq!(
        (progress.done, progress.rejected, progress.total),
        (2, 0, 2)
    );
    assert_eq!(weir.counts("api").await, counts([2, 2, 0, 2, 0]));
    assert!(
        weir.store
            .source(&key("api"))
            .await
            .unwrap()
            .jobs
            .is_empty()
    );
    weir.check().await;
}

#[tokio::test]
async fn a_new_source_is_the_same_in_one_statement_and_step_by_step() {
    let weir = Weir::new().await;
    // What is counted against a quota is written step by step.
    let quota = Quota {
        max_sources: Some(100),
        max_pending_chunks: None,
    };
    let stepwise = weir.store.clone().with_quota(quota);
    let mut content = many(5);
    content[1] = item("i0001", &["two", "chunks"]);
    content[2].metadata = Some(r#"{"kept": true}"#.to_owned());
    let mut facts = Vec::new();
    for (store, name) in [(&weir.store, "one"), (&stepwise, "steps")] {
        let write = SourceWrite {
            model: None,
            priority: 7,
            max_chunks_per_job: 3,
            traceparent: Some("00-1-2-01".to_owned()),
            ..write(name)
        };
        let written = store.put_source(&write, &content).await.unwrap();
        assert!(written.changed);
        let stored = store.source(&key(name)).await.unwrap();
        assert_eq!(written.jobs, stored.jobs);
        assert_eq!(written.source, left(&stored.source));
        let jobs = written.jobs.iter().map(|job| {
            let range = (job.first_item_id.clone(), job.last_item_id.clone());
            (
                range,
                job.chunks_total,
                job.priority,
                job.revision,
                job.trigger,
                job.traceparent.clone(),
            )
        });
        let jobs: Vec<_> = jobs.collect();
        assert_eq!(jobs.len(), 2);
        let sql = "SELECT jsonb_agg(to_jsonb(i) - 'source_id' ORDER BY item_id)::text,
                          (SELECT jsonb_agg(to_jsonb(c) - 'source_id' ORDER BY item_id, chunk_index)::text
                           FROM weir.chunks c WHERE c.source_id = $1)
                   FROM weir.items i WHERE i.source_id = $1";
        let rows: (String, String) = sqlx::query_as(sql)
            .bind(written.source.id)
            .fetch_one(weir.pool())
            .await
            .unwrap();
        facts.push((written.change, counts_of(&stored.source), jobs, rows));
    }
    assert_eq!(facts[0], facts[1]);
    weir.check().await;
}

#[tokio::test]
async fn the_same_content_again_queues_nothing() {
    let weir = Weir::new().await;
    let content = items(&[("a", "apples"), ("b", "pears")]);
    let first = weir.put("api", &content).await;
    for _ in 0..2 {
        let again = weir.put("api", &content).await;
        assert_eq!(
            again.change,
            Change {
                items_unchanged: 2,
                ..Change::default()
            }
        );
        assert_eq!(again.source, first.source);
        assert_eq!(again.jobs, [], "its open job runs on, and nothing is new");
        let stored = weir.store.source(&key("api")).await.unwrap();
        assert_eq!(stored.jobs, first.jobs);
    }
    weir.embed_all().await;
    let again = weir.put("api", &content).await;
    assert_eq!(again.source.revision, 1);
    assert!(again.jobs.is_empty());
    assert_eq!(weir.number("SELECT count(*) FROM weir.jobs").await, 1);
    weir.check().await;
}

#[tokio::test]
async fn law_6_one_changed_item_is_all_that_is_embedded_again() {
    let weir = Weir::new().await;
    let mut content = many(50);
    weir.put("api", &content).await;
    weir.embed_all().await;
    let before = weir.vectors("api").await;
    content[17] = item("i0017", &["something else"]);
    let written = weir.put("api", &content).await;
    assert_eq!(written.change.items_changed, 1);
    assert_eq!(weir.counts("api").await, counts([50, 50, 1, 49, 0]));
    assert_eq!(weir.embed_all().await, ["something else"]);
    let mut after = weir.vectors("api").await;
    assert_ne!(
        after.remove(&("i0017".to_owned(), 0)),
        before.get(&("i0017".to_owned(), 0)).cloned()
    );
    assert!(after.iter().all(|(chunk, vector)| before[chunk] == *vector));
    weir.check().await;
}

#[tokio::test]
async fn a_changed_text_takes_its_vector_with_it_and_is_pending_in_its_job() {
    let weir = Weir::new().await;
    weir.put(
        "api",
        &items(&[("a", "apples"), ("b", "pears"), ("c", "plums")]),
    )
    .await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    weir.upsert(outcome(&job, &texts[..2])).await.unwrap();
    assert_eq!(
        weir.embedded_items("api").await,
        ["b", "c"],
        "the shorter ones"
    );

    let written = weir
        .put(
            "api",
            &items(&[("a", "apples"), ("b", "figs"), ("c", "plums")]),
        )
        .await;
    assert_eq!(
        written.change,
        Change {
            items_changed: 1,
            items_unchanged: 2,
            chunks_pending: 1,
            ..Change::default()
        }
    );
    assert_eq!(weir.embedded_items("api").await, ["c"]);
    assert_eq!(weir.counts("api").await, counts([3, 3, 2, 1, 0]));
    let goes_on = weir.job(job.id).await;
    assert_eq!(
        (goes_on.state, goes_on.epoch, goes_on.chunks_total),
        (JobState::Running, job.epoch, 4),
        "two done, one of them for nothing, and two to do"
    );
    weir.check().await;
    // What was handed out before comes late for the one, and in time for the other.
    let progress = weir.upsert(outcome(&job, &texts)).await.unwrap();
    assert_eq!(
        (progress.late.embedded, progress.done, progress.total),
        (1, 3, 4)
    );
    assert!(!progress.finished);
    assert_eq!(weir.embedded_items("api").await, ["a", "c"]);
    weir.check().await;
    assert!(weir.embed(&job).await.finished);
    assert_eq!(weir.embedded_items("api").await, ["a", "b", "c"]);
    assert_eq!(weir.embed_all().await, [""; 0]);
    weir.check().await;
}

#[tokio::test]
async fn what_is_left_out_of_a_put_is_gone() {
    let weir = Weir::new().await;
    weir.put("api", &many(30)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let mut refusal = outcome(&job, &texts[1..]);
    refusal.rejected = vec![rejected(&texts[0], "too odd")];
    weir.upsert(refusal).await.unwrap();
    assert_eq!(weir.counts("api").await, counts([30, 30, 0, 29, 1]));
    let kept: Vec<_> = many(30).into_iter().skip(10).step_by(2).collect();
    let written = weir.put("api", &kept).await;
    assert_eq!(
        (written.change.items_deleted, written.change.items_unchanged),
        (20, 10)
    );
    assert_eq!(weir.counts("api").await, counts([10, 10, 0, 10, 0]));
    assert_eq!(weir.number("SELECT count(*) FROM weir.rejections").await, 0);
    assert!(written.jobs.is_empty());
    weir.check().await;
}

#[tokio::test]
async fn an_item_loses_and_gains_chunks() {
    let weir = Weir::new().await;
    weir.put(
        "api",
        &[item("a", &["one", "two", "three"]), item("b", &["x"])],
    )
    .await;
    weir.embed_all().await;
    weir.put("api", &[item("a", &["one"]), item("b", &["x", "y"])])
        .await;
    assert_eq!(weir.counts("api").await, counts([2, 3, 1, 2, 0]));
    assert_eq!(weir.embed_all().await, ["y"]);
    weir.put("api", &[item("a", &[]), item("b", &["x", "y"])])
        .await;
    assert_eq!(
        weir.counts("api").await,
        counts([2, 2, 0, 2, 0]),
        "a blank item has no chunk"
    );
    weir.check().await;
}

#[tokio::test]
async fn metadata_alone_disturbs_no_job() {
    let weir = Weir::new().await;
    let mut content = items(&[("a", "apples"), ("b", "pears")]);
    weir.put("api", &content).await;
    let job = weir.claim().await;
    content[0].metadata = Some(r#"{"path": "/apples"}"#.to_owned());
    let written = weir.put("api", &content).await;
    assert_eq!(
        written.change,
        Change {
            items_changed: 1,
            items_unchanged: 1,
            ..Change::default()
        }
    );
    assert_eq!(written.source.revision, 2);
    assert_eq!(written.jobs, [], "nothing is to be embedded for it");
    assert_eq!(weir.job(job.id).await, job);
    // The same JSON in another spelling is no change.
    content[0].metadata = Some(r#"{ "path":"/apples" }"#.to_owned());
    assert_eq!(weir.put("api", &content).await.source.revision, 2);
    assert!(weir.embed(&job).await.finished);
    weir.check().await;
}

#[tokio::test]
async fn another_model_replaces_vectors_one_by_one() {
    let weir = Weir::new().await;
    let content = items(&[("a", "apples"), ("b", "pears")]);
    let mut first = write("api");
    first.model = Some("old".to_owned());
    weir.store.put_source(&first, &content).await.unwrap();
    let mut second = first.clone();
    second.model = Some("fake".to_owned());
    let old_job = weir.claim_of("old").await;
    weir.embed(&old_job).await;

    let written = weir.store.put_source(&second, &content).await.unwrap();
    assert_eq!((written.source.revision, written.jobs.len()), (2, 1));
    assert_eq!(weir.counts("api").await, counts([2, 2, 2, 0, 0]));
    let models = |vectors: std::collections::BTreeMap<_, (String, Vec<f32>)>| {
        vectors
            .into_values()
            .map(|(model, _)| model)
            .collect::<Vec<_>>()
    };
    assert_eq!(models(weir.vectors("api").await), ["old", "old"]);
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let progress = weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    assert_eq!(
        (progress.done, progress.finished),
        (1, false),
        "an old vector replaced counts"
    );
    assert_eq!(
        models(weir.vectors("api").await),
        ["old", "fake"],
        "by item: pears came first"
    );
    weir.embed(&job).await;
    assert_eq!(models(weir.vectors("api").await), ["fake", "fake"]);
    // A write that names no model keeps the source's.
    assert_eq!(weir.put("api", &content).await.source.model, "fake");
    weir.check().await;
}

#[tokio::test]
async fn an_empty_source_is_a_source() {
    let weir = Weir::new().await;
    let written = weir.put("api", &[]).await;
    assert_eq!((written.source.revision, written.jobs.len()), (1, 0));
    assert_eq!(weir.counts("api").await, counts([0, 0, 0, 0, 0]));
    assert_eq!(weir.put("api", &[]).await.source.revision, 1);
    weir.put("api", &many(3)).await;
    let emptied = weir.put("api", &[]).await;
    assert_eq!(
        (emptied.change.items_deleted, emptied.change.jobs_superseded),
        (3, 0)
    );
    assert_eq!(emptied.jobs, [], "nothing is left to be done");
    assert_eq!(weir.counts("api").await, counts([0, 0, 0, 0, 0]));
    assert!(!weir.store.any_due(&[MODEL.to_owned()]).await.unwrap());
    weir.check().await;
}

#[tokio::test]
async fn law_10_a_large_source_is_cut_into_jobs_that_do_not_overlap() {
    let weir = Weir::new().await;
    let mut write = write("api");
    write.max_chunks_per_job = 10;
    write.priority = 7;
    write.traceparent = Some("00-1-2-01".to_owned());
    // More items than one page of statements holds.
    let written = weir.store.put_source(&write, &many(1_025)).await.unwrap();
    assert_eq!(written.jobs.len(), 103);
    for job in &written.jobs {
        assert_eq!(
            (job.priority, job.revision, job.state),
            (7, 1, JobState::Queued)
        );
        assert_eq!(job.traceparent.as_deref(), Some("00-1-2-01"));
    }
    weir.check().await;
    let jobs = weir.claim_many(2, crate::fixture::LEASE).await;
    weir.embed(&jobs[0]).await;
    let texts = weir.texts(&jobs[1]).await;
    weir.upsert(outcome(&jobs[1], &texts[..3])).await.unwrap();
    assert_eq!(
        weir.counts("api").await,
        counts([1_025, 1_025, 1_012, 13, 0])
    );
    // A change in the middle touches one job.
    let versions = "SELECT count(DISTINCT xmin::text) FROM weir.jobs";
    let before = weir.number(versions).await;
    let mut content = many(1_025);
    content.remove(500);
    let written = weir.store.put_source(&write, &content).await.unwrap();
    assert_eq!(written.change.jobs_superseded, 0);
    assert_eq!(weir.number(versions).await, before + 1);
    assert_eq!(
        weir.number("SELECT count(*) FROM weir.jobs WHERE changes = 1")
            .await,
        1
    );
    assert_eq!(
        weir.counts("api").await,
        counts([1_024, 1_024, 1_011, 13, 0])
    );
    weir.check().await;
    assert_eq!(weir.embed_all().await.len(), 1_004);
    assert!(weir.embed(&jobs[1]).await.finished);
    assert_eq!(
        weir.counts("api").await,
        counts([1_024, 1_024, 0, 1_024, 0])
    );
    weir.check().await;
}

#[tokio::test]
async fn a_failed_job_stays_parked_but_for_what_is_written() {
    let weir = Weir::new().await;
    let content = items(&[("a", "apples"), ("b", "pears")]);
    weir.put("api", &content).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    weir.fail_for_good(&job).await;
    let state = weir.store.source(&key("api")).await.unwrap();
    assert_eq!(
        state.jobs.iter().map(|job| job.state).collect::<Vec<_>>(),
        [JobState::Failed]
    );
    assert_eq!(
        weir.counts("api").await,
        counts([2, 2, 1, 1, 0]),
        "a failed job's chunks stay pending"
    );
    weir.check().await;

    let written = weir.put("api", &content).await;
    assert_eq!(written.source.revision, 1);
    assert_eq!(written.jobs, [], "the same content");
    let stored = weir.store.source(&key("api")).await.unwrap();
    assert_eq!(stored.jobs, state.jobs);
    // What is changed is new, whatever became of the old text.
    let changed = items(&[("a", "grapes"), ("b", "plums")]);
    let written = weir.put("api", &changed).await;
    let open = written.jobs.iter().all(|job| job.state == JobState::Queued);
    assert!(open, "the failed one has nothing left: {:?}", written.jobs);
    weir.check().await;
    assert_eq!(weir.embed_all().await.len(), 2);
    assert_eq!(weir.counts("api").await, counts([2, 2, 0, 2, 0]));
    weir.check().await;
}

#[tokio::test]
async fn a_patch_leaves_other_items_alone() {
    let weir = Weir::new().await;
    weir.put(
        "api",
        &items(&[
            ("a", "apples"),
            ("b", "pears"),
            ("c", "plums"),
            ("d", "dates"),
        ]),
    )
    .await;
    weir.embed_all().await;
    let upsert = items(&[("b", "berries"), ("c", "plums"), ("e", "elder")]);
    let delete = ["a".to_owned(), "missing".to_owned()];
    let written = weir
        .store
        .patch_source(&write("api"), &upsert, &delete)
        .await
        .unwrap();
    let change = Change {
        items_added: 1,
        items_changed: 1,
        items_deleted: 1,
        items_unchanged: 1,
        chunks_pending: 2,
        jobs_superseded: 0,
    };
    assert_eq!(written.change, change);
    assert_eq!(weir.counts("api").await, counts([4, 4, 2, 2, 0]));
    assert_eq!(weir.embedded_items("api").await, ["c", "d"]);
    assert_eq!(weir.embed_all().await, ["berries", "elder"]);
    // Nothing that changes anything: no revision, no job.
    let again = weir
        .store
        .patch_source(&write("api"), &upsert, &delete)
        .await
        .unwrap();
    assert_eq!((again.source.revision, again.jobs.len()), (2, 0));
    weir.check().await;

    let error = weir
        .store
        .patch_source(&write("none"), &upsert, &[])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    assert_eq!(
        error.to_string(),
        r#"there is no source "none" in namespace "shop""#
    );
    assert_eq!(weir.number("SELECT count(*) FROM weir.sources").await, 1);
}

#[tokio::test]
async fn a_deleted_source_leaves_only_its_history() {
    let weir = Weir::new().await;
    weir.put("other", &items(&[("a", "apples")])).await;
    weir.embed_all().await;
    let written = weir.put("api", &many(5)).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let mut refusal = outcome(&job, &texts[..2]);
    refusal.rejected = vec![rejected(&texts[2], "no")];
    weir.upsert(refusal).await.unwrap();
    let deleted = weir.store.delete_source(&key("api"), None).await.unwrap();
    let source_id = written.source.id;
    assert_eq!(
        deleted,
        Deleted {
            source_id,
            items: 5,
            embeddings: 2,
            jobs: 1
        }
    );
    for result in [
        weir.upsert(outcome(&job, &texts)).await.map(|_| ()),
        weir.store
            .renew(lease_of(&job), crate::fixture::LEASE)
            .await
            .map(|_| ()),
    ] {
        let error = result.unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::LeaseLost {
                    reason: RevokeReason::SourceDeleted,
                    ..
                }
            ),
            "{error}"
        );
    }
    let ended = weir.job(job.id).await;
    assert_eq!(
        (ended.state, ended.source.as_str()),
        (JobState::Cancelled, "api")
    );
    let left = weir
        .number(
            "SELECT (SELECT count(*) FROM weir.items) + (SELECT count(*) FROM weir.chunks)
                  + (SELECT count(*) FROM weir.embeddings) + (SELECT count(*) FROM weir.rejections)
                  + (SELECT count(*) FROM weir.sources)",
        )
        .await;
    assert_eq!(left, 4, "the other source, its item, chunk and vector");
    for error in [
        weir.store
            .delete_source(&key("api"), None)
            .await
            .map(|_| ())
            .unwrap_err(),
        weir.store
            .source(&key("api"))
            .await
            .map(|_| ())
            .unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    }
    // The name is free again, and nothing of the old source is found under it.
    let anew = weir.put("api", &many(2)).await;
    assert_ne!(anew.source.id, source_id);
    assert_eq!(weir.counts("api").await, counts([2, 2, 2, 0, 0]));
    weir.check().await;
}

#[tokio::test]
async fn two_puts_of_one_new_source_take_turns() {
    let weir = Weir::new().await;
    let (one, two) = (
        items(&[("a", "apples"), ("b", "pears")]),
        items(&[("b", "pears"), ("c", "plums")]),
    );
    let (first, second) = tokio::join!(weir.put("api", &one), weir.put("api", &two));
    let mut revisions = [first.source.revision, second.source.revision];
    revisions.sort_unstable();
    assert_eq!(revisions, [1, 2]);
    assert_eq!(weir.counts("api").await, counts([2, 2, 2, 0, 0]));
    weir.check().await;
}

#[tokio::test]
async fn a_put_that_meets_a_deletion_makes_the_source_anew() {
    let weir = Weir::new().await;
    weir.put("api", &many(2)).await;
    let mut deletion = weir.pool().begin().await.unwrap();
    sqlx::raw_sql("DELETE FROM weir.items; DELETE FROM weir.chunks; DELETE FROM weir.jobs; DELETE FROM weir.sources")
        .execute(&mut *deletion)
        .await
        .unwrap();
    let content = many(3);
    let (written, ()) = tokio::join!(weir.put("api", &content), async {
        weir.blocked(1).await;
        deletion.commit().await.unwrap();
    });
    assert_eq!(written.source.revision, 1);
    assert_eq!(weir.counts("api").await, counts([3, 3, 3, 0, 0]));
    weir.check().await;
}

#[tokio::test]
async fn sources_page_by_key_with_their_most_telling_job() {
    let weir = Weir::new().await;
    for name in ["c", "a", "b", "ä"] {
        weir.put(name, &many(1)).await;
    }
    let mut elsewhere = write("a");
    elsewhere.key.namespace = "depot".to_owned();
    weir.store.put_source(&elsewhere, &[]).await.unwrap();
    let all = SourceFilter::default();
    let mut paging = None;
    let mut seen = Vec::new();
    let mut previous = None;
    loop {
        let page = weir
            .store
            .sources(&Scope::All, &all, paging.as_ref(), 2)
            .await
            .unwrap();
        assert!(page.rows.len() <= 2);
        seen.extend(
            page.rows
                .into_iter()
                .map(|(source, job)| (source.namespace, source.name, job.is_some())),
        );
        previous = page.previous.or(previous);
        let Some(next) = page.next else { break };
        paging = Some(Paging::After(next));
    }
    let of = |namespace: &str, name: &str, job| (namespace.to_owned(), name.to_owned(), job);
    assert_eq!(
        seen,
        [
            of("depot", "a", false),
            of("shop", "a", true),
            of("shop", "b", true),
            of("shop", "c", true),
            of("shop", "ä", true),
        ],
        "bytewise"
    );
    // Back again, a page before the last and one before that.
    let mut back = Vec::new();
    while let Some(key) = previous.take() {
        let paging = Paging::Before(key);
        let page = weir
            .store
            .sources(&Scope::All, &all, Some(&paging), 2)
            .await
            .unwrap();
        back.push(page.rows.len());
        let Some((first, _)) = page.rows.first() else {
            break;
        };
        assert!(seen.contains(&of(&first.namespace, &first.name, page.rows[0].1.is_some())));
        previous = page.previous;
    }
    assert_eq!(
        back.iter().sum::<usize>(),
        4,
        "all but those of the last page"
    );
}

#[tokio::test]
async fn sources_are_filtered_and_tell_the_job_that_is_worst_off() {
    let weir = Weir::new().await;
    for name in ["b", "a"] {
        weir.put(name, &many(1)).await;
    }
    let mut elsewhere = write("a");
    elsewhere.key.namespace = "depot".to_owned();
    weir.store.put_source(&elsewhere, &[]).await.unwrap();
    let all = SourceFilter::default();
    let shop = Scope::One("shop".to_owned());
    let names = async |scope: &Scope, filter: &SourceFilter| {
        let page = weir.store.sources(scope, filter, None, 10);
        let page = page.await.unwrap();
        let names = page.rows.into_iter().map(|(source, _)| source.name);
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&shop, &all).await, "a b");
    for (filter, expected) in [
        (
            SourceFilter {
                name_prefix: Some("a".to_owned()),
                ..all.clone()
            },
            "a a",
        ),
        (
            SourceFilter {
                model: Some("another".to_owned()),
                ..all.clone()
            },
            "",
        ),
        (
            SourceFilter {
                unsettled_only: true,
                ..all.clone()
            },
            "a b",
        ),
    ] {
        assert_eq!(names(&Scope::All, &filter).await, expected, "{filter:?}");
    }
    let job = weir.claim().await;
    weir.fail_for_good(&job).await;
    let page = weir.store.sources(&shop, &all, None, 10).await.unwrap();
    let of_job = page
        .rows
        .iter()
        .find(|(source, _)| source.id == job.source_id)
        .unwrap();
    assert_eq!(of_job.1.as_ref().unwrap().state, JobState::Failed);
}

#[tokio::test]
async fn what_takes_the_place_of_another_has_its_place_in_the_queue() {
    let weir = Weir::new().await;
    weir.put("first", &items(&[("a", "1"), ("c", "2"), ("e", "3")]))
        .await;
    let job = weir.store.source(&key("first")).await.unwrap().jobs[0].id;
    weir.put("second", &many(1)).await;
    // All that the job had goes, and something else comes in its range.
    let replaced = items(&[("b", "new"), ("d", "newer")]);
    weir.put("first", &replaced).await;
    weir.check().await;
    let claimed = weir.claim().await;
    assert_eq!((claimed.id, claimed.chunks_total), (job, 2));
    assert!(weir.embed(&claimed).await.finished);
    weir.check().await;
}

#[tokio::test]
async fn a_job_that_grows_is_divided_where_it_waits_and_not_where_it_runs() {
    let weir = Weir::new().await;
    let mut small = write("api");
    small.max_chunks_per_job = 4;
    let ends = |from: usize, to: usize| {
        let all = many(40);
        vec![all[from].clone(), all[to].clone()]
    };
    // One job that runs, and one that waits, each about twenty places.
    weir.store.put_source(&small, &ends(0, 19)).await.unwrap();
    let running = weir.claim().await;
    small.priority = 3;
    weir.store
        .patch_source(&small, &ends(20, 39), &[])
        .await
        .unwrap();
    small.priority = 1;
    weir.store
        .patch_source(&small, &many(40), &[])
        .await
        .unwrap();
    weir.check().await;
    let jobs = weir.store.source(&key("api")).await.unwrap().jobs;
    let of_running = jobs.iter().find(|job| job.id == running.id).unwrap();
    assert_eq!((of_running.chunks_total, of_running.priority), (20, 1));
    let waiting = jobs.iter().filter(|job| job.id != running.id);
    assert_eq!(
        waiting
            .map(|job| (job.chunks_total, job.priority))
            .collect::<Vec<_>>(),
        [(4, 3); 5],
        "at the place of the one that there was"
    );
    assert!(weir.embed(&running).await.finished);
    assert_eq!(weir.embed_all().await.len(), 20);
    weir.check().await;
}

/// Law 14: a patch of one item reads the same in a source of a hundred chunks and
/// in one of ten thousand, embedded or pending in a thousand jobs.
#[tokio::test]
async fn a_patch_reads_what_it_changes() {
    let read =
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables
                WHERE schemaname = 'weir'";
    let mut rows = Vec::new();
    for (chunks, embedded) in [(100, true), (100, false), (10_000, true), (10_000, false)] {
        let weir = Weir::new().await;
        let mut small = write("api");
        small.max_chunks_per_job = 10;
        weir.store.put_source(&small, &many(chunks)).await.unwrap();
        if embedded {
            weir.meddle(
                "INSERT INTO weir.embeddings (source_id, item_id, chunk_index, model, text_hash, embedding)
                 SELECT c.source_id, c.item_id, c.chunk_index, s.model, c.text_hash, '[1]'
                 FROM weir.chunks c JOIN weir.sources s ON s.id = c.source_id;
                 DELETE FROM weir.jobs",
            )
            .await;
        }
        weir.meddle("VACUUM ANALYZE").await;
        // Tables of a page or two are read whole, unless that is forbidden.
        let settings = match chunks {
            100 => "SET enable_seqscan = off",
            _ => "SELECT",
        };
        let counted = weir.counted_with(settings).await;
        let patch = async |text: &str| {
            // With most of the source before it.
            let changed = [item(&format!("i{:04}", chunks - 50), &[text])];
            let patch = counted.store.patch_source(&small, &changed, &[]);
            assert_eq!(patch.await.unwrap().change.items_changed, 1);
        };
        patch("first").await;
        let before = counted.told(read).await;
        patch("second").await;
        rows.push(counted.told(read).await - before);
    }
    assert!(rows.iter().all(|rows| *rows <= 20), "{rows:?}");
}

/// Planning takes the statements of a small write longer than what they do; and what
/// is planned for few rows would be a poor plan for many.
#[tokio::test]
async fn a_small_write_is_planned_once_and_a_large_one_by_how_much_it_is() {
    let weir = Weir::new().await;
    let counted = weir.counted_with("SELECT").await;
    let planned = async || {
        let plans = "custom_plans::bigint * 1000 + generic_plans::bigint";
        let sql = format!(
            "SELECT {plans} FROM pg_prepared_statements WHERE statement LIKE '-- store::content::write_chunks%'"
        );
        let plans = counted.told(&sql).await;
        (plans / 1_000, plans % 1_000)
    };
    let put = async |text: &str| {
        let items: Vec<PlannedItem> = (0..101)
            .map(|n| item(&format!("i{n:04}"), &[text]))
            .collect();
        counted
            .store
            .put_source(&write("api"), &items)
            .await
            .unwrap();
    };
    put("first").await;
    assert_eq!(planned().await, (1, 0));
    for n in 0..8 {
        let changed = [item("i0001", &[&format!("patch {n}")])];
        let write = write("api");
        let patch = counted.store.patch_source(&write, &changed, &[]);
        patch.await.unwrap();
    }
    assert_eq!(planned().await, (1, 8));
    for n in 0..8 {
        put(&format!("again {n}")).await;
    }
    assert_eq!(planned().await, (9, 8));
}

/// Law 13: a long write has the rows of running jobs, so that nobody can renew
/// their leases; they do not end because of that.
#[tokio::test]
async fn a_long_write_makes_up_for_the_leases_that_nobody_could_renew() {
    let weir = Weir::new().await;
    weir.put("api", &items(&[("a", "one"), ("b", "two")])).await;
    let job = weir.claim().await;
    let ends = "SELECT extract(epoch FROM lease_expires_at)::bigint FROM weir.jobs WHERE state = 'running'";
    let before = weir.number(ends).await;
    weir.meddle(
        "CREATE FUNCTION weir.take_long() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_sleep(3); RETURN NULL; END';
         CREATE TRIGGER take_long AFTER INSERT ON weir.chunks FOR EACH STATEMENT EXECUTE FUNCTION weir.take_long()",
    )
    .await;
    weir.put("api", &items(&[("a", "one"), ("b", "other")]))
        .await;
    assert!(weir.number(ends).await >= before + 2);
    assert_eq!(weir.job(job.id).await.state, JobState::Running);
}

/// A write answers with what it did, and not with all that there is to do.
#[tokio::test]
async fn a_write_answers_with_the_jobs_that_embed_what_it_changed() {
    let weir = Weir::new().await;
    let mut small = write("api");
    small.max_chunks_per_job = 2;
    let ids = |jobs: &[Job]| jobs.iter().map(|job| job.id).collect::<Vec<_>>();
    let first = weir.store.put_source(&small, &many(8)).await.unwrap();
    assert_eq!((first.change.chunks_pending, first.jobs.len()), (8, 4));
    let running = weir.claim().await;
    let queued = weir.store.source(&key("api")).await.unwrap().jobs;
    let of = |item_id: &str| {
        let range = |job: &&Job| (&*job.first_item_id..=&*job.last_item_id).contains(&item_id);
        queued.iter().find(range).unwrap().id
    };
    let patch = async |upsert: &[PlannedItem], delete: &[&str]| {
        let delete: Vec<String> = delete.iter().map(|it| (*it).to_owned()).collect();
        let done = weir.store.patch_source(&small, upsert, &delete).await;
        let done = done.unwrap();
        (done.change.chunks_pending, ids(&done.jobs))
    };
    // In the job that is running, and in one that waits, though as much is pending of it as before.
    assert_eq!(
        patch(&[item("i0000", &["new"]), item("i0006", &["new"])], &[]).await,
        (2, vec![of("i0006"), running.id])
    );
    // Nothing to embed: metadata, a deletion, the same again.
    let mut told = item("i0002", &["text 2"]);
    told.metadata = Some("{}".to_owned());
    assert_eq!(patch(&[told.clone()], &["i0005"]).await, (0, vec![]));
    assert_eq!(patch(&[told], &["i0005"]).await, (0, vec![]));
    // The last of a job: it has ended, and embeds nothing.
    assert_eq!(patch(&[], &["i0004"]).await, (0, vec![]));
    // In no job that is there.
    let (chunks, new) = patch(&[item("z", &["last", "of all"])], &[]).await;
    assert_eq!((chunks, new.len()), (2, 1));
    assert!(new[0] > queued[0].id);
    // A job that grows too large is divided: some of it is in the pieces.
    let mut grown = many(1);
    grown.extend((0..5).map(|n| item(&format!("i0002-{n}"), &["more"])));
    let (chunks, pieces) = patch(&grown[1..], &[]).await;
    assert_eq!(chunks, 5);
    assert!(
        pieces.contains(&of("i0002")) && pieces.len() > 2,
        "{pieces:?}"
    );
    weir.check().await;

    // What was cancelled is taken up by the whole content, and told of.
    weir.embed_all().await;
    weir.embed(&running).await;
    let content = many(6);
    weir.store.put_source(&small, &content).await.unwrap();
    let cancelled = weir.claim().await;
    weir.store
        .cancel_job(&Scope::All, cancelled.id)
        .await
        .unwrap();
    let open = weir.store.source(&key("api")).await.unwrap().jobs.len();
    assert!(open > 1, "others are open, and not told of");
    let again = weir.store.put_source(&small, &content).await.unwrap();
    assert_eq!(
        again.change.chunks_pending,
        i64::from(cancelled.chunks_total)
    );
    assert_eq!(again.jobs.len(), 1);
    assert_eq!(again.jobs[0].first_item_id, cancelled.first_item_id);
    // Another model has everything to embed.
    small.model = Some("other".to_owned());
    let other = weir.store.put_source(&small, &content).await.unwrap();
    assert_eq!((other.change.chunks_pending, other.jobs.len()), (6, 3));
    weir.check().await;
}
