//! Health and metrics, over plain HTTP: for probes, for Prometheus, and for a
//! person with a browser. It tells and does nothing: there is no other method
//! than GET, and nothing that is sent is looked at.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};
use weir_metrics::Page;

use crate::worker::Worker;

/// Serves on an address, if there is one, until what is returned is dropped.
/// Fails, naming the setting, when the address cannot be listened on.
pub(crate) async fn serve(
    address: Option<SocketAddr>,
    worker: Arc<Worker>,
    page: Page,
) -> anyhow::Result<Option<AbortOnDropHandle<()>>> {
    let Some(address) = address else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address).await;
    let listener = listener
        .with_context(|| format!("cannot listen on --http-listen (WEIR_HTTP_LISTEN) {address}"))?;
    let address = listener.local_addr()?;
    info!(%address, "Serving /livez and /readyz.");
    let page = Arc::new(page);
    let router = router(worker, Arc::clone(&page));
    let serving = async move {
        tokio::select! {
            Err(error) = axum::serve(listener, router).into_future() => {
                warn!(%error, "Health and metrics are not served any more.");
            }
            never = page.keep() => match never {},
        }
    };
    Ok(Some(AbortOnDropHandle::new(tokio::spawn(serving))))
}

/// `/livez` answers while the process lives, `/readyz` while all models can be
/// embedded with and there is a session; otherwise it says what is wrong, a line
/// a model.
fn router(worker: Arc<Worker>, page: Arc<Page>) -> Router {
    let metrics = get(metrics).with_state(Shown {
        worker: Arc::clone(&worker),
        page,
    });
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(worker)
        .route("/metrics", metrics)
}

/// What `/metrics` is made of.
#[derive(Clone)]
struct Shown {
    worker: Arc<Worker>,
    page: Arc<Page>,
}

/// What all models show, after a look at how their embedders are.
async fn metrics(State(Shown { worker, page }): State<Shown>) -> impl IntoResponse {
    for model in &worker.models {
        model.endpoint.show();
    }
    ([(CONTENT_TYPE, weir_metrics::CONTENT_TYPE)], page.render())
}

async fn ready(State(worker): State<Arc<Worker>>) -> (StatusCode, String) {
    let mut status = StatusCode::OK;
    let mut lines = String::new();
    for model in &worker.models {
        let obstacle = worker.obstacle(model);
        if obstacle.is_some() {
            status = StatusCode::SERVICE_UNAVAILABLE;
        }
        let said = obstacle.unwrap_or_else(|| "ready".to_owned());
        lines.extend([&model.profile.name, ": ", &said, "\n"]);
    }
    (status, lines)
}
