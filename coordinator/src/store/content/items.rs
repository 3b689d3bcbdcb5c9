//! Items and chunks of a write: what is new, what changed and what is gone.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::ContentWrite;
use crate::job::plan::{PlannedItem, StoredHashes, TextHash, changed_ranges, diff_item};
use crate::store::StoreError;

/// Goes on from the deleted `items`: their chunks, vectors and rejections go in
/// the same statement. Answers how many items, chunks and rejections went.
macro_rules! with_what_belongs_to_them {
    () => {
        ", chunks AS (
             DELETE FROM weir.chunks c USING items i WHERE c.source_id = $1 AND c.item_id = i.item_id RETURNING 1
         ), embeddings AS (
             DELETE FROM weir.embeddings e USING items i WHERE e.source_id = $1 AND e.item_id = i.item_id
         ), rejections AS (
             DELETE FROM weir.rejections r USING items i WHERE r.source_id = $1 AND r.item_id = i.item_id RETURNING 1
         )
         SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM chunks), (SELECT count(*) FROM rejections)"
    };
}

impl ContentWrite<'_> {
    /// Deletes the items after `after`, up to and with `upto`, that are not in
    /// `keep`; an open end is the end of the source.
    pub(in crate::store) async fn delete_between(
        &mut self,
        after: Option<&str>,
        upto: Option<&str>,
        keep: &[PlannedItem],
    ) -> Result<(), StoreError> {
        if self.created {
            return Ok(());
        }
        let keep: Vec<&str> = keep.iter().map(|item| item.item_id.as_str()).collect();
        let gone = sqlx::query_as(concat!(
            "-- store::content::delete_between
             WITH items AS (
                 DELETE FROM weir.items
                 WHERE source_id = $1 AND ($2::text IS NULL OR item_id > $2) AND ($3::text IS NULL OR item_id <= $3)
                   AND item_id <> ALL($4)
                 RETURNING item_id
             )",
            with_what_belongs_to_them!()
        ))
        .bind(self.source.id)
        .bind(after)
        .bind(upto)
        .bind(&keep)
        .fetch_one(&mut *self.tx)
        .await?;
        self.count_deleted(gone);
        self.check_late()
    }

    /// Deletes these items, where the source has them.
    pub(super) async fn delete_items(&mut self, item_ids: &[String]) -> Result<(), StoreError> {
        let gone = sqlx::query_as(concat!(
            "-- store::content::delete_items
             WITH items AS (
                 DELETE FROM weir.items WHERE source_id = $1 AND item_id = ANY($2) RETURNING item_id
             )",
            with_what_belongs_to_them!()
        ))
        .bind(self.source.id)
        .bind(item_ids)
        .fetch_one(&mut *self.tx)
        .await?;
        self.count_deleted(gone);
        self.check_late()
    }

    fn count_deleted(&mut self, (items, chunks, rejections): (i64, i64, i64)) {
        self.change.items_deleted += items;
        self.chunks_delta -= chunks;
        self.chunks_touched |= chunks > 0;
        self.rejections_gone += rejections;
    }

    /// Writes a page of items, in order of id. `dense` says that the source has
    /// no other item between them.
    pub(in crate::store) async fn write_items(
        &mut self,
        items: &[PlannedItem],
        dense: bool,
    ) -> Result<(), StoreError> {
        let ids: Vec<&str> = items.iter().map(|item| item.item_id.as_str()).collect();
        let metadata: Vec<Option<&str>> =
            items.iter().map(|item| item.metadata.as_deref()).collect();
        let written: Vec<(String, bool)> = sqlx::query_as(
            "-- store::content::write_items
             INSERT INTO weir.items (source_id, item_id, metadata)
             SELECT $1, item_id, metadata::jsonb FROM unnest($2::text[], $3::text[]) AS new(item_id, metadata)
             ON CONFLICT (source_id, item_id) DO UPDATE SET metadata = EXCLUDED.metadata
             WHERE items.metadata IS DISTINCT FROM EXCLUDED.metadata
             RETURNING item_id, xmax = 0",
        )
        .bind(self.source.id)
        .bind(&ids)
        .bind(&metadata)
        .fetch_all(&mut *self.tx)
        .await?;
        let added: HashSet<String> = written
            .iter()
            .filter(|(_, added)| *added)
            .map(|(item_id, _)| item_id.clone())
            .collect();
        let mut touched: HashSet<&str> = written.iter().map(|(id, _)| id.as_str()).collect();

        let stored = self.stored_hashes(&ids, &added).await?;
        let mut rows = ChunkRows::default();
        let mut pending: BTreeSet<&str> = BTreeSet::new();
        for item in items {
            let none = BTreeMap::new();
            let hashes = self.prompts.hashes(&item.item_id, &item.chunks);
            let diff = diff_item(&hashes, stored.get(&item.item_id).unwrap_or(&none));
            self.chunks_delta += diff.added as i64 - diff.removed as i64;
            if let Some(from) = diff.removed_from {
                rows.removed_ids.push(&item.item_id);
                rows.removed_from.push(from as i32);
                touched.insert(&item.item_id);
            }
            if !diff.changed.is_empty() {
                pending.insert(&item.item_id);
                touched.insert(&item.item_id);
            }
            for index in diff.changed {
                rows.ids.push(&item.item_id);
                rows.indexes.push(index as i32);
                rows.hashes.push(hashes[index]);
                rows.texts.push(&item.chunks[index].text);
            }
        }
        self.change.items_added += added.len() as i64;
        self.change.items_changed += (touched.len() - added.len()) as i64;
        self.change.items_unchanged += (items.len() - touched.len()) as i64;
        self.check_late()?;
        self.dirty.extend(changed_ranges(&ids, &pending, dense));
        self.write_chunks(&rows).await
    }

    /// The hashes stored for those of `ids` that are not new.
    async fn stored_hashes(
        &mut self,
        ids: &[&str],
        added: &HashSet<String>,
    ) -> Result<StoredHashes, StoreError> {
        let known: Vec<&str> = ids
            .iter()
            .filter(|id| !added.contains(**id))
            .copied()
            .collect();
        let mut stored = StoredHashes::new();
        if known.is_empty() {
            return Ok(stored);
        }
        let rows: Vec<(String, i32, Vec<u8>)> = sqlx::query_as(
            "-- store::content::stored_hashes
             SELECT item_id, chunk_index, text_hash FROM weir.chunks WHERE source_id = $1 AND item_id = ANY($2)",
        )
        .bind(self.source.id)
        .bind(&known)
        .fetch_all(&mut *self.tx)
        .await?;
        for (item_id, index, hash) in rows {
            let hash = TextHash::try_from(hash.as_slice()).map_err(StoreError::corrupt)?;
            stored
                .entry(item_id)
                .or_default()
                .insert(index as usize, hash);
        }
        Ok(stored)
    }

    /// Writes changed chunks and removes those an item has no more, with the
    /// vectors and rejections that belonged to the old texts.
    async fn write_chunks(&mut self, rows: &ChunkRows<'_>) -> Result<(), StoreError> {
        if !rows.removed_ids.is_empty() {
            self.chunks_touched = true;
            let rejections: i64 = sqlx::query_scalar(
                "-- store::content::write_chunks
                 WITH gone AS (SELECT * FROM unnest($2::text[], $3::int[]) AS gone(item_id, first)),
                 embeddings AS (
                     DELETE FROM weir.embeddings e USING gone g
                     WHERE e.source_id = $1 AND e.item_id = g.item_id AND e.chunk_index >= g.first
                 ), rejections AS (
                     DELETE FROM weir.rejections r USING gone g
                     WHERE r.source_id = $1 AND r.item_id = g.item_id AND r.chunk_index >= g.first
                     RETURNING 1
                 ), chunks AS (
                     DELETE FROM weir.chunks c USING gone g
                     WHERE c.source_id = $1 AND c.item_id = g.item_id AND c.chunk_index >= g.first
                 )
                 SELECT count(*) FROM rejections",
            )
            .bind(self.source.id)
            .bind(&rows.removed_ids)
            .bind(&rows.removed_from)
            .fetch_one(&mut *self.tx)
            .await?;
            self.rejections_gone += rejections;
        }
        if !rows.ids.is_empty() {
            self.chunks_touched = true;
            let rejections: i64 = sqlx::query_scalar(
                "-- store::content::write_chunks
                 WITH changed AS (
                     SELECT * FROM unnest($2::text[], $3::int[], $4::bytea[], $5::text[])
                         AS changed(item_id, chunk_index, text_hash, text)
                 ), embeddings AS (
                     DELETE FROM weir.embeddings e USING changed n
                     WHERE e.source_id = $1 AND e.item_id = n.item_id AND e.chunk_index = n.chunk_index
                 ), rejections AS (
                     DELETE FROM weir.rejections r USING changed n
                     WHERE r.source_id = $1 AND r.item_id = n.item_id AND r.chunk_index = n.chunk_index
                     RETURNING 1
                 ), chunks AS (
                     INSERT INTO weir.chunks (source_id, item_id, chunk_index, text_hash, text)
                     SELECT $1, item_id, chunk_index, text_hash, text FROM changed
                     ON CONFLICT (source_id, item_id, chunk_index)
                     DO UPDATE SET text_hash = EXCLUDED.text_hash, text = EXCLUDED.text
                 )
                 SELECT count(*) FROM rejections",
            )
            .bind(self.source.id)
            .bind(&rows.ids)
            .bind(&rows.indexes)
            .bind(rows.hashes.iter().map(|it| &it[..]).collect::<Vec<_>>())
            .bind(&rows.texts)
            .fetch_one(&mut *self.tx)
            .await?;
            self.rejections_gone += rejections;
        }
        Ok(())
    }
}

/// The chunks of a page that change, as columns.
#[derive(Default)]
struct ChunkRows<'a> {
    ids: Vec<&'a str>,
    indexes: Vec<i32>,
    hashes: Vec<TextHash>,
    texts: Vec<&'a str>,
    removed_ids: Vec<&'a str>,
    removed_from: Vec<i32>,
}
