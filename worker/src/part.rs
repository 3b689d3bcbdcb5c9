//! The parts of batches, and what becomes of them.

use bytes::Bytes;
use weir_proto::limits::{MAX_DIMENSION, MAX_ITEM_ID_BYTES, MAX_WORKER_MESSAGE_BYTES};
use weir_telemetry::TraceContext;

/// Longest reason of a rejected chunk that is sent, in bytes.
pub(crate) const MAX_REJECTION_BYTES: usize = 2_000;

/// Most bytes on the wire that name a chunk: its item, the hash of its text, its
/// index and the framing of each.
const MAX_KEY_BYTES: usize = MAX_ITEM_ID_BYTES + KEY_FRAME_BYTES;
/// The same without the item.
const KEY_FRAME_BYTES: usize = 88;
/// Most bytes on the wire that a part takes beside its chunks.
const PART_FRAME_BYTES: usize = 32;

/// Returns how many chunks to ask for in a batch: what the profile of its model
/// allows, but never so many that the result of a part might not fit a message,
/// whatever the dimension, which is not known before a probe passed. Calls to the
/// embedder are no smaller for that: they hold texts of several parts.
pub(crate) fn batch_size(setting: u32) -> u32 {
    const VECTOR_BYTES: usize = 4 * MAX_DIMENSION;
    const _: () = assert!(VECTOR_BYTES >= MAX_REJECTION_BYTES);
    const BOUND: usize =
        (MAX_WORKER_MESSAGE_BYTES - PART_FRAME_BYTES) / (MAX_KEY_BYTES + VECTOR_BYTES);
    setting.min(BOUND as u32)
}

/// The exclusive right to work on a job, which every write names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LeaseId {
    pub(crate) job_id: i64,
    /// The fencing token.
    pub(crate) epoch: i64,
}

/// How a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The job has succeeded.
    Finished,
    /// It is gone; nothing of it is wanted any more.
    Lost,
    /// The job went back, uncharged.
    Released,
    /// The job went back because of a result, which was refused.
    Refused,
    /// The coordinator could not be reached for so long that the job was dropped.
    Unreachable,
}

impl End {
    pub(crate) const ALL: [Self; 5] = [
        Self::Finished,
        Self::Lost,
        Self::Released,
        Self::Refused,
        Self::Unreachable,
    ];

    /// What metrics and traces call it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Lost => "lost",
            Self::Released => "released",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
        }
    }
}

/// Names a chunk and the text it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChunkKey {
    pub(crate) item_id: String,
    pub(crate) chunk_index: i32,
    /// SHA-256 of the text, sent back as it was received.
    pub(crate) text_hash: Vec<u8>,
}

impl ChunkKey {
    /// Returns how many bytes it takes on the wire, at most.
    fn wire_bytes(&self) -> usize {
        self.item_id.len() + KEY_FRAME_BYTES
    }
}

/// One text that becomes one vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) key: ChunkKey,
    pub(crate) text: String,
}

/// The chunks of a batch that are of one job; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) seq: i64,
    pub(crate) lease: LeaseId,
    /// Whose job it is.
    pub(crate) namespace: String,
    /// `namespace/name`, for logs.
    pub(crate) source: String,
    /// What the spans of this attempt hang on.
    pub(crate) trace: Option<TraceContext>,
    pub(crate) chunks: Vec<Chunk>,
}

impl Part {
    /// Returns how many bytes of text it holds.
    pub(crate) fn text_bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.text.len()).sum()
    }
}

/// A chunk with its vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Embedded {
    pub(crate) key: ChunkKey,
    /// Packed little-endian f32.
    pub(crate) vector: Bytes,
    /// How many characters of the text the vector was made of, from its first;
    /// `None`: of the whole.
    pub(crate) chars: Option<u32>,
}

/// What became of a part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PartResult {
    pub(crate) seq: i64,
    pub(crate) embedded: Vec<Embedded>,
    /// Chunks the embedder can never take, and why.
    pub(crate) rejected: Vec<(ChunkKey, String)>,
    /// Chunks without an outcome, which are pending again.
    pub(crate) left_out: Vec<ChunkKey>,
}

impl PartResult {
    /// Returns how many chunks have an outcome.
    pub(crate) fn outcomes(&self) -> usize {
        self.embedded.len() + self.rejected.len()
    }

    /// Returns the chunks that the part came with.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &ChunkKey> {
        let embedded = self.embedded.iter().map(|chunk| &chunk.key);
        let rejected = self.rejected.iter().map(|(key, _)| key);
        embedded.chain(rejected).chain(&self.left_out)
    }

    /// Returns how many bytes it takes on the wire, at most.
    pub(crate) fn wire_bytes(&self) -> usize {
        let embedded = self.embedded.iter();
        let embedded = embedded.map(|chunk| chunk.key.wire_bytes() + chunk.vector.len());
        let rejected = self.rejected.iter();
        let rejected = rejected.map(|(key, reason)| key.wire_bytes() + reason.len());
        PART_FRAME_BYTES + embedded.sum::<usize>() + rejected.sum::<usize>()
    }
}

#[cfg(test)]
mod tests;
