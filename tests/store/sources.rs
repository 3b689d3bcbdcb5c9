//! Writing, reading and deleting sources.

use crate::fixture::{Weir, counts, items, key, outcome};

#[tokio::test]
async fn a_source_goes_from_put_to_embedded() {
    let weir = Weir::new().await;
    let written = weir.put("api", &items(&[("a", "apples"), ("b", "pears")])).await;
    assert_eq!(written.state.source.revision, 1);
    assert_eq!(weir.counts("api").await, counts([2, 2, 2, 0, 0]));
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    assert_eq!(texts.iter().map(|c| c.text.as_str()).collect::<Vec<_>>(), ["pears", "apples"]);
    let progress = weir.upsert(outcome(&job, &texts)).await.unwrap();
    assert!(progress.finished);
    assert_eq!((progress.done, progress.rejected, progress.total), (2, 0, 2));
    assert_eq!(weir.counts("api").await, counts([2, 2, 0, 2, 0]));
    assert!(weir.store.source(&key("api")).await.unwrap().jobs.is_empty());
    weir.check().await;
}
