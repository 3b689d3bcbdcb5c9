//! Whether the database answers, for all who probe.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{Look, Since};
use crate::store::Store;

/// How old an answer to a probe may be.
const AGE: Duration = Duration::from_secs(1);

/// How long the database may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the database answers: it is asked at most once a second, on a
/// connection of its own, so that a replica that has much to do still is ready.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    store: Store,
    look: Arc<Look<bool>>,
}

impl Ready {
    /// Asks this store.
    pub(crate) fn new(store: Store) -> Self {
        let look = Arc::new(Look::every(AGE));
        Self { store, look }
    }

    /// Whether it answers, or did a moment ago.
    pub(crate) async fn answers(&self) -> bool {
        let store = self.store.clone();
        let ping = |_| async move { matches!(timeout(PATIENCE, store.ping()).await, Ok(Ok(()))) };
        self.look.see(Since::Lately, ping).await.value
    }
}
