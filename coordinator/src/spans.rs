//! The spans of what happens to a job between the calls.
//!
//! The span of a call that writes is the root that its jobs' spans hang on, and
//! the claim that of an attempt: both are over before anything below them
//! begins. So whoever dies later takes the spans with it that it had not ended,
//! and leaves no orphans.

use std::time::{Duration, SystemTime};

use tracing::field::display;
use weir_telemetry::{KeyValue, Span, SpanKind, TraceContext, Tracer};

use crate::{
    job::retry::Decision,
    store::{
        content::{SourceWrite, Written},
        rows::{Job, LeaseKey, SourceKey},
    },
};

/// The trace that a job takes part in.
pub(crate) fn trace_of(job: &Job) -> Option<TraceContext> {
    TraceContext::read(job.traceparent.as_deref()?)
}

/// The id of a trace, for a log.
pub(crate) fn trace_id(trace: Option<TraceContext>) -> Option<impl tracing::Value> {
    trace.map(|trace| display(trace.trace_id()))
}

/// What names a job and its lease in a span.
pub(crate) fn names(lease: LeaseKey) -> [KeyValue; 2] {
    [
        KeyValue::new("weir.job.id", lease.job_id),
        KeyValue::new("weir.job.epoch", lease.epoch),
    ]
}

/// The trace of a write.
pub(crate) fn trace_of_write(write: &SourceWrite) -> Option<TraceContext> {
    TraceContext::read(write.traceparent.as_deref()?)
}

/// The span of the transaction that writes content and plans the jobs for it.
pub(crate) fn plan(tracer: &Tracer, write: &SourceWrite) -> Span {
    let trace = trace_of_write(write);
    tracer.child(trace.as_ref(), "plan", SpanKind::Client, || {
        let SourceKey { namespace, name } = &write.key;
        [
            KeyValue::new("db.system.name", "postgresql"),
            KeyValue::new(
                "db.query.summary",
                "UPSERT weir.items weir.chunks weir.jobs",
            ),
            KeyValue::new("weir.source", format!("{namespace}/{name}")),
        ]
    })
}

/// Says what a plan came to.
pub(crate) fn planned(plan: &Span, written: &Written) {
    plan.set(|| {
        let change = &written.change;
        [
            KeyValue::new("weir.items.added", change.items_added),
            KeyValue::new("weir.items.changed", change.items_changed),
            KeyValue::new("weir.items.deleted", change.items_deleted),
            KeyValue::new("weir.chunks.pending", change.chunks_pending),
            KeyValue::new("weir.jobs", written.jobs.len() as i64),
            KeyValue::new("weir.jobs.superseded", change.jobs_superseded),
        ]
    });
}

/// Records that a job was claimed, by a statement that began at `began`: how
/// long it was queued, and the claim. Returns the context that the attempt's
/// spans hang on: the claim's, or where nothing is recorded that of the job.
///
/// How long it was queued is by the clock of the database alone: from when it
/// was due (`run_at`) to the claim, which is when its lease began to run. By
/// the clock here it ends with the claim: too late by what the claim took at
/// most, and so never begins before what it follows.
pub(crate) fn claimed(
    tracer: &Tracer,
    job: &Job,
    lease_duration: Duration,
    began: SystemTime,
) -> Option<TraceContext> {
    let trace = trace_of(job)?;
    if !tracer.records(Some(&trace)) {
        return Some(trace);
    }
    let waited = job.lease_expires_at.and_then(|until| {
        let claimed_at = until - chrono::Duration::from_std(lease_duration).ok()?;
        (claimed_at - job.run_at).to_std().ok()
    });
    let ended = SystemTime::now();
    let due = ended - waited.unwrap_or_default();
    let attributes = || {
        let about = [
            KeyValue::new("messaging.system", "weir"),
            KeyValue::new("messaging.destination.name", job.model.clone()),
            KeyValue::new("messaging.message.id", job.id.to_string()),
            KeyValue::new("weir.source", format!("{}/{}", job.namespace, job.source)),
            KeyValue::new("weir.job.attempt", i64::from(job.attempt)),
            KeyValue::new("weir.chunks.pending", i64::from(job.chunks_pending())),
        ];
        let lease = LeaseKey {
            job_id: job.id,
            epoch: job.epoch,
        };
        about.into_iter().chain(names(lease))
    };
    let queued = tracer.child_since(Some(&trace), "queued", SpanKind::Internal, due, attributes);
    if let Some(error) = &job.last_error {
        queued.set(|| [KeyValue::new("weir.job.last_error", error.clone())]);
    }
    queued.end_at(ended);
    let claim = tracer.child_since(Some(&trace), "claim", SpanKind::Consumer, began, attributes);
    claim.set(|| {
        let worker_id = job.worker_id.clone().unwrap_or_default();
        [
            KeyValue::new("messaging.operation.type", "receive"),
            KeyValue::new("messaging.operation.name", "claim"),
            KeyValue::new("weir.worker.id", worker_id),
        ]
    });
    let context = claim.context();
    claim.end_at(ended);
    context
}

/// Says of the call that hands a job back what became of the job.
pub(crate) fn handed_back(lease: LeaseKey, reason: &str, decision: Option<Decision>) {
    let call = Span::current();
    call.set(|| names(lease));
    call.set(|| [KeyValue::new("weir.reason", reason.to_owned())]);
    match decision {
        None => {}
        Some(Decision::Retry { delay, .. }) => call.set(|| {
            [KeyValue::new(
                "weir.retry.delay_ms",
                delay.as_millis() as i64,
            )]
        }),
        Some(Decision::Fail { .. }) => call.set(|| [KeyValue::new("weir.job.failed", true)]),
    }
}

/// Records that a job has succeeded, by a statement that began at `began`.
pub(crate) fn completed(
    tracer: &Tracer,
    trace: Option<TraceContext>,
    lease: LeaseKey,
    began: SystemTime,
) {
    let attributes = || names(lease);
    let (name, kind) = ("complete", SpanKind::Internal);
    drop(tracer.child_since(trace.as_ref(), name, kind, began, attributes));
}

/// Records a moment of a lease: that it was orphaned or revoked, and why.
pub(crate) fn happened(
    tracer: &Tracer,
    trace: Option<TraceContext>,
    name: &'static str,
    lease: LeaseKey,
    reason: impl FnOnce() -> String,
) {
    let moment = tracer.child(trace.as_ref(), name, SpanKind::Internal, || names(lease));
    moment.set(|| [KeyValue::new("weir.reason", reason())]);
}
