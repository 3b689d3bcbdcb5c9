//! Ollama: `POST /api/embed`.
//! <https://docs.ollama.com/api/embed>

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::http::Server;
use super::{EmbedError, Embedder, EmbedderConfig, check_vectors};

const DEFAULT_URL: &str = "http://127.0.0.1:11434";

/// A model on an Ollama server.
pub(super) struct Ollama {
    server: Server,
    model: String,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [&'a str],
    /// Cut what is longer than the model's context rather than refuse it.
    truncate: bool,
}

#[derive(Deserialize)]
struct Answer {
    embeddings: Vec<Vec<f32>>,
}

impl Ollama {
    pub(super) fn new(config: &EmbedderConfig, model: &str) -> anyhow::Result<Self> {
        let endpoint = config.endpoint(Some(DEFAULT_URL), "/api/embed")?;
        let hint = format!("run `ollama pull {model}` there, and check --embedder-url");
        let server = Server::new(endpoint, None, config.embed_timeout, hint)?;
        Ok(Self {
            server,
            model: model.to_owned(),
        })
    }
}

#[async_trait]
impl Embedder for Ollama {
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let request = Request {
            model: &self.model,
            input: texts,
            truncate: true,
        };
        let Answer { embeddings } = self.server.post(&request, texts).await?;
        check_vectors(&embeddings, texts.len()).map_err(|what| self.server.transient(what))?;
        Ok(embeddings)
    }
}
