//! Between the wire's types and ours.

use std::time::Duration;

use chrono::{DateTime, Utc};
use prost_types::{Struct, Timestamp, Value, value::Kind};
use weir_proto::v1;

use crate::{
    job::state::{JobState, RevokeReason, Trigger},
    store::{
        batches::Progress,
        rows::{ChunkText, Job, Source},
    },
};

/// Deepest nesting of an item's metadata.
const MAX_METADATA_DEPTH: usize = 64;

/// A duration of the wire; `None` when it is negative or absurd.
pub(crate) fn duration(duration: prost_types::Duration) -> Option<Duration> {
    Duration::try_from(duration).ok()
}

/// A duration for the wire.
pub(crate) fn wire_duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

fn timestamp(time: DateTime<Utc>) -> Timestamp {
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
        return Err(format!(
            "is nested more than {MAX_METADATA_DEPTH} levels deep"
        ));
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

impl From<Source> for v1::Source {
    fn from(source: Source) -> Self {
        Self {
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
            badge: None,
        }
    }
}

/// A job for the wire.
pub(crate) fn wire_job(job: Job, max_attempts: i16) -> v1::Job {
    v1::Job {
        job_id: job.id,
        namespace: job.namespace,
        source: job.source,
        model: job.model,
        first_item_id: job.first_item_id,
        last_item_id: job.last_item_id,
        revision: job.revision,
        trigger: match job.trigger {
            Trigger::Write => v1::JobTrigger::Write,
            Trigger::Retry => v1::JobTrigger::Retry,
            Trigger::Reconcile => v1::JobTrigger::Reconcile,
        }
        .into(),
        state: wire_state(job.state).into(),
        priority: job.priority.into(),
        attempt: job.attempt.into(),
        max_attempts: max_attempts.into(),
        epoch: job.epoch,
        run_time: Some(timestamp(job.run_at)),
        worker_id: job.worker_id.unwrap_or_default(),
        lease_expire_time: job.lease_expires_at.map(timestamp),
        chunks_total: job.chunks_total.into(),
        chunks_done: job.chunks_done.into(),
        chunks_rejected: job.chunks_rejected.into(),
        last_error: job.last_error.unwrap_or_default(),
        create_time: Some(timestamp(job.created_at)),
        start_time: job.started_at.map(timestamp),
        finish_time: job.finished_at.map(timestamp),
        chunks_truncated: job.chunks_truncated.into(),
        trace_id: String::new(),
        failure_id: 0,
    }
}

impl From<&Job> for v1::JobFinished {
    fn from(job: &Job) -> Self {
        Self {
            chunks_done: job.chunks_done.into(),
            chunks_rejected: job.chunks_rejected.into(),
            chunks_truncated: job.chunks_truncated.into(),
        }
    }
}

impl From<&Progress> for v1::JobFinished {
    fn from(progress: &Progress) -> Self {
        Self {
            chunks_done: progress.done,
            chunks_rejected: progress.rejected,
            chunks_truncated: progress.truncated,
        }
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
