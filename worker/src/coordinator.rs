//! The client of the coordinator, and the only room here that sees generated
//! types: everything else speaks the worker's own.

mod convert;
#[cfg(test)]
pub(crate) mod fake;
mod tls;
mod token;

use std::{error::Error, future::Future, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::MetadataValue,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, Uri},
};
use tonic_types::StatusExt as _;
use tracing::debug;
use weir_proto::{
    limits::{MAX_REASON_CHARS, MAX_WORKER_MESSAGE_BYTES},
    trace::{TRACEPARENT, TraceContext},
    v1::{self, worker_service_client::WorkerServiceClient},
};

use self::token::Token;
use crate::{
    config::Credentials,
    plan::{Batch, BatchResult, ChunkKey},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that is gone without a word is noticed after interval plus timeout:
/// soon enough to be back on another replica within the orphan grace.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(4);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a call may take to be answered, beyond what it asks to wait.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The exclusive right to work on a job, as it was claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) job_id: i64,
    /// The fencing token that every write names.
    pub(crate) epoch: i64,
    /// Whose job it is.
    pub(crate) namespace: Arc<str>,
    /// `namespace/name`, for logs.
    pub(crate) source: String,
    /// How long the lease lasts from each renewal; more than zero.
    pub(crate) duration: Duration,
    /// Most chunks that a batch of this job may have; at least 1.
    pub(crate) max_batch_size: u32,
    /// How many chunks are still to be embedded.
    pub(crate) chunks_pending: i64,
    /// Tries charged so far.
    pub(crate) attempt: i32,
    /// What the spans of this attempt hang on.
    pub(crate) trace: Option<TraceContext>,
}

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// Empty when no job came in time.
    pub(crate) leases: Vec<Lease>,
    /// How long leases last from each renewal, where the coordinator said so.
    pub(crate) lease_duration: Option<Duration>,
}

/// What the coordinator says on the stream of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Chunks to embed.
    Batch(Batch),
    /// A result is committed; `done` of the job's `total` chunks are, too.
    Ack { seq: i64, done: i64, total: i64 },
    /// The job has succeeded.
    Finished,
    /// The lease is gone, and why, for a person.
    Revoked(&'static str),
}

/// Why a call failed, sorted by what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// The epoch has moved on: drop the job.
    #[error("the lease is lost: {0}")]
    LeaseLost(String),
    /// The coordinator, its database or the network is away: try again.
    #[error("{0}")]
    Unavailable(String),
    /// The same call will be refused again.
    #[error("{0}")]
    Refused(String),
}

/// How a job is handed back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandBack {
    /// Charged.
    Fail,
    /// Uncharged, because the worker stops.
    Drain,
    /// Uncharged, because the embedder is down.
    EmbedderDown,
}

/// Calls the coordinator; cheap to clone. Connects when it is first needed and
/// again whenever the connection is gone.
#[derive(Debug, Clone)]
pub(crate) struct Coordinator {
    client: WorkerServiceClient<InterceptedService<Channel, Token>>,
}

impl Coordinator {
    /// Fails when a file of the credentials cannot be used, or the token would not
    /// stay secret.
    pub(crate) fn new(uri: &Uri, credentials: &Credentials) -> anyhow::Result<Self> {
        let token = Token::open(credentials, uri)?;
        let endpoint = Endpoint::from(tls::plain(uri))
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let channel = if uri.scheme_str() == Some("https") {
            let connector = tls::connector(uri, credentials)?;
            endpoint
                .origin(uri.clone())
                .connect_with_connector_lazy(connector)
        } else {
            endpoint.connect_lazy()
        };
        let client = WorkerServiceClient::with_interceptor(channel, token)
            .max_decoding_message_size(MAX_WORKER_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_WORKER_MESSAGE_BYTES);
        Ok(Self { client })
    }

    /// Claims up to `max_jobs` jobs of `model`, none further once they have
    /// `max_chunks` pending chunks together (0: no such bound), but none of what
    /// comes after a job of the namespaces that it is `busy_with`, and waits up to
    /// `wait` for the first.
    pub(crate) async fn claim(
        &self,
        worker_id: &str,
        model: &str,
        max_jobs: usize,
        max_chunks: usize,
        busy_with: Vec<String>,
        wait: Duration,
    ) -> Result<Claimed, CallError> {
        let mut client = self.client.clone();
        let request = v1::ClaimJobRequest {
            worker_id: worker_id.to_owned(),
            models: vec![model.to_owned()],
            max_jobs: i32::try_from(max_jobs).unwrap_or(i32::MAX),
            wait: prost_types::Duration::try_from(wait).ok(),
            max_chunks: i64::try_from(max_chunks).unwrap_or(i64::MAX),
            busy_with,
        };
        let reply = call(wait + CALL_TIMEOUT, client.claim_job(request)).await?;
        Claimed::try_from(reply)
    }

    /// Opens the stream of a lease. `held` names the batches that an earlier
    /// stream of the same lease brought and that are not acknowledged.
    pub(crate) async fn open(
        &self,
        lease: &Lease,
        window: u32,
        batch_size: u32,
        held: Vec<(i64, Vec<ChunkKey>)>,
    ) -> Result<BatchStream, CallError> {
        let mut client = self.client.clone();
        // Room for a result of every batch that may be outstanding, twice, for
        // a heartbeat may come between.
        let (requests, receiver) = mpsc::channel(2 * window as usize);
        let opening = convert::open(lease, window, batch_size, held);
        let first = stream::iter([v1::StreamBatchesRequest {
            message: Some(opening),
        }]);
        let rest = ReceiverStream::new(receiver);
        let request = within(lease, first.chain(rest));
        let events = call(CALL_TIMEOUT, client.stream_batches(request)).await?;
        Ok(BatchStream { requests, events })
    }

    /// Has a result persisted without a stream.
    pub(crate) async fn upsert(
        &self,
        lease: &Lease,
        result: &BatchResult,
    ) -> Result<(), CallError> {
        let request = within(lease, convert::upsert(lease, result));
        call(CALL_TIMEOUT, self.client.clone().upsert_batch(request)).await?;
        Ok(())
    }

    /// Hands a job back unfinished.
    pub(crate) async fn hand_back(
        &self,
        lease: &Lease,
        how: HandBack,
        reason: &str,
    ) -> Result<(), CallError> {
        let mut client = self.client.clone();
        let (job_id, epoch) = (lease.job_id, lease.epoch);
        let reason = reason.chars().take(MAX_REASON_CHARS).collect();
        match how {
            HandBack::Fail => {
                let request = v1::FailJobRequest {
                    job_id,
                    epoch,
                    reason,
                };
                call(CALL_TIMEOUT, client.fail_job(within(lease, request))).await?;
            }
            HandBack::Drain | HandBack::EmbedderDown => {
                let cause = match how {
                    HandBack::EmbedderDown => v1::ReleaseCause::EmbedderDown,
                    _ => v1::ReleaseCause::Drain,
                };
                let request = v1::ReleaseJobRequest {
                    job_id,
                    epoch,
                    reason,
                    cause: cause.into(),
                };
                call(CALL_TIMEOUT, client.release_job(within(lease, request))).await?;
            }
        }
        Ok(())
    }
}

/// The open stream of a lease. Dropping it ends the stream.
#[derive(Debug)]
pub(crate) struct BatchStream {
    requests: mpsc::Sender<v1::StreamBatchesRequest>,
    events: Streaming<v1::StreamBatchesResponse>,
}

impl BatchStream {
    /// Queues a result for sending. There is room for one of every batch that
    /// may be outstanding.
    pub(crate) fn send_result(&self, result: &BatchResult) {
        self.send(convert::result(result));
    }

    /// Queues a heartbeat, unless something else still waits to be sent, which
    /// renews the lease as well.
    pub(crate) fn send_heartbeat(&self) {
        if self.requests.capacity() == self.requests.max_capacity() {
            self.send(convert::heartbeat());
        }
    }

    /// A stream that takes nothing more is over, and says why when it is read.
    fn send(&self, message: v1::stream_batches_request::Message) {
        let message = Some(message);
        if let Err(error) = self.requests.try_send(v1::StreamBatchesRequest { message }) {
            debug!(%error, "A message could not be sent on the stream.");
        }
    }

    /// Waits for what the coordinator says next. `None` when it ended the
    /// stream. Loses nothing when it is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, CallError> {
        while let Some(message) = self
            .events
            .message()
            .await
            .map_err(|status| sort(&status))?
        {
            // A message of a kind that this version does not know carries
            // nothing that it could act on.
            if let Some(message) = message.message {
                return convert::event(message).map(Some);
            }
        }
        Ok(None)
    }
}

/// A request that belongs to the trace of a lease.
fn within<T>(lease: &Lease, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let header = lease.trace.map(|trace| trace.to_string());
    if let Some(Ok(header)) = header.map(MetadataValue::try_from) {
        request.metadata_mut().insert(TRACEPARENT, header);
    }
    request
}

async fn call<T>(
    limit: Duration,
    reply: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    match timeout(limit, reply).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(sort(&status)),
        Err(_) => Err(CallError::Unavailable(format!(
            "the coordinator did not answer within {limit:?}"
        ))),
    }
}

fn sort(status: &Status) -> CallError {
    // A status with a source was made here, of a broken transport, whatever
    // its code.
    if let Some(source) = status.source() {
        let mut cause: &dyn Error = source;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        return CallError::Unavailable(format!("{}: {cause}", status.message()));
    }
    let message = format!("{} ({:?})", status.message(), status.code());
    match status.code() {
        Code::Aborted => CallError::LeaseLost(status.message().to_owned()),
        // Too many calls for now.
        Code::ResourceExhausted if status.get_details_retry_info().is_some() => {
            CallError::Unavailable(message)
        }
        // A cut connection and a timeout come as any of these; a token or a certificate that is
        // being replaced, as the last.
        Code::Unavailable
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Unknown
        | Code::Internal
        | Code::Unauthenticated => CallError::Unavailable(message),
        _ => CallError::Refused(message),
    }
}
