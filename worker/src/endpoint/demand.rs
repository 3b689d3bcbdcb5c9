//! How much the sessions want of an endpoint, so that no more is claimed than it
//! can be given, and how it stands.

use tokio::{sync::watch, time::Instant};

use super::Endpoint;

/// How many texts a session wants to have at an endpoint.
pub(crate) struct Share<'a> {
    demand: &'a watch::Sender<usize>,
    texts: usize,
}

impl Share<'_> {
    pub(crate) fn set(&mut self, texts: usize) {
        if texts != self.texts {
            let before = std::mem::replace(&mut self.texts, texts);
            self.demand.send_modify(|sum| *sum = *sum + texts - before);
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Endpoint {
    /// Says that a session wants to have `texts` here.
    pub(crate) fn share(&self, texts: usize) -> Share<'_> {
        let mut share = Share {
            demand: &self.demand,
            texts: 0,
        };
        share.set(texts);
        share
    }

    /// Shows how the embedder is now.
    pub(crate) fn show(&self) {
        let shown = &self.metrics.embedder;
        shown.up.set(f64::from(self.governor.ailment().is_none()));
        let resting = self
            .rest
            .borrow()
            .is_some_and(|until| until > Instant::now());
        shown.resting.set(f64::from(resting));
        let state = self.state();
        shown.under_way.set(state.under_way.len() as f64);
        shown.allowed.set(state.limits.calls() as f64);
        shown.texts_allowed.set(state.limits.size().texts as f64);
    }

    /// Waits until the sessions want less than the embedder can be given, and
    /// returns how many texts more it may be.
    pub(crate) async fn room(&self) -> usize {
        let mut demand = self.demand.subscribe();
        loop {
            let most = {
                let limits = &self.state().limits;
                // The calls under way, and as much again that is ready to follow.
                2 * limits.calls() * limits.size().texts
            };
            let wanted = *demand.borrow_and_update();
            if wanted < most {
                return most - wanted;
            }
            if demand.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
