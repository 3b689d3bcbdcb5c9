//! Takes a hint from what an embedding server refuses: the one place that knows
//! what statuses and messages most likely mean. A hint that is wrong costs some
//! calls, and nobody is judged by it.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

use super::culprit;
use crate::{EmbedError, redact::presentable};

/// Longest time that a server may ask to be left alone.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// Words for a call that carries too much: of text-embeddings-inference, OpenAI
/// (twice), and whoever computes on a GPU.
const TOO_MUCH: [&str; 4] = [
    "allowed batch",
    "max_tokens_per_request",
    "array_above_max_length",
    "out of memory",
];

/// Words for a text that is too long, whatever status comes with them.
const TOO_LONG: [&str; 7] = [
    "context length",
    "context_length",
    "context size",
    "input length",
    "must have less than",
    "too many tokens",
    "too large to process",
];

/// What Ollama says, with 503, when too many requests wait there.
const BUSY: &str = "server busy";

/// What OpenAI says, with 429, of a call larger than a minute's quota: waiting
/// does not help.
const NEVER_WITHIN_QUOTA: &str = "request too large";

/// Words for a model that is not there or cannot embed, where the status is not
/// 404. A person is told what to do about it.
const WRONG_MODEL: [&str; 5] = [
    "model_not_found",
    "model not found",
    "does not exist",
    "not support embedding",
    "unknown model",
];

/// An answer that is not a success.
pub(super) struct Refusal<'a> {
    /// The server in messages.
    pub(super) server: &'a str,
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
    /// The body, or its beginning.
    pub(super) body: &'a [u8],
    /// The texts that were sent. A message must not show them.
    pub(super) texts: &'a [&'a str],
    /// Nor the keys.
    pub(super) keys: &'a [&'a str],
    /// What to do about a missing model, for a person.
    pub(super) missing_hint: &'a str,
}

impl Refusal<'_> {
    /// Takes the hint. `now` is what a date to retry after is compared with.
    pub(super) fn sort(&self, now: SystemTime) -> EmbedError {
        let status = self.status;
        let retry_after = retry_after(self.headers, now);
        let message = words(self.body);
        let says = |phrases: &[&str]| {
            let message = message.to_lowercase();
            phrases.iter().any(|phrase| message.contains(phrase))
        };
        let answered = format!("{} answered {status}", self.server);
        let quoted = self.quoted(&message);
        let overloaded = || EmbedError::Overloaded {
            reason: format!("{answered}{quoted}"),
            retry_after,
        };
        let embedder = |advice: &str| EmbedError::Embedder {
            reason: format!("{answered}{quoted}{advice}"),
            retry_after,
        };
        let reason = || format!("{answered}{quoted}");
        let culprit = culprit::named(self.body).filter(|place| *place < self.texts.len());
        let input = || {
            let reason = reason();
            EmbedError::Input { reason, culprit }
        };
        let too_long = || {
            let reason = reason();
            EmbedError::TooLong { reason, culprit }
        };
        let too_large = || {
            if self.texts.len() > 1 {
                EmbedError::TooMany { reason: reason() }
            } else {
                too_long()
            }
        };
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                embedder(" (check the key in --embedder-api-key-file, WEIR_EMBEDDER_API_KEY_FILE)")
            }
            StatusCode::NOT_FOUND => embedder(&format!(" ({})", self.missing_hint)),
            StatusCode::TOO_MANY_REQUESTS if says(&[NEVER_WITHIN_QUOTA]) => too_large(),
            StatusCode::TOO_MANY_REQUESTS => overloaded(),
            // A server that is starting or gone says 503 too, but neither this nor for how long.
            StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() || says(&[BUSY]) => {
                overloaded()
            }
            StatusCode::SERVICE_UNAVAILABLE => embedder(""),
            _ if says(&WRONG_MODEL) => embedder(&format!(" ({})", self.missing_hint)),
            _ if says(&TOO_MUCH) => too_large(),
            _ if says(&TOO_LONG) => too_long(),
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => input(),
            _ if status.is_redirection() => EmbedError::Embedder {
                reason: format!(
                    "{answered}; redirects are not followed: set --embedder-url \
                     (WEIR_EMBEDDER_URL) to the final address"
                ),
                retry_after,
            },
            _ => self.sort_by_number(reason(), retry_after),
        }
    }

    /// Sorts by the status alone.
    fn sort_by_number(&self, reason: String, retry_after: Option<Duration>) -> EmbedError {
        match self.status.as_u16() {
            // The last two: of the proxy before it, which waited in vain.
            408 | 504 | 524 => EmbedError::Timeout { reason },
            // What text-embeddings-inference says of a batch that failed.
            424 => EmbedError::Transient { reason },
            // The proxy before it does not reach it; it is overloaded.
            502 | 520..=530 => EmbedError::Embedder {
                reason,
                retry_after,
            },
            400..=499 | 501 => EmbedError::Embedder {
                reason: format!(
                    "{reason} (check --embedder and --embedder-url: WEIR_EMBEDDER, \
                     WEIR_EMBEDDER_URL)"
                ),
                retry_after,
            },
            _ => EmbedError::Transient { reason },
        }
    }

    /// What the server said, fit for logs and for the job's record: short, and
    /// without what it quotes of the texts or of the keys.
    fn quoted(&self, message: &str) -> String {
        let message = presentable(message, self.texts, self.keys);
        if message.is_empty() {
            message
        } else {
            format!(": {message}")
        }
    }
}

/// The message in a refusal's body: the places where servers put it in JSON, or
/// plain words.
fn words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match serde_json::from_slice::<Value>(body) {
        Ok(json) => {
            let error = json.get("error").unwrap_or(&json);
            let detail = &json["detail"];
            let message = [
                error,
                &error["message"],
                &json["message"],
                detail,
                &detail[0]["msg"],
            ];
            let message = message
                .into_iter()
                .find_map(Value::as_str)
                .unwrap_or_default();
            match error["code"].as_str() {
                Some(code) => format!("{message} ({code})"),
                None => message.to_owned(),
            }
        }
        // Pages and broken JSON tell a person nothing.
        Err(_) if text.trim_start().starts_with(['<', '{', '[']) => String::new(),
        Err(_) => text.into_owned(),
    }
}

/// How long the server asks to be left alone: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value)
            .ok()?
            .duration_since(now)
            .unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn a_date_to_retry_after_becomes_the_time_until_then() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(
            RETRY_AFTER,
            HeaderValue::from_static("Wed, 21 Oct 2015 07:29:30 GMT"),
        );
        assert_eq!(retry_after(&headers, now), Some(Duration::from_secs(90)));
    }
}
