//! What the store hands out: sources and jobs as they stand in the database.

use chrono::{DateTime, Utc};

use crate::job::{
    plan::TextHash,
    state::{JobState, Trigger},
};

/// Names a source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    /// Chunks that its unsettled jobs have still to embed.
    pub chunks_pending: i64,
    /// Chunks rejected.
    pub chunks_rejected: i64,
    /// When it was first put.
    pub created_at: DateTime<Utc>,
    /// When its content last changed.
    pub updated_at: DateTime<Utc>,
}

impl Source {
    /// Chunks that have the vector of their current text.
    pub fn chunks_embedded(&self) -> i64 {
        (self.chunks_total - self.chunks_pending - self.chunks_rejected).max(0)
    }
}

/// The columns of [`Source`], from `weir.sources s`. What is pending is read
/// off the source's unsettled jobs, so that no count walks the chunks.
macro_rules! source_columns {
    () => {
        "s.id, s.namespace, s.name, s.model, s.revision, s.items_total, s.chunks_total, s.created_at, s.updated_at,
         (SELECT coalesce(sum(j.chunks_total - j.chunks_done - j.chunks_rejected), 0)::bigint
            FROM weir.jobs j WHERE j.source_id = s.id AND NOT j.settled) AS chunks_pending,
         (SELECT count(*) FROM weir.rejections r WHERE r.source_id = s.id) AS chunks_rejected"
    };
}
pub(super) use source_columns;

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
    /// Until when.
    pub lease_expires_at: Option<DateTime<Utc>>,
    /// Chunks at planning.
    pub chunks_total: i32,
    /// Of these, embedded.
    pub chunks_done: i32,
    /// Of these, rejected.
    pub chunks_rejected: i32,
    /// How many of the next pending chunks are suspected to hold a text that
    /// kills its worker.
    pub suspects: i32,
    /// Streams opened on it so far.
    pub stream: i32,
    /// What last went wrong.
    pub last_error: Option<String>,
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
    /// Chunks it has still to embed.
    pub fn chunks_pending(&self) -> i32 {
        self.chunks_total - self.chunks_done - self.chunks_rejected
    }
}

/// The columns of [`Job`], from `weir.jobs j`.
macro_rules! job_columns {
    () => {
        "j.id, j.source_id, j.namespace, j.source, j.model, j.first_item_id, j.last_item_id, j.revision, j.trigger,
         j.state, j.priority, j.attempt, j.epoch, j.run_at, j.worker_id, j.lease_expires_at, j.chunks_total,
         j.chunks_done, j.chunks_rejected, j.suspects, j.stream, j.last_error, j.traceparent, j.created_at, j.started_at, j.finished_at"
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
    /// The text.
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
