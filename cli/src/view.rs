//! Messages of the contract as JSON: the same field names, numbers as numbers,
//! times in RFC 3339, states in the words of the documentation.

mod status;
mod worker;

use prost_types::{Struct, Timestamp, Value as ProtoValue, value::Kind};
use serde::Serialize;
use serde_json::{Map, Number, Value};
use weir_proto::v1;

pub(crate) use self::{
    status::{Attempt, Badge, ChunkStatus, Failure, Key, Status, Summary},
    worker::{Worker, embedder_state},
};

/// A source: `weir.v1.Source`.
#[derive(Debug, Serialize)]
pub(crate) struct Source {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) model: String,
    pub(crate) revision: i64,
    pub(crate) create_time: Option<String>,
    pub(crate) update_time: Option<String>,
    pub(crate) items: i64,
    pub(crate) chunks: i64,
    pub(crate) chunks_embedded: i64,
    pub(crate) chunks_truncated: i64,
    pub(crate) chunks_rejected: i64,
    pub(crate) embedding_anew: bool,
    pub(crate) badge: Option<Badge>,
}

impl From<&v1::Source> for Source {
    fn from(source: &v1::Source) -> Self {
        Self {
            namespace: source.namespace.clone(),
            name: source.name.clone(),
            model: source.model.clone(),
            revision: source.revision,
            create_time: time(source.create_time),
            update_time: time(source.update_time),
            items: source.items,
            chunks: source.chunks,
            chunks_embedded: source.chunks_embedded,
            chunks_truncated: source.chunks_truncated,
            chunks_rejected: source.chunks_rejected,
            embedding_anew: source.embedding_anew,
            badge: source.badge.as_ref().map(Into::into),
        }
    }
}

/// A source as a write leaves it: `weir.v1.WrittenSource`.
#[derive(Debug, Serialize)]
pub(crate) struct WrittenSource {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) model: String,
    pub(crate) revision: i64,
    pub(crate) create_time: Option<String>,
    pub(crate) update_time: Option<String>,
    pub(crate) items: i64,
    pub(crate) chunks: i64,
}

impl From<&v1::WrittenSource> for WrittenSource {
    fn from(source: &v1::WrittenSource) -> Self {
        Self {
            namespace: source.namespace.clone(),
            name: source.name.clone(),
            model: source.model.clone(),
            revision: source.revision,
            create_time: time(source.create_time),
            update_time: time(source.update_time),
            items: source.items,
            chunks: source.chunks,
        }
    }
}

/// A job: `weir.v1.Job`.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the contract names the fields")]
pub(crate) struct Job {
    pub(crate) job_id: i64,
    pub(crate) namespace: String,
    pub(crate) source: String,
    pub(crate) model: String,
    pub(crate) first_item_id: String,
    pub(crate) last_item_id: String,
    pub(crate) revision: i64,
    pub(crate) trigger: &'static str,
    pub(crate) state: &'static str,
    pub(crate) priority: i32,
    pub(crate) attempt: i32,
    pub(crate) max_attempts: i32,
    pub(crate) epoch: i64,
    pub(crate) run_time: Option<String>,
    pub(crate) worker_id: String,
    pub(crate) lease_expire_time: Option<String>,
    pub(crate) chunks_total: i64,
    pub(crate) chunks_done: i64,
    pub(crate) chunks_truncated: i64,
    pub(crate) chunks_rejected: i64,
    pub(crate) last_error: String,
    pub(crate) create_time: Option<String>,
    pub(crate) start_time: Option<String>,
    pub(crate) finish_time: Option<String>,
    pub(crate) trace_id: String,
    /// Unset where no failure was counted.
    pub(crate) failure_id: Option<i64>,
}

impl From<&v1::Job> for Job {
    fn from(job: &v1::Job) -> Self {
        Self {
            job_id: job.job_id,
            namespace: job.namespace.clone(),
            source: job.source.clone(),
            model: job.model.clone(),
            first_item_id: job.first_item_id.clone(),
            last_item_id: job.last_item_id.clone(),
            revision: job.revision,
            trigger: trigger(job.trigger()),
            state: state(job.state()),
            priority: job.priority,
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            epoch: job.epoch,
            run_time: time(job.run_time),
            worker_id: job.worker_id.clone(),
            lease_expire_time: time(job.lease_expire_time),
            chunks_total: job.chunks_total,
            chunks_done: job.chunks_done,
            chunks_truncated: job.chunks_truncated,
            chunks_rejected: job.chunks_rejected,
            last_error: job.last_error.clone(),
            create_time: time(job.create_time),
            start_time: time(job.start_time),
            finish_time: time(job.finish_time),
            trace_id: job.trace_id.clone(),
            failure_id: (job.failure_id != 0).then_some(job.failure_id),
        }
    }
}

/// What a write changed: `weir.v1.SourceChange`.
#[derive(Debug, Serialize)]
pub(crate) struct Change {
    pub(crate) items_added: i64,
    pub(crate) items_changed: i64,
    pub(crate) items_deleted: i64,
    pub(crate) items_unchanged: i64,
    pub(crate) chunks_pending: i64,
    pub(crate) jobs_superseded: i64,
}

impl From<&v1::SourceChange> for Change {
    fn from(change: &v1::SourceChange) -> Self {
        Self {
            items_added: change.items_added,
            items_changed: change.items_changed,
            items_deleted: change.items_deleted,
            items_unchanged: change.items_unchanged,
            chunks_pending: change.chunks_pending,
            jobs_superseded: change.jobs_superseded,
        }
    }
}

/// Something about the content that deserves a look: `weir.v1.ContentWarning`.
#[derive(Debug, Serialize)]
pub(crate) struct Warning {
    pub(crate) item_id: String,
    pub(crate) message: String,
}

impl From<&v1::ContentWarning> for Warning {
    fn from(warning: &v1::ContentWarning) -> Self {
        Self {
            item_id: warning.item_id.clone(),
            message: warning.message.clone(),
        }
    }
}

/// A chunk near the query: `weir.v1.SearchHit`.
#[derive(Debug, Serialize)]
pub(crate) struct Hit {
    pub(crate) source: String,
    pub(crate) item_id: String,
    pub(crate) chunk_index: i32,
    pub(crate) text: String,
    pub(crate) distance: f64,
    pub(crate) metadata: Option<Value>,
}

impl From<&v1::SearchHit> for Hit {
    fn from(hit: &v1::SearchHit) -> Self {
        Self {
            source: hit.source.clone(),
            item_id: hit.item_id.clone(),
            chunk_index: hit.chunk_index,
            text: hit.text.clone(),
            distance: hit.distance,
            metadata: hit.metadata.as_ref().map(object),
        }
    }
}

/// The views of several messages.
pub(crate) fn all<'a, M: 'a, V: From<&'a M>>(messages: &'a [M]) -> Vec<V> {
    messages.iter().map(V::from).collect()
}

/// Chunks that did not end as the others did: rejected ones, and those of which
/// only the beginning was embedded. Nothing when there are none.
pub(crate) fn exceptions(rejected: i64, truncated: i64) -> Option<String> {
    let told = |(number, what)| (number > 0).then(|| format!("{number} {what}"));
    let parts = [(truncated, "truncated"), (rejected, "rejected")].map(told);
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// A job's state in one word.
pub(crate) fn state(state: v1::JobState) -> &'static str {
    match state {
        v1::JobState::Unspecified => "unspecified",
        v1::JobState::Queued => "queued",
        v1::JobState::Running => "running",
        v1::JobState::Succeeded => "succeeded",
        v1::JobState::Failed => "failed",
        v1::JobState::Cancelled => "cancelled",
    }
}

/// Why a job was queued, in one word.
pub(crate) fn trigger(trigger: v1::JobTrigger) -> &'static str {
    match trigger {
        v1::JobTrigger::Unspecified => "unspecified",
        v1::JobTrigger::Write => "write",
        v1::JobTrigger::Retry => "retry",
        v1::JobTrigger::Reconcile => "reconcile",
    }
}

fn time(time: Option<Timestamp>) -> Option<String> {
    time.map(|time| time.to_string())
}

fn object(object: &Struct) -> Value {
    Value::Object(
        object
            .fields
            .iter()
            .map(|(key, item)| (key.clone(), value(item)))
            .collect::<Map<_, _>>(),
    )
}

fn value(value: &ProtoValue) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(bool)) => Value::Bool(*bool),
        Some(Kind::NumberValue(number)) => number_value(*number),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::StructValue(fields)) => object(fields),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(self::value).collect()),
    }
}

/// A `Struct` knows only doubles; whole ones read better as integers.
fn number_value(number: f64) -> Value {
    /// Up to here every integer is a double of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        return Value::Number(Number::from(number as i64));
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_job_reads_as_in_the_contract() {
        let mut job = v1::Job {
            job_id: i64::MAX,
            chunks_done: 9,
            chunks_truncated: 2,
            chunks_rejected: 1,
            ..v1::Job::default()
        };
        job.set_state(v1::JobState::Running);
        job.run_time = Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 500_000_000,
        });
        let json = serde_json::to_value(Job::from(&job)).unwrap();
        assert_eq!(json["job_id"], json!(i64::MAX));
        assert_eq!(json["state"], "running");
        let counts = ["chunks_done", "chunks_truncated", "chunks_rejected"].map(|key| &json[key]);
        assert_eq!(counts, [9, 2, 1]);
        assert_eq!(json["run_time"], "2023-11-14T22:13:20.500Z");
        assert_eq!(json["finish_time"], Value::Null);
    }

    #[test]
    fn a_source_counts_its_chunks() {
        let source = v1::Source {
            chunks_embedded: 9,
            chunks_truncated: 2,
            chunks_rejected: 1,
            ..v1::Source::default()
        };
        let json = serde_json::to_value(Source::from(&source)).unwrap();
        let counts = ["chunks_embedded", "chunks_truncated", "chunks_rejected"];
        assert_eq!(counts.map(|key| &json[key]), [9, 2, 1]);
    }

    #[test]
    fn only_exceptions_are_told() {
        assert_eq!(exceptions(0, 0), None);
        assert_eq!(exceptions(1, 0).as_deref(), Some("1 rejected"));
        assert_eq!(exceptions(0, 2).as_deref(), Some("2 truncated"));
        assert_eq!(exceptions(1, 2).as_deref(), Some("2 truncated, 1 rejected"));
    }

    #[test]
    fn metadata_comes_back_as_it_went_in() {
        let kind = |kind| ProtoValue { kind: Some(kind) };
        let list = prost_types::ListValue {
            values: vec![
                kind(Kind::NumberValue(2.0)),
                kind(Kind::NumberValue(0.5)),
                kind(Kind::NumberValue(f64::NAN)),
                kind(Kind::BoolValue(true)),
                ProtoValue { kind: None },
            ],
        };
        let fields = [("a".to_owned(), kind(Kind::ListValue(list)))]
            .into_iter()
            .collect();
        let outer = Struct {
            fields: [("o".to_owned(), kind(Kind::StructValue(Struct { fields })))]
                .into_iter()
                .collect(),
        };
        assert_eq!(
            object(&outer),
            json!({"o": {"a": [2, 0.5, null, true, null]}})
        );
    }
}
