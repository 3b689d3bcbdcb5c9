//! Plain HTTP, on the same port: health for probes that speak no gRPC, metrics,
//! and the page for operators.

mod dashboard;
mod metrics;

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio_util::sync::CancellationToken;

pub(crate) use self::metrics::Scrape;
use crate::store::Store;

/// How long the database may take to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Health {
    store: Store,
    shutdown: CancellationToken,
}

/// The pages: `/livez` answers while the process lives, `/readyz` while it can
/// serve, `/metrics` as soon as it knows how large the queue is; at `/` the
/// dashboard, where it is wanted.
pub(crate) fn router(scrape: Scrape, dashboard: bool, shutdown: CancellationToken) -> Router {
    let store = scrape.store.clone();
    let metrics = get(metrics::show).with_state(Arc::new(scrape));
    let dashboard = dashboard.then(dashboard::router);
    Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .with_state(Health { store, shutdown })
        .route("/metrics", metrics)
        .merge(dashboard.unwrap_or_default())
}

async fn ready(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.shutdown.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping");
    }
    if answers(&health.store).await {
        (StatusCode::OK, "ok")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the database does not answer",
        )
    }
}

/// Whether the database answers in time.
pub(crate) async fn answers(store: &Store) -> bool {
    matches!(
        tokio::time::timeout(PROBE_TIMEOUT, store.ping()).await,
        Ok(Ok(()))
    )
}
