//! The way of ended spans to the collector: a bounded queue and a thread that
//! empties it. Work never waits for either.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use http::Uri;
use opentelemetry_otlp::{
    SpanExporter as Otlp, WithExportConfig as _, WithTonicConfig as _,
    tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};

/// How long a collector may take to take a batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// An exporter that says once that the collector is away, and once that it is
/// back. What was to be sent meanwhile is dropped.
#[derive(Debug)]
pub(crate) struct Exporter {
    otlp: Otlp,
    endpoint: Uri,
    failing: AtomicBool,
}

impl Exporter {
    /// Connects when there is something to send. Runs on the runtime it is made
    /// in. Fails where the address cannot be used.
    pub(crate) fn new(endpoint: &Uri) -> anyhow::Result<Self> {
        let mut builder = Otlp::builder()
            .with_tonic()
            .with_endpoint(endpoint.to_string())
            .with_timeout(EXPORT_TIMEOUT);
        if endpoint.scheme_str() == Some("https") {
            builder = builder.with_tls_config(ClientTlsConfig::new().with_native_roots());
        }
        let otlp = builder.build().with_context(|| {
            format!("--otlp-endpoint (WEIR_OTLP_ENDPOINT): traces cannot be sent to {endpoint}")
        })?;
        Ok(Self {
            otlp,
            endpoint: endpoint.clone(),
            failing: AtomicBool::new(false),
        })
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        match self.otlp.export(batch).await {
            Ok(()) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(endpoint = %self.endpoint, "Traces are sent again.");
                }
            }
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        endpoint = %self.endpoint,
                        spans,
                        %error,
                        "Traces cannot be sent (--otlp-endpoint, WEIR_OTLP_ENDPOINT); they are \
                         dropped until the collector answers. Work goes on."
                    );
                }
            }
        }
        // It has been said; whoever drives this would say it each time.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.otlp.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}
