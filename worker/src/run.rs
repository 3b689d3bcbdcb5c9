//! The worker as a whole: claims what it has permits for, runs a session for
//! each lease, and drains.

use std::{pin::pin, sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    backoff,
    config::Config,
    coordinator::{CallError, Coordinator, Lease},
    embedder::Embedder,
    governor::Governor,
    session::{self, Context},
};

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// An empty answer that came sooner than this was not a long poll; the next
/// request waits for the rest of it.
const SHORTEST_POLL: Duration = Duration::from_millis(500);

/// Runs a worker until `shutdown` is cancelled and its jobs are finished or
/// handed back, within `drain_timeout` and some seconds.
///
/// Neither an embedder nor a coordinator that is away ends it: it says so,
/// claims nothing and tries again. Fails when the settings do not allow a
/// client of the coordinator.
pub async fn run(
    config: Config,
    embedder: Arc<dyn Embedder>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let coordinator = Coordinator::new(&config.coordinator)?;
    info!(
        worker_id = config.worker_id,
        model = config.model,
        coordinator = %config.coordinator,
        concurrency = config.concurrency,
        "The worker started."
    );
    let context = Arc::new(Context {
        config,
        coordinator,
        embedder,
        governor: Governor::new(),
        shutdown,
    });
    let (embedder, limit) = (&*context.embedder, context.config.embedder.embed_timeout);
    let mut probe = pin!(context.governor.run(embedder, limit));
    tokio::select! {
        () = claim_and_drain(&context) => {}
        never = &mut probe => match never {},
    }
    info!("The worker has drained.");
    Ok(())
}

async fn claim_and_drain(context: &Arc<Context>) {
    let concurrency = context.config.concurrency;
    let permits = Arc::new(Semaphore::new(concurrency as usize));
    let mut claimer = Claimer {
        context: Arc::clone(context),
        permits: Arc::clone(&permits),
        waits: waits(),
        failing: false,
        warned_of_lease: false,
    };
    tokio::select! {
        // A claim that is given up here may just have been granted; nobody is
        // heard of under that lease, so that the job goes back uncharged.
        () = context.shutdown.cancelled() => {}
        () = claimer.run() => {}
    }
    let busy = concurrency as usize - permits.available_permits();
    info!(jobs = busy, "Draining.");
    // Drained means all permits are back.
    let drained = permits.acquire_many(concurrency).await;
    debug_assert!(drained.is_ok(), "nobody closes the semaphore");
}

/// Asks for work, forever.
struct Claimer {
    context: Arc<Context>,
    permits: Arc<Semaphore>,
    waits: ExponentialBackoff,
    /// Whether the last claim failed, so that each change is said once.
    failing: bool,
    warned_of_lease: bool,
}

impl Claimer {
    async fn run(&mut self) {
        while let Some(permits) = self.free_permits().await {
            let dimension = self.context.governor.fit().await;
            let asked = Instant::now();
            match self.claim(permits.len()).await {
                Ok(leases) => {
                    self.claimed();
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

    async fn claim(&self, max_jobs: usize) -> Result<Vec<Lease>, CallError> {
        let config = &self.context.config;
        self.context
            .coordinator
            .claim(
                &config.worker_id,
                &config.model,
                max_jobs,
                0,
                config.claim_wait,
            )
            .await
    }

    fn start(&mut self, leases: Vec<Lease>, permits: Vec<OwnedSemaphorePermit>, dimension: usize) {
        let claimed = leases.len();
        if claimed > permits.len() {
            error!(
                asked = permits.len(),
                claimed, "The coordinator leased more jobs than were asked for; the rest is left."
            );
        }
        for (lease, permit) in leases.into_iter().zip(permits) {
            self.warn_of_short_lease(&lease);
            let context = Arc::clone(&self.context);
            tokio::spawn(async move {
                session::work(context, lease, dimension).await;
                drop(permit);
            });
        }
    }

    /// The worker learns the lease duration with its first lease.
    fn warn_of_short_lease(&mut self, lease: &Lease) {
        let embed_timeout = self.context.config.embedder.embed_timeout;
        if self.warned_of_lease || embed_timeout < lease.duration {
            return;
        }
        self.warned_of_lease = true;
        warn!(
            embed_timeout_ms = embed_timeout.as_millis(),
            lease_ms = lease.duration.as_millis(),
            "The worker's embed_timeout (WEIR_EMBED_TIMEOUT) is not below the coordinator's \
             lease_duration (WEIR_LEASE_DURATION): if heartbeats fail during one long call, \
             its job is given to another worker. Lower the first or raise the second."
        );
    }

    fn claimed(&mut self) {
        if self.failing {
            self.failing = false;
            self.waits = waits();
            info!("The coordinator answers again.");
        }
    }

    fn failed(&mut self, error: &CallError) {
        if self.failing {
            debug!(%error, "Still cannot claim jobs.");
            return;
        }
        self.failing = true;
        let coordinator = &self.context.config.coordinator;
        warn!(%coordinator, %error, "Cannot claim jobs; trying again until it works.");
    }
}

fn waits() -> ExponentialBackoff {
    backoff::waits(FIRST_WAIT, LONGEST_WAIT).build()
}

#[cfg(test)]
mod tests;
