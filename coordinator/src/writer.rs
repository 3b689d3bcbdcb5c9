//! The writer: the results of many streams, in one transaction. It never waits
//! to fill one: a result that finds a writer free is written alone, and those
//! that come while it writes go together in the next.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::store::{
    Store, StoreError,
    batches::{Outcome, Progress},
};

/// Transactions under way at the same time: one commits while the next fills.
const WRITERS: usize = 2;

/// Most results in one transaction.
const GROUP: usize = 64;

/// Most results that wait; streams hold back beyond this.
const QUEUE: usize = 256;

/// Hands results to the writers.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Entry>,
}

#[derive(Debug)]
struct Entry {
    outcome: Outcome,
    reply: oneshot::Sender<Result<Progress, StoreError>>,
}

impl Writer {
    /// Starts the writers. They end when the last `Writer` is gone and all it
    /// handed over is written.
    pub fn start(store: &Store, lease_duration: Duration, tasks: &TaskTracker) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        let entries = Arc::new(Mutex::new(entries));
        for _ in 0..WRITERS {
            tasks.spawn(write_all(store.clone(), lease_duration, entries.clone()));
        }
        Self { queue }
    }

    /// Writes an outcome, with the renewal of its lease, and returns when it is
    /// committed.
    pub async fn upsert(&self, outcome: Outcome) -> Result<Progress, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Internal("the writer has stopped".into());
        self.queue
            .send(Entry { outcome, reply })
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

async fn write_all(
    store: Store,
    lease_duration: Duration,
    entries: Arc<Mutex<mpsc::Receiver<Entry>>>,
) {
    let mut group = Vec::with_capacity(GROUP);
    // The guard is gone before the write begins: the other writer may take what comes.
    while entries.lock().await.recv_many(&mut group, GROUP).await > 0 {
        let (outcomes, replies): (Vec<_>, Vec<_>) = group
            .drain(..)
            .map(|entry| (entry.outcome, entry.reply))
            .unzip();
        match store.upsert(&outcomes, lease_duration).await {
            Ok(results) => {
                for (reply, result) in replies.into_iter().zip(results) {
                    // A stream that has ended meanwhile does not wait for its answer.
                    let _ = reply.send(result);
                }
            }
            Err(error) => {
                tracing::debug!(%error, results = outcomes.len(), "A group of results failed; writing each alone.");
                for (outcome, reply) in outcomes.into_iter().zip(replies) {
                    let _ = reply.send(write_one(&store, lease_duration, outcome).await);
                }
            }
        }
    }
}

/// Writes an outcome alone, so that a group that failed tells whose fault it
/// was.
async fn write_one(
    store: &Store,
    lease_duration: Duration,
    outcome: Outcome,
) -> Result<Progress, StoreError> {
    let results = store.upsert(&[outcome], lease_duration).await?;
    results
        .into_iter()
        .next()
        .unwrap_or_else(|| Err(StoreError::Internal("a write gave no result".into())))
}
