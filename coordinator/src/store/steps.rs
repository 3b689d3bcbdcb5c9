//! Steps: what is to be done to a whole source, however large, is done to so many
//! of its rows at a time. A step is a short transaction; what the next one needs
//! to go on is in the database, and between two the source is free.

use sqlx::PgExecutor;

use super::{
    Store, StoreError,
    database::Transaction,
    patience::{JOBS_LOCK_TIMEOUT, STEP_TIMEOUT},
};
use crate::job::plan::{ItemRange, successor};

/// Most chunks of a source in one step, and rows of each table that belong to
/// these, unless one item alone has more.
pub const STEP_CHUNKS: i64 = 5_000;

/// The items that a step is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// From the first item that is not done to the last of this step. No item is
    /// done by half.
    pub(super) range: ItemRange,
    /// Whether the source ends with it.
    pub(super) is_last: bool,
}

impl Store {
    /// The same, with steps of so many chunks.
    #[must_use]
    pub fn with_steps_of(self, step_chunks: i64) -> Self {
        Self {
            step_chunks,
            ..self
        }
    }

    /// Most rows that a step deletes which goes by rows, of one table after the other.
    pub(super) fn step_rows(&self) -> i64 {
        self.step_chunks.saturating_mul(2)
    }

    /// Begins the transaction of a step. None of its statements takes long, and as
    /// others hold the rows of jobs for a moment only, it waits for these.
    pub(super) async fn begin_step(&self) -> Result<Transaction, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "-- store::steps::begin_step
             SELECT set_config('lock_timeout', $1, true),
                    set_config('statement_timeout', least(nullif(setting::bigint, 0), $2)::text, true)
             FROM pg_settings WHERE name = 'statement_timeout'",
        )
        .bind(format!("{}ms", JOBS_LOCK_TIMEOUT.as_millis()))
        .bind(STEP_TIMEOUT.as_millis() as i64)
        .execute(&mut *tx)
        .await?;
        Ok(tx)
    }
}

/// The step that comes after the item `after`, or begins the source.
pub(super) async fn step_after<'e>(
    executor: impl PgExecutor<'e>,
    source_id: i64,
    after: &str,
    chunks: i64,
) -> Result<Step, StoreError> {
    step_from(executor, source_id, successor(after), chunks).await
}

/// The step that begins with the item `first`, or with what follows that.
pub(super) async fn step_from<'e>(
    executor: impl PgExecutor<'e>,
    source_id: i64,
    first: String,
    chunks: i64,
) -> Result<Step, StoreError> {
    let last: Option<String> = sqlx::query_scalar(
        "-- store::steps::step_from
         WITH beyond AS MATERIALIZED (
             -- The first item that is too much.
             SELECT min(item_id) AS item_id FROM (
                 (SELECT item_id FROM weir.items WHERE source_id = $1 AND item_id >= $2
                  ORDER BY item_id OFFSET $3 LIMIT 1)
                 UNION ALL
                 (SELECT item_id FROM weir.chunks WHERE source_id = $1 AND item_id >= $2
                  ORDER BY item_id, chunk_index OFFSET $3 LIMIT 1)
                 UNION ALL
                 (SELECT item_id FROM weir.embeddings WHERE source_id = $1 AND item_id >= $2
                  ORDER BY item_id, chunk_index OFFSET $3 LIMIT 1)
                 UNION ALL
                 (SELECT item_id FROM weir.rejections WHERE source_id = $1 AND item_id >= $2
                  ORDER BY item_id, chunk_index OFFSET $3 LIMIT 1)) too_much
         )
         SELECT coalesce(greatest(
             (SELECT item_id FROM weir.items WHERE source_id = $1 AND item_id >= $2 AND item_id < b.item_id
              ORDER BY item_id DESC LIMIT 1),
             (SELECT item_id FROM weir.chunks WHERE source_id = $1 AND item_id >= $2 AND item_id < b.item_id
              ORDER BY item_id DESC LIMIT 1),
             (SELECT item_id FROM weir.embeddings WHERE source_id = $1 AND item_id >= $2 AND item_id < b.item_id
              ORDER BY item_id DESC LIMIT 1),
             (SELECT item_id FROM weir.rejections WHERE source_id = $1 AND item_id >= $2 AND item_id < b.item_id
              ORDER BY item_id DESC LIMIT 1)
             -- It is a step of its own, where nothing is before it.
             ), b.item_id)
         FROM beyond b",
    )
    .bind(source_id)
    .bind(&first)
    .bind(chunks)
    .fetch_one(executor)
    .await?;
    let is_last = last.is_none();
    Ok(Step {
        range: ItemRange {
            first,
            last: last.unwrap_or(ItemRange::everything().last),
        },
        is_last,
    })
}
