//! A coordinator on a port of this machine whose every answer the test gives.

use std::time::Duration;

use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, Uri},
};
use weir_proto::v1::{
    self, RevokeReason,
    stream_batches_request::Message as FromWorker,
    stream_batches_response::Message as ToWorker,
    worker_service_server::{WorkerService, WorkerServiceServer},
};

use super::HandBack;
use crate::testing::soon;

pub(crate) struct FakeCoordinator {
    pub(crate) uri: Uri,
    claims: mpsc::UnboundedReceiver<FakeClaim>,
    streams: mpsc::UnboundedReceiver<FakeStream>,
    hand_backs: mpsc::UnboundedReceiver<FakeHandBack>,
    upserts: mpsc::UnboundedReceiver<v1::UpsertBatchRequest>,
    _server: AbortOnDropHandle<()>,
}

/// A claim that waits for its answer.
pub(crate) struct FakeClaim {
    pub(crate) request: v1::ClaimJobRequest,
    answer: oneshot::Sender<Result<v1::ClaimJobResponse, Status>>,
}

/// A stream as the coordinator sees it. Dropping it cuts it.
pub(crate) struct FakeStream {
    pub(crate) open: v1::StreamOpen,
    requests: Streaming<v1::StreamBatchesRequest>,
    events: mpsc::Sender<Result<v1::StreamBatchesResponse, Status>>,
}

/// A job that is handed back, which waits for its answer.
pub(crate) struct FakeHandBack {
    pub(crate) how: HandBack,
    pub(crate) job_id: i64,
    pub(crate) epoch: i64,
    pub(crate) reason: String,
    answer: oneshot::Sender<Result<(), Status>>,
}

/// A chunk of item `i{text}` whose hash is the text.
fn chunk(text: &str) -> v1::Chunk {
    v1::Chunk {
        item_id: format!("i{text}"),
        chunk_index: 3,
        text_hash: text.as_bytes().to_vec(),
        text: text.to_owned(),
    }
}

/// What the answers to claims say.
pub(crate) const LEASE_DURATION: Duration = Duration::from_mins(10);

pub(crate) fn lease(job_id: i64, lease_duration: Duration) -> v1::Lease {
    v1::Lease {
        job_id,
        epoch: 7,
        namespace: "namespace".to_owned(),
        source: "source".to_owned(),
        model: "model".to_owned(),
        lease_duration: prost_types::Duration::try_from(lease_duration).ok(),
        max_batch_size: 100,
        chunks_pending: 10,
        ..v1::Lease::default()
    }
}

impl FakeCoordinator {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let (claim_sender, claims) = mpsc::unbounded_channel();
        let (stream_sender, streams) = mpsc::unbounded_channel();
        let (hand_back_sender, hand_backs) = mpsc::unbounded_channel();
        let (upsert_sender, upserts) = mpsc::unbounded_channel();
        let service = WorkerServiceServer::new(Service {
            claims: claim_sender,
            streams: stream_sender,
            hand_backs: hand_back_sender,
            upserts: upsert_sender,
        });
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self {
            uri: uri.parse().unwrap(),
            claims,
            streams,
            hand_backs,
            upserts,
            _server: AbortOnDropHandle::new(server),
        }
    }

    pub(crate) async fn claim(&mut self) -> FakeClaim {
        soon(self.claims.recv()).await.unwrap()
    }

    pub(crate) async fn stream(&mut self) -> FakeStream {
        soon(self.streams.recv()).await.unwrap()
    }

    pub(crate) async fn hand_back(&mut self) -> FakeHandBack {
        soon(self.hand_backs.recv()).await.unwrap()
    }

    /// The next result that is sent without a stream.
    pub(crate) async fn upsert(&mut self) -> v1::UpsertBatchRequest {
        soon(self.upserts.recv()).await.unwrap()
    }

    /// Whether no claim came that was not taken.
    pub(crate) fn no_claim(&mut self) -> bool {
        self.claims.try_recv().is_err()
    }

    /// Whether no job was handed back but those taken.
    pub(crate) fn no_hand_back(&mut self) -> bool {
        self.hand_backs.try_recv().is_err()
    }
}

impl FakeClaim {
    pub(crate) fn answer(self, leases: Vec<v1::Lease>) {
        let lease_duration = prost_types::Duration::try_from(LEASE_DURATION).ok();
        let response = v1::ClaimJobResponse {
            leases,
            lease_duration,
        };
        self.answer.send(Ok(response)).ok();
    }

    pub(crate) fn fail(self, status: Status) {
        self.answer.send(Err(status)).ok();
    }

    /// Waits until the worker gives the request up.
    pub(crate) async fn cancelled(mut self) {
        soon(self.answer.closed()).await;
    }
}

impl FakeHandBack {
    pub(crate) fn accept(self) {
        self.answer.send(Ok(())).ok();
    }

    pub(crate) fn fail(self, status: Status) {
        self.answer.send(Err(status)).ok();
    }
}

impl FakeStream {
    pub(crate) async fn batch(&self, seq: i64, texts: &[&str]) {
        let chunks = texts.iter().map(|text| chunk(text)).collect();
        self.say(ToWorker::Batch(v1::Batch { seq, chunks })).await;
    }

    pub(crate) async fn ack(&self, seq: i64, done: i64, total: i64) {
        self.say(ToWorker::Ack(v1::BatchAck {
            seq,
            done,
            total,
            late: 0,
        }))
        .await;
    }

    pub(crate) async fn finish(&self) {
        self.say(ToWorker::Finished(v1::JobFinished::default()))
            .await;
    }

    pub(crate) async fn revoke(&self, reason: RevokeReason) {
        let reason = reason.into();
        self.say(ToWorker::Revoked(v1::LeaseRevoked { reason }))
            .await;
    }

    pub(crate) async fn end_with(self, status: Status) {
        self.events.send(Err(status)).await.unwrap();
    }

    async fn say(&self, message: ToWorker) {
        let message = Some(message);
        self.events
            .send(Ok(v1::StreamBatchesResponse { message }))
            .await
            .unwrap();
    }

    /// The next result; heartbeats before it are passed over.
    pub(crate) async fn result(&mut self) -> v1::BatchResult {
        loop {
            match self.heard().await {
                Some(FromWorker::Result(result)) => return result,
                Some(FromWorker::Heartbeat(_)) => {}
                other => panic!("expected a result, got {other:?}"),
            }
        }
    }

    /// Waits for a heartbeat, and for it to be the next message.
    pub(crate) async fn heartbeat(&mut self) {
        match self.heard().await {
            Some(FromWorker::Heartbeat(_)) => {}
            other => panic!("expected a heartbeat, got {other:?}"),
        }
    }

    /// Waits for the worker to end its side.
    pub(crate) async fn closed(mut self) {
        while let Some(message) = self.heard().await {
            assert_eq!(message, FromWorker::Heartbeat(v1::Heartbeat {}));
        }
    }

    async fn heard(&mut self) -> Option<FromWorker> {
        // A worker that drops its stream resets it.
        let message = soon(self.requests.message()).await.ok().flatten()?;
        message.message
    }
}

struct Service {
    claims: mpsc::UnboundedSender<FakeClaim>,
    streams: mpsc::UnboundedSender<FakeStream>,
    hand_backs: mpsc::UnboundedSender<FakeHandBack>,
    upserts: mpsc::UnboundedSender<v1::UpsertBatchRequest>,
}

impl Service {
    async fn handed_back(
        &self,
        how: HandBack,
        job_id: i64,
        epoch: i64,
        reason: String,
    ) -> Result<(), Status> {
        let (answer, answered) = oneshot::channel();
        let call = FakeHandBack {
            how,
            job_id,
            epoch,
            reason,
            answer,
        };
        self.hand_backs.send(call).ok();
        answered.await.map_err(|_| test_ended())?
    }
}

fn test_ended() -> Status {
    Status::unavailable("the test let go of the call")
}

#[tonic::async_trait]
impl WorkerService for Service {
    async fn claim_job(
        &self,
        request: Request<v1::ClaimJobRequest>,
    ) -> Result<Response<v1::ClaimJobResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        let request = request.into_inner();
        self.claims.send(FakeClaim { request, answer }).ok();
        let reply = answered.await.map_err(|_| test_ended())?;
        reply.map(Response::new)
    }

    type StreamBatchesStream = ReceiverStream<Result<v1::StreamBatchesResponse, Status>>;

    async fn stream_batches(
        &self,
        request: Request<Streaming<v1::StreamBatchesRequest>>,
    ) -> Result<Response<Self::StreamBatchesStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.message);
        let Some(FromWorker::Open(open)) = first else {
            return Err(Status::invalid_argument("the first message must be `open`"));
        };
        let (events, answers) = mpsc::channel(100);
        let stream = FakeStream {
            open,
            requests,
            events,
        };
        self.streams.send(stream).ok();
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn fail_job(
        &self,
        request: Request<v1::FailJobRequest>,
    ) -> Result<Response<v1::FailJobResponse>, Status> {
        let request = request.into_inner();
        self.handed_back(
            HandBack::Fail,
            request.job_id,
            request.epoch,
            request.reason,
        )
        .await?;
        Ok(Response::new(v1::FailJobResponse::default()))
    }

    async fn release_job(
        &self,
        request: Request<v1::ReleaseJobRequest>,
    ) -> Result<Response<v1::ReleaseJobResponse>, Status> {
        let request = request.into_inner();
        let how = match request.cause() {
            v1::ReleaseCause::EmbedderDown => HandBack::EmbedderDown,
            _ => HandBack::Drain,
        };
        self.handed_back(how, request.job_id, request.epoch, request.reason)
            .await?;
        Ok(Response::new(v1::ReleaseJobResponse::default()))
    }

    async fn renew_lease(
        &self,
        _: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        Err(Status::unimplemented("the worker streams"))
    }

    async fn get_batch(
        &self,
        _: Request<v1::GetBatchRequest>,
    ) -> Result<Response<v1::GetBatchResponse>, Status> {
        Err(Status::unimplemented("the worker streams"))
    }

    async fn upsert_batch(
        &self,
        request: Request<v1::UpsertBatchRequest>,
    ) -> Result<Response<v1::UpsertBatchResponse>, Status> {
        self.upserts.send(request.into_inner()).ok();
        Ok(Response::new(v1::UpsertBatchResponse::default()))
    }

    async fn complete_job(
        &self,
        _: Request<v1::CompleteJobRequest>,
    ) -> Result<Response<v1::CompleteJobResponse>, Status> {
        Err(Status::unimplemented("the worker streams"))
    }
}
