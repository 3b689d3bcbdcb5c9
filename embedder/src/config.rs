//! How a model is embedded with, from flags or the environment.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use weir_proto::{limits::MAX_DIMENSION, secret::UrlParser};

use crate::profile::{
    Address, EmbedderKind, ModelsFile, Partial, Profile,
    value::{self, MAX_BATCH_SIZE, MAX_CONCURRENCY},
};

/// The settings that choose, reach and spare an embedder. Headers, fields of the
/// body and prompts are for the file of models alone.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct EmbedderConfig {
    /// What turns texts into vectors [default: ollama].
    #[arg(long, env = "WEIR_EMBEDDER", value_enum)]
    pub embedder: Option<EmbedderKind>,

    /// Address of the embedding server [default for ollama: <http://127.0.0.1:11434>].
    #[arg(long, env = "WEIR_EMBEDDER_URL", value_name = "URL", hide_env_values = true, value_parser = UrlParser(str::parse::<Address>))]
    pub embedder_url: Option<Address>,

    /// File that holds the API key of the embedding server. Read at start, and
    /// again when it changes or the server refuses the key.
    #[arg(long, env = "WEIR_EMBEDDER_API_KEY_FILE", value_name = "FILE")]
    pub embedder_api_key_file: Option<PathBuf>,

    /// Header that carries that key, such as api-key; with Bearer before the key
    /// in authorization alone [default: authorization].
    #[arg(long, env = "WEIR_EMBEDDER_API_KEY_HEADER", value_name = "NAME", value_parser = value::header_name)]
    pub embedder_api_key_header: Option<String>,

    /// Send that key to another machine without TLS, for whoever is on the way to
    /// read [default: false].
    #[arg(long, env = "WEIR_INSECURE_EMBEDDER_API_KEY", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure_embedder_api_key: Option<bool>,

    /// Authorities of the embedding server's certificate, in PEM, where they are
    /// not among those of the system.
    #[arg(long, env = "WEIR_EMBEDDER_CA_FILE", value_name = "FILE")]
    pub embedder_ca_file: Option<PathBuf>,

    /// Folder of the local model, as sentence-transformers writes it:
    /// config.json, tokenizer.json, model.safetensors.
    #[arg(long, env = "WEIR_LOCAL_MODEL_DIR", value_name = "DIR")]
    pub local_model_dir: Option<PathBuf>,

    /// Dimension to ask an openai server for, of a model that has several; by
    /// default the model's own.
    #[arg(long, env = "WEIR_DIMENSIONS", value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=MAX_DIMENSION as i64))]
    pub dimensions: Option<u16>,

    /// Longest time one call of the embedder may take. A tenth of it may pass
    /// between two parts of an answer [default: 5m].
    #[arg(long, env = "WEIR_EMBED_TIMEOUT", value_name = "DURATION", value_parser = value::timeout)]
    pub embed_timeout: Option<Duration>,

    /// Most chunks in one call to the embedder [default: 32, or what the API of a
    /// well-known model takes].
    #[arg(long, env = "WEIR_BATCH_SIZE", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=MAX_BATCH_SIZE))]
    pub batch_size: Option<u32>,

    /// Most estimated tokens in one call to the embedder; a token is taken for
    /// four bytes [default: 16384].
    #[arg(long, env = "WEIR_BATCH_TOKENS", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_tokens: Option<u32>,

    /// Most calls to the embedder at the same time. How many there are is
    /// learned from how it answers [default: 4].
    #[arg(long, env = "WEIR_EMBEDDER_CONCURRENCY", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=MAX_CONCURRENCY))]
    pub embedder_concurrency: Option<u32>,

    /// Quota of calls to the embedder in a minute; none by default. Each worker
    /// keeps to it by itself.
    #[arg(long, env = "WEIR_REQUESTS_PER_MINUTE", value_name = "NUMBER")]
    pub requests_per_minute: Option<NonZeroU32>,

    /// Quota of estimated tokens sent to the embedder in a minute; none by
    /// default. Each worker keeps to it by itself.
    #[arg(long, env = "WEIR_TOKENS_PER_MINUTE", value_name = "NUMBER")]
    pub tokens_per_minute: Option<NonZeroU32>,
}

impl EmbedderConfig {
    /// Returns the profile of a model that is reached as these settings say,
    /// over the built-in profile of its name.
    pub fn profile(&self, model: &str) -> Profile {
        self.layer().resolve(model)
    }

    /// Returns the profile of a model: that of its table, where a file is given,
    /// over these settings. Fails, naming the setting, when the file cannot be
    /// used or has no such table.
    pub fn profile_in(&self, file: Option<&Path>, model: &str) -> anyhow::Result<Profile> {
        match file {
            None => Ok(self.profile(model)),
            Some(path) => ModelsFile::read(path)?.profile(model, self.layer()),
        }
    }

    /// Returns the profiles of these models in the same way; of all models of
    /// the file where none is named.
    pub fn profiles(&self, file: Option<&Path>, models: &[String]) -> anyhow::Result<Vec<Profile>> {
        let Some(path) = file else {
            return Ok(models.iter().map(|model| self.profile(model)).collect());
        };
        let file = ModelsFile::read(path)?;
        let all = file.names();
        let models = if models.is_empty() { &all } else { models };
        let profiles = models.iter().map(|model| file.profile(model, self.layer()));
        profiles.collect()
    }

    fn layer(&self) -> Partial {
        Partial {
            provider: self.embedder,
            url: self.embedder_url.clone(),
            key_file: self.embedder_api_key_file.clone(),
            key_header: self.embedder_api_key_header.clone(),
            insecure_key: self.insecure_embedder_api_key,
            ca_file: self.embedder_ca_file.clone(),
            model_dir: self.local_model_dir.clone(),
            dimension: self.dimensions,
            send_dimension: self.dimensions.map(|_| true),
            timeout: self.embed_timeout,
            batch_size: self.batch_size,
            batch_tokens: self.batch_tokens,
            concurrency: self.embedder_concurrency,
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            ..Partial::default()
        }
    }
}
