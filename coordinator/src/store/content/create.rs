//! A new source of few items: one statement, which is a transaction.

use std::cmp::Reverse;

use super::{Change, SourceWrite, Written, WrittenSource};
use crate::{
    job::{
        plan::{ItemRange, JobCutter, PlannedItem},
        state::Trigger,
    },
    store::{
        Store, StoreError,
        prompts::prompt_in_force,
        rows::{Job, job_columns},
    },
};

/// Most items, and bytes of their texts, that are sent before it is known
/// whether the source is new.
const FEW: (usize, usize) = (100, 64 << 10);

impl Store {
    /// Creates a source with these items, where it is not there yet. `None`:
    /// nothing was done, and the source has to be written step by step.
    pub(super) async fn create_small(
        &self,
        write: &SourceWrite,
        items: &[PlannedItem],
    ) -> Result<Option<Written>, StoreError> {
        // What is counted against a quota is counted between the steps.
        let may_create = write.expected_revision.is_none_or(|it| it == 0);
        if self.quota.is_any() || !may_create || !is_small(items) {
            return Ok(None);
        }
        let mut cutter = JobCutter::new(write.max_chunks_per_job, Vec::new());
        for item in items {
            cutter.push(item.item_id.clone(), item.chunks.len() as i32, true);
        }
        let (ranges, pending): (Vec<ItemRange>, Vec<i32>) = cutter
            .finish()
            .into_iter()
            .map(|job| (job.range, job.chunks))
            .unzip();
        let chunks: Vec<_> = items
            .iter()
            .flat_map(|item| {
                (0..)
                    .zip(&item.chunks)
                    .map(|it| (item.item_id.as_str(), it))
            })
            .collect();
        let mut jobs: Vec<Job> = sqlx::query_as(concat!(
            "-- store::content::create_small
             WITH prompt AS MATERIALIZED ",
            prompt_in_force!("id, nullif(prompt, '') AS prompt", "$3"),
            ", source AS (
                 INSERT INTO weir.sources (namespace, name, model, revision, items_total, chunks_total, prompt_id)
                 SELECT $1, $2, $3, 1 + coalesce(
                     (SELECT revision FROM weir.deleted_sources WHERE namespace = $1 AND name = $2), 0), $4, $5,
                        coalesce((SELECT id FROM prompt), 0)
                 WHERE NOT EXISTS (SELECT FROM weir.sources WHERE namespace = $1 AND name = $2)
                 ON CONFLICT (namespace, name) DO NOTHING
                 RETURNING id, revision
             ), items AS (
                 INSERT INTO weir.items (source_id, item_id, metadata)
                 SELECT s.id, n.item_id, n.metadata::jsonb
                 FROM source s CROSS JOIN unnest($6::text[], $7::text[]) AS n(item_id, metadata)
             ), chunks AS (
                 INSERT INTO weir.chunks (source_id, item_id, chunk_index, text_hash, text)
                 SELECT s.id, n.item_id, n.chunk_index,
                        -- Without a prompt the hash is that of the text alone, which is known.
                        coalesce(sha256(convert_to((SELECT prompt FROM prompt) || n.text, 'UTF8')), n.text_hash), n.text
                 FROM source s CROSS JOIN unnest($8::text[], $9::int[], $10::bytea[], $11::text[])
                     AS n(item_id, chunk_index, text_hash, text)
             )
             INSERT INTO weir.jobs AS j (source_id, namespace, source, model, revision, trigger, priority, traceparent,
                                         first_item_id, last_item_id, chunks_total)
             SELECT s.id, $1, $2, $3, s.revision, $12, $13, $14, n.first, n.last, n.chunks
             FROM source s CROSS JOIN unnest($15::text[], $16::text[], $17::int[]) AS n(first, last, chunks)
             RETURNING ",
            job_columns!()
        ))
        .bind(&write.key.namespace)
        .bind(&write.key.name)
        .bind(write.model.as_ref().unwrap_or(&write.default_model))
        .bind(items.len() as i64)
        .bind(chunks.len() as i64)
        .bind(items.iter().map(|it| it.item_id.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|it| it.metadata.as_deref()).collect::<Vec<_>>())
        .bind(chunks.iter().map(|(item_id, _)| *item_id).collect::<Vec<_>>())
        .bind(chunks.iter().map(|(_, (index, _))| *index).collect::<Vec<i32>>())
        .bind(chunks.iter().map(|(_, (_, it))| &it.text_hash[..]).collect::<Vec<_>>())
        .bind(chunks.iter().map(|(_, (_, it))| it.text.as_str()).collect::<Vec<_>>())
        .bind(Trigger::Write.as_str())
        .bind(write.priority)
        .bind(&write.traceparent)
        .bind(ranges.iter().map(|it| it.first.as_str()).collect::<Vec<_>>())
        .bind(ranges.iter().map(|it| it.last.as_str()).collect::<Vec<_>>())
        .bind(pending)
        .fetch_all(&self.pool)
        .await?;
        jobs.sort_by_key(|job| Reverse(job.id));
        let source = created(&jobs, items.len(), chunks.len());
        Ok(source.map(|source| Written {
            change: Change {
                items_added: items.len() as i64,
                chunks_pending: chunks.len() as i64,
                ..Change::default()
            },
            changed: true,
            source,
            jobs,
        }))
    }
}

fn is_small(items: &[PlannedItem]) -> bool {
    let (most_items, most_bytes) = FEW;
    let texts = items.iter().flat_map(|item| &item.chunks);
    (1..=most_items).contains(&items.len())
        && items.iter().all(|item| !item.chunks.is_empty())
        && texts.map(|chunk| chunk.text.len()).sum::<usize>() <= most_bytes
}

/// The source as it is just after these jobs were queued for it, in the same
/// statement; the newest job is the first.
fn created(jobs: &[Job], items: usize, chunks: usize) -> Option<WrittenSource> {
    let oldest = jobs.last()?;
    Some(WrittenSource {
        id: oldest.source_id,
        namespace: oldest.namespace.clone(),
        name: oldest.source.clone(),
        model: oldest.model.clone(),
        revision: oldest.revision,
        items_total: items as i64,
        chunks_total: chunks as i64,
        created_at: oldest.created_at,
        updated_at: oldest.created_at,
    })
}
