//! The one statement that writes an outcome.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Locked, Outcome, Progress};
use crate::store::{StoreError, database::Transaction, lease::interval};

/// What the statement says of an outcome.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Verdict {
    /// Whether all chunks of it are the job's, with their present texts.
    pub(super) matched: bool,
    /// The dimension of the model's vectors, once it has some.
    pub(super) dimension: Option<i32>,
    source_id: Option<i64>,
    done: Option<i32>,
    truncated: Option<i32>,
    rejected: Option<i32>,
    total: Option<i32>,
    suspects: Option<i32>,
    lease_expires_at: Option<DateTime<Utc>>,
}

impl Verdict {
    /// How the job stands; `None` when nothing was written.
    pub(super) fn progress(self) -> Option<Progress> {
        Some(Progress {
            source_id: self.source_id?,
            done: self.done?.into(),
            truncated: self.truncated?.into(),
            rejected: self.rejected?.into(),
            total: self.total?.into(),
            finished: self.lease_expires_at.is_none(),
            suspects: self.suspects?,
            lease_expires_at: self.lease_expires_at,
        })
    }
}

/// The statement, with the lock that it takes of the job's row. Parameters: the
/// job and epoch; the embedded chunks as columns; the rejected ones; the
/// vectors' dimension, if any; how long the lease lasts from now; whether to end
/// the job when nothing of it is left; to how many characters the embedded
/// chunks were truncated.
macro_rules! outcome_sql {
    ($lock:literal) => {
        concat!(
"-- store::batches::write_outcome
     WITH lease AS MATERIALIZED (
         SELECT id, source_id, model, first_item_id, last_item_id, chunks_done, chunks_truncated, chunks_rejected,
                chunks_total
         FROM weir.jobs WHERE id = $1 AND epoch = $2 AND state = 'running' FOR NO KEY UPDATE", $lock, "
     ), embedded AS MATERIALIZED (
         SELECT l.source_id, l.model, c.item_id, c.chunk_index, c.text_hash, n.embedding,
                -- All of its characters, or more, is the whole text. Only of what is said to be truncated is
                -- the text read.
                CASE WHEN n.truncated_to IS NULL THEN NULL
                     WHEN n.truncated_to < char_length(c.text) THEN n.truncated_to END AS truncated_to
         FROM lease l
         CROSS JOIN unnest($3::text[], $4::int[], $5::bytea[], $6::vector[], $14::int[])
             AS n(item_id, chunk_index, text_hash, embedding, truncated_to)
         JOIN weir.chunks c ON c.source_id = l.source_id AND c.item_id = n.item_id
             AND c.chunk_index = n.chunk_index AND c.text_hash = n.text_hash
         WHERE n.item_id BETWEEN l.first_item_id AND l.last_item_id
     ), rejected AS MATERIALIZED (
         SELECT l.source_id, l.model, c.item_id, c.chunk_index, c.text_hash, n.reason
         FROM lease l
         CROSS JOIN unnest($7::text[], $8::int[], $9::bytea[], $10::text[])
             AS n(item_id, chunk_index, text_hash, reason)
         JOIN weir.chunks c ON c.source_id = l.source_id AND c.item_id = n.item_id
             AND c.chunk_index = n.chunk_index AND c.text_hash = n.text_hash
         WHERE n.item_id BETWEEN l.first_item_id AND l.last_item_id
     ), verdict AS MATERIALIZED (
         SELECT (SELECT count(*) FROM embedded) = cardinality($3::text[])
            AND (SELECT count(*) FROM rejected) = cardinality($7::text[]) AS matched,
                m.dimension
         FROM lease LEFT JOIN weir.models m ON m.name = lease.model
     ), sound AS MATERIALIZED (
         SELECT FROM verdict WHERE matched AND ($11::int IS NULL OR dimension = $11)
     ), written AS (
         INSERT INTO weir.embeddings AS e (source_id, item_id, chunk_index, model, text_hash, embedding, truncated_to)
         SELECT source_id, item_id, chunk_index, model, text_hash, embedding, truncated_to FROM embedded n, sound
         -- The first verdict on a text holds; one that was counted as rejected is not counted again.
         WHERE NOT EXISTS (
             SELECT FROM weir.rejections r
             WHERE r.source_id = n.source_id AND r.item_id = n.item_id AND r.chunk_index = n.chunk_index
               AND r.model = n.model AND r.text_hash = n.text_hash)
         ON CONFLICT (source_id, item_id, chunk_index) DO UPDATE
         SET model = EXCLUDED.model, text_hash = EXCLUDED.text_hash, embedding = EXCLUDED.embedding,
             truncated_to = EXCLUDED.truncated_to, embedded_at = now()
         WHERE (e.model, e.text_hash) IS DISTINCT FROM (EXCLUDED.model, EXCLUDED.text_hash)
         RETURNING e.truncated_to
     ), replaced AS (
         DELETE FROM weir.embeddings e USING rejected r, sound
         WHERE e.source_id = r.source_id AND e.item_id = r.item_id AND e.chunk_index = r.chunk_index
           AND (e.model, e.text_hash) IS DISTINCT FROM (r.model, r.text_hash)
     ), refused AS (
         INSERT INTO weir.rejections AS r (source_id, item_id, chunk_index, model, text_hash, reason)
         SELECT source_id, item_id, chunk_index, model, text_hash, reason FROM rejected n, sound
         WHERE NOT EXISTS (
             SELECT FROM weir.embeddings e
             WHERE e.source_id = n.source_id AND e.item_id = n.item_id AND e.chunk_index = n.chunk_index
               AND e.model = n.model AND e.text_hash = n.text_hash)
         ON CONFLICT (source_id, item_id, chunk_index) DO UPDATE
         SET model = EXCLUDED.model, text_hash = EXCLUDED.text_hash, reason = EXCLUDED.reason, rejected_at = now()
         WHERE (r.model, r.text_hash) IS DISTINCT FROM (EXCLUDED.model, EXCLUDED.text_hash)
         RETURNING 1
     ), settled AS MATERIALIZED (
         -- A vector deleted by hand under a running job is counted when it is made again; the
         -- counts stay within the plan all the same.
         SELECT id, fresh, done, least(truncated, done) AS truncated, rejected,
                $13 AND done + rejected = chunks_total AS finished
         FROM (SELECT l.id, l.chunks_total, w.done + f.rejected AS fresh,
                      l.chunks_truncated + w.truncated AS truncated,
                      least(l.chunks_done + w.done, l.chunks_total - l.chunks_rejected) AS done,
                      least(l.chunks_rejected + f.rejected,
                            l.chunks_total - least(l.chunks_done + w.done, l.chunks_total - l.chunks_rejected))
                          AS rejected
               FROM lease l, sound,
                    (SELECT count(*)::int AS done, count(truncated_to)::int AS truncated FROM written) w,
                    (SELECT count(*)::int AS rejected FROM refused) f) counted
     ), updated AS (
         UPDATE weir.jobs j
         SET chunks_done = s.done,
             chunks_truncated = s.truncated,
             chunks_rejected = s.rejected,
             heard = true,
             attempt = CASE WHEN s.fresh > 0 THEN 0 ELSE j.attempt END,
             progressed_at = CASE WHEN s.fresh > 0 THEN now() ELSE j.progressed_at END,
             suspects = greatest(j.suspects - s.fresh, 0),
             state = CASE WHEN s.finished THEN 'succeeded' ELSE j.state END,
             settled = s.finished,
             finished_at = CASE WHEN s.finished THEN now() END,
             lease_expires_at = CASE WHEN s.finished THEN NULL ELSE now() + $12 END
         FROM settled s WHERE j.id = s.id
         RETURNING j.source_id, j.chunks_done AS done, j.chunks_truncated AS truncated,
                   j.chunks_rejected AS rejected, j.chunks_total AS total, j.suspects, j.lease_expires_at
     )
     SELECT v.matched, v.dimension, u.source_id, u.done, u.truncated, u.rejected, u.total, u.suspects,
            u.lease_expires_at
     FROM verdict v LEFT JOIN updated u ON true"
        )
    };
}

/// The one statement that writes an outcome: all of it or, when a chunk does
/// not match or the dimension is another, nothing. The job's row is locked
/// first, so that whoever changes the source's chunks comes before or after,
/// never between (law 7). `None`: the lease is not held or, with
/// [`Locked::Pass`], somebody else has the lock.
pub(super) async fn write_outcome(
    tx: &mut Transaction,
    outcome: &Outcome,
    dimension: Option<i32>,
    lease_duration: Duration,
    locked: Locked,
) -> Result<Option<Verdict>, StoreError> {
    let embedded = &outcome.embedded;
    let rejected = &outcome.rejected;
    let statement = match locked {
        Locked::Wait => outcome_sql!(""),
        Locked::Pass => outcome_sql!(" SKIP LOCKED"),
    };
    Ok(sqlx::query_as(statement)
        .bind(outcome.lease.job_id)
        .bind(outcome.lease.epoch)
        .bind(
            embedded
                .iter()
                .map(|chunk| chunk.item_id.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(
            embedded
                .iter()
                .map(|chunk| chunk.chunk_index)
                .collect::<Vec<_>>(),
        )
        .bind(
            embedded
                .iter()
                .map(|chunk| chunk.text_hash.as_slice())
                .collect::<Vec<_>>(),
        )
        .bind(
            embedded
                .iter()
                .map(|chunk| pgvector::Vector::from(chunk.vector.clone()))
                .collect::<Vec<_>>(),
        )
        .bind(
            rejected
                .iter()
                .map(|chunk| chunk.item_id.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(
            rejected
                .iter()
                .map(|chunk| chunk.chunk_index)
                .collect::<Vec<_>>(),
        )
        .bind(
            rejected
                .iter()
                .map(|chunk| chunk.text_hash.as_slice())
                .collect::<Vec<_>>(),
        )
        .bind(
            rejected
                .iter()
                .map(|chunk| chunk.reason.as_str())
                .collect::<Vec<_>>(),
        )
        .bind(dimension)
        .bind(interval(lease_duration))
        .bind(outcome.complete)
        .bind(
            embedded
                .iter()
                .map(|chunk| chunk.truncated_to)
                .collect::<Vec<_>>(),
        )
        .fetch_optional(&mut **tx)
        .await?)
}
