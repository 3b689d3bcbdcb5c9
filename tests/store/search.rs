//! Search by vector.

use weir_coordinator::store::{StoreError, search::Search};
use weir_tests::embedder::expected_vector;

use crate::fixture::{MODEL, Weir, item, many, write};

fn near<'a>(source: Option<&'a str>, text: &str, limit: i64) -> Search<'a> {
    Search {
        namespace: "shop",
        source,
        model: Some(MODEL),
        default_model: MODEL,
        vector: expected_vector(text),
        limit,
    }
}

fn cosine_distance(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    };
    1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[tokio::test]
async fn hits_come_in_exact_order() {
    let weir = Weir::new().await;
    let mut content = many(200);
    content[7].metadata = Some(r#"{"path": "/seven"}"#.to_owned());
    weir.put("api", &content).await;
    weir.put("pages", &[item("p", &["text 1000", "text 1001"])])
        .await;
    // Neither another namespace nor another model is in reach.
    let mut elsewhere = write("api");
    elsewhere.key.namespace = "depot".to_owned();
    weir.store.put_source(&elsewhere, &many(3)).await.unwrap();
    weir.embed_all().await;
    let mut other = write("other");
    other.model = Some("other".to_owned());
    weir.store.put_source(&other, &many(3)).await.unwrap();
    let job = weir.claim_of("other").await;
    weir.embed(&job).await;

    for query in ["text 7", "something else"] {
        let vector = expected_vector(query);
        let mut wanted: Vec<(String, f64)> = (0..200)
            .chain(1_000..1_002)
            .map(|n| format!("text {n}"))
            .map(|text| {
                (
                    text.clone(),
                    cosine_distance(&expected_vector(&text), &vector),
                )
            })
            .collect();
        wanted.sort_by(|a, b| a.1.total_cmp(&b.1));
        let hits = weir.store.search(&near(None, query, 500)).await.unwrap();
        assert_eq!(hits.len(), 202);
        assert!(hits.iter().zip(&wanted).all(|(hit, (text, distance))| {
            hit.text == *text && (hit.distance - distance).abs() < 1e-5
        }));
        assert_eq!(
            weir.store.search(&near(None, query, 5)).await.unwrap(),
            hits[..5]
        );
        let of_pages = weir
            .store
            .search(&near(Some("pages"), query, 500))
            .await
            .unwrap();
        let wanted: Vec<_> = hits
            .into_iter()
            .filter(|hit| hit.source == "pages")
            .collect();
        assert_eq!(of_pages, wanted);
        assert_eq!(of_pages.len(), 2);
    }
    let hit = weir
        .store
        .search(&near(None, "text 7", 1))
        .await
        .unwrap()
        .remove(0);
    assert_eq!(
        (hit.source.as_str(), hit.item_id.as_str(), hit.chunk_index),
        ("api", "i0007", 0)
    );
    assert_eq!(hit.metadata, Some(serde_json::json!({ "path": "/seven" })));
    assert!(hit.distance.abs() < 1e-6);
}

#[tokio::test]
async fn only_present_texts_are_found() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    weir.embed_all().await;
    let mut content = many(2);
    content[0] = item("i0000", &["changed"]);
    weir.put("api", &content).await;
    let hits = weir.store.search(&near(None, "text 0", 10)).await.unwrap();
    assert_eq!(
        hits.iter().map(|hit| hit.text.as_str()).collect::<Vec<_>>(),
        ["text 1"]
    );
}

#[tokio::test]
async fn equal_distances_come_in_order_of_their_names() {
    let weir = Weir::new().await;
    weir.put("b", &[item("x", &["same", "same"])]).await;
    weir.put("a", &[item("y", &["same"]), item("z", &["same"])])
        .await;
    weir.embed_all().await;
    let hits = weir.store.search(&near(None, "same", 10)).await.unwrap();
    let order: Vec<_> = hits
        .iter()
        .map(|h| (h.source.as_str(), h.item_id.as_str(), h.chunk_index))
        .collect();
    assert_eq!(
        order,
        [("a", "y", 0), ("a", "z", 0), ("b", "x", 0), ("b", "x", 1)]
    );
}

#[tokio::test]
async fn a_search_that_cannot_be_answered_says_why() {
    let weir = Weir::new().await;
    weir.put("api", &many(1)).await;
    assert!(
        weir.store
            .search(&near(None, "x", 10))
            .await
            .unwrap()
            .is_empty(),
        "no vector yet"
    );
    let job = weir.claim().await;
    weir.embed(&job).await;
    let mut short = near(None, "x", 10);
    short.vector.pop();
    let error = weir.store.search(&short).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        r#"vector: has 15 numbers, but vectors of the model "fake" have 16"#
    );
    let error = weir
        .store
        .search(&near(Some("none"), "x", 10))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NotFound(_)), "{error:?}");
}

/// A source is searched with its own model, whatever the default is.
#[tokio::test]
async fn a_source_is_searched_with_its_model() {
    let weir = Weir::new().await;
    let mut of_other = write("other");
    of_other.model = Some("other".to_owned());
    weir.store.put_source(&of_other, &many(3)).await.unwrap();
    let job = weir.claim_of("other").await;
    weir.embed(&job).await;
    let mut search = near(Some("other"), "text 1", 10);
    search.model = None;
    let hits = weir.store.search(&search).await.unwrap();
    assert_eq!((hits.len(), hits[0].item_id.as_str()), (3, "i0001"));
    search.model = Some("other");
    assert_eq!(weir.store.search(&search).await.unwrap(), hits);

    search.model = Some(MODEL);
    let error = weir.store.search(&search).await.unwrap_err().to_string();
    assert!(
        error.contains("\"fake\"") && error.contains("\"other\""),
        "{error}"
    );
    search.model = None;
    search.vector.truncate(3);
    let error = weir.store.search(&search).await.unwrap_err().to_string();
    assert!(
        error.contains("has 3 numbers") && error.contains("have 16"),
        "{error}"
    );
    // Of no vectors every search finds nothing.
    weir.put("api", &many(1)).await;
    search.source = Some("api");
    assert_eq!(weir.store.search(&search).await.unwrap(), []);
    weir.store.delete_source(&of_other.key, None).await.unwrap();
    search.source = None;
    search.model = Some("other");
    assert_eq!(weir.store.search(&search).await.unwrap(), []);
}
