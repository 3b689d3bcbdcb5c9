//! How much the sessions want of an endpoint, so that no more is claimed than it
//! can be given, and how it stands.

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
pub(crate) struct Share<'a> {
    demand: &'a watch::Sender<Demand>,
    own: Demand,
}

impl Share<'_> {
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

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.set(0, 0);
    }
}

impl Endpoint {
    /// Says that a session wants to have `texts` here.
    pub(crate) fn share(&self, texts: usize) -> Share<'_> {
        let mut share = Share {
            demand: &self.demand,
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

    /// Waits until the sessions want less than the embedder can be given, and
    /// returns how many texts more it may be.
    pub(crate) async fn room(&self) -> usize {
        let mut demand = self.demand.subscribe();
        loop {
            let most = {
                let state = self.state();
                // The calls under way, and as much again that is ready to follow.
                2 * state.concurrency.calls() * state.judge.size().texts
            };
            let wanted = demand.borrow_and_update().texts;
            if wanted < most {
                return most - wanted;
            }
            if demand.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
