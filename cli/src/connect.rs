//! The connection to the coordinator.

use std::time::Duration;

use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use weir_proto::{
    limits::MAX_CLIENT_MESSAGE_BYTES,
    v1::{
        job_service_client::JobServiceClient, search_service_client::SearchServiceClient,
        source_service_client::SourceServiceClient,
    },
};

use crate::{args::Global, failure::Failure};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent connection is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A connection, with what every command needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    channel: Channel,
    /// The namespace of the sources.
    pub(crate) namespace: String,
    /// Whether output is JSON.
    pub(crate) json: bool,
}

impl Session {
    /// Connects. Fails with [`Failure::Unreachable`] when nothing answers.
    pub(crate) async fn connect(global: &Global) -> Result<Self, Failure> {
        let url = &global.coordinator;
        let bad_url = |error: tonic::transport::Error| {
            Failure::Usage(format!(
                "--coordinator {url} cannot be used: {}",
                innermost(&error)
            ))
        };
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        if !matches!(scheme, Some("http" | "https")) {
            return Err(Failure::Usage(format!(
                "--coordinator {url} cannot be used: it must be http://host:port or \
                 https://host:port"
            )));
        }
        let mut endpoint = Endpoint::from_shared(url.clone())
            .map_err(bad_url)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(CONNECT_TIMEOUT)
            .keep_alive_while_idle(true);
        if scheme == Some("https") {
            let tls = ClientTlsConfig::new().with_enabled_roots();
            endpoint = endpoint.tls_config(tls).map_err(bad_url)?;
        }
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| Failure::Unreachable {
                endpoint: url.clone(),
                reason: innermost(&error),
            })?;
        Ok(Self {
            channel,
            namespace: global.namespace.clone(),
            json: global.json,
        })
    }

    /// The client of `SourceService`.
    pub(crate) fn sources(&self) -> SourceServiceClient<Channel> {
        SourceServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_CLIENT_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_CLIENT_MESSAGE_BYTES)
    }

    /// The client of `JobService`.
    pub(crate) fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_CLIENT_MESSAGE_BYTES)
    }

    /// The client of `SearchService`.
    pub(crate) fn search(&self) -> SearchServiceClient<Channel> {
        SearchServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_CLIENT_MESSAGE_BYTES)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn global(coordinator: &str) -> Global {
        Global {
            coordinator: coordinator.to_owned(),
            namespace: "default".to_owned(),
            json: false,
            log: "off".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_bad_url_is_a_usage_error() {
        for url in ["localhost:7400", "ftp://host", "http://", "http://a b"] {
            let failure = Session::connect(&global(url)).await.unwrap_err();
            assert!(matches!(failure, Failure::Usage(_)), "{url}: {failure}");
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_unreachable_with_the_reason() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let failure = Session::connect(&global(&url)).await.unwrap_err();
        assert!(matches!(failure, Failure::Unreachable { .. }), "{failure}");
        assert!(failure.to_string().contains("refused"), "{failure}");
    }
}
