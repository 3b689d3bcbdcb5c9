//! What a session tells of a lease in the trace of its job.
//!
//! None of the worker's spans is the parent of another: they all hang on the
//! claim, which is over. A worker that is killed takes the spans with it that it
//! had not ended, and those that it had sent are no orphans.

use weir_telemetry::{KeyValue, Span, SpanKind, TraceContext};

use crate::{
    part::{End, Part},
    worker::Worker,
};

/// The span of the work on a lease, from its first part on, and what the spans of
/// its parts hang on. A job without a trace, of an older coordinator, gets one
/// that begins here.
pub(super) fn session(worker: &Worker, model: &str, part: &Part) -> (Span, TraceContext) {
    let (tracer, kind) = (&worker.tracer, SpanKind::Consumer);
    let about = || about(worker, model, part);
    if let Some(trace) = part.trace {
        return (tracer.child(Some(&trace), "session", kind, about), trace);
    }
    tracer.enter(None, "session", kind, about)
}

fn about(worker: &Worker, model: &str, part: &Part) -> [KeyValue; 9] {
    let job_id = part.lease.job_id;
    [
        KeyValue::new("messaging.system", "weir"),
        KeyValue::new("messaging.operation.type", "process"),
        KeyValue::new("messaging.operation.name", "session"),
        KeyValue::new("messaging.destination.name", model.to_owned()),
        KeyValue::new("messaging.message.id", job_id.to_string()),
        KeyValue::new("weir.job.id", job_id),
        KeyValue::new("weir.job.epoch", part.lease.epoch),
        KeyValue::new("weir.source", part.source.clone()),
        KeyValue::new("weir.worker.id", worker.config.worker_id.clone()),
    ]
}

/// Says how the work on a lease ended, and of how many chunks it had the outcome
/// persisted.
pub(super) fn ended(session: &Span, end: End, reason: &str, chunks: usize) {
    session.set(|| {
        [
            KeyValue::new("weir.outcome", end.as_str()),
            KeyValue::new("weir.chunks.persisted", chunks as i64),
        ]
    });
    if end == End::Finished {
        return;
    }
    session.set(|| [KeyValue::new("weir.reason", reason.to_owned())]);
    if end != End::Released && session.is_recorded() {
        session.fail(reason.to_owned());
    }
}
