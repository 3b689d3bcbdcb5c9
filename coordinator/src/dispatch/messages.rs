//! What worker and coordinator say to each other on a session, checked.

use std::sync::Arc;

use weir_telemetry::TraceContext;

use crate::store::{
    fence::{Fence, Holder},
    rows::{ChunkText, Embedded, LeaseKey, Rejected},
};

pub(crate) use crate::store::workers::Condition;

/// Who opens a session, as its token has it.
#[derive(Debug, Clone)]
pub(crate) struct WorkerIdentity {
    /// What its leases are bound to; `None` where nobody is asked for a token.
    pub(crate) holder: Option<Arc<Holder>>,
}

impl WorkerIdentity {
    /// The namespaces that it is limited to; `None` where it is not.
    pub(crate) fn namespaces(&self) -> Option<&[String]> {
        self.holder.as_deref()?.namespaces.as_deref()
    }

    /// The name of its token.
    pub(crate) fn name(&self) -> Option<&str> {
        self.holder.as_deref().map(|holder| holder.name.as_str())
    }

    /// A lease that it says is its own.
    pub(crate) fn fence(&self, lease: LeaseKey) -> Fence {
        Fence {
            lease,
            holder: self.holder.clone(),
        }
    }
}

/// The first message of a session.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) worker_id: String,
    pub(crate) version: String,
    pub(crate) models: Vec<ModelOpen>,
    pub(crate) held: Vec<HeldLease>,
}

/// A model that a worker embeds with.
#[derive(Debug)]
pub(crate) struct ModelOpen {
    pub(crate) name: String,
    /// Most chunks in a batch.
    pub(crate) batch_size: i32,
}

/// A lease of which a worker holds parts from a stream that broke.
#[derive(Debug)]
pub(crate) struct HeldLease {
    pub(crate) fence: Fence,
    pub(crate) parts: Vec<HeldPart>,
}

/// One of these parts.
#[derive(Debug)]
pub(crate) struct HeldPart {
    pub(crate) seq: i64,
    /// Item and place of each of its chunks.
    pub(crate) chunks: Vec<(String, i32)>,
}

/// What a worker says after that.
#[derive(Debug)]
pub(crate) enum FromWorker {
    Credit { model: String, chunks: usize },
    Result(Vec<PartResult>),
    Heartbeat,
    Condition { model: String, condition: Condition },
    Drain,
}

/// What became of a part.
#[derive(Debug)]
pub(crate) struct PartResult {
    pub(crate) seq: i64,
    /// What is wrong with it, where it is malformed.
    pub(crate) content: Result<Content, String>,
}

/// The chunks of a result.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) embedded: Vec<Embedded>,
    pub(crate) rejected: Vec<Rejected>,
}

impl Content {
    /// How many chunks it settles.
    pub(crate) fn chunks(&self) -> usize {
        self.embedded.len() + self.rejected.len()
    }
}

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum ToWorker {
    Opened,
    Batch {
        model: Arc<str>,
        parts: Vec<BatchPart>,
    },
    /// Numbers of parts, and how many chunks of each were late.
    Ack(Vec<(i64, i64)>),
    Ended {
        lease: LeaseKey,
        how: Ended,
    },
}

/// Chunks of one job.
#[derive(Debug)]
pub(crate) struct BatchPart {
    pub(crate) seq: i64,
    pub(crate) lease: LeaseKey,
    pub(crate) namespace: Arc<str>,
    pub(crate) source: Arc<str>,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) chunks: Vec<ChunkText>,
}

/// How a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The job succeeded.
    Finished {
        done: i64,
        rejected: i64,
        truncated: i64,
    },
    /// The lease is lost.
    Revoked(crate::job::state::RevokeReason),
    /// A result was refused, and why.
    Refused(String),
    /// The job is queued again, uncharged.
    Released,
}
