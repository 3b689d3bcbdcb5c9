//! One job is one trace, from whoever put it to the last write, whatever
//! happens to it on the way.

use std::collections::BTreeSet;

use tokio::net::TcpListener;
use tonic::Request;
use weir_proto::{trace::TraceContext, v1::PutSourceResponse};
use weir_tests::{
    clients::until,
    cluster::{MODEL, Worker, event_in},
    collector::Collector,
    traces::{Span, SpanRef, Trace, assert_released_and_retried, put, release_and_retry},
};

use crate::{clients::put_texts, world::World};

const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// Spans are sent soon, and a worker that is gone is not waited for.
const PROMPT: [(&str, &str); 3] = [
    ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ("WEIR_ORPHAN_GRACE", "1s"),
    ("WEIR_BACKOFF_BASE", "100ms"),
];

fn worker(world: &World, settings: &[(&str, &str)]) -> Worker {
    Worker::spawn(&world.coordinator.url(), &world.embedder.url(), settings)
}

/// Puts a source of one text, in the name of a caller with this trace context.
async fn put_within(world: &World, name: &str, traceparent: Option<&str>) -> PutSourceResponse {
    let text = format!("the text of {name}");
    let mut request = Request::new(put_texts(name, &[&text]));
    if let Some(header) = traceparent {
        request
            .metadata_mut()
            .insert("traceparent", header.parse().unwrap());
    }
    world
        .sources()
        .await
        .put_source(request)
        .await
        .unwrap()
        .into_inner()
}

/// The trace context that a job keeps.
async fn kept(world: &World, job_id: i64) -> TraceContext {
    let kept: String = sqlx::query_scalar("SELECT traceparent FROM weir.jobs WHERE id = $1")
        .bind(job_id)
        .fetch_one(world.database.pool())
        .await
        .unwrap();
    TraceContext::read(&kept).unwrap()
}

fn has(trace: &Trace, name: &str) -> bool {
    !trace.named(name).is_empty()
}

#[tokio::test]
async fn a_job_that_fails_and_is_retried_elsewhere_is_one_trace() {
    let collector = Collector::start().await;
    let trace_id = release_and_retry(&collector.url()).await;
    assert_released_and_retried(&collector.trace(&trace_id));
}

#[tokio::test]
async fn a_worker_that_is_killed_leaves_no_orphans_and_the_trace_goes_on() {
    let collector = Collector::start().await;
    let url = collector.url();
    let settings = [&PROMPT[..], &[("WEIR_OTLP_ENDPOINT", url.as_str())]].concat();
    let world = World::start(&settings).await;
    let one_by_one = [
        &settings[..],
        &[("WEIR_BATCH_SIZE", "1"), ("WEIR_EMBEDDER_CONCURRENCY", "1")],
    ];
    let mut killed = worker(&world, &one_by_one.concat());
    world.embedder.calls_started(1).await;
    // The probe, one text, and not the second.
    world.embedder.let_through(2);
    let (trace_id, job_id) = put(&world, &collector.url()).await;
    world.embedder.calls_started(3).await;
    // What the worker sent before it died hangs on nothing that dies with it.
    let call = format!("embeddings {MODEL}");
    collector
        .wait_for(&trace_id, |trace| has(trace, &call) && has(trace, "commit"))
        .await;
    killed.process.sigkill().await;
    world.embedder.open_gate();
    let _other = worker(&world, &settings);
    world.succeeded(job_id).await;
    let ended = |trace: &Trace| has(trace, "session") && has(trace, "complete");
    let trace = collector.wait_for(&trace_id, ended).await;

    assert!(trace.orphans().is_empty(), "{trace}");
    let [lost, won] = trace.named("claim")[..] else {
        panic!("two claims in:\n{trace}");
    };
    let names = |span: &Span| -> BTreeSet<String> {
        trace
            .children(span)
            .iter()
            .map(|it| it.name.clone())
            .collect()
    };
    assert!(
        names(lost).is_superset(
            &["batch", &call, "persist", "orphan"]
                .map(str::to_owned)
                .into()
        ),
        "{trace}"
    );
    assert!(
        !names(lost).contains("session"),
        "it was never ended:\n{trace}"
    );
    assert!(names(won).contains("session"), "{trace}");
    let rescue = trace.one("rescue");
    assert_eq!(rescue.get("weir.job.epoch"), lost.get("weir.job.epoch"));
    assert!(rescue.get("weir.reason").contains("went silent"), "{trace}");
    assert_eq!(rescue.parent, lost.parent);
}

/// Puts twelve sources. The call for the first holds up the texts of the others,
/// which then travel together. Returns the jobs.
async fn put_behind_a_held_call(world: &World) -> Vec<i64> {
    world.embedder.calls_started(1).await;
    world.embedder.let_through(1);
    let mut jobs = Vec::new();
    for number in 0..12 {
        let answer = put_within(world, &format!("s{number}"), None).await;
        jobs.push(answer.jobs[0].job_id);
        if number == 0 {
            world.embedder.calls_started(2).await;
        }
    }
    until(async || {
        let open = "SELECT count(*) FROM weir.jobs WHERE session IS NOT NULL";
        let open = sqlx::query_scalar::<_, i64>(open);
        open.fetch_one(world.database.pool()).await.unwrap() == 12
    })
    .await;
    world.embedder.open_gate();
    jobs
}

/// What spans that were shared are children of, and linked to: claims, sorted.
fn shared_by<'a>(spans: impl Iterator<Item = &'a Span>, claims: &[SpanRef]) -> Vec<SpanRef> {
    let mut sharers = Vec::new();
    for span in spans {
        let is_parent = |claim: &&SpanRef| Some(&claim.span_id) == span.parent.as_ref();
        sharers.push(claims.iter().find(is_parent).unwrap().clone());
        sharers.extend(span.links.iter().cloned());
    }
    sharers.sort();
    sharers
}

#[tokio::test]
async fn what_is_done_for_several_jobs_is_in_one_trace_and_linked_to_the_others() {
    let collector = Collector::start().await;
    let url = collector.url();
    let settings = [&PROMPT[..], &[("WEIR_OTLP_ENDPOINT", url.as_str())]].concat();
    let world = World::start(&settings).await;
    let one_call = [&settings[..], &[("WEIR_EMBEDDER_CONCURRENCY", "1")]].concat();
    let mut worker = worker(&world, &one_call);
    let mut trace_ids = BTreeSet::new();
    for job_id in put_behind_a_held_call(&world).await {
        world.succeeded(job_id).await;
        trace_ids.insert(kept(&world, job_id).await.trace_id());
    }
    assert_eq!(trace_ids.len(), 12, "each call began a trace");
    worker.process.sigterm();
    worker.process.wait().await;

    let (mut claims, mut calls, mut commits) = (Vec::new(), Vec::new(), Vec::new());
    for trace_id in &trace_ids {
        let done = |trace: &Trace| has(trace, "complete") && has(trace, "session");
        let trace = collector.wait_for(trace_id, done).await;
        assert!(trace.orphans().is_empty(), "{trace}");
        let claim = trace.one("claim");
        claims.push(claim.id.clone());
        // Each job's own trace has its batch and the write of its result.
        for name in ["session", "batch", "persist"] {
            let parent = trace.one(name).parent.as_ref();
            assert_eq!(parent, Some(&claim.id.span_id), "{trace}");
        }
        calls.extend(
            trace
                .named(&format!("embeddings {MODEL}"))
                .into_iter()
                .cloned(),
        );
        commits.extend(trace.named("commit").into_iter().cloned());
    }
    claims.sort();
    assert!(
        calls.iter().any(|span| !span.links.is_empty()),
        "no call was shared"
    );
    assert_eq!(
        shared_by(calls.iter(), &claims),
        claims,
        "each is in one call"
    );
    // A result that had to wait for a lock is in two: one left it out.
    let mut committed = shared_by(commits.iter(), &claims);
    committed.dedup();
    assert_eq!(committed, claims);

    // An embedder that takes part gets the context of its call.
    let asked = world.embedder.calls();
    let sent = asked
        .iter()
        .filter_map(|call| TraceContext::read(call.traceparent.as_deref()?));
    let sent: BTreeSet<String> = sent.map(|sent| format!("{:016x}", sent.span_id)).collect();
    assert_eq!(
        sent,
        calls.iter().map(|span| span.id.span_id.clone()).collect()
    );
}

#[tokio::test]
async fn a_caller_decides_whether_its_trace_is_sampled_and_the_ratio_otherwise() {
    let collector = Collector::start().await;
    let none = [
        ("WEIR_OTLP_ENDPOINT", collector.url()),
        ("WEIR_TRACE_RATIO", "0".to_owned()),
    ];
    let none = none.each_ref().map(|(name, value)| (*name, value.as_str()));
    let settings = [&PROMPT[..], &none].concat();
    let world = World::start(&settings).await;
    let mut worker = worker(&world, &settings);
    let mut jobs = Vec::new();
    for (name, caller) in [
        ("unsampled", Some(UNSAMPLED)),
        ("begun", None),
        ("sampled", Some(SAMPLED)),
    ] {
        let job_id = put_within(&world, name, caller).await.jobs[0].job_id;
        world.succeeded(job_id).await;
        jobs.push(kept(&world, job_id).await);
    }
    let [unsampled, begun, sampled] = jobs[..] else {
        panic!()
    };
    assert_eq!(unsampled.to_string(), UNSAMPLED, "there is no span between");
    assert!(!begun.sampled);
    assert_eq!(
        sampled.trace_id(),
        TraceContext::read(SAMPLED).unwrap().trace_id()
    );
    assert_ne!(sampled.to_string(), SAMPLED, "the call is between");
    worker.process.sigterm();
    worker.process.wait().await;
    let done = |trace: &Trace| has(trace, "complete") && has(trace, "session");
    let trace = collector.wait_for(&sampled.trace_id(), done).await;
    assert_eq!(
        trace.orphans().len(),
        1,
        "only the call hangs on its caller, which sent nothing"
    );
    assert_eq!(collector.received(), trace.0.len(), "nothing else was sent");
}

#[tokio::test]
async fn logs_of_all_sides_name_the_trace_and_nothing_is_sent_by_default() {
    let world = World::start(&[]).await;
    let worker = world.worker("8");
    for (name, caller) in [("asked", Some(SAMPLED)), ("begun", None)] {
        let job_id = put_within(&world, name, caller).await.jobs[0].job_id;
        world.succeeded(job_id).await;
        let trace = kept(&world, job_id).await;
        if let Some(caller) = caller {
            assert_eq!(
                trace.to_string(),
                caller,
                "where nothing is recorded there is no span between"
            );
        }
        let trace_id = trace.trace_id();
        let process = &world.coordinator.process;
        for message in [
            "A source was written.",
            "A job was claimed.",
            "A job succeeded.",
        ] {
            let told = |line: &str| {
                event_in(line, message).filter(|event| event["trace_id"] == trace_id.as_str())
            };
            process.wait_for_line(told).await;
        }
        // The worker's lines have it with the lease that they belong to.
        worker
            .process
            .wait_for_line(|line| {
                let event: serde_json::Value = serde_json::from_str(line).ok()?;
                let of_it = event["message"] == "The job finished."
                    && event["span"]["trace_id"] == trace_id.as_str()
                    && event["span"]["job_id"] == job_id;
                of_it.then_some(())
            })
            .await;
    }
}

#[tokio::test]
async fn a_collector_that_is_away_or_silent_costs_nothing_but_the_spans() {
    // One refuses connections, the other takes them and never says a word.
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let [refusing_url, silent_url] =
        [&refusing, &silent].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
    drop(refusing);
    let settings = [
        &PROMPT[..2],
        &[
            ("OTEL_BSP_MAX_QUEUE_SIZE", "16"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4"),
        ],
    ]
    .concat();
    let to = |url| [&settings[..], &[("WEIR_OTLP_ENDPOINT", url)]].concat();
    let mut world = World::start(&to(&silent_url)).await;
    let mut worker = worker(&world, &to(&refusing_url));
    for number in 0..20 {
        let job_id = put_within(&world, &format!("s{number}"), None).await.jobs[0].job_id;
        world.succeeded(job_id).await;
    }
    let said = |line: &str| line.contains("Traces cannot be sent").then_some(());
    worker.process.wait_for_line(said).await;
    for process in [&mut worker.process, &mut world.coordinator.process] {
        process.sigterm();
        let status = process.wait().await;
        assert!(status.success(), "{status}");
    }
    let times = worker
        .process
        .log()
        .iter()
        .filter(|line| said(line).is_some())
        .count();
    assert_eq!(times, 1, "it is said once");
}
