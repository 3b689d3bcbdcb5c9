//! Reads a sentence-transformers folder and refuses what is not built here.

use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::{Tokenizer, TruncationParams};

use crate::bert;

/// What the JSON files of a folder say.
pub(crate) struct Settings {
    pub(crate) bert: bert::Config,
    /// Tokens after which a text is truncated, with the two that frame it.
    pub(crate) max_tokens: usize,
}

#[derive(Deserialize)]
struct Architecture {
    model_type: String,
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(flatten)]
    bert: bert::Config,
}

#[derive(Deserialize)]
struct Module {
    r#type: String,
}

#[derive(Deserialize)]
struct Pooling {
    #[serde(flatten)]
    fields: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct SentenceBert {
    max_seq_length: Option<usize>,
}

pub(crate) fn read_settings(folder: &Path) -> anyhow::Result<Settings> {
    let path = folder.join("config.json");
    let architecture: Architecture = parse(&path, &read(&path)?)?;
    check_architecture(&architecture).with_context(|| format!("cannot use {}", path.display()))?;

    let path = folder.join("modules.json");
    for module in parse_if_present::<Vec<Module>>(&path)?.unwrap_or_default() {
        let kind = module.r#type.rsplit('.').next().unwrap_or_default();
        if !matches!(kind, "Transformer" | "Pooling" | "Normalize") {
            bail!(
                "cannot use {}: a {kind} module is not supported",
                path.display()
            );
        }
    }

    let path = folder.join("1_Pooling/config.json");
    if let Some(pooling) = parse_if_present::<Pooling>(&path)? {
        for (field, value) in &pooling.fields {
            if let Some(mode) = field.strip_prefix("pooling_mode_")
                && value.as_bool() != Some(mode == "mean_tokens")
            {
                bail!(
                    "cannot use {}: only mean pooling is supported, but {field} is {value}",
                    path.display()
                );
            }
        }
    }

    let path = folder.join("sentence_bert_config.json");
    let limit = parse_if_present::<SentenceBert>(&path)?.and_then(|file| file.max_seq_length);
    let positions = architecture.bert.max_position_embeddings;
    let max_tokens = limit.map_or(positions, |limit| limit.min(positions));
    ensure!(
        max_tokens > 2,
        "{} or config.json: max_seq_length leaves no room for a text",
        path.display()
    );
    Ok(Settings {
        bert: architecture.bert,
        max_tokens,
    })
}

fn check_architecture(architecture: &Architecture) -> anyhow::Result<()> {
    let Architecture {
        model_type,
        hidden_act,
        position_embedding_type,
        bert,
    } = architecture;
    ensure!(
        model_type == "bert",
        "model_type is {model_type:?}; only \"bert\" is supported"
    );
    ensure!(
        hidden_act == "gelu",
        "hidden_act is {hidden_act:?}; only \"gelu\" is supported"
    );
    if let Some(kind) = position_embedding_type {
        ensure!(
            kind == "absolute",
            "position_embedding_type is {kind:?}; only \"absolute\" is supported"
        );
    }
    ensure!(bert.type_vocab_size > 0, "type_vocab_size is 0");
    ensure!(
        bert.num_attention_heads > 0
            && bert.hidden_size > 0
            && bert.hidden_size.is_multiple_of(bert.num_attention_heads),
        "hidden_size {} is not a multiple of num_attention_heads {}",
        bert.hidden_size,
        bert.num_attention_heads
    );
    Ok(())
}

pub(crate) fn read_tokenizer(folder: &Path, settings: &Settings) -> anyhow::Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    let refused = |error| anyhow!("cannot use {}: {error}", path.display());
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut tokenizer: Tokenizer = text.parse().map_err(refused)?;
    // The file may pad or truncate as its author last did; the model's own
    // limit counts.
    tokenizer.with_padding(None);
    let truncation = TruncationParams {
        max_length: settings.max_tokens,
        ..TruncationParams::default()
    };
    tokenizer
        .with_truncation(Some(truncation))
        .map_err(refused)?;
    let last = tokenizer
        .get_vocab(true)
        .into_values()
        .max()
        .unwrap_or_default();
    ensure!(
        (last as usize) < settings.bert.vocab_size,
        "{} has token {last}, beyond the vocab_size {} of config.json",
        path.display(),
        settings.bert.vocab_size
    );
    let blank = tokenizer.encode_fast("", true).map_err(refused)?;
    ensure!(
        !blank.is_empty(),
        "{} does not frame texts with tokens of its own",
        path.display()
    );
    Ok(tokenizer)
}

pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(bytes).with_context(|| format!("cannot understand {}", path.display()))
}

fn parse_if_present<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    parse(path, &read(path)?).map(Some)
}
