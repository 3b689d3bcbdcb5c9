//! Embeds one batch, and keeps one bad text from blocking its neighbours.

use std::{ops::Range, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::time::timeout;

use crate::{
    embedder::{EmbedError, Embedder},
    plan::{Batch, BatchResult, MAX_REJECTION_BYTES},
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

/// A text that is too long in so few bytes is rejected.
const SHORTEST_BYTES: usize = 64;

/// Embeds a batch. Where the embedder refuses several texts together they are
/// halved, until the guilty ones are alone; one that is too long is shortened
/// by halves, any other rejected. Each call may take `limit`.
pub(crate) async fn embed(embedder: &dyn Embedder, batch: &Batch, limit: Duration) -> Outcome {
    let mut result = BatchResult {
        seq: batch.seq,
        ..BatchResult::default()
    };
    // Ranges still to embed, the next one last, with the bytes of each text that
    // are looked at.
    let mut ranges: Vec<(Range<usize>, usize)> = Vec::new();
    ranges.push((0..batch.chunks.len(), usize::MAX));
    while let Some((range, bytes)) = ranges.pop() {
        let chunks = &batch.chunks[range.clone()];
        let texts: Vec<&str> = chunks
            .iter()
            .map(|chunk| &chunk.text[..chunk.text.floor_char_boundary(bytes)])
            .collect();
        match call(embedder, &texts, limit).await {
            Ok(vectors) => {
                let keys = chunks.iter().map(|chunk| chunk.key.clone());
                result.embedded.extend(keys.zip(vectors));
            }
            Err(
                EmbedError::TooLong { .. } | EmbedError::TooMany { .. } | EmbedError::Input { .. },
            ) if chunks.len() > 1 => {
                let middle = range.start + chunks.len() / 2;
                ranges.push((middle..range.end, bytes));
                ranges.push((range.start..middle, bytes));
            }
            Err(EmbedError::TooLong { .. })
                if texts.iter().all(|text| text.len() > SHORTEST_BYTES) =>
            {
                let longest = texts.iter().map(|text| text.len()).max();
                ranges.push((range, longest.unwrap_or_default() / 2));
            }
            Err(
                EmbedError::TooLong { reason }
                | EmbedError::TooMany { reason }
                | EmbedError::Input { reason },
            ) => {
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
            Err(EmbedError::Timeout { reason } | EmbedError::Transient { reason }) => {
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
    texts: &[&str],
    limit: Duration,
) -> Result<Vec<Bytes>, EmbedError> {
    let answer = timeout(limit, embedder.embed(texts)).await;
    let vectors = answer.unwrap_or_else(|_| {
        let limit = humantime::format_duration(limit);
        let reason = format!("the embedder took longer than embed_timeout ({limit})");
        Err(EmbedError::Timeout { reason })
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
