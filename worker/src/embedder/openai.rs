//! Servers with OpenAI's embeddings API: `POST /v1/embeddings`.
//! <https://platform.openai.com/docs/api-reference/embeddings/create>

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::http::Server;
use super::{EmbedError, Embedder, EmbedderConfig, check_vectors};

/// A model on a server with OpenAI's API.
pub(super) struct OpenAi {
    server: Server,
    model: String,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    input: &'a [&'a str],
    encoding_format: &'static str,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    index: usize,
    embedding: Vec<f32>,
}

impl OpenAi {
    pub(super) fn new(config: &EmbedderConfig, model: &str) -> anyhow::Result<Self> {
        let endpoint = config.endpoint(None, "/v1/embeddings")?;
        let hint = format!("check that it serves the model {model:?}, and --embedder-url");
        let authorization = config.authorization()?;
        let server = Server::new(endpoint, authorization, config.embed_timeout, hint)?;
        Ok(Self {
            server,
            model: model.to_owned(),
        })
    }
}

#[async_trait]
impl Embedder for OpenAi {
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let request = Request {
            model: &self.model,
            input: texts,
            encoding_format: "float",
        };
        let Answer { mut data } = self.server.post(&request, texts).await?;
        data.sort_by_key(|entry| entry.index);
        if !data.iter().map(|entry| entry.index).eq(0..data.len()) {
            return Err(self
                .server
                .transient("numbered its vectors twice or with gaps"));
        }
        let vectors: Vec<_> = data.into_iter().map(|entry| entry.embedding).collect();
        check_vectors(&vectors, texts.len()).map_err(|what| self.server.transient(what))?;
        Ok(vectors)
    }
}
