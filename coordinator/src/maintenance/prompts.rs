//! Sources whose model has another prompt now, and large ones that move to another
//! model: their texts are hashed anew, and so embedded anew, step by step.

use crate::store::{Store, StoreError};

/// Sources looked at in one round, in the midst of a change or before it; others may
/// hold some.
const LOOKED_AT: i64 = 50;

/// Chunks of a source in one step, so that no transaction is long.
pub const CHUNKS: i64 = 5_000;

/// Takes one round: a step of each of some sources, of about [`CHUNKS`]. Returns
/// whether more may wait. A source that others hold, or that cannot be worked on,
/// does not hinder the others, nor does one that is huge.
pub async fn tick(store: &Store, max_chunks_per_job: i32) -> Result<bool, StoreError> {
    let (mut done, mut trouble) = (0, None);
    for source_id in store.sources_to_prompt(LOOKED_AT).await? {
        let step = store.reprompt(source_id, CHUNKS, max_chunks_per_job).await;
        let step = match step {
            Ok(Some(step)) => step,
            Ok(None) => continue,
            Err(away) if away.is_away() => return Err(away),
            Err(error) => {
                trouble = Some(error);
                continue;
            }
        };
        done += 1;
        let why = if step.moves {
            "A source is embedded anew: it has another model."
        } else {
            "A source is embedded anew: its model has another prompt for documents."
        };
        tracing::info!(
            namespace = step.namespace,
            source = step.name,
            model = step.model,
            jobs_queued = step.queued,
            finished = step.finished,
            "{why}"
        );
    }
    trouble.map_or(Ok(done > 0), Err)
}
