//! How much work there is, for KEDA and for the page of metrics.

use std::{sync::Arc, time::Duration};

use super::{Look, Seen, Since};
use crate::store::{Scope, Store, StoreError, queue::QueueStats};

/// How old what is told of the queue may be, and the least time between two
/// looks at it, however often work is queued.
const AGE: Duration = Duration::from_secs(1);

/// Open jobs by namespace and model.
pub(crate) type Sizes = Result<Arc<[QueueStats]>, StoreError>;

/// The queue as a whole, which one look sees for all models and namespaces.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    store: Store,
    look: Arc<Look<Sizes>>,
}

impl Queue {
    /// The queue of this store.
    pub(crate) fn new(store: Store) -> Self {
        let look = Arc::new(Look::every(AGE));
        Self { store, look }
    }

    /// Its sizes.
    pub(crate) async fn see(&self, since: Since) -> Seen<Sizes> {
        let store = self.store.clone();
        let query = |_| async move { Ok(store.queue_stats(&Scope::All, None).await?.into()) };
        self.look.see(since, query).await
    }
}
