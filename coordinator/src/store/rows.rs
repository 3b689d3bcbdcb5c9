//! What the store hands out: sources and jobs as they stand in the database.

use chrono::{DateTime, Utc};

use super::Scope;
use crate::job::{
    badge::{Rejections, Standing, Telling},
    plan::TextHash,
    state::{JobState, Trigger, UnknownWord},
};

/// Names a source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct SourceKey {
    /// The namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

/// A source with its counts.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Source {
    /// The row's id, which clients never see.
    pub id: i64,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The embedding model.
    pub model: String,
    /// Rises with every change.
    pub revision: i64,
    /// Items in it.
    pub items_total: i64,
    /// Chunks of these.
    pub chunks_total: i64,
    /// Chunks that its unsettled jobs have still to embed, and those that are still to
    /// be planned.
    pub chunks_pending: i64,
    /// While it moves to another model: of the pending chunks, those that are still to
    /// be planned for that.
    pub chunks_to_move: i64,
    /// Chunks rejected.
    pub chunks_rejected: i64,
    /// When the first of these was rejected.
    pub rejected_since: Option<DateTime<Utc>>,
    /// Why the last of them was.
    pub last_rejection: Option<String>,
    /// Chunks whose vector is of the beginning of their text only.
    pub chunks_truncated: i64,
    /// State of the unsettled job that is worst off, if any is unsettled.
    #[sqlx(try_from = "Word")]
    pub telling_state: Option<JobState>,
    /// Tries charged to it.
    pub telling_attempt: Option<i16>,
    /// Whether it was handed back for want of an embedder.
    pub telling_embedder_down: Option<bool>,
    /// What last went wrong with it.
    pub telling_error: Option<String>,
    /// When it may run, or is queued again.
    pub telling_run_at: Option<DateTime<Utc>>,
    /// Whether an unsettled job was cancelled.
    pub cancelled: bool,
    /// Whether a range is embedded anew that is not all queued yet.
    pub embedding_anew: bool,
    /// When it was first put.
    pub created_at: DateTime<Utc>,
    /// When its content last changed.
    pub updated_at: DateTime<Utc>,
}

/// A word of the database that may be missing.
#[derive(Debug, sqlx::Type)]
#[sqlx(transparent)]
struct Word(Option<String>);

impl TryFrom<Word> for Option<JobState> {
    type Error = UnknownWord;

    fn try_from(word: Word) -> Result<Self, UnknownWord> {
        word.0.map(JobState::try_from).transpose()
    }
}

impl Source {
    /// What its badge is derived from; `served` says whether workers can claim
    /// jobs of its model.
    pub fn standing(&self, served: bool) -> Standing {
        let unplanned = (self.chunks_to_move > 0).then_some(JobState::Queued);
        let telling = match self.telling_state {
            Some(JobState::Cancelled) | None => unplanned.or(self.telling_state),
            state => state,
        };
        Standing {
            embedded: self.chunks_embedded(),
            rejected: self.chunks_rejected,
            total: self.chunks_total,
            // What is still to be planned waits as what is queued.
            telling: telling.map(|state| Telling {
                state,
                attempt: self.telling_attempt.unwrap_or_default(),
                embedder_down: self.telling_embedder_down.unwrap_or_default(),
            }),
            cancelled: self.cancelled,
            embedding_anew: self.embedding_anew,
            served,
        }
    }

    /// What of it stands rejected.
    pub fn rejections(&self) -> Rejections {
        Rejections {
            chunks: self.chunks_rejected,
            total: self.chunks_total,
            since: self.rejected_since,
            last_reason: self.last_rejection.clone(),
        }
    }

    /// Chunks that have the vector of their current text.
    pub fn chunks_embedded(&self) -> i64 {
        (self.chunks_total - self.chunks_pending - self.chunks_rejected).max(0)
    }
}

/// The columns of [`Source`], from `weir.sources s`. What is pending is read
/// off the source's unsettled jobs, so that no count walks the chunks.
macro_rules! source_columns {
    () => {
        concat!("s.id, s.namespace, s.name, s.model, s.revision, s.items_total, s.chunks_total, s.created_at, s.updated_at,
         u.chunks_pending + coalesce(s.chunks_to_move, 0) AS chunks_pending,
         coalesce(s.chunks_to_move, 0) AS chunks_to_move, u.cancelled, t.state AS telling_state, t.attempt AS telling_attempt,
         t.embedder_down AS telling_embedder_down, t.last_error AS telling_error, t.run_at AS telling_run_at,
         EXISTS (SELECT FROM weir.forced_ranges f WHERE f.source_id = s.id) AS embedding_anew,
         ", $crate::store::rejections::rejected_of_source!(), " AS chunks_rejected,
         first_rejection.since AS rejected_since, last_rejection.reason AS last_rejection,
         (SELECT count(*) FROM weir.embeddings e
           WHERE e.source_id = s.id AND e.model = s.model AND e.truncated_to IS NOT NULL) AS chunks_truncated")
    };
}
pub(super) use source_columns;

/// What [`source_columns`] are read from, after `weir.sources s`: the sum of its
/// unsettled jobs, the one of them that is worst off, and its rejections.
macro_rules! source_jobs {
    () => {
        concat!(" CROSS JOIN LATERAL (
             SELECT coalesce(sum(j.chunks_total - j.chunks_done - j.chunks_rejected), 0)::bigint AS chunks_pending,
                    coalesce(bool_or(j.state = 'cancelled'), false) AS cancelled
             FROM weir.jobs j WHERE j.source_id = s.id AND NOT j.settled) u
         LEFT JOIN LATERAL (
             SELECT j.state, j.attempt, j.embedder_down, j.last_error, j.run_at
             FROM weir.jobs j WHERE j.source_id = s.id AND NOT j.settled
             ORDER BY array_position('{failed}', j.state), (j.state <> 'cancelled' AND j.attempt > 0) DESC,
                      j.embedder_down DESC, array_position('{running,queued,cancelled}', j.state), j.attempt DESC,
                      j.run_at, j.id
             LIMIT 1) t ON true", $crate::store::rejections::rejections_of_source!())
    };
}
pub(super) use source_jobs;

/// A job.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Job {
    /// Its id.
    pub id: i64,
    /// The source's row.
    pub source_id: i64,
    /// The source's namespace.
    pub namespace: String,
    /// The source's name.
    pub source: String,
    /// The model to embed with.
    pub model: String,
    /// First item of the range.
    pub first_item_id: String,
    /// Last item of the range.
    pub last_item_id: String,
    /// The source's revision at planning.
    pub revision: i64,
    /// Why it was queued.
    #[sqlx(try_from = "String")]
    pub trigger: Trigger,
    /// Where it stands.
    #[sqlx(try_from = "String")]
    pub state: JobState,
    /// Higher is claimed first.
    pub priority: i16,
    /// Tries charged.
    pub attempt: i16,
    /// The fencing token.
    pub epoch: i64,
    /// Not to be claimed before.
    pub run_at: DateTime<Utc>,
    /// Who holds it.
    pub worker_id: Option<String>,
    /// The name of the token that it was last claimed with, if with one.
    pub claimed_by: Option<String>,
    /// Until when.
    pub lease_expires_at: Option<DateTime<Utc>>,
    /// Chunks at planning.
    pub chunks_total: i32,
    /// Of these, embedded.
    pub chunks_done: i32,
    /// Of those embedded, truncated.
    pub chunks_truncated: i32,
    /// Of all, rejected.
    pub chunks_rejected: i32,
    /// How many of the next pending chunks are suspected to hold a text that
    /// kills its worker.
    pub suspects: i32,
    /// What last went wrong.
    pub last_error: Option<String>,
    /// The failure that was counted under.
    pub failure_id: Option<i64>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// When it was planned.
    pub created_at: DateTime<Utc>,
    /// When it was claimed first.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

impl Job {
    /// Its namespace alone: who was let see it may look at it again.
    pub fn scope(&self) -> Scope {
        Scope::One(self.namespace.clone())
    }

    /// Its present lease, or its last one.
    pub fn lease(&self) -> LeaseKey {
        LeaseKey {
            job_id: self.id,
            epoch: self.epoch,
        }
    }

    /// Chunks it has still to embed.
    pub fn chunks_pending(&self) -> i32 {
        self.chunks_total - self.chunks_done - self.chunks_rejected
    }
}

/// The columns of [`Job`], from `weir.jobs j`.
macro_rules! job_columns {
    () => {
        "j.id, j.source_id, j.namespace, j.source, j.model, j.first_item_id, j.last_item_id, j.revision, j.trigger,
         j.state, j.priority, j.attempt, j.epoch, j.run_at, j.worker_id, j.claimed_by, j.lease_expires_at,
         j.chunks_total, j.chunks_done, j.chunks_truncated, j.chunks_rejected, j.suspects, j.last_error,
         j.failure_id, j.traceparent, j.created_at,
         j.started_at, j.finished_at"
    };
}
pub(super) use job_columns;

/// Names a lease: what every write of a worker carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseKey {
    /// The job.
    pub job_id: i64,
    /// The epoch it was claimed at.
    pub epoch: i64,
}

/// A chunk on its way to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkText {
    /// The item.
    pub item_id: String,
    /// The place in the item.
    pub chunk_index: i32,
    /// SHA-256 of the text.
    pub text_hash: Vec<u8>,
    /// What is embedded: the prompt of its source, and then its text.
    pub text: String,
}

/// A chunk's vector on its way into the database.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// The item.
    pub item_id: String,
    /// The place in the item.
    pub chunk_index: i32,
    /// SHA-256 of the text that was embedded.
    pub text_hash: TextHash,
    /// The vector.
    pub vector: Vec<f32>,
    /// Of how many characters of the text it was made, from the first; `None`:
    /// of all.
    pub truncated_to: Option<i32>,
}

/// A chunk that the embedder refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The item.
    pub item_id: String,
    /// The place in the item.
    pub chunk_index: i32,
    /// SHA-256 of the text that was refused.
    pub text_hash: TextHash,
    /// Why.
    pub reason: String,
}
