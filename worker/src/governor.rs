//! Whether the embedder is fit for work. While it is not, the worker claims
//! nothing, whoever found out.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use backon::{BackoffBuilder as _, ExponentialBackoff};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    backoff,
    embedder::{EmbedError, Embedder, Probe},
};

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// However long an embedder asks to be left alone, it is asked again by then.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(10);

/// What is known of the embedder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// It answered a probe.
    Fit(Probe),
    /// It failed, or was never tried.
    Down {
        reason: String,
        retry_after: Option<Duration>,
    },
}

/// Shared by the claim loop, the sessions and the probe.
#[derive(Debug)]
pub(crate) struct Governor {
    health: watch::Sender<Health>,
    /// Whether a batch was embedded since the last pause. A probe that
    /// succeeds where batches fail must not make the waits short again.
    worked: AtomicBool,
}

impl Governor {
    /// Down until a probe succeeds.
    pub(crate) fn new() -> Self {
        let health = Health::Down {
            reason: "the embedder was not tried yet".to_owned(),
            retry_after: None,
        };
        Self {
            health: watch::Sender::new(health),
            worked: AtomicBool::new(false),
        }
    }

    /// Fit without a probe.
    #[cfg(test)]
    pub(crate) fn fit_for_tests(&self, dimension: usize) {
        self.health.send_replace(Health::Fit(Probe {
            dimension,
            limits: crate::embedder::Limits::default(),
        }));
    }

    /// Whether a batch was embedded since the last pause.
    #[cfg(test)]
    pub(crate) fn has_worked(&self) -> bool {
        self.worked.load(Ordering::Relaxed)
    }

    /// Waits until the embedder is fit, and returns what it said of itself.
    pub(crate) async fn fit(&self) -> Probe {
        let mut health = self.health.subscribe();
        loop {
            if let Health::Fit(probe) = *health.borrow_and_update() {
                return probe;
            }
            changed(&mut health).await;
        }
    }

    /// Why the embedder is not fit, if it is not.
    pub(crate) fn ailment(&self) -> Option<String> {
        match &*self.health.borrow() {
            Health::Fit(_) => None,
            Health::Down { reason, .. } => Some(reason.clone()),
        }
    }

    /// Waits until the embedder is down, and returns why.
    pub(crate) async fn down(&self) -> String {
        self.pause().await.0
    }

    /// Tells everyone that the embedder failed. Returns whether that is news.
    pub(crate) fn failed(&self, reason: &str, retry_after: Option<Duration>) -> bool {
        let paused = self.health.send_if_modified(|health| {
            let fit = matches!(health, Health::Fit(_));
            if fit {
                *health = Health::Down {
                    reason: reason.to_owned(),
                    retry_after,
                };
            }
            fit
        });
        if paused {
            warn!(
                reason,
                "The embedder failed; claiming nothing until it answers again."
            );
        }
        paused
    }

    /// Tells that a batch was embedded.
    pub(crate) fn worked(&self) {
        self.worked.store(true, Ordering::Relaxed);
    }

    /// Probes the embedder until it answers, now and after every failure.
    /// Never returns.
    pub(crate) async fn run(&self, embedder: &dyn Embedder, limit: Duration) -> Infallible {
        let mut waits = waits();
        let mut told = None;
        loop {
            self.probe(embedder, limit, &mut waits, &mut told).await;
            let (_, retry_after) = self.pause().await;
            if self.worked.swap(false, Ordering::Relaxed) {
                waits = self::waits();
            }
            wait(&mut waits, retry_after).await;
        }
    }

    /// Returns when the embedder is fit.
    async fn probe(
        &self,
        embedder: &dyn Embedder,
        limit: Duration,
        waits: &mut ExponentialBackoff,
        told: &mut Option<String>,
    ) {
        loop {
            let (reason, retry_after) = match timeout(limit, embedder.probe()).await {
                Ok(Ok(probe)) => {
                    *told = None;
                    self.health.send_replace(Health::Fit(probe));
                    info!(dimension = probe.dimension, "The embedder answers.");
                    return;
                }
                Ok(Err(
                    EmbedError::Embedder {
                        reason,
                        retry_after,
                    }
                    | EmbedError::Overloaded {
                        reason,
                        retry_after,
                    },
                )) => (reason, retry_after),
                Ok(Err(error)) => (error.to_string(), None),
                Err(_) => (format!("it took longer than {limit:?} to answer"), None),
            };
            self.health.send_replace(Health::Down {
                reason: reason.clone(),
                retry_after,
            });
            // Said once, and again when it fails in another way.
            if told.as_ref() == Some(&reason) {
                debug!(reason, "The embedder still fails.");
            } else {
                warn!(
                    reason,
                    "The embedder does not answer a probe; claiming nothing until it does."
                );
                *told = Some(reason);
            }
            wait(waits, retry_after).await;
        }
    }

    async fn pause(&self) -> (String, Option<Duration>) {
        let mut health = self.health.subscribe();
        loop {
            if let Health::Down {
                reason,
                retry_after,
            } = &*health.borrow_and_update()
            {
                return (reason.clone(), *retry_after);
            }
            changed(&mut health).await;
        }
    }
}

/// The sender lives in the governor that is waited on, so that it cannot be
/// gone.
async fn changed(health: &mut watch::Receiver<Health>) {
    if health.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn waits() -> ExponentialBackoff {
    backoff::waits(FIRST_WAIT, LONGEST_WAIT).build()
}

async fn wait(waits: &mut ExponentialBackoff, retry_after: Option<Duration>) {
    let backoff = waits.next().unwrap_or(LONGEST_WAIT);
    let asked = retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
    sleep(backoff.max(asked)).await;
}

#[cfg(test)]
mod tests;
