//! What tracing costs: the throughput of a whole Weir with tracing off, of one
//! trace in a hundred, and of all, in turns, so that whatever else the machine
//! does falls on each alike.
//!
//! It is as dear as it gets here: the embedder answers at once, batches are
//! small, and each source is a trace of its own.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends where it cannot go on, and says what it measured"
)]

use std::{
    env,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use weir_proto::v1::{Item, ItemList, PutSourceRequest, put_source_request::Content};
use weir_tests::{cluster::Worker, collector::Collector, world::World};

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
    let mut spans = [0; MODES.len()];
    println!("chunks/s, {SOURCES} sources of {CHUNKS} chunks, batches of 8\n");
    for round in 0..=rounds {
        for (place, (name, ratio)) in MODES.iter().enumerate() {
            collector.clear();
            let rate = measure(&collector, *ratio).await;
            // The first round warms everything up.
            if round > 0 {
                println!("  round {round}  tracing {name:<6} {rate:>8.0}");
                rates[place].push(rate);
                spans[place] = collector.received();
            }
        }
    }
    println!(
        "\n| tracing | median | lowest | highest | of off | spans a run |\n|---|---|---|---|---|---|"
    );
    let mut off = None;
    for ((name, _), (mut rates, spans)) in MODES.iter().zip(rates.into_iter().zip(spans)) {
        rates.sort_by(f64::total_cmp);
        let median = rates[rates.len() / 2];
        let (lowest, highest) = (rates[0], rates[rates.len() - 1]);
        let of_off = 100.0 * median / *off.get_or_insert(median);
        println!("| {name} | {median:.0} | {lowest:.0} | {highest:.0} | {of_off:.0} % | {spans} |");
    }
}

/// Embeds everything once and returns how many chunks a second that was.
async fn measure(collector: &Collector, ratio: Option<&str>) -> f64 {
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
    let rate = (SOURCES * CHUNKS) as f64 / began.elapsed().as_secs_f64();
    for process in [&mut worker.process, &mut world.coordinator.process] {
        process.sigterm();
        process.wait().await;
    }
    rate
}
