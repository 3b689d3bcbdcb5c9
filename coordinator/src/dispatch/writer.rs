//! The writer: the results of many sessions, in one transaction. It never waits
//! to fill one: a result that finds a writer free is written alone, and those
//! that come while it writes go together in the next. A result that would have
//! to wait for a lock does so apart from the others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};
use tokio_util::task::TaskTracker;
use weir_telemetry::{KeyValue, Span, SpanKind, TraceContext, Tracer};

use crate::{
    dispatch::gather::Gather,
    metrics::Metrics,
    store::{
        Store, StoreError,
        activity::Persisted,
        batches::{Outcome, Progress, Written},
    },
    turns::Turns,
};

/// Transactions under way at the same time: one commits while the next fills.
const WRITERS: usize = 2;

/// Most results in one transaction.
const GROUP: usize = 64;

/// Most results that wait; sessions hold back beyond this.
const QUEUE: usize = 256;

/// How long to wait before a result is tried again that could not be written.
const AGAIN: Duration = Duration::from_millis(500);

/// How often a result is tried that fails for what may not pass: what was embedded is
/// worth more than a few statements.
const MOST_FAULTS: u32 = 8;

/// Hands results to the writers.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Entry>,
    metrics: Arc<Metrics>,
    tally: Arc<Tally>,
}

/// What was persisted since it was last asked for.
#[derive(Debug, Default)]
struct Tally {
    embedded: AtomicI64,
    rejected: AtomicI64,
}

#[derive(Debug)]
struct Entry {
    outcome: Outcome,
    asker: Asker,
}

/// Who waits for an outcome to be written.
#[derive(Debug)]
struct Asker {
    /// The trace that its job takes part in.
    trace: Option<TraceContext>,
    /// Whether it is tried again for as long as the database is away or somebody else has
    /// locked what it needs.
    patient: bool,
    /// How often it failed for what may not pass.
    faults: u32,
    reply: oneshot::Sender<Result<Progress, StoreError>>,
}

/// What the writers share.
#[derive(Debug)]
struct Shared {
    store: Store,
    lease_duration: Duration,
    entries: Gather<Entry>,
    /// Of the results that wait for a lock, by source.
    turns: Turns<i64>,
    tasks: TaskTracker,
    tracer: Tracer,
}

impl Writer {
    /// Starts the writers. They end when the last `Writer` is gone and all it
    /// handed over is written.
    pub fn start(
        store: &Store,
        lease_duration: Duration,
        tasks: &TaskTracker,
        metrics: Arc<Metrics>,
        tracer: &Tracer,
    ) -> Self {
        let (queue, entries) = Gather::new(QUEUE);
        let shared = Arc::new(Shared {
            store: store.clone(),
            lease_duration,
            entries,
            turns: Turns::default(),
            tasks: tasks.clone(),
            tracer: tracer.clone(),
        });
        for _ in 0..WRITERS {
            tasks.spawn(write_all(shared.clone()));
        }
        Self {
            queue,
            metrics,
            tally: Arc::default(),
        }
    }

    /// Writes an outcome, with the renewal of its lease, and returns when it is
    /// committed. `trace` is that of its job.
    pub async fn upsert(
        &self,
        outcome: Outcome,
        trace: Option<TraceContext>,
    ) -> Result<Progress, StoreError> {
        self.hand_over(outcome, trace, false).await
    }

    /// The same, tried again until the database is there and nobody else has locked
    /// what it needs.
    pub async fn upsert_patiently(
        &self,
        outcome: Outcome,
        trace: Option<TraceContext>,
    ) -> Result<Progress, StoreError> {
        self.hand_over(outcome, trace, true).await
    }

    async fn hand_over(
        &self,
        outcome: Outcome,
        trace: Option<TraceContext>,
        patient: bool,
    ) -> Result<Progress, StoreError> {
        let began = Instant::now();
        let (embedded, rejected) = (outcome.embedded.len(), outcome.rejected.len());
        let truncated = outcome
            .embedded
            .iter()
            .filter(|it| it.truncated_to.is_some());
        let truncated = truncated.count();
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::internal("the writer has stopped");
        self.queue
            .send(Entry {
                outcome,
                asker: Asker {
                    trace,
                    patient,
                    faults: 0,
                    reply,
                },
            })
            .await
            .map_err(|_| gone())?;
        let progress = answer.await.map_err(|_| gone())??;
        let Metrics { chunks, commit, .. } = &*self.metrics;
        commit.record(began.elapsed().as_secs_f64());
        let persisted = Persisted {
            embedded: embedded as i64 - progress.late.embedded,
            rejected: rejected as i64 - progress.late.rejected,
        };
        chunks.embedded.increment(persisted.embedded.unsigned_abs());
        chunks.truncated.increment(truncated as u64);
        chunks.refused.increment(persisted.rejected.unsigned_abs());
        chunks.late.increment(progress.late.chunks().unsigned_abs());
        self.add_to_tally(persisted);
        Ok(progress)
    }

    /// What was persisted since this was last asked.
    pub fn take_tally(&self) -> Persisted {
        Persisted {
            embedded: self.tally.embedded.swap(0, Ordering::Relaxed),
            rejected: self.tally.rejected.swap(0, Ordering::Relaxed),
        }
    }

    /// Counts this with what was persisted, at first or because it could not be
    /// noted.
    pub fn add_to_tally(&self, persisted: Persisted) {
        let Persisted { embedded, rejected } = persisted;
        self.tally.embedded.fetch_add(embedded, Ordering::Relaxed);
        self.tally.rejected.fetch_add(rejected, Ordering::Relaxed);
    }
}

async fn write_all(shared: Arc<Shared>) {
    while let Some(group) = shared.entries.next(GROUP).await {
        let (outcomes, askers): (Vec<_>, Vec<_>) = group
            .into_iter()
            .map(|entry| (entry.outcome, entry.asker))
            .unzip();
        let commit = shared.commit(askers.iter().filter_map(|asker| asker.trace), &outcomes);
        let written = match shared
            .store
            .upsert_group(&outcomes, shared.lease_duration)
            .await
        {
            Ok(written) => written,
            Err(error) => {
                commit.fail(error.to_string());
                tracing::debug!(%error, results = outcomes.len(), "A group of results failed; writing each alone.");
                let mut written = Vec::with_capacity(outcomes.len());
                for outcome in &outcomes {
                    written.push(shared.write_one(outcome).await);
                }
                written
            }
        };
        let busy = |it: &&Written| matches!(it, Written::Busy { .. });
        commit.set(|| {
            let busy = written.iter().filter(busy).count() as i64;
            [KeyValue::new("weir.results.left_out", busy)]
        });
        drop(commit);
        for ((outcome, asker), written) in outcomes.into_iter().zip(askers).zip(written) {
            let mut entry = Entry { outcome, asker };
            match written {
                Written::Settled(Err(error)) if entry.asker.tries_after(&error) => {
                    shared.tasks.spawn(write_later(shared.clone(), entry));
                }
                Written::Settled(result) => entry.asker.tell(result),
                Written::Busy { source_id } => {
                    shared
                        .tasks
                        .spawn(wait_and_write(shared.clone(), entry, source_id));
                }
            }
        }
    }
}

impl Asker {
    /// Whether it waits for another try after this.
    fn tries_after(&mut self, error: &StoreError) -> bool {
        let passes = match error {
            StoreError::Internal(_) => {
                self.faults += 1;
                self.faults < MOST_FAULTS
            }
            error => error.may_pass(),
        };
        self.patient && passes && !self.reply.is_closed()
    }

    fn tell(self, result: Result<Progress, StoreError>) {
        // A session that has ended meanwhile does not wait for its answer.
        let _ = self.reply.send(result);
    }
}

impl Shared {
    /// The span of a transaction: a child of one of the traces whose results it
    /// writes, linked to the others.
    fn commit(&self, traces: impl Iterator<Item = TraceContext>, outcomes: &[Outcome]) -> Span {
        self.tracer.shared(traces, "commit", SpanKind::Client, || {
            let chunks = |outcome: &Outcome| outcome.embedded.len() + outcome.rejected.len();
            [
                KeyValue::new("db.system.name", "postgresql"),
                KeyValue::new("db.query.summary", "UPSERT weir.embeddings"),
                KeyValue::new("db.operation.batch.size", outcomes.len() as i64),
                KeyValue::new(
                    "weir.chunks",
                    outcomes.iter().map(chunks).sum::<usize>() as i64,
                ),
            ]
        })
    }

    /// Writes an outcome alone, so that a group that failed tells whose fault it
    /// was.
    async fn write_one(&self, outcome: &Outcome) -> Written {
        let outcomes = std::slice::from_ref(outcome);
        match self.store.upsert_group(outcomes, self.lease_duration).await {
            Ok(written) => written.into_iter().next().unwrap_or_else(|| {
                Written::Settled(Err(StoreError::internal("a write gave no result")))
            }),
            Err(error) => Written::Settled(Err(error)),
        }
    }
}

/// Writes an outcome whose job somebody else has locked, a long write of its
/// source for instance. The writers cannot wait for that: they write for other
/// sources as well.
async fn wait_and_write(shared: Arc<Shared>, mut entry: Entry, source_id: i64) {
    let turn = shared.turns.take(source_id).await;
    let result = write_alone(&shared, &entry).await;
    drop(turn);
    match result {
        Err(error) if entry.asker.tries_after(&error) => write_later(shared, entry).await,
        result => entry.asker.tell(result),
    }
}

/// Writes an outcome alone, again and again while the database is away or somebody
/// else has locked what it needs.
async fn write_later(shared: Arc<Shared>, mut entry: Entry) {
    loop {
        sleep(AGAIN).await;
        match write_alone(&shared, &entry).await {
            Err(error) if entry.asker.tries_after(&error) => {}
            result => return entry.asker.tell(result),
        }
    }
}

async fn write_alone(shared: &Shared, entry: &Entry) -> Result<Progress, StoreError> {
    let Entry { outcome, asker } = entry;
    if asker.reply.is_closed() {
        // Its session has ended. The worker sends it again.
        return Err(StoreError::internal("nobody waits for the result"));
    }
    let commit = shared.commit(asker.trace.into_iter(), std::slice::from_ref(outcome));
    let written = shared.store.upsert(outcome, shared.lease_duration).await;
    drop(commit);
    written
}
