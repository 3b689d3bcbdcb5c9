//! The dispatch: where the credit of workers meets claims, and their results meet
//! transactions.

pub mod claimer;
mod gather;
pub(crate) mod hand_back;
mod messages;
pub mod opener;
pub mod roster;
mod session;
pub mod writer;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;
use weir_telemetry::{TraceContext, Tracer};

use self::{claimer::Claimer, opener::Opener, roster::Roster, writer::Writer};
use crate::{
    job::{fair_share::Weights, retry::RetryPolicy},
    metrics::Metrics,
    spans::{self, trace_id},
    store::{Store, rows::Job},
    wakeup::Wakeup,
};

pub(crate) use self::{
    messages::{
        BatchPart, Condition, Content, Ended, FromWorker, HeldLease, HeldPart, ModelOpen, Open,
        PartResult, ToWorker, WorkerIdentity,
    },
    session::{End, serve},
};

/// How long a job waits whose result was refused for what its worker may not
/// decide, so that the next worker does not embed in vain at once.
pub(crate) const REFUSED_FOR: Duration = Duration::from_mins(1);

/// Most bytes of text in one batch, so that it fits a message with room to
/// spare.
pub(crate) const MAX_BATCH_BYTES: usize = 8 << 20;

/// What all sessions of a replica share, and the unary calls with them.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) store: Store,
    pub(crate) claimer: Claimer,
    pub(crate) opener: Opener,
    pub(crate) writer: Writer,
    pub(crate) roster: Roster,
    pub(crate) wakeup: Wakeup,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracer: Tracer,
    pub(crate) weights: Weights,
    pub(crate) policy: RetryPolicy,
    pub(crate) lease_duration: Duration,
    /// How long a worker that fell silent may take to come back.
    pub(crate) orphan_grace: Duration,
    pub(crate) max_batch_size: i32,
    /// Cancelled when this replica stops: sessions end.
    pub(crate) shutdown: CancellationToken,
}

impl Dispatch {
    /// Records that a job was claimed, by a statement that began at `began`. Returns what
    /// the spans of its attempt hang on.
    pub(crate) fn claimed(&self, job: &Job, began: SystemTime) -> Option<TraceContext> {
        let trace = spans::claimed(&self.tracer, job, self.lease_duration, began);
        tracing::info!(
            job_id = job.id,
            epoch = job.epoch,
            worker_id = job.worker_id,
            attempt = job.attempt,
            trace_id = trace_id(trace),
            "A job was claimed."
        );
        self.wakeup.report_change(job.source_id);
        self.metrics.claimed(&job.model);
        trace
    }

    /// How often workers send heartbeats: often enough that two that are lost cost
    /// neither a lease nor the session.
    pub(crate) fn heartbeat_interval(&self) -> Duration {
        self.lease_duration.min(self.orphan_grace) / 3
    }
}
