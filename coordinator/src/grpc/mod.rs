//! The gRPC services: the only room that knows generated types. One call is one
//! store method is one transaction.

pub(crate) mod admission;
pub(crate) mod auth;
mod content;
mod convert;
mod door;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod imports;
mod jobs;
pub(crate) mod json;
pub(crate) mod limits;
mod mask;
pub(crate) mod measured;
pub(crate) mod memory;
pub(crate) mod origin;
mod overview;
mod page;
mod scaler;
mod search;
mod sources;
mod spans;
mod stream;
mod watch;
mod worker;

use std::{sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weir_telemetry::Tracer;

use self::memory::Memory;
use crate::{
    claimer::Claimer,
    job::{chunk::Chunker, retry::RetryPolicy},
    look::Queue,
    metrics::Metrics,
    opener::Opener,
    store::{Store, StoreError, fence::Fence},
    wakeup::Wakeup,
    writer::Writer,
};

pub(crate) use jobs::Jobs;
pub(crate) use scaler::Scaler;
pub(crate) use search::Searches;
pub(crate) use sources::Sources;
pub(crate) use spans::SpanLayer;
pub(crate) use watch::Hubs;
pub(crate) use worker::Workers;

/// How long a job waits whose result was refused.
const REFUSED_FOR: Duration = Duration::from_mins(1);

/// What every service works with.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) inner: Arc<Inner>,
}

/// Shared by all calls.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    pub(crate) claimer: Claimer,
    pub(crate) opener: Opener,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) wakeup: Wakeup,
    pub(crate) tracer: Tracer,
    pub(crate) memory: Memory,
    pub(crate) chunker: Arc<Chunker>,
    pub(crate) models: Vec<String>,
    /// Where a trace can be looked at.
    pub(crate) trace_url: Option<String>,
    /// How much work there is.
    pub(crate) queue: Queue,
    /// What clients watch, and ask about the whole.
    pub(crate) hubs: Hubs,
    pub(crate) policy: RetryPolicy,
    pub(crate) lease_duration: Duration,
    /// How long a worker whose stream broke may take to come back.
    pub(crate) orphan_grace: Duration,
    pub(crate) max_chunks_per_job: i32,
    pub(crate) max_batch_size: i32,
    /// How long a watcher or claimer waits before it looks again unasked.
    pub(crate) poll_interval: Duration,
    /// Cancelled when this replica stops: long polls and streams end.
    pub(crate) shutdown: CancellationToken,
    /// The tasks of streams, awaited before the process ends.
    pub(crate) tasks: TaskTracker,
}

impl std::ops::Deref for Services {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl Inner {
    /// Takes a job back, uncharged, whose result was refused because of what
    /// its worker may not decide. It waits a while, so that the next worker does
    /// not embed in vain at once.
    async fn give_back(&self, fence: &Fence, error: &StoreError) {
        let StoreError::NoDimension(reason) = error else {
            return;
        };
        let released = self.store.release_refused(fence, reason, REFUSED_FOR).await;
        match released {
            Ok(source_id) => {
                self.metrics.retries.released.increment(1);
                self.wakeup.report_change(source_id);
                tracing::warn!(
                    job_id = fence.lease.job_id,
                    epoch = fence.lease.epoch,
                    reason,
                    "A result was refused, and its job waits."
                );
            }
            // Its worker hands it back, or its lease runs out.
            Err(error) => {
                tracing::debug!(%error, "A job whose result was refused was not taken back.");
            }
        }
    }

    /// The model of a source that names none.
    pub(crate) fn default_model(&self) -> &str {
        // The configuration has at least one.
        self.models.first().map_or("", String::as_str)
    }
}
