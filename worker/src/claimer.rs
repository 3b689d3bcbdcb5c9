//! Asks the coordinator for jobs of one model, as many as the embedder can be
//! given, and starts a session for each.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tracing::{debug, error, info, warn};

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
    let mut claimer = Claimer {
        context: Arc::clone(context),
        permits: Arc::clone(&permits),
        waits: waits(),
        warned_of_lease: false,
    };
    tokio::select! {
        // A claim that is given up here may just have been granted; nobody is
        // heard of under that lease, so that the job goes back uncharged.
        () = context.shutdown.cancelled() => {}
        () = claimer.run() => {}
    }
    let busy = concurrency as usize - permits.available_permits();
    info!(model = context.model.name, jobs = busy, "Draining.");
    // Drained means all permits are back.
    let drained = permits.acquire_many(concurrency).await;
    debug_assert!(drained.is_ok(), "nobody closes the semaphore");
}

/// Asks for work, forever.
struct Claimer {
    context: Arc<Context>,
    permits: Arc<Semaphore>,
    waits: ExponentialBackoff,
    warned_of_lease: bool,
}

impl Claimer {
    async fn run(&mut self) {
        let endpoint = Arc::clone(&self.context.endpoint);
        while let Some(mut permits) = self.free_permits().await {
            let dimension = endpoint.health.fit().await.dimension;
            // No more than the embedder can be given: what it cannot is for other workers.
            let room = endpoint.room().await;
            permits.truncate(room);
            let asked = Instant::now();
            match self.claim(permits.len(), room).await {
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
                    self.start(leases, permits, dimension);
                }
                Err(error) => {
                    self.failed(&error);
                    drop(permits);
                    sleep(self.waits.next().unwrap_or(LONGEST_WAIT)).await;
                }
            }
        }
    }

    /// Waits for a permit and takes all that are free. `None` would mean that
    /// there are none any more.
    async fn free_permits(&self) -> Option<Vec<OwnedSemaphorePermit>> {
        let first = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        let mut permits = vec![first];
        while let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            permits.push(permit);
        }
        Some(permits)
    }

    async fn claim(&self, max_jobs: usize, max_chunks: usize) -> Result<Claimed, CallError> {
        let config = &self.context.config;
        self.context
            .coordinator
            .claim(
                &config.worker_id,
                &self.context.model.name,
                max_jobs,
                u32::try_from(max_chunks).unwrap_or(u32::MAX),
                config.claim_wait,
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
            tokio::spawn(async move {
                session::work(context, lease, dimension).await;
                drop(permit);
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
