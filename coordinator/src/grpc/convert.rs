//! Between the wire's types and ours.

use std::time::Duration;

use chrono::{DateTime, Utc};
use prost_types::{Struct, Timestamp, Value, value::Kind};
use weir_proto::{
    limits::{MAX_METADATA_DEPTH, metadata_too_deep},
    v1,
};

use super::Inner;
use crate::{
    job::{
        badge::{BadgeState, Verdict, not_served},
        fair_share::asked,
        state::{AttemptOutcome, JobState, RevokeReason, Trigger},
    },
    store::{
        activity::ActivityPoint,
        attempts::Attempt,
        chunks::ChunkStatus,
        content::WrittenSource,
        failures::Failure,
        overview::NamespaceFigures,
        rows::{ChunkText, Job, Source},
    },
};

/// A duration of the wire; `None` when it is negative or absurd.
pub(crate) fn duration(duration: prost_types::Duration) -> Option<Duration> {
    Duration::try_from(duration).ok()
}

/// A duration for the wire.
pub(crate) fn wire_duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

pub(super) fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp {
        seconds: time.timestamp(),
        nanos: time.timestamp_subsec_nanos() as i32,
    }
}

/// Metadata from the wire, as a JSON object. Fails with what is wrong.
pub(crate) fn metadata(
    metadata: Struct,
) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    object(metadata, 0)
}

fn object(
    object: Struct,
    depth: usize,
) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    object
        .fields
        .into_iter()
        .map(|(key, value)| Ok((key, json(value, depth + 1)?)))
        .collect()
}

fn json(value: Value, depth: usize) -> Result<serde_json::Value, String> {
    if depth > MAX_METADATA_DEPTH {
        return Err(metadata_too_deep());
    }
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(truth)) => truth.into(),
        // The wire has only doubles; whole numbers are written without a fraction.
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < 9.0e15 => {
            (number as i64).into()
        }
        Some(Kind::NumberValue(number)) => serde_json::Number::from_f64(number)
            .ok_or("has a number that is not finite")?
            .into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::StructValue(fields)) => object(fields, depth)?.into(),
        Some(Kind::ListValue(list)) => list
            .values
            .into_iter()
            .map(|value| json(value, depth + 1))
            .collect::<Result<Vec<_>, _>>()?
            .into(),
    })
}

/// A JSON value for the wire.
pub(crate) fn wire_struct(value: serde_json::Value) -> Option<Struct> {
    match value {
        serde_json::Value::Object(fields) => Some(Struct {
            fields: fields
                .into_iter()
                .map(|(key, value)| (key, wire_value(value)))
                .collect(),
        }),
        _ => None,
    }
}

fn wire_value(value: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(truth) => Kind::BoolValue(truth),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values.into_iter().map(wire_value).collect(),
        }),
        object @ Json::Object(_) => Kind::StructValue(wire_struct(object).unwrap_or_default()),
    };
    Value { kind: Some(kind) }
}

/// How a source stands, for the wire. `served` are the models that workers can
/// claim jobs of.
fn wire_badge(source: &Source, served: &[String]) -> v1::Badge {
    let standing = source.standing(served.contains(&source.model));
    let state = match standing.state() {
        BadgeState::Empty => v1::BadgeState::Empty,
        BadgeState::NotIndexed => v1::BadgeState::NotIndexed,
        BadgeState::Queued => v1::BadgeState::Queued,
        BadgeState::Indexing => v1::BadgeState::Indexing,
        BadgeState::Retrying => v1::BadgeState::Retrying,
        BadgeState::Indexed => v1::BadgeState::Indexed,
        BadgeState::Failed => v1::BadgeState::Failed,
    };
    let error = if standing.is_unserved() {
        Some(not_served(&source.model))
    } else {
        let error = source.telling_error.clone();
        let error = error.filter(|_| standing.is_held_up());
        error.or_else(|| source.rejections().sentence())
    };
    let waits = matches!(
        state,
        v1::BadgeState::Queued | v1::BadgeState::Retrying | v1::BadgeState::Failed
    ) && source.telling_state != Some(JobState::Running);
    v1::Badge {
        state: state.into(),
        text: standing.text(),
        done: standing.embedded,
        total: standing.total,
        rejected: standing.rejected,
        attempt: source.telling_attempt.unwrap_or_default().into(),
        last_error: error.unwrap_or_default(),
        next_run_time: source.telling_run_at.filter(|_| waits).map(timestamp),
        degraded: standing.is_degraded(),
        first_rejection_time: source.rejected_since.map(timestamp),
        last_rejection_reason: source.last_rejection.clone().unwrap_or_default(),
    }
}

impl Inner {
    /// A source for the wire.
    pub(crate) fn wire_source(&self, source: Source) -> v1::Source {
        v1::Source {
            badge: Some(wire_badge(&source, &self.models)),
            chunks_embedded: source.chunks_embedded(),
            namespace: source.namespace,
            name: source.name,
            model: source.model,
            revision: source.revision,
            create_time: Some(timestamp(source.created_at)),
            update_time: Some(timestamp(source.updated_at)),
            items: source.items_total,
            chunks: source.chunks_total,
            chunks_rejected: source.chunks_rejected,
            chunks_truncated: source.chunks_truncated,
            embedding_anew: source.embedding_anew,
        }
    }

    /// A job for the wire.
    pub(crate) fn wire_job(&self, job: Job) -> v1::Job {
        let mut wire = wire_job(job, self.dispatch.policy.max_attempts);
        if wire.state() == v1::JobState::Queued && !self.models.contains(&wire.model) {
            wire.last_error = not_served(&wire.model);
        }
        wire
    }
}

impl From<WrittenSource> for v1::WrittenSource {
    fn from(source: WrittenSource) -> Self {
        Self {
            namespace: source.namespace,
            name: source.name,
            model: source.model,
            revision: source.revision,
            create_time: Some(timestamp(source.created_at)),
            update_time: Some(timestamp(source.updated_at)),
            items: source.items_total,
            chunks: source.chunks_total,
        }
    }
}

fn wire_job(job: Job, max_attempts: i16) -> v1::Job {
    v1::Job {
        job_id: job.id,
        namespace: job.namespace,
        source: job.source,
        model: job.model,
        first_item_id: job.first_item_id,
        last_item_id: job.last_item_id,
        revision: job.revision,
        trigger: wire_trigger(job.trigger).into(),
        state: wire_state(job.state).into(),
        priority: asked(job.priority).into(),
        attempt: job.attempt.into(),
        max_attempts: max_attempts.into(),
        epoch: job.epoch,
        run_time: Some(timestamp(job.run_at)),
        worker_id: job
            .worker_id
            .filter(|_| job.state == JobState::Running)
            .unwrap_or_default(),
        lease_expire_time: job.lease_expires_at.map(timestamp),
        chunks_total: job.chunks_total.into(),
        chunks_done: job.chunks_done.into(),
        chunks_rejected: job.chunks_rejected.into(),
        last_error: job.last_error.unwrap_or_default(),
        create_time: Some(timestamp(job.created_at)),
        start_time: job.started_at.map(timestamp),
        finish_time: job.finished_at.map(timestamp),
        chunks_truncated: job.chunks_truncated.into(),
        trace_id: job.traceparent.as_deref().map(trace_id).unwrap_or_default(),
        failure_id: job.failure_id.unwrap_or_default(),
    }
}

/// The trace that a W3C trace context is of.
fn trace_id(traceparent: &str) -> String {
    traceparent.split('-').nth(1).unwrap_or_default().to_owned()
}

impl From<Attempt> for v1::Attempt {
    fn from(attempt: Attempt) -> Self {
        Self {
            job_id: attempt.job_id,
            epoch: attempt.epoch,
            worker_id: attempt.worker_id,
            start_time: Some(timestamp(attempt.started_at)),
            end_time: attempt.ended_at.map(timestamp),
            outcome: match attempt.outcome {
                AttemptOutcome::Running => v1::AttemptOutcome::Running,
                AttemptOutcome::Succeeded => v1::AttemptOutcome::Succeeded,
                AttemptOutcome::Released => v1::AttemptOutcome::Released,
                AttemptOutcome::Failed => v1::AttemptOutcome::Failed,
                AttemptOutcome::Expired => v1::AttemptOutcome::Expired,
                AttemptOutcome::NoProgress => v1::AttemptOutcome::NoProgress,
                AttemptOutcome::Cancelled => v1::AttemptOutcome::Cancelled,
            }
            .into(),
            error: attempt.error.unwrap_or_default(),
            chunks_done: attempt.chunks_done.into(),
            charged: attempt.charged,
        }
    }
}

impl From<Failure> for v1::Failure {
    fn from(failure: Failure) -> Self {
        Self {
            failure_id: failure.id,
            namespace: failure.namespace,
            model: failure.model,
            cause: failure.cause,
            last_error: failure.last_error,
            last_job_id: failure.last_job_id,
            last_source: failure.last_source,
            first_seen_time: Some(timestamp(failure.first_seen_at)),
            last_seen_time: Some(timestamp(failure.last_seen_at)),
            occurrences: failure.occurrences,
            last_success_time: failure.last_success_at.map(timestamp),
            jobs_affected: failure.jobs_affected,
            dismiss_time: failure.dismissed_at.map(timestamp),
        }
    }
}

impl From<NamespaceFigures> for v1::NamespaceStatus {
    fn from(figures: NamespaceFigures) -> Self {
        let tally = figures.tally();
        Self {
            verdict: match tally.verdict() {
                Verdict::Healthy => v1::Verdict::Healthy,
                Verdict::Indexing => v1::Verdict::Indexing,
                Verdict::Degraded => v1::Verdict::Degraded,
            }
            .into(),
            reasons: tally.reasons(),
            namespace: figures.namespace,
            sources: figures.sources,
            chunks: figures.chunks,
            chunks_pending: figures.chunks_pending,
            chunks_rejected: figures.chunks_rejected,
            jobs_ready: figures.jobs_ready,
            jobs_delayed: figures.jobs_delayed,
            jobs_running: figures.jobs_running,
            jobs_retrying: figures.jobs_retrying + figures.jobs_embedder_down,
            jobs_failed: figures.jobs_failed,
            jobs_cancelled: figures.jobs_cancelled,
            oldest_ready_age_seconds: figures.oldest_ready_age_seconds,
            first_rejection_time: figures.rejected_since.map(timestamp),
            last_rejection_reason: figures.last_rejection.unwrap_or_default(),
        }
    }
}

impl From<ActivityPoint> for v1::ActivityPoint {
    fn from(point: ActivityPoint) -> Self {
        Self {
            time: Some(timestamp(point.at)),
            chunks_embedded: point.chunks_embedded,
            chunks_rejected: point.chunks_rejected,
            chunks_pending: point.chunks_pending,
            oldest_ready_age_seconds: point.oldest_ready_age_seconds,
        }
    }
}

/// A chunk and what became of it, for the wire.
pub(crate) fn wire_chunk(chunk: ChunkStatus, state: v1::ChunkState) -> v1::ChunkStatus {
    v1::ChunkStatus {
        item_id: chunk.item_id,
        chunk_index: chunk.chunk_index,
        state: state.into(),
        chars: chunk.chars,
        truncated_to: chunk.truncated_to.unwrap_or_default(),
        reason: chunk.reason.unwrap_or_default(),
        time: chunk.at.map(timestamp),
    }
}

fn wire_state(state: JobState) -> v1::JobState {
    match state {
        JobState::Queued => v1::JobState::Queued,
        JobState::Running => v1::JobState::Running,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
    }
}

/// A state from the wire; `None` when it is none.
pub(crate) fn job_state(state: i32) -> Option<JobState> {
    JobState::ALL
        .iter()
        .copied()
        .find(|ours| i32::from(wire_state(*ours)) == state)
}

fn wire_trigger(trigger: Trigger) -> v1::JobTrigger {
    match trigger {
        Trigger::Write => v1::JobTrigger::Write,
        Trigger::Retry => v1::JobTrigger::Retry,
        Trigger::Reconcile => v1::JobTrigger::Reconcile,
    }
}

/// A trigger of the wire; `None` when it is none.
pub(crate) fn job_trigger(trigger: i32) -> Option<Trigger> {
    Trigger::ALL
        .iter()
        .copied()
        .find(|ours| i32::from(wire_trigger(*ours)) == trigger)
}

/// Why a lease was revoked, for the wire.
pub(crate) fn wire_reason(reason: RevokeReason) -> v1::RevokeReason {
    match reason {
        RevokeReason::LeaseLost => v1::RevokeReason::LeaseLost,
        RevokeReason::Cancelled => v1::RevokeReason::Cancelled,
        RevokeReason::Superseded => v1::RevokeReason::Superseded,
        RevokeReason::SourceDeleted => v1::RevokeReason::SourceDeleted,
        RevokeReason::NoProgress => v1::RevokeReason::NoProgress,
    }
}

impl From<ChunkText> for v1::Chunk {
    fn from(chunk: ChunkText) -> Self {
        Self {
            item_id: chunk.item_id,
            chunk_index: chunk.chunk_index,
            text_hash: chunk.text_hash,
            text: chunk.text,
        }
    }
}
