//! What a session tells of itself in the trace of its job.
//!
//! None of its spans is the parent of another: they all hang on the claim, which
//! is over. A worker that is killed takes the spans with it that it had not
//! ended, and those that it had sent are no orphans.

use weir_telemetry::{KeyValue, Span, SpanKind, TraceContext, Tracer};

use super::{Context, End};
use crate::{
    coordinator::{HandBack, Lease},
    endpoint::Outcome,
    plan::Batch,
};

/// The span of the whole attempt. A job without a trace, of an older
/// coordinator, gets one that begins here.
pub(super) fn session(context: &Context, lease: &mut Lease) -> Span {
    let (tracer, kind) = (&context.tracer, SpanKind::Consumer);
    if let Some(trace) = lease.trace {
        return tracer.child(Some(&trace), "session", kind, || about(context, lease));
    }
    let (span, trace) = tracer.enter(None, "session", kind, || about(context, lease));
    lease.trace = Some(trace);
    span
}

fn about(context: &Context, lease: &Lease) -> [KeyValue; 11] {
    [
        KeyValue::new("messaging.system", "weir"),
        KeyValue::new("messaging.operation.type", "process"),
        KeyValue::new("messaging.operation.name", "session"),
        KeyValue::new("messaging.destination.name", context.model.name.clone()),
        KeyValue::new("messaging.message.id", lease.job_id.to_string()),
        KeyValue::new("weir.job.id", lease.job_id),
        KeyValue::new("weir.job.epoch", lease.epoch),
        KeyValue::new("weir.job.attempt", i64::from(lease.attempt)),
        KeyValue::new("weir.source", lease.source.clone()),
        KeyValue::new("weir.worker.id", context.config.worker_id.clone()),
        KeyValue::new("weir.chunks.pending", lease.chunks_pending),
    ]
}

/// Says how an attempt ended, and of how many chunks it had the outcome
/// persisted.
pub(super) fn ended(session: &Span, end: &End, chunks: usize) {
    let (outcome, reason) = match end {
        End::Finished => ("finished", None),
        End::Lost(reason) => ("lost", Some(reason)),
        End::HandBack { how, reason } => match how {
            HandBack::Fail => ("failed", Some(reason)),
            HandBack::Drain | HandBack::EmbedderDown => ("released", Some(reason)),
        },
        End::Unreachable(reason) => ("unreachable", Some(reason)),
    };
    session.set(|| {
        [
            KeyValue::new("weir.outcome", outcome),
            KeyValue::new("weir.chunks.persisted", chunks as i64),
        ]
    });
    let Some(reason) = reason else { return };
    session.set(|| [KeyValue::new("weir.reason", reason.clone())]);
    if outcome != "released" && session.is_recorded() {
        session.fail(reason.clone());
    }
}

/// The span of a batch, from when the endpoint gets it until it has its
/// outcome.
pub(super) fn batch(tracer: &Tracer, trace: Option<TraceContext>, batch: &Batch) -> Span {
    tracer.child(trace.as_ref(), "batch", SpanKind::Internal, || {
        [
            KeyValue::new("weir.batch.seq", batch.seq),
            KeyValue::new("weir.chunks", batch.chunks.len() as i64),
        ]
    })
}

/// Says what became of a batch.
pub(super) fn embedded(batch: &Span, outcome: &Outcome) {
    batch.set(|| {
        let result = &outcome.result;
        [
            KeyValue::new("weir.chunks.embedded", result.embedded.len() as i64),
            KeyValue::new("weir.chunks.rejected", result.rejected.len() as i64),
        ]
    });
    if let Some(reason) = &outcome.failure
        && batch.is_recorded()
    {
        batch.fail(reason.clone());
    }
}
