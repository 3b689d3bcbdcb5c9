//! Asks the coordinator for jobs of one model, as many as the embedder can be
//! given, and starts a session for each. When that is enough, it asks on for what
//! other namespaces have: it is embedded beside it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use backon::{BackoffBuilder as _, ExponentialBackoff};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, error, info, warn};
use weir_proto::limits::MAX_BUSY_WITH;

use crate::{
    backoff,
    coordinator::{CallError, Claimed, Lease},
    session::{self, Context},
};

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// An empty answer that came sooner than this was not a long poll; the next
/// request waits for the rest of it.
const SHORTEST_POLL: Duration = Duration::from_millis(500);

/// Asks for work until the worker is to stop, and returns when all of it is
/// finished or handed back.
pub(crate) async fn claim_and_drain(context: &Arc<Context>) {
    let concurrency = context.config.concurrency;
    let permits = Arc::new(Semaphore::new(concurrency as usize));
    let hands = Hands::default();
    let claimer = |asks| Claimer {
        context: Arc::clone(context),
        permits: Arc::clone(&permits),
        hands: hands.clone(),
        asks,
        waits: waits(),
        warned_of_lease: false,
    };
    let (mut claimer, mut beside) = (claimer(Asks::WithRoom), claimer(Asks::Beside));
    tokio::select! {
        // A claim that is given up here may just have been granted; nobody is
        // heard of under that lease, so that the job goes back uncharged.
        () = context.shutdown.cancelled() => {}
        () = claimer.run() => {}
        () = beside.run() => {}
    }
    let busy = concurrency as usize - permits.available_permits();
    info!(model = context.model.name, jobs = busy, "Draining.");
    // Drained means all permits are back.
    let drained = permits.acquire_many(concurrency).await;
    debug_assert!(drained.is_ok(), "nobody closes the semaphore");
}

/// When work is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// While the embedder can be given more.
    WithRoom,
    /// While it cannot: for one job at a time of a namespace of which there is
    /// none, and whose turn it is.
    Beside,
}

/// The jobs that are worked on.
#[derive(Clone, Default)]
struct Hands {
    jobs: Arc<Mutex<Jobs>>,
    /// Told when there is none of a namespace any more.
    left: Arc<Notify>,
}

/// How many jobs there are.
#[derive(Default)]
struct Jobs {
    of_namespace: BTreeMap<Arc<str>, usize>,
    /// Of these, claimed beside others.
    beside: usize,
}

/// One of these jobs.
struct InHand {
    hands: Hands,
    namespace: Arc<str>,
    asked: Asks,
}

impl Hands {
    fn take(&self, namespace: &Arc<str>, asked: Asks) -> InHand {
        let mut jobs = self.lock();
        *jobs.of_namespace.entry(Arc::clone(namespace)).or_default() += 1;
        jobs.beside += usize::from(asked == Asks::Beside);
        InHand {
            hands: self.clone(),
            namespace: Arc::clone(namespace),
            asked,
        }
    }

    fn namespaces(&self) -> Vec<String> {
        let jobs = self.lock();
        let namespaces = jobs.of_namespace.keys().take(MAX_BUSY_WITH);
        namespaces.map(ToString::to_string).collect()
    }

    fn has_beside(&self) -> bool {
        self.lock().beside > 0
    }

    /// Locks without poisoning: nothing that holds this lock can panic.
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut jobs = self.hands.lock();
        jobs.beside -= usize::from(self.asked == Asks::Beside);
        if let Some(of_namespace) = jobs.of_namespace.get_mut(&self.namespace) {
            *of_namespace -= 1;
            if *of_namespace == 0 {
                jobs.of_namespace.remove(&self.namespace);
                self.hands.left.notify_one();
            }
        }
    }
}

/// Asks for work, forever.
struct Claimer {
    context: Arc<Context>,
    permits: Arc<Semaphore>,
    hands: Hands,
    asks: Asks,
    waits: ExponentialBackoff,
    warned_of_lease: bool,
}

impl Claimer {
    async fn run(&mut self) {
        let endpoint = Arc::clone(&self.context.endpoint);
        loop {
            endpoint.has_room(self.asks == Asks::WithRoom).await;
            let Some(mut permits) = self.free_permits().await else {
                return;
            };
            let dimension = endpoint.health.fit().await.dimension;
            let room = endpoint.room();
            if (room > 0) != (self.asks == Asks::WithRoom) {
                continue;
            }
            // No more than the embedder can be given: what it cannot is for other workers.
            permits.truncate(room.max(1));
            let (max_chunks, busy_with) = match self.asks {
                Asks::WithRoom => (room, Vec::new()),
                Asks::Beside => (endpoint.call_texts(), self.hands.namespaces()),
            };
            let asked = Instant::now();
            match self.claim(permits.len(), max_chunks, busy_with).await {
                Ok(Claimed {
                    leases,
                    lease_duration,
                }) => {
                    self.claimed();
                    if let Some(lease_duration) = lease_duration {
                        self.warn_of_short_lease(lease_duration);
                    }
                    if leases.is_empty() {
                        sleep(SHORTEST_POLL.saturating_sub(asked.elapsed())).await;
                    }
                    let begun = !leases.is_empty();
                    self.start(leases, permits, dimension);
                    if begun && self.asks == Asks::Beside {
                        // Whose job it has is told with the next question: a short one is done by then.
                        let _ = timeout(SHORTEST_POLL, self.hands.left.notified()).await;
                    }
                }
                Err(error) => {
                    self.failed(&error);
                    drop(permits);
                    sleep(self.waits.next().unwrap_or(LONGEST_WAIT)).await;
                }
            }
        }
    }

    /// Waits for a permit and takes as many as are to be used. `None` would mean
    /// that there are none any more.
    async fn free_permits(&self) -> Option<Vec<OwnedSemaphorePermit>> {
        let first = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        let mut permits = vec![first];
        while self.asks == Asks::WithRoom
            && let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned()
        {
            permits.push(permit);
        }
        Some(permits)
    }

    async fn claim(
        &self,
        max_jobs: usize,
        max_chunks: usize,
        busy_with: Vec<String>,
    ) -> Result<Claimed, CallError> {
        let config = &self.context.config;
        // What it has its hands full of changes while this waits: not for long.
        let wait = if self.asks == Asks::Beside && self.hands.has_beside() {
            SHORTEST_POLL
        } else {
            config.claim_wait
        };
        self.context
            .coordinator
            .claim(
                &config.worker_id,
                &self.context.model.name,
                max_jobs,
                max_chunks,
                busy_with,
                wait,
            )
            .await
    }

    fn start(&self, leases: Vec<Lease>, permits: Vec<OwnedSemaphorePermit>, dimension: usize) {
        let claimed = leases.len();
        if claimed > permits.len() {
            error!(
                asked = permits.len(),
                claimed, "The coordinator leased more jobs than were asked for; the rest is left."
            );
        }
        for (lease, permit) in leases.into_iter().zip(permits) {
            let context = Arc::clone(&self.context);
            let in_hand = self.hands.take(&lease.namespace, self.asks);
            let work = session::work(context, lease, dimension);
            tokio::spawn(async move {
                work.await;
                drop((in_hand, permit));
            });
        }
    }

    /// The worker learns the lease duration with the first answer.
    fn warn_of_short_lease(&mut self, lease_duration: Duration) {
        let embed_timeout = self.context.model.timeout;
        if self.warned_of_lease || embed_timeout < lease_duration {
            return;
        }
        self.warned_of_lease = true;
        warn!(
            model = self.context.model.name,
            embed_timeout_ms = embed_timeout.as_millis(),
            lease_ms = lease_duration.as_millis(),
            "The worker's embed_timeout (WEIR_EMBED_TIMEOUT) is not below the coordinator's \
             lease_duration (WEIR_LEASE_DURATION): if heartbeats fail during one long call, \
             its job is given to another worker. Lower the first or raise the second."
        );
    }

    fn claimed(&mut self) {
        if self.context.refusal.send_replace(None).is_some() {
            self.waits = waits();
            info!(
                model = self.context.model.name,
                "The coordinator answers again."
            );
        }
    }

    fn failed(&self, error: &CallError) {
        let model = &self.context.model.name;
        self.context.endpoint.metrics.claim_failures.increment(1);
        let before = self.context.refusal.send_replace(Some(error.to_string()));
        // Each change is said once.
        if before.is_some() {
            debug!(model, %error, "Still cannot claim jobs.");
            return;
        }
        let coordinator = &self.context.config.coordinator;
        warn!(model, %coordinator, %error, "Cannot claim jobs; trying again until it works.");
    }
}

fn waits() -> ExponentialBackoff {
    backoff::waits(FIRST_WAIT, LONGEST_WAIT).build()
}
