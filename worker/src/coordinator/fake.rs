//! A coordinator on a port of this machine whose every answer the test gives. It
//! may be as rude as the test likes.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

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
    self, EmbedderState, RevokeReason,
    lease_ended::How,
    stream_batches_request::Message as FromWorker,
    stream_batches_response::Message as ToWorker,
    worker_service_server::{WorkerService, WorkerServiceServer},
};

use crate::testing::soon;

pub(crate) const MODEL: &str = "model";
/// The epoch of every lease.
pub(crate) const EPOCH: i64 = 7;
/// The terms of a session, unless the test says otherwise: no heartbeat comes.
pub(crate) const LEASE_DURATION: Duration = Duration::from_mins(10);
const NO_HEARTBEAT: Duration = Duration::from_hours(1);

type Events = ReceiverStream<Result<v1::StreamBatchesResponse, Status>>;

pub(crate) struct FakeCoordinator {
    pub(crate) uri: Uri,
    openings: mpsc::UnboundedReceiver<FakeOpening>,
    _server: AbortOnDropHandle<()>,
}

/// A session that waits to be opened.
pub(crate) struct FakeOpening {
    pub(crate) open: v1::SessionOpen,
    requests: Streaming<v1::StreamBatchesRequest>,
    answer: oneshot::Sender<Result<Events, Status>>,
}

/// A session as the coordinator sees it. Dropping it cuts it.
pub(crate) struct FakeSession {
    pub(crate) open: v1::SessionOpen,
    requests: Streaming<v1::StreamBatchesRequest>,
    events: mpsc::Sender<Result<v1::StreamBatchesResponse, Status>>,
    results: VecDeque<v1::PartResult>,
    /// Credit that is not used up, by model.
    pub(crate) credit: BTreeMap<String, i64>,
    /// The latest condition, by model.
    pub(crate) conditions: BTreeMap<String, v1::EmbedderCondition>,
    pub(crate) heartbeats: usize,
    pub(crate) drains: usize,
    /// Messages with results.
    pub(crate) result_messages: usize,
}

/// A part of job 42, or of another, of texts whose items are `i{text}` and whose
/// hashes are the texts.
pub(crate) fn part(seq: i64, job_id: i64, texts: &[&str]) -> v1::BatchPart {
    let chunks = texts.iter().map(|&text| v1::Chunk {
        item_id: format!("i{text}"),
        chunk_index: 3,
        text_hash: text.as_bytes().to_vec(),
        text: text.to_owned(),
    });
    v1::BatchPart {
        seq,
        job_id,
        epoch: EPOCH,
        namespace: "namespace".to_owned(),
        source: "source".to_owned(),
        traceparent: String::new(),
        chunks: chunks.collect(),
    }
}

impl FakeCoordinator {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let (sender, openings) = mpsc::unbounded_channel();
        let server = Server::builder()
            .add_service(WorkerServiceServer::new(Service(sender)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self {
            uri: uri.parse().unwrap(),
            openings,
            _server: AbortOnDropHandle::new(server),
        }
    }

    /// The next session that is to be opened.
    pub(crate) async fn opening(&mut self) -> FakeOpening {
        soon(self.openings.recv()).await.unwrap()
    }

    /// The next session, which is opened.
    pub(crate) async fn session(&mut self) -> FakeSession {
        let opening = self.opening().await;
        opening.accept(LEASE_DURATION, NO_HEARTBEAT).await
    }

    /// Whether no session was to be opened that was not taken.
    pub(crate) fn no_opening(&mut self) -> bool {
        self.openings.try_recv().is_err()
    }
}

impl FakeOpening {
    pub(crate) async fn accept(self, lease: Duration, heartbeat: Duration) -> FakeSession {
        let session = self.accept_silently();
        let opened = v1::SessionOpened {
            lease_duration: prost_types::Duration::try_from(lease).ok(),
            heartbeat_interval: prost_types::Duration::try_from(heartbeat).ok(),
        };
        session.say(ToWorker::Opened(opened)).await;
        session
    }

    /// Takes the stream and says nothing.
    pub(crate) fn accept_silently(self) -> FakeSession {
        let (events, answers) = mpsc::channel(100);
        self.answer.send(Ok(ReceiverStream::new(answers))).ok();
        FakeSession {
            open: self.open,
            requests: self.requests,
            events,
            results: VecDeque::new(),
            credit: BTreeMap::new(),
            conditions: BTreeMap::new(),
            heartbeats: 0,
            drains: 0,
            result_messages: 0,
        }
    }

    pub(crate) fn refuse(self, status: Status) {
        self.answer.send(Err(status)).ok();
    }
}

impl FakeSession {
    /// Sends a part of job 42 once there is credit for it.
    pub(crate) async fn batch(&mut self, seq: i64, texts: &[&str]) {
        self.batch_of(MODEL, vec![part(seq, 42, texts)]).await;
    }

    /// Sends a batch once there is credit for it.
    pub(crate) async fn batch_of(&mut self, model: &str, parts: Vec<v1::BatchPart>) {
        let chunks: usize = parts.iter().map(|part| part.chunks.len()).sum();
        let chunks = i64::try_from(chunks).unwrap();
        self.until(|it| it.credit_of(model) >= chunks).await;
        *self.credit.get_mut(model).unwrap() -= chunks;
        self.rude_batch(model, parts).await;
    }

    /// Sends a batch whatever the credit.
    pub(crate) async fn rude_batch(&self, model: &str, parts: Vec<v1::BatchPart>) {
        let model = model.to_owned();
        self.say(ToWorker::Batch(v1::Batch { model, parts })).await;
    }

    pub(crate) async fn ack(&self, seqs: &[i64]) {
        let parts = seqs.iter().map(|&seq| v1::PartAck { seq, late: 0 });
        let parts = parts.collect();
        self.say(ToWorker::Ack(v1::BatchAck { parts })).await;
    }

    pub(crate) async fn finish(&self, job_id: i64) {
        self.end(job_id, How::Finished(v1::JobFinished::default()))
            .await;
    }

    pub(crate) async fn release(&self, job_id: i64) {
        self.end(job_id, How::Released(v1::LeaseReleased {})).await;
    }

    pub(crate) async fn revoke(&self, job_id: i64, reason: RevokeReason) {
        let reason = reason.into();
        self.end(job_id, How::Revoked(v1::LeaseRevoked { reason }))
            .await;
    }

    pub(crate) async fn end(&self, job_id: i64, how: How) {
        self.say(ToWorker::Ended(v1::LeaseEnded {
            job_id,
            epoch: EPOCH,
            how: Some(how),
        }))
        .await;
    }

    pub(crate) async fn end_with(self, status: Status) {
        self.events.send(Err(status)).await.unwrap();
    }

    pub(crate) async fn say(&self, message: ToWorker) {
        let message = Some(message);
        let message = Ok(v1::StreamBatchesResponse { message });
        // A worker that is gone hears nothing.
        self.events.send(message).await.ok();
    }

    pub(crate) fn credit_of(&self, model: &str) -> i64 {
        self.credit.get(model).copied().unwrap_or_default()
    }

    /// How the embedder of a model is, as far as was told.
    pub(crate) fn state_of(&self, model: &str) -> Option<EmbedderState> {
        self.conditions.get(model).map(v1::EmbedderCondition::state)
    }

    /// Reads on until something is so.
    pub(crate) async fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            assert!(self.hear().await, "the worker ended its side");
        }
    }

    /// Reads on until the embedder of the model is like this.
    pub(crate) async fn until_state(&mut self, state: EmbedderState) {
        self.until(|it| it.state_of(MODEL) == Some(state)).await;
    }

    /// The next part of a result.
    pub(crate) async fn result(&mut self) -> v1::PartResult {
        self.until(|it| !it.results.is_empty()).await;
        self.results.pop_front().unwrap()
    }

    /// Whether no part of a result came that was not taken.
    pub(crate) fn no_result(&self) -> bool {
        self.results.is_empty()
    }

    /// Waits for the worker to end its side.
    pub(crate) async fn closed(mut self) {
        while self.hear().await {}
    }

    /// Takes the next message in. Returns whether there was one.
    async fn hear(&mut self) -> bool {
        // A worker that drops its stream resets it.
        let message = soon(self.requests.message()).await.ok().flatten();
        let Some(message) = message else {
            return false;
        };
        match message.message.unwrap() {
            FromWorker::Open(_) => panic!("opened twice"),
            FromWorker::Credit(credit) => {
                *self.credit.entry(credit.model).or_default() += i64::from(credit.chunks);
            }
            FromWorker::Result(result) => {
                self.result_messages += 1;
                self.results.extend(result.parts);
            }
            FromWorker::Heartbeat(_) => self.heartbeats += 1,
            FromWorker::Condition(condition) => {
                self.conditions.insert(condition.model.clone(), condition);
            }
            FromWorker::Drain(_) => self.drains += 1,
        }
        true
    }
}

struct Service(mpsc::UnboundedSender<FakeOpening>);

/// The worker makes no other calls.
fn no_unary<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the worker has a session"))
}

#[tonic::async_trait]
impl WorkerService for Service {
    type StreamBatchesStream = Events;

    async fn stream_batches(
        &self,
        request: Request<Streaming<v1::StreamBatchesRequest>>,
    ) -> Result<Response<Events>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.message);
        let Some(FromWorker::Open(open)) = first else {
            return Err(Status::invalid_argument("the first message must be `open`"));
        };
        let (answer, answered) = oneshot::channel();
        let opening = FakeOpening {
            open,
            requests,
            answer,
        };
        self.0.send(opening).ok();
        let gone = |_| Status::unavailable("the test let go of the session");
        answered.await.map_err(gone)?.map(Response::new)
    }

    async fn claim_job(
        &self,
        _: Request<v1::ClaimJobRequest>,
    ) -> Result<Response<v1::ClaimJobResponse>, Status> {
        no_unary()
    }

    async fn renew_lease(
        &self,
        _: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        no_unary()
    }

    async fn get_batch(
        &self,
        _: Request<v1::GetBatchRequest>,
    ) -> Result<Response<v1::GetBatchResponse>, Status> {
        no_unary()
    }

    async fn upsert_batch(
        &self,
        _: Request<v1::UpsertBatchRequest>,
    ) -> Result<Response<v1::UpsertBatchResponse>, Status> {
        no_unary()
    }

    async fn complete_job(
        &self,
        _: Request<v1::CompleteJobRequest>,
    ) -> Result<Response<v1::CompleteJobResponse>, Status> {
        no_unary()
    }

    async fn fail_job(
        &self,
        _: Request<v1::FailJobRequest>,
    ) -> Result<Response<v1::FailJobResponse>, Status> {
        no_unary()
    }

    async fn release_job(
        &self,
        _: Request<v1::ReleaseJobRequest>,
    ) -> Result<Response<v1::ReleaseJobResponse>, Status> {
        no_unary()
    }
}
