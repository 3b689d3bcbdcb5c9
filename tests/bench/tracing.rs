//! What tracing costs: the throughput of a whole Weir with tracing off, of one
//! trace in a hundred, and of all, in turns, so that whatever else the machine
//! does falls on each alike. Where it does much, the processor time tells more.
//!
//! It is as dear as it gets here: the embedder answers at once, batches are
//! small, and each source is a trace of its own.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends where it cannot go on, and says what it measured"
)]

use std::{
    env, fs,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use weir_proto::v1::{Item, ItemList, PutSourceRequest, put_source_request::Content};
use weir_tests::{
    cluster::{Process, Worker},
    collector::Collector,
    world::World,
};

/// Sources of one measurement, and chunks of each.
const SOURCES: usize = 200;
const CHUNKS: usize = 100;

const MODES: [(&str, Option<&str>); 3] =
    [("off", None), ("1 %", Some("0.01")), ("100 %", Some("1"))];

#[tokio::main]
async fn main() {
    let rounds = env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(5);
    let collector = Collector::start().await;
    let mut rates = [const { Vec::new() }; MODES.len()];
    let mut costs = [const { Vec::new() }; MODES.len()];
    let mut spans = [0; MODES.len()];
    println!("chunks/s, {SOURCES} sources of {CHUNKS} chunks, batches of 8\n");
    for round in 0..=rounds {
        for (place, (name, ratio)) in MODES.iter().enumerate() {
            collector.clear();
            let (rate, cpu_us) = measure(&collector, *ratio).await;
            // The first round warms everything up.
            if round > 0 {
                println!("  round {round}  tracing {name:<6} {rate:>8.0} {cpu_us:>8.1} µs");
                rates[place].push(rate);
                costs[place].push(cpu_us);
                spans[place] = collector.received();
            }
        }
    }
    println!(
        "\n| tracing | chunks/s | CPU µs a chunk | of off | spans a run |\n|---|---|---|---|---|"
    );
    let mut off = None;
    for (place, (name, _)) in MODES.iter().enumerate() {
        let (rate, cpu_us) = (median(&mut rates[place]), median(&mut costs[place]));
        let of_off = 100.0 * cpu_us / *off.get_or_insert(cpu_us);
        let spans = spans[place];
        println!("| {name} | {rate:.0} | {cpu_us:.1} | {of_off:.0} % | {spans} |");
    }
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The processor time that a process has had, in microseconds; NaN where the
/// system does not tell it this way.
fn cpu_us(process: &Process) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap_or_default();
    // After the name, which may hold spaces: user and system time are the 12th and 13th, in
    // hundredths of a second.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after.split_whitespace().skip(11).take(2);
    let ticks: Vec<f64> = ticks.filter_map(|ticks| ticks.parse().ok()).collect();
    if ticks.len() == 2 {
        ticks.iter().sum::<f64>() * 10_000.0
    } else {
        f64::NAN
    }
}

/// Embeds everything once. Returns how many chunks a second that was, and the
/// processor time of coordinator and worker for each, in microseconds.
async fn measure(collector: &Collector, ratio: Option<&str>) -> (f64, f64) {
    let url = collector.url();
    let mut settings = vec![("WEIR_LOG", "warn,weir_coordinator::server=info")];
    if let Some(ratio) = ratio {
        // No span is lost, so that each is paid for.
        let queue = ("OTEL_BSP_MAX_QUEUE_SIZE", "65536");
        settings.extend([
            ("WEIR_OTLP_ENDPOINT", url.as_str()),
            ("WEIR_TRACE_RATIO", ratio),
            queue,
        ]);
    }
    let mut world = World::start(&settings).await;
    let mut sources = world.sources().await;
    for source in 0..SOURCES {
        let item = |number| Item {
            item_id: format!("{number:03}"),
            text: format!("text {number} of source {source}"),
            ..Item::default()
        };
        let request = PutSourceRequest {
            name: format!("source-{source}"),
            content: Some(Content::Items(ItemList {
                items: (0..CHUNKS).map(item).collect(),
            })),
            ..PutSourceRequest::default()
        };
        sources.put_source(request).await.unwrap();
    }
    settings.push(("WEIR_BATCH_SIZE", "8"));
    let mut worker = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
    world.embedder.calls_started(2).await;
    let began = Instant::now();
    let open = "SELECT count(*) FROM weir.jobs WHERE state <> 'succeeded'";
    while sqlx::query_scalar::<_, i64>(open)
        .fetch_one(world.database.pool())
        .await
        .unwrap()
        > 0
    {
        sleep(Duration::from_millis(20)).await;
    }
    let chunks = (SOURCES * CHUNKS) as f64;
    let rate = chunks / began.elapsed().as_secs_f64();
    let cpu_us = cpu_us(&worker.process) + cpu_us(&world.coordinator.process);
    for process in [&mut worker.process, &mut world.coordinator.process] {
        process.sigterm();
        process.wait().await;
    }
    (rate, cpu_us / chunks)
}
