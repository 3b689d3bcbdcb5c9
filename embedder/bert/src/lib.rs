//! Sentence embeddings on the CPU: all-MiniLM-L6-v2 and other models of the
//! BERT family in a sentence-transformers folder.
//!
//! Texts are packed one after another without padding, so a short text beside
//! a long one costs nothing extra and a vector does not depend on the texts
//! that travel with it. Packs are computed side by side on rayon's global pool
//! (one thread a core, or `RAYON_NUM_THREADS`), which all calls of the process
//! share.

mod bert;
mod folder;
mod tensor;

use std::borrow::Cow;
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

/// Bytes of a text for each token the model can take, beyond which it is too
/// long without a look at it: unless it is nearly all blanks it is, and a huge
/// text would cost memory for nothing.
const BYTES_PER_TOKEN: usize = 256;

/// A sentence-embedding model, loaded and ready.
pub struct SentenceModel {
    tokenizer: Tokenizer,
    bert: Bert,
    max_tokens: usize,
    lowercase: bool,
    normalize: bool,
}

/// Why texts could not be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedFailure {
    /// The tokenizer refused a text.
    #[error("the tokenizer refused a text: {0}")]
    Tokenize(tokenizers::Error),
    /// A text has more tokens than the model takes.
    #[error("a text has {} tokens; the model takes {most}", count(*tokens))]
    TooLong {
        /// Tokens of the text with those that frame it; `None` where it is so
        /// long that nobody counted.
        tokens: Option<usize>,
        /// Tokens that a text may have.
        most: usize,
    },
    /// The caller raised the stop flag.
    #[error("stopped on request")]
    Stopped,
}

fn count(tokens: Option<usize>) -> String {
    tokens.map_or_else(|| "far too many".to_owned(), |tokens| tokens.to_string())
}

impl SentenceModel {
    /// Loads the model of a sentence-transformers folder: `config.json`,
    /// `tokenizer.json`, `model.safetensors` (f32) and, where present,
    /// `modules.json`, `1_Pooling/config.json` and `sentence_bert_config.json`.
    ///
    /// The architecture is BERT or `RoBERTa`, the pooling one of cls, mean and max.
    ///
    /// Fails, naming the file, when one is missing or damaged, or asks for what
    /// is not built here.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let settings = folder::read_settings(folder)?;
        let tokenizer = folder::read_tokenizer(&settings)?;
        let weights = settings.encoder.join("model.safetensors");
        let bytes = folder::read(&weights)?;
        let bert = Bert::load(&settings.bert, settings.pooling, &bytes)
            .with_context(|| format!("{} does not fit config.json", weights.display()))?;
        Ok(Self {
            tokenizer,
            bert,
            max_tokens: settings.max_tokens,
            lowercase: settings.lowercase,
            normalize: settings.normalize,
        })
    }

    /// How many numbers a vector has.
    pub fn dimension(&self) -> usize {
        self.bert.dimension()
    }

    /// How many tokens a text may have, with those that frame it.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Returns one vector for each text, in the order of the texts, of length 1
    /// where the model says so. No text is truncated: one that is longer than
    /// the model takes fails the call.
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
            let mut vectors = self.bert.embed(pack);
            if self.normalize {
                for vector in &mut vectors {
                    scale(vector);
                }
            }
            Ok(vectors)
        });
        Ok(packs
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    fn tokenize(&self, text: &str, stop: &AtomicBool) -> Result<Vec<u32>, EmbedFailure> {
        check(stop)?;
        let most = self.max_tokens;
        if text.len() > most * BYTES_PER_TOKEN {
            let tokens = None;
            return Err(EmbedFailure::TooLong { tokens, most });
        }
        let text = if self.lowercase {
            Cow::Owned(text.to_lowercase())
        } else {
            Cow::Borrowed(text)
        };
        let encoding = self
            .tokenizer
            .encode_fast(&*text, true)
            .map_err(EmbedFailure::Tokenize)?;
        let ids = encoding.get_ids();
        if ids.len() > most {
            let tokens = Some(ids.len());
            return Err(EmbedFailure::TooLong { tokens, most });
        }
        Ok(ids.to_vec())
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

/// Scales a vector to length 1, unless it has none: damaged weights show.
fn scale(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length.is_finite() && length > 0.0 {
        for number in vector {
            *number /= length;
        }
    }
}

#[cfg(test)]
mod tests;
