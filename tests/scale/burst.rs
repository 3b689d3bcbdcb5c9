//! Many patches of one source at once, and a source that is patched without a
//! pause while it is embedded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use weir_proto::v1::source_service_client::SourceServiceClient;
use weir_tests::bench::{
    report::Report,
    stage::{Server, Stage},
    statements,
};

use crate::{
    Scale,
    big::{self, DIMENSION, patch},
};

/// Connections that write at once.
const CONNECTIONS: usize = 8;

/// Chunks of the source that is patched without a pause.
const HOT: i64 = 300;

pub(crate) async fn run(server: &Server, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    for size in [10, scale.chunks / 250, scale.chunks / 5] {
        burst(server, scale, size, report).await?;
    }
    hot(server, report).await
}

/// Patches that each bring one new item, by connections that wait for their
/// answers, until the last vector.
async fn burst(
    server: &Server,
    scale: &Scale,
    size: i64,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut stage = Stage::set(server, &[]).await;
    let big = big::embedded(&stage, "default", "big", size).await?;
    big::settle_down(stage.pool()).await?;
    stage.worker(DIMENSION, Duration::ZERO, &[]);
    let mut warm = SourceServiceClient::new(stage.coordinator.connect().await);
    patch(
        &mut warm,
        &big,
        "warm",
        "Whatever is done for the first time.",
    )
    .await?;
    stage.done().await;
    let done_before = stage.ask(DONE).await;

    if scale.statements {
        statements::begin(stage.pool()).await;
    }
    let next = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(SourceServiceClient::new(stage.coordinator.connect().await));
    }
    let began = Instant::now();
    for mut client in clients {
        let (big, next, most) = (big.clone(), Arc::clone(&next), scale.burst);
        writers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= most {
                    return Ok::<_, tonic::Status>(());
                }
                // Among the others, not behind them.
                let item_id = format!("item-{:09}-new", n as i64 * size.max(1) / most as i64);
                patch(
                    &mut client,
                    &big,
                    &format!("{item_id}-{n}"),
                    &format!("New, number {n}."),
                )
                .await?;
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    let written = began.elapsed().as_secs_f64();
    stage.done().await;
    let what = format!(
        "{} patches over {CONNECTIONS} connections, {size} chunks",
        scale.burst
    );
    report.note(format!("{what}: written"), "s", written);
    report.note(
        format!("{what}: all vectors"),
        "s",
        began.elapsed().as_secs_f64(),
    );
    if scale.statements {
        statements::print(stage.pool(), &what, scale.burst as f64).await;
    }
    let done = stage.ask(DONE).await - done_before;
    report.note(
        format!("{what}: texts embedded twice"),
        "texts",
        done - scale.burst as f64,
    );
    report.note(
        format!("{what}: jobs"),
        "jobs",
        stage.ask("SELECT count(*) FROM weir.jobs").await,
    );
    Ok(())
}

const DONE: &str = "SELECT coalesce(sum(chunks_done), 0) FROM weir.jobs";

/// How much longer a source takes of which one item is patched without a pause.
async fn hot(server: &Server, report: &mut Report) -> anyhow::Result<()> {
    let mut took = [0.0; 2];
    for (patched, took) in [false, true].into_iter().zip(&mut took) {
        let mut stage = Stage::set(server, &[]).await;
        let big = big::pending(&stage, "default", "hot", HOT).await?;
        big::settle_down(stage.pool()).await?;
        let mut client = SourceServiceClient::new(stage.coordinator.connect().await);
        let began = Instant::now();
        stage.worker(
            DIMENSION,
            Duration::from_millis(50),
            &["--batch-size=8", "--embedder-concurrency=1"],
        );
        let others = format!(
            "SELECT count(*) FROM weir.embeddings WHERE source_id = {} AND item_id <> '{HOTTEST}'",
            big.id
        );
        let mut n = 0;
        while stage.ask(others.as_str()).await < (HOT - 1) as f64 {
            if patched {
                n += 1;
                patch(&mut client, &big, HOTTEST, &format!("Changed again, {n}.")).await?;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        *took = began.elapsed().as_secs_f64();
        let what = if patched {
            "one item patched all the time"
        } else {
            "nobody writes"
        };
        report.note(
            format!("{HOT} chunks, {what}: the others embedded"),
            "s",
            *took,
        );
    }
    report.note(
        format!("{HOT} chunks, one item patched all the time: over nobody writes"),
        "×",
        took[1] / took[0],
    );
    Ok(())
}

/// The item that is patched all the time.
const HOTTEST: &str = "item-000000150";
