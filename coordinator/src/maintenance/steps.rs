//! What is left to do of large sources: the rows of those that were deleted, and
//! ranges that clients have embedded anew. Both go in steps.

use crate::store::{Store, StoreError};

/// Most sources of each kind in one round.
const SOURCES: i64 = 100;

/// What a round came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Steps that it took.
    pub done: usize,
    /// About how many rows of deleted sources are left.
    pub rows_left: i64,
    /// Ranges that are under way.
    pub ranges: i64,
}

/// Takes one step of each source of which something is left to do. One that others
/// are at, or that cannot be worked on, does not hinder the others.
pub async fn tick(store: &Store) -> Result<Round, StoreError> {
    let (mut round, mut trouble) = (Round::default(), None);
    for source_id in store.leftovers(SOURCES).await? {
        match store.sweep(source_id).await {
            Ok(Some(swept)) => {
                round.done += 1;
                if swept.finished {
                    tracing::info!(source_id, "Nothing is left of a source that was deleted.");
                }
            }
            Ok(None) => {}
            Err(away @ StoreError::Unavailable(_)) => return Err(away),
            Err(error) => trouble = Some(error),
        }
    }
    for range_id in store.forced_ranges(SOURCES).await? {
        match store.force_on(range_id).await {
            Ok(Some(forced)) => {
                round.done += 1;
                tracing::info!(
                    namespace = forced.namespace,
                    source = forced.name,
                    job_id = forced.job_id,
                    jobs_queued = forced.queued,
                    finished = forced.finished,
                    "The range of a job is embedded anew, as a client wants it."
                );
            }
            // It comes again.
            Ok(None) | Err(StoreError::Locked(_)) => {}
            Err(away @ StoreError::Unavailable(_)) => return Err(away),
            Err(error) => trouble = Some(error),
        }
    }
    round.rows_left = store.rows_left().await?;
    round.ranges = store.ranges_under_way().await?;
    trouble.map_or(Ok(round), Err)
}
