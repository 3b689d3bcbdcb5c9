//! The connection to the coordinator.

use std::time::Duration;

use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, Uri},
};
use tonic_health::pb::health_client::HealthClient;
use weir_proto::{
    limits::MAX_CLIENT_MESSAGE_BYTES,
    v1::{
        job_service_client::JobServiceClient, search_service_client::SearchServiceClient,
        source_service_client::SourceServiceClient,
    },
};

use crate::{config::Settings, credentials::Token, failure::Failure};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent connection is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// What calls go through.
type Wire = InterceptedService<Channel, Token>;

/// A connection, with what every command needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    wire: Wire,
    /// The namespace of the sources.
    pub(crate) namespace: String,
    /// Whether output is JSON.
    pub(crate) json: bool,
}

impl Session {
    /// Connects. Fails with [`Failure::Unreachable`] when nothing answers.
    pub(crate) async fn connect(settings: &Settings) -> Result<Self, Failure> {
        let url = &settings.coordinator;
        let bad_url = |what: String| {
            Failure::Usage(format!(
                "--coordinator (WEIR_COORDINATOR) {url} cannot be used: {what}"
            ))
        };
        if url.as_str().contains('@') {
            return Err(Failure::Usage(
                "--coordinator (WEIR_COORDINATOR) must not hold a user or password; a token goes \
                 into --token-file"
                    .to_owned(),
            ));
        }
        let uri: Uri = url
            .as_str()
            .parse()
            .map_err(|_| bad_url("it is not a URL".to_owned()))?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => {
                return Err(bad_url(
                    "it must be http://host:port or https://host:port".to_owned(),
                ));
            }
        };
        let token = settings.credentials.token(&uri)?;
        let mut endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(CONNECT_TIMEOUT)
            .keep_alive_while_idle(true);
        if secure {
            let tls = settings.credentials.tls()?;
            endpoint = endpoint
                .tls_config(tls)
                .map_err(|error| bad_url(innermost(&error)))?;
        }
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| Failure::Unreachable {
                endpoint: url.to_string(),
                reason: explained(innermost(&error)),
            })?;
        Ok(Self {
            wire: InterceptedService::new(channel, token),
            namespace: settings.namespace.clone(),
            json: settings.json,
        })
    }

    /// The namespace of a request: empty, for all of them, where `all` is set.
    pub(crate) fn namespace_or_all(&self, all: bool) -> String {
        if all {
            String::new()
        } else {
            self.namespace.clone()
        }
    }

    /// The client of `SourceService`.
    pub(crate) fn sources(&self) -> SourceServiceClient<Wire> {
        SourceServiceClient::new(self.wire.clone())
            .max_decoding_message_size(MAX_CLIENT_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_CLIENT_MESSAGE_BYTES)
    }

    /// The client of `JobService`.
    pub(crate) fn jobs(&self) -> JobServiceClient<Wire> {
        JobServiceClient::new(self.wire.clone()).max_decoding_message_size(MAX_CLIENT_MESSAGE_BYTES)
    }

    /// The client of `SearchService`.
    pub(crate) fn search(&self) -> SearchServiceClient<Wire> {
        SearchServiceClient::new(self.wire.clone())
            .max_decoding_message_size(MAX_CLIENT_MESSAGE_BYTES)
    }

    /// The client of the health service.
    pub(crate) fn health(&self) -> HealthClient<Wire> {
        HealthClient::new(self.wire.clone())
    }
}

/// The innermost cause: the outer ones say only "transport error".
fn innermost(error: &tonic::transport::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Says what is most likely wrong where TLS itself does not.
fn explained(reason: String) -> String {
    if reason.contains("InvalidContentType") {
        return "it does not speak TLS there: use http://".to_owned();
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn failure(coordinator: &str) -> Failure {
        let settings = Settings::plain(coordinator, "default");
        Session::connect(&settings).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_bad_url_is_a_usage_error() {
        for url in ["localhost:7400", "ftp://host", "http://", "http://a b"] {
            let failure = failure(url).await;
            assert!(matches!(failure, Failure::Usage(_)), "{url}: {failure}");
        }
    }

    #[tokio::test]
    async fn a_url_with_a_secret_is_refused_without_showing_it() {
        for url in [
            "http://user:hunter2@host",
            "https://hunter2@host:1",
            "http://user:hunter2@ho st",
            "ftp://host?token=hunter2",
        ] {
            let failure = failure(url).await.to_string();
            assert!(failure.contains("WEIR_COORDINATOR"), "{failure}");
            assert!(!failure.contains("hunter2"), "{failure}");
        }
        let failure = failure("http://127.0.0.1:1?token=hunter2")
            .await
            .to_string();
        assert!(failure.contains("127.0.0.1:1?…:"), "{failure}");
    }

    #[tokio::test]
    async fn a_closed_port_is_unreachable_with_the_reason() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let failure = failure(&url).await;
        assert!(matches!(failure, Failure::Unreachable { .. }), "{failure}");
        assert!(failure.to_string().contains("refused"), "{failure}");
    }
}
