//! The worker as a whole: an endpoint and a claimer for each model, until all
//! are drained.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument as _, info, info_span};
use weir_embedder::{Embedder, Profile, Role};
use weir_telemetry::Tracer;

use crate::{
    claimer::claim_and_drain,
    config::Config,
    coordinator::Coordinator,
    endpoint::{CallSpans, Endpoint, Settings},
    http,
    metrics::{self, Metrics},
    session::Context,
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

/// Runs a worker until `shutdown` is cancelled and its jobs are finished or
/// handed back, within `drain_timeout` and some seconds.
///
/// Neither an embedder nor a coordinator that is away ends it: it says so,
/// claims nothing for that model and tries again. Fails when the settings do not
/// allow a client of the coordinator, or an address cannot be listened on.
pub async fn run(
    config: Config,
    served: Vec<Served>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let coordinator = Coordinator::new(&config.coordinator, &config.credentials)?;
    let tracer = Tracer::start("weir-worker", &config.worker_id, &config.trace)?;
    let config = Arc::new(config);
    let page = metrics::page(config.http_listen.is_some());
    let contexts: Vec<Arc<Context>> = served
        .into_iter()
        .map(|Served { model, embedder }| {
            let kind = model.provider;
            let metrics = Metrics::new(&page, &model.name, kind);
            let spans = CallSpans::new(tracer.clone(), kind, &model.name);
            let endpoint = Endpoint::new(embedder, Settings::of(&model), metrics);
            Arc::new(Context {
                config: Arc::clone(&config),
                coordinator: coordinator.clone(),
                endpoint: Arc::new(endpoint.traced(spans)),
                tracer: tracer.clone(),
                model,
                refusal: watch::Sender::new(None),
                shutdown: shutdown.clone(),
            })
        })
        .collect();
    let _http = http::serve(config.http_listen, contexts.clone(), page).await?;
    let models: Vec<&str> = contexts.iter().map(|it| it.model.name.as_str()).collect();
    info!(
        worker_id = config.worker_id,
        models = models.join(", "),
        coordinator = %config.coordinator,
        concurrency = config.concurrency,
        "The worker started."
    );
    let mut models: JoinSet<()> = contexts.into_iter().map(serve).collect();
    while let Some(ended) = models.join_next().await {
        ended.context("the worker failed")?;
    }
    tracer.shutdown().await;
    info!("The worker has drained.");
    Ok(())
}

async fn serve(context: Arc<Context>) {
    let endpoint = Arc::clone(&context.endpoint);
    // A task of its own, so that the embedder never waits for a claim.
    let span = info_span!("embedder", model = context.model.name);
    let embedding = async move { endpoint.run().await }.instrument(span);
    let _embedding = AbortOnDropHandle::new(tokio::spawn(embedding));
    claim_and_drain(&context).await;
}

#[cfg(test)]
mod tests;
