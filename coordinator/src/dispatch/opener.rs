//! The opener: leases that sessions take up at the same time, in one statement, and
//! what small jobs have to embed, in another. As the writer it never waits for
//! more: a lease that finds an opener free is opened alone.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::{
    dispatch::gather::Gather,
    store::{
        Store, StoreError,
        lease::{LeaseState, Opening},
        rows::{ChunkText, Job},
    },
};

/// Statements under way at the same time: one commits while the next fills.
const OPENERS: usize = 2;

/// Most leases in one statement.
const GROUP: usize = 64;

/// Most chunks that are pending of a job whose texts are read as it is opened.
const SMALL: i32 = 8;

/// Most bytes of the texts that are read of the jobs of a group as they are opened.
const SMALL_BYTES: i64 = 4 << 20;

/// Hands leases to the openers.
#[derive(Debug, Clone)]
pub struct Opener {
    queue: mpsc::Sender<Entry>,
}

/// How a lease was opened.
#[derive(Debug)]
pub enum Opened {
    /// The lease is held.
    Held(Box<Held>),
    /// The job succeeded under this lease.
    Finished(Box<Job>),
}

/// A lease that was held when it was opened.
#[derive(Debug)]
pub struct Held {
    /// The job.
    pub job: Job,
    /// All that is pending, shortest text first, where that is little: the lease
    /// was still held when this was read. Empty says nothing.
    pub texts: Vec<ChunkText>,
}

#[derive(Debug)]
struct Entry {
    opening: Opening,
    reply: oneshot::Sender<Result<Opened, StoreError>>,
}

/// What the openers share.
#[derive(Debug)]
struct Shared {
    store: Store,
    lease_duration: Duration,
    entries: Gather<Entry>,
    tasks: TaskTracker,
}

impl Opener {
    /// Starts the openers. They end when the last `Opener` is gone.
    pub fn start(store: &Store, lease_duration: Duration, tasks: &TaskTracker) -> Self {
        let (queue, entries) = Gather::new(GROUP);
        let shared = Arc::new(Shared {
            store: store.clone(),
            lease_duration,
            entries,
            tasks: tasks.clone(),
        });
        for _ in 0..OPENERS {
            tasks.spawn(open_all(shared.clone()));
        }
        Self { queue }
    }

    /// Renews a lease for a session that takes it up.
    pub async fn open(&self, opening: Opening) -> Result<Opened, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::internal("the opener has stopped");
        let entry = Entry { opening, reply };
        self.queue.send(entry).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

async fn open_all(shared: Arc<Shared>) {
    while let Some(group) = shared.entries.next(GROUP).await {
        shared.open_group(group).await;
    }
}

impl Shared {
    async fn open_group(self: &Arc<Self>, group: Vec<Entry>) {
        let mut entries = HashMap::with_capacity(group.len());
        for entry in group {
            // A second opening of the same job comes after the first.
            if let Some(first) = entries.insert(entry.opening.fence.lease.job_id, entry) {
                self.open_apart(first);
            }
        }
        let openings: Vec<Opening> = entries
            .values()
            .map(|entry| entry.opening.clone())
            .collect();
        let opened = self.store.open_group(&openings, self.lease_duration).await;
        let jobs = opened.unwrap_or_else(|error| {
            tracing::debug!(%error, leases = openings.len(), "A group of leases was not opened; opening each alone.");
            Vec::new()
        });
        let mut opened = Vec::with_capacity(jobs.len());
        for job in jobs {
            if let Some(Entry { reply, .. }) = entries.remove(&job.id) {
                opened.push((job, reply));
            }
        }
        for left_out in entries.into_values() {
            self.open_apart(left_out);
        }
        let mut texts = self.small_jobs(opened.iter().map(|(job, _)| job)).await;
        for (job, reply) in opened {
            let texts = texts.remove(&job.id).unwrap_or_default();
            let held = Held { job, texts };
            // A session that has ended meanwhile does not wait for its answer.
            let _ = reply.send(Ok(Opened::Held(Box::new(held))));
        }
    }

    /// The texts of those jobs that are small. Where they cannot be read, each
    /// session tries it itself.
    async fn small_jobs(&self, jobs: impl Iterator<Item = &Job>) -> HashMap<i64, Vec<ChunkText>> {
        let small: Vec<_> = jobs
            .filter(|job| job.chunks_pending() <= SMALL)
            .map(Job::lease)
            .collect();
        if small.is_empty() {
            return HashMap::new();
        }
        let texts = self.store.texts_of_small(&small, SMALL, SMALL_BYTES).await;
        texts.unwrap_or_else(|error| {
            tracing::debug!(%error, "The texts of small jobs were left to their sessions.");
            HashMap::new()
        })
    }

    /// Opens a lease whose job somebody else has locked, or whose lease is not
    /// held: what waits, waits for itself alone.
    fn open_apart(self: &Arc<Self>, Entry { opening, reply }: Entry) {
        let shared = self.clone();
        self.tasks.spawn(async move {
            let opened = shared.store.open(&opening, shared.lease_duration).await;
            let _ = reply.send(opened.map(|state| match state {
                LeaseState::Finished(job) => Opened::Finished(job),
                LeaseState::Held(job) => Opened::Held(Box::new(Held {
                    job: *job,
                    texts: Vec::new(),
                })),
            }));
        });
    }
}
