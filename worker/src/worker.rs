//! A worker, as its rooms know it.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use weir_embedder::Profile;
use weir_telemetry::Tracer;

use crate::{config::Config, coordinator::Coordinator, endpoint::Endpoint, metrics::Counter};

/// What the session, the endpoints and the page of health share.
pub(crate) struct Worker {
    pub(crate) config: Config,
    pub(crate) coordinator: Coordinator,
    pub(crate) models: Vec<Model>,
    pub(crate) tracer: Tracer,
    /// Told by the endpoints when something of them may have changed.
    pub(crate) news: Arc<Notify>,
    /// Why there is no session, if one could not be opened.
    pub(crate) obstacle: watch::Sender<Option<String>>,
    pub(crate) stream_failures: Counter,
    /// Cancelled when the worker is to drain.
    pub(crate) shutdown: CancellationToken,
}

/// A model that the worker embeds with.
pub(crate) struct Model {
    pub(crate) profile: Profile,
    pub(crate) endpoint: Arc<Endpoint>,
}

impl Worker {
    /// Why nothing of a model can be worked on, if that is so.
    pub(crate) fn obstacle(&self, model: &Model) -> Option<String> {
        if self.shutdown.is_cancelled() {
            return Some("stopping".to_owned());
        }
        let obstacle = self.obstacle.borrow().clone();
        let no_session = || obstacle.map(|why| format!("no session with the coordinator: {why}"));
        model.endpoint.health.ailment().or_else(no_session)
    }
}
