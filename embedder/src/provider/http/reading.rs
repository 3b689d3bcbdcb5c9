//! Reads what a server answers, and says what was wrong with it.

use std::io::{self, Read as _};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use reqwest::{
    Response, Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap},
};
use tokio::time::timeout;

use super::{
    super::{address::shown, too_slow},
    Server,
};
use crate::EmbedError;

/// What part of the time a call may take may pass between two parts of an
/// answer.
const IDLE_FRACTION: u32 = 10;

/// Bytes of a refusal that are read.
const MAX_REFUSAL_BYTES: usize = 16 << 10;

impl Server {
    /// An error that blames neither the texts nor the server's being there.
    pub(in crate::provider) fn transient(&self, what: impl std::fmt::Display) -> EmbedError {
        EmbedError::Transient {
            reason: format!("{} {what}", self.name),
        }
    }

    /// The error of a call that took longer than it may.
    pub(in crate::provider) fn too_slow(&self) -> EmbedError {
        too_slow(&self.name, self.timeout)
    }

    /// The body of a success, of at most `limit` bytes.
    pub(super) async fn read(
        &self,
        mut response: Response,
        limit: usize,
    ) -> Result<Vec<u8>, EmbedError> {
        let packing = packing(response.headers());
        let mut body = Vec::new();
        while let Some(part) = self.part(&mut response).await? {
            if body.len() + part.len() > limit {
                return Err(self.too_large(limit));
            }
            body.extend_from_slice(&part);
        }
        match packing.as_deref() {
            None => Ok(body),
            Some("gzip" | "x-gzip") => match unpacked(&body, limit) {
                Ok(body) if body.len() > limit => Err(self.too_large(limit)),
                Ok(body) => Ok(body),
                Err(_) => Err(self.transient("sent an answer whose gzip cannot be read")),
            },
            Some(_) => Err(self.transient("packed its answer though it was asked not to")),
        }
    }

    fn too_large(&self, limit: usize) -> EmbedError {
        self.transient(format_args!("sent an answer of more than {limit} bytes"))
    }

    /// The next part of a body. A server that has begun to answer has done its
    /// work: it may not take the whole time for the rest.
    async fn part(&self, response: &mut Response) -> Result<Option<Bytes>, EmbedError> {
        let idle = self.timeout / IDLE_FRACTION;
        match timeout(idle, response.chunk()).await {
            Ok(part) => part.map_err(|error| self.broken(&error)),
            Err(_) => Err(EmbedError::Timeout {
                reason: format!(
                    "{} began to answer and then sent nothing for {}",
                    self.name,
                    humantime::format_duration(idle)
                ),
            }),
        }
    }

    /// The body of a refusal, or its beginning.
    pub(super) async fn refusal_body(&self, mut response: Response) -> Vec<u8> {
        let packing = packing(response.headers());
        let mut body = Vec::new();
        // A refusal that breaks off is still a refusal.
        while body.len() < MAX_REFUSAL_BYTES
            && let Ok(Some(part)) = self.part(&mut response).await
        {
            body.extend_from_slice(&part[..part.len().min(MAX_REFUSAL_BYTES - body.len())]);
        }
        match packing {
            None => body,
            Some(_) => unpacked(&body, MAX_REFUSAL_BYTES).unwrap_or_default(),
        }
    }

    /// Whether an answer that is no answer is a page for people.
    pub(super) fn is_page(headers: &HeaderMap, body: &[u8]) -> bool {
        let kind = headers.get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        kind.to_ascii_lowercase().starts_with("text/html")
            || body.trim_ascii_start().starts_with(b"<")
    }

    /// The error of an answer that comes from something else.
    pub(super) fn no_api(&self, url: &Url) -> EmbedError {
        EmbedError::Embedder {
            reason: format!(
                "{} answered with a web page instead of JSON at {}: check that --embedder-url \
                 (WEIR_EMBEDDER_URL) names the server itself and no proxy or login before it",
                self.name,
                shown(url)
            ),
            retry_after: None,
        }
    }

    /// The error of an answer that is not what the API promises.
    pub(super) fn unreadable(&self, error: &serde_json::Error) -> EmbedError {
        let what = match error.classify() {
            serde_json::error::Category::Eof => "it ends early",
            serde_json::error::Category::Data => "a field is missing or of another type",
            _ => "it is not JSON",
        };
        let reason = format!(
            "{} sent an answer that is not what the API promises (line {}, column {}: {what})",
            self.name,
            error.line(),
            error.column(),
        );
        if error.is_eof() {
            EmbedError::Broken { reason }
        } else {
            EmbedError::Transient { reason }
        }
    }

    /// Sorts a call that got no whole answer.
    pub(super) fn broken(&self, error: &reqwest::Error) -> EmbedError {
        if error.is_connect() {
            return EmbedError::Embedder {
                reason: format!(
                    "cannot connect to {} ({}): check that it runs and that --embedder-url \
                     (WEIR_EMBEDDER_URL) names it{}",
                    self.name,
                    innermost(error),
                    self.further_checks
                ),
                retry_after: None,
            };
        }
        if error.is_timeout() {
            return self.too_slow();
        }
        EmbedError::Broken {
            reason: format!("{} broke the connection ({})", self.name, innermost(error)),
        }
    }
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

/// How a body is packed, if it is.
fn packing(headers: &HeaderMap) -> Option<String> {
    let packing = headers.get(CONTENT_ENCODING)?.to_str().ok()?.trim();
    let packing = packing.to_ascii_lowercase();
    Some(packing).filter(|packing| !matches!(packing.as_str(), "" | "identity"))
}

/// The bytes that were packed with gzip, of which no more than one beyond the
/// limit is read: a few packed ones may be many.
fn unpacked(body: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    MultiGzDecoder::new(body)
        .take(most)
        .read_to_end(&mut unpacked)?;
    Ok(unpacked)
}
