//! Calls an embedding server over HTTP, bounded in time and size.

mod reading;

use std::time::{Duration, SystemTime};

use reqwest::{
    Client, RequestBuilder, Response, Url,
    header::{ACCEPT_ENCODING, HeaderMap},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use weir_proto::{limits::MAX_DIMENSION, trace::TRACEPARENT};
use weir_telemetry::{KeyValue, Span};

use super::{address, body, client, refusal::Refusal, secrets::Credentials, vector, ways::Fault};
use crate::{EmbedError, Profile, Role, redact::presentable};

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
    /// The server in messages: "the embedding server", host and port.
    name: String,
    host: String,
    /// What to do about a 404, for a person.
    missing_hint: String,
    /// What else to check where it cannot be reached, for a person.
    further_checks: &'static str,
    credentials: Credentials,
    /// What its address, and a proxy's, hold that no message may show.
    secrets: Vec<String>,
    fields: Map<String, Value>,
    timeout: Duration,
}

/// What a provider sends and says besides what the profile has.
pub(super) struct Habits<'a> {
    /// Fields of a request, which the profile may change.
    pub(super) fields: Value,
    /// Names of the fields that it may not.
    pub(super) own: &'a [&'a str],
    /// What to do about a 404, for a person.
    pub(super) missing_hint: String,
}

/// Why there is no answer.
pub(super) enum Failure {
    /// The server answered that it would not.
    Refused(Box<Refusal>),
    /// It did not answer, or nothing that can be used.
    Other(Fault, EmbedError),
}

impl Server {
    /// A server at these addresses, of which there is at least one.
    pub(super) fn new(
        profile: &Profile,
        role: Role,
        addresses: &[Url],
        habits: Habits<'_>,
    ) -> anyhow::Result<Self> {
        let first = &addresses[0];
        let host = first.host_str().unwrap_or_default().to_owned();
        let name = match first.port() {
            Some(port) => format!("the embedding server {host}:{port}"),
            None => format!("the embedding server {host}"),
        };
        let further_checks = match (&profile.proxy, &profile.ca_file, first.scheme()) {
            (Some(_), ..) => ", and the profile's proxy",
            (None, None, "https") => "; a certificate of an authority of your own needs ca-file",
            (None, Some(_), "https") => ", and the profile's ca-file",
            _ => "",
        };
        Ok(Self {
            client: client::client(profile, first)?,
            name,
            host,
            missing_hint: habits.missing_hint,
            further_checks,
            credentials: Credentials::open(profile)?,
            secrets: address::secrets(first),
            fields: body::fields(profile, role, habits.fields, habits.own),
            timeout: profile.timeout,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Longest time one call may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Fields of every request, besides the provider's own.
    pub(super) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Posts a request that embeds `count` texts, and reads the answer.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        url: &Url,
        request: &impl Serialize,
        count: usize,
    ) -> Result<T, Failure> {
        let post = self.client.post(url.clone()).json(request);
        let limit = count * MAX_DIMENSION * BYTES_PER_NUMBER + BYTES_AROUND;
        self.exchange(url, post, limit).await
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, url: &Url) -> Result<T, Failure> {
        self.exchange(url, self.client.get(url.clone()), BYTES_AROUND)
            .await
    }

    /// Sends a request and reads the answer, of at most `limit` bytes.
    async fn exchange<T: DeserializeOwned>(
        &self,
        url: &Url,
        request: RequestBuilder,
        limit: usize,
    ) -> Result<T, Failure> {
        let (response, sent) = self.send(url, request).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = self.read(response, limit.min(MAX_ANSWER_BYTES)).await;
        let body = body.map_err(|error| Failure::Other(fault_of(&error), error))?;
        vector::parse(&body).map_err(|error| {
            if Self::is_page(&headers, &body) {
                return Failure::Other(Fault::Address, self.no_api(url));
            }
            let secrets = self.secrets_of(&sent);
            let refusal = Refusal::new(status, address::shown(url), headers, &body, secrets);
            if refusal.is_json {
                return Failure::Refused(Box::new(refusal));
            }
            // The parser's own words may quote the answer; its place is enough.
            Failure::Other(Fault::Form, self.unreadable(&error))
        })
    }

    /// Returns an answer that is a success, and the headers it is for. Secrets
    /// that are refused are read again, for they may just have been replaced.
    async fn send(
        &self,
        url: &Url,
        request: RequestBuilder,
    ) -> Result<(Response, HeaderMap), Failure> {
        let again = request.try_clone();
        let headers = self.credentials.headers();
        let refused = match self.send_with(url, request, &headers).await {
            Err(Failure::Refused(refused)) if refused.is_of_secret() => refused,
            outcome => return outcome.map(|response| (response, headers)),
        };
        let (Some(again), Some(other)) = (again, self.credentials.other_than(&headers)) else {
            return Err(Failure::Refused(refused));
        };
        let mut outcome = self.send_with(url, again, &other).await;
        if let Err(Failure::Refused(last)) = &mut outcome {
            last.secrets.extend(refused.secrets);
        }
        outcome.map(|response| (response, other))
    }

    async fn send_with(
        &self,
        url: &Url,
        request: RequestBuilder,
        sent: &HeaderMap,
    ) -> Result<Response, Failure> {
        // Numbers that are packed do not shrink.
        let request = request.header(ACCEPT_ENCODING, "identity");
        let mut request = request.headers(sent.clone());
        let span = Span::current();
        if let Some(trace) = span.context() {
            request = request.header(TRACEPARENT, trace.to_string());
        }
        let response = request.send().await;
        let response = response.map_err(|error| {
            let error = self.broken(&error);
            Failure::Other(fault_of(&error), error)
        })?;
        span.set(|| {
            let status = i64::from(response.status().as_u16());
            [
                KeyValue::new("http.response.status_code", status),
                KeyValue::new("server.address", self.host.clone()),
            ]
        });
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, headers) = (response.status(), response.headers().clone());
        let body = self.refusal_body(response).await;
        let secrets = self.secrets_of(sent);
        let refusal = Refusal::new(status, address::shown(url), headers, &body, secrets);
        Err(Failure::Refused(Box::new(refusal)))
    }

    fn secrets_of(&self, sent: &HeaderMap) -> Vec<String> {
        let mut secrets = self.credentials.secrets(sent);
        secrets.extend_from_slice(&self.secrets);
        secrets
    }

    /// What the server says of itself, fit for a log.
    pub(super) fn presentable(&self, said: &str) -> String {
        let secrets = self.secrets_of(&self.credentials.headers());
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        presentable(said, &[], &secrets)
    }

    /// Sorts the failure of a call that sent these texts.
    pub(super) fn sort(&self, failure: Failure, texts: &[&str]) -> EmbedError {
        let refused = match failure {
            Failure::Refused(refused) => refused,
            Failure::Other(_, error) => return error,
        };
        refused.sort(&self.name, texts, &self.missing_hint, SystemTime::now())
    }
}

impl Failure {
    /// What it speaks against.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Other(fault, _) => *fault,
            Self::Refused(refused) => match refused.status.as_u16() {
                300..=399 | 404 | 405 => Fault::Address,
                // Whom it does not know, and who asks too often, is not helped
                // by asking more.
                401 | 403 | 407 | 429 => Fault::Server,
                _ => Fault::Form,
            },
        }
    }

    /// Whether the server gave a reason in JSON, as an API does.
    pub(super) fn is_json(&self) -> bool {
        matches!(self, Self::Refused(refused) if refused.is_json)
    }

    /// Whether the server gave a reason.
    pub(super) fn has_words(&self) -> bool {
        matches!(self, Self::Refused(refused) if refused.has_words())
    }
}

/// What a call that got no whole answer speaks against: one that broke the
/// server may have done so by its form.
fn fault_of(error: &EmbedError) -> Fault {
    match error {
        EmbedError::Broken { .. } | EmbedError::Transient { .. } => Fault::Form,
        _ => Fault::Server,
    }
}
