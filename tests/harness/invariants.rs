//! What must hold of the database at any moment, whatever was done: rules that
//! no CHECK can say, because they span rows and tables.

use sqlx::PgPool;

/// Returns each rule that is broken, and how many rows break it.
pub async fn broken_invariants(pool: &PgPool) -> sqlx::Result<Vec<(String, i64)>> {
    let mut rules: Vec<(String, i64)> = sqlx::query_as(INVARIANTS).fetch_all(pool).await?;
    rules.retain(|(_, rows)| *rows > 0);
    Ok(rules)
}

/// Each counts the rows that break a rule.
const INVARIANTS: &str = "
WITH pending AS (
    -- What is still to be moved to another model is not planned.
    SELECT c.source_id, c.item_id, c.chunk_index FROM weir.chunks c JOIN weir.sources s ON s.id = c.source_id
    WHERE (s.chunks_to_move IS NULL OR c.item_id <= s.prompted_to)
      AND NOT EXISTS (SELECT FROM weir.embeddings e WHERE (e.source_id, e.item_id, e.chunk_index, e.model, e.text_hash)
                                                     = (c.source_id, c.item_id, c.chunk_index, s.model, c.text_hash))
      AND NOT EXISTS (SELECT FROM weir.rejections r WHERE (r.source_id, r.item_id, r.chunk_index, r.model, r.text_hash)
                                                     = (c.source_id, c.item_id, c.chunk_index, s.model, c.text_hash))
)
SELECT 'law 7: every rejection is of the present text of a chunk', count(*) FROM weir.rejections r WHERE NOT EXISTS (
    SELECT FROM weir.chunks c WHERE (c.source_id, c.item_id, c.chunk_index, c.text_hash)
                                  = (r.source_id, r.item_id, r.chunk_index, r.text_hash))
UNION ALL SELECT 'law 7: every vector is of the present text of a chunk, with a prompt that its model has had', count(*)
    FROM weir.embeddings r WHERE NOT EXISTS (
        SELECT FROM weir.chunks c
        WHERE (c.source_id, c.item_id, c.chunk_index) = (r.source_id, r.item_id, r.chunk_index)
          AND (r.text_hash = sha256(convert_to(c.text, 'UTF8')) OR r.text_hash IN (
              SELECT sha256(convert_to(p.prompt || c.text, 'UTF8')) FROM weir.prompts p WHERE p.model = r.model)))
UNION ALL SELECT 'every hash is of its prompt and its text', count(*)
    FROM weir.chunks c JOIN weir.sources s ON s.id = c.source_id
    WHERE text_hash <> sha256(convert_to(concat((SELECT p.prompt FROM weir.prompts p WHERE p.id
        = CASE WHEN c.item_id <= s.prompted_to THEN s.next_prompt_id ELSE s.prompt_id END), text), 'UTF8'))
      AND (s.chunks_to_move IS NULL OR c.item_id <= s.prompted_to)
UNION ALL SELECT 'what is still to be moved to another model is counted', count(*) FROM weir.sources s
    WHERE s.chunks_to_move <> (
        SELECT count(*) FROM weir.chunks c WHERE c.source_id = s.id AND c.item_id > s.prompted_to)
UNION ALL SELECT 'what is still to be moved to another model is in no job', count(*)
    FROM weir.sources s JOIN weir.jobs j ON j.source_id = s.id
    WHERE s.chunks_to_move IS NOT NULL AND NOT j.settled AND j.last_item_id > s.prompted_to
UNION ALL SELECT 'only who moves has somebody that it moves for', count(*) FROM weir.sources
    WHERE (chunks_to_move IS NULL) <> (move_priority IS NULL)
UNION ALL SELECT 'a source has prompts of its model', count(*)
    FROM weir.sources s JOIN weir.prompts p ON p.id IN (s.prompt_id, s.next_prompt_id) WHERE p.model <> s.model
UNION ALL SELECT 'each prompt of a model is there once', count(*) FROM (
    SELECT FROM weir.prompts GROUP BY model, prompt HAVING count(*) > 1) twice
UNION ALL SELECT 'a chunk is embedded or rejected, not both', count(*)
    FROM weir.embeddings e JOIN weir.rejections r USING (source_id, item_id, chunk_index)
UNION ALL SELECT 'every chunk has its item', count(*) FROM weir.chunks c WHERE NOT EXISTS (
    SELECT FROM weir.items i WHERE (i.source_id, i.item_id) = (c.source_id, c.item_id))
UNION ALL SELECT 'every row has its source, or is left of one that was deleted', count(*) FROM (
    SELECT source_id FROM weir.items UNION ALL SELECT source_id FROM weir.chunks
    UNION ALL SELECT source_id FROM weir.embeddings UNION ALL SELECT source_id FROM weir.rejections) r
    WHERE NOT EXISTS (SELECT FROM weir.sources s WHERE s.id = r.source_id)
      AND NOT EXISTS (SELECT FROM weir.leftovers l WHERE l.source_id = r.source_id)
UNION ALL SELECT 'what is left of a source is left of one that is gone', count(*)
    FROM weir.leftovers JOIN weir.sources s ON s.id = source_id
UNION ALL SELECT 'a range that is embedded anew has its source', count(*) FROM weir.forced_ranges f
    WHERE NOT EXISTS (SELECT FROM weir.sources s WHERE s.id = f.source_id)
UNION ALL SELECT 'ranges that are embedded anew do not overlap', count(*)
    FROM weir.forced_ranges a JOIN weir.forced_ranges b ON a.source_id = b.source_id AND a.id < b.id
    WHERE a.first_item_id <= b.last_item_id AND b.first_item_id <= a.last_item_id
UNION ALL SELECT 'what is counted has its source', count(*) FROM (
    SELECT source_id FROM weir.rejection_counts UNION ALL SELECT source_id FROM weir.former_models) r
    WHERE NOT EXISTS (SELECT FROM weir.sources s WHERE s.id = r.source_id)
UNION ALL SELECT 'indexes have no gaps', count(*) FROM (
    SELECT FROM weir.chunks c JOIN weir.sources s ON s.id = c.source_id
    GROUP BY source_id, item_id HAVING max(chunk_index) + 1 <> count(*)) gaps
UNION ALL SELECT 'sources count their items and chunks', count(*) FROM weir.sources s
    WHERE items_total <> (SELECT count(*) FROM weir.items i WHERE i.source_id = s.id)
       OR chunks_total <> (SELECT count(*) FROM weir.chunks c WHERE c.source_id = s.id)
UNION ALL SELECT 'rejections are counted', count(*) FROM (
    SELECT source_id FROM (SELECT r.source_id, 1 AS chunks FROM weir.rejections r
                            JOIN weir.sources s ON s.id = r.source_id
                            WHERE s.chunks_to_move IS NULL OR r.item_id <= s.prompted_to
                           UNION ALL SELECT source_id, -chunks FROM weir.rejection_counts) both_of_it
    GROUP BY source_id HAVING sum(chunks) <> 0) miscounted
UNION ALL SELECT 'law 10: open jobs of one source do not overlap', count(*)
    FROM weir.jobs a JOIN weir.jobs b ON a.source_id = b.source_id AND a.id < b.id
    WHERE a.state IN ('queued', 'running') AND b.state IN ('queued', 'running')
      AND a.first_item_id <= b.last_item_id AND b.first_item_id <= a.last_item_id
UNION ALL SELECT 'every pending chunk is in an unsettled job', count(*) FROM pending p WHERE NOT EXISTS (
    SELECT FROM weir.jobs j WHERE j.source_id = p.source_id AND NOT j.settled
       AND p.item_id BETWEEN j.first_item_id AND j.last_item_id)
UNION ALL SELECT 'unsettled jobs count the pending chunks that belong to them', count(*) FROM weir.jobs j
    LEFT JOIN (
        SELECT o.id, count(*) AS chunks FROM pending p
        CROSS JOIN LATERAL (
            SELECT id FROM weir.jobs u
            WHERE u.source_id = p.source_id AND NOT u.settled AND p.item_id BETWEEN u.first_item_id AND u.last_item_id
            ORDER BY (u.state IN ('queued', 'running')) DESC, u.id DESC LIMIT 1) o
        GROUP BY o.id) own USING (id)
    WHERE NOT j.settled AND j.chunks_total - j.chunks_done - j.chunks_rejected <> coalesce(own.chunks, 0)
UNION ALL SELECT 'what is truncated is less than the text', count(*)
    FROM weir.embeddings e JOIN weir.chunks c USING (source_id, item_id, chunk_index)
    WHERE e.truncated_to >= char_length(c.text)
UNION ALL SELECT 'a job that no write has changed counts no chunk as truncated that is not', count(*) FROM weir.jobs j
    WHERE NOT j.settled AND j.changes = 0 AND j.epoch <= 1 AND j.chunks_truncated > (
        SELECT count(e.truncated_to) FROM weir.embeddings e
        WHERE e.source_id = j.source_id AND e.model = j.model AND e.item_id BETWEEN j.first_item_id AND j.last_item_id)
UNION ALL SELECT 'a job has counted every chunk that is truncated', count(*) FROM weir.sources s
    WHERE (SELECT count(e.truncated_to) FROM weir.embeddings e WHERE e.source_id = s.id)
        > (SELECT coalesce(sum(j.chunks_truncated), 0) FROM weir.jobs j WHERE j.source_id = s.id)
UNION ALL SELECT 'law 11: a job that waits after a failure says why', count(*) FROM weir.jobs
    WHERE last_error IS NULL AND (attempt > 0 AND state = 'queued' OR state IN ('failed', 'cancelled'))
UNION ALL SELECT 'a failed job waits for its time exactly while it is not settled', count(*) FROM weir.jobs
    WHERE state = 'failed' AND (settled AND run_at > now() OR NOT settled AND run_at < finished_at)
UNION ALL SELECT 'only what the reconciler queued was parked before', count(*) FROM weir.jobs
    WHERE (parkings > 0) > (trigger = 'reconcile')
UNION ALL SELECT 'an unsettled job has a source, and an open one its model', count(*) FROM weir.jobs j
    LEFT JOIN weir.sources s ON s.id = j.source_id
    WHERE NOT j.settled AND (s.id IS NULL OR j.state IN ('queued', 'running') AND j.model <> s.model)";
