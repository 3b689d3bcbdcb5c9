//! What became of a source's chunks, one by one.

use chrono::{DateTime, Utc};

use super::{Store, StoreError, planning::is_pending, rows::SourceKey};

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkState {
    /// It has neither vector nor rejection.
    Pending,
    /// It has the vector of its whole text.
    Embedded,
    /// It has a vector of the beginning of its text.
    Truncated,
    /// The embedder can never take it.
    Rejected,
}

/// A chunk and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ChunkStatus {
    /// The item.
    pub item_id: String,
    /// The place in the item.
    pub chunk_index: i32,
    /// Length of its text, in characters.
    pub chars: i32,
    /// Of how many of these its vector is made, where not of all.
    pub truncated_to: Option<i32>,
    /// Why it was rejected.
    pub reason: Option<String>,
    /// When it was embedded or rejected.
    pub at: Option<DateTime<Utc>>,
}

impl Store {
    /// Returns up to `limit` chunks of a source that are in a state, after the
    /// one at `after`, by item and index.
    pub async fn chunks(
        &self,
        key: &SourceKey,
        state: ChunkState,
        after: Option<(&str, i32)>,
        limit: i64,
    ) -> Result<Vec<ChunkStatus>, StoreError> {
        self.read(|| self.try_chunks(key, state, after, limit))
            .await
    }

    async fn try_chunks(
        &self,
        key: &SourceKey,
        state: ChunkState,
        after: Option<(&str, i32)>,
        limit: i64,
    ) -> Result<Vec<ChunkStatus>, StoreError> {
        // Each is driven by the table that has the fewest rows of it.
        let query = match state {
            ChunkState::Pending => concat!(
                "-- store::chunks::chunks
                 SELECT c.item_id, c.chunk_index, char_length(c.text) AS chars, NULL::int AS truncated_to,
                        NULL::text AS reason, NULL::timestamptz AS at
                 FROM weir.sources s JOIN weir.chunks c ON c.source_id = s.id
                 WHERE s.id = $1 AND (c.item_id, c.chunk_index) > ($2, $3) AND ",
                is_pending!("s.model"),
                " ORDER BY c.item_id, c.chunk_index LIMIT $4"
            ),
            ChunkState::Rejected => {
                "-- store::chunks::chunks
                 SELECT c.item_id, c.chunk_index, char_length(c.text) AS chars, NULL::int AS truncated_to,
                        r.reason, r.rejected_at AS at
                 FROM weir.sources s JOIN weir.rejections r ON r.source_id = s.id AND r.model = s.model
                 JOIN weir.chunks c ON (c.source_id, c.item_id, c.chunk_index) = (s.id, r.item_id, r.chunk_index)
                 WHERE s.id = $1 AND (r.item_id, r.chunk_index) > ($2, $3)
                 ORDER BY r.item_id, r.chunk_index LIMIT $4"
            }
            ChunkState::Embedded => {
                "-- store::chunks::chunks
                 SELECT c.item_id, c.chunk_index, char_length(c.text) AS chars, e.truncated_to,
                        NULL::text AS reason, e.embedded_at AS at
                 FROM weir.sources s JOIN weir.embeddings e ON e.source_id = s.id AND e.model = s.model
                 JOIN weir.chunks c ON (c.source_id, c.item_id, c.chunk_index) = (s.id, e.item_id, e.chunk_index)
                 WHERE s.id = $1 AND (e.item_id, e.chunk_index) > ($2, $3)
                   AND e.text_hash = c.text_hash AND e.truncated_to IS NULL
                 ORDER BY e.item_id, e.chunk_index LIMIT $4"
            }
            ChunkState::Truncated => {
                "-- store::chunks::chunks
                 SELECT c.item_id, c.chunk_index, char_length(c.text) AS chars, e.truncated_to,
                        NULL::text AS reason, e.embedded_at AS at
                 FROM weir.sources s JOIN weir.embeddings e ON e.source_id = s.id AND e.model = s.model
                 JOIN weir.chunks c ON (c.source_id, c.item_id, c.chunk_index) = (s.id, e.item_id, e.chunk_index)
                 WHERE s.id = $1 AND (e.item_id, e.chunk_index) > ($2, $3)
                   AND e.text_hash = c.text_hash AND e.truncated_to IS NOT NULL
                 ORDER BY e.item_id, e.chunk_index LIMIT $4"
            }
        };
        let source_id = self.source_id(key).await?;
        let (item_id, chunk_index) = after.unwrap_or(("", -1));
        Ok(sqlx::query_as(query)
            .bind(source_id)
            .bind(item_id)
            .bind(chunk_index)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?)
    }
}
