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
mod roster;
mod scaler;
mod search;
mod sources;
mod stream;
mod traced;
mod watch;
mod worker;

use std::{sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weir_telemetry::Tracer;

use self::memory::Memory;
use crate::{
    dispatch::Dispatch, job::chunk::Chunker, look::Queue, metrics::Metrics, store::Store,
    wakeup::Wakeup,
};

pub(crate) use jobs::Jobs;
pub(crate) use scaler::Scaler;
pub(crate) use search::Searches;
pub(crate) use sources::Sources;
pub(crate) use traced::SpanLayer;
pub(crate) use watch::Hubs;
pub(crate) use worker::Workers;

/// What every service works with.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) inner: Arc<Inner>,
}

/// Shared by all calls.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) dispatch: Arc<Dispatch>,
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
    pub(crate) max_chunks_per_job: i32,
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
    /// The model of a source that names none.
    pub(crate) fn default_model(&self) -> &str {
        // The configuration has at least one.
        self.models.first().map_or("", String::as_str)
    }
}
