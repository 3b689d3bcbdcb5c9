//! Samples of what this replica persists, for the plots of the last hour.

use crate::{
    dispatch::writer::Writer,
    store::{Store, StoreError, queue::QueueStats},
};

/// Notes what was persisted since the last step, under the name of this
/// replica, and how much waits in the queue.
pub async fn tick(
    store: &Store,
    writer: &Writer,
    replica: &str,
    queue: &[QueueStats],
) -> Result<bool, StoreError> {
    let persisted = writer.take_tally();
    if let Err(error) = store.sample(replica, persisted, queue).await {
        // It comes with the next sample.
        writer.add_to_tally(persisted);
        return Err(error);
    }
    Ok(false)
}
