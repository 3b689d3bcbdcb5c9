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
use crate::{Embedder, EmbedderKind, Profile, Role};

/// Makes the embedder of a model for texts of one role. Reads the key file or loads the
/// local model, but does not call a server: [`Embedder::probe`] does.
///
/// Fails, naming the setting, when the configuration contradicts itself or what
/// it points at cannot be used.
pub async fn build(profile: &Profile, role: Role) -> anyhow::Result<Arc<dyn Embedder>> {
    profile.check()?;
    Ok(match profile.provider {
        EmbedderKind::Ollama => Arc::new(Checked::new(ollama::Ollama::new(profile, role)?)),
        EmbedderKind::Openai => Arc::new(Checked::new(openai::OpenAi::new(profile, role)?)),
        EmbedderKind::Tei => Arc::new(Checked::new(tei::Tei::new(profile, role)?)),
        EmbedderKind::Local => open_local(profile)
            .await
            .context("the local model cannot be used")?,
    })
}

#[cfg(feature = "local-model")]
async fn open_local(profile: &Profile) -> anyhow::Result<Arc<dyn Embedder>> {
    Ok(Arc::new(Checked::new(local::Local::open(profile).await?)))
}

#[cfg(not(feature = "local-model"))]
fn open_local(_profile: &Profile) -> std::future::Ready<anyhow::Result<Arc<dyn Embedder>>> {
    let reason = "this worker was built without the cargo feature local-model";
    std::future::ready(Err(anyhow::anyhow!(reason)))
}

#[cfg(test)]
mod tests;
