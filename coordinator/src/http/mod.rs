//! Plain HTTP, on the same port: health for probes that speak no gRPC.

use std::time::Duration;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// How long the database may take to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Health {
    store: Store,
    shutdown: CancellationToken,
}

/// The pages: `/livez` answers while the process lives, `/readyz` while it can
/// serve.
pub(crate) fn router(store: Store, shutdown: CancellationToken) -> Router {
    Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .with_state(Health { store, shutdown })
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
