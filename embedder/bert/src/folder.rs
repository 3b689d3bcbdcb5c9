//! Reads a sentence-transformers folder and refuses what is not built here.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use crate::bert::{self, Pooling};

/// What the JSON files of a folder say.
pub(crate) struct Settings {
    pub(crate) bert: bert::Config,
    /// Where the encoder's files are.
    pub(crate) encoder: PathBuf,
    /// Tokens that a text may have, with the two that frame it.
    pub(crate) max_tokens: usize,
    /// Whether texts are put in lower case before the tokenizer sees them.
    pub(crate) lowercase: bool,
    pub(crate) pooling: Pooling,
    /// Whether vectors are scaled to length 1.
    pub(crate) normalize: bool,
}

#[derive(Deserialize)]
struct Architecture {
    model_type: String,
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    pad_token_id: Option<usize>,
    #[serde(flatten)]
    bert: bert::Config,
}

#[derive(Deserialize)]
struct Module {
    r#type: String,
    path: String,
}

#[derive(Default, Deserialize)]
struct SentenceBert {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize)]
struct SentenceTransformers {
    default_prompt_name: Option<String>,
}

/// The modules of a model, in the order in which a text passes them.
struct Modules {
    encoder: PathBuf,
    pooling: PathBuf,
    normalize: bool,
}

pub(crate) fn read_settings(folder: &Path) -> anyhow::Result<Settings> {
    let path = folder.join("config_sentence_transformers.json");
    let prompt = parse_if_present::<SentenceTransformers>(&path)?;
    if let Some(prompt) = prompt.and_then(|file| file.default_prompt_name) {
        bail!(
            "cannot use {}: default_prompt_name is {prompt:?}; prompts are not supported",
            path.display()
        );
    }
    let modules = read_modules(folder)?;

    let path = modules.encoder.join("config.json");
    let mut architecture: Architecture = parse(&path, &read(&path)?)?;
    check_architecture(&architecture).with_context(|| format!("cannot use {}", path.display()))?;
    if architecture.model_type != "bert" {
        architecture.bert.first_position = architecture.pad_token_id.unwrap_or(1) + 1;
    }

    let path = modules.encoder.join("sentence_bert_config.json");
    let sentence = parse_if_present::<SentenceBert>(&path)?.unwrap_or_default();
    let bert = architecture.bert;
    let positions = bert
        .max_position_embeddings
        .saturating_sub(bert.first_position);
    let max_tokens = sentence.max_seq_length.unwrap_or(positions).min(positions);
    ensure!(
        max_tokens > 2,
        "{} or config.json: max_seq_length leaves no room for a text",
        path.display()
    );
    Ok(Settings {
        bert,
        max_tokens,
        lowercase: sentence.do_lower_case,
        pooling: read_pooling(&modules.pooling.join("config.json"))?,
        normalize: modules.normalize,
        encoder: modules.encoder,
    })
}

/// A folder without `modules.json` has its encoder at the top, and its vectors
/// are scaled.
fn read_modules(folder: &Path) -> anyhow::Result<Modules> {
    let path = folder.join("modules.json");
    let mut modules = Modules {
        encoder: folder.to_owned(),
        pooling: folder.join("1_Pooling"),
        normalize: true,
    };
    let Some(listed) = parse_if_present::<Vec<Module>>(&path)? else {
        return Ok(modules);
    };
    modules.normalize = false;
    for (place, module) in listed.iter().enumerate() {
        match (place, module.r#type.rsplit('.').next().unwrap_or_default()) {
            (0, "Transformer") => modules.encoder = folder.join(&module.path),
            (1, "Pooling") => modules.pooling = folder.join(&module.path),
            (2.., "Normalize") => modules.normalize = true,
            (_, kind) => bail!(
                "cannot use {}: a {kind} module is not supported in place {place}",
                path.display()
            ),
        }
    }
    Ok(modules)
}

fn read_pooling(path: &Path) -> anyhow::Result<Pooling> {
    type Fields = serde_json::Map<String, serde_json::Value>;
    let Some(fields) = parse_if_present::<Fields>(path)? else {
        return Ok(Pooling::Mean);
    };
    let modes = fields.iter().filter_map(|(field, value)| {
        let mode = field.strip_prefix("pooling_mode_")?;
        (value.as_bool() == Some(true)).then_some(mode)
    });
    match *modes.collect::<Vec<_>>() {
        ["cls_token"] => Ok(Pooling::Cls),
        ["mean_tokens"] => Ok(Pooling::Mean),
        ["mean_sqrt_len_tokens"] => Ok(Pooling::MeanSqrtLen),
        ["max_tokens"] => Ok(Pooling::Max),
        ref modes => bail!(
            "cannot use {}: exactly one must be true of pooling_mode_cls_token, \
             pooling_mode_mean_tokens, pooling_mode_mean_sqrt_len_tokens and \
             pooling_mode_max_tokens, but these are: {modes:?}",
            path.display()
        ),
    }
}

fn check_architecture(architecture: &Architecture) -> anyhow::Result<()> {
    let Architecture {
        model_type,
        hidden_act,
        position_embedding_type,
        bert,
        ..
    } = architecture;
    ensure!(
        matches!(
            &**model_type,
            "bert" | "roberta" | "xlm-roberta" | "camembert"
        ),
        "model_type is {model_type:?}; only bert, roberta, xlm-roberta and camembert are supported"
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

pub(crate) fn read_tokenizer(settings: &Settings) -> anyhow::Result<Tokenizer> {
    let path = settings.encoder.join("tokenizer.json");
    let refused = |error| anyhow!("cannot use {}: {error}", path.display());
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut tokenizer: Tokenizer = text.parse().map_err(refused)?;
    // The file may pad or truncate as its author last did.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(refused)?;
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
