//! What the sessions ask of an endpoint, and how far it is.

use bytes::{BufMut as _, Bytes, BytesMut};
use std::{collections::HashMap, sync::Arc};

use tokio::sync::oneshot;
use weir_telemetry::TraceContext;

use super::queue::{Call, Text};
use crate::plan::{Batch, BatchResult, Embedded, MAX_REJECTION_BYTES};

/// What became of a batch. The result covers all of it, unless a failure kept
/// some of its chunks from an outcome.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) result: BatchResult,
    pub(crate) failure: Option<Failure>,
}

/// Why the rest of a batch got no outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The embedder is at fault; no job is to blame.
    Embedder { reason: String },
    /// The job is charged.
    Job { reason: String },
}

/// The batches that are being embedded.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    open: HashMap<u64, Request>,
    last: u64,
}

#[derive(Debug)]
struct Request {
    batch: Arc<Batch>,
    trace: Option<TraceContext>,
    settled: Vec<Option<Settled>>,
    left: usize,
    reply: oneshot::Sender<Outcome>,
}

#[derive(Debug)]
enum Settled {
    /// With how many characters of it were embedded, if not all.
    Embedded(Bytes, Option<u32>),
    Rejected(String),
}

impl Requests {
    /// Takes a batch in and names it.
    pub(crate) fn admit(
        &mut self,
        batch: Arc<Batch>,
        trace: Option<TraceContext>,
        reply: oneshot::Sender<Outcome>,
    ) -> u64 {
        self.last += 1;
        let left = batch.chunks.len();
        let settled = batch.chunks.iter().map(|_| None).collect();
        let request = Request {
            batch,
            trace,
            settled,
            left,
            reply,
        };
        self.open.insert(self.last, request);
        self.last
    }

    /// The sampled traces of the jobs whose texts travel together, each once.
    pub(crate) fn traces(&self, call: &Call) -> Vec<TraceContext> {
        let mut traces = Vec::new();
        for texts in call.texts.chunk_by(|a, b| a.request == b.request) {
            let request = texts.first().and_then(|text| self.open.get(&text.request));
            if let Some(trace) = request.and_then(|request| request.trace)
                && trace.sampled
                && !traces.contains(&trace)
            {
                traces.push(trace);
            }
        }
        traces
    }

    pub(crate) fn contains(&self, request: u64) -> bool {
        self.open.contains_key(&request)
    }

    /// Lets go of a batch that nobody waits for; `false` when it was answered.
    pub(crate) fn forget(&mut self, request: u64) -> bool {
        self.open.remove(&request).is_some()
    }

    /// A text has its vector.
    pub(crate) fn embedded(&mut self, text: &Text, vector: &[f32]) {
        let chars = text
            .is_short()
            .then(|| text.as_str().chars().count() as u32);
        self.settle(text, Settled::Embedded(pack(vector), chars));
    }

    /// A text can never be embedded.
    pub(crate) fn rejected(&mut self, text: &Text, reason: &str) {
        self.settle(text, Settled::Rejected(rejection(reason)));
    }

    fn settle(&mut self, text: &Text, settled: Settled) {
        // A batch that nobody waits for any more has been forgotten.
        let Some(request) = self.open.get_mut(&text.request) else {
            return;
        };
        if request.settled[text.place].replace(settled).is_none() {
            request.left -= 1;
        }
        if request.left == 0 {
            self.answer(text.request, None);
        }
    }

    /// A batch cannot be embedded any further.
    pub(crate) fn fail(&mut self, request: u64, failure: Failure) {
        self.answer(request, Some(failure));
    }

    /// The batches that are not embedded yet.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.open.keys().copied().collect()
    }

    fn answer(&mut self, request: u64, failure: Option<Failure>) {
        let Some(Request {
            batch,
            settled,
            reply,
            ..
        }) = self.open.remove(&request)
        else {
            return;
        };
        let mut result = BatchResult {
            seq: batch.seq,
            ..BatchResult::default()
        };
        for (chunk, settled) in batch.chunks.iter().zip(settled) {
            match settled {
                Some(Settled::Embedded(vector, chars)) => result.embedded.push(Embedded {
                    key: chunk.key.clone(),
                    vector,
                    chars,
                }),
                Some(Settled::Rejected(reason)) => {
                    result.rejected.push((chunk.key.clone(), reason));
                }
                None => {}
            }
        }
        // Nobody waits any more: the lease is gone.
        let _ = reply.send(Outcome { result, failure });
    }
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
