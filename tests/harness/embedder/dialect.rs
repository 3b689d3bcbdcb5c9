//! The routes of each server, and its words for what it refuses.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, State},
    http::{Method, StatusCode, header, request::Parts},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{
    Script, Shared,
    answer::{Asked, answer},
    door::Wire,
};

/// Which server it is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Ollama,
    OldOllama,
    OpenAi,
    Tei,
}

/// What a call asks too much of, how much it asks and how much there is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Excess {
    Texts(usize, usize),
    Text(usize, usize),
    Together(usize, usize),
}

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .fallback(any)
        .layer(DefaultBodyLimit::disable())
        .with_state(shared)
}

async fn any(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(wire): ConnectInfo<Wire>,
    parts: Parts,
    body: Bytes,
) -> Response {
    let path = parts.uri.path();
    let is_info = parts.method == Method::GET && path.ends_with("/info");
    if is_info && !shared.script().no_info {
        return tei_info(&shared).into_response();
    }
    let Some((caller, dialect)) = shared.script().dialect_at(path) else {
        let target = parts.uri.to_string();
        let missing = {
            let mut script = shared.script();
            script.missed.push(target);
            script.missing
        };
        return match missing {
            None => (StatusCode::NOT_FOUND, "404 page not found").into_response(),
            Some((status, kind, body)) => {
                (status, [(header::CONTENT_TYPE, kind)], body).into_response()
            }
        };
    };
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let asked = Asked::new(dialect, caller, &parts, body);
    answer(&shared, &wire, &asked).await
}

impl Script {
    /// Who calls which server at this path.
    fn dialect_at(&self, path: &str) -> Option<(String, Dialect)> {
        if let Some(at) = &self.openai_at {
            return (path == at).then(|| (String::new(), Dialect::OpenAi));
        }
        // The first that fits: the path of one is the end of another's.
        let all = [
            Dialect::Ollama,
            Dialect::OldOllama,
            Dialect::OpenAi,
            Dialect::Tei,
        ];
        let found = all
            .into_iter()
            .find_map(|dialect| Some((path.strip_suffix(dialect.path())?, dialect)));
        let (caller, dialect) = found?;
        let is_too_old = self.old_ollama && dialect == Dialect::Ollama;
        (!is_too_old).then(|| (caller.trim_start_matches('/').to_owned(), dialect))
    }
}

impl Dialect {
    /// The texts of a request.
    pub(super) fn texts(self, body: &Value) -> Vec<String> {
        let texts = match self {
            Self::Ollama | Self::OpenAi => &body["input"],
            Self::OldOllama => &body["prompt"],
            Self::Tei => &body["inputs"],
        };
        let text = |text: &Value| text.as_str().unwrap_or_default().to_owned();
        match texts {
            Value::Array(texts) => texts.iter().map(text).collect(),
            one => vec![text(one)],
        }
    }

    /// Vectors as it answers a request with them.
    pub(super) fn write(self, body: &Value, vectors: &[Value]) -> Value {
        let model = &body["model"];
        match self {
            Self::Ollama => json!({ "model": model, "embeddings": vectors }),
            Self::OldOllama => json!({ "embedding": vectors.first() }),
            Self::Tei => json!(vectors),
            Self::OpenAi => {
                let in_base64 = body["encoding_format"] == "base64";
                let entries = vectors.iter().enumerate().map(|(index, vector)| {
                    let packed = in_base64.then(|| packed(vector)).flatten();
                    let embedding = packed.unwrap_or_else(|| vector.clone());
                    json!({ "object": "embedding", "index": index, "embedding": embedding })
                });
                let data: Vec<Value> = entries.collect();
                // A character is a token, as in its limits.
                let texts = self.texts(body);
                let tokens: usize = texts.iter().map(|text| text.chars().count()).sum();
                let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
                json!({ "object": "list", "model": model, "data": data, "usage": usage })
            }
        }
    }
}

/// One with a null in it cannot be packed.
fn packed(vector: &Value) -> Option<Value> {
    let numbers = serde_json::from_value::<Vec<f32>>(vector.clone()).ok()?;
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    Some(json!(BASE64_STANDARD.encode(bytes)))
}

fn tei_info(shared: &Shared) -> Json<Value> {
    let script = shared.script();
    let model_id = script.model_id.clone();
    Json(json!({
        "model_id": model_id.unwrap_or_else(|| "tests/fake".to_owned()),
        "model_dtype": "float32",
        "max_concurrent_requests": 512,
        "max_input_length": script.limits.chars_per_text.unwrap_or(512),
        "max_batch_tokens": script.limits.chars_per_call.unwrap_or(16_384),
        "max_batch_requests": null,
        "max_client_batch_size": script.limits.texts_per_call.unwrap_or(32),
        "auto_truncate": false,
    }))
}

fn refusal(status: StatusCode, body: &Value) -> Response {
    (status, Json(body)).into_response()
}

impl Dialect {
    /// Where it takes texts.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Ollama => "/api/embed",
            Self::OldOllama => "/api/embeddings",
            Self::OpenAi => "/v1/embeddings",
            Self::Tei => "/embed",
        }
    }

    /// How this server refuses a call that asks too much.
    pub(super) fn refuse(self, excess: Excess) -> Response {
        let openai = |message: String, code: Option<&str>| {
            let error = json!({
                "message": message, "type": "invalid_request_error", "param": "input", "code": code,
            });
            refusal(StatusCode::BAD_REQUEST, &json!({ "error": error }))
        };
        let tei = |message: String| {
            let body = json!({ "error": message, "error_type": "Validation" });
            refusal(StatusCode::PAYLOAD_TOO_LARGE, &body)
        };
        match (self, excess) {
            (Self::Ollama, Excess::Text(..)) => {
                let body = json!({ "error": "the input length exceeds the context length" });
                refusal(StatusCode::BAD_REQUEST, &body)
            }
            (Self::OldOllama, Excess::Text(..)) => {
                let body = json!({ "error": "the input length exceeds the context length" });
                refusal(StatusCode::INTERNAL_SERVER_ERROR, &body)
            }
            // It takes any number; a proxy before it may not.
            (Self::Ollama | Self::OldOllama, _) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
            (Self::OpenAi, Excess::Text(asked, limit)) => openai(
                format!(
                    "This model's maximum context length is {limit} tokens, however you requested \
                     {asked} tokens ({asked} in your prompt; 0 for the completion). Please reduce \
                     your prompt; or completion length."
                ),
                None,
            ),
            (Self::OpenAi, Excess::Texts(asked, limit)) => openai(
                format!(
                    "Invalid 'input': array too long. Expected an array with maximum length \
                     {limit}, but got an array with length {asked} instead."
                ),
                Some("array_above_max_length"),
            ),
            (Self::OpenAi, Excess::Together(asked, limit)) => openai(
                format!("Requested {asked} tokens, max {limit} tokens per request"),
                Some("max_tokens_per_request"),
            ),
            (Self::Tei, Excess::Text(asked, limit)) => tei(format!(
                "Input validation error: `inputs` must have less than {limit} tokens. Given: {asked}"
            )),
            (Self::Tei, Excess::Texts(asked, limit)) => tei(format!(
                "batch size {asked} > maximum allowed batch size {limit}"
            )),
            // Its limit of a request's bytes.
            (Self::Tei, Excess::Together(..)) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "Failed to buffer the request body: length limit exceeded",
            )
                .into_response(),
        }
    }

    /// How this server says that it has too much to do.
    pub(super) fn overloaded(self) -> (StatusCode, String) {
        let body = match self {
            Self::Ollama | Self::OldOllama => {
                let error = "server busy, please try again.  maximum pending requests exceeded";
                return (
                    StatusCode::SERVICE_UNAVAILABLE,
                    json!({ "error": error }).to_string(),
                );
            }
            Self::OpenAi => json!({ "error": {
                "message": "Rate limit reached for requests",
                "type": "requests", "code": "rate_limit_exceeded",
            } }),
            Self::Tei => json!({ "error": "Model is overloaded", "error_type": "Overloaded" }),
        };
        (StatusCode::TOO_MANY_REQUESTS, body.to_string())
    }
}
