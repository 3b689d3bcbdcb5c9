//! Items and chunks of a write: what is new, what changed and what is gone.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{ContentWrite, PAGE_ITEMS, jobs::Shift, together::Became};
use crate::job::plan::{PlannedItem, StoredHashes, TextHash, diff_item};
use crate::store::StoreError;

impl ContentWrite<'_> {
    /// Deletes the items after `after`, up to and with `upto`, that are not in
    /// `keep`, some at a time; no end is the end of the source.
    pub(in crate::store) async fn delete_between(
        &mut self,
        after: &str,
        upto: Option<&str>,
        keep: &[PlannedItem],
    ) -> Result<(), StoreError> {
        if self.is_created() {
            return Ok(());
        }
        let keep: Vec<&str> = keep.iter().map(|item| item.item_id.as_str()).collect();
        let mut after = after.to_owned();
        loop {
            let gone: Vec<String> = sqlx::query_scalar(
                "-- store::content::delete_between
                 SELECT item_id FROM weir.items
                 WHERE source_id = $1 AND item_id > $2 AND ($3::text IS NULL OR item_id <= $3)
                   AND item_id <> ALL($4)
                 ORDER BY item_id LIMIT $5",
            )
            .bind(self.source.id)
            .bind(&after)
            .bind(upto)
            .bind(&keep)
            .bind(PAGE_ITEMS as i64)
            .fetch_all(&mut *self.tx)
            .await?;
            self.delete_items(&gone.iter().map(String::as_str).collect::<Vec<_>>())
                .await?;
            match gone.into_iter().nth(PAGE_ITEMS - 1) {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }

    /// Deletes these items, which are in order, where the source has them.
    pub(super) async fn delete_items(&mut self, item_ids: &[&str]) -> Result<(), StoreError> {
        if item_ids.is_empty() {
            return Ok(());
        }
        let held = self.hold_jobs(item_ids).await?;
        let gone: Vec<String> = sqlx::query_scalar(
            "-- store::content::delete_items
             DELETE FROM weir.items WHERE source_id = $1 AND item_id = ANY($2) RETURNING item_id",
        )
        .bind(self.source.id)
        .bind(item_ids)
        .fetch_all(&mut *self.tx)
        .await?;
        self.change.items_deleted += gone.len() as i64;
        if let Some(told) = &mut self.told {
            for item_id in &gone {
                told.became(item_id, Became::Deleted);
            }
        }
        let rows = ChunkRows {
            removed_ids: gone.iter().map(String::as_str).collect(),
            removed_from: vec![0; gone.len()],
            ..ChunkRows::default()
        };
        let mut shifts = BTreeMap::new();
        self.remove_chunks(&rows, &mut shifts).await?;
        for shift in shifts.values_mut() {
            shift.gone = true;
        }
        self.check_late()?;
        self.shift_jobs(&held, &shifts).await
    }

    /// Writes a page of items, in order of id.
    pub(in crate::store) async fn write_items(
        &mut self,
        items: &[PlannedItem],
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
        let mut changed: BTreeSet<&str> = BTreeSet::new();
        for item in items {
            let none = BTreeMap::new();
            let hashes = self.prompts.hashes(&item.item_id, &item.chunks);
            let diff = diff_item(&hashes, stored.get(&item.item_id).unwrap_or(&none));
            self.count_chunks(&item.item_id, diff.added as i64);
            if let Some(from) = diff.removed_from {
                rows.removed_ids.push(&item.item_id);
                rows.removed_from.push(from as i32);
                changed.insert(&item.item_id);
            }
            if !diff.changed.is_empty() {
                changed.insert(&item.item_id);
            }
            for index in diff.changed {
                rows.ids.push(&item.item_id);
                rows.indexes.push(index as i32);
                rows.hashes.push(hashes[index]);
                rows.texts.push(&item.chunks[index].text);
            }
        }
        touched.extend(&changed);
        if let Some(told) = &mut self.told {
            for item_id in &touched {
                let is_new = added.contains(*item_id);
                told.became(
                    item_id,
                    if is_new {
                        Became::Added
                    } else {
                        Became::Changed
                    },
                );
            }
        }
        self.change.items_added += added.len() as i64;
        self.change.items_changed += (touched.len() - added.len()) as i64;
        self.change.items_unchanged += (items.len() - touched.len()) as i64;
        self.check_late()?;
        if changed.is_empty() {
            return Ok(());
        }
        let held = self
            .hold_jobs(&changed.into_iter().collect::<Vec<_>>())
            .await?;
        let mut shifts = BTreeMap::new();
        self.remove_chunks(&rows, &mut shifts).await?;
        self.write_chunks(&rows, &mut shifts).await?;
        self.shift_jobs(&held, &shifts).await
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
             -- What is still to be moved to another model has hashes of any prompt.
             SELECT item_id, chunk_index,
                    CASE WHEN item_id > $3 THEN sha256(convert_to(text, 'UTF8')) ELSE text_hash END
             FROM weir.chunks WHERE source_id = $1 AND item_id = ANY($2)",
        )
        .bind(self.source.id)
        .bind(&known)
        .bind(self.source.moved_to())
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

    /// Removes chunks that an item has no more, with what was made of them, and
    /// counts them.
    async fn remove_chunks(
        &mut self,
        rows: &ChunkRows<'_>,
        shifts: &mut BTreeMap<String, Shift>,
    ) -> Result<(), StoreError> {
        if rows.removed_ids.is_empty() {
            return Ok(());
        }
        let gone: Vec<(String, i32, i32, i32)> = sqlx::query_as(
            "-- store::content::remove_chunks
             WITH gone AS (SELECT * FROM unnest($2::text[], $3::int[]) AS gone(item_id, first)),
             chunks AS (
                 DELETE FROM weir.chunks c USING gone g
                 WHERE c.source_id = $1 AND c.item_id = g.item_id AND c.chunk_index >= g.first
                 RETURNING c.item_id, c.chunk_index, c.text_hash
             ), embeddings AS (
                 DELETE FROM weir.embeddings e USING gone g
                 WHERE e.source_id = $1 AND e.item_id = g.item_id AND e.chunk_index >= g.first
                 RETURNING e.item_id, e.chunk_index, e.model, e.text_hash
             ), rejections AS (
                 DELETE FROM weir.rejections r USING gone g
                 WHERE r.source_id = $1 AND r.item_id = g.item_id AND r.chunk_index >= g.first
                 RETURNING r.item_id, r.chunk_index, r.model, r.text_hash
             ), rows AS (
                 SELECT item_id, chunk_index, text_hash, 1 AS chunk, 0 AS result, 0 AS rejection FROM chunks
                 UNION ALL
                 SELECT item_id, chunk_index, text_hash, 0, (model = $4)::int, 0 FROM embeddings
                 UNION ALL
                 SELECT item_id, chunk_index, text_hash, 0, (model = $4)::int, 1 FROM rejections
             ), texts AS (
                 -- Not joined: nobody knows how many there are.
                 SELECT item_id, sum(chunk) AS chunks, sum(result) AS results, sum(rejection) AS rejections
                 FROM rows GROUP BY item_id, chunk_index, text_hash
             )
             SELECT item_id, sum(chunks)::int, sum(chunks * (results = 0)::int)::int, sum(rejections)::int
             FROM texts GROUP BY item_id HAVING sum(chunks) > 0",
        )
        .bind(self.source.id)
        .bind(&rows.removed_ids)
        .bind(&rows.removed_from)
        .bind(&self.source.model)
        .fetch_all(&mut *self.tx)
        .await?;
        for (item_id, chunks, pending, rejections) in gone {
            self.count_chunks(&item_id, -i64::from(chunks));
            if !self.source.is_unmoved(&item_id) {
                self.rejections_gone += i64::from(rejections);
                shifts.entry(item_id).or_default().fewer += pending;
            }
        }
        Ok(())
    }

    /// Writes changed chunks, and forgets what was made of their old texts.
    async fn write_chunks(
        &mut self,
        rows: &ChunkRows<'_>,
        shifts: &mut BTreeMap<String, Shift>,
    ) -> Result<(), StoreError> {
        if rows.ids.is_empty() {
            return Ok(());
        }
        let changed: Vec<(String, i32, i32, i32)> = sqlx::query_as(
            "-- store::content::write_chunks
             WITH new AS (
                 SELECT * FROM unnest($2::text[], $3::int[], $4::bytea[], $5::text[])
                     AS new(item_id, chunk_index, text_hash, text)
             ), old AS MATERIALIZED (
                 SELECT c.item_id, c.chunk_index, c.text_hash FROM new n
                 CROSS JOIN LATERAL (
                     SELECT item_id, chunk_index, text_hash FROM weir.chunks
                     WHERE source_id = $1 AND item_id = n.item_id AND chunk_index = n.chunk_index LIMIT 1) c
             ), embeddings AS (
                 DELETE FROM weir.embeddings e USING new n
                 WHERE e.source_id = $1 AND e.item_id = n.item_id AND e.chunk_index = n.chunk_index
                 RETURNING e.item_id, e.chunk_index, e.model, e.text_hash
             ), rejections AS (
                 DELETE FROM weir.rejections r USING new n
                 WHERE r.source_id = $1 AND r.item_id = n.item_id AND r.chunk_index = n.chunk_index
                 RETURNING r.item_id, r.chunk_index, r.model, r.text_hash
             ), chunks AS (
                 INSERT INTO weir.chunks (source_id, item_id, chunk_index, text_hash, text)
                 SELECT $1, item_id, chunk_index, text_hash, text FROM new
                 ON CONFLICT (source_id, item_id, chunk_index)
                 DO UPDATE SET text_hash = EXCLUDED.text_hash, text = EXCLUDED.text
             ), results AS (
                 SELECT * FROM embeddings UNION ALL SELECT * FROM rejections
             )
             SELECT n.item_id, count(*)::int,
                    count(*) FILTER (WHERE o.item_id IS NULL OR r.item_id IS NOT NULL)::int,
                    (SELECT count(*)::int FROM rejections r WHERE r.item_id = n.item_id)
             FROM new n
             LEFT JOIN old o ON o.item_id = n.item_id AND o.chunk_index = n.chunk_index
             LEFT JOIN results r ON r.item_id = o.item_id AND r.chunk_index = o.chunk_index
                 AND r.text_hash = o.text_hash AND r.model = $6
             GROUP BY n.item_id",
        )
        .bind(self.source.id)
        .bind(&rows.ids)
        .bind(&rows.indexes)
        .bind(rows.hashes.iter().map(|it| &it[..]).collect::<Vec<_>>())
        .bind(&rows.texts)
        .bind(&self.source.model)
        .fetch_all(&mut *self.tx)
        .await?;
        for (item_id, written, more, rejections) in changed {
            if let Some(told) = &mut self.told {
                told.wrote(&item_id, written);
            }
            if self.source.is_unmoved(&item_id) {
                self.change.chunks_pending += i64::from(written);
                continue;
            }
            self.rejections_gone += i64::from(rejections);
            let shift = shifts.entry(item_id).or_default();
            shift.written += written;
            shift.more += more;
        }
        Ok(())
    }

    /// Counts so many chunks of an item more.
    fn count_chunks(&mut self, item_id: &str, more: i64) {
        self.chunks_delta += more;
        if self.source.is_unmoved(item_id) {
            let to_move = self.source.chunks_to_move.unwrap_or_default() + more;
            self.source.chunks_to_move = Some(to_move.max(0));
        }
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
