//! A patch of one item, whatever the size of its source.

use std::time::Instant;

use weir_proto::v1::source_service_client::SourceServiceClient;
use weir_tests::bench::{
    report::{Report, percentile},
    stage::{Server, Stage},
};

use crate::{
    Scale,
    big::{self, Big, Items, patch},
};

/// Patches of items of sources that are small and large, embedded and pending.
pub(crate) async fn run(server: &Server, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let mut reference = None;
    for size in scale.sizes() {
        let stage = Stage::set(server, &[]).await;
        let big = big::embedded(&stage, "default", "big", size).await?;
        big::settle_down(stage.pool()).await?;
        let embedded = measure(&stage, &big, scale.patches, 1).await?;
        big::forget_vectors(&stage, &big).await?;
        big::settle_down(stage.pool()).await?;
        let pending = measure(&stage, &big, scale.patches, 2).await?;
        let medians =
            [embedded, pending].map(|took| [0.5, 0.99].map(|part| percentile(&took, part)));
        let smallest = *reference.get_or_insert(medians);
        for (state, (took, least)) in ["embedded", "pending"]
            .iter()
            .zip(medians.iter().zip(&smallest))
        {
            let what = format!("patch of one item, {size} chunks {state}");
            report.note(format!("{what}: p50"), "ms", took[0]);
            report.note(format!("{what}: p99"), "ms", took[1]);
            report.note(
                format!("{what}: p50 over the smallest"),
                "×",
                took[0] / least[0],
            );
        }
    }
    Ok(())
}

/// How long patches took, in milliseconds.
async fn measure(stage: &Stage, big: &Big, patches: usize, seed: u64) -> anyhow::Result<Vec<f64>> {
    let mut client = SourceServiceClient::new(stage.coordinator.connect().await);
    let mut took = Vec::new();
    // The first tenth is not counted: connections and plans are there by then.
    for (n, item_id) in Items::of(big, seed)
        .take(patches + patches / 10)
        .enumerate()
    {
        let began = Instant::now();
        patch(
            &mut client,
            big,
            &item_id,
            &format!("It is changed, {seed}, {n}."),
        )
        .await?;
        took.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(took.split_off(patches / 10))
}
