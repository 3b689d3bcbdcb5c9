//! What a stream hands out, and what comes back for it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Instant, SystemTime},
};

use chrono::{DateTime, Utc};
use tonic::Status;
use weir_proto::{
    limits::{MAX_BATCH_SIZE, MAX_WINDOW},
    v1::{self, stream_batches_response::Message as ToWorker},
};
use weir_telemetry::{KeyValue, SpanKind, TraceContext};

use super::{End, Outbox, finished, send};
use crate::{
    grpc::{
        Services,
        auth::{Asked, Caller},
        door::Door,
        error::invalid_field,
        spans::{self, trace_id},
        worker::MAX_BATCH_BYTES,
    },
    job::{
        blame::suspected_batch,
        plan::{PendingChunk, next_batch_len},
    },
    opener::{Held, Opened},
    store::{
        StoreError,
        batches::{Outcome, Progress},
        fence::Fence,
        lease::{LeaseState, Opening},
        rows::{ChunkText, Job, LeaseKey},
    },
    wakeup::Subscription,
};

/// Pending chunks that a stream lists at a time, without their texts.
const LISTED: i64 = 4_096;

/// Batches whose texts are read at a time, so that the next one is at hand.
const READ_AHEAD: usize = 4;

/// What a stream has handed out and has still to hand out. All of it can be
/// read off the database again, but for the batches that the worker holds, and
/// these the worker names.
pub(super) struct Handout {
    fence: Fence,
    pub(super) source_id: i64,
    /// What the spans of this attempt hang on.
    trace: Option<TraceContext>,
    /// Whether its vectors may be the first of their model.
    may_be_first: bool,
    window: usize,
    batch_size: i32,
    /// How many of the next chunks may hold a text that kills its worker.
    suspects: i32,
    /// Which stream of the job this is.
    stream: i32,
    /// Until when this stream last renewed the lease.
    renewed_until: DateTime<Utc>,
    /// Batches that the worker holds, by number.
    outstanding: HashMap<i64, Vec<(String, i32)>>,
    /// When this stream sent those of them that it sent.
    sent: HashMap<i64, Instant>,
    next_seq: i64,
    /// Pending chunks not handed out yet, shortest first.
    listed: VecDeque<PendingChunk>,
    /// The first of these, with their texts.
    ready: VecDeque<ChunkText>,
    /// Whether the last listing held everything that is pending.
    listed_all: bool,
}

impl Handout {
    /// `trace` is what the worker says that the attempt belongs to; without it,
    /// it belongs to the trace of the job.
    pub(super) async fn open(
        services: &Services,
        caller: &Caller,
        open: v1::StreamOpen,
        trace: Option<TraceContext>,
    ) -> Result<(Self, Subscription), End> {
        let lease = check_open(&open)?;
        let fence = caller.fence(lease);
        let batch_size = open.batch_size.min(services.max_batch_size);
        let opening = Opening {
            fence: fence.clone(),
            batch_size,
        };
        let Held {
            job,
            revocations,
            texts,
        } = match services.opener.open(opening).await? {
            Opened::Held(held) => *held,
            Opened::Finished(job) => return Err(finished(&*job)),
        };
        services.metrics.renewals.open.increment(1);
        let outstanding: HashMap<_, _> = open
            .held
            .into_iter()
            .map(|held| {
                let chunks = held
                    .chunks
                    .into_iter()
                    .map(|key| (key.item_id, key.chunk_index));
                (held.seq, chunks.collect())
            })
            .collect();
        let mut handout = Self {
            fence,
            trace: trace.or_else(|| spans::trace_of(&job)),
            may_be_first: caller.is_of_all(),
            window: open.window as usize,
            batch_size,
            suspects: job.suspects,
            stream: job.stream,
            renewed_until: job.lease_expires_at.unwrap_or_default(),
            next_seq: outstanding
                .keys()
                .copied()
                .max()
                .unwrap_or(0)
                .saturating_add(1),
            outstanding,
            sent: HashMap::new(),
            listed: VecDeque::new(),
            ready: VecDeque::new(),
            listed_all: !texts.is_empty(),
            source_id: job.source_id,
        };
        let held = handout.held();
        let is_free = |it: &ChunkText| !held.contains(&(it.item_id.as_str(), it.chunk_index));
        handout.ready = texts.into_iter().filter(is_free).collect();
        Ok((handout, revocations))
    }

    /// Whether something is at hand, read when the stream was opened.
    pub(super) fn is_read(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The chunks of the batches that the worker holds.
    fn held(&self) -> HashSet<(&str, i32)> {
        self.outstanding
            .values()
            .flatten()
            .map(|(item_id, index)| (item_id.as_str(), *index))
            .collect()
    }

    /// How many batches may be outstanding, and of how many chunks. While a
    /// text is suspected there is no doubt over which batch a worker dies.
    fn bounds(&self) -> (usize, usize) {
        if self.suspects > 0 {
            let size = self.batch_size.min(suspected_batch(self.suspects));
            return (1, size as usize);
        }
        (self.window, self.batch_size as usize)
    }

    /// Sends batches until the window is full or nothing is left to send. Ends
    /// the stream when nothing is pending at all.
    pub(super) async fn fill(&mut self, services: &Services, outbox: &Outbox) -> Result<(), End> {
        loop {
            let (window, batch_size) = self.bounds();
            if self.outstanding.len() >= window {
                return Ok(());
            }
            if self.ready.is_empty() {
                self.read_ahead(services).await?;
            }
            if self.ready.is_empty() {
                if self.outstanding.is_empty() {
                    let began = SystemTime::now();
                    let job = match services.store.complete(&self.fence).await {
                        // Writes have added to the job after it had listed what is pending, or rejections were taken back.
                        Err(StoreError::Precondition(_)) if self.listed_all => {
                            self.listed_all = false;
                            continue;
                        }
                        ended => ended?,
                    };
                    services.wakeup.report_change(job.source_id);
                    services.metrics.jobs_ended.succeeded.increment(1);
                    self.succeeded(services, began);
                    return Err(finished(&job));
                }
                return Ok(());
            }
            let text_bytes = self.ready.iter().map(|chunk| chunk.text.len());
            let len = next_batch_len(text_bytes, batch_size, MAX_BATCH_BYTES);
            let chunks: Vec<ChunkText> = self.ready.drain(..len).collect();
            let seq = self.next_seq;
            self.next_seq += 1;
            self.sent.insert(seq, Instant::now());
            self.outstanding.insert(
                seq,
                chunks
                    .iter()
                    .map(|chunk| (chunk.item_id.clone(), chunk.chunk_index))
                    .collect(),
            );
            send(
                outbox,
                ToWorker::Batch(v1::Batch {
                    seq,
                    chunks: chunks.into_iter().map(Into::into).collect(),
                }),
            )
            .await?;
        }
    }

    /// Reads the texts of the next few batches.
    async fn read_ahead(&mut self, services: &Services) -> Result<(), End> {
        if self.listed.is_empty() && !self.listed_all {
            let pending = services.store.pending(self.fence.lease, LISTED).await?;
            self.listed_all = (pending.len() as i64) < LISTED;
            let held = self.held();
            self.listed = pending
                .into_iter()
                .filter(|chunk| !held.contains(&(chunk.item_id.as_str(), chunk.chunk_index)))
                .collect();
        }
        let text_bytes = self.listed.iter().map(|chunk| chunk.text_bytes);
        let len = next_batch_len(text_bytes, self.bounds().1 * READ_AHEAD, MAX_BATCH_BYTES);
        if len > 0 {
            let next: Vec<PendingChunk> = self.listed.drain(..len).collect();
            self.ready = services.store.texts(self.source_id, &next).await?.into();
        }
        Ok(())
    }

    /// Writes a result and acknowledges it.
    pub(super) async fn take(
        &mut self,
        services: &Services,
        outbox: &Outbox,
        result: v1::BatchResult,
    ) -> Result<(), End> {
        let Some(batch) = self.outstanding.get(&result.seq) else {
            return Err(invalid_field(
                "result.seq",
                format!("{} is not the number of an outstanding batch", result.seq),
            )
            .into());
        };
        if let Some(sent) = self.sent.remove(&result.seq) {
            let round_trip = sent.elapsed().as_secs_f64();
            services.metrics.round_trip.record(round_trip);
        }
        let whole = result.embedded.len() + result.rejected.len() >= batch.len();
        let mut door = Door::default();
        let (embedded, rejected) = door.outcome(result.embedded, result.rejected);
        door.close()?;
        let outcome = Outcome {
            fence: self.fence.clone(),
            embedded,
            rejected,
            complete: true,
            may_be_first: self.may_be_first,
        };
        let progress = match self.persist(services, result.seq, outcome).await {
            Ok(progress) => progress,
            Err(error) => {
                services.give_back(&self.fence, &error).await;
                return Err(error.into());
            }
        };
        services.wakeup.report_change(progress.source_id);
        services.metrics.renewals.result.increment(1);
        self.outstanding.remove(&result.seq);
        if !whole || progress.late.chunks() > 0 {
            // What the result leaves out, or was made of another text, is pending again.
            self.listed_all = false;
        }
        let Progress {
            done,
            rejected,
            total,
            late,
            suspects,
            lease_expires_at,
            ..
        } = progress;
        // Before the ack, which may find the worker gone.
        self.suspects = suspects;
        self.renewed_until = lease_expires_at.unwrap_or(self.renewed_until);
        let ack = v1::BatchAck {
            seq: result.seq,
            done: done + rejected,
            total,
            late: late.chunks(),
        };
        send(outbox, ToWorker::Ack(ack)).await?;
        if progress.finished {
            services.metrics.jobs_ended.succeeded.increment(1);
            self.succeeded(services, SystemTime::now());
            return Err(finished(&progress));
        }
        Ok(())
    }

    /// Has an outcome written, together with others that wait.
    async fn persist(
        &self,
        services: &Services,
        seq: i64,
        outcome: Outcome,
    ) -> Result<Progress, StoreError> {
        let trace = self.trace.as_ref();
        let span = services
            .tracer
            .child(trace, "persist", SpanKind::Internal, || {
                [
                    KeyValue::new("weir.batch.seq", seq),
                    KeyValue::new("weir.chunks.embedded", outcome.embedded.len() as i64),
                    KeyValue::new("weir.chunks.rejected", outcome.rejected.len() as i64),
                ]
            });
        let progress = services.writer.upsert(outcome, self.trace).await;
        if let Err(error) = &progress {
            span.fail(error.to_string());
        }
        progress
    }

    /// Tells that the job has succeeded, by a statement that began at `began`.
    fn succeeded(&self, services: &Services, began: SystemTime) {
        spans::completed(&services.tracer, self.trace, self.fence.lease, began);
        tracing::info!(
            job_id = self.fence.lease.job_id,
            epoch = self.fence.lease.epoch,
            trace_id = trace_id(self.trace),
            "A job succeeded."
        );
    }

    /// Tells that the lease is gone.
    pub(super) fn revoked(&self, services: &Services, reason: v1::RevokeReason) {
        let (tracer, lease) = (&services.tracer, self.fence.lease);
        spans::happened(tracer, self.trace, "revoke", lease, || {
            reason.as_str_name().to_owned()
        });
    }

    pub(super) async fn renew(&mut self, services: &Services) -> Result<(), End> {
        let renewed = services
            .store
            .renew(&self.fence, services.lease_duration)
            .await?;
        services.metrics.renewals.heartbeat.increment(1);
        self.renewed_until = held(renewed)?.lease_expires_at.unwrap_or_default();
        Ok(())
    }

    /// Looks whether the lease is still held, without renewing it.
    pub(super) async fn check(&self, services: &Services) -> Result<(), End> {
        held(services.store.lease(&self.fence).await?).map(drop)
    }

    /// Ends the lease early: the worker's connection broke, and if it does not
    /// come back within the grace it is taken to be gone.
    pub(super) async fn orphan(&self, services: &Services) {
        let orphaned = services
            .store
            .orphan(
                self.fence.lease,
                self.stream,
                self.renewed_until,
                services.orphan_grace,
            )
            .await;
        match orphaned {
            Ok(true) => {
                services.metrics.streams_broken.increment(1);
                let (tracer, lease, grace) =
                    (&services.tracer, self.fence.lease, services.orphan_grace);
                spans::happened(tracer, self.trace, "orphan", lease, || {
                    format!("the worker's stream broke; it is waited for {grace:?}")
                });
                tracing::info!(
                    job_id = lease.job_id,
                    epoch = lease.epoch,
                    grace_ms = grace.as_millis() as u64,
                    trace_id = trace_id(self.trace),
                    "A worker's stream broke; its lease ends early unless it comes back."
                );
            }
            // It is back already, or the lease has ended anyway.
            Ok(false) => {}
            // The lease runs out by itself.
            Err(error) => {
                tracing::debug!(%error, "The lease of a broken stream was left to run out.");
            }
        }
    }
}

/// Checks how a worker opens a stream.
pub(in crate::grpc) fn check_open(open: &v1::StreamOpen) -> Result<Asked<LeaseKey>, Status> {
    let mut door = Door::default();
    let lease = door.lease(open.job_id, open.epoch);
    if !(1..=MAX_WINDOW).contains(&open.window) {
        door.refuse(
            "open.window",
            format!("must be 1 to {MAX_WINDOW}, not {}", open.window),
        );
    }
    if !(1..=MAX_BATCH_SIZE).contains(&open.batch_size) {
        door.refuse(
            "open.batch_size",
            format!("must be 1 to {MAX_BATCH_SIZE}, not {}", open.batch_size),
        );
    }
    if open.held.len() > MAX_WINDOW as usize
        || open
            .held
            .iter()
            .any(|held| held.chunks.len() > MAX_BATCH_SIZE as usize)
    {
        door.refuse("open.held", "names more than a window of batches");
    }
    let mut seqs = HashSet::new();
    if let Some(held) = open
        .held
        .iter()
        .find(|held| !(1..i64::MAX / 2).contains(&held.seq) || !seqs.insert(held.seq))
    {
        door.refuse(
            "open.held",
            format!(
                "seq {} is not the number of one batch that was sent",
                held.seq
            ),
        );
    }
    door.close()?;
    Ok(lease)
}

/// The job of a lease that is held; the end of the stream, when it succeeded.
fn held(state: LeaseState) -> Result<Job, End> {
    match state {
        LeaseState::Held(job) => Ok(*job),
        LeaseState::Finished(job) => Err(finished(&*job)),
    }
}
