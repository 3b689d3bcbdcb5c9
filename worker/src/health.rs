//! Whether the embedder is fit for work. While it is not, the worker takes none.

use tokio::sync::watch;
use tracing::{debug, info, warn};
use weir_embedder::Probe;

/// How the embedder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// It was never tried.
    Untried,
    /// It embeds.
    Fit,
    /// It is left alone for a while, and why.
    Resting(String),
    /// It embeds nothing, and why.
    Down(String),
}

/// What is known of the embedder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) state: State,
    /// What it said of itself at the last probe that passed.
    pub(crate) said: Option<Probe>,
}

impl Condition {
    /// Whether it embeds what it is given, sooner or later.
    pub(crate) const fn is_fit(&self) -> bool {
        matches!(self.state, State::Fit | State::Resting(_))
    }

    pub(crate) const fn is_resting(&self) -> bool {
        matches!(self.state, State::Resting(_))
    }

    /// Why it embeds nothing, if that is so.
    pub(crate) fn ailment(&self) -> Option<&str> {
        match &self.state {
            State::Untried => Some("the embedder was not tried yet"),
            State::Down(reason) => Some(reason),
            State::Fit | State::Resting(_) => None,
        }
    }
}

/// Shared by the session and the endpoint, which finds out.
#[derive(Debug)]
pub(crate) struct Health {
    condition: watch::Sender<Condition>,
}

impl Health {
    /// Nothing is known until a probe ends.
    pub(crate) fn new() -> Self {
        let condition = Condition {
            state: State::Untried,
            said: None,
        };
        Self {
            condition: watch::Sender::new(condition),
        }
    }

    pub(crate) fn condition(&self) -> Condition {
        self.condition.borrow().clone()
    }

    /// Watches the condition.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    /// Waits until the embedder is fit.
    pub(crate) async fn fit(&self) {
        // The sender cannot be gone: it is in what is waited on.
        let _ = self.subscribe().wait_for(Condition::is_fit).await;
    }

    /// Returns why the embedder embeds nothing, if that is so.
    pub(crate) fn ailment(&self) -> Option<String> {
        self.condition.borrow().ailment().map(str::to_owned)
    }

    /// Tells everyone that the embedder works, and what it said of itself.
    pub(crate) fn recovered(&self, probe: Probe) {
        self.condition.send_replace(Condition {
            state: State::Fit,
            said: Some(probe),
        });
        info!(dimension = probe.dimension, "The embedder answers.");
    }

    /// Tells everyone that the embedder is left alone for a while.
    pub(crate) fn rests(&self, reason: &str) {
        self.condition
            .send_modify(|it| it.state = State::Resting(reason.to_owned()));
    }

    /// Tells everyone that an embedder that was left alone embeds again. Returns
    /// whether it was.
    pub(crate) fn rested(&self) -> bool {
        self.condition.send_if_modified(|it| {
            let was = it.is_resting();
            if was {
                it.state = State::Fit;
            }
            was
        })
    }

    /// Tells everyone that the embedder embeds nothing. Returns whether it did
    /// before.
    pub(crate) fn failed(&self, reason: &str) -> bool {
        let state = State::Down(reason.to_owned());
        let (mut was_fit, mut is_news) = (false, false);
        self.condition.send_if_modified(|it| {
            was_fit = it.is_fit();
            is_news = it.state != state;
            it.state = state;
            is_news
        });
        // Said once, and again when it fails in another way.
        if is_news {
            warn!(
                reason,
                "The embedder embeds nothing; taking nothing until it does."
            );
        } else {
            debug!(reason, "The embedder still fails.");
        }
        was_fit
    }
}

#[cfg(test)]
impl Health {
    /// Waits until the embedder embeds nothing, and returns why.
    pub(crate) async fn down(&self) -> String {
        let mut watched = self.subscribe();
        let down = watched.wait_for(|it| matches!(it.state, State::Down(_)));
        down.await.unwrap().ailment().unwrap().to_owned()
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

    #[test]
    fn an_embedder_is_fit_from_a_probe_that_passed_to_the_next_failure() {
        let health = Health::new();
        assert_eq!(
            health.ailment().as_deref(),
            Some("the embedder was not tried yet")
        );
        assert!(!health.failed("503"), "no news");
        health.recovered(PROBE);
        assert_eq!(health.ailment(), None);
        assert!(health.failed("504"));
        assert!(!health.failed("505"), "it is known");
        let condition = health.condition();
        assert_eq!(condition.ailment(), Some("505"), "in its latest words");
        assert_eq!(condition.said, Some(PROBE), "that is still so");
    }

    #[test]
    fn an_embedder_that_rests_is_no_ailing_one_and_fit_once_something_passed() {
        let health = Health::new();
        health.recovered(PROBE);
        assert!(!health.rested());
        health.rests("429");
        let state = health.condition().state;
        assert_eq!(state, State::Resting("429".to_owned()));
        assert_eq!(health.ailment(), None);
        assert!(health.rested());
        assert_eq!(health.condition().state, State::Fit);
        health.rests("429");
        assert!(health.failed("429"), "it embedded before");
        assert!(!health.rested(), "that takes a probe");
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
