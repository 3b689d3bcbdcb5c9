//! Sources whose model has another prompt now: their texts are hashed anew, and
//! so embedded anew.

use crate::store::{Store, StoreError};

/// Most sources in one step.
const SOURCES: usize = 10;

/// Sources looked at for these, of which others may hold some.
const LOOKED_AT: i64 = 100;

/// Chunks of a source in one step, so that no transaction is long.
pub const CHUNKS: i64 = 5_000;

/// Takes one step: up to ten sources, of each about [`CHUNKS`]. Returns whether
/// more may wait. A source that others hold, or that cannot be worked on, does
/// not hinder the others.
pub async fn tick(store: &Store, max_chunks_per_job: i32) -> Result<bool, StoreError> {
    let (mut done, mut trouble) = (0, None);
    for source_id in store.sources_to_prompt(LOOKED_AT).await? {
        if done == SOURCES {
            break;
        }
        let step = store.reprompt(source_id, CHUNKS, max_chunks_per_job).await;
        let step = match step {
            Ok(Some(step)) => step,
            Ok(None) => continue,
            Err(away @ StoreError::Unavailable(_)) => return Err(away),
            Err(error) => {
                trouble = Some(error);
                continue;
            }
        };
        done += 1;
        tracing::info!(
            namespace = step.namespace,
            source = step.name,
            model = step.model,
            jobs_queued = step.queued,
            finished = step.finished,
            "A source is embedded anew: its model has another prompt for documents."
        );
    }
    trouble.map_or(Ok(done > 0), Err)
}
