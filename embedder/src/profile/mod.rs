//! What is to be known of a model: how it is reached, what it wants around a
//! text and what it takes.

mod de;
mod file;
mod hidden;
mod known;
mod partial;
pub(crate) mod value;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::ensure;
use clap::ValueEnum;
use serde::Deserialize;

pub(crate) use self::partial::Partial;
pub use self::{
    file::ModelsFile,
    hidden::{Address, Fields, HeaderSource},
    value::model_name,
};

/// What is to be known of a model, every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// The name that sources and workers give it.
    pub name: String,
    /// Its name at the server, where that is another.
    pub served_as: Option<String>,
    /// What turns texts into vectors.
    pub provider: EmbedderKind,
    /// Address of the server. In full where its path ends in `/embeddings` or it
    /// has a query; else the path of the provider's API is appended. `None` is
    /// the provider's default, where it has one.
    pub url: Option<Address>,
    /// File that holds the API key. Read at start, and again when it changes or
    /// the server refuses the key.
    pub key_file: Option<PathBuf>,
    /// Header that carries the key: `authorization` with `Bearer` before the
    /// key, any other with the key alone.
    pub key_header: String,
    /// Whether the key may go to another machine without TLS.
    pub insecure_key: bool,
    /// Further headers of every request.
    pub headers: BTreeMap<String, HeaderSource>,
    /// Further fields of every request's body, merged into it, objects in
    /// depth.
    pub body: Fields,
    /// What differs for texts that are found.
    pub document: RoleProfile,
    /// What differs for texts that search.
    pub query: RoleProfile,
    /// How vectors are asked for, of servers with OpenAI's API.
    pub encoding: Encoding,
    /// Authorities of the server's certificate, in PEM, besides those of the
    /// system.
    pub ca_file: Option<PathBuf>,
    /// Proxy to the server, in place of that of the environment.
    pub proxy: Option<Address>,
    /// Folder of the local model.
    pub model_dir: Option<PathBuf>,
    /// Numbers in its vectors; vectors of any other are refused. `None` takes
    /// that of the first probe.
    pub dimension: Option<u16>,
    /// Whether the server, of OpenAI's API, is asked for that dimension.
    pub send_dimension: bool,
    /// Most tokens of a text, with those that frame it; `None` leaves it to the
    /// server or to experiments.
    pub longest_input: Option<u32>,
    /// Most texts in one call.
    pub batch_size: u32,
    /// Most estimated tokens in one call.
    pub batch_tokens: u32,
    /// Most calls at the same time.
    pub concurrency: u32,
    /// Calls in a minute; `None` is no quota.
    pub requests_per_minute: Option<std::num::NonZeroU32>,
    /// Estimated tokens in a minute; `None` is no quota.
    pub tokens_per_minute: Option<std::num::NonZeroU32>,
    /// Longest time one call may take. A tenth of it may pass between two parts
    /// of an answer.
    pub timeout: Duration,
}

/// The embedders there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// What a text is embedded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// To be found.
    Document,
    /// To find others.
    Query,
}

/// What a model wants for one of the roles.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoleProfile {
    /// What comes before a text. That of documents is put there by the
    /// coordinator, for it is part of the text's identity; that of queries by
    /// the embedder of [`Role::Query`].
    pub prompt: String,
    /// Further fields of a request's body, over those of both roles.
    pub body: Fields,
}

/// How vectors are asked for, of servers with OpenAI's API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// `base64`, `float` or no such field: whichever the server takes.
    #[default]
    Auto,
    /// Packed numbers in base64.
    Base64,
    /// Numbers in JSON.
    Float,
    /// Whatever the server sends: the field is left out.
    Omit,
}

/// Returns the prompt of documents that the built-in profile of a model has;
/// empty where it has none.
pub fn document_prompt(model: &str) -> String {
    Partial::default().resolve(model).document.prompt
}

impl Profile {
    /// Returns the name of the built-in profile below this one, where there is
    /// one for the model.
    pub fn built_in(&self) -> Option<&'static str> {
        let known = known::of(&self.name, self.served_as.as_deref());
        known.map(|known| known.name.as_str())
    }

    /// Returns the name of the model at its server.
    pub fn served_name(&self) -> &str {
        self.served_as.as_deref().unwrap_or(&self.name)
    }

    /// Returns what is wanted for this role.
    pub const fn role(&self, role: Role) -> &RoleProfile {
        match role {
            Role::Document => &self.document,
            Role::Query => &self.query,
        }
    }

    /// Refuses settings that contradict each other.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let local = self.provider == EmbedderKind::Local;
        ensure!(
            !(local && self.url.is_some()),
            "url (--embedder-url, WEIR_EMBEDDER_URL) is set, but the local embedder calls no server: unset it"
        );
        ensure!(
            !local || self.model_dir.is_some(),
            "the local embedder needs model-dir (--local-model-dir, WEIR_LOCAL_MODEL_DIR), the folder of its model"
        );
        let kind = self.provider;
        ensure!(
            kind != EmbedderKind::Openai || self.url.is_some(),
            "the openai embedder needs url (--embedder-url, WEIR_EMBEDDER_URL), such as https://api.openai.com"
        );
        ensure!(
            kind != EmbedderKind::Tei || self.url.is_some(),
            "the tei embedder needs url (--embedder-url, WEIR_EMBEDDER_URL), such as http://127.0.0.1:8080"
        );
        ensure!(
            !local || self.key_file.is_none(),
            "key-file (--embedder-api-key-file, WEIR_EMBEDDER_API_KEY_FILE) is set, but the local embedder calls no \
             server: unset it"
        );
        ensure!(
            kind == EmbedderKind::Openai || !self.send_dimension,
            "send-dimension, or --dimensions (WEIR_DIMENSIONS), is for the openai embedder only: unset it"
        );
        self.check_of_file()
    }

    /// The same of what only a file can say.
    fn check_of_file(&self) -> anyhow::Result<()> {
        let openai = self.provider == EmbedderKind::Openai;
        let said = [
            ("headers", !self.headers.is_empty()),
            ("body", !self.body.is_empty()),
            ("document.body", !self.document.body.is_empty()),
            ("query.body", !self.query.body.is_empty()),
            ("ca-file", self.ca_file.is_some()),
            ("proxy", self.proxy.is_some()),
        ];
        for (key, said) in said {
            ensure!(
                !(self.provider == EmbedderKind::Local && said),
                "{key} is set, but the local embedder calls no server: unset it"
            );
        }
        ensure!(
            openai || self.encoding == Encoding::Auto,
            "encoding is for the openai embedder only: unset it"
        );
        ensure!(
            !self.send_dimension || self.dimension.is_some(),
            "send-dimension is set, but dimension does not say which: set it too"
        );
        ensure!(
            self.key_file.is_none() || !self.headers.contains_key(&self.key_header),
            "headers has {:?}, which carries the key of key-file: set one of them",
            self.key_header
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
