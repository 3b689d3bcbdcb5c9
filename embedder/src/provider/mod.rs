//! The embedders there are, each behind the checks that make its answers usable.

mod address;
mod body;
mod checked;
mod client;
mod culprit;
mod http;
#[cfg(feature = "local-model")]
mod local;
mod ollama;
mod openai;
mod refusal;
mod remote;
#[cfg(test)]
mod rude_server;
mod secrets;
mod tei;
mod vector;
mod ways;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;

use self::checked::{Checked, Provider};
use crate::{EmbedError, Embedder, EmbedderKind, Profile, Role};

/// Makes the embedder of a model for texts of one role. Reads the files of its
/// secrets or loads the local model, but does not call a server:
/// [`Embedder::probe`] does, and finds out how the server is to be asked.
///
/// Fails, naming the setting, when the configuration contradicts itself or what
/// it points at cannot be used.
pub async fn build(profile: &Profile, role: Role) -> anyhow::Result<Arc<dyn Embedder>> {
    profile.check()?;
    Ok(match profile.provider {
        EmbedderKind::Ollama => checked(ollama::Ollama::new(profile, role)?, profile, role),
        EmbedderKind::Openai => checked(openai::OpenAi::new(profile, role)?, profile, role),
        EmbedderKind::Tei => checked(tei::Tei::new(profile, role)?, profile, role),
        EmbedderKind::Local => open_local(profile, role)
            .await
            .context("the local model cannot be used")?,
    })
}

fn checked(provider: impl Provider, profile: &Profile, role: Role) -> Arc<dyn Embedder> {
    Arc::new(Checked::new(provider, profile, role))
}

#[cfg(feature = "local-model")]
async fn open_local(profile: &Profile, role: Role) -> anyhow::Result<Arc<dyn Embedder>> {
    Ok(checked(local::Local::open(profile).await?, profile, role))
}

#[cfg(not(feature = "local-model"))]
fn open_local(
    _profile: &Profile,
    _role: Role,
) -> std::future::Ready<anyhow::Result<Arc<dyn Embedder>>> {
    let reason = "this worker was built without the cargo feature local-model";
    std::future::ready(Err(anyhow::anyhow!(reason)))
}

/// The error of a call to this embedder that took longer than it may.
fn too_slow(name: &str, limit: Duration) -> EmbedError {
    let limit = humantime::format_duration(limit);
    EmbedError::Timeout {
        reason: format!(
            "{name} took longer than {limit}; smaller batches or a longer --embed-timeout \
             (WEIR_EMBED_TIMEOUT) may help"
        ),
    }
}

#[cfg(test)]
mod tests;
