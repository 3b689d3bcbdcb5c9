//! How much the sessions want of an endpoint, so that no more is claimed than it
//! can be given, and how it stands.

use std::sync::Arc;

use tokio::sync::watch;

use super::Endpoint;

/// What sessions want of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Texts that they want to have here until these are persisted.
    texts: usize,
    /// Of these, how many are embedded.
    answered: usize,
}

impl Demand {
    /// How many texts they are to bring, or have brought.
    pub(super) fn unanswered(self) -> usize {
        self.texts.saturating_sub(self.answered)
    }
}

/// How many texts a session wants to have at an endpoint.
pub(crate) struct Share {
    demand: Arc<watch::Sender<Demand>>,
    own: Demand,
}

impl Share {
    /// `answered` of the `texts` are embedded.
    pub(crate) fn set(&mut self, texts: usize, answered: usize) {
        let own = Demand { texts, answered };
        if own != self.own {
            let before = std::mem::replace(&mut self.own, own);
            self.demand.send_modify(|sum| {
                sum.texts = sum.texts + texts - before.texts;
                sum.answered = sum.answered + answered - before.answered;
            });
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0, 0);
    }
}

impl Endpoint {
    /// Says that a session wants to have `texts` here.
    pub(crate) fn share(&self, texts: usize) -> Share {
        let mut share = Share {
            demand: Arc::clone(&self.demand),
            own: Demand::default(),
        };
        share.set(texts, 0);
        share
    }

    /// Shows how the embedder is now.
    pub(crate) fn show(&self) {
        let shown = &self.metrics.embedder;
        let ailment = self.health.ailment();
        shown.up.set(f64::from(ailment.is_none()));
        let state = self.state();
        let resting = ailment.is_none() && state.rests.until().is_some();
        shown.resting.set(f64::from(resting));
        shown.under_way.set(state.under_way.len() as f64);
        shown.allowed.set(state.concurrency.calls() as f64);
        shown.texts_allowed.set(state.judge.size().texts as f64);
    }

    /// How many texts more the sessions may want than they do: so that there are
    /// enough for the calls under way, and as many again that are ready to follow.
    pub(crate) fn room(&self) -> usize {
        let state = self.state();
        let most = 2 * state.concurrency.calls() * state.judge.size().texts;
        drop(state);
        most.saturating_sub(self.demand.borrow().texts)
    }

    /// Waits until there is room, or until there is none.
    pub(crate) async fn has_room(&self, some: bool) {
        let mut demand = self.demand.subscribe();
        while (self.room() > 0) != some {
            if demand.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// How many texts one call holds.
    pub(crate) fn call_texts(&self) -> usize {
        self.state().judge.size().texts
    }
}
