//! The sweeper: forgets content of imports that a crash cut off.

use crate::store::{Store, StoreError};

/// Most items in one step.
const STEP: i64 = 1_000;

/// Takes one step. Returns whether more may wait.
pub async fn tick(store: &Store) -> Result<bool, StoreError> {
    let dropped = store.drop_stale_imports(STEP).await?;
    if dropped > 0 {
        tracing::info!(items = dropped, "Forgot items of imports that never ended.");
    }
    Ok(dropped >= STEP.unsigned_abs())
}
