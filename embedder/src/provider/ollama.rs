//! Ollama: `POST /api/embed`, or `POST /api/embeddings` where a server is too
//! old for it.
//! <https://docs.ollama.com/api/embed>

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::info;

use super::checked::Provider;
use super::http::{Failure, Refused, Server};
use super::vector::Vector;
use crate::{EmbedError, Limits, Profile, Role};

const DEFAULT_URL: &str = "http://127.0.0.1:11434";

/// A model on an Ollama server.
pub(super) struct Ollama {
    server: Server,
    model: String,
    /// Whether the server has the old route only.
    old: AtomicBool,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [&'a str],
    /// Whether the server cuts what is longer than the model's context. It
    /// would not say so: who shortens a text must know that it did.
    truncate: bool,
}

#[derive(Deserialize)]
struct Answer {
    embeddings: Vec<Vector>,
}

#[derive(Serialize)]
struct OldRequest<'a> {
    model: &'a str,
    prompt: &'a str,
}

#[derive(Deserialize)]
struct OldAnswer {
    embedding: Vector,
}

impl Ollama {
    pub(super) fn new(profile: &Profile, role: Role) -> anyhow::Result<Self> {
        let model = profile.served_name();
        let hint = format!("run `ollama pull {model}` there, and check --embedder-url");
        Ok(Self {
            server: Server::new(profile, role, Some(DEFAULT_URL), hint)?,
            model: profile.served_name().to_owned(),
            old: AtomicBool::new(false),
        })
    }

    /// One text a call, for that is all the old route takes.
    async fn one_by_one(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut vectors = Vec::with_capacity(texts.len());
        for text in texts {
            let request = OldRequest {
                model: &self.model,
                prompt: text,
            };
            let OldAnswer { embedding } = self
                .server
                .post("/api/embeddings", &request, &[text])
                .await?;
            vectors.push(unit(embedding.0));
        }
        Ok(vectors)
    }
}

#[async_trait]
impl Provider for Ollama {
    fn name(&self) -> &str {
        self.server.name()
    }

    async fn call(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if !self.old.load(Ordering::Relaxed) {
            let request = Request {
                model: &self.model,
                input: texts,
                truncate: false,
            };
            match self
                .server
                .try_post("/api/embed", &request, texts.len())
                .await
            {
                Ok(Answer { embeddings }) => {
                    return Ok(embeddings.into_iter().map(|vector| vector.0).collect());
                }
                Err(Failure::Refused(refused)) if lacks_route(&refused) => {
                    info!(
                        server = self.name(),
                        "The server has no /api/embed; using /api/embeddings, one text a call."
                    );
                    self.old.store(true, Ordering::Relaxed);
                }
                Err(failure) => return Err(self.server.sort(failure, texts)),
            }
        }
        let vectors = timeout(self.server.timeout(), self.one_by_one(texts)).await;
        vectors.unwrap_or_else(|_| Err(self.server.too_slow()))
    }

    async fn limits(&self) -> Result<Limits, EmbedError> {
        self.old.store(false, Ordering::Relaxed);
        Ok(Limits::default())
    }
}

/// Whether it is the route that is missing. Where it is the model, the server
/// says so in JSON.
fn lacks_route(refused: &Refused) -> bool {
    let of_route = matches!(
        refused.status,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
    );
    let said = serde_json::from_slice::<serde_json::Value>(&refused.body);
    of_route && !said.is_ok_and(|said| said.get("error").is_some())
}

/// Scales a vector to length 1, as the new route does. One that cannot be
/// scaled stays as it is, for whoever checks it.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length.is_finite() && length > 0.0 {
        for number in &mut vector {
            *number /= length;
        }
    }
    vector
}
