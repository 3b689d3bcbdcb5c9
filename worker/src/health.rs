//! Whether the embedder is fit for work. While it is not, the worker claims
//! nothing.

use tokio::sync::watch;
use tracing::{debug, info, warn};

use weir_embedder::Probe;

/// What is known of the embedder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    /// It passed a probe.
    Fit(Probe),
    /// It failed, or was never tried.
    Down { reason: String },
}

/// Shared by the claim loop, the sessions and the endpoint, which finds out.
#[derive(Debug)]
pub(crate) struct Health {
    condition: watch::Sender<Condition>,
}

impl Health {
    /// Down until a probe passes.
    pub(crate) fn new() -> Self {
        let condition = Condition::Down {
            reason: "the embedder was not tried yet".to_owned(),
        };
        Self {
            condition: watch::Sender::new(condition),
        }
    }

    /// Waits until the embedder is fit, and returns what it said of itself.
    pub(crate) async fn fit(&self) -> Probe {
        let mut condition = self.condition.subscribe();
        loop {
            if let Condition::Fit(probe) = *condition.borrow_and_update() {
                return probe;
            }
            changed(&mut condition).await;
        }
    }

    /// Waits until the embedder is down, and returns why.
    pub(crate) async fn down(&self) -> String {
        let mut condition = self.condition.subscribe();
        loop {
            if let Condition::Down { reason } = &*condition.borrow_and_update() {
                return reason.clone();
            }
            changed(&mut condition).await;
        }
    }

    /// Returns why the embedder is not fit, if it is not.
    pub(crate) fn ailment(&self) -> Option<String> {
        match &*self.condition.borrow() {
            Condition::Fit(_) => None,
            Condition::Down { reason } => Some(reason.clone()),
        }
    }

    /// Tells everyone that the embedder works, and what it said of itself.
    pub(crate) fn recovered(&self, probe: Probe) {
        self.condition.send_replace(Condition::Fit(probe));
        info!(dimension = probe.dimension, "The embedder answers.");
    }

    /// Tells everyone that the embedder embeds nothing. Returns whether it did
    /// before.
    pub(crate) fn failed(&self, reason: &str) -> bool {
        let condition = Condition::Down {
            reason: reason.to_owned(),
        };
        let before = self.condition.send_replace(condition.clone());
        // Said once, and again when it fails in another way.
        if before == condition {
            debug!(reason, "The embedder still fails.");
        } else {
            warn!(
                reason,
                "The embedder embeds nothing; claiming nothing until it does."
            );
        }
        matches!(before, Condition::Fit(_))
    }
}

/// The sender lives in the health that is waited on, so that it cannot be gone.
async fn changed(condition: &mut watch::Receiver<Condition>) {
    if condition.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_embedder::Limits;

    use crate::testing::Logs;

    const PROBE: Probe = Probe {
        dimension: 2,
        limits: Limits {
            batch_size: None,
            batch_tokens: None,
            text_tokens: None,
            concurrent_calls: None,
        },
    };

    #[tokio::test]
    async fn an_embedder_is_fit_from_a_probe_that_passed_to_the_next_failure() {
        let health = Health::new();
        assert_eq!(health.down().await, "the embedder was not tried yet");
        assert!(!health.failed("503"), "no news");
        health.recovered(PROBE);
        assert_eq!((health.fit().await, health.ailment()), (PROBE, None));
        assert!(health.failed("504"));
        assert!(!health.failed("505"), "it is known");
        assert_eq!(health.down().await, "505", "in its latest words");
    }

    #[test]
    fn an_outage_is_said_once_and_so_is_each_change_of_it() {
        let logs = Logs::capture();
        let health = Health::new();
        for reason in ["503", "503", "504", "504"] {
            health.failed(reason);
        }
        health.recovered(PROBE);
        health.failed("504");
        let logs = logs.text();
        assert_eq!(logs.matches("embeds nothing").count(), 3, "{logs}");
    }
}
