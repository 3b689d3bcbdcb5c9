//! Samples of what this replica persists, for the plots of the last hour.

use crate::{
    store::{Store, StoreError},
    writer::Writer,
};

/// Notes what was persisted since the last step, under the name of this
/// replica.
pub async fn tick(store: &Store, writer: &Writer, replica: &str) -> Result<bool, StoreError> {
    store.sample(replica, writer.take_tally()).await?;
    Ok(false)
}
