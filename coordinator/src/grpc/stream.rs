//! One stream of a lease: batches out, results in, every message a renewal.

mod handout;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weir_proto::v1::{
    self, stream_batches_request::Message as FromWorker,
    stream_batches_response::Message as ToWorker,
};
use weir_telemetry::TraceContext;

use self::handout::Handout;
#[cfg(fuzzing)]
pub(super) use self::handout::check_open;
use super::{
    Services, auth::Caller, convert::wire_reason, error::going_away, limits::relabel_status,
    worker::out_of_order,
};
use crate::{job::state::RevokeReason, store::StoreError, wakeup::Subscription};

/// Answers on a stream that wait for the network.
const OUTBOX: usize = 4;

type Outbox = mpsc::Sender<Result<v1::StreamBatchesResponse, Status>>;

/// Serves the stream of a lease in a task of its own.
pub(crate) fn serve(
    services: Services,
    caller: Caller,
    inbox: Streaming<v1::StreamBatchesRequest>,
    trace: Option<TraceContext>,
) -> ReceiverStream<Result<v1::StreamBatchesResponse, Status>> {
    let (outbox, answers) = mpsc::channel(OUTBOX);
    services.tasks.clone().spawn(async move {
        if let Err(end) = run(&services, &caller, inbox, &outbox, trace).await {
            let last = match end {
                End::Status(status) | End::Gone(Some(status)) => Err(status),
                End::Message(message) => Ok(response(message)),
                End::Lost(reason) => {
                    services.metrics.lease_lost(reason);
                    let reason = wire_reason(reason).into();
                    Ok(response(ToWorker::Revoked(v1::LeaseRevoked { reason })))
                }
                End::Gone(None) => return,
            };
            // A worker that is gone hears nothing.
            let _ = outbox.send(last).await;
        }
    });
    ReceiverStream::new(answers)
}

/// How a stream ends.
enum End {
    /// With a last message.
    Message(ToWorker),
    /// The lease is lost.
    Lost(RevokeReason),
    /// With an error.
    Status(Status),
    /// The worker has gone, or what came from it could not be read.
    Gone(Option<Status>),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Status(relabel_status(status))
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::LeaseLost { reason, why } => {
                tracing::info!(%reason, why, "A stream lost its lease.");
                Self::Lost(reason)
            }
            error => Self::Status(error.into()),
        }
    }
}

fn response(message: ToWorker) -> v1::StreamBatchesResponse {
    v1::StreamBatchesResponse {
        message: Some(message),
    }
}

fn finished(counts: impl Into<v1::JobFinished>) -> End {
    End::Message(ToWorker::Finished(counts.into()))
}

/// Serves until the job or the lease has ended, or the stream breaks.
async fn run(
    services: &Services,
    caller: &Caller,
    mut inbox: Streaming<v1::StreamBatchesRequest>,
    outbox: &Outbox,
    trace: Option<TraceContext>,
) -> Result<(), End> {
    let FromWorker::Open(open) = next(&mut inbox).await? else {
        return Err(out_of_order("the first message of a stream must open it").into());
    };
    let (mut handout, revocations) = Handout::open(services, caller, open, trace).await?;
    let end = hand_out(services, &mut handout, revocations, &mut inbox, outbox).await;
    match &end {
        Err(End::Gone(_)) => handout.orphan(services).await,
        Err(End::Message(ToWorker::Revoked(revoked))) => {
            handout.revoked(services, revoked.reason());
        }
        _ => {}
    }
    end
}

async fn hand_out(
    services: &Services,
    handout: &mut Handout,
    mut revocations: Subscription,
    inbox: &mut Streaming<v1::StreamBatchesRequest>,
    outbox: &Outbox,
) -> Result<(), End> {
    // What happened between the renewal and the subscription is seen here, unless texts were read since.
    if !handout.is_read() {
        handout.check(services).await?;
    }
    loop {
        handout.fill(services, outbox).await?;
        tokio::select! {
            // A stream lives as long as its job; it must not hold up the stop. The worker reopens
            // it on another replica.
            () = services.shutdown.cancelled() => return Err(going_away().into()),
            () = revocations.changed() => handout.check(services).await?,
            message = next(inbox) => match message? {
                FromWorker::Result(result) => handout.take(services, outbox, result).await?,
                FromWorker::Heartbeat(_) => handout.renew(services).await?,
                FromWorker::Open(_) => return Err(out_of_order("a stream is opened once").into()),
            },
        }
    }
}

async fn next(inbox: &mut Streaming<v1::StreamBatchesRequest>) -> Result<FromWorker, End> {
    match inbox.message().await {
        Ok(Some(v1::StreamBatchesRequest {
            message: Some(message),
        })) => Ok(message),
        Ok(Some(_)) => Err(out_of_order("must carry open, result or heartbeat").into()),
        Ok(None) => Err(End::Gone(None)),
        Err(status) => Err(End::Gone(Some(relabel_status(status)))),
    }
}

async fn send(outbox: &Outbox, message: ToWorker) -> Result<(), End> {
    outbox
        .send(Ok(response(message)))
        .await
        .map_err(|_| End::Gone(None))
}
