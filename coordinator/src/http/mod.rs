//! Plain HTTP, on the same port: health for probes that speak no gRPC, metrics,
//! and the page for operators.

mod dashboard;
mod metrics;

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio_util::sync::CancellationToken;

pub(crate) use self::metrics::Scrape;
use crate::look::Ready;

#[derive(Clone)]
struct Health {
    ready: Ready,
    shutdown: CancellationToken,
}

/// The pages: `/livez` answers while the process lives, `/readyz` while it can
/// serve, `/metrics` as soon as it knows how large the queue is; at `/` the
/// dashboard, where it is wanted.
pub(crate) fn router(
    scrape: Scrape,
    ready: Ready,
    dashboard: bool,
    shutdown: CancellationToken,
) -> Router {
    let metrics = get(metrics::show).with_state(Arc::new(scrape));
    let dashboard = dashboard.then(dashboard::router);
    Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(readyz))
        .with_state(Health { ready, shutdown })
        .route("/metrics", metrics)
        .merge(dashboard.unwrap_or_default())
}

async fn readyz(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.shutdown.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping");
    }
    if health.ready.answers().await {
        (StatusCode::OK, "ok")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the database does not answer, or takes no writes",
        )
    }
}
