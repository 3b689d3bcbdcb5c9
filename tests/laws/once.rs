//! A persisted batch is never embedded again while text, model and dimension
//! are unchanged.

use std::{collections::HashMap, time::Duration};

use weir_tests::world::World;

use crate::words::{BRISK, items};

const BATCH: usize = 4;

#[tokio::test]
async fn law_06_what_is_persisted_is_never_embedded_again() {
    let world = World::start(&[&BRISK[..], &[("WEIR_LEASE_DURATION", "2s")]].concat()).await;
    let per_call = Duration::from_millis(50);
    world.embedder.set_delay(per_call, Duration::ZERO);
    // How often a text had come to the embedder when it was first seen persisted.
    let mut noted: HashMap<String, usize> = HashMap::new();
    let mut note = async || {
        let persisted = world.persisted("source").await;
        let received = world.embedder.received();
        for chunk in persisted {
            let times = received[&chunk.text];
            noted.entry(chunk.text).or_insert(times);
        }
    };

    // A crash.
    world.put_items("source", items(0..60, "old")).await;
    let mut worker = world.worker(&BATCH.to_string());
    world.embedded("source", 3 * BATCH as i64).await;
    worker.process.sigkill().await;
    note().await;

    // The whole content again, which queues nothing, and then a new revision
    // of it, of which some is old, some new, and some gone.
    let again = world.put_items("source", items(0..60, "old")).await;
    assert_eq!(again.change.unwrap().items_unchanged, 60);
    let worker = world.worker(&BATCH.to_string());
    world.embedded("source", 6 * BATCH as i64).await;
    note().await;
    let content = || items(10..60, "old").chain(items(0..5, "new"));
    let put = world.put_items("source", content()).await;
    assert_eq!(put.change.unwrap().items_deleted, 5);
    world.embedded("source", 8 * BATCH as i64).await;
    note().await;

    // A drain, another worker, and when all is done everything once more.
    worker.process.sigterm();
    let _last = world.worker(&BATCH.to_string());
    world.succeeded(put.jobs[0].job_id).await;
    note().await;
    let again = world.put_items("source", content()).await;
    assert_eq!(again.jobs, []);

    world.assert_exact("source").await;
    assert!(noted.len() >= 55, "{} texts", noted.len());
    let received = world.embedder.received();
    for (text, times) in noted {
        assert_eq!(received[&text], times, "embedded again: {text}");
    }
}
