//! The routes of each server, and its words for what it refuses.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, request::Parts},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Shared,
    answer::{Asked, answer},
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
    let mut router = Router::new();
    // The second for callers that a test tells apart.
    for before in ["", "/{caller}"] {
        let at = |path: &str| format!("{before}{path}");
        router = router
            .route(&at(Dialect::Ollama.path()), post(ollama))
            .route(&at(Dialect::OldOllama.path()), post(old_ollama))
            .route(&at(Dialect::OpenAi.path()), post(openai))
            .route(&at(Dialect::Tei.path()), post(tei))
            .route(&at("/info"), get(tei_info));
    }
    router.layer(DefaultBodyLimit::disable()).with_state(shared)
}

#[derive(Deserialize)]
struct Request {
    model: String,
    input: Input,
    encoding_format: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

impl From<Input> for Vec<String> {
    fn from(input: Input) -> Self {
        match input {
            Input::One(text) => vec![text],
            Input::Many(texts) => texts,
        }
    }
}

#[derive(Deserialize)]
struct OldRequest {
    model: String,
    prompt: String,
}

#[derive(Deserialize)]
struct TeiRequest {
    inputs: Input,
}

async fn ollama(
    State(shared): State<Arc<Shared>>,
    parts: Parts,
    Json(request): Json<Request>,
) -> Response {
    if shared.script().old_ollama {
        return (StatusCode::NOT_FOUND, "404 page not found").into_response();
    }
    let asked = Asked::new(Dialect::Ollama, &parts, request.model, request.input.into());
    answer(
        &shared,
        &asked,
        |vectors| json!({ "model": asked.model, "embeddings": vectors }),
    )
    .await
}

async fn old_ollama(
    State(shared): State<Arc<Shared>>,
    parts: Parts,
    Json(request): Json<OldRequest>,
) -> Response {
    let asked = Asked::new(
        Dialect::OldOllama,
        &parts,
        request.model,
        vec![request.prompt],
    );
    answer(
        &shared,
        &asked,
        |vectors| json!({ "embedding": vectors.first() }),
    )
    .await
}

async fn openai(
    State(shared): State<Arc<Shared>>,
    parts: Parts,
    Json(request): Json<Request>,
) -> Response {
    let in_base64 = request.encoding_format.as_deref() == Some("base64");
    if in_base64 && shared.script().no_base64 {
        let message = "Unsupported value for 'encoding_format'";
        let error = json!({ "message": message, "type": "invalid_request_error" });
        return refusal(StatusCode::BAD_REQUEST, &json!({ "error": error }));
    }
    let asked = Asked::new(Dialect::OpenAi, &parts, request.model, request.input.into());
    let embedding = |vector: &Value| {
        let numbers = serde_json::from_value::<Vec<f32>>(vector.clone());
        match numbers {
            Ok(numbers) if in_base64 => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(BASE64_STANDARD.encode(bytes))
            }
            // One with a null in it cannot be packed.
            _ => vector.clone(),
        }
    };
    answer(&shared, &asked, |vectors| {
        let data: Vec<Value> = vectors
            .iter()
            .enumerate()
            .map(|(index, vector)| {
                json!({ "object": "embedding", "index": index, "embedding": embedding(vector) })
            })
            .collect();
        json!({ "object": "list", "model": asked.model, "data": data })
    })
    .await
}

async fn tei(
    State(shared): State<Arc<Shared>>,
    parts: Parts,
    Json(request): Json<TeiRequest>,
) -> Response {
    let asked = Asked::new(Dialect::Tei, &parts, String::new(), request.inputs.into());
    answer(&shared, &asked, |vectors| json!(vectors)).await
}

async fn tei_info(State(shared): State<Arc<Shared>>) -> Json<Value> {
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
