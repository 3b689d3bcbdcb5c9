//! Which embedder to use, from flags or the environment.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use reqwest::Url;
use weir_proto::limits::MAX_DIMENSION;

use crate::profile::{EmbedderKind, Encoding, Profile, RoleProfile};

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

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if timeout.is_zero() {
        Err("must be more than zero".to_owned())
    } else {
        Ok(timeout)
    }
}

impl EmbedderConfig {
    /// Returns the profile of a model that is reached as these settings say.
    pub fn profile(&self, model: &str) -> Profile {
        Profile {
            name: model.to_owned(),
            served_as: None,
            provider: self.embedder,
            url: self.embedder_url.clone(),
            key_file: self.embedder_api_key_file.clone(),
            key_header: "authorization".to_owned(),
            insecure_key: self.insecure_embedder_api_key,
            headers: BTreeMap::new(),
            body: serde_json::Map::new(),
            document: RoleProfile::default(),
            query: RoleProfile::default(),
            encoding: Encoding::Auto,
            ca_file: None,
            proxy: None,
            model_dir: self.local_model_dir.clone(),
            dimension: self.dimensions.and_then(|it| it.try_into().ok()),
            send_dimension: self.dimensions.is_some(),
            longest_input: None,
            batch_size: 32,
            batch_tokens: 16384,
            concurrency: 4,
            requests_per_minute: None,
            tokens_per_minute: None,
            timeout: self.embed_timeout,
        }
    }
}
