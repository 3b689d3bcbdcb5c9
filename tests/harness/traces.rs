//! Traces as a tracing system has them, and the story that tests read in one.

use std::{collections::BTreeMap, fmt};

use tonic::Request;
use weir_proto::v1::{Item, ItemList, JobState, PutSourceRequest, put_source_request::Content};
use weir_telemetry::{KeyValue, SpanKind, TraceConfig, Tracer};

use crate::{
    cluster::{MODEL, Worker},
    embedder::{DIMENSION, Rude},
    world::World,
};

/// Names a span.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpanRef {
    /// Its trace, 32 hexadecimal digits.
    pub trace_id: String,
    /// Itself, 16 hexadecimal digits.
    pub span_id: String,
}

/// A span that has ended.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its name in the trace.
    pub id: SpanRef,
    /// The span it is a child of.
    pub parent: Option<String>,
    /// The spans it is linked to.
    pub links: Vec<SpanRef>,
    /// Who sent it.
    pub service: String,
    /// What it is of.
    pub name: String,
    /// When it began, in microseconds since 1970.
    pub start_us: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// What is said of it.
    pub attributes: BTreeMap<String, String>,
    /// Whether it is said to have failed.
    pub failed: bool,
}

impl Span {
    /// An attribute; empty where there is none.
    pub fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

/// The spans of one trace, in the order in which they began.
#[derive(Debug, Clone)]
pub struct Trace(pub Vec<Span>);

impl Trace {
    /// Those of `spans` that belong to a trace.
    pub fn of(spans: &[Span], trace_id: &str) -> Self {
        let of_it = spans.iter().filter(|span| span.id.trace_id == trace_id);
        let mut spans: Vec<Span> = of_it.cloned().collect();
        spans.sort_by_key(|span| span.start_us);
        Self(spans)
    }

    /// The spans of this name.
    pub fn named(&self, name: &str) -> Vec<&Span> {
        self.0.iter().filter(|span| span.name == name).collect()
    }

    /// The one span of this name.
    #[track_caller]
    pub fn one(&self, name: &str) -> &Span {
        let named = self.named(name);
        assert_eq!(named.len(), 1, "spans named {name:?} in:\n{self}");
        named[0]
    }

    /// The children of a span, as (service, name), in the order in which they
    /// began.
    pub fn children(&self, of: &Span) -> Vec<&Span> {
        let children = |span: &&Span| span.parent.as_ref() == Some(&of.id.span_id);
        self.0.iter().filter(children).collect()
    }

    /// Those whose parent is not here, though they have one.
    pub fn orphans(&self) -> Vec<&Span> {
        let here = |id: &String| self.0.iter().any(|span| span.id.span_id == *id);
        let orphaned = |span: &&Span| span.parent.as_ref().is_some_and(|id| !here(id));
        self.0.iter().filter(orphaned).collect()
    }
}

/// As a tree, with times from the beginning of the trace.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let began = self.0.first().map_or(0, |span| span.start_us);
        let roots = self.0.iter().filter(|span| span.parent.is_none());
        for root in roots.chain(self.orphans()) {
            self.write(f, root, 0, began)?;
        }
        Ok(())
    }
}

impl Trace {
    fn write(
        &self,
        f: &mut fmt::Formatter<'_>,
        span: &Span,
        depth: usize,
        began: u64,
    ) -> fmt::Result {
        let at = (span.start_us.saturating_sub(began)) as f64 / 1_000.0;
        let took = span.duration_us as f64 / 1_000.0;
        let failed = if span.failed { "  FAILED" } else { "" };
        let indent = 2 * depth;
        let name = format!("{:indent$}{}", "", span.name);
        writeln!(
            f,
            "{at:>10.1} {took:>9.1} ms  {:<16}  {name}{failed}",
            span.service
        )?;
        for (key, value) in &span.attributes {
            if key.starts_with("weir.") || key.starts_with("http.") || key.starts_with("error.") {
                writeln!(f, "{:>40}{:indent$}{key} = {value}", "", "")?;
            }
        }
        for child in self.children(span) {
            self.write(f, child, depth + 1, began)?;
        }
        Ok(())
    }
}

/// What the processes of the story are told, besides where their spans go.
const PROMPT: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "100");

/// The trace of a job that a worker hands back, for its embedder is down, and
/// that another finishes, caused by a caller that has a span of its own. Its spans are sent to `otlp`, all of them
/// before this returns. Returns its id.
pub async fn release_and_retry(otlp: &str) -> String {
    let settings = [PROMPT, ("WEIR_OTLP_ENDPOINT", otlp)];
    let mut world = World::start(&settings).await;
    // Else the first vectors would fix it, and be written a second time for that.
    sqlx::query("INSERT INTO weir.models (name, dimension) VALUES ($1, $2)")
        .bind(MODEL)
        .bind(i32::try_from(DIMENSION).expect("it is small"))
        .execute(world.database.pool())
        .await
        .expect("the table is there");
    let worker = |world: &World, id: &str| {
        let own = [("WEIR_WORKER_ID", id)];
        let url = world.coordinator.url();
        Worker::spawn(
            &url,
            &world.embedder.url(),
            &[&settings[..2], &own].concat(),
        )
    };
    let mut first = worker(&world, "first");
    first.process.wait_for_event("The embedder answers.").await;
    world
        .embedder
        .rule(|_| Some(Rude::Status(503, None, "starting".to_owned())));
    let (trace_id, job_id) = put(&world, otlp).await;
    first.process.wait_for_event("The job was released.").await;
    first.process.sigterm();
    first.process.wait().await;
    world.embedder.behave();
    let mut second = worker(&world, "second");
    let job = world.succeeded(job_id).await;
    assert_eq!(job.state(), JobState::Succeeded);
    // What is left is sent when they end.
    second.process.sigterm();
    second.process.wait().await;
    world.coordinator.process.sigterm();
    world.coordinator.process.wait().await;
    trace_id
}

/// Puts a source within a span of the service "caller". Returns the trace and
/// the job.
pub async fn put(world: &World, otlp: &str) -> (String, i64) {
    let config = TraceConfig {
        otlp_endpoint: Some(otlp.parse().expect("the receiver's URL is one")),
        trace_ratio: 1.0,
    };
    let caller = Tracer::start("caller", "test", &config).expect("a receiver's URL is fine");
    let attributes = || [KeyValue::new("rpc.system.name", "grpc")];
    let (span, context) = caller.enter(None, "put the manual", SpanKind::Client, attributes);
    let item = |id: &str| Item {
        item_id: id.to_owned(),
        text: format!("the text of {id}"),
        ..Item::default()
    };
    let mut request = Request::new(PutSourceRequest {
        name: "manual".to_owned(),
        content: Some(Content::Items(ItemList {
            items: vec![item("one"), item("two"), item("three")],
        })),
        ..PutSourceRequest::default()
    });
    let header = context.to_string().parse().expect("it is ASCII");
    request.metadata_mut().insert("traceparent", header);
    let answer = world.sources().await.put_source(request).await;
    let job_id = answer.expect("it is a good source").into_inner().jobs[0].job_id;
    drop(span);
    caller.shutdown().await;
    (context.trace_id(), job_id)
}

/// Asserts that a trace tells the story of [`release_and_retry`], and all of it.
#[track_caller]
pub fn assert_released_and_retried(trace: &Trace) {
    let names = |spans: Vec<&Span>| -> Vec<(String, String)> {
        let mut names: Vec<_> = spans
            .into_iter()
            .map(|span| (span.service.clone(), span.name.clone()))
            .collect();
        names.sort();
        names
    };
    let sorted = |of: &[(&str, &str)]| -> Vec<(String, String)> {
        let mut of: Vec<_> = of
            .iter()
            .map(|(s, n)| ((*s).to_owned(), (*n).to_owned()))
            .collect();
        of.sort();
        of
    };
    let orphans = trace.orphans();
    assert!(orphans.is_empty(), "orphans {orphans:?} in:\n{trace}");
    let roots: Vec<&Span> = trace
        .0
        .iter()
        .filter(|span| span.parent.is_none())
        .collect();
    assert_eq!(
        names(roots),
        sorted(&[("caller", "put the manual")]),
        "{trace}"
    );
    let (coordinator, worker) = ("weir-coordinator", "weir-worker");
    let call = trace.one("weir.v1.SourceService/PutSource");
    assert_eq!(
        call.parent.as_ref(),
        Some(&trace.one("put the manual").id.span_id)
    );
    assert_eq!(call.get("rpc.response.status_code"), "Ok");
    let of_job = ["plan", "queued", "claim", "queued", "claim"];
    let of_job = of_job.map(|name| (coordinator, name));
    assert_eq!(names(trace.children(call)), sorted(&of_job), "{trace}");

    let [lost, won] = trace.named("claim")[..] else {
        panic!("two claims in:\n{trace}");
    };
    let call = format!("embeddings {MODEL}");
    assert_eq!(
        names(trace.children(lost)),
        sorted(&[(worker, "session"), (worker, "batch"), (worker, &call),]),
        "{trace}"
    );
    assert_eq!(
        names(trace.children(won)),
        sorted(&[
            (worker, "session"),
            (worker, "batch"),
            (worker, &call),
            (coordinator, "persist"),
            (coordinator, "commit"),
            (coordinator, "complete"),
        ]),
        "{trace}"
    );
    assert_attempts(trace, &call);
}

#[track_caller]
fn assert_attempts(trace: &Trace, call: &str) {
    for (name, key, values) in [
        ("claim", "weir.worker.id", ["first", "second"]),
        ("claim", "weir.job.epoch", ["1", "2"]),
        ("claim", "weir.job.attempt", ["0", "0"]),
        ("session", "weir.worker.id", ["first", "second"]),
        ("session", "weir.job.epoch", ["1", "2"]),
        ("session", "weir.outcome", ["released", "finished"]),
        ("session", "weir.chunks.persisted", ["0", "3"]),
        (call, "error.type", ["embedder", ""]),
        (call, "http.response.status_code", ["503", "200"]),
        (call, "gen_ai.provider.name", ["ollama", "ollama"]),
        (call, "weir.texts", ["3", "3"]),
    ] {
        let told: Vec<&str> = trace.named(name).iter().map(|span| span.get(key)).collect();
        assert_eq!(told, values, "{key} of {name} in:\n{trace}");
    }
    let failed: Vec<bool> = trace.named("session").iter().map(|it| it.failed).collect();
    assert_eq!(failed, [false, false], "{trace}");
    for (queued, claim) in trace.named("queued").iter().zip(trace.named("claim")) {
        // Both end at one moment, which each rounds to a microsecond in two parts.
        let ends = [queued, claim].map(|span| span.start_us + span.duration_us);
        assert!(ends[0].abs_diff(ends[1]) <= 2, "{trace}");
    }
    let [_, again] = trace.named("queued")[..] else {
        panic!("two waits in:\n{trace}");
    };
    assert!(
        again.get("weir.job.last_error").contains("starting"),
        "{trace}"
    );
    // It began when the job was released, after the call that failed and before the worker was told;
    // that is known as well as the moment of the claim is.
    let end = |span: &Span| span.start_us + span.duration_us;
    let earliest = end(trace.named(call)[0]);
    let slack_us = 1_002 + trace.named("claim")[1].duration_us;
    let latest = end(trace.named("session")[0]) + slack_us;
    assert!((earliest..=latest).contains(&again.start_us), "{trace}");
}
