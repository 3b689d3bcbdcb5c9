//! What one layer says of a model, and how layers become a profile.

use std::{collections::BTreeMap, num::NonZeroU32, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{
    Address, EmbedderKind, Encoding, Fields, HeaderSource, Profile, RoleProfile, de, known, value,
};

/// What flags, a table of the file or a built-in profile says of a model;
/// `None` where it says nothing. The fields are those of [`Profile`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Partial {
    pub(crate) provider: Option<EmbedderKind>,
    #[serde(deserialize_with = "de::url")]
    pub(crate) url: Option<Address>,
    #[serde(deserialize_with = "de::served_as")]
    pub(crate) served_as: Option<String>,
    #[serde(deserialize_with = "de::path")]
    pub(crate) key_file: Option<PathBuf>,
    #[serde(deserialize_with = "de::header_name")]
    pub(crate) key_header: Option<String>,
    pub(crate) insecure_key: Option<bool>,
    #[serde(deserialize_with = "de::headers")]
    pub(crate) headers: Option<BTreeMap<String, HeaderSource>>,
    #[serde(deserialize_with = "de::body")]
    pub(crate) body: Option<Fields>,
    pub(crate) document: PartialRole,
    pub(crate) query: PartialRole,
    pub(crate) encoding: Option<Encoding>,
    #[serde(deserialize_with = "de::path")]
    pub(crate) ca_file: Option<PathBuf>,
    #[serde(deserialize_with = "de::proxy")]
    pub(crate) proxy: Option<Address>,
    #[serde(deserialize_with = "de::path")]
    pub(crate) model_dir: Option<PathBuf>,
    #[serde(deserialize_with = "de::dimension")]
    pub(crate) dimension: Option<u16>,
    pub(crate) send_dimension: Option<bool>,
    #[serde(deserialize_with = "de::count")]
    pub(crate) longest_input: Option<u32>,
    #[serde(deserialize_with = "de::batch_size")]
    pub(crate) batch_size: Option<u32>,
    #[serde(deserialize_with = "de::count")]
    pub(crate) batch_tokens: Option<u32>,
    #[serde(deserialize_with = "de::concurrency")]
    pub(crate) concurrency: Option<u32>,
    #[serde(deserialize_with = "de::quota")]
    pub(crate) requests_per_minute: Option<NonZeroU32>,
    #[serde(deserialize_with = "de::quota")]
    pub(crate) tokens_per_minute: Option<NonZeroU32>,
    #[serde(deserialize_with = "de::timeout")]
    pub(crate) timeout: Option<Duration>,
}

/// What a layer says of one of the roles.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PartialRole {
    #[serde(deserialize_with = "de::prompt")]
    pub(crate) prompt: Option<String>,
    #[serde(deserialize_with = "de::body")]
    pub(crate) body: Option<Fields>,
}

impl Partial {
    /// Lays this over another: what is said here takes the place of the same
    /// there, as a whole.
    pub(crate) fn over(self, below: Self) -> Self {
        Self {
            provider: self.provider.or(below.provider),
            url: self.url.or(below.url),
            served_as: self.served_as.or(below.served_as),
            key_file: self.key_file.or(below.key_file),
            key_header: self.key_header.or(below.key_header),
            insecure_key: self.insecure_key.or(below.insecure_key),
            headers: self.headers.or(below.headers),
            body: self.body.or(below.body),
            document: self.document.over(below.document),
            query: self.query.over(below.query),
            encoding: self.encoding.or(below.encoding),
            ca_file: self.ca_file.or(below.ca_file),
            proxy: self.proxy.or(below.proxy),
            model_dir: self.model_dir.or(below.model_dir),
            dimension: self.dimension.or(below.dimension),
            send_dimension: self.send_dimension.or(below.send_dimension),
            longest_input: self.longest_input.or(below.longest_input),
            batch_size: self.batch_size.or(below.batch_size),
            batch_tokens: self.batch_tokens.or(below.batch_tokens),
            concurrency: self.concurrency.or(below.concurrency),
            requests_per_minute: self.requests_per_minute.or(below.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.or(below.tokens_per_minute),
            timeout: self.timeout.or(below.timeout),
        }
    }

    /// Returns the profile of the model of this name: what is said here, over
    /// the built-in profile of that name, over the defaults.
    pub(crate) fn resolve(self, name: &str) -> Profile {
        let known = known::of(name, self.served_as.as_deref());
        let mut below = known.map_or_else(Self::default, |known| known.says.clone());
        if self.provider != Some(EmbedderKind::Openai) {
            // Fields of one API mean nothing to the others.
            below.body = None;
            below.document.body = None;
            below.query.body = None;
        }
        let said = self.over(below);
        Profile {
            name: name.to_owned(),
            served_as: said.served_as,
            provider: said.provider.unwrap_or(EmbedderKind::Ollama),
            url: said.url,
            key_file: said.key_file,
            key_header: said.key_header.unwrap_or_else(|| "authorization".into()),
            insecure_key: said.insecure_key.unwrap_or_default(),
            headers: said.headers.unwrap_or_default(),
            body: said.body.unwrap_or_default(),
            document: said.document.resolve(),
            query: said.query.resolve(),
            encoding: said.encoding.unwrap_or_default(),
            ca_file: said.ca_file,
            proxy: said.proxy,
            model_dir: said.model_dir,
            dimension: said.dimension,
            send_dimension: said.send_dimension.unwrap_or_default(),
            longest_input: said.longest_input,
            batch_size: said.batch_size.unwrap_or(value::BATCH_SIZE),
            batch_tokens: said.batch_tokens.unwrap_or(value::BATCH_TOKENS),
            concurrency: said.concurrency.unwrap_or(value::CONCURRENCY),
            requests_per_minute: said.requests_per_minute,
            tokens_per_minute: said.tokens_per_minute,
            timeout: said.timeout.unwrap_or(value::TIMEOUT),
        }
    }
}

impl PartialRole {
    fn over(self, below: Self) -> Self {
        Self {
            prompt: self.prompt.or(below.prompt),
            body: self.body.or(below.body),
        }
    }

    fn resolve(self) -> RoleProfile {
        RoleProfile {
            prompt: self.prompt.unwrap_or_default(),
            body: self.body.unwrap_or_default(),
        }
    }
}
