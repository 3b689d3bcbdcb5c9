//! One run: sources are put, a worker embeds them, and what came of it.

use std::time::{Duration, Instant};

use tokio::time;
use weir_proto::v1::{Item, ItemList, PutSourceRequest, put_source_request::Content};
use weir_tests::{cluster::Worker, embedder::Call, world::World};

/// Longest time of a run. What is not done by then counts as it is.
const PATIENCE: Duration = Duration::from_mins(2);

/// Which server the embedder is taken for.
pub(crate) const OLLAMA: &str = "ollama";
pub(crate) const OPENAI: &str = "openai";
pub(crate) const TEI: &str = "tei";

/// What came of a run.
pub(crate) struct Outcome {
    /// Chunks that have a vector, and those that have none for good.
    pub(crate) embedded: i64,
    pub(crate) rejected: i64,
    /// Times that a job was charged with a try. It never is, whatever an
    /// embedder says.
    pub(crate) charged: i64,
    /// Calls with texts; a probe is none.
    pub(crate) calls: Vec<Call>,
    /// From the start of the worker to the last vector.
    pub(crate) took: Duration,
}

/// A coordinator with an embedder, and sources of these texts, none of which is
/// embedded yet.
pub(crate) async fn with_sources(sources: Vec<Vec<String>>) -> World {
    let world = World::start(&[]).await;
    let mut client = world.sources().await;
    for (number, texts) in sources.into_iter().enumerate() {
        let item = |(id, text)| Item {
            item_id: format!("{id:06}"),
            text,
            metadata: None,
        };
        let items = (0..).zip(texts).map(item).collect();
        let request = PutSourceRequest {
            name: number.to_string(),
            content: Some(Content::Items(ItemList { items })),
            ..PutSourceRequest::default()
        };
        client.put_source(request).await.unwrap();
    }
    world
}

/// Starts a worker and waits until nothing is pending, or for too long.
pub(crate) async fn embed(world: &World, dialect: &str, settings: &[(&str, &str)]) -> Outcome {
    let began = Instant::now();
    let settings = [&[("WEIR_EMBEDDER", dialect)], settings].concat();
    let _worker = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
    let done = async {
        while open_jobs(world).await > 0 {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    // What is missing shows in the outcome.
    let _ = time::timeout(PATIENCE, done).await;
    let took = began.elapsed();
    let charged = "SELECT count(*) FROM public.history WHERE attempt > 0";
    let charged = count(world, charged).await;
    let mut calls = world.embedder.calls();
    calls.retain(|call| call.texts != ["probe"]);
    Outcome {
        embedded: world.rows("embeddings").await,
        rejected: world.rows("rejections").await,
        charged,
        calls,
        took,
    }
}

async fn open_jobs(world: &World) -> i64 {
    count(
        world,
        "SELECT count(*) FROM weir.jobs WHERE state IN ('queued', 'running')",
    )
    .await
}

async fn count(world: &World, sql: &'static str) -> i64 {
    let query = sqlx::query_scalar(sql).fetch_one(world.database.pool());
    query.await.unwrap()
}
