//! Calls an embedding server over HTTP, bounded in time and size.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Client, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use weir_proto::limits::MAX_DIMENSION;

use super::EmbedError;
use super::refusal::Refusal;

/// Longest wait for a connection; a server that is there answers far sooner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that a number of a vector may take in JSON, with what parts it from
/// the next.
const BYTES_PER_NUMBER: usize = 32;

/// Bytes that an answer may have besides its vectors.
const BYTES_AROUND: usize = 64 << 10;

/// Most bytes of any answer.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Bytes of a refusal that are read.
const MAX_REFUSAL_BYTES: usize = 16 << 10;

/// One endpoint of an embedding server.
pub(super) struct Server {
    client: Client,
    endpoint: Url,
    /// The server in messages: host and port.
    name: String,
    /// What to do about a 404, for a person.
    missing_hint: String,
    authorization: Option<HeaderValue>,
    timeout: Duration,
}

impl Server {
    pub(super) fn new(
        endpoint: Url,
        authorization: Option<HeaderValue>,
        timeout: Duration,
        missing_hint: String,
    ) -> anyhow::Result<Self> {
        // Without a process-wide provider reqwest cannot build a client. An
        // error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder();
        if is_loopback(&endpoint) {
            // A proxy of the environment could not reach it.
            builder = builder.no_proxy();
        }
        let client = builder
            .timeout(timeout)
            // Less than the whole, so that a server that cannot be reached is
            // told from one that is slow.
            .connect_timeout(CONNECT_TIMEOUT.min(timeout / 2))
            // A redirected POST would send texts and the key to another host.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("cannot set up HTTP")?;
        let host = endpoint.host_str().unwrap_or_default();
        let name = match endpoint.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Self {
            client,
            endpoint,
            name,
            missing_hint,
            authorization,
            timeout,
        })
    }

    /// Posts the request that embeds these texts and reads the answer.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        request: &impl Serialize,
        texts: &[&str],
    ) -> Result<T, EmbedError> {
        let mut post = self.client.post(self.endpoint.clone()).json(request);
        if let Some(authorization) = &self.authorization {
            post = post.header(AUTHORIZATION, authorization);
        }
        let response = post.send().await.map_err(|error| self.broken(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(response, texts).await);
        }
        let limit =
            (texts.len() * MAX_DIMENSION * BYTES_PER_NUMBER + BYTES_AROUND).min(MAX_ANSWER_BYTES);
        let body = self.read(response, limit).await?;
        // The parser's own words may quote the answer; its place is enough.
        serde_json::from_slice(&body).map_err(|error| {
            self.transient(format_args!(
                "sent an answer that is not what the API promises (line {}, column {}: {})",
                error.line(),
                error.column(),
                match error.classify() {
                    serde_json::error::Category::Eof => "it ends early",
                    serde_json::error::Category::Data => "a field is missing or of another type",
                    _ => "it is not JSON",
                }
            ))
        })
    }

    /// An error that blames neither the texts nor the server's being there.
    pub(super) fn transient(&self, what: impl std::fmt::Display) -> EmbedError {
        EmbedError::Transient {
            reason: format!("the embedding server {} {what}", self.name),
        }
    }

    async fn read(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, EmbedError> {
        let mut body = Vec::new();
        while let Some(part) = response
            .chunk()
            .await
            .map_err(|error| self.broken(&error))?
        {
            if body.len() + part.len() > limit {
                return Err(
                    self.transient(format_args!("sent an answer of more than {limit} bytes"))
                );
            }
            body.extend_from_slice(&part);
        }
        Ok(body)
    }

    /// Sorts a call that got no whole answer.
    fn broken(&self, error: &reqwest::Error) -> EmbedError {
        if error.is_connect() {
            return EmbedError::Embedder {
                reason: format!(
                    "cannot connect to the embedding server {} ({}): check that it runs and that \
                     --embedder-url (WEIR_EMBEDDER_URL) names it",
                    self.name,
                    innermost(error)
                ),
                retry_after: None,
            };
        }
        if error.is_timeout() {
            let timeout = humantime::format_duration(self.timeout);
            return EmbedError::Timeout {
                reason: format!(
                    "the embedding server {} took longer than {timeout}; smaller batches or a \
                     longer --embed-timeout (WEIR_EMBED_TIMEOUT) may help",
                    self.name
                ),
            };
        }
        self.transient(format_args!("broke the connection ({})", innermost(error)))
    }

    /// Sorts an answer that is not a success.
    async fn refused(&self, response: Response, texts: &[&str]) -> EmbedError {
        let (status, headers) = (response.status(), response.headers().clone());
        let key = self
            .authorization
            .as_ref()
            .and_then(|value| value.to_str().ok());
        let key = key.and_then(|value| value.strip_prefix("Bearer "));
        let refusal = Refusal {
            server: &self.name,
            status,
            headers: &headers,
            body: &refusal_body(response).await,
            texts,
            key,
            missing_hint: &self.missing_hint,
        };
        refusal.sort(SystemTime::now())
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

async fn refusal_body(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    // A refusal that breaks off is still a refusal.
    while body.len() < MAX_REFUSAL_BYTES
        && let Ok(Some(part)) = response.chunk().await
    {
        body.extend_from_slice(&part[..part.len().min(MAX_REFUSAL_BYTES - body.len())]);
    }
    body
}

/// The cause at the bottom of an error: "connection refused" rather than the
/// layers above it.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        let local = |url| is_loopback(&Url::parse(url).unwrap());
        assert!(local("http://localhost:11434"));
        assert!(local("http://127.0.0.1:11434"));
        assert!(local("http://[::1]:11434"));
        assert!(!local("http://ollama:11434"));
        assert!(!local("http://10.0.0.1"));
        assert!(!local("http://[2001:db8::1]"));
    }
}
