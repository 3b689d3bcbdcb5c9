//! A vector always matches its chunk.

use std::{collections::HashMap, time::Duration};

use weir_tests::{embedder::expected_vector, world::World};

use crate::words::{BRISK, items, number};

/// Asserts that no vector is there but that of the text that its chunk has now.
/// Answers how many there are.
async fn assert_matching(world: &World, content: &HashMap<String, String>) -> usize {
    let strays = "SELECT count(*) FROM weir.embeddings e LEFT JOIN weir.chunks c
        USING (source_id, item_id, chunk_index) WHERE c.text IS NULL";
    assert_eq!(number(world.database.pool(), strays).await, 0);
    let mut seen = 0;
    for chunk in world.chunks("source").await {
        assert_eq!(content[&chunk.item_id], chunk.text);
        if let Some(vector) = &chunk.embedding {
            assert_eq!(chunk.current, Some(true), "{chunk:?}");
            assert_eq!(vector.as_slice(), expected_vector(&chunk.text), "{chunk:?}");
            seen += 1;
        }
    }
    seen
}

#[tokio::test]
async fn law_07_a_vector_always_matches_its_chunk() {
    let world = World::start(&BRISK).await;
    let per_call = Duration::from_millis(150);
    world.embedder.set_delay(per_call, Duration::ZERO);
    let _workers = [world.worker("2"), world.worker("2")];
    let mut last = None;
    let mut content: HashMap<String, String> = HashMap::new();
    let mut seen = 0;
    for round in 0..10_usize {
        // Half of it changes in each round, some goes, and some comes back.
        let version = format!("version {round:02}");
        content.extend(items((0..40).filter(|id| id % 2 == round % 2), &version));
        content.retain(|id, _| id.parse::<usize>().unwrap() % 5 != round % 5);
        let put = world.put_items("source", content.clone()).await;
        last = put.jobs.last().map(|job| job.job_id).or(last);
        let there = assert_matching(&world, &content).await;
        // A few batches on, so that the next change meets all there is: what is persisted, what is
        // on the way, and what waits.
        world.embedded("source", there as i64 + 3).await;
        seen += assert_matching(&world, &content).await;
    }
    assert!(seen > 50, "only {seen} vectors were looked at");
    world.succeeded(last.unwrap()).await;
    assert_eq!(world.assert_exact("source").await.len(), content.len());
    let met = "SELECT sum(changes)::bigint FROM weir.jobs WHERE started_at IS NOT NULL";
    let met = number(world.database.pool(), met).await;
    assert!(met > 3, "only {met} changes met a running job");
}
