//! What watchers cost: the memory and the time of a coordinator while nobody,
//! 200 and 2,000 clients watch sources that change, spread over many sources or
//! all on one. Every watcher must be told of the end.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "this is a program that says what it measured, or why it could not"
)]

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::param::clock_ticks_per_second;
use tokio::{task::JoinSet, time};
use tonic::transport::Channel;
use weir_proto::v1::{
    self, job_service_client::JobServiceClient, worker_service_client::WorkerServiceClient,
};
use weir_tests::clients::{Weir, claim_request, embedded, item, put_items, upsert};

/// Changes a second, whoever watches: batches of one chunk.
const CHANGES_PER_SECOND: u64 = 50;

/// How long is measured.
const MEASURED: Duration = Duration::from_secs(20);

/// Sources that change by turns where watchers are spread.
const MANY: usize = 200;

/// Watchers that share a connection, as the pages of one proxy do.
const WATCHERS_A_CONNECTION: usize = 100;

/// Longest that the end of all watches is waited for.
const PATIENCE: Duration = Duration::from_mins(2);

/// A round of the benchmark.
#[derive(Debug, Clone, Copy)]
struct Round {
    watchers: usize,
    sources: usize,
}

/// What a process has used.
struct Usage {
    rss_mib: f64,
    cpu: Duration,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!(
        "{:>8} {:>8} {:>10} {:>9} {:>6} {:>11} {:>12} {:>9}",
        "watchers", "sources", "changes/s", "RSS MiB", "CPU s", "CPU s/min", "messages/s", "told"
    );
    for (watchers, sources) in [
        (0, 1),
        (200, 1),
        (2_000, 1),
        (0, MANY),
        (200, MANY),
        (2_000, MANY),
    ] {
        measure(Round { watchers, sources }).await?;
    }
    Ok(())
}

async fn measure(round: Round) -> anyhow::Result<()> {
    // A source is one job, and a batch may hold all of it.
    let weir = Weir::with(&[
        ("WEIR_MAX_CHUNKS_PER_JOB", "10000"),
        ("WEIR_MAX_BATCH_SIZE", "10000"),
        ("WEIR_MAX_STREAMS_PER_CLIENT", "10000"),
    ])
    .await;
    let changes = CHANGES_PER_SECOND * MEASURED.as_secs();
    let leases = prepare(&weir, round, changes).await?;
    let messages = Arc::new(AtomicU64::new(0));
    let mut watches = watch_all(&weir, round, &messages).await?;

    let pid = weir.coordinator.process.pid();
    let (before, told_before) = (usage(pid)?, messages.load(Ordering::Relaxed));
    let began = Instant::now();
    change(&weir, &leases, changes).await?;
    let took = began.elapsed();
    let after = usage(pid)?;
    let told = messages.load(Ordering::Relaxed) - told_before;

    finish(&weir, &leases).await?;
    let mut ended = 0;
    let all = async {
        while let Some(watched) = watches.join_next().await {
            ensure!(watched??, "a watch ended before its source was done");
            ended += 1;
        }
        anyhow::Ok(())
    };
    time::timeout(PATIENCE, all)
        .await
        .context("some watchers were not told of the end")??;
    let cpu = (after.cpu - before.cpu).as_secs_f64();
    println!(
        "{:>8} {:>8} {:>10.0} {:>9.1} {cpu:>6.1} {:>11.1} {:>12.0} {ended:>9}",
        round.watchers,
        round.sources,
        changes as f64 / took.as_secs_f64(),
        after.rss_mib,
        cpu * 60.0 / took.as_secs_f64(),
        told as f64 / took.as_secs_f64(),
    );
    Ok(())
}

/// A lease, and the chunks that are left of it.
type Work = (v1::Lease, Vec<v1::Chunk>);

fn name(source: usize) -> String {
    format!("source-{source:04}")
}

/// Puts the sources, with one chunk more each than will be embedded while it is
/// measured, and claims them.
async fn prepare(weir: &Weir, round: Round, changes: u64) -> anyhow::Result<Vec<Work>> {
    let chunks = usize::try_from(changes)? / round.sources + 1;
    for source in 0..round.sources {
        let items = (0..chunks).map(|at| item(&format!("{at:04}"), &format!("Text {at}.")));
        let request = put_items(&name(source), items.collect());
        weir.sources().put_source(request).await?;
    }
    let mut leases = Vec::new();
    loop {
        let mut claim = claim_request();
        claim.max_jobs = 1_000;
        let answer = weir.worker().claim_job(claim).await?.into_inner();
        if answer.leases.is_empty() {
            return Ok(leases);
        }
        for lease in answer.leases {
            let mut chunks = Vec::new();
            while chunks.is_empty() || (chunks.len() as i64) < lease.chunks_pending {
                // The same chunks come again until they are persisted.
                let request = v1::GetBatchRequest {
                    job_id: lease.job_id,
                    epoch: lease.epoch,
                    batch_size: 10_000,
                };
                chunks = weir.worker().get_batch(request).await?.into_inner().chunks;
            }
            leases.push((lease, chunks));
        }
    }
}

/// Has the watchers watch, each in a task that ends with its watch, and waits
/// until each has the present. The tasks say whether the last state was the
/// end.
async fn watch_all(
    weir: &Weir,
    round: Round,
    messages: &Arc<AtomicU64>,
) -> anyhow::Result<JoinSet<anyhow::Result<bool>>> {
    let mut watches = JoinSet::new();
    let mut channel = weir.channel.clone();
    for watcher in 0..round.watchers {
        if watcher % WATCHERS_A_CONNECTION == 0 {
            channel = weir.coordinator.connect().await;
        }
        watches.spawn(watch(
            channel.clone(),
            name(watcher % round.sources),
            Arc::clone(messages),
        ));
    }
    while (messages.load(Ordering::Relaxed) as usize) < round.watchers {
        time::sleep(Duration::from_millis(10)).await;
    }
    Ok(watches)
}

async fn watch(channel: Channel, name: String, messages: Arc<AtomicU64>) -> anyhow::Result<bool> {
    let request = v1::WatchSourceRequest {
        name,
        until_idle: true,
        ..v1::WatchSourceRequest::default()
    };
    let mut states = JobServiceClient::new(channel)
        .watch_source(request)
        .await?
        .into_inner();
    let mut done = false;
    while let Some(state) = states.message().await? {
        messages.fetch_add(1, Ordering::Relaxed);
        let source = state.source.context("a state has its source")?;
        done = source.chunks_embedded == source.chunks;
    }
    Ok(done)
}

/// Embeds so many chunks at the rate of the benchmark, of each source by turns.
async fn change(weir: &Weir, leases: &[Work], changes: u64) -> anyhow::Result<()> {
    let mut tick = time::interval(Duration::from_secs(1) / u32::try_from(CHANGES_PER_SECOND)?);
    let worker = weir.worker();
    for change in 0..usize::try_from(changes)? {
        tick.tick().await;
        let (lease, chunks) = &leases[change % leases.len()];
        embed(worker.clone(), lease, &chunks[change / leases.len()]).await?;
    }
    Ok(())
}

/// Embeds the last chunk of every source.
async fn finish(weir: &Weir, leases: &[Work]) -> anyhow::Result<()> {
    for (lease, chunks) in leases {
        let last = chunks.last().context("a lease has chunks")?;
        embed(weir.worker(), lease, last).await?;
        let request = v1::CompleteJobRequest {
            job_id: lease.job_id,
            epoch: lease.epoch,
        };
        weir.worker().complete_job(request).await?;
    }
    Ok(())
}

async fn embed(
    mut worker: WorkerServiceClient<Channel>,
    lease: &v1::Lease,
    chunk: &v1::Chunk,
) -> anyhow::Result<()> {
    let request = upsert(lease, vec![embedded(chunk, &[1.0, 0.0])]);
    worker.upsert_batch(request).await?;
    Ok(())
}

/// What a process holds and has used, as Linux tells.
fn usage(pid: u32) -> anyhow::Result<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss_kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .context("Linux tells what a process holds")?
        .parse()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may have spaces; user and system time are the
    // twelfth and thirteenth after it.
    let (_, after_name) = stat.rsplit_once(')').context("a stat has a name")?;
    let ticks: Vec<u64> = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(Usage {
        rss_mib: rss_kib / 1024.0,
        cpu: Duration::from_secs_f64(
            ticks.iter().sum::<u64>() as f64 / clock_ticks_per_second() as f64,
        ),
    })
}
