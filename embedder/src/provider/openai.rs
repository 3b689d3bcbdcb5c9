//! Servers with OpenAI's embeddings API: `POST /v1/embeddings`.
//! <https://platform.openai.com/docs/api-reference/embeddings/create>

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::checked::Provider;
use super::http::{Failure, Refused, Server};
use super::vector::Vector;
use crate::{EmbedError, Profile, Role};

/// A model on a server with OpenAI's API.
pub(super) struct OpenAi {
    server: Server,
    model: String,
    dimensions: Option<u32>,
    /// Whether the server refused to pack its vectors.
    unpacked: AtomicBool,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [&'a str],
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<u32>,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    index: Option<usize>,
    embedding: Vector,
}

impl OpenAi {
    pub(super) fn new(profile: &Profile, role: Role) -> anyhow::Result<Self> {
        let model = profile.served_name();
        let hint = format!("check that it serves the model {model:?}, and --embedder-url");
        Ok(Self {
            server: Server::new(profile, role, None, hint)?,
            model: profile.served_name().to_owned(),
            dimensions: profile
                .dimension
                .filter(|_| profile.send_dimension)
                .map(u32::from),
            unpacked: AtomicBool::new(false),
        })
    }

    async fn ask(&self, texts: &[&str], encoding_format: &'static str) -> Result<Answer, Failure> {
        let request = Request {
            model: &self.model,
            input: texts,
            encoding_format,
            dimensions: self.dimensions,
        };
        self.server
            .try_post("/v1/embeddings", &request, texts.len())
            .await
    }

    /// The vectors in the order of the texts.
    fn in_order(&self, mut data: Vec<Entry>) -> Result<Vec<Vec<f32>>, EmbedError> {
        // Some servers number nothing, and keep the order.
        if data.iter().any(|entry| entry.index.is_some()) {
            data.sort_by_key(|entry| entry.index);
            let numbers = data.iter().map(|entry| entry.index);
            if !numbers.eq((0..data.len()).map(Some)) {
                return Err(self
                    .server
                    .transient("numbered its vectors twice or with gaps"));
            }
        }
        Ok(data.into_iter().map(|entry| entry.embedding.0).collect())
    }
}

#[async_trait]
impl Provider for OpenAi {
    fn name(&self) -> &str {
        self.server.name()
    }

    async fn call(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let packed = !self.unpacked.load(Ordering::Relaxed);
        // A third of the bytes, and no digits to read.
        let mut answer = self
            .ask(texts, if packed { "base64" } else { "float" })
            .await;
        if let Err(Failure::Refused(refused)) = &answer
            && packed
            && refuses_base64(refused)
        {
            info!(
                server = self.name(),
                "The server does not pack vectors; asking for numbers."
            );
            self.unpacked.store(true, Ordering::Relaxed);
            answer = self.ask(texts, "float").await;
        }
        let Answer { data } = answer.map_err(|failure| self.server.sort(failure, texts))?;
        let vectors = self.in_order(data)?;
        if let Some(dimensions) = self.dimensions
            && let Some(other) = vectors
                .iter()
                .find(|vector| !vector.is_empty() && vector.len() != dimensions as usize)
        {
            return Err(EmbedError::Embedder {
                reason: format!(
                    "{} returned vectors of {} numbers, though --dimensions (WEIR_DIMENSIONS) asks \
                     for {dimensions}: the model may have one dimension only",
                    self.name(),
                    other.len()
                ),
                retry_after: None,
            });
        }
        Ok(vectors)
    }
}

/// Whether it is the encoding that the server refuses.
fn refuses_base64(refused: &Refused) -> bool {
    let body = String::from_utf8_lossy(&refused.body).to_lowercase();
    matches!(refused.status.as_u16(), 400 | 422 | 500 | 501)
        && (body.contains("encoding_format") || body.contains("base64"))
}
