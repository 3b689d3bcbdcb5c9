//! The contract between the worker and whatever embeds: one call, one sorted
//! error.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

/// Turns texts into vectors with one model.
#[async_trait]
pub trait Embedder: Send + Sync + 'static {
    /// Returns one vector for each text, in the order of the texts, all of the
    /// same dimension and every number finite: implementations check what a
    /// server answers and return [`EmbedError::Transient`] where it breaks
    /// this.
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError>;

    /// Embeds one short text and returns the dimension of its vector: the
    /// embedder is up and has the model.
    async fn probe(&self) -> Result<usize, EmbedError> {
        let vectors = self.embed(&["probe"]).await?;
        Ok(vectors.first().map_or(0, Vec::len))
    }
}

/// Where and how to embed.
#[derive(Debug, Clone, clap::Args)]
pub struct EmbedderConfig {
    /// Longest that one call to the embedder may take.
    #[arg(long, env = "WEIR_EMBED_TIMEOUT", default_value = "5m", value_parser = humantime::parse_duration)]
    pub embed_timeout: Duration,
}

/// Builds the embedder of `model`.
#[expect(clippy::unused_async, reason = "the real one waits")]
pub async fn build(_config: &EmbedderConfig, _model: &str) -> anyhow::Result<Arc<dyn Embedder>> {
    anyhow::bail!("no embedder")
}

/// Why a call failed, sorted by who is to blame, for that decides what happens
/// next.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EmbedError {
    /// The texts are at fault: too long, or of a kind the model refuses. The
    /// same call will fail again; some of its texts may be fine alone.
    #[error("{reason}")]
    Input {
        /// What the embedder said, for a person.
        reason: String,
    },
    /// The embedder is at fault: unreachable, unauthorised, without the model,
    /// overloaded. No job is to blame.
    #[error("{reason}")]
    Embedder {
        /// What the embedder said, for a person.
        reason: String,
        /// How long it asked to be left alone, where it said so.
        retry_after: Option<Duration>,
    },
    /// Anything else: a timeout, a broken answer. Trying again may help; the
    /// job is charged.
    #[error("{reason}")]
    Transient {
        /// What happened, for a person.
        reason: String,
    },
}
