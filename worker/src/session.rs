//! One lease: receives batches, embeds them one after the other, sends the
//! results while the next is being embedded, until the job or the lease ends.

mod hand_back;
mod link;
mod spans;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, instrument, warn};
use weir_embedder::Profile;
use weir_telemetry::{TraceContext, Tracer};

use crate::{
    config::Config,
    coordinator::{Coordinator, Event, HandBack, Lease},
    endpoint::{Endpoint, Outcome, Share},
    metrics::LeasesEnded,
    plan::{self, Held},
};
use hand_back::hand_back;
use link::{Closed, Link};

/// How long a session that cannot go on waits for the acks of what it has
/// embedded, and for a call that is still under way.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// What all sessions of a model share.
pub(crate) struct Context {
    pub(crate) config: Arc<Config>,
    pub(crate) model: Profile,
    pub(crate) coordinator: Coordinator,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) tracer: Tracer,
    /// Why the last claim failed, if it did.
    pub(crate) refusal: watch::Sender<Option<String>>,
    /// Cancelled when the worker is to drain.
    pub(crate) shutdown: CancellationToken,
}

impl Context {
    /// Why no job of the model can be worked on, if none can.
    pub(crate) fn obstacle(&self) -> Option<String> {
        if self.shutdown.is_cancelled() {
            return Some("stopping".to_owned());
        }
        let refusal = self.refusal.borrow().clone();
        let no_claim = || refusal.map(|reason| format!("cannot claim jobs: {reason}"));
        self.endpoint.health.ailment().or_else(no_claim)
    }
}

/// How work on a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The job has succeeded.
    Finished,
    /// The lease is gone; nothing of it is wanted any more.
    Lost(String),
    /// The job goes back to the queue.
    HandBack { how: HandBack, reason: String },
    /// The coordinator could not be reached for so long that the job was
    /// dropped.
    Unreachable(String),
}

/// Works on a lease until it ends. `dimension` is that of the embedder's
/// vectors. What the session wants of the embedder is known at once.
pub(crate) fn work(
    context: Arc<Context>,
    lease: Lease,
    dimension: usize,
) -> impl Future<Output = End> {
    let batch_size = plan::batch_size(
        context.model.batch_size,
        lease.max_batch_size,
        context.config.window,
        dimension,
    );
    let most = (batch_size * context.config.window) as usize;
    let share = context.endpoint.share(most.min(left(&lease)));
    drive(context, lease, batch_size, share)
}

/// How many chunks are still to be embedded.
fn left(lease: &Lease) -> usize {
    usize::try_from(lease.chunks_pending).unwrap_or_default()
}

#[instrument(name = "lease", skip_all, fields(
    job_id = lease.job_id, epoch = lease.epoch, source = lease.source,
    trace_id = lease.trace.map(|trace| tracing::field::display(trace.trace_id())),
))]
async fn drive(context: Arc<Context>, mut lease: Lease, batch_size: u32, share: Share) -> End {
    let started = Instant::now();
    let span = spans::session(&context, &mut lease);
    let metrics = &context.endpoint.metrics;
    let _open = metrics.lease_began();
    info!(
        chunks = lease.chunks_pending,
        attempt = lease.attempt,
        lease_ms = lease.duration.as_millis(),
        "The job started."
    );
    let mut session = Session::new(&context, &lease, batch_size, share);
    let end = session.drive().await;
    let chunks = session.chunks_persisted;
    let unacknowledged = session.held.take_results();
    // Ends the stream and whatever the embedder still does, before the job is
    // handed back.
    drop(session);
    if let End::HandBack { how, reason } = &end {
        hand_back(&context.coordinator, &lease, &unacknowledged, *how, reason).await;
    }
    spans::ended(&span, &end, chunks);
    let elapsed_ms = started.elapsed().as_millis();
    count(&end, &metrics.leases_ended);
    match &end {
        End::Finished => info!(chunks, elapsed_ms, "The job finished."),
        End::Lost(reason) => warn!(chunks, elapsed_ms, reason, "The lease ended; job dropped."),
        End::HandBack { how, reason } => match how {
            HandBack::Fail => warn!(
                chunks,
                elapsed_ms, reason, "The job failed and was handed back."
            ),
            HandBack::Drain | HandBack::EmbedderDown => {
                info!(chunks, elapsed_ms, reason, "The job was released.");
            }
        },
        End::Unreachable(error) => warn!(
            chunks,
            elapsed_ms, error, "The coordinator was unreachable for too long; job dropped."
        ),
    }
    end
}

fn count(end: &End, ended: &LeasesEnded) {
    let counter = match end {
        End::Finished => &ended.finished,
        End::Lost(_) => &ended.lost,
        End::HandBack { how, .. } => match how {
            HandBack::Drain | HandBack::EmbedderDown => &ended.released,
            HandBack::Fail => &ended.failed,
        },
        End::Unreachable(_) => &ended.unreachable,
    };
    counter.increment(1);
}

struct Session<'a> {
    context: &'a Context,
    trace: Option<TraceContext>,
    namespace: Arc<str>,
    held: Held,
    link: Link,
    /// The batches at the embedder.
    embedding: FuturesUnordered<BoxFuture<'a, Outcome>>,
    share: Share,
    /// Most texts to have at the embedder, how many are left of the job, and of
    /// how many of these the result is sent and not acknowledged.
    most: usize,
    left: usize,
    answered: usize,
    ending: Option<Ending>,
    /// Chunks whose outcome was acknowledged on this lease.
    chunks_persisted: usize,
    /// The last ack said that nothing is pending, so that `finished` follows.
    complete: bool,
}

/// The session takes no further batches and ends when it holds none, or at the
/// deadline.
struct Ending {
    how: HandBack,
    reason: String,
    deadline: Instant,
    /// The batches held are still embedded.
    draining: bool,
}

impl<'a> Session<'a> {
    fn new(context: &'a Context, lease: &Lease, batch_size: u32, share: Share) -> Self {
        let config = &context.config;
        Self {
            context,
            trace: lease.trace,
            namespace: Arc::clone(&lease.namespace),
            held: Held::new(config.window),
            link: Link::new(
                context.coordinator.clone(),
                lease.clone(),
                config.window,
                batch_size,
            ),
            embedding: FuturesUnordered::new(),
            share,
            most: (batch_size * config.window) as usize,
            left: left(lease),
            answered: 0,
            ending: None,
            chunks_persisted: 0,
            complete: false,
        }
    }

    async fn drive(&mut self) -> End {
        let context = self.context;
        loop {
            self.embed_next();
            if let Some(end) = self.settled() {
                return end;
            }
            let deadline = self.ending.as_ref().map(|ending| ending.deadline);
            let may_drain = self.ending.is_none();
            let may_pause = self.ending.as_ref().is_none_or(|ending| ending.draining);
            // In this order, so that a stream with much to say cannot keep the
            // rest waiting.
            tokio::select! {
                biased;
                () = context.shutdown.cancelled(), if may_drain => self.drain(),
                reason = context.endpoint.health.down(), if may_pause => {
                    self.stop(HandBack::EmbedderDown, reason);
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    if let Some(end) = self.handed_back() {
                        return end;
                    }
                }
                Some(outcome) = self.embedding.next(), if !self.embedding.is_empty() => {
                    self.embedded(outcome);
                }
                event = self.link.next(&self.held) => match event {
                    Ok(event) => if let Some(end) = self.heard(event) {
                        return end;
                    },
                    Err(Closed::Lost(reason)) => return End::Lost(reason),
                    Err(Closed::Refused(reason)) => {
                        return End::HandBack { how: HandBack::Fail, reason };
                    }
                    Err(Closed::Unreachable(error)) => return End::Unreachable(error),
                },
            }
        }
    }
    fn embed_next(&mut self) {
        while let Some(batch) = self.held.start_next() {
            let span = spans::batch(&self.context.tracer, self.trace, &batch);
            let (endpoint, trace) = (&self.context.endpoint, self.trace);
            let namespace = Arc::clone(&self.namespace);
            let embedding = async move {
                let outcome = endpoint.embed(batch, &namespace, trace).await;
                spans::embedded(&span, &outcome);
                outcome
            };
            self.embedding.push(embedding.boxed());
        }
    }

    /// Takes in what became of the batch in the embedder.
    fn embedded(&mut self, outcome: Outcome) {
        // What was embedded before the embedder failed is not lost.
        if outcome.result.is_empty() {
            self.held.forget(outcome.result.seq);
        } else {
            let result = &outcome.result;
            self.answered += result.embedded.len() + result.rejected.len();
            self.share.set(self.most.min(self.left), self.answered);
            self.link.send(result);
            self.held.embedded(outcome.result);
        }
        if let Some(reason) = outcome.failure {
            self.stop(HandBack::EmbedderDown, reason);
        }
    }

    fn heard(&mut self, event: Event) -> Option<End> {
        match event {
            // It would not be embedded; it stays pending.
            Event::Batch(batch) if self.ending.is_some() => {
                debug!(seq = batch.seq, "A batch came too late and is left.");
            }
            Event::Batch(batch) => {
                debug!(seq = batch.seq, "A batch came.");
                if let Err(breach) = self.held.receive(batch) {
                    let how = HandBack::Fail;
                    let reason = breach.to_string();
                    return Some(End::HandBack { how, reason });
                }
            }
            Event::Ack { seq, done, total } => {
                if let Some(chunks) = self.held.acknowledge(seq) {
                    self.chunks_persisted += chunks;
                    self.left = self.left.saturating_sub(chunks);
                    self.answered = self.answered.saturating_sub(chunks);
                    self.share.set(self.most.min(self.left), self.answered);
                } else {
                    debug!(seq, "An ack came for a batch that is not held.");
                }
                self.complete = done >= total;
                debug!(seq, done, total, "A batch is persisted.");
            }
            Event::Finished => return Some(End::Finished),
            Event::Revoked(reason) => return Some(End::Lost(reason.to_owned())),
        }
        None
    }

    /// Finishes the batches that are here and takes no further ones.
    fn drain(&mut self) {
        self.ending = Some(Ending {
            how: HandBack::Drain,
            reason: "the worker is draining".to_owned(),
            deadline: Instant::now() + self.context.config.drain_timeout,
            draining: true,
        });
    }

    /// Embeds nothing further: waits for the acks of what is embedded, and for
    /// the call in flight. The first reason stands.
    fn stop(&mut self, how: HandBack, reason: String) {
        let deadline = Instant::now() + SETTLE_LIMIT;
        let deadline = match &self.ending {
            Some(ending) if !ending.draining => return,
            Some(ending) => ending.deadline.min(deadline),
            None => deadline,
        };
        self.held.forget_queued();
        self.ending = Some(Ending {
            how,
            reason,
            deadline,
            draining: false,
        });
    }

    /// The end of a session that is ending and has nothing left to wait for.
    fn settled(&mut self) -> Option<End> {
        let settled = self.ending.is_some() && self.held.is_empty() && !self.complete;
        settled.then(|| self.handed_back()).flatten()
    }

    fn handed_back(&mut self) -> Option<End> {
        let Ending { how, reason, .. } = self.ending.take()?;
        Some(End::HandBack { how, reason })
    }
}

#[cfg(test)]
mod tests;
