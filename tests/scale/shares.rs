//! One small job of a namespace, beside a million chunks of another.

use std::time::{Duration, Instant};

use weir_proto::v1::source_service_client::SourceServiceClient;
use weir_tests::bench::{
    report::{Report, percentile},
    stage::{Server, Stage},
};

use crate::{
    Scale,
    big::{self, DIMENSION, patch},
};

/// How long the embedder takes for a batch.
const DELAY: Duration = Duration::from_millis(100);

/// Jobs that are timed.
const JOBS: usize = 20;

pub(crate) async fn run(server: &Server, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let mut stage = Stage::set(server, &[]).await;
    let small = big::embedded(&stage, "small", "small", JOBS as i64).await?;
    big::pending(&stage, "large", "large", scale.queued).await?;
    big::settle_down(stage.pool()).await?;
    stage.worker(
        DIMENSION,
        DELAY,
        &["--batch-size=32", "--embedder-concurrency=1"],
    );
    while stage.ask("SELECT count(*) FROM weir.embeddings WHERE source_id <> (SELECT id FROM weir.sources WHERE name = 'small')").await < 32.0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut client = SourceServiceClient::new(stage.coordinator.connect().await);
    let mut took = Vec::new();
    for n in 0..JOBS {
        let item_id = format!("item-{:09}", n + 1);
        let began = Instant::now();
        patch(&mut client, &small, &item_id, "It is changed.").await?;
        let embedded = format!(
            "SELECT count(*) FROM weir.embeddings WHERE source_id = {} AND item_id = '{item_id}'
               AND embedded_at > now() - interval '1 minute'
               AND text_hash = sha256('It is changed.')",
            small.id
        );
        while stage.ask(embedded.as_str()).await < 1.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        took.push(began.elapsed().as_secs_f64() / DELAY.as_secs_f64());
    }
    let what = format!(
        "one job beside {} chunks of another namespace",
        scale.queued
    );
    report.note(format!("{what}: p50"), "batches", percentile(&took, 0.5));
    report.note(
        format!("{what}: longest"),
        "batches",
        percentile(&took, 1.0),
    );
    Ok(())
}
