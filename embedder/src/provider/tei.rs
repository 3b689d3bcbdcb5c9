//! Text Embeddings Inference: `POST /embed`, `GET /info`.
//! <https://huggingface.github.io/text-embeddings-inference>

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::{debug, warn};

use super::{
    address::addresses,
    http::{Failure, Habits, Server},
    remote::Remote,
    vector::Vector,
    ways::{Fault, Way, Ways},
};
use crate::{EmbedError, Limits, Profile, Role};

/// A Text Embeddings Inference server. It serves one model, and is not told
/// which.
pub(super) struct Tei {
    server: Server,
    ways: Ways<()>,
    model: String,
    /// Whether it was said that the server names its model otherwise.
    warned: AtomicBool,
}

#[derive(Serialize)]
struct Request<'a> {
    inputs: &'a [&'a str],
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

#[derive(Deserialize)]
struct Info {
    model_id: Option<String>,
    max_concurrent_requests: Option<usize>,
    max_input_length: Option<usize>,
    max_batch_tokens: Option<usize>,
    max_client_batch_size: Option<usize>,
}

impl Tei {
    pub(super) fn new(profile: &Profile, role: Role) -> anyhow::Result<Self> {
        let habits = Habits {
            // A server that cuts what is longer than the model takes does not
            // say so: who shortens a text must know that it did.
            fields: json!({"normalize": true, "truncate": false}),
            own: &["inputs"],
            missing_hint: "check --embedder and --embedder-url".to_owned(),
        };
        let addresses = addresses(profile)?;
        Ok(Self {
            server: Server::new(profile, role, &addresses, habits)?,
            ways: Ways::new(addresses, |_| vec![()]),
            model: profile.served_name().to_owned(),
            warned: AtomicBool::new(false),
        })
    }

    /// Where it tells of itself, beside the address for texts.
    fn info(&self) -> Option<Url> {
        let mut url = self.ways.taken().url.clone();
        let before = url.path().trim_end_matches('/').strip_suffix("/embed")?;
        let path = format!("{before}/info");
        url.set_path(&path);
        Some(url)
    }
}

#[async_trait]
impl Remote for Tei {
    type Form = ();

    fn server(&self) -> &Server {
        &self.server
    }

    fn ways(&self) -> &Ways<()> {
        &self.ways
    }

    async fn ask(&self, way: &Way<()>, texts: &[&str]) -> Result<Vec<Vec<f32>>, Failure> {
        let request = Request {
            inputs: texts,
            fields: self.server.fields(),
        };
        let vectors: Vec<Vector> = self.server.post(&way.url, &request, texts.len()).await?;
        Ok(vectors.into_iter().map(|vector| vector.0).collect())
    }

    async fn limits(&self) -> Result<Limits, EmbedError> {
        let Some(url) = self.info() else {
            return Ok(Limits::default());
        };
        let info: Info = match self.server.get(&url).await {
            Ok(info) => info,
            Err(failure @ Failure::Other(Fault::Server, _)) => {
                return Err(self.server.sort(failure, &[]));
            }
            // A gateway may let nothing but /embed through; whether the server
            // embeds, texts will tell.
            Err(_) => {
                debug!(
                    server = self.server.name(),
                    "The server has no /info; its limits are unknown."
                );
                return Ok(Limits::default());
            }
        };
        let served = info.model_id.unwrap_or_default();
        if !served.is_empty()
            && !is_same_model(&served, &self.model)
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            let served = self.server.presentable(&served);
            warn!(
                served,
                model = self.model,
                "The embedding server names its model otherwise than WEIR_MODEL; check that it is the same."
            );
        }
        let some = |limit: Option<usize>| limit.filter(|limit| *limit > 0);
        Ok(Limits {
            batch_size: some(info.max_client_batch_size),
            batch_tokens: some(info.max_batch_tokens),
            text_tokens: some(info.max_input_length),
            concurrent_calls: some(info.max_concurrent_requests),
        })
    }
}

/// Compares what follows the owner or the folder, without regard to case.
fn is_same_model(one: &str, other: &str) -> bool {
    fn last(name: &str) -> &str {
        name.trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or_default()
    }
    last(one).eq_ignore_ascii_case(last(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_with_and_without_its_owner() {
        assert!(is_same_model("BAAI/bge-small-en", "bge-small-en"));
        assert!(is_same_model("/data/all-MiniLM-L6-v2/", "all-minilm-l6-v2"));
        assert!(!is_same_model("BAAI/bge-small-en", "bge-large-en"));
    }
}
