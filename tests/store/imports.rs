//! Imports: content that arrives in many messages.

use weir_coordinator::{
    job::chunk::{Chunker, TextKind},
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
        .finish_import(&write("api"), 1, 1_100, &chunker())
        .await
        .unwrap();
    let change = Change {
        items_added: 1_098,
        items_changed: 2,
        items_deleted: 2,
        chunks_pending: 1_099,
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

async fn stage(weir: &Weir, texts: &[(&str, &str)]) {
    let staged: Vec<_> = texts
        .iter()
        .map(|(item_id, text)| ImportItem {
            item_id: (*item_id).to_owned(),
            text: (*text).to_owned(),
            metadata: None,
        })
        .collect();
    weir.store.add_import_items(1, &staged).await.unwrap();
}

/// The texts of each item's chunks.
async fn chunks(weir: &Weir) -> Vec<(String, Vec<String>)> {
    sqlx::query_as(
        "SELECT i.item_id, array_remove(array_agg(c.text ORDER BY chunk_index), NULL)
         FROM weir.items i LEFT JOIN weir.chunks c USING (source_id, item_id)
         GROUP BY i.item_id ORDER BY i.item_id",
    )
    .fetch_all(weir.pool())
    .await
    .unwrap()
}

#[tokio::test]
async fn long_and_blank_texts_are_chunked_as_in_a_put() {
    let weir = Weir::new().await;
    let long = "word ".repeat(60);
    let texts = [("a", long.as_str()), ("b", " \n "), ("c", "short")];
    stage(&weir, &texts).await;
    weir.store
        .finish_import(&write("api"), 1, 3, &chunker())
        .await
        .unwrap();
    let wanted = texts.map(|(item_id, text)| {
        let chunks = chunker().chunk(text, TextKind::Plain);
        (
            item_id.to_owned(),
            chunks
                .into_iter()
                .map(|chunk| chunk.text)
                .collect::<Vec<_>>(),
        )
    });
    assert_eq!(
        wanted
            .iter()
            .map(|(_, chunks)| chunks.len())
            .collect::<Vec<_>>(),
        [5, 0, 1]
    );
    assert_eq!(chunks(&weir).await, wanted);
    weir.check().await;
}

#[tokio::test]
async fn large_texts_are_read_back_a_few_at_a_time() {
    let weir = Weir::new().await;
    // Any two of these are more than one read takes, and one of them alone is as well. They are
    // of blanks, which the chunker cuts short, so that it has little to do.
    let (large, huge) = (" ".repeat(5 << 20), " ".repeat(9 << 20));
    let texts = [("a", &large), ("b", &large), ("c", &huge), ("d", &large)]
        .map(|(item_id, blanks)| (item_id, format!("{item_id}{blanks}end")));
    stage(
        &weir,
        &texts
            .each_ref()
            .map(|(item_id, text)| (*item_id, text.as_str())),
    )
    .await;
    let chunker = Chunker::new(1_000, 0).unwrap();
    weir.store
        .finish_import(&write("api"), 1, 4, &chunker)
        .await
        .unwrap();
    let wanted = ["a", "b", "c", "d"].map(|item_id| {
        (
            item_id.to_owned(),
            vec![format!("{item_id}{}end", " ".repeat(64))],
        )
    });
    assert_eq!(chunks(&weir).await, wanted);
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
        .finish_import(&write("api"), 77, 0, &chunker())
        .await
        .unwrap();
    assert_eq!(weir.counts("api").await, counts([0, 0, 0, 0, 0]));
    weir.check().await;
}

#[tokio::test]
async fn a_part_of_an_import_does_not_pass_for_the_whole() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    let before = weir.counts("api").await;
    weir.store
        .add_import_items(1, &import_items(0, 1_200))
        .await
        .unwrap();
    // What a crash does to a table that is not logged.
    sqlx::query("TRUNCATE weir.import_items")
        .execute(weir.pool())
        .await
        .unwrap();
    let finish = async |count| {
        let write = write("api");
        let finished = weir.store.finish_import(&write, 1, count, &chunker()).await;
        finished.unwrap_err().to_string()
    };
    assert!(finish(1_200).await.contains("begin the import again"));
    weir.store
        .add_import_items(1, &import_items(1_200, 1_201))
        .await
        .unwrap();
    assert!(finish(1_201).await.contains("begin the import again"));
    // Nor do more items than the caller knows of.
    assert!(finish(0).await.contains("begin the import again"));
    assert_eq!(weir.counts("api").await, before);
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
