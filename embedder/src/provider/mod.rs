//! The embedders there are, each behind the checks that make its answers usable.

mod checked;
mod culprit;
mod http;
mod key;
#[cfg(feature = "local-model")]
mod local;
mod ollama;
mod openai;
mod refusal;
#[cfg(test)]
mod rude_server;
mod tei;
mod vector;

use std::sync::Arc;

use anyhow::Context as _;

use self::checked::Checked;
use crate::{Embedder, EmbedderConfig, EmbedderKind};

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
