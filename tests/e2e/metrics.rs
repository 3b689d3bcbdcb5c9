//! `/metrics` of both programs: what it shows is what is documented, and it
//! counts what happened.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use weir_proto::v1::{GetJobRequest, WatchSourceRequest};
use weir_tests::{
    clients::{http, until},
    cluster::Worker,
    embedder::Rude,
};

use crate::world::World;

/// A page of metrics, as Prometheus reads it.
#[derive(Debug, Default)]
struct Page {
    /// Type by name.
    types: BTreeMap<String, String>,
    /// Names with a help text.
    described: BTreeSet<String>,
    /// Value by name and labels, as written.
    samples: HashMap<String, f64>,
}

impl Page {
    async fn of(address: &str) -> Self {
        let answer = http()
            .get(format!("{address}/metrics"))
            .send()
            .await
            .unwrap();
        assert_eq!(
            answer.headers()["content-type"],
            "text/plain; version=0.0.4; charset=utf-8"
        );
        let mut page = Self::default();
        for line in answer.text().await.unwrap().lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                let before = page.types.insert(name.to_owned(), kind.to_owned());
                assert_eq!(before, None, "{name} is there twice");
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty(), "{name}");
                page.described.insert(name.to_owned());
            } else if let Some((series, value)) = line.rsplit_once(' ') {
                let before = page
                    .samples
                    .insert(series.to_owned(), value.parse().unwrap());
                assert_eq!(before, None, "{series} is there twice");
            }
        }
        page
    }

    /// The value of a series; 0 when there is none.
    fn value(&self, series: &str) -> f64 {
        self.samples.get(series).copied().unwrap_or_default()
    }

    fn is(&self, series: &str, value: f64) {
        assert!(
            (self.value(series) - value).abs() < 0.001,
            "{series} is {}, not {value}",
            self.value(series)
        );
    }

    /// The labels of each metric.
    fn labels(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for series in self.samples.keys() {
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|ending| {
                    let base = name.strip_suffix(ending)?;
                    (self.types.get(base)? == "histogram").then_some(base)
                })
                .unwrap_or(name);
            // No value of these tests holds a comma.
            let names = labels
                .split(',')
                .filter_map(|it| Some(it.split_once('=')?.0));
            found
                .entry(name)
                .or_default()
                .extend(names.filter(|label| *label != "le"));
        }
        found
    }
}

/// A metric of `docs/metrics.md`: name, type, labels.
type Documented = (String, String, BTreeSet<String>);

/// The metrics that a section of the documentation has.
fn documented(section: &str) -> BTreeSet<Documented> {
    let text = include_str!("../../docs/metrics.md");
    let section = text.split("\n## ").find(|it| it.starts_with(section));
    let rows = section.unwrap().lines().filter(|it| it.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<String> = row
            .split('|')
            .map(|it| it.trim().replace('`', ""))
            .collect();
        let labels = cells[3].split(", ").filter(|it| !it.is_empty());
        (
            cells[1].clone(),
            cells[2].clone(),
            labels.map(str::to_owned).collect(),
        )
    })
    .collect()
}

/// The metrics that a page shows.
fn shown(page: &Page) -> BTreeSet<Documented> {
    let labels = page.labels();
    let of = |name: &str| labels[name].iter().map(|it| (*it).to_owned()).collect();
    page.types
        .iter()
        .map(|(name, kind)| (name.clone(), kind.clone(), of(name)))
        .collect()
}

async fn worker_with_metrics(world: &World) -> (Worker, String) {
    let settings = [
        ("WEIR_HTTP_LISTEN", "127.0.0.1:0"),
        ("WEIR_BATCH_SIZE", "8"),
    ];
    let worker = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
    let event = "Serving /livez and /readyz.";
    let event = worker.process.wait_for_event(event).await;
    let address = format!("http://{}", event["address"].as_str().unwrap());
    (worker, address)
}

fn items(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|id| (format!("{id:03}"), format!("the text of item {id}")))
}

#[tokio::test]
async fn a_workers_port_only_tells() {
    const SECRET: &str = "text of item";
    let world = World::start(&[]).await;
    let (_worker, url) = worker_with_metrics(&world).await;
    let put = world.put_items("hidden-source", items(20)).await;
    world.succeeded(put.jobs[0].job_id).await;
    let calls = world.embedder.calls().len();
    let http = http();
    for path in ["livez", "readyz", "metrics"] {
        let at = format!("{url}/{path}");
        // Whatever name it is reached by: there is nothing that a page of
        // another site could do with it.
        let told = http.get(&at).header("host", "evil.example").send();
        let told = told.await.unwrap();
        assert_eq!(told.status().as_u16(), 200, "{path}");
        assert!(!told.headers().contains_key("access-control-allow-origin"));
        let told = told.text().await.unwrap();
        assert!(
            !told.contains(SECRET) && !told.contains("hidden-source"),
            "{told}"
        );
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEIR"] {
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let asked = http.request(method.clone(), &at).body("{}").send();
            let status = asked.await.unwrap().status().as_u16();
            assert_eq!(status, 405, "{method} {path}");
        }
    }
    for path in [
        "",
        "weir.v1.WorkerService/ClaimJob",
        "api/v1/sources",
        "metrics/..",
    ] {
        let asked = http.post(format!("{url}/{path}")).body("{}").send();
        assert_eq!(asked.await.unwrap().status().as_u16(), 404, "{path}");
    }
    assert_eq!(world.embedder.calls().len(), calls);
}

#[tokio::test]
async fn what_both_pages_show_is_documented_and_the_other_way_round() {
    let world = World::start(&[]).await;
    let (_worker, worker) = worker_with_metrics(&world).await;
    let put = world.put_items("notes", items(20)).await;
    world.succeeded(put.jobs[0].job_id).await;
    let (coordinator, worker) = (
        Page::of(&world.coordinator.url()).await,
        Page::of(&worker).await,
    );
    for page in [&coordinator, &worker] {
        let undescribed: Vec<_> = page
            .types
            .keys()
            .filter(|name| !page.described.contains(*name))
            .collect();
        assert!(undescribed.is_empty(), "{undescribed:?}");
    }
    let mut documented_here = documented("Coordinator");
    // Shown where files decide who is let in: `a_token_is_taken_back_by_an_empty_table_and_beside_a_broken_one`.
    documented_here.retain(|(name, ..)| name != "weir_files_in_force");
    assert_eq!(shown(&coordinator), documented_here);
    let mut shown = shown(&worker);
    // In the coordinator's table.
    shown.retain(|(name, ..)| name != "weir_build_info");
    assert_eq!(shown, documented("Worker"));
}

#[tokio::test]
async fn a_story_with_a_bad_text_is_told_by_its_numbers() {
    let world = World::start(&[]).await;
    let bad = "the text of item 13";
    world.embedder.rule(move |texts| {
        let found = texts.iter().any(|text| text == bad);
        found.then(|| Rude::Status(400, None, "invalid input".into()))
    });
    let put = world.put_items("notes", items(20)).await;
    let job_id = put.jobs[0].job_id;
    // An own count for each code.
    let unknown = GetJobRequest { job_id: 999_999 };
    world.jobs().await.get_job(unknown).await.unwrap_err();
    // In whatever way it comes.
    let answer = http()
        .post(format!("{}/api/JobService/GetJob", world.coordinator.url()))
        .header("content-type", "application/json")
        .body("{\"jobId\": 999999}")
        .send()
        .await;
    assert_eq!(answer.unwrap().status().as_u16(), 404);
    let (mut process, worker) = worker_with_metrics(&world).await;
    world.succeeded(job_id).await;

    let url = world.coordinator.url();
    let page = Page::of(&url).await;
    page.is(
        "weir_rpcs_open{method=\"WorkerService/StreamBatches\"}",
        1.0,
    );
    page.is(
        "weir_rpcs_total{method=\"SourceService/PutSource\",code=\"OK\"}",
        1.0,
    );
    page.is(
        "weir_rpc_duration_seconds_count{method=\"SourceService/PutSource\"}",
        1.0,
    );
    page.is(
        "weir_rpcs_total{method=\"JobService/GetJob\",code=\"NOT_FOUND\"}",
        2.0,
    );
    page.is("weir_claims_total{model=\"fake\"}", 1.0);
    page.is("weir_renewals_total{by=\"open\"}", 1.0);
    assert!(page.value("weir_renewals_total{by=\"result\"}") > 2.5);
    page.is("weir_jobs_ended_total{state=\"succeeded\"}", 1.0);
    page.is("weir_chunks_embedded_total", 19.0);
    page.is("weir_chunks_rejected_total{by=\"embedder\"}", 1.0);
    page.is("weir_retries_total{cause=\"failed\"}", 0.0);
    let results = page.value("weir_renewals_total{by=\"result\"}");
    page.is("weir_batch_commit_seconds_count", results);
    page.is("weir_batch_round_trip_seconds_count", results);
    page.is("weir_database_connections_max{pool=\"general\"}", 16.0);
    page.is("weir_database_connections_max{pool=\"leases\"}", 6.0);
    page.is(
        "weir_queue_chunks_pending{namespace=\"other\",model=\"fake\"}",
        0.0,
    );

    let ended = "weir_worker_leases_ended_total{model=\"fake\",how=\"finished\"}";
    until(async || Page::of(&worker).await.value(ended) > 0.5).await;
    let page = Page::of(&worker).await;
    let of = |rest: &str| format!("{{model=\"fake\",embedder=\"ollama\"{rest}}}");
    page.is("weir_worker_leases_open{model=\"fake\"}", 0.0);
    page.is(&format!("weir_embedder_texts_total{}", of("")), 19.0);
    page.is(&format!("weir_embedder_up{}", of("")), 1.0);
    page.is(&format!("weir_embedder_call_texts_allowed{}", of("")), 8.0);
    let refused = of(",outcome=\"input\"");
    assert!(page.value(&format!("weir_embedder_calls_total{refused}")) > 0.5);
    page.is("weir_batch_embed_seconds_count{model=\"fake\"}", results);
    page.is("weir_worker_stream_failures_total", 0.0);

    // The session of a worker that stops ends well, and is counted.
    process.process.sigterm();
    process.process.wait().await;
    let ended = "weir_rpcs_total{method=\"WorkerService/StreamBatches\",code=\"OK\"}";
    until(async || Page::of(&url).await.value(ended) > 0.5).await;
    let page = Page::of(&url).await;
    page.is(ended, 1.0);
    page.is(
        "weir_rpcs_open{method=\"WorkerService/StreamBatches\"}",
        0.0,
    );
}

#[tokio::test]
async fn an_embedder_that_fails_and_who_waits_are_seen() {
    let world = World::start(&[("WEIR_METRICS_NAMESPACES", "1")]).await;
    world
        .embedder
        .rule(|_| Some(Rude::Status(503, None, "starting".into())));
    let put = world.put_items("notes", items(20)).await;
    let url = world.coordinator.url();
    let (_worker, worker) = worker_with_metrics(&world).await;
    let up = "weir_embedder_up{model=\"fake\",embedder=\"ollama\"}";
    assert!(Page::of(&worker).await.samples[up] < 0.5);

    let mut jobs = world.jobs().await;
    let watch = WatchSourceRequest {
        name: "notes".to_owned(),
        ..WatchSourceRequest::default()
    };
    let mut watching = jobs.watch_source(watch).await.unwrap().into_inner();
    watching.message().await.unwrap().unwrap();
    let pending = "weir_queue_chunks_pending{namespace=\"default\",model=\"fake\"}";
    // What is told of the queue may be a second old.
    until(async || Page::of(&url).await.value(pending) > 0.5).await;
    let page = Page::of(&url).await;
    let watchers = "weir_rpcs_open{method=\"JobService/WatchSource\"}";
    page.is(watchers, 1.0);
    page.is(pending, 20.0);
    page.is(
        "weir_queue_jobs{namespace=\"default\",model=\"fake\",state=\"ready\"}",
        1.0,
    );
    drop((watching, jobs));
    until(async || Page::of(&url).await.value(watchers) < 0.5).await;
    let cancelled = "weir_rpcs_total{method=\"JobService/WatchSource\",code=\"CANCELLED\"}";
    Page::of(&url).await.is(cancelled, 1.0);

    world.embedder.behave();
    world.succeeded_after_outage(put.jobs[0].job_id).await;
    until(async || Page::of(&worker).await.value(up) > 0.5).await;
}

#[tokio::test]
async fn a_worker_that_is_killed_is_seen_by_the_coordinator() {
    let world = World::start(&[("WEIR_ORPHAN_GRACE", "1s")]).await;
    world
        .embedder
        .set_delay(Duration::from_millis(200), Duration::ZERO);
    let put = world.put_items("notes", items(40)).await;
    let (mut worker, _) = worker_with_metrics(&world).await;
    world.embedded("notes", 8).await;
    worker.process.sigkill().await;
    let url = world.coordinator.url();
    let silent = "weir_rescues_total{cause=\"silent\"}";
    until(async || Page::of(&url).await.value(silent) > 0.5).await;
    let page = Page::of(&url).await;
    page.is(silent, 1.0);
    page.is("weir_retries_total{cause=\"rescued\"}", 1.0);
    page.is("weir_streams_broken_total", 1.0);
    let _again = worker_with_metrics(&world).await;
    world.succeeded(put.jobs[0].job_id).await;
}
