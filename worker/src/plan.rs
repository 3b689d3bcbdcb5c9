//! What a session holds, and how much it may ask for. Pure: no clock, no
//! network, no runtime.

use std::collections::BTreeMap;

use bytes::Bytes;
use weir_proto::limits::{MAX_ITEM_ID_BYTES, MAX_WORKER_MESSAGE_BYTES};

/// Longest reason of a rejected chunk that is sent, in bytes. A batch of the
/// largest size, all of it rejected, still fits one message.
pub(crate) const MAX_REJECTION_BYTES: usize = 2_000;

/// Most bytes on the wire that name a chunk: its item, the hash of its text,
/// its index and the framing of each.
const MAX_KEY_BYTES: usize = MAX_ITEM_ID_BYTES + 88;

/// Names a chunk and the text it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChunkKey {
    pub(crate) item_id: String,
    pub(crate) chunk_index: i32,
    /// SHA-256 of the text, sent back as it was received.
    pub(crate) text_hash: Vec<u8>,
}

/// One text that becomes one vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) key: ChunkKey,
    pub(crate) text: String,
}

/// Chunks to embed together; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) seq: i64,
    pub(crate) chunks: Vec<Chunk>,
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

/// The outcome of a batch, or of the part of it that got one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct BatchResult {
    pub(crate) seq: i64,
    pub(crate) embedded: Vec<Embedded>,
    /// Chunks the embedder can never take, and why.
    pub(crate) rejected: Vec<(ChunkKey, String)>,
}

impl BatchResult {
    pub(crate) fn is_empty(&self) -> bool {
        self.embedded.is_empty() && self.rejected.is_empty()
    }
}

/// How many chunks to ask for in a batch: what the settings and the lease
/// allow, but never so many that their vectors, or the keys of a whole window
/// of them, would not fit one message.
pub(crate) fn batch_size(setting: u32, lease: u32, window: u32, dimension: usize) -> u32 {
    let result_chunk = MAX_KEY_BYTES + (4 * dimension).max(MAX_REJECTION_BYTES);
    let by_result = MAX_WORKER_MESSAGE_BYTES / result_chunk;
    let by_window = MAX_WORKER_MESSAGE_BYTES / (MAX_KEY_BYTES * window.max(1) as usize);
    let bound = u32::try_from(by_result.min(by_window)).unwrap_or(u32::MAX);
    setting.min(lease).min(bound).max(1)
}

/// What the coordinator did that its contract rules out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Breach {
    #[error("the coordinator sent batch {seq} beyond the window of {window}")]
    OverWindow { seq: i64, window: usize },
    #[error("the coordinator sent batch {seq} twice")]
    Twice { seq: i64 },
}

/// The batches of one lease that were received and are not acknowledged: never
/// more than the window, each `Queued` → `Embedding` → `Embedded` → gone.
#[derive(Debug)]
pub(crate) struct Held {
    window: usize,
    batches: BTreeMap<i64, State>,
}

#[derive(Debug)]
enum State {
    Queued(Batch),
    Embedding(Vec<ChunkKey>),
    Embedded(BatchResult),
}

impl Held {
    pub(crate) fn new(window: u32) -> Self {
        Self {
            window: window as usize,
            batches: BTreeMap::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Takes a batch in.
    pub(crate) fn receive(&mut self, batch: Batch) -> Result<(), Breach> {
        let seq = batch.seq;
        if self.batches.contains_key(&seq) {
            return Err(Breach::Twice { seq });
        }
        if self.batches.len() >= self.window {
            let window = self.window;
            return Err(Breach::OverWindow { seq, window });
        }
        self.batches.insert(seq, State::Queued(batch));
        Ok(())
    }

    /// The batch to embed next, if one waits.
    pub(crate) fn start_next(&mut self) -> Option<Batch> {
        let queued = |state: &&mut State| matches!(state, State::Queued(_));
        let state = self.batches.values_mut().find(queued)?;
        match std::mem::replace(state, State::Embedding(Vec::new())) {
            State::Queued(batch) => {
                let keys = batch.chunks.iter().map(|chunk| chunk.key.clone());
                *state = State::Embedding(keys.collect());
                Some(batch)
            }
            State::Embedding(_) | State::Embedded(_) => None,
        }
    }

    /// Keeps the result of a batch until it is acknowledged.
    pub(crate) fn embedded(&mut self, result: BatchResult) {
        if let Some(state) = self.batches.get_mut(&result.seq) {
            *state = State::Embedded(result);
        }
    }

    /// Lets go of a batch whose result is committed, and returns how many
    /// chunks had an outcome in it. `None` when no such result is held.
    pub(crate) fn acknowledge(&mut self, seq: i64) -> Option<usize> {
        let State::Embedded(result) = self.batches.get(&seq)? else {
            return None;
        };
        let chunks = result.embedded.len() + result.rejected.len();
        self.batches.remove(&seq);
        Some(chunks)
    }

    /// The results that are not acknowledged, oldest first.
    pub(crate) fn results(&self) -> impl Iterator<Item = &BatchResult> {
        self.batches.values().filter_map(|state| match state {
            State::Embedded(result) => Some(result),
            State::Queued(_) | State::Embedding(_) => None,
        })
    }

    /// Takes the results that are not acknowledged, oldest first.
    pub(crate) fn take_results(&mut self) -> Vec<BatchResult> {
        let held = std::mem::take(&mut self.batches).into_values();
        held.filter_map(|state| match state {
            State::Embedded(result) => Some(result),
            State::Queued(_) | State::Embedding(_) => None,
        })
        .collect()
    }

    /// Every batch held, with the chunks it came with, for reopening a stream.
    pub(crate) fn keys(&self) -> Vec<(i64, Vec<ChunkKey>)> {
        let keys = |state: &State| match state {
            State::Queued(batch) => batch.chunks.iter().map(|c| c.key.clone()).collect(),
            State::Embedding(keys) => keys.clone(),
            State::Embedded(result) => {
                let embedded = result.embedded.iter().map(|chunk| &chunk.key);
                let rejected = result.rejected.iter().map(|(key, _)| key);
                embedded.chain(rejected).cloned().collect()
            }
        };
        self.batches
            .iter()
            .map(|(seq, s)| (*seq, keys(s)))
            .collect()
    }

    /// Lets go of what no embedder has seen yet; it stays pending at the
    /// coordinator.
    pub(crate) fn forget_queued(&mut self) {
        self.batches.retain(|_, s| !matches!(s, State::Queued(_)));
    }

    /// Lets go of a batch that got no outcome; it stays pending at the
    /// coordinator.
    pub(crate) fn forget(&mut self, seq: i64) {
        self.batches.remove(&seq);
    }
}

#[cfg(test)]
mod tests;
