//! Imports: content that arrives in many messages.

use weir_coordinator::{
    job::chunk::Chunker,
    store::{StoreError, content::Change, imports::ImportItem},
};

use crate::fixture::{Weir, counts, items, many, write};

fn import_items(from: usize, upto: usize) -> Vec<ImportItem> {
    (from..upto)
        .map(|n| ImportItem {
            item_id: format!("i{n:04}"),
            text: format!("text {n}"),
            metadata: Some(format!(r#"{{"n": {n}}}"#)),
        })
        .collect()
}

fn chunker() -> Chunker {
    Chunker::new(64, 0).unwrap()
}

const STAGED: &str = "SELECT count(*) FROM weir.import_items";

#[tokio::test]
async fn an_import_becomes_the_whole_content() {
    let weir = Weir::new().await;
    weir.put(
        "api",
        &items(&[
            ("a", "goes"),
            ("i0003", "text 3"),
            ("i0004", "changes"),
            ("z", "goes too"),
        ]),
    )
    .await;
    weir.embed_all().await;
    // More than one page of statements, in any order, beside another import.
    weir.store
        .add_import_items(2, &import_items(0, 9))
        .await
        .unwrap();
    weir.store
        .add_import_items(1, &import_items(600, 1_100))
        .await
        .unwrap();
    weir.store
        .add_import_items(1, &import_items(0, 600))
        .await
        .unwrap();
    assert_eq!(
        weir.counts("api").await,
        counts([4, 4, 0, 4, 0]),
        "nothing is the source's yet"
    );
    let written = weir
        .store
        .finish_import(&write("api"), 1, &chunker())
        .await
        .unwrap();
    let change = Change {
        items_added: 1_098,
        items_changed: 2,
        items_deleted: 2,
        ..Change::default()
    };
    assert_eq!(written.change, change);
    assert_eq!(
        weir.counts("api").await,
        counts([1_100, 1_100, 1_099, 1, 0])
    );
    assert_eq!(
        weir.embedded_items("api").await,
        ["i0003"],
        "its text is the same"
    );
    let metadata =
        "SELECT count(*) FROM weir.items WHERE metadata->>'n' = ltrim(substr(item_id, 2), '0')";
    assert_eq!(weir.number(metadata).await, 1_099, "all but number 0");
    weir.check().await;

    weir.store.drop_import(1).await.unwrap();
    assert_eq!(weir.number(STAGED).await, 9, "those of the other");
    weir.store.drop_import(2).await.unwrap();
    assert_eq!(weir.number(STAGED).await, 0);
    assert_eq!(weir.counts("api").await.items, 1_100);
}

#[tokio::test]
async fn long_and_blank_texts_are_chunked_as_in_a_put() {
    let weir = Weir::new().await;
    let long = "word ".repeat(60);
    // Together more than one read takes.
    let huge = "0123456789 ".repeat(500_000);
    let texts = [
        ("a", long.as_str()),
        ("b", " \n "),
        ("c", huge.as_str()),
        ("d", huge.as_str()),
        ("e", "short"),
    ];
    let staged: Vec<_> = texts
        .iter()
        .map(|(item_id, text)| ImportItem {
            item_id: (*item_id).to_owned(),
            text: (*text).to_owned(),
            metadata: None,
        })
        .collect();
    weir.store.add_import_items(1, &staged).await.unwrap();
    let chunker = Chunker::new(100_000, 0).unwrap();
    let written = weir
        .store
        .finish_import(&write("api"), 1, &chunker)
        .await
        .unwrap();
    assert_eq!(written.change.items_added, 5);
    let per_item: Vec<(String, i64)> = sqlx::query_as(
        "SELECT i.item_id, count(c) FROM weir.items i LEFT JOIN weir.chunks c USING (source_id, item_id)
         GROUP BY i.item_id ORDER BY i.item_id",
    )
    .fetch_all(weir.pool())
    .await
    .unwrap();
    let wanted: Vec<(String, i64)> = texts
        .iter()
        .map(|(id, text)| {
            let chunks = chunker.chunk(text, weir_coordinator::job::chunk::TextKind::Plain);
            ((*id).to_owned(), chunks.len() as i64)
        })
        .collect();
    assert_eq!(per_item, wanted);
    assert_eq!((wanted[0].1, wanted[1].1), (1, 0));
    assert!(wanted[2].1 > 50);
    weir.check().await;
}

#[tokio::test]
async fn an_item_sent_twice_is_refused() {
    let weir = Weir::new().await;
    weir.store
        .add_import_items(1, &import_items(0, 5))
        .await
        .unwrap();
    for again in [
        import_items(4, 8),
        [import_items(9, 10), import_items(9, 10)].concat(),
    ] {
        let error = weir.store.add_import_items(1, &again).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Invalid(found) if found[0].field == "items"),
            "{error:?}"
        );
        assert_eq!(
            weir.number(STAGED).await,
            5,
            "nothing of the message is kept"
        );
    }
    weir.store
        .add_import_items(2, &import_items(0, 5))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_import_of_nothing_empties_the_source() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    weir.store
        .finish_import(&write("api"), 77, &chunker())
        .await
        .unwrap();
    assert_eq!(weir.counts("api").await, counts([0, 0, 0, 0, 0]));
    weir.check().await;
}

#[tokio::test]
async fn imports_that_a_crash_cut_off_are_forgotten_after_a_day() {
    let weir = Weir::new().await;
    weir.store
        .add_import_items(1, &import_items(0, 5))
        .await
        .unwrap();
    weir.store
        .add_import_items(2, &import_items(0, 5))
        .await
        .unwrap();
    assert_eq!(weir.store.drop_stale_imports(100).await.unwrap(), 0);
    sqlx::query(
        "UPDATE weir.import_items SET created_at = now() - interval '25 hours' WHERE import_id = 1",
    )
    .execute(weir.pool())
    .await
    .unwrap();
    assert_eq!(weir.store.drop_stale_imports(3).await.unwrap(), 3);
    assert_eq!(weir.store.drop_stale_imports(3).await.unwrap(), 2);
    assert_eq!(weir.number(STAGED).await, 5);
}
