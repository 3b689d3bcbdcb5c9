//! The worker as a whole: an endpoint for each model and one session, until it is
//! drained.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument as _, info, info_span};
use weir_embedder::{Embedder, Profile, Role};
use weir_telemetry::Tracer;

use crate::{
    config::Config,
    coordinator::Coordinator,
    endpoint::{CallSpans, Endpoint, Settings},
    http,
    metrics::{self, Metrics, Page},
    session,
    worker::{Model, Worker},
};

/// A model with its embedder.
pub struct Served {
    model: Profile,
    embedder: Arc<dyn Embedder>,
}

impl Served {
    /// Has a model embedded by an embedder made before.
    pub fn by(model: Profile, embedder: Arc<dyn Embedder>) -> Self {
        Self { model, embedder }
    }

    /// Makes the embedder of each model. Calls no server.
    ///
    /// Fails, naming model and setting, when one cannot be used.
    pub async fn all(models: Vec<Profile>) -> anyhow::Result<Vec<Self>> {
        let mut served = Vec::with_capacity(models.len());
        for model in models {
            let embedder = weir_embedder::build(&model, Role::Document)
                .await
                .with_context(|| format!("model {:?} cannot be served", model.name))?;
            served.push(Self { model, embedder });
        }
        Ok(served)
    }
}

/// Runs a worker until `shutdown` is cancelled and what it holds is answered,
/// within `drain_timeout` and some seconds.
///
/// Neither an embedder nor a coordinator that is away ends it: it says so, takes
/// nothing for that model and tries again. Fails when the settings do not allow a
/// client of the coordinator, or an address cannot be listened on.
pub async fn run(
    config: Config,
    served: Vec<Served>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let tracer = Tracer::start("weir-worker", &config.worker_id, &config.trace)?;
    let page = metrics::page(config.http_listen.is_some());
    let worker = Arc::new(assemble(config, served, &tracer, &page, shutdown)?);
    let config = &worker.config;
    let _http = http::serve(config.http_listen, Arc::clone(&worker), page).await?;
    let models = worker.models.iter().map(|it| it.profile.name.as_str());
    info!(
        worker_id = config.worker_id,
        models = models.collect::<Vec<_>>().join(", "),
        coordinator = %config.coordinator,
        "The worker started."
    );
    let _embedding: Vec<AbortOnDropHandle<()>> = worker.models.iter().map(embed).collect();
    session::run(Arc::clone(&worker)).await;
    tracer.shutdown().await;
    info!("The worker has drained.");
    Ok(())
}

/// Makes a worker that does nothing yet.
pub(crate) fn assemble(
    config: Config,
    served: Vec<Served>,
    tracer: &Tracer,
    page: &Page,
    shutdown: CancellationToken,
) -> anyhow::Result<Worker> {
    let coordinator = Coordinator::new(&config.coordinator, &config.credentials)?;
    let news = Arc::new(Notify::new());
    let models = served.into_iter().map(|Served { model, embedder }| {
        let kind = model.provider;
        let metrics = Metrics::new(page, &model.name, kind);
        let spans = CallSpans::new(tracer.clone(), kind, &model.name);
        let endpoint = Endpoint::new(embedder, Settings::of(&model), metrics, Arc::clone(&news));
        Model {
            endpoint: Arc::new(endpoint.traced(spans)),
            profile: model,
        }
    });
    Ok(Worker {
        models: models.collect(),
        coordinator,
        tracer: tracer.clone(),
        news,
        obstacle: watch::Sender::new(Some("none was opened yet".to_owned())),
        stream_failures: metrics::stream_failures(page),
        shutdown,
        config,
    })
}

/// Has an endpoint run in a task of its own, so that no embedder waits for the
/// session, or for another.
pub(crate) fn embed(model: &Model) -> AbortOnDropHandle<()> {
    let endpoint = Arc::clone(&model.endpoint);
    let span = info_span!("embedder", model = model.profile.name);
    let embedding = async move { match endpoint.run().await {} };
    AbortOnDropHandle::new(tokio::spawn(embedding.instrument(span)))
}

#[cfg(test)]
mod tests;
