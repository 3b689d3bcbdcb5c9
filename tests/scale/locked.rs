//! One source that is locked, and what others notice of it.

use std::time::{Duration, Instant};

use tokio::{task::JoinSet, time::sleep_until};
use weir_proto::v1::source_service_client::SourceServiceClient;
use weir_tests::bench::{
    report::{Report, percentile},
    stage::{Server, Stage},
};

use crate::{
    Scale,
    big::{self, Big, DIMENSION, patch},
};

/// Sources that are patched meanwhile, in turn.
const OTHERS: usize = 50;

/// Patches of these a second.
const RATE: u32 = 50;

/// What was seen for a while.
struct Seen {
    /// How long patches of the other sources took, in milliseconds.
    took: Vec<f64>,
    /// Chunks embedded a second.
    embedded: f64,
}

pub(crate) async fn run(server: &Server, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let mut stage = Stage::set(server, &[]).await;
    let locked = big::embedded(&stage, "default", "locked", 1_000).await?;
    let mut others = Vec::new();
    for n in 0..OTHERS {
        others.push(big::embedded(&stage, "default", &format!("other-{n}"), 10).await?);
    }
    // More than is embedded meanwhile.
    let backlog = (scale.locked * 8_000.0) as i64;
    big::pending(&stage, "default", "backlog", backlog).await?;
    big::settle_down(stage.pool()).await?;
    stage.worker(
        DIMENSION,
        Duration::from_millis(50),
        &["--batch-size=64", "--embedder-concurrency=2"],
    );
    watch(&stage, &others, scale.locked / 5.0).await?;
    let quiet = watch(&stage, &others, scale.locked).await?;

    let mut lock = stage.pool().begin().await?;
    sqlx::query("SELECT FROM weir.sources WHERE id = $1 FOR UPDATE")
        .bind(locked.id)
        .execute(&mut *lock)
        .await?;
    let mut waiting = JoinSet::new();
    let channel = stage.coordinator.connect().await;
    for n in 0..scale.waiting {
        let mut client = SourceServiceClient::new(channel.clone());
        let locked = locked.clone();
        waiting.spawn(async move {
            // It may be told to come again: what counts is that others do not notice.
            let _ = patch(&mut client, &locked, &format!("waits-{n}"), "It waits.").await;
        });
    }
    let beside = watch(&stage, &others, scale.locked).await?;
    lock.rollback().await?;
    while waiting.join_next().await.is_some() {}

    let what = format!("one source locked, {} calls to it", scale.waiting);
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let [without, with] = [&quiet, &beside].map(|seen| percentile(&seen.took, part));
        report.note(
            format!("patches of {OTHERS} others, no lock: {name}"),
            "ms",
            without,
        );
        report.note(
            format!("patches of {OTHERS} others, {what}: {name}"),
            "ms",
            with,
        );
        report.note(
            format!("patches of {OTHERS} others, {what}: {name} over no lock"),
            "×",
            with / without,
        );
    }
    report.note(
        format!("embedding beside, {what}: part of no lock"),
        "×",
        beside.embedded / quiet.embedded,
    );
    Ok(())
}

/// Patches the others at a steady rate for so many seconds.
async fn watch(stage: &Stage, others: &[Big], seconds: f64) -> anyhow::Result<Seen> {
    const DONE: &str = "SELECT sum(chunks_done) FROM weir.jobs WHERE source = 'backlog'";
    let channel = stage.coordinator.connect().await;
    let before = stage.ask(DONE).await;
    let (began, mut patches) = (Instant::now(), JoinSet::new());
    for (n, other) in (0..(f64::from(RATE) * seconds) as u32).zip(others.iter().cycle()) {
        sleep_until((began + Duration::from_secs(1) / RATE * n).into()).await;
        let (mut client, other) = (SourceServiceClient::new(channel.clone()), other.clone());
        patches.spawn(async move {
            let began = Instant::now();
            let text = format!("Changed at {began:?}.");
            patch(&mut client, &other, "item-000000001", &text).await?;
            Ok::<_, tonic::Status>(began.elapsed().as_secs_f64() * 1_000.0)
        });
    }
    let mut took = Vec::new();
    while let Some(ended) = patches.join_next().await {
        took.push(ended??);
    }
    let embedded = (stage.ask(DONE).await - before) / began.elapsed().as_secs_f64();
    Ok(Seen { took, embedded })
}
