//! Generated types ↔ the worker's own. What comes from outside is checked
//! here, once.

use std::time::Duration;

use weir_embedder::Probe;
use weir_proto::{
    limits::MAX_REASON_CHARS,
    trace::TraceContext,
    v1::{
        self, EmbedderState, RevokeReason, lease_ended::How, stream_batches_request as request,
        stream_batches_response as response,
    },
};

use super::{Event, Message, Opening, Terms};
use crate::{
    health::{Condition, State},
    part::{Chunk, ChunkKey, End, LeaseId, Part, PartResult},
};

pub(super) fn open(opening: Opening) -> v1::StreamBatchesRequest {
    let models = opening.models.into_iter();
    let models = models.map(|(name, batch_size)| v1::SessionModel {
        name,
        batch_size: batch_size.cast_signed(),
    });
    let part = |(seq, chunks): (i64, Vec<ChunkKey>)| v1::HeldPart {
        seq,
        chunks: chunks.into_iter().map(key).collect(),
    };
    let held = opening.held.into_iter();
    let held = held.map(|(lease, parts)| v1::HeldLease {
        job_id: lease.job_id,
        epoch: lease.epoch,
        parts: parts.into_iter().map(part).collect(),
    });
    request(request::Message::Open(v1::SessionOpen {
        worker_id: opening.worker_id,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        models: models.collect(),
        held: held.collect(),
    }))
}

pub(super) fn message(message: Message<'_>) -> v1::StreamBatchesRequest {
    request(match message {
        Message::Credit { model, chunks } => request::Message::Credit(v1::Credit {
            model: model.to_owned(),
            chunks: i32::try_from(chunks).unwrap_or(i32::MAX),
        }),
        Message::Results(results) => request::Message::Result(v1::BatchResult {
            parts: results.into_iter().map(result).collect(),
        }),
        Message::Heartbeat => request::Message::Heartbeat(v1::Heartbeat {}),
        Message::Condition { model, condition } => {
            request::Message::Condition(self::condition(model, &condition))
        }
        Message::Drain => request::Message::Drain(v1::Drain {}),
    })
}

const fn request(message: request::Message) -> v1::StreamBatchesRequest {
    v1::StreamBatchesRequest {
        message: Some(message),
    }
}

fn result(result: &PartResult) -> v1::PartResult {
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
    v1::PartResult {
        seq: result.seq,
        embedded: embedded.collect(),
        rejected: rejected.collect(),
    }
}

fn condition(model: &str, condition: &Condition) -> v1::EmbedderCondition {
    let (state, reason) = match &condition.state {
        State::Untried => (EmbedderState::Unspecified, ""),
        State::Fit => (EmbedderState::Fit, ""),
        State::Resting(reason) => (EmbedderState::Resting, reason.as_str()),
        State::Down(reason) => (EmbedderState::Down, reason.as_str()),
    };
    let said = |number: fn(&Probe) -> Option<usize>| {
        let said = condition.said.as_ref().and_then(number);
        said.map_or(0, |it| i32::try_from(it).unwrap_or(i32::MAX))
    };
    v1::EmbedderCondition {
        model: model.to_owned(),
        state: state.into(),
        reason: reason.chars().take(MAX_REASON_CHARS).collect(),
        dimension: said(|probe| Some(probe.dimension)),
        longest_input: said(|probe| probe.limits.text_tokens),
    }
}

/// Reads the first message.
pub(super) fn terms(first: &v1::StreamBatchesResponse) -> Result<Terms, String> {
    let Some(response::Message::Opened(opened)) = &first.message else {
        return Err("the coordinator's first message does not open the session".to_owned());
    };
    let duration = |duration: Option<prost_types::Duration>| {
        let duration = duration.and_then(|it| Duration::try_from(it).ok());
        duration.filter(|it| !it.is_zero()).ok_or_else(|| {
            "the coordinator opened a session without saying how long leases last and when to send \
             heartbeats; are its version and the worker's the same?"
                .to_owned()
        })
    };
    Ok(Terms {
        lease_duration: duration(opened.lease_duration)?,
        heartbeat_interval: duration(opened.heartbeat_interval)?,
    })
}

pub(super) fn event(message: v1::StreamBatchesResponse) -> Result<Option<Event>, String> {
    Ok(match message.message {
        Some(response::Message::Opened(_)) => {
            return Err("the coordinator opened the session twice".to_owned());
        }
        Some(response::Message::Batch(batch)) => Some(Event::Batch {
            model: batch.model,
            parts: batch.parts.into_iter().map(part).collect(),
        }),
        Some(response::Message::Ack(ack)) => {
            let late = |late: i64| usize::try_from(late).unwrap_or_default();
            let acks = ack.parts.iter().map(|part| (part.seq, late(part.late)));
            Some(Event::Acks(acks.collect()))
        }
        Some(response::Message::Ended(ended)) => {
            let lease = LeaseId {
                job_id: ended.job_id,
                epoch: ended.epoch,
            };
            let (end, reason) = end(ended.how);
            Some(Event::Ended(lease, end, reason))
        }
        None => None,
    })
}

fn end(how: Option<How>) -> (End, String) {
    match how {
        Some(How::Finished(_)) => (End::Finished, String::new()),
        Some(How::Revoked(revoked)) => (End::Lost, reason(revoked.reason()).to_owned()),
        Some(How::Refused(reason)) => (End::Refused, reason),
        Some(How::Released(_)) => (End::Released, String::new()),
        None => (End::Lost, reason(RevokeReason::Unspecified).to_owned()),
    }
}

const fn reason(reason: RevokeReason) -> &'static str {
    match reason {
        RevokeReason::Unspecified => "the coordinator gave no reason this version knows",
        RevokeReason::LeaseLost => "the lease expired and was given to another",
        RevokeReason::Cancelled => "a client cancelled the job",
        RevokeReason::Superseded => {
            "the source has another model now, or its range is embedded anew; newer jobs cover it"
        }
        RevokeReason::SourceDeleted => "the source was deleted",
        RevokeReason::NoProgress => "nothing was persisted for the progress deadline",
    }
}

fn part(part: v1::BatchPart) -> Part {
    let chunks = part.chunks.into_iter().map(|chunk| Chunk {
        key: ChunkKey {
            item_id: chunk.item_id,
            chunk_index: chunk.chunk_index,
            text_hash: chunk.text_hash,
        },
        text: chunk.text,
    });
    Part {
        seq: part.seq,
        lease: LeaseId {
            job_id: part.job_id,
            epoch: part.epoch,
        },
        source: format!("{}/{}", part.namespace, part.source),
        namespace: part.namespace,
        trace: TraceContext::read(&part.traceparent),
        chunks: chunks.collect(),
    }
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
    use crate::part::Embedded;

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
        let result = result(&PartResult {
            embedded: embedded.into(),
            ..PartResult::default()
        });
        let truncated_to = result.embedded.iter().map(|chunk| chunk.truncated_to);
        assert_eq!(truncated_to.collect::<Vec<_>>(), [0, 7, i32::MAX]);
    }

    #[test]
    fn a_condition_has_a_reason_that_fits_and_what_was_said_before() {
        let said = Probe {
            dimension: 384,
            limits: weir_embedder::Limits {
                text_tokens: Some(512),
                ..Default::default()
            },
        };
        let down = Condition {
            state: State::Down("é".repeat(MAX_REASON_CHARS + 1)),
            said: Some(said),
        };
        let told = condition("m", &down);
        assert_eq!(told.state(), EmbedderState::Down);
        assert_eq!(told.reason.chars().count(), MAX_REASON_CHARS);
        assert_eq!((told.dimension, told.longest_input), (384, 512));
        let untried = Condition {
            state: State::Untried,
            said: None,
        };
        let expected = v1::EmbedderCondition {
            model: "m".to_owned(),
            ..Default::default()
        };
        assert_eq!(condition("m", &untried), expected);
    }
}
