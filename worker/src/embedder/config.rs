//! Which embedder to use, from flags or the environment.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use reqwest::Url;
use reqwest::header::HeaderValue;

/// The settings that choose and reach an embedder.
#[derive(Debug, Clone, clap::Args)]
pub struct EmbedderConfig {
    /// What turns texts into vectors.
    #[arg(long, env = "WEIR_EMBEDDER", value_enum, default_value_t = EmbedderKind::Ollama)]
    pub embedder: EmbedderKind,

    /// Address of the embedding server [default for ollama: <http://127.0.0.1:11434>].
    #[arg(long, env = "WEIR_EMBEDDER_URL", value_name = "URL")]
    pub embedder_url: Option<Url>,

    /// File that holds the API key of an openai server. Read at start.
    #[arg(long, env = "WEIR_EMBEDDER_API_KEY_FILE", value_name = "FILE")]
    pub embedder_api_key_file: Option<PathBuf>,

    /// Folder of the local model, as sentence-transformers writes it:
    /// config.json, tokenizer.json, model.safetensors.
    #[arg(long, env = "WEIR_LOCAL_MODEL_DIR", value_name = "DIR")]
    pub local_model_dir: Option<PathBuf>,

    /// Longest time one call of the embedder may take.
    #[arg(long, env = "WEIR_EMBED_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = parse_timeout)]
    pub embed_timeout: Duration,
}

/// The embedders there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EmbedderKind {
    /// An Ollama server.
    Ollama,
    /// A server with OpenAI's embeddings API.
    Openai,
    /// A BERT model in this process.
    Local,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if timeout.is_zero() {
        Err("must be more than zero".to_owned())
    } else {
        Ok(timeout)
    }
}

impl EmbedderConfig {
    /// Refuses settings that contradict each other.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let local = self.embedder == EmbedderKind::Local;
        ensure!(
            !(local && self.embedder_url.is_some()),
            "--embedder-url (WEIR_EMBEDDER_URL) is set, but the local embedder calls no server: unset it"
        );
        ensure!(
            !local || self.local_model_dir.is_some(),
            "the local embedder needs --local-model-dir (WEIR_LOCAL_MODEL_DIR), the folder of its model"
        );
        ensure!(
            self.embedder != EmbedderKind::Openai || self.embedder_url.is_some(),
            "the openai embedder needs --embedder-url (WEIR_EMBEDDER_URL), such as https://api.openai.com"
        );
        ensure!(
            self.embedder == EmbedderKind::Openai || self.embedder_api_key_file.is_none(),
            "--embedder-api-key-file (WEIR_EMBEDDER_API_KEY_FILE) is for the openai embedder only: unset it"
        );
        Ok(())
    }

    /// The address of an endpoint of the server. A `/v1` at the end of the
    /// configured address is taken as part of the endpoint's path, since many
    /// write it there.
    pub(super) fn endpoint(&self, default: Option<&str>, path: &str) -> anyhow::Result<Url> {
        const SETTING: &str = "--embedder-url (WEIR_EMBEDDER_URL)";
        let mut url = match (&self.embedder_url, default) {
            (Some(url), _) => url.clone(),
            (None, Some(default)) => Url::parse(default)?,
            (None, None) => bail!("{SETTING} is not set"),
        };
        ensure!(
            matches!(url.scheme(), "http" | "https") && url.has_host(),
            "{SETTING} must begin with http:// or https:// and name a host"
        );
        ensure!(
            url.username().is_empty() && url.password().is_none(),
            "{SETTING} must not hold a user or password; an API key goes into --embedder-api-key-file"
        );
        ensure!(
            url.query().is_none() && url.fragment().is_none(),
            "{SETTING} must not have a query or a fragment"
        );
        let base = url.path().trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        let path = format!("{base}{path}");
        url.set_path(&path);
        Ok(url)
    }

    /// The value of the authorization header, where a key is configured. Its
    /// debug output does not show the key.
    pub(super) fn authorization(&self) -> anyhow::Result<Option<HeaderValue>> {
        const SETTING: &str = "--embedder-api-key-file (WEIR_EMBEDDER_API_KEY_FILE)";
        let Some(path) = &self.embedder_api_key_file else {
            return Ok(None);
        };
        let key = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {} of {SETTING}", path.display()))?;
        let key = key.trim();
        ensure!(!key.is_empty(), "{} of {SETTING} is empty", path.display());
        let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| {
            anyhow::anyhow!(
                "{} of {SETTING} must hold one line of visible ASCII",
                path.display()
            )
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}
