//! Which embedder to use, from flags or the environment.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::ValueEnum;
use reqwest::Url;
use weir_proto::{limits::MAX_DIMENSION, secret::is_kept_on_the_way};

/// The settings that choose and reach an embedder.
#[derive(Debug, Clone, clap::Args)]
pub struct EmbedderConfig {
    /// What turns texts into vectors.
    #[arg(long, env = "WEIR_EMBEDDER", value_enum, default_value_t = EmbedderKind::Ollama)]
    pub embedder: EmbedderKind,

    /// Address of the embedding server [default for ollama: <http://127.0.0.1:11434>].
    #[arg(long, env = "WEIR_EMBEDDER_URL", value_name = "URL")]
    pub embedder_url: Option<Url>,

    /// File that holds the API key of an openai or tei server. Read at start, and
    /// again when it changes or the server refuses the key.
    #[arg(long, env = "WEIR_EMBEDDER_API_KEY_FILE", value_name = "FILE")]
    pub embedder_api_key_file: Option<PathBuf>,

    /// Send that key to another machine without TLS, for whoever is on the way to
    /// read.
    #[arg(long, env = "WEIR_INSECURE_EMBEDDER_API_KEY", default_value = "false", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure_embedder_api_key: bool,

    /// Folder of the local model, as sentence-transformers writes it:
    /// config.json, tokenizer.json, model.safetensors.
    #[arg(long, env = "WEIR_LOCAL_MODEL_DIR", value_name = "DIR")]
    pub local_model_dir: Option<PathBuf>,

    /// Dimension to ask an openai server for, of a model that has several; by
    /// default the model's own.
    #[arg(long, env = "WEIR_DIMENSIONS", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=MAX_DIMENSION as i64))]
    pub dimensions: Option<u32>,

    /// Longest time one call of the embedder may take. A tenth of it may pass
    /// between two parts of an answer.
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
    /// A Text Embeddings Inference server.
    Tei,
    /// A BERT model in this process.
    Local,
}

impl EmbedderKind {
    /// The word for it, as in the settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ollama => "ollama",
            Self::Openai => "openai",
            Self::Tei => "tei",
            Self::Local => "local",
        }
    }
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
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let local = self.embedder == EmbedderKind::Local;
        ensure!(
            !(local && self.embedder_url.is_some()),
            "--embedder-url (WEIR_EMBEDDER_URL) is set, but the local embedder calls no server: unset it"
        );
        ensure!(
            !local || self.local_model_dir.is_some(),
            "the local embedder needs --local-model-dir (WEIR_LOCAL_MODEL_DIR), the folder of its model"
        );
        let kind = self.embedder;
        ensure!(
            kind != EmbedderKind::Openai || self.embedder_url.is_some(),
            "the openai embedder needs --embedder-url (WEIR_EMBEDDER_URL), such as https://api.openai.com"
        );
        ensure!(
            kind != EmbedderKind::Tei || self.embedder_url.is_some(),
            "the tei embedder needs --embedder-url (WEIR_EMBEDDER_URL), such as http://127.0.0.1:8080"
        );
        ensure!(
            matches!(kind, EmbedderKind::Openai | EmbedderKind::Tei)
                || self.embedder_api_key_file.is_none(),
            "--embedder-api-key-file (WEIR_EMBEDDER_API_KEY_FILE) is for the openai and tei embedders only: unset it"
        );
        ensure!(
            kind == EmbedderKind::Openai || self.dimensions.is_none(),
            "--dimensions (WEIR_DIMENSIONS) is for the openai embedder only: unset it"
        );
        Ok(())
    }

    /// The address of the server, without the path of an endpoint. A `/v1` at
    /// its end is taken as part of the endpoint's path, since many write it
    /// there.
    pub(crate) fn base(&self, default: Option<&str>) -> anyhow::Result<Url> {
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
        ensure!(
            self.embedder_api_key_file.is_none()
                || self.insecure_embedder_api_key
                || is_kept_on_the_way(Some(url.scheme()), url.host_str()),
            "--embedder-api-key-file (WEIR_EMBEDDER_API_KEY_FILE): the key would go to {url} for all on the way to read: \
             use https://, or say --insecure-embedder-api-key (WEIR_INSECURE_EMBEDDER_API_KEY)"
        );
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix("/v1").unwrap_or(path).to_owned();
        url.set_path(&path);
        Ok(url)
    }
}
