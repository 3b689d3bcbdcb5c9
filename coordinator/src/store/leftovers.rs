//! What is left of deleted sources. A source goes with its row, and its jobs with
//! it; what there was of it in the bulk tables goes in steps of so many rows, the
//! first of them in the transaction of the deletion.

use super::{Store, StoreError, database::Transaction};

/// What a step deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// Rows that are gone.
    pub rows: i64,
    /// Whether none are left.
    pub finished: bool,
}

/// The tables in which rows may be left, in the order in which they are swept: a
/// vector never outlives its chunk, nor a chunk its item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Embeddings,
    Rejections,
    Chunks,
    Items,
}

/// Deletes up to `$4` rows of the source `$1` after the one at `($2, $3)`, in the
/// order of the primary key, and reads no others. Returns how many, and the last.
macro_rules! delete_next {
    ($table:literal, $after:literal, $order:literal, $index:literal) => {
        concat!(
            "-- store::leftovers::delete_next
             WITH gone AS (
                 DELETE FROM weir.",
            $table,
            " WHERE ctid = ANY(ARRAY(
                     SELECT ctid FROM weir.",
            $table,
            " WHERE source_id = $1 AND ",
            $after,
            " ORDER BY ",
            $order,
            " LIMIT $4))
                 RETURNING item_id, ",
            $index,
            " AS chunk_index
             )
             SELECT count(*) OVER (), item_id, chunk_index FROM gone ORDER BY item_id DESC, chunk_index DESC LIMIT 1"
        )
    };
    ($table:literal) => {
        delete_next!(
            $table,
            "(item_id, chunk_index) > ($2, $3)",
            "item_id, chunk_index",
            "chunk_index"
        )
    };
}

impl Table {
    const ALL: [Self; 4] = [
        Self::Embeddings,
        Self::Rejections,
        Self::Chunks,
        Self::Items,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Embeddings => "embeddings",
            Self::Rejections => "rejections",
            Self::Chunks => "chunks",
            Self::Items => "items",
        }
    }

    fn delete_next(self) -> &'static str {
        match self {
            Self::Embeddings => delete_next!("embeddings"),
            Self::Rejections => delete_next!("rejections"),
            Self::Chunks => delete_next!("chunks"),
            Self::Items => delete_next!("items", "item_id > $2 AND $3::int < 0", "item_id", "-1"),
        }
    }

    /// The one that is swept after it.
    fn next(self) -> Option<Self> {
        let mut after = Self::ALL.into_iter().skip_while(|table| *table != self);
        after.nth(1)
    }
}

/// How far the rows of a source are swept.
#[derive(Debug)]
pub(super) struct Sweep {
    /// Nothing is left in the tables before it; `None`: in none of them.
    table: Option<Table>,
    /// The last row of it that was deleted.
    item_id: String,
    chunk_index: i32,
}

impl Default for Sweep {
    fn default() -> Self {
        Self::of(Table::ALL.first().copied())
    }
}

impl Sweep {
    fn of(table: Option<Table>) -> Self {
        Self {
            table,
            item_id: String::new(),
            chunk_index: -1,
        }
    }

    /// Whether nothing is left.
    pub(super) fn is_finished(&self) -> bool {
        self.table.is_none()
    }

    /// Deletes up to `rows` rows of a source that is gone. Returns how many.
    pub(super) async fn step(
        &mut self,
        tx: &mut Transaction,
        source_id: i64,
        rows: i64,
    ) -> Result<i64, StoreError> {
        // Whatever the statistics say: it reads what it deletes, through the primary key.
        let others = ["enable_seqscan", "enable_bitmapscan", "enable_sort"];
        tx.set(others.map(|name| (name, "off"))).await?;
        let mut left = rows;
        while let Some(table) = self.table.filter(|_| left > 0) {
            let gone: Option<(i64, String, i32)> = sqlx::query_as(table.delete_next())
                .bind(source_id)
                .bind(&self.item_id)
                .bind(self.chunk_index)
                .bind(left)
                .fetch_optional(&mut **tx)
                .await?;
            let gone = gone.inspect(|(gone, ..)| left -= gone);
            match gone.filter(|_| left == 0) {
                Some((_, item_id, chunk_index)) => {
                    self.item_id = item_id;
                    self.chunk_index = chunk_index;
                }
                None => *self = Self::of(table.next()),
            }
        }
        Ok(rows - left)
    }
}

/// Notes that about `rows_left` rows of a source that is gone are left.
pub(super) async fn note(
    tx: &mut Transaction,
    source_id: i64,
    sweep: &Sweep,
    rows_left: i64,
) -> Result<(), StoreError> {
    let Some(table) = sweep.table else {
        return Ok(());
    };
    sqlx::query(
        "-- store::leftovers::note
         INSERT INTO weir.leftovers (source_id, rows_left, swept_table, swept_item_id, swept_chunk_index)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(source_id)
    .bind(rows_left.max(1))
    .bind(table.name())
    .bind(&sweep.item_id)
    .bind(sweep.chunk_index)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Store {
    /// Returns up to `limit` deleted sources of which rows are left, those first
    /// that were deleted first.
    pub async fn leftovers(&self, limit: i64) -> Result<Vec<i64>, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::leftovers::leftovers
             SELECT source_id FROM weir.leftovers ORDER BY deleted_at, source_id LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }

    /// Returns about how many rows of deleted sources are left.
    pub async fn rows_left(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::leftovers::rows_left
             SELECT coalesce(sum(rows_left), 0)::bigint FROM weir.leftovers",
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// Takes one step of a deleted source. `None`: nothing is left of it, or
    /// somebody else is at it.
    pub async fn sweep(&self, source_id: i64) -> Result<Option<Swept>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let found: Option<(String, String, i32)> = sqlx::query_as(
            "-- store::leftovers::sweep
             SELECT swept_table, swept_item_id, swept_chunk_index FROM weir.leftovers WHERE source_id = $1
             FOR UPDATE SKIP LOCKED",
        )
        .bind(source_id)
        .fetch_optional(&mut *tx)
        .await?;
        let Some((table, item_id, chunk_index)) = found else {
            return Ok(None);
        };
        let mut sweep = Sweep {
            table: Table::ALL.into_iter().find(|it| it.name() == table),
            item_id,
            chunk_index,
        };
        let rows = sweep.step(&mut tx, source_id, self.step_rows()).await?;
        sqlx::query(
            "-- store::leftovers::sweep
             WITH finished AS (
                 DELETE FROM weir.leftovers WHERE source_id = $1 AND $2::text IS NULL
             )
             UPDATE weir.leftovers
             SET swept_table = $2, swept_item_id = $3, swept_chunk_index = $4, rows_left = greatest(rows_left - $5, 1)
             WHERE source_id = $1 AND $2 IS NOT NULL",
        )
        .bind(source_id)
        .bind(sweep.table.map(Table::name))
        .bind(&sweep.item_id)
        .bind(sweep.chunk_index)
        .bind(rows)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Some(Swept {
            rows,
            finished: sweep.is_finished(),
        }))
    }
}
