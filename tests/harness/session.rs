//! A worker's session that a test drives by hand. Whatever comes is held against the
//! contract as it comes: nothing beyond the credit, numbers that rise, no chunk that
//! is held twice, nothing of a lease that has ended.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{sync::mpsc, time};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Status, Streaming, transport::Channel};
use weir_proto::v1::{
    self, lease_ended::How, stream_batches_request::Message as FromWorker,
    stream_batches_response::Message as ToWorker, worker_service_client::WorkerServiceClient,
};

use crate::{
    PATIENCE,
    clients::{Weir, embedded},
    cluster::MODEL,
    embedder::expected_vector,
};

/// What a worker is told, an acknowledgement for each part.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// Chunks to embed.
    Batch(v1::Batch),
    /// The result of a part is in the database.
    Ack(v1::PartAck),
    /// A lease has ended.
    Ended(v1::LeaseEnded),
}

/// An open session.
#[derive(Debug)]
pub struct Session {
    to: mpsc::UnboundedSender<v1::StreamBatchesRequest>,
    from: Streaming<v1::StreamBatchesResponse>,
    heart: Option<AbortOnDropHandle<()>>,
    /// What the coordinator said first; nothing where it was not waited for.
    pub opened: v1::SessionOpened,
    book: Book,
    /// What was read while something else was waited for.
    kept: VecDeque<Told>,
}

/// What the worker has, by what it granted and was told.
#[derive(Debug, Default)]
struct Book {
    credit: HashMap<String, usize>,
    last_seq: i64,
    held: BTreeMap<i64, v1::BatchPart>,
    ended: HashSet<(i64, i64)>,
}

/// A session of the model of tests, with batches of this size.
pub fn opening(batch_size: i32) -> v1::SessionOpen {
    v1::SessionOpen {
        worker_id: "by-hand".to_owned(),
        version: "test".to_owned(),
        models: vec![model(MODEL, batch_size)],
        held: Vec::new(),
    }
}

/// A model of a session.
pub fn model(name: &str, batch_size: i32) -> v1::SessionModel {
    v1::SessionModel {
        name: name.to_owned(),
        batch_size,
    }
}

/// A condition, with a reason where the embedder does not embed.
pub fn condition(model: &str, state: v1::EmbedderState, reason: &str) -> FromWorker {
    FromWorker::Condition(v1::EmbedderCondition {
        model: model.to_owned(),
        state: state.into(),
        reason: reason.to_owned(),
        dimension: 0,
        longest_input: 0,
    })
}

/// So much more of a model.
pub fn credit(model: &str, chunks: i32) -> FromWorker {
    FromWorker::Credit(v1::Credit {
        model: model.to_owned(),
        chunks,
    })
}

/// What became of parts.
pub fn result(parts: impl IntoIterator<Item = v1::PartResult>) -> FromWorker {
    FromWorker::Result(v1::BatchResult {
        parts: parts.into_iter().collect(),
    })
}

/// A part with the right vectors of all its chunks.
pub fn embeds(part: &v1::BatchPart) -> v1::PartResult {
    let vector = |chunk: &v1::Chunk| embedded(chunk, &expected_vector(&chunk.text));
    v1::PartResult {
        seq: part.seq,
        embedded: part.chunks.iter().map(vector).collect(),
        rejected: Vec::new(),
    }
}

/// A part of which every chunk is rejected for this reason.
pub fn rejects(part: &v1::BatchPart, reason: &str) -> v1::PartResult {
    let rejected = part.chunks.iter().map(|chunk| v1::RejectedChunk {
        item_id: chunk.item_id.clone(),
        chunk_index: chunk.chunk_index,
        text_hash: chunk.text_hash.clone(),
        reason: reason.to_owned(),
    });
    v1::PartResult {
        seq: part.seq,
        embedded: Vec::new(),
        rejected: rejected.collect(),
    }
}

/// A part of which nothing was done.
pub fn hands_back(part: &v1::BatchPart) -> v1::PartResult {
    v1::PartResult {
        seq: part.seq,
        ..v1::PartResult::default()
    }
}

/// These parts as a worker names them that holds them across a broken stream.
pub fn held<'a>(parts: impl IntoIterator<Item = &'a v1::BatchPart>) -> Vec<v1::HeldLease> {
    let mut leases: BTreeMap<(i64, i64), Vec<v1::HeldPart>> = BTreeMap::new();
    for part in parts {
        let key = |chunk: &v1::Chunk| v1::ChunkKey {
            item_id: chunk.item_id.clone(),
            chunk_index: chunk.chunk_index,
            text_hash: chunk.text_hash.clone(),
        };
        let lease = leases.entry((part.job_id, part.epoch)).or_default();
        lease.push(v1::HeldPart {
            seq: part.seq,
            chunks: part.chunks.iter().map(key).collect(),
        });
    }
    let leases = leases.into_iter();
    let lease = |((job_id, epoch), parts)| v1::HeldLease {
        job_id,
        epoch,
        parts,
    };
    leases.map(lease).collect()
}

/// The texts of a part.
pub fn texts(part: &v1::BatchPart) -> Vec<&str> {
    part.chunks
        .iter()
        .map(|chunk| chunk.text.as_str())
        .collect()
}

impl Session {
    /// Opens one with batches of this size, whose embedder is fit, and that sends
    /// heartbeats. It has no credit.
    pub async fn open(weir: &Weir, batch_size: i32) -> Self {
        Self::open_as(&weir.channel, None, opening(batch_size)).await
    }

    /// Opens one as [`Self::open`] does, in the name of a token.
    pub async fn open_as(channel: &Channel, token: Option<&str>, open: v1::SessionOpen) -> Self {
        Self::try_open(channel, token, open)
            .await
            .expect("the session opens")
    }

    /// The same, where it may be refused.
    pub async fn try_open(
        channel: &Channel,
        token: Option<&str>,
        open: v1::SessionOpen,
    ) -> Result<Self, Status> {
        let models: Vec<String> = open.models.iter().map(|it| it.name.clone()).collect();
        let mut session = Self::begin(channel, token, FromWorker::Open(open)).await?;
        let opened = match session.read().await? {
            Some(ToWorker::Opened(opened)) => opened,
            other => panic!("a session begins with its opening, not {other:?}"),
        };
        session.opened = opened;
        session.beat();
        for model in &models {
            session.send(condition(model, v1::EmbedderState::Fit, ""));
        }
        Ok(session)
    }

    /// Goes on elsewhere with the parts that a session held.
    pub async fn resume(channel: &Channel, batch_size: i32, parts: &[v1::BatchPart]) -> Self {
        let mut open = opening(batch_size);
        open.held = held(parts);
        let mut session = Self::open_as(channel, None, open).await;
        session.hold(parts);
        session
    }

    /// Opens a stream with this message, whatever it is, and waits for nothing.
    pub async fn begin(
        channel: &Channel,
        token: Option<&str>,
        first: FromWorker,
    ) -> Result<Self, Status> {
        let (to, messages) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(messages));
        if let Some(token) = token {
            let bearer = format!("Bearer {token}").parse().expect("it is ASCII");
            request.metadata_mut().insert("authorization", bearer);
        }
        let message = Some(first);
        let _ = to.send(v1::StreamBatchesRequest { message });
        let mut worker = WorkerServiceClient::new(channel.clone());
        let answers = time::timeout(PATIENCE, worker.stream_batches(request)).await;
        Ok(Self {
            to,
            from: answers.expect("a call is answered")?.into_inner(),
            heart: None,
            opened: v1::SessionOpened::default(),
            book: Book::default(),
            kept: VecDeque::new(),
        })
    }

    /// Sends heartbeats as often as the coordinator asked for.
    fn beat(&mut self) {
        let interval = self.opened.heartbeat_interval;
        let interval = interval.and_then(|it| Duration::try_from(it).ok());
        let interval = interval.expect("the coordinator says how often");
        let to = self.to.clone();
        self.heart = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut beats = time::interval(interval);
            // The first comes at once, and the worker was just heard of.
            beats.tick().await;
            loop {
                beats.tick().await;
                let message = Some(FromWorker::Heartbeat(v1::Heartbeat {}));
                if to.send(v1::StreamBatchesRequest { message }).is_err() {
                    return;
                }
            }
        })));
    }

    /// Sends no more heartbeats.
    pub fn fall_silent(&mut self) {
        self.heart = None;
    }

    /// Sends a message. One to a session that is over is lost.
    pub fn send(&mut self, message: FromWorker) {
        if let FromWorker::Credit(credit) = &message {
            let granted = self.book.credit.entry(credit.model.clone()).or_default();
            *granted += usize::try_from(credit.chunks).unwrap_or(0);
        }
        let message = Some(message);
        let _ = self.to.send(v1::StreamBatchesRequest { message });
    }

    /// Sends a message that says nothing.
    pub fn send_nothing(&mut self) {
        let _ = self.to.send(v1::StreamBatchesRequest { message: None });
    }

    /// Grants credit for the model of tests.
    pub fn grant(&mut self, chunks: i32) {
        self.send(credit(MODEL, chunks));
    }

    /// Answers a part with the right vectors.
    pub fn embed(&mut self, part: &v1::BatchPart) {
        self.send(result([embeds(part)]));
    }

    /// The next thing that the worker is told.
    pub async fn next(&mut self) -> Told {
        let told = self.told().await;
        told.unwrap_or_else(|status| panic!("the session goes on, and did not end with {status:?}"))
            .expect("the session goes on")
    }

    /// The next batch; what comes before it is kept for later.
    pub async fn batch(&mut self) -> v1::Batch {
        self.find(|told| match told {
            Told::Batch(batch) => Some(batch.clone()),
            _ => None,
        })
        .await
    }

    /// The one part of the next batch.
    pub async fn part(&mut self) -> v1::BatchPart {
        let mut parts = self.batch().await.parts;
        assert_eq!(parts.len(), 1, "a batch of one job was due: {parts:?}");
        parts.remove(0)
    }

    /// The acknowledgement of a part; what comes before it is kept for later.
    pub async fn ack(&mut self, seq: i64) -> v1::PartAck {
        self.find(|told| match told {
            Told::Ack(ack) if ack.seq == seq => Some(*ack),
            _ => None,
        })
        .await
    }

    /// How the lease of a job ended; what comes before it is kept for later.
    pub async fn ended(&mut self, job_id: i64) -> How {
        let ended = self.find(|told| match told {
            Told::Ended(ended) if ended.job_id == job_id => Some(ended.clone()),
            _ => None,
        });
        ended.await.how.expect("it says how")
    }

    /// Asserts that a job has succeeded, and returns with how many chunks.
    pub async fn finished(&mut self, job_id: i64) -> v1::JobFinished {
        match self.ended(job_id).await {
            How::Finished(finished) => finished,
            other => panic!("job {job_id} was to succeed, and {other:?}"),
        }
    }

    /// Answers the part, and returns when that is in the database.
    pub async fn embed_and_wait(&mut self, part: &v1::BatchPart) -> v1::PartAck {
        self.embed(part);
        self.ack(part.seq).await
    }

    /// Reads to the end of the stream, and returns how it ends. Everything before that is
    /// kept for [`Self::next`].
    pub async fn over(&mut self) -> Result<(), Status> {
        loop {
            if self.fetch().await?.is_none() {
                return Ok(());
            }
        }
    }

    /// Whether nothing was told that was not asked for, as far as it has arrived.
    pub fn is_quiet(&mut self) -> bool {
        self.kept.is_empty() && self.fetch().now_or_never().is_none()
    }

    /// What was read and not asked for.
    pub fn kept(&self) -> impl Iterator<Item = &Told> {
        self.kept.iter()
    }

    /// The parts that the worker holds: neither acknowledged nor of a lease that ended,
    /// as far as was read.
    pub fn held(&self) -> Vec<v1::BatchPart> {
        self.book.held.values().cloned().collect()
    }

    /// Ends the connection without a word. Returns the parts that it held.
    pub fn break_off(self) -> Vec<v1::BatchPart> {
        self.held()
    }

    /// Takes these parts as its own.
    pub fn hold(&mut self, parts: &[v1::BatchPart]) {
        for part in parts {
            self.book.last_seq = self.book.last_seq.max(part.seq);
            self.book.held.insert(part.seq, part.clone());
        }
    }

    async fn told(&mut self) -> Result<Option<Told>, Status> {
        if self.kept.is_empty() && self.fetch().await?.is_none() {
            return Ok(None);
        }
        Ok(self.kept.pop_front())
    }

    async fn find<T>(&mut self, mut wanted: impl FnMut(&Told) -> Option<T>) -> T {
        let mut seen = 0;
        loop {
            for place in seen..self.kept.len() {
                if let Some(found) = wanted(&self.kept[place]) {
                    self.kept.remove(place);
                    return found;
                }
            }
            seen = self.kept.len();
            let more = self.fetch().await;
            let more = more.unwrap_or_else(|status| {
                panic!("the session ended with {status:?}; so far: {:?}", self.kept)
            });
            assert!(more.is_some(), "the session ended; so far: {:?}", self.kept);
        }
    }

    /// Reads a message, and keeps it.
    async fn fetch(&mut self) -> Result<Option<()>, Status> {
        let told = match self.read().await? {
            None => return Ok(None),
            Some(ToWorker::Opened(opened)) => panic!("it was opened again: {opened:?}"),
            Some(ToWorker::Batch(batch)) => vec![Told::Batch(batch)],
            Some(ToWorker::Ack(ack)) => ack.parts.into_iter().map(Told::Ack).collect(),
            Some(ToWorker::Ended(ended)) => vec![Told::Ended(ended)],
        };
        for told in told {
            self.book.note(&told);
            self.kept.push_back(told);
        }
        Ok(Some(()))
    }

    async fn read(&mut self) -> Result<Option<ToWorker>, Status> {
        let message = time::timeout(PATIENCE, self.from.message()).await;
        let message = message.unwrap_or_else(|_| {
            panic!(
                "nothing came of what was waited for; so far: {:?}",
                self.kept
            )
        })?;
        Ok(message.map(|it| it.message.expect("a message says something")))
    }
}

impl Book {
    /// Notes what the worker was told. Panics where that breaks the contract.
    fn note(&mut self, told: &Told) {
        match told {
            Told::Batch(batch) => self.take(batch),
            // An answer that is sent twice may be acknowledged twice.
            Told::Ack(ack) => drop(self.held.remove(&ack.seq)),
            Told::Ended(ended) => {
                self.ended.insert((ended.job_id, ended.epoch));
                self.held
                    .retain(|_, part| (part.job_id, part.epoch) != (ended.job_id, ended.epoch));
            }
        }
    }

    fn take(&mut self, batch: &v1::Batch) {
        let sent: usize = batch.parts.iter().map(|part| part.chunks.len()).sum();
        let credit = self.credit.entry(batch.model.clone()).or_default();
        assert!(
            sent > 0 && sent <= *credit,
            "{sent} chunks came, and the credit was {credit}"
        );
        *credit -= sent;
        let mut jobs = HashSet::new();
        for part in &batch.parts {
            assert!(!part.chunks.is_empty(), "a part is empty: {part:?}");
            assert!(part.seq > self.last_seq, "seq {} does not rise", part.seq);
            assert!(jobs.insert(part.job_id), "two parts of job {}", part.job_id);
            let lease = (part.job_id, part.epoch);
            assert!(!self.ended.contains(&lease), "{lease:?} had ended");
            let held = self.held.values().filter(|it| it.job_id == part.job_id);
            let held: HashSet<_> = held.flat_map(|it| &it.chunks).map(key).collect();
            for chunk in &part.chunks {
                assert!(!held.contains(&key(chunk)), "{chunk:?} is held already");
            }
            self.last_seq = part.seq;
            self.held.insert(part.seq, part.clone());
        }
    }
}

fn key(chunk: &v1::Chunk) -> (&str, i32, &[u8]) {
    (&chunk.item_id, chunk.chunk_index, &chunk.text_hash)
}
