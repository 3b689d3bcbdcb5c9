//! The contract between the worker and whatever embeds: one call, one sorted
//! error.

mod checked;
mod config;
mod culprit;
mod http;
mod key;
#[cfg(feature = "local-model")]
mod local;
mod ollama;
mod openai;
mod redact;
mod refusal;
#[cfg(test)]
mod rude_server;
mod tei;
mod vector;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;

use self::checked::Checked;
pub use self::config::{EmbedderConfig, EmbedderKind};

/// Turns texts into vectors with one model.
#[async_trait]
pub trait Embedder: Send + Sync + 'static {
    /// Returns one vector for each text, in the order of the texts, all of the
    /// dimension that the last probe found, every number finite and not all of
    /// them zero.
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError>;

    /// Embeds one short text, and asks the server for its limits where it can
    /// tell them: shows at start that the embedder works, and after an outage
    /// that it works again.
    async fn probe(&self) -> Result<Probe, EmbedError>;
}

/// What a probe found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Numbers in each vector of the model.
    pub dimension: usize,
    /// What one call may hold.
    pub limits: Limits,
}

/// What the server says it takes; `None` where it says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Texts in one call.
    pub batch_size: Option<usize>,
    /// Tokens of all texts of one call together.
    pub batch_tokens: Option<usize>,
    /// Tokens of one text, with those that frame it.
    pub text_tokens: Option<usize>,
    /// Calls at the same time.
    pub concurrent_calls: Option<usize>,
}

/// Why a call failed, sorted by who is to blame, for that decides what happens
/// next.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EmbedError {
    /// A text is longer than the model takes; shortened it may pass. Where
    /// several were sent, the others may be fine.
    #[error("{reason}")]
    TooLong {
        /// What the embedder said, for a person.
        reason: String,
        /// The place of that text among those sent, where it was named.
        culprit: Option<usize>,
    },
    /// The texts together are more than the server takes in one call; fewer may
    /// pass.
    #[error("{reason}")]
    TooMany {
        /// What the embedder said, for a person.
        reason: String,
    },
    /// A text can never be embedded, however short. The same call will fail
    /// again; some of its texts may be fine alone.
    #[error("{reason}")]
    Input {
        /// What the embedder said, for a person.
        reason: String,
        /// The place of that text among those sent, where it was named.
        culprit: Option<usize>,
    },
    /// The embedder works and has too much to do, or a quota is used up: the
    /// same call may pass later.
    #[error("{reason}")]
    Overloaded {
        /// What the embedder said, for a person.
        reason: String,
        /// How long it asked to be left alone, where it said so.
        retry_after: Option<Duration>,
    },
    /// The embedder is at fault: unreachable, unauthorised, without the model.
    /// No job is to blame.
    #[error("{reason}")]
    Embedder {
        /// What the embedder said, for a person.
        reason: String,
        /// How long it asked to be left alone, where it said so.
        retry_after: Option<Duration>,
    },
    /// The call took longer than allowed; fewer texts may take less.
    #[error("{reason}")]
    Timeout {
        /// What happened, for a person.
        reason: String,
    },
    /// Anything else: a broken answer. Trying again may help; the job is
    /// charged.
    #[error("{reason}")]
    Transient {
        /// What happened, for a person.
        reason: String,
    },
}

impl EmbedError {
    /// The place of the text that is to blame among those sent, where the
    /// embedder named it. A hint: it may be wrong.
    pub fn culprit(&self) -> Option<usize> {
        match self {
            Self::TooLong { culprit, .. } | Self::Input { culprit, .. } => *culprit,
            _ => None,
        }
    }
}

/// Makes the configured embedder for one model. Reads the key file or loads the
/// local model, but does not call a server: [`Embedder::probe`] does.
///
/// Fails, naming the setting, when the configuration contradicts itself or what
/// it points at cannot be used.
pub async fn build(config: &EmbedderConfig, model: &str) -> anyhow::Result<Arc<dyn Embedder>> {
    config.check()?;
    Ok(match config.embedder {
        EmbedderKind::Ollama => Arc::new(Checked::new(ollama::Ollama::new(config, model)?)),
        EmbedderKind::Openai => Arc::new(Checked::new(openai::OpenAi::new(config, model)?)),
        EmbedderKind::Tei => Arc::new(Checked::new(tei::Tei::new(config, model)?)),
        EmbedderKind::Local => open_local(config)
            .await
            .context("the local model cannot be used")?,
    })
}

#[cfg(feature = "local-model")]
async fn open_local(config: &EmbedderConfig) -> anyhow::Result<Arc<dyn Embedder>> {
    Ok(Arc::new(Checked::new(local::Local::open(config).await?)))
}

#[cfg(not(feature = "local-model"))]
fn open_local(_config: &EmbedderConfig) -> std::future::Ready<anyhow::Result<Arc<dyn Embedder>>> {
    let reason = "this worker was built without the cargo feature local-model";
    std::future::ready(Err(anyhow::anyhow!(reason)))
}

#[cfg(test)]
mod tests;
