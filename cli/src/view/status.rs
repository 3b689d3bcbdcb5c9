//! What tells how things stand, as JSON.

use serde::Serialize;
use weir_proto::v1;

use super::{all, time};
use crate::badge;

/// How a source stands: `weir.v1.Badge`.
#[derive(Debug, Serialize)]
pub(crate) struct Badge {
    pub(crate) state: &'static str,
    pub(crate) text: String,
    pub(crate) done: i64,
    pub(crate) total: i64,
    pub(crate) rejected: i64,
    pub(crate) attempt: i32,
    pub(crate) last_error: String,
    pub(crate) next_run_time: Option<String>,
    pub(crate) degraded: bool,
    pub(crate) first_rejection_time: Option<String>,
    pub(crate) last_rejection_reason: String,
}

impl From<&v1::Badge> for Badge {
    fn from(badge: &v1::Badge) -> Self {
        Self {
            state: state(badge.state()),
            text: badge.text.clone(),
            done: badge.done,
            total: badge.total,
            rejected: badge.rejected,
            attempt: badge.attempt,
            last_error: badge.last_error.clone(),
            next_run_time: time(badge.next_run_time),
            degraded: badge.degraded,
            first_rejection_time: time(badge.first_rejection_time),
            last_rejection_reason: badge.last_rejection_reason.clone(),
        }
    }
}

fn state(state: v1::BadgeState) -> &'static str {
    match state {
        v1::BadgeState::Unspecified => "unspecified",
        v1::BadgeState::Empty => "empty",
        v1::BadgeState::NotIndexed => "not_indexed",
        v1::BadgeState::Queued => "queued",
        v1::BadgeState::Indexing => "indexing",
        v1::BadgeState::Retrying => "retrying",
        v1::BadgeState::Indexed => "indexed",
        v1::BadgeState::Failed => "failed",
    }
}

/// How the whole stands: `weir.v1.GetStatusResponse`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) total: NamespaceStatus,
    pub(crate) namespaces: Vec<NamespaceStatus>,
    pub(crate) version: String,
    pub(crate) trace_url_template: String,
    pub(crate) jobs_age_seconds: f64,
}

impl From<&v1::GetStatusResponse> for Status {
    fn from(status: &v1::GetStatusResponse) -> Self {
        Self {
            total: (&status.total.clone().unwrap_or_default()).into(),
            namespaces: all(&status.namespaces),
            version: status.version.clone(),
            trace_url_template: status.trace_url_template.clone(),
            jobs_age_seconds: status.jobs_age_seconds,
        }
    }
}

/// How a namespace stands: `weir.v1.NamespaceStatus`.
#[derive(Debug, Serialize)]
pub(crate) struct NamespaceStatus {
    pub(crate) namespace: String,
    pub(crate) verdict: &'static str,
    pub(crate) reasons: Vec<String>,
    pub(crate) sources: i64,
    pub(crate) chunks: i64,
    pub(crate) chunks_pending: i64,
    pub(crate) chunks_rejected: i64,
    pub(crate) jobs_ready: i64,
    pub(crate) jobs_delayed: i64,
    pub(crate) jobs_running: i64,
    pub(crate) jobs_retrying: i64,
    pub(crate) jobs_failed: i64,
    pub(crate) jobs_cancelled: i64,
    pub(crate) oldest_ready_age_seconds: f64,
    pub(crate) first_rejection_time: Option<String>,
    pub(crate) last_rejection_reason: String,
}

impl From<&v1::NamespaceStatus> for NamespaceStatus {
    fn from(status: &v1::NamespaceStatus) -> Self {
        Self {
            namespace: status.namespace.clone(),
            verdict: badge::verdict(status.verdict()).0,
            reasons: status.reasons.clone(),
            sources: status.sources,
            chunks: status.chunks,
            chunks_pending: status.chunks_pending,
            chunks_rejected: status.chunks_rejected,
            jobs_ready: status.jobs_ready,
            jobs_delayed: status.jobs_delayed,
            jobs_running: status.jobs_running,
            jobs_retrying: status.jobs_retrying,
            jobs_failed: status.jobs_failed,
            jobs_cancelled: status.jobs_cancelled,
            oldest_ready_age_seconds: status.oldest_ready_age_seconds,
            first_rejection_time: time(status.first_rejection_time),
            last_rejection_reason: status.last_rejection_reason.clone(),
        }
    }
}

/// Failures of one cause: `weir.v1.Failure`.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the contract names the fields")]
pub(crate) struct Failure {
    pub(crate) failure_id: i64,
    pub(crate) namespace: String,
    pub(crate) model: String,
    pub(crate) cause: String,
    pub(crate) last_error: String,
    pub(crate) last_job_id: i64,
    pub(crate) last_source: String,
    pub(crate) first_seen_time: Option<String>,
    pub(crate) last_seen_time: Option<String>,
    pub(crate) occurrences: i64,
    pub(crate) last_success_time: Option<String>,
    pub(crate) jobs_affected: i64,
    pub(crate) dismiss_time: Option<String>,
}

impl From<&v1::Failure> for Failure {
    fn from(failure: &v1::Failure) -> Self {
        Self {
            failure_id: failure.failure_id,
            namespace: failure.namespace.clone(),
            model: failure.model.clone(),
            cause: failure.cause.clone(),
            last_error: failure.last_error.clone(),
            last_job_id: failure.last_job_id,
            last_source: failure.last_source.clone(),
            first_seen_time: time(failure.first_seen_time),
            last_seen_time: time(failure.last_seen_time),
            occurrences: failure.occurrences,
            last_success_time: time(failure.last_success_time),
            jobs_affected: failure.jobs_affected,
            dismiss_time: time(failure.dismiss_time),
        }
    }
}

/// One try of a job: `weir.v1.Attempt`.
#[derive(Debug, Serialize)]
pub(crate) struct Attempt {
    pub(crate) epoch: i64,
    pub(crate) worker_id: String,
    pub(crate) start_time: Option<String>,
    pub(crate) end_time: Option<String>,
    pub(crate) outcome: String,
    pub(crate) error: String,
    pub(crate) chunks_done: i64,
    pub(crate) charged: bool,
}

impl From<&v1::Attempt> for Attempt {
    fn from(attempt: &v1::Attempt) -> Self {
        Self {
            epoch: attempt.epoch,
            worker_id: attempt.worker_id.clone(),
            start_time: time(attempt.start_time),
            end_time: time(attempt.end_time),
            outcome: badge::outcome(attempt.outcome()).0.replace(' ', "_"),
            error: attempt.error.clone(),
            chunks_done: attempt.chunks_done,
            charged: attempt.charged,
        }
    }
}

/// A chunk and what became of it: `weir.v1.ChunkStatus`.
#[derive(Debug, Serialize)]
pub(crate) struct ChunkStatus {
    pub(crate) item_id: String,
    pub(crate) chunk_index: i32,
    pub(crate) state: &'static str,
    pub(crate) chars: i32,
    /// Unset where the vector is of the whole text, or there is none.
    pub(crate) truncated_to: Option<i32>,
    pub(crate) reason: String,
    pub(crate) time: Option<String>,
}

impl From<&v1::ChunkStatus> for ChunkStatus {
    fn from(chunk: &v1::ChunkStatus) -> Self {
        Self {
            item_id: chunk.item_id.clone(),
            chunk_index: chunk.chunk_index,
            state: match chunk.state() {
                v1::ChunkState::Unspecified => "unspecified",
                v1::ChunkState::Pending => "pending",
                v1::ChunkState::Embedded => "embedded",
                v1::ChunkState::Truncated => "truncated",
                v1::ChunkState::Rejected => "rejected",
            },
            chars: chunk.chars,
            truncated_to: (chunk.truncated_to > 0).then_some(chunk.truncated_to),
            reason: chunk.reason.clone(),
            time: time(chunk.time),
        }
    }
}

/// Names a source: `weir.v1.SourceKey`.
#[derive(Debug, Serialize)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl From<&v1::SourceKey> for Key {
    fn from(key: &v1::SourceKey) -> Self {
        Self {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }
}

/// A source in a list: `weir.v1.SourceSummary`.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) source: super::Source,
    pub(crate) job: Option<super::Job>,
}

impl From<&v1::SourceSummary> for Summary {
    fn from(summary: &v1::SourceSummary) -> Self {
        Self {
            source: (&summary.source.clone().unwrap_or_default()).into(),
            job: summary.job.as_ref().map(Into::into),
        }
    }
}
