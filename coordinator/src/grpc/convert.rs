//! Between the wire's types and ours. Requests are checked here, at the door;
//! inside nothing is checked again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use prost_types::{Struct, Timestamp, Value, value::Kind};
use weir_proto::{
    limits::{
        MAX_DIMENSION, MAX_MODEL_CHARS, MAX_NAME_CHARS, MAX_NAMESPACE_CHARS, MAX_PAGE_SIZE,
        MAX_REASON_CHARS,
    },
    v1,
};

use crate::{
    job::{
        plan::TextHash,
        state::{JobState, RevokeReason, Trigger},
    },
    store::{
        Violation,
        rows::{ChunkText, Embedded, Job, LeaseKey, Rejected, Source, SourceKey},
    },
};

/// Deepest nesting of an item's metadata.
const MAX_METADATA_DEPTH: usize = 64;

/// Gathers the faults of a request, so that a client hears of all at once.
#[derive(Debug, Default)]
pub(crate) struct Door {
    violations: Vec<Violation>,
}

impl Door {
    /// Notes a fault, the first hundred of them.
    pub(crate) fn refuse(&mut self, field: impl Into<String>, message: impl Into<String>) {
        if self.violations.len() < 100 {
            self.violations.push(Violation::new(field, message));
        }
    }

    /// Lets the request in, or turns it away with its faults.
    pub(crate) fn close(self) -> Result<(), tonic::Status> {
        if self.violations.is_empty() {
            return Ok(());
        }
        Err(super::error::invalid(self.violations))
    }

    /// A namespace; empty means "default".
    pub(crate) fn namespace(&mut self, namespace: String) -> String {
        if namespace.is_empty() {
            return "default".to_owned();
        }
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if namespace.chars().count() > MAX_NAMESPACE_CHARS || !is_name(&namespace, lower) {
            self.refuse(
                "namespace",
                format!(
                    "must be 1 to {MAX_NAMESPACE_CHARS} lower-case letters, digits, '-', '_' or '.', beginning \
                     with a letter or digit"
                ),
            );
        }
        namespace
    }

    /// A source's name.
    pub(crate) fn name(&mut self, field: &'static str, name: String) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric();
        if name.chars().count() > MAX_NAME_CHARS || !is_name(&name, plain) {
            self.refuse(
                field,
                format!(
                    "must be 1 to {MAX_NAME_CHARS} letters, digits, '-', '_' or '.', beginning with a letter or digit"
                ),
            );
        }
        name
    }

    /// A source's namespace and name.
    pub(crate) fn source_key(&mut self, namespace: String, name: String) -> SourceKey {
        SourceKey {
            namespace: self.namespace(namespace),
            name: self.name("name", name),
        }
    }

    /// A model that sources may use; `None` when it is left empty.
    pub(crate) fn model(&mut self, model: String, known: &[String]) -> Option<String> {
        if model.is_empty() {
            return None;
        }
        if !known.contains(&model) {
            self.refuse(
                "model",
                format!(
                    "{:?} is not a model of this coordinator; it has {}",
                    cut(&model, MAX_MODEL_CHARS),
                    known.join(", ")
                ),
            );
        }
        Some(model)
    }

    /// A number that must lie in a range; 0 stands for `default`.
    pub(crate) fn number(
        &mut self,
        field: &'static str,
        number: i32,
        default: i32,
        range: std::ops::RangeInclusive<i32>,
    ) -> i32 {
        if number == 0 {
            return default;
        }
        if !range.contains(&number) {
            self.refuse(
                field,
                format!("must be {} to {}, not {number}", range.start(), range.end()),
            );
        }
        number
    }

    /// The size of a page.
    pub(crate) fn page_size(&mut self, page_size: i32) -> i64 {
        self.number("page_size", page_size, 100, 1..=MAX_PAGE_SIZE)
            .into()
    }

    /// A priority.
    pub(crate) fn priority(&mut self, priority: i32) -> i16 {
        self.number("priority", priority, 0, 0..=9) as i16
    }

    /// The lease that a worker's call names.
    pub(crate) fn lease(&mut self, job_id: i64, epoch: i64) -> LeaseKey {
        if job_id < 1 {
            self.refuse("job_id", "must be the id of a job that was claimed");
        }
        if epoch < 1 {
            self.refuse(
                "epoch",
                "must be the epoch of the lease, which is at least 1",
            );
        }
        LeaseKey { job_id, epoch }
    }

    /// A reason in words; too long ones are cut.
    pub(crate) fn reason(&mut self, field: String, reason: &str) -> String {
        if reason.trim().is_empty() {
            self.refuse(field, "must say why, in words for a person");
        }
        cut(&reason.replace('\0', "\u{FFFD}"), MAX_REASON_CHARS)
    }

    /// A hash of a chunk's text.
    fn text_hash(&mut self, field: &str, hash: &[u8]) -> TextHash {
        TextHash::try_from(hash).unwrap_or_else(|_| {
            self.refuse(
                format!("{field}.text_hash"),
                format!(
                    "must be the 32 bytes of the chunk's SHA-256, not {}",
                    hash.len()
                ),
            );
            TextHash::default()
        })
    }

    /// A vector from its bytes.
    pub(crate) fn vector(&mut self, field: &str, bytes: &[u8]) -> Vec<f32> {
        let (numbers, rest) = bytes.as_chunks::<4>();
        let vector: Vec<f32> = numbers
            .iter()
            .map(|number| f32::from_le_bytes(*number))
            .collect();
        if !rest.is_empty() {
            self.refuse(
                field,
                format!(
                    "must be packed little-endian f32, 4 bytes a number; {} bytes are not",
                    bytes.len()
                ),
            );
        } else if vector.is_empty() || vector.len() > MAX_DIMENSION {
            self.refuse(
                field,
                format!(
                    "must have 1 to {MAX_DIMENSION} numbers, not {}",
                    vector.len()
                ),
            );
        } else if let Some(place) = vector.iter().position(|number| !number.is_finite()) {
            self.refuse(
                field,
                format!(
                    "number {place} is {}; every number must be finite",
                    vector[place]
                ),
            );
        }
        vector
    }

    /// The chunks of a result: each well formed, none twice, all vectors of one
    /// dimension.
    pub(crate) fn outcome(
        &mut self,
        embedded: Vec<v1::EmbeddedChunk>,
        rejected: Vec<v1::RejectedChunk>,
    ) -> (Vec<Embedded>, Vec<Rejected>) {
        let embedded: Vec<Embedded> = embedded
            .into_iter()
            .enumerate()
            .map(|(index, chunk)| {
                let field = format!("embedded[{index}]");
                Embedded {
                    text_hash: self.text_hash(&field, &chunk.text_hash),
                    vector: self.vector(&format!("{field}.vector"), &chunk.vector),
                    item_id: chunk.item_id,
                    chunk_index: chunk.chunk_index,
                }
            })
            .collect();
        let rejected: Vec<Rejected> = rejected
            .into_iter()
            .enumerate()
            .map(|(index, chunk)| {
                let field = format!("rejected[{index}]");
                Rejected {
                    text_hash: self.text_hash(&field, &chunk.text_hash),
                    reason: self.reason(format!("{field}.reason"), &chunk.reason),
                    item_id: chunk.item_id,
                    chunk_index: chunk.chunk_index,
                }
            })
            .collect();
        if let Some((index, chunk)) = embedded
            .iter()
            .enumerate()
            .find(|(_, chunk)| chunk.vector.len() != embedded[0].vector.len())
        {
            self.refuse(
                format!("embedded[{index}].vector"),
                format!(
                    "has {} numbers, the first has {}",
                    chunk.vector.len(),
                    embedded[0].vector.len()
                ),
            );
        }
        self.no_chunk_twice(&embedded, &rejected);
        (embedded, rejected)
    }

    fn no_chunk_twice(&mut self, embedded: &[Embedded], rejected: &[Rejected]) {
        let mut seen = std::collections::HashSet::new();
        let embedded = embedded
            .iter()
            .map(|chunk| ("embedded", &chunk.item_id, chunk.chunk_index));
        let rejected = rejected
            .iter()
            .map(|chunk| ("rejected", &chunk.item_id, chunk.chunk_index));
        for (field, item_id, chunk_index) in embedded.chain(rejected) {
            if item_id.contains('\0') {
                self.refuse(field, "an item_id has a NUL character, which no item has");
            }
            if !seen.insert((item_id, chunk_index)) {
                self.refuse(
                    field,
                    format!("chunk {chunk_index} of item {item_id:?} is named twice"),
                );
            }
        }
    }
}

fn is_name(name: &str, first: impl Fn(char) -> bool) -> bool {
    name.chars().next().is_some_and(&first)
        && name
            .chars()
            .all(|c| first(c) || matches!(c, '-' | '_' | '.'))
}

/// The first `chars` characters of a text.
pub(crate) fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

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
