//! Embeds one batch, and keeps one bad text from blocking its neighbours.

use std::{ops::Range, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::time::timeout;

use crate::{
    embedder::{EmbedError, Embedder},
    plan::{Batch, BatchResult, Chunk, Embedded, MAX_REJECTION_BYTES},
};

/// What became of a batch. The result covers all of it, unless a failure kept
/// some of its chunks from an outcome.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) result: BatchResult,
    pub(crate) failure: Option<Failure>,
}

/// Why the rest of a batch got no outcome.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The embedder is at fault; no job is to blame.
    Embedder {
        reason: String,
        retry_after: Option<Duration>,
    },
    /// The job is charged.
    Job { reason: String },
}

/// Embeds a batch. Where the embedder refuses several texts together they are
/// halved, until the guilty ones are alone and rejected. Each call may take
/// `limit`.
pub(crate) async fn embed(embedder: &dyn Embedder, batch: &Batch, limit: Duration) -> Outcome {
    let mut result = BatchResult {
        seq: batch.seq,
        ..BatchResult::default()
    };
    // Ranges still to embed, the next one last.
    let mut ranges: Vec<Range<usize>> = Vec::new();
    ranges.push(0..batch.chunks.len());
    while let Some(range) = ranges.pop() {
        let chunks = &batch.chunks[range.clone()];
        match call(embedder, chunks, limit).await {
            Ok(vectors) => {
                let done = chunks.iter().zip(vectors).map(|(chunk, vector)| Embedded {
                    key: chunk.key.clone(),
                    vector,
                    chars: None,
                });
                result.embedded.extend(done);
            }
            Err(EmbedError::Input { .. }) if chunks.len() > 1 => {
                let middle = range.start + chunks.len() / 2;
                ranges.push(middle..range.end);
                ranges.push(range.start..middle);
            }
            Err(EmbedError::Input { reason }) => {
                let reason = rejection(&reason);
                let keys = chunks.iter().map(|chunk| chunk.key.clone());
                result
                    .rejected
                    .extend(keys.map(|key| (key, reason.clone())));
            }
            Err(EmbedError::Embedder {
                reason,
                retry_after,
            }) => {
                let failure = Some(Failure::Embedder {
                    reason,
                    retry_after,
                });
                return Outcome { result, failure };
            }
            Err(EmbedError::Transient { reason }) => {
                let failure = Some(Failure::Job { reason });
                return Outcome { result, failure };
            }
        }
    }
    Outcome {
        result,
        failure: None,
    }
}

async fn call(
    embedder: &dyn Embedder,
    chunks: &[Chunk],
    limit: Duration,
) -> Result<Vec<Bytes>, EmbedError> {
    let texts: Vec<&str> = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
    let answer = timeout(limit, embedder.embed(&texts)).await;
    let vectors = answer.unwrap_or_else(|_| {
        let limit = humantime::format_duration(limit);
        let reason = format!("the embedder took longer than embed_timeout ({limit})");
        Err(EmbedError::Transient { reason })
    })?;
    // A vector must never meet another's chunk, whatever an embedder does.
    if vectors.len() != texts.len() {
        let (got, sent) = (vectors.len(), texts.len());
        return Err(EmbedError::Transient {
            reason: format!("the embedder answered {got} vectors for {sent} texts"),
        });
    }
    Ok(vectors.iter().map(|vector| pack(vector)).collect())
}

fn pack(vector: &[f32]) -> Bytes {
    let mut packed = BytesMut::with_capacity(4 * vector.len());
    for number in vector {
        packed.put_f32_le(*number);
    }
    packed.freeze()
}

/// A rejection always has a reason, and one that fits.
fn rejection(reason: &str) -> String {
    if reason.trim().is_empty() {
        return "the embedder refused this text and gave no reason".to_owned();
    }
    reason[..reason.floor_char_boundary(MAX_REJECTION_BYTES)].to_owned()
}

#[cfg(test)]
mod tests;
