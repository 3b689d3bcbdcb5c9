//! What of a job is pending, and its texts.

use std::collections::HashMap;

use sqlx::PgExecutor;

use super::{
    Store, StoreError,
    prompts::prompt_of,
    rows::{ChunkText, LeaseKey},
};
use crate::job::plan::PendingChunk;

impl Store {
    /// The pending chunks of a job, shortest text first, at most `limit`. The
    /// lease must be held.
    pub async fn pending(
        &self,
        lease: LeaseKey,
        limit: i64,
    ) -> Result<Vec<PendingChunk>, StoreError> {
        let pending = self.read(|| pending_in(&self.pool, lease, limit)).await?;
        if pending.is_empty() {
            self.lease(lease).await?;
        }
        Ok(pending)
    }

    /// The texts of some chunks of a source as they are embedded, its prompt
    /// before each, in the order asked for; a chunk that is gone is left out.
    pub async fn texts<'a>(
        &self,
        source_id: i64,
        chunks: impl IntoIterator<Item = &'a PendingChunk>,
    ) -> Result<Vec<ChunkText>, StoreError> {
        let chunks: Vec<&PendingChunk> = chunks.into_iter().collect();
        self.read(|| texts_in(&self.pool, source_id, chunks.iter().copied()))
            .await
    }

    /// All pending texts with their prompts, shortest first, of those of some jobs whose lease is
    /// held and that have at most `most`, as far as they are `most_bytes` together; the others
    /// are left out.
    pub async fn texts_of_small(
        &self,
        leases: &[LeaseKey],
        most: i32,
        most_bytes: i64,
    ) -> Result<HashMap<i64, Vec<ChunkText>>, StoreError> {
        let (ids, epochs): (Vec<i64>, Vec<i64>) =
            leases.iter().map(|it| (it.job_id, it.epoch)).unzip();
        let rows: Vec<(i64, String, i32, Vec<u8>, String)> = sqlx::query_as(
            concat!("-- store::pending::texts_of_small
             WITH named AS (
                 SELECT j.id, j.source_id, p.*, sum(p.text_bytes) OVER (ORDER BY j.id) AS bytes
                 FROM unnest($1::bigint[], $2::bigint[]) AS o(job_id, epoch)
                 JOIN weir.jobs j ON j.id = o.job_id AND j.epoch = o.epoch
                 CROSS JOIN LATERAL (
                     SELECT c.item_id, c.chunk_index, c.text_hash, c.text, octet_length(c.text) AS text_bytes
                     FROM weir.chunks c
                     WHERE c.source_id = j.source_id AND c.item_id BETWEEN j.first_item_id AND j.last_item_id
                       AND NOT EXISTS (
                           SELECT FROM weir.embeddings e
                           WHERE e.source_id = c.source_id AND e.item_id = c.item_id AND e.chunk_index = c.chunk_index
                             AND e.model = j.model AND e.text_hash = c.text_hash)
                       AND NOT EXISTS (
                           SELECT FROM weir.rejections r
                           WHERE r.source_id = c.source_id AND r.item_id = c.item_id AND r.chunk_index = c.chunk_index
                             AND r.model = j.model AND r.text_hash = c.text_hash)
                     -- One more tells that it is not small.
                     ORDER BY c.item_id, c.chunk_index LIMIT $3 + 1) p
                 WHERE j.state = 'running'
             )
             SELECT p.id, p.item_id, p.chunk_index, p.text_hash, concat(", prompt_of!("s", "p.item_id"), ", p.text)
             FROM named p JOIN weir.sources s ON s.id = p.source_id
             -- A job is read whole or not at all.
             WHERE p.bytes <= $4
             ORDER BY p.text_bytes, p.item_id, p.chunk_index"),
        )
        .bind(ids)
        .bind(epochs)
        .bind(most)
        .bind(most_bytes)
        .fetch_all(&self.leases)
        .await?;
        let mut texts: HashMap<i64, Vec<ChunkText>> = HashMap::new();
        for (job_id, item_id, chunk_index, text_hash, text) in rows {
            texts.entry(job_id).or_default().push(ChunkText {
                item_id,
                chunk_index,
                text_hash,
                text,
            });
        }
        texts.retain(|_, texts| texts.len() as i64 <= most.into());
        Ok(texts)
    }
}

/// As [`Store::pending`], within a transaction; empty also when the lease is
/// not held.
pub(super) async fn pending_in<'e>(
    executor: impl PgExecutor<'e>,
    lease: LeaseKey,
    limit: i64,
) -> Result<Vec<PendingChunk>, StoreError> {
    let rows: Vec<(String, i32, i32)> = sqlx::query_as(
            concat!("-- store::pending::pending_in
         SELECT c.item_id, c.chunk_index,
                octet_length(c.text) + coalesce(octet_length(", prompt_of!("s", "c.item_id"), "), 0)
         FROM weir.jobs j
         JOIN weir.sources s ON s.id = j.source_id
         JOIN weir.chunks c ON c.source_id = j.source_id AND c.item_id BETWEEN j.first_item_id AND j.last_item_id
         WHERE j.id = $1 AND j.epoch = $2 AND j.state = 'running'
           AND NOT EXISTS (
               SELECT FROM weir.embeddings e
               WHERE e.source_id = c.source_id AND e.item_id = c.item_id AND e.chunk_index = c.chunk_index
                 AND e.model = j.model AND e.text_hash = c.text_hash)
           AND NOT EXISTS (
               SELECT FROM weir.rejections r
               WHERE r.source_id = c.source_id AND r.item_id = c.item_id AND r.chunk_index = c.chunk_index
                 AND r.model = j.model AND r.text_hash = c.text_hash)
         ORDER BY octet_length(c.text), c.item_id, c.chunk_index
         LIMIT $3"),
        )
        .bind(lease.job_id)
        .bind(lease.epoch)
        .bind(limit)
        .fetch_all(executor)
        .await?;
    Ok(rows
        .into_iter()
        .map(|(item_id, chunk_index, text_bytes)| PendingChunk {
            item_id,
            chunk_index,
            text_bytes: text_bytes.unsigned_abs() as usize,
        })
        .collect())
}

/// As [`Store::texts`], within a transaction.
pub(super) async fn texts_in<'a, 'e>(
    executor: impl PgExecutor<'e>,
    source_id: i64,
    chunks: impl IntoIterator<Item = &'a PendingChunk>,
) -> Result<Vec<ChunkText>, StoreError> {
    let (ids, indexes): (Vec<&str>, Vec<i32>) = chunks
        .into_iter()
        .map(|chunk| (chunk.item_id.as_str(), chunk.chunk_index))
        .unzip();
    let rows: Vec<(String, i32, Vec<u8>, String)> = sqlx::query_as(
            concat!("-- store::pending::texts_in
             SELECT c.item_id, c.chunk_index, c.text_hash, concat(", prompt_of!("s", "c.item_id"), ", c.text)
             FROM unnest($2::text[], $3::int[]) WITH ORDINALITY AS wanted(item_id, chunk_index, place)
             -- Limited, so that each is looked up: a join may be planned to read the whole source.
             CROSS JOIN LATERAL (
                 SELECT item_id, chunk_index, text_hash, text FROM weir.chunks
                 WHERE source_id = $1 AND item_id = wanted.item_id AND chunk_index = wanted.chunk_index
                 LIMIT 1) c
             JOIN weir.sources s ON s.id = $1
             ORDER BY wanted.place"),
        )
        .bind(source_id)
        .bind(&ids)
        .bind(&indexes)
        .fetch_all(executor)
        .await?;
    Ok(rows
        .into_iter()
        .map(|(item_id, chunk_index, text_hash, text)| ChunkText {
            item_id,
            chunk_index,
            text_hash,
            text,
        })
        .collect())
}
