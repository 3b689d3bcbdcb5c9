//! Generated types ↔ the worker's own. What comes from outside is checked
//! here, once.

use std::time::Duration;

use weir_proto::{
    trace::TraceContext,
    v1::{
        self, RevokeReason, stream_batches_request as request, stream_batches_response as response,
    },
};

use super::{CallError, Claimed, Event, Lease};
use crate::plan::{Batch, BatchResult, Chunk, ChunkKey};

impl TryFrom<v1::ClaimJobResponse> for Claimed {
    type Error = CallError;

    fn try_from(response: v1::ClaimJobResponse) -> Result<Self, CallError> {
        let leases = response.leases.into_iter().map(Lease::try_from);
        Ok(Self {
            leases: leases.collect::<Result<_, _>>()?,
            lease_duration: response
                .lease_duration
                .and_then(|duration| Duration::try_from(duration).ok()),
        })
    }
}

impl TryFrom<v1::Lease> for Lease {
    type Error = CallError;

    fn try_from(lease: v1::Lease) -> Result<Self, CallError> {
        let duration = lease
            .lease_duration
            .and_then(|duration| Duration::try_from(duration).ok())
            .filter(|duration| !duration.is_zero())
            .ok_or_else(|| {
                CallError::Refused(format!(
                    "the coordinator leased job {} without a lease duration; are its version and the worker's the same?",
                    lease.job_id
                ))
            })?;
        Ok(Self {
            job_id: lease.job_id,
            epoch: lease.epoch,
            source: format!("{}/{}", lease.namespace, lease.source),
            namespace: lease.namespace.into(),
            duration,
            max_batch_size: u32::try_from(lease.max_batch_size).unwrap_or(0).max(1),
            chunks_pending: lease.chunks_pending,
            attempt: lease.attempt,
            trace: TraceContext::read(&lease.traceparent),
        })
    }
}

pub(super) fn open(
    lease: &Lease,
    window: u32,
    batch_size: u32,
    held: Vec<(i64, Vec<ChunkKey>)>,
) -> request::Message {
    let held = held.into_iter().map(|(seq, keys)| v1::HeldBatch {
        seq,
        chunks: keys.into_iter().map(key).collect(),
    });
    request::Message::Open(v1::StreamOpen {
        job_id: lease.job_id,
        epoch: lease.epoch,
        window: window.cast_signed(),
        batch_size: batch_size.cast_signed(),
        held: held.collect(),
    })
}

pub(super) fn heartbeat() -> request::Message {
    request::Message::Heartbeat(v1::Heartbeat {})
}

/// The chunks of a result, as both ways of sending it have them.
fn chunks(result: &BatchResult) -> (Vec<v1::EmbeddedChunk>, Vec<v1::RejectedChunk>) {
    let embedded = result.embedded.iter().map(|chunk| {
        let key = chunk.key.clone();
        v1::EmbeddedChunk {
            item_id: key.item_id,
            chunk_index: key.chunk_index,
            text_hash: key.text_hash,
            vector: chunk.vector.clone(),
            truncated_to: i32::try_from(chunk.chars.unwrap_or(0)).unwrap_or(i32::MAX),
        }
    });
    let rejected = result.rejected.iter().map(|(key, reason)| {
        let key = key.clone();
        v1::RejectedChunk {
            item_id: key.item_id,
            chunk_index: key.chunk_index,
            text_hash: key.text_hash,
            reason: reason.clone(),
        }
    });
    (embedded.collect(), rejected.collect())
}

pub(super) fn result(result: &BatchResult) -> request::Message {
    let (embedded, rejected) = chunks(result);
    request::Message::Result(v1::BatchResult {
        seq: result.seq,
        embedded,
        rejected,
    })
}

pub(super) fn upsert(lease: &Lease, result: &BatchResult) -> v1::UpsertBatchRequest {
    let (embedded, rejected) = chunks(result);
    v1::UpsertBatchRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        embedded,
        rejected,
    }
}

pub(super) fn event(message: response::Message) -> Result<Event, CallError> {
    Ok(match message {
        response::Message::Batch(batch) => Event::Batch(self::batch(batch)?),
        response::Message::Ack(ack) => Event::Ack {
            seq: ack.seq,
            done: ack.done,
            total: ack.total,
        },
        response::Message::Finished(_) => Event::Finished,
        response::Message::Revoked(revoked) => Event::Revoked(match revoked.reason() {
            RevokeReason::Unspecified => "the coordinator gave no reason this version knows",
            RevokeReason::LeaseLost => "the lease expired and was given to another",
            RevokeReason::Cancelled => "a client cancelled the job",
            RevokeReason::Superseded => {
                "the source has another model now, or its range is embedded anew; newer jobs cover it"
            }
            RevokeReason::SourceDeleted => "the source was deleted",
            RevokeReason::NoProgress => "nothing was persisted for the progress deadline",
        }),
    })
}

fn batch(batch: v1::Batch) -> Result<Batch, CallError> {
    if batch.chunks.is_empty() {
        return Err(CallError::Refused(format!(
            "the coordinator sent batch {} without chunks",
            batch.seq
        )));
    }
    let chunks = batch.chunks.into_iter().map(|chunk| Chunk {
        key: ChunkKey {
            item_id: chunk.item_id,
            chunk_index: chunk.chunk_index,
            text_hash: chunk.text_hash,
        },
        text: chunk.text,
    });
    Ok(Batch {
        seq: batch.seq,
        chunks: chunks.collect(),
    })
}

fn key(key: ChunkKey) -> v1::ChunkKey {
    v1::ChunkKey {
        item_id: key.item_id,
        chunk_index: key.chunk_index,
        text_hash: key.text_hash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Embedded;

    #[test]
    fn a_result_says_how_much_of_a_shortened_text_was_embedded() {
        let embedded = [None, Some(7), Some(u32::MAX)].map(|chars| Embedded {
            key: ChunkKey {
                item_id: "i".to_owned(),
                chunk_index: 0,
                text_hash: vec![7; 32],
            },
            vector: vec![0; 4].into(),
            chars,
        });
        let request::Message::Result(result) = result(&BatchResult {
            seq: 1,
            embedded: embedded.into(),
            rejected: Vec::new(),
        }) else {
            panic!("not a result");
        };
        let truncated_to = result.embedded.iter().map(|chunk| chunk.truncated_to);
        assert_eq!(truncated_to.collect::<Vec<_>>(), [0, 7, i32::MAX]);
    }
}
