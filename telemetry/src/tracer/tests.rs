use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanProcessor};
use std::sync::Mutex;

use super::*;

/// Keeps what ends.
#[derive(Debug, Default, Clone)]
struct Ended(Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Ended {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.lock().unwrap().push(span);
    }

    fn force_flush(&self) -> opentelemetry_sdk::error::OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> opentelemetry_sdk::error::OTelSdkResult {
        Ok(())
    }
}

impl Ended {
    fn names(&self) -> Vec<String> {
        let ended = self.0.lock().unwrap();
        ended.iter().map(|span| span.name.to_string()).collect()
    }
}

fn tracer(ratio: f64) -> (Tracer, Ended) {
    let ended = Ended::default();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(ended.clone())
        .with_sampler(sampler(ratio))
        .build();
    let tracer = provider.tracer("weir");
    (Tracer(Some(Arc::new(On { provider, tracer }))), ended)
}

fn caller(sampled: bool) -> TraceContext {
    let flags = if sampled { "01" } else { "00" };
    let header = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
    header.parse().unwrap()
}

fn nothing() -> [KeyValue; 0] {
    []
}

/// Attributes that are not to be made.
fn never() -> [KeyValue; 0] {
    panic!("nobody records this")
}

#[test]
fn a_call_within_a_trace_goes_on_with_it() {
    let (tracer, ended) = tracer(0.0);
    let (span, context) = tracer.enter(Some(caller(true)), "call", SpanKind::Server, nothing);
    assert_eq!(context.trace_id, caller(true).trace_id);
    assert_ne!(context.span_id, caller(true).span_id);
    assert_eq!(span.context(), Some(context));
    let child = tracer.child(Some(&context), "child", SpanKind::Internal, nothing);
    drop((child, span));
    assert_eq!(ended.names(), ["child", "call"]);
    let ended = ended.0.lock().unwrap();
    assert_eq!(
        u64::from_be_bytes(ended[0].parent_span_id.to_bytes()),
        context.span_id.get()
    );
}

#[test]
fn what_is_not_sampled_costs_nothing_and_keeps_its_context() {
    let (on, ended) = tracer(0.0);
    for tracer in [on, Tracer::OFF] {
        let (span, context) = tracer.enter(Some(caller(false)), "call", SpanKind::Server, never);
        assert_eq!(context, caller(false));
        let child = tracer.child(Some(&context), "child", SpanKind::Internal, never);
        let shared = tracer.shared([context, context], "shared", SpanKind::Client, never);
        let orphan = tracer.child(None, "of nothing", SpanKind::Client, never);
        for span in [span, child, shared, orphan] {
            assert!(!span.is_recorded());
            assert_eq!(span.context(), None);
            span.set(never);
            span.event("event", never);
        }
        // A trace that begins here is known to logs, and recorded by nobody.
        let (span, begun) = tracer.enter(None, "call", SpanKind::Server, nothing);
        assert!(!span.is_recorded() && !begun.sampled);
        let (_, other) = tracer.enter(None, "call", SpanKind::Server, nothing);
        assert_ne!(begun.trace_id, other.trace_id);
    }
    assert!(ended.names().is_empty());
}

#[test]
fn what_is_done_for_several_is_a_child_of_one_and_linked_to_the_others() {
    let (tracer, ended) = tracer(1.0);
    let trace = || tracer.enter(None, "call", SpanKind::Server, nothing).1;
    let (one, other) = (trace(), trace());
    drop(tracer.shared(
        [caller(false), one, other],
        "shared",
        SpanKind::Client,
        nothing,
    ));
    let ended = ended.0.lock().unwrap();
    let shared = ended.last().unwrap();
    assert_eq!(shared.span_context.trace_id().to_string(), one.trace_id());
    assert_eq!(shared.links.len(), 1);
    assert_eq!(
        shared.links[0].span_context.trace_id().to_string(),
        other.trace_id()
    );
}

#[tokio::test]
async fn a_future_finds_the_span_that_it_runs_within() {
    let (tracer, ended) = tracer(1.0);
    let (span, context) = tracer.enter(None, "call", SpanKind::Server, nothing);
    assert!(!Span::current().is_recorded());
    span.around(async {
        tokio::task::yield_now().await;
        assert_eq!(Span::current().context(), Some(context));
        Span::current().set(|| [KeyValue::new("found", true)]);
    })
    .await;
    assert!(!Span::current().is_recorded());
    Span::NONE
        .around(async { assert!(!Span::current().is_recorded()) })
        .await;
    drop(span);
    let ended = ended.0.lock().unwrap();
    assert_eq!(ended[0].attributes, [KeyValue::new("found", true)]);
}
