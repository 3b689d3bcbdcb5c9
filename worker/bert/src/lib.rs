//! Sentence embeddings on the CPU: all-MiniLM-L6-v2 and other BERT models in a
//! sentence-transformers folder, with mean pooling.
//!
//! Texts are packed one after another without padding, so a short text beside
//! a long one costs nothing extra and a vector does not depend on the texts
//! that travel with it. Packs are computed side by side on rayon's global pool
//! (one thread a core, or `RAYON_NUM_THREADS`), which all calls of the process
//! share.

mod bert;
mod folder;
mod tensor;

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::bert::Bert;

/// Tokens computed together, at least and at most: enough to keep the matrix
/// products efficient, few enough that a pack needs only some megabytes.
const PACK_TOKENS: RangeInclusive<usize> = 64..=1024;

/// Bytes of a text that are looked at, for each token the model can take. What
/// lies behind them would be truncated anyway, unless a text is nearly all
/// blanks; without a bound a huge text would cost memory for nothing.
const BYTES_PER_TOKEN: usize = 256;

/// A sentence-embedding model, loaded and ready.
pub struct SentenceModel {
    tokenizer: Tokenizer,
    bert: Bert,
    max_tokens: usize,
}

/// Why texts could not be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedFailure {
    /// The tokenizer refused a text.
    #[error("the tokenizer refused a text: {0}")]
    Tokenize(tokenizers::Error),
    /// The model produced a vector that is all zero or holds NaN or infinity.
    #[error("the model produced a vector that is zero or not finite; its weights may be damaged")]
    BrokenVector,
    /// The caller raised the stop flag.
    #[error("stopped on request")]
    Stopped,
}

impl SentenceModel {
    /// Loads the model of a sentence-transformers folder: `config.json`,
    /// `tokenizer.json`, `model.safetensors` (f32) and, where present,
    /// `modules.json`, `1_Pooling/config.json` and `sentence_bert_config.json`.
    ///
    /// Fails, naming the file, when one is missing or damaged, or asks for what
    /// is not built here: another architecture or pooling.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let settings = folder::read_settings(folder)?;
        let tokenizer = folder::read_tokenizer(folder, &settings)?;
        let weights = folder.join("model.safetensors");
        let bytes = folder::read(&weights)?;
        let bert = Bert::load(&settings.bert, &bytes)
            .with_context(|| format!("{} does not fit config.json", weights.display()))?;
        Ok(Self {
            tokenizer,
            bert,
            max_tokens: settings.max_tokens,
        })
    }

    /// How many numbers a vector has.
    pub fn dimension(&self) -> usize {
        self.bert.dimension()
    }

    /// Returns one vector of length 1 for each text, in the order of the texts.
    /// A text longer than the model takes is truncated.
    ///
    /// Blocks until done; raise `stop` from another thread to end it early.
    pub fn embed<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        stop: &AtomicBool,
    ) -> Result<Vec<Vec<f32>>, EmbedFailure> {
        let texts = texts
            .par_iter()
            .map(|text| self.tokenize(text.as_ref(), stop));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let packs = packs(&texts, rayon::current_num_threads());
        let packs = packs.into_par_iter().map(|pack| {
            check(stop)?;
            self.bert
                .embed(pack)
                .into_iter()
                .map(unit)
                .collect::<Result<Vec<_>, _>>()
        });
        Ok(packs
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    fn tokenize(&self, text: &str, stop: &AtomicBool) -> Result<Vec<u32>, EmbedFailure> {
        check(stop)?;
        let text = &text[..text.floor_char_boundary(self.max_tokens * BYTES_PER_TOKEN)];
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(EmbedFailure::Tokenize)?;
        Ok(encoding.get_ids().to_vec())
    }
}

fn check(stop: &AtomicBool) -> Result<(), EmbedFailure> {
    if stop.load(Ordering::Relaxed) {
        Err(EmbedFailure::Stopped)
    } else {
        Ok(())
    }
}

/// Cuts the texts, in order, into runs of about equal size, one a thread where
/// [`PACK_TOKENS`] allows.
fn packs(texts: &[Vec<u32>], threads: usize) -> Vec<&[Vec<u32>]> {
    let tokens_total: usize = texts.iter().map(Vec::len).sum();
    let share = tokens_total
        .div_ceil(threads)
        .clamp(*PACK_TOKENS.start(), *PACK_TOKENS.end());
    let mut packs = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        if index > start && tokens + text.len() / 2 > share {
            packs.push(&texts[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += text.len();
    }
    if start < texts.len() {
        packs.push(&texts[start..]);
    }
    packs
}

/// Scales a vector to length 1.
fn unit(mut vector: Vec<f32>) -> Result<Vec<f32>, EmbedFailure> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if !length.is_finite() || length == 0.0 {
        return Err(EmbedFailure::BrokenVector);
    }
    for number in &mut vector {
        *number /= length;
    }
    Ok(vector)
}

#[cfg(test)]
mod tests;
