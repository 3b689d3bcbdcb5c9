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

/// What a call may be refused for, by words that servers share. They are looked
/// for where the status leaves it open.
#[derive(Clone, Copy)]
enum Said {
    TooMuch,
    TooLong,
    Busy,
}

/// Which words hint at what; the first that is found counts.
const WORDS: [(&str, Said); 11] = [
    ("allowed batch", Said::TooMuch),
    ("per_request", Said::TooMuch),
    ("above_max_length", Said::TooMuch),
    ("out of memory", Said::TooMuch),
    // With 429, of a call larger than a minute's quota: waiting does not help.
    ("request too large", Said::TooMuch),
    ("context", Said::TooLong),
    ("input length", Said::TooLong),
    ("too many tokens", Said::TooLong),
    ("less than", Said::TooLong),
    ("too large to process", Said::TooLong),
    ("busy", Said::Busy),
];

/// An answer that says that there are no vectors.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Where, without what may be a key.
    at: String,
    headers: HeaderMap,
    /// The reason that the server gave, which may quote what was sent.
    message: String,
    /// Whether it gave it in JSON, as an API does.
    pub(super) is_json: bool,
    /// The place of a text that it named.
    culprit: Option<usize>,
    /// What was sent that no message may show, besides the texts.
    pub(super) secrets: Vec<String>,
}

impl Refusal {
    /// Reads what a server answered at a place: the body, or its beginning.
    pub(super) fn new(
        status: StatusCode,
        at: String,
        headers: HeaderMap,
        body: &[u8],
        secrets: Vec<String>,
    ) -> Self {
        let json: Option<Value> = serde_json::from_slice(body).ok();
        let message = json.as_ref().map_or_else(|| plain_words(body), words);
        Self {
            status,
            at,
            headers,
            is_json: json.is_some() && !message.is_empty(),
            message,
            culprit: json.as_ref().and_then(culprit::named),
            secrets,
        }
    }

    /// Whether the server gave a reason.
    pub(super) fn has_words(&self) -> bool {
        !self.message.is_empty()
    }

    /// Whether another key might do.
    pub(super) fn is_of_secret(&self) -> bool {
        matches!(
            self.status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        )
    }

    /// Takes the hint of a call that sent these texts to this server. `missing_hint`
    /// is what to do about a model that is not there, and `now` what a date to retry
    /// after is compared with.
    pub(super) fn sort(
        &self,
        server: &str,
        texts: &[&str],
        missing_hint: &str,
        now: SystemTime,
    ) -> EmbedError {
        let retry_after = retry_after(&self.headers, now);
        let reason = match self.presentable(texts) {
            said if said.is_empty() => format!("{server} answered {}", self.status),
            said => format!("{server} answered {}: {said}", self.status),
        };
        let culprit = self.culprit.filter(|place| *place < texts.len());
        let advised = |advice: &str| EmbedError::Embedder {
            reason: format!("{reason} ({advice}; asked at {})", self.at),
            retry_after,
        };
        let too_much = || {
            let reason = reason.clone();
            if texts.len() > 1 {
                EmbedError::TooMany { reason }
            } else {
                EmbedError::TooLong { reason, culprit }
            }
        };
        let (code, said) = (self.status.as_u16(), said(&self.message));
        match (code, said) {
            (401 | 403, _) => {
                advised("check the key in --embedder-api-key-file, WEIR_EMBEDDER_API_KEY_FILE")
            }
            (407, _) => advised("check user and password of the proxy"),
            (404 | 405, _) => advised(missing_hint),
            (300..=399, _) => advised(
                "redirects are not followed: set --embedder-url (WEIR_EMBEDDER_URL) to the final \
                 address",
            ),
            (_, Some(Said::TooMuch)) => too_much(),
            (429, _) => EmbedError::Overloaded {
                reason,
                retry_after,
            },
            // A server that is starting or gone says 503 too, but neither this nor for how long.
            (503, said) if retry_after.is_some() || matches!(said, Some(Said::Busy)) => {
                EmbedError::Overloaded {
                    reason,
                    retry_after,
                }
            }
            // Of the proxy before it, which does not reach it; it is overloaded.
            (502 | 503 | 520..=523 | 525..=530, _) => EmbedError::Embedder {
                reason,
                retry_after,
            },
            // The last two: of the proxy before it, which waited in vain.
            (408 | 504 | 524, _) => EmbedError::Timeout { reason },
            (_, Some(Said::TooLong)) => EmbedError::TooLong { reason, culprit },
            (413, _) => too_much(),
            (400 | 422, _) => EmbedError::Input { reason, culprit },
            // What text-embeddings-inference says of a batch that failed.
            (424, _) => EmbedError::Transient { reason },
            (400..=499 | 501, _) => {
                advised("check --embedder and --embedder-url: WEIR_EMBEDDER, WEIR_EMBEDDER_URL")
            }
            _ => EmbedError::Transient { reason },
        }
    }

    /// What the server said, fit for logs and for the job's record: short, and
    /// without what it quotes of the texts or of the keys.
    fn presentable(&self, texts: &[&str]) -> String {
        let secrets: Vec<&str> = self.secrets.iter().map(String::as_str).collect();
        presentable(&self.message, texts, &secrets)
    }
}

/// What the words hint at.
fn said(message: &str) -> Option<Said> {
    let message = message.to_lowercase();
    let found = WORDS.iter().find(|(words, _)| message.contains(words));
    found.map(|(_, said)| *said)
}

/// The plain words of a body. Pages and broken JSON tell a person nothing.
fn plain_words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    if text.trim_start().starts_with(['<', '{', '[']) {
        String::new()
    } else {
        text.into_owned()
    }
}

/// The message in the places where servers put it in JSON.
fn words(json: &Value) -> String {
    let error = json.get("error").unwrap_or(json);
    let detail = &json["detail"];
    let places = [
        error,
        &error["message"],
        &json["message"],
        detail,
        &detail[0]["msg"],
    ];
    let mut said = places.into_iter().filter_map(Value::as_str);
    let message = said.next().unwrap_or_default();
    match error["code"].as_str() {
        Some(code) => format!("{message} ({code})"),
        None => message.to_owned(),
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
    use crate::judge::Hint;

    /// What a refusal of so many texts hints at.
    fn sorted(status: u16, retry: Option<&str>, body: &str, texts: &[&str]) -> EmbedError {
        let mut headers = HeaderMap::new();
        if let Some(retry) = retry {
            headers.insert(RETRY_AFTER, HeaderValue::from_str(retry).unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        let at = "/v1/embeddings".to_owned();
        let refusal = Refusal::new(status, at, headers, body.as_bytes(), Vec::new());
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        refusal.sort("the server", texts, "", now)
    }

    #[test]
    fn what_servers_say_is_a_hint() {
        for (status, body, one, two) in [
            (
                400,
                "the input length exceeds the context length",
                Hint::TooLong(None),
                Hint::TooLong(None),
            ),
            (
                500,
                "the input length exceeds the context length",
                Hint::TooLong(None),
                Hint::TooLong(None),
            ),
            (
                400,
                r#"{"error": {"message": "no", "code": "context_length_exceeded"}}"#,
                Hint::TooLong(None),
                Hint::TooLong(None),
            ),
            (
                413,
                r#"{"error": "`inputs` must have less than 512 tokens. Given: 600"}"#,
                Hint::TooLong(None),
                Hint::TooLong(None),
            ),
            (
                500,
                r#"{"error": {"message": "input (807 tokens) is too large to process"}}"#,
                Hint::TooLong(None),
                Hint::TooLong(None),
            ),
            (
                400,
                r#"{"error": {"message": "Invalid 'input[1]': maximum input length is 8192 tokens."}}"#,
                Hint::TooLong(None),
                Hint::TooLong(Some(1)),
            ),
            (
                422,
                r#"{"detail": [{"loc": ["body", "input", 1], "msg": "odd"}]}"#,
                Hint::Unknown,
                Hint::Text(1),
            ),
            (413, "", Hint::TooLong(None), Hint::TooMuch),
            (
                413,
                r#"{"error": "batch size 100 > maximum allowed batch size 32"}"#,
                Hint::TooLong(None),
                Hint::TooMuch,
            ),
            (
                400,
                r#"{"error": {"message": "no", "code": "max_tokens_per_request"}}"#,
                Hint::TooLong(None),
                Hint::TooMuch,
            ),
            (
                400,
                r#"{"error": {"message": "no", "code": "array_above_max_length"}}"#,
                Hint::TooLong(None),
                Hint::TooMuch,
            ),
            (
                429,
                "Request too large for small on tokens per min",
                Hint::TooLong(None),
                Hint::TooMuch,
            ),
            (
                424,
                "DriverError(CUDA_ERROR_OUT_OF_MEMORY, out of memory)",
                Hint::TooLong(None),
                Hint::TooMuch,
            ),
            (429, "context", Hint::Busy, Hint::Busy),
            (503, "server busy, please try again", Hint::Busy, Hint::Busy),
            (503, "starting", Hint::Down, Hint::Down),
            (500, "it broke", Hint::Unknown, Hint::Unknown),
        ] {
            assert_eq!(
                sorted(status, None, body, &["a"]).hint(),
                one,
                "{status} {body}"
            );
            assert_eq!(
                sorted(status, None, body, &["a", "b"]).hint(),
                two,
                "{status} {body}"
            );
        }
    }

    #[test]
    fn overload_lasts_as_long_as_the_server_says() {
        for (status, retry, expected) in [
            (429, None, None),
            (429, Some("7"), Some(Duration::from_secs(7))),
            (503, Some("0"), Some(Duration::ZERO)),
            (429, Some("soon"), None),
            (429, Some("-1"), None),
            (
                503,
                Some("Wed, 21 Oct 2015 07:29:30 GMT"),
                Some(Duration::from_secs(90)),
            ),
            // A date in the past asks for nothing; nothing silences us for days.
            (
                503,
                Some("Tue, 21 Oct 2014 07:28:00 GMT"),
                Some(Duration::ZERO),
            ),
            (
                503,
                Some("Wed, 21 Oct 2995 07:28:00 GMT"),
                Some(Duration::from_hours(1)),
            ),
            (
                503,
                Some("18446744073709551615"),
                Some(Duration::from_hours(1)),
            ),
        ] {
            match sorted(status, retry, "", &["a"]) {
                EmbedError::Overloaded { retry_after, .. } => {
                    assert_eq!(retry_after, expected, "{status} {retry:?}");
                }
                other => panic!("{status} {retry:?}: {other:?}"),
            }
        }
    }
}
