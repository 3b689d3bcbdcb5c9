//! Calls an embedding server over HTTP, bounded in time and size.

mod reading;

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use weir_proto::{limits::MAX_DIMENSION, secret::is_loopback, trace::TRACEPARENT};
use weir_telemetry::{KeyValue, Span};

use super::key::ApiKey;
use super::refusal::Refusal;
use super::vector;
use crate::{EmbedError, Profile, Role, redact::presentable};

/// Longest wait for a connection; a server that is there answers far sooner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that a number of a vector may take in JSON, with what parts it from
/// the next.
const BYTES_PER_NUMBER: usize = 32;

/// Bytes that an answer may have besides its vectors.
const BYTES_AROUND: usize = 64 << 10;

/// Most bytes of any answer.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// An embedding server.
pub(super) struct Server {
    client: Client,
    base: Url,
    /// The server in messages: "the embedding server", host and port.
    name: String,
    /// What to do about a 404, for a person.
    missing_hint: String,
    key: Option<ApiKey>,
    timeout: Duration,
}

/// Why there is no answer.
pub(super) enum Failure {
    /// The server answered that it would not.
    Refused(Refused),
    /// It did not answer, or nothing that can be used.
    Other(EmbedError),
}

/// An answer that is not a success.
pub(super) struct Refused {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    /// The body, or its beginning.
    pub(super) body: Vec<u8>,
    /// The keys that were sent, the last one last, so that no message shows
    /// them.
    keys: Vec<HeaderValue>,
}

impl Server {
    /// `missing_hint` says what to do about a 404.
    pub(super) fn new(
        profile: &Profile,
        _role: Role,
        default_url: Option<&str>,
        missing_hint: String,
    ) -> anyhow::Result<Self> {
        let base = profile.base(default_url)?;
        let timeout = profile.timeout;
        let key = profile.key_file.as_deref();
        // Without a process-wide provider reqwest cannot build a client. An
        // error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder();
        if base.host_str().is_some_and(is_loopback) {
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
        let host = base.host_str().unwrap_or_default();
        let name = match base.port() {
            Some(port) => format!("the embedding server {host}:{port}"),
            None => format!("the embedding server {host}"),
        };
        Ok(Self {
            client,
            base,
            name,
            missing_hint,
            key: key.map(ApiKey::open).transpose()?,
            timeout,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Longest time one call may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Posts the request that embeds these texts and reads the answer.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
        texts: &[&str],
    ) -> Result<T, EmbedError> {
        let answer = self.try_post(path, request, texts.len()).await;
        answer.map_err(|failure| self.sort(failure, texts))
    }

    /// Posts a request that embeds `count` texts.
    pub(super) async fn try_post<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
        count: usize,
    ) -> Result<T, Failure> {
        let post = self.client.post(self.at(path)).json(request);
        let limit = count * MAX_DIMENSION * BYTES_PER_NUMBER + BYTES_AROUND;
        self.exchange(post, limit).await
    }

    pub(super) async fn try_get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange(self.client.get(self.at(path)), BYTES_AROUND)
            .await
    }

    fn at(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        let whole = format!("{}{path}", self.base.path().trim_end_matches('/'));
        url.set_path(&whole);
        url
    }

    /// Sends a request and reads the answer, of at most `limit` bytes.
    async fn exchange<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        limit: usize,
    ) -> Result<T, Failure> {
        let response = self.send(request).await?;
        let body = self.read(response, limit.min(MAX_ANSWER_BYTES)).await;
        let body = body.map_err(Failure::Other)?;
        // The parser's own words may quote the answer; its place is enough.
        vector::parse(&body).map_err(|error| Failure::Other(self.unreadable(&error)))
    }

    /// Returns an answer that is a success. A key that is refused is read
    /// again, for it may just have been replaced.
    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let again = request.try_clone();
        let header = self.key.as_ref().map(ApiKey::header);
        let refused = match self.send_with(request, header.clone()).await {
            Err(Failure::Refused(refused)) if refused.status == StatusCode::UNAUTHORIZED => refused,
            outcome => return outcome,
        };
        let other = self.key.as_ref().zip(header.as_ref());
        let other = other.and_then(|(key, header)| key.other_than(header));
        let (Some(again), Some(other)) = (again, other) else {
            return Err(Failure::Refused(refused));
        };
        let mut outcome = self.send_with(again, Some(other)).await;
        if let Err(Failure::Refused(last)) = &mut outcome {
            last.keys.splice(..0, refused.keys);
        }
        outcome
    }

    async fn send_with(
        &self,
        mut request: RequestBuilder,
        key: Option<HeaderValue>,
    ) -> Result<Response, Failure> {
        if let Some(key) = &key {
            request = request.header(AUTHORIZATION, key);
        }
        let span = Span::current();
        if let Some(trace) = span.context() {
            request = request.header(TRACEPARENT, trace.to_string());
        }
        let response = request.send().await;
        let response = response.map_err(|error| Failure::Other(self.broken(&error)))?;
        span.set(|| {
            let status = i64::from(response.status().as_u16());
            let host = self.base.host_str().unwrap_or_default();
            [
                KeyValue::new("http.response.status_code", status),
                KeyValue::new("server.address", host.to_owned()),
            ]
        });
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Failure::Refused(Refused {
            status: response.status(),
            headers: response.headers().clone(),
            body: self.refusal_body(response).await,
            keys: key.into_iter().collect(),
        }))
    }

    /// What the server says of itself, fit for a log.
    pub(super) fn presentable(&self, said: &str) -> String {
        let key = self.key.as_ref().map(ApiKey::header);
        presentable(said, &[], &keys(key.as_slice()))
    }

    /// Sorts the failure of a call that sent these texts.
    pub(super) fn sort(&self, failure: Failure, texts: &[&str]) -> EmbedError {
        let refused = match failure {
            Failure::Refused(refused) => refused,
            Failure::Other(error) => return error,
        };
        let refusal = Refusal {
            server: &self.name,
            status: refused.status,
            headers: &refused.headers,
            body: &refused.body,
            texts,
            keys: &keys(&refused.keys),
            missing_hint: &self.missing_hint,
        };
        refusal.sort(SystemTime::now())
    }
}

/// The keys in headers that were made of them.
fn keys(headers: &[HeaderValue]) -> Vec<&str> {
    let headers = headers.iter().filter_map(|header| header.to_str().ok());
    headers
        .filter_map(|header| header.strip_prefix("Bearer "))
        .collect()
}
