//! The stream of a session on the wire: what comes is checked, what goes is encoded.

use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _, future};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Status, Streaming};
use weir_proto::{
    limits::{MAX_BATCH_SIZE, MAX_CLAIM_MODELS, MAX_CREDIT, MAX_VERSION_CHARS},
    v1::{
        self, lease_ended::How, stream_batches_request::Message as Heard,
        stream_batches_response::Message as Said,
    },
};
use weir_telemetry::TraceContext;

use super::{
    Services,
    auth::Caller,
    convert::{wire_duration, wire_reason},
    door::Door,
    error::{going_away, invalid_field},
    limits::relabel_status,
};
use crate::dispatch::{
    self, BatchPart, Condition, Content, Dispatch, End, Ended, FromWorker, HeldLease, HeldPart,
    ModelOpen, Open, PartResult, ToWorker, WorkerIdentity,
};
use crate::store::workers::EmbedderState;

/// Answers on a stream that wait for the network.
const OUTBOX: usize = 4;

/// Serves a session in a task of its own.
pub(crate) fn serve(
    services: &Services,
    caller: Caller,
    mut inbox: Streaming<v1::StreamBatchesRequest>,
) -> impl Stream<Item = Result<v1::StreamBatchesResponse, Status>> + Send + use<> {
    let (outbox, answers) = mpsc::channel(OUTBOX);
    let (last, end) = oneshot::channel();
    let dispatch = Arc::clone(&services.dispatch);
    let worker = WorkerIdentity {
        holder: caller.holder(),
    };
    let models = services.models.clone();
    let serving = Arc::clone(&dispatch);
    services.tasks.spawn(async move {
        let open = tokio::select! {
            () = serving.shutdown.cancelled() => Err(End::GoingAway),
            open = first(&mut inbox, &caller, &models) => open,
        };
        let open = match open {
            Ok(open) => open,
            Err(end) => {
                // A worker that is gone hears nothing.
                let _ = last.send(end);
                return;
            }
        };
        let inbox = inbox.map(|message| heard(message.map_err(unreadable)?));
        dispatch::serve(serving, worker, open, inbox, outbox, last).await;
    });
    let answers = ReceiverStream::new(answers).map(move |message| Ok(said(message, &dispatch)));
    // The end of the stream says that the worker has stopped.
    let end = end.map(|end| ended(end.ok()?).map(Err)).into_stream();
    answers.chain(end.filter_map(future::ready))
}

/// The first message of a session.
async fn first(
    inbox: &mut Streaming<v1::StreamBatchesRequest>,
    caller: &Caller,
    models: &[String],
) -> Result<Open, End> {
    let message = inbox.message().await.map_err(unreadable)?;
    let message = message.ok_or(End::Closed)?;
    match message.message {
        Some(Heard::Open(open)) => check_open(open, caller, models).map_err(refused),
        _ => Err(out_of_order("the first message of a session must open it")),
    }
}

/// Why a stream cannot be read any more.
fn unreadable(status: Status) -> End {
    let status = relabel_status(status);
    match status.code() {
        Code::InvalidArgument | Code::ResourceExhausted | Code::Unavailable => refused(status),
        _ => End::Closed,
    }
}

fn refused(status: Status) -> End {
    End::Unreadable(Box::new(status))
}

fn out_of_order(fault: &str) -> End {
    refused(invalid_field("message", fault))
}

/// The status that a session ends with; `None` where nothing is wrong.
fn ended(end: End) -> Option<Status> {
    match end {
        End::Drained => None,
        End::Closed => Some(Status::cancelled("the worker closed the stream")),
        End::Silent => Some(Status::deadline_exceeded(
            "nothing was heard of the worker for the orphan grace; open another session",
        )),
        End::GoingAway => Some(going_away()),
        End::Breach { field, fault } => Some(invalid_field(&field, fault)),
        End::Store(error) => Some(relabel_status(error.into())),
        End::Unreadable(error) => Some(match error.downcast::<Status>() {
            Ok(status) => *status,
            Err(error) => Status::internal(error.to_string()),
        }),
    }
}

/// Checks how a worker opens a session.
pub(super) fn check_open(
    open: v1::SessionOpen,
    caller: &Caller,
    known: &[String],
) -> Result<Open, Status> {
    let mut door = Door::default();
    door.worker_id("open.worker_id", &open.worker_id);
    let visible = open.version.bytes().all(|byte| byte.is_ascii_graphic());
    if !visible || open.version.len() > MAX_VERSION_CHARS {
        door.refuse(
            "open.version",
            format!("must be at most {MAX_VERSION_CHARS} visible ASCII characters"),
        );
    }
    if !(1..=MAX_CLAIM_MODELS).contains(&open.models.len()) {
        door.refuse(
            "open.models",
            format!("must name 1 to {MAX_CLAIM_MODELS} models"),
        );
    }
    let mut names = std::collections::HashSet::new();
    for (index, model) in open.models.iter().enumerate() {
        door.known_model(format!("open.models[{index}].name"), &model.name, known);
        if !names.insert(&model.name) {
            door.refuse(format!("open.models[{index}].name"), "is named twice");
        }
        if !(1..=MAX_BATCH_SIZE).contains(&model.batch_size) {
            door.refuse(
                format!("open.models[{index}].batch_size"),
                format!("must be 1 to {MAX_BATCH_SIZE}, not {}", model.batch_size),
            );
        }
    }
    let held = check_held(&mut door, caller, open.held);
    door.close()?;
    Ok(Open {
        worker_id: open.worker_id,
        version: open.version,
        models: open
            .models
            .into_iter()
            .map(|model| ModelOpen {
                name: model.name,
                batch_size: model.batch_size,
            })
            .collect(),
        held,
    })
}

/// The leases that a worker says it holds parts of: each once, and each part.
fn check_held(door: &mut Door, caller: &Caller, held: Vec<v1::HeldLease>) -> Vec<HeldLease> {
    let (mut jobs, mut seqs) = (
        std::collections::HashSet::new(),
        std::collections::HashSet::new(),
    );
    let mut chunks = 0_usize;
    let mut checked = Vec::with_capacity(held.len());
    for lease in held {
        let fence = caller.fence(door.lease(lease.job_id, lease.epoch));
        if lease.parts.is_empty() || !jobs.insert(lease.job_id) {
            door.refuse(
                "open.held",
                format!("must name job {} once, with its parts", lease.job_id),
            );
        }
        for part in &lease.parts {
            chunks += part.chunks.len();
            if !(1..i64::MAX / 2).contains(&part.seq) || !seqs.insert(part.seq) {
                door.refuse(
                    "open.held",
                    format!(
                        "seq {} is not the number of one part that was sent",
                        part.seq
                    ),
                );
            }
        }
        let parts = lease.parts.into_iter().map(|part| HeldPart {
            seq: part.seq,
            chunks: part
                .chunks
                .into_iter()
                .map(|key| (key.item_id, key.chunk_index))
                .collect(),
        });
        checked.push(HeldLease {
            fence,
            parts: parts.collect(),
        });
    }
    if chunks > MAX_CREDIT as usize {
        door.refuse(
            "open.held",
            format!("names {chunks} chunks; a worker holds at most {MAX_CREDIT}"),
        );
    }
    checked
}

/// Checks a message of a worker.
pub(super) fn heard(message: v1::StreamBatchesRequest) -> Result<FromWorker, End> {
    match message.message {
        Some(Heard::Credit(credit)) => {
            if !(1..=MAX_CREDIT).contains(&credit.chunks) {
                let fault = format!("must be 1 to {MAX_CREDIT}, not {}", credit.chunks);
                return Err(refused(invalid_field("credit.chunks", fault)));
            }
            Ok(FromWorker::Credit {
                model: credit.model,
                chunks: credit.chunks.unsigned_abs() as usize,
            })
        }
        Some(Heard::Result(result)) => Ok(FromWorker::Result(
            result.parts.into_iter().map(part_result).collect(),
        )),
        Some(Heard::Heartbeat(_)) => Ok(FromWorker::Heartbeat),
        Some(Heard::Condition(condition)) => checked_condition(condition).map_err(refused),
        Some(Heard::Drain(_)) => Ok(FromWorker::Drain),
        Some(Heard::Open(_)) => Err(out_of_order("a session is opened once")),
        None => Err(out_of_order(
            "must carry credit, result, heartbeat, condition or drain",
        )),
    }
}

fn part_result(part: v1::PartResult) -> PartResult {
    let mut door = Door::default();
    let (embedded, rejected) = door.outcome(part.embedded, part.rejected);
    let content = match door.close() {
        Ok(()) => Ok(Content { embedded, rejected }),
        Err(status) => Err(status.message().to_owned()),
    };
    PartResult {
        seq: part.seq,
        content,
    }
}

fn checked_condition(condition: v1::EmbedderCondition) -> Result<FromWorker, Status> {
    let mut door = Door::default();
    let state = match v1::EmbedderState::try_from(condition.state) {
        Ok(v1::EmbedderState::Unspecified) => EmbedderState::Untried,
        Ok(v1::EmbedderState::Fit) => EmbedderState::Fit,
        Ok(v1::EmbedderState::Resting) => EmbedderState::Resting,
        Ok(v1::EmbedderState::Down) => EmbedderState::Down,
        Err(_) => {
            door.refuse("condition.state", "is not a state of an embedder");
            EmbedderState::Untried
        }
    };
    let reason = match state {
        EmbedderState::Down => door.reason("condition.reason".to_owned(), &condition.reason),
        _ => Door::cut_reason(&condition.reason),
    };
    for (field, number) in [
        ("condition.dimension", condition.dimension),
        ("condition.longest_input", condition.longest_input),
    ] {
        if number < 0 {
            door.refuse(
                field,
                format!("must be 0, where it is not known, or more, not {number}"),
            );
        }
    }
    door.close()?;
    let condition_of = Condition {
        state,
        reason,
        dimension: (condition.dimension > 0).then_some(condition.dimension),
        longest_input: (condition.longest_input > 0).then_some(condition.longest_input),
    };
    Ok(FromWorker::Condition {
        model: condition.model,
        condition: condition_of,
    })
}

/// A message to a worker on the wire.
fn said(message: ToWorker, dispatch: &Dispatch) -> v1::StreamBatchesResponse {
    let message = match message {
        ToWorker::Opened => Said::Opened(v1::SessionOpened {
            lease_duration: wire_duration(dispatch.lease_duration),
            heartbeat_interval: wire_duration(dispatch.heartbeat_interval()),
        }),
        ToWorker::Batch { model, parts } => Said::Batch(v1::Batch {
            model: model.to_string(),
            parts: parts.into_iter().map(batch_part).collect(),
        }),
        ToWorker::Ack(parts) => Said::Ack(v1::BatchAck {
            parts: parts
                .into_iter()
                .map(|(seq, late)| v1::PartAck { seq, late })
                .collect(),
        }),
        ToWorker::Ended { lease, how } => Said::Ended(v1::LeaseEnded {
            job_id: lease.job_id,
            epoch: lease.epoch,
            how: Some(wire_end(how)),
        }),
    };
    v1::StreamBatchesResponse {
        message: Some(message),
    }
}

fn batch_part(part: BatchPart) -> v1::BatchPart {
    v1::BatchPart {
        seq: part.seq,
        job_id: part.lease.job_id,
        epoch: part.lease.epoch,
        namespace: part.namespace.to_string(),
        source: part.source.to_string(),
        traceparent: part
            .trace
            .as_ref()
            .map(TraceContext::to_string)
            .unwrap_or_default(),
        chunks: part.chunks.into_iter().map(Into::into).collect(),
    }
}

fn wire_end(how: Ended) -> How {
    match how {
        Ended::Finished {
            done,
            rejected,
            truncated,
        } => How::Finished(v1::JobFinished {
            chunks_done: done,
            chunks_rejected: rejected,
            chunks_truncated: truncated,
        }),
        Ended::Revoked(reason) => How::Revoked(v1::LeaseRevoked {
            reason: wire_reason(reason).into(),
        }),
        Ended::Refused(reason) => How::Refused(reason),
        Ended::Released => How::Released(v1::LeaseReleased {}),
    }
}
