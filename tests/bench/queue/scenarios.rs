//! What is measured.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tonic::transport::Channel;
use weir_proto::v1::{self, source_service_client::SourceServiceClient};
use weir_tests::{
    bench::{
        report::Report,
        stage::{Cpu, Server, Stage},
        statements,
    },
    clients::{item, put_items},
};

use crate::{latency, limits};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) runs: usize,
    /// Chunks that are embedded in a run.
    pub(crate) chunks: usize,
    /// Jobs of one chunk each.
    pub(crate) jobs: usize,
    /// Sources put at a steady rate, for their latency.
    pub(crate) arrivals: usize,
    /// Jobs in a long history; ten times those in a long queue.
    pub(crate) history: usize,
    /// Namespaces among which a long queue is.
    pub(crate) namespaces: usize,
    /// Claims that are timed.
    pub(crate) claims: usize,
    /// Claims that are made beside long snapshots.
    pub(crate) pinned: usize,
    pub(crate) idle_workers: usize,
    /// How long commits are counted.
    pub(crate) counted: Duration,
    /// How long idle workers are watched.
    pub(crate) watched: Duration,
    /// Whether to say which statements take the time of Postgres.
    pub(crate) statements: bool,
}

impl Scale {
    pub(crate) fn full(chunks: usize, runs: usize, history: usize) -> Self {
        Self {
            runs,
            chunks,
            jobs: (chunks / 5).max(1),
            arrivals: 5_000,
            history,
            namespaces: 1_000,
            claims: 3_000,
            pinned: 30_000,
            idle_workers: 1_000,
            counted: Duration::from_secs(3),
            watched: Duration::from_secs(20),
            statements: false,
        }
    }

    pub(crate) fn smoke() -> Self {
        Self {
            runs: 1,
            chunks: 600,
            jobs: 60,
            arrivals: 20,
            history: 500,
            namespaces: 10,
            claims: 30,
            pinned: 20,
            idle_workers: 5,
            counted: Duration::from_millis(100),
            watched: Duration::from_millis(200),
            statements: false,
        }
    }
}

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// Something that is measured, in one run.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) run: for<'a> fn(&'a Server, &'a Scale, &'a mut Report) -> Running<'a>,
}

/// All of them.
pub(crate) const ALL: [Scenario; 7] = [
    Scenario {
        name: "bulk",
        run: |server, scale, report| Box::pin(bulk(server, scale, report)),
    },
    Scenario {
        name: "jobs",
        run: |server, scale, report| Box::pin(jobs(server, scale, report)),
    },
    Scenario {
        name: "latency",
        run: |server, scale, report| Box::pin(latency::arrivals(server, scale, report)),
    },
    Scenario {
        name: "pipelining",
        run: |server, scale, report| Box::pin(pipelining(server, scale, report)),
    },
    Scenario {
        name: "history",
        run: |server, scale, report| Box::pin(latency::history(server, scale, report)),
    },
    Scenario {
        name: "snapshots",
        run: |server, scale, report| Box::pin(latency::snapshots(server, scale, report)),
    },
    Scenario {
        name: "idle",
        run: |server, scale, report| Box::pin(idle(server, scale, report)),
    },
];

/// Chunks a second through the whole pair, and what the server can do at all.
async fn bulk(server: &Server, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let stage = Stage::set(server, &[]).await;
    limits::prepare(stage.pool()).await?;
    let mut limit = [384, 768].map(|dimension| (dimension, 0.0));
    for (dimension, best) in &mut limit {
        *best = limits::rows(stage.pool(), *dimension, scale.chunks, report).await?;
    }
    drop(stage);
    for (dimension, limit) in limit {
        for per_source in [150, 1_000, scale.chunks] {
            let mut stage = Stage::set(server, &[]).await;
            let what = format!("{dimension} dim., sources of {per_source}");
            let sources = (scale.chunks / per_source).max(1);
            let began = Instant::now();
            put_all(&stage, sources, per_source).await?;
            let planned = (sources * per_source) as f64 / began.elapsed().as_secs_f64();
            report.note(
                format!("submit: sources of {per_source}"),
                "chunks/s",
                planned,
            );
            let rate = embed_all(server, &mut stage, dimension, &what, report)
                .await
                .chunks;
            report.note(
                format!("embed: {what}: part of the best upsert"),
                "×",
                rate / limit,
            );
        }
    }
    Ok(())
}

/// Jobs of one chunk a second.
async fn jobs(server: &Server, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let mut stage = Stage::set(server, &[]).await;
    limits::prepare(stage.pool()).await?;
    let limit = limits::commits(stage.pool(), scale.counted, report).await?;
    let began = Instant::now();
    put_all(&stage, scale.jobs, 1).await?;
    let planned = scale.jobs as f64 / began.elapsed().as_secs_f64();
    report.note("submit: sources of 1", "chunks/s", planned);
    let wal_before = stage.ask(WAL).await;
    let rate = embed_all(server, &mut stage, 768, "768 dim., sources of 1", report)
        .await
        .jobs;
    report.note("jobs of one chunk", "jobs/s", rate);
    report.note(
        "jobs of one chunk: part of the commits of 32 conn.",
        "×",
        rate / limit,
    );
    let wal = stage.ask(WAL).await - wal_before;
    let vector = 4.0 * 768.0;
    report.note(
        "WAL of a job of one chunk, without its vector",
        "bytes",
        wal / scale.jobs as f64 - vector,
    );
    Ok(())
}

const WAL: &str = "pg_current_wal_lsn() - '0/0'::pg_lsn";

/// How much longer than the embedder's own time all takes, with an embedder of
/// fixed latency that makes one call at a time.
async fn pipelining(server: &Server, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let mut stage = Stage::set(server, &[]).await;
    // Small batches: what is lost between two of them counts the more.
    let (delay, batch) = (Duration::from_millis(50), 32);
    let chunks = scale.chunks.min(100 * batch);
    put_all(&stage, 1, chunks).await?;
    stage.worker(384, delay, &["--embedder-concurrency=1", "--batch-size=32"]);
    stage.done().await;
    let calls = chunks.div_ceil(batch);
    let own = delay.as_secs_f64() * calls as f64;
    report.note(
        "pipelining: time over the embedder's own",
        "×",
        stage.ask(SPAN).await / own,
    );
    Ok(())
}

/// What connected workers with nothing to do cost the coordinator.
async fn idle(server: &Server, scale: &Scale, report: &mut Report) -> anyhow::Result<()> {
    let stage = Stage::set(server, &[]).await;
    let mut polls = tokio::task::JoinSet::new();
    for n in 0..scale.idle_workers {
        let channel = stage.coordinator.connect().await;
        polls.spawn(latency::wait_for_work(channel, format!("idle-{n}")));
    }
    let before = stage.usage().0;
    tokio::time::sleep(scale.watched).await;
    let after = stage.usage().0;
    let workers = scale.idle_workers;
    report.note(
        format!("{workers} idle workers: coordinator's peak memory"),
        "MiB",
        after.peak_mib,
    );
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64() / scale.watched.as_secs_f64();
    report.note(
        format!("{workers} idle workers: coordinator's CPU"),
        "cores",
        cpu,
    );
    Ok(())
}

/// From the first claim to the last end, by the database's clock.
const SPAN: &str = "SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM weir.jobs";

/// What was done in a second.
struct Rate {
    jobs: f64,
    chunks: f64,
}

/// Has a worker embed all that is queued.
async fn embed_all(
    server: &Server,
    stage: &mut Stage,
    dimension: usize,
    what: &str,
    report: &mut Report,
) -> Rate {
    if server.statements {
        statements::begin(stage.pool()).await;
    }
    let wal = stage.ask(WAL).await;
    let before = Cpu::of(server, stage);
    stage.worker(dimension, Duration::ZERO, &[]);
    stage.done().await;
    let span = stage.ask(SPAN).await;
    let chunks = stage.ask("SELECT sum(chunks_done) FROM weir.jobs").await;
    let missing =
        "SELECT (SELECT count(*) FROM weir.chunks) - (SELECT count(*) FROM weir.embeddings)";
    assert!(
        stage.ask(missing).await.abs() < 0.5,
        "everything has its vector"
    );
    if server.statements {
        statements::print(stage.pool(), what, chunks).await;
    }
    let (coordinator, worker) = stage.usage();
    report.note(format!("embed: {what}"), "chunks/s", chunks / span);
    report.note(
        format!("embed: {what}: WAL"),
        "bytes/chunk",
        (stage.ask(WAL).await - wal) / chunks,
    );
    let embed = format!("embed: {what}");
    before.note_since(server, stage, &embed, ("µs/chunk", chunks), report);
    report.note(
        format!("embed: {what}: peak of coordinator"),
        "MiB",
        coordinator.peak_mib,
    );
    report.note(
        format!("embed: {what}: peak of worker"),
        "MiB",
        worker.peak_mib,
    );
    Rate {
        jobs: stage
            .ask("SELECT count(*) FROM weir.jobs WHERE state = 'succeeded'")
            .await
            / span,
        chunks: chunks / span,
    }
}

/// Sources put at the same time.
const WRITERS: usize = 8;

/// Puts sources of so many chunks each.
pub(crate) async fn put_all(stage: &Stage, sources: usize, chunks: usize) -> anyhow::Result<()> {
    let channel = stage.coordinator.connect().await;
    stream::iter(0..sources)
        .map(|source| put(channel.clone(), format!("source-{source:07}"), chunks))
        .buffer_unordered(WRITERS)
        .try_collect()
        .await
}

/// Puts one.
pub(crate) async fn put(channel: Channel, name: String, chunks: usize) -> anyhow::Result<()> {
    let items = (0..chunks).map(|n| item(&format!("item-{n:07}"), &text(&name, n)));
    let request: v1::PutSourceRequest = put_items(&name, items.collect());
    let mut client = SourceServiceClient::new(channel).max_encoding_message_size(usize::MAX);
    client.put_source(request).await?;
    Ok(())
}

/// A text of the length of a short paragraph.
fn text(source: &str, n: usize) -> String {
    format!(
        "Number {n} of {source}: a short paragraph, as a page or a product has it, with some two hundred \
         characters in all, so that a batch of them has a weight, and yet not so long that it were split."
    )
}
