//! Writes that name the revision they were made for.

use weir_coordinator::{
    job::chunk::Chunker,
    store::{
        Scope, StoreError,
        content::{SourceWrite, Written},
        imports::ImportItem,
    },
};

use crate::fixture::{LEASE, Weir, items, key, many, write};

fn expecting(revision: i64) -> SourceWrite {
    SourceWrite {
        expected_revision: Some(revision),
        ..write("api")
    }
}

async fn put(weir: &Weir, revision: i64, texts: &[(&str, &str)]) -> Result<Written, StoreError> {
    let write = expecting(revision);
    weir.store.put_source(&write, &items(texts)).await
}

async fn patch(
    weir: &Weir,
    revision: i64,
    texts: &[(&str, &str)],
    delete: &[&str],
) -> Result<Written, StoreError> {
    let delete: Vec<String> = delete.iter().map(|id| (*id).to_owned()).collect();
    let write = expecting(revision);
    weir.store
        .patch_source(&write, &items(texts), &delete)
        .await
}

async fn import(weir: &Weir, revision: i64, texts: &[(&str, &str)]) -> Result<Written, StoreError> {
    let staged: Vec<ImportItem> = texts
        .iter()
        .map(|(item_id, text)| ImportItem {
            item_id: (*item_id).to_owned(),
            text: (*text).to_owned(),
            metadata: None,
        })
        .collect();
    let chunker = Chunker::new(1_000, 100).unwrap();
    let id = rand::random();
    weir.store.add_import_items(id, &staged).await.unwrap();
    let write = expecting(revision);
    let written = weir.store.finish_import(&write, id, staged.len(), &chunker);
    let written = written.await;
    weir.store.drop_import(id).await.unwrap();
    written
}

#[track_caller]
fn assert_late<T: std::fmt::Debug>(outcome: Result<T, StoreError>, expected: &str, present: &str) {
    let error = outcome.expect_err("the write came late");
    assert!(matches!(error, StoreError::Aborted(_)), "{error:?}");
    let said = error.to_string();
    assert!(said.contains(expected) && said.contains(present), "{said}");
}

/// All that writes change.
async fn everything(weir: &Weir) -> Vec<String> {
    let mut rows = Vec::new();
    for table in [
        "sources",
        "items",
        "chunks",
        "jobs",
        "embeddings",
        "deleted_sources",
    ] {
        let sql = format!("SELECT t::text FROM weir.{table} t ORDER BY t::text");
        let found: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_all(weir.pool())
            .await
            .unwrap();
        rows.extend(found);
    }
    rows
}

#[tokio::test]
async fn a_write_for_another_revision_changes_nothing() {
    let weir = Weir::new().await;
    assert_late(
        put(&weir, 3, &[("a", "one")]).await,
        "revision 3",
        "there is none",
    );
    assert_late(
        import(&weir, 3, &[("a", "one")]).await,
        "revision 3",
        "there is none",
    );
    assert!(everything(&weir).await.is_empty());

    put(&weir, 0, &[("a", "one"), ("b", "two")]).await.unwrap();
    weir.embed_all().await;
    assert_eq!(
        put(&weir, 1, &[("a", "one"), ("c", "3")])
            .await
            .unwrap()
            .source
            .revision,
        2
    );
    let before = everything(&weir).await;
    for stale in [0, 1, 3] {
        let expected = match stale {
            0 => "does not exist yet".to_owned(),
            stale => format!("revision {stale}"),
        };
        let present = "at revision 2";
        let other_contents: [&[(&str, &str)]; 4] = [
            &[("a", "new")],
            &[("a", "one")],
            &[],
            &[("a", "one"), ("c", "3"), ("d", "4")],
        ];
        for texts in other_contents {
            assert_late(put(&weir, stale, texts).await, &expected, present);
            assert_late(import(&weir, stale, texts).await, &expected, present);
        }
        assert_late(
            patch(&weir, stale, &[("a", "new")], &[]).await,
            &expected,
            present,
        );
        assert_late(patch(&weir, stale, &[], &["a"]).await, &expected, present);
        let deleted = weir.store.delete_source(&key("api"), Some(stale)).await;
        assert_late(deleted, &expected, present);
        let other_model = SourceWrite {
            model: Some("other".to_owned()),
            ..expecting(stale)
        };
        let content = items(&[("a", "one"), ("c", "3")]);
        let written = weir.store.put_source(&other_model, &content).await;
        assert_late(written, &expected, present);
        assert_eq!(everything(&weir).await, before);
    }
    weir.check().await;
}

#[tokio::test]
async fn a_resend_of_what_was_done_succeeds_and_does_nothing() {
    let weir = Weir::new().await;
    for _ in 0..2 {
        let written = put(&weir, 0, &[("a", "one"), ("b", "two")]).await.unwrap();
        assert_eq!(written.source.revision, 1);
    }
    for _ in 0..2 {
        let written = patch(&weir, 1, &[("a", "new")], &["b"]).await.unwrap();
        assert_eq!(written.source.revision, 2);
    }
    for _ in 0..2 {
        let written = import(&weir, 2, &[("c", "three")]).await.unwrap();
        assert_eq!(written.source.revision, 3);
    }
    let deleted = weir.store.delete_source(&key("api"), Some(3)).await;
    assert_eq!(deleted.unwrap().items, 1);
    let again = weir.store.delete_source(&key("api"), Some(3)).await;
    assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
    weir.check().await;
}

/// What a client cancelled is not taken up by a write that was for an earlier
/// revision, although its content is there.
#[tokio::test]
async fn a_late_resend_takes_nothing_over() {
    let weir = Weir::new().await;
    put(&weir, 0, &[("a", "one")]).await.unwrap();
    let job = weir.claim().await;
    weir.store.cancel_job(&Scope::All, job.id).await.unwrap();
    let before = everything(&weir).await;
    let late = put(&weir, 0, &[("a", "one")]).await.unwrap();
    assert!(!late.changed, "{late:?}");
    assert_eq!(everything(&weir).await, before);
    assert!(weir.claim_many(1, LEASE).await.is_empty());
    // One for the present revision does.
    assert!(put(&weir, 1, &[("a", "one")]).await.unwrap().changed);
    assert_eq!(weir.claim_many(1, LEASE).await.len(), 1);
    weir.check().await;
}

#[tokio::test]
async fn revisions_of_a_name_never_go_back() {
    let weir = Weir::new().await;
    put(&weir, 0, &[("a", "one")]).await.unwrap();
    put(&weir, 1, &[("a", "two")]).await.unwrap();
    // In one statement, and step by step.
    let contents = [(2, many(2)), (3, many(200)), (4, Vec::new())];
    for (revision, content) in contents {
        let deleted = weir.store.delete_source(&key("api"), Some(revision)).await;
        deleted.unwrap();
        let stale = put(&weir, revision, &[("a", "old")]).await;
        assert_late(stale, &format!("revision {revision}"), "there is none");
        let written = weir
            .store
            .put_source(&expecting(0), &content)
            .await
            .unwrap();
        assert_eq!(written.source.revision, revision + 1);
        assert!(written.jobs.iter().all(|job| job.revision == revision + 1));
        for stale in 1..=revision {
            let present = format!("at revision {}", revision + 1);
            let late = put(&weir, stale, &[("a", "old")]).await;
            assert_late(late, &format!("revision {stale}"), &present);
        }
        weir.check().await;
    }
    // For as long as history is kept.
    let deleted = weir.store.delete_source(&key("api"), None).await;
    deleted.unwrap();
    assert_eq!(weir.store.drop_old_sources(LEASE, 10).await.unwrap(), 0);
    weir.meddle("UPDATE weir.deleted_sources SET deleted_at = now() - interval '2 hours'")
        .await;
    assert_eq!(weir.store.drop_old_sources(LEASE, 10).await.unwrap(), 1);
    let written = put(&weir, 0, &[("a", "one")]).await.unwrap();
    assert_eq!(written.source.revision, 1);
}

#[tokio::test]
async fn of_writes_for_one_revision_one_is_done() {
    let weir = Weir::new().await;
    for revision in 0..4 {
        let texts = ["one", "two", "three", "four"].map(|text| format!("{text} {revision}"));
        let puts = texts.iter().map(|text| {
            let weir = &weir;
            async move { put(weir, revision, &[("a", text)]).await }
        });
        let done = futures::future::join_all(puts).await;
        assert_eq!(done.iter().filter(|put| put.is_ok()).count(), 1, "{done:?}");
        for late in done.into_iter().filter(Result::is_err) {
            assert_late(late, "expected", &format!("at revision {}", revision + 1));
        }
    }
    weir.check().await;
}
