//! The one statement that writes outcomes, those of many jobs together.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{
    Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo},
};

use super::{Late, Locked, Outcome, Progress};
use crate::{
    job::plan::TextHash,
    store::{
        StoreError,
        database::Transaction,
        fence::{holders, is_of},
        lease::interval,
        prompts::prompt_of,
    },
};

/// What the statement says of an outcome.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Verdict {
    /// Which of the outcomes, from 1.
    n: i64,
    /// Whether the statement looked at the chunks before a write changed some of
    /// them, or other results came, and at the job after it: nothing was written,
    /// and the next statement of the transaction sees them as they are.
    pub(super) outdated: bool,
    /// Whether all chunks of it are the job's, with their present texts, but for
    /// those that a write may have changed since they were handed out.
    pub(super) matched: bool,
    /// Embedded chunks of it that are left out: their texts are others now, or gone.
    late_embedded: i64,
    /// Rejected ones.
    late_rejected: i64,
    /// Whether its vectors have the dimension of its model.
    pub(super) fits: bool,
    source_id: Option<i64>,
    done: Option<i32>,
    truncated: Option<i32>,
    rejected: Option<i32>,
    total: Option<i32>,
    suspects: Option<i32>,
    lease_expires_at: Option<DateTime<Utc>>,
}

impl Verdict {
    /// Whether nothing was written because the model's dimension is another, or
    /// not fixed.
    pub(super) fn is_unfit(&self) -> bool {
        !self.outdated && self.matched && !self.fits
    }

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
            late: Late {
                embedded: self.late_embedded,
                rejected: self.late_rejected,
            },
            lease_expires_at: self.lease_expires_at,
        })
    }
}

/// The statement, with the lock that it takes of the jobs' rows. Parameters:
/// how long the leases last from now; of each outcome its job, epoch, whether to
/// end the job when nothing of it is left, the vectors' dimension, and how many
/// chunks it names as embedded and as rejected; the embedded chunks as columns,
/// the first of which says of which outcome, and to how many characters each
/// was truncated; the rejected ones; of each outcome whose lease it must be.
macro_rules! outcomes_sql {
    ($lock:literal) => {
        concat!(
"-- store::batches::write_outcomes
     WITH seen AS MATERIALIZED (
         -- As they were when the statement began, like the chunks that it reads; the rows that are
         -- locked may have changed since.
         SELECT id, changes, chunks_done, chunks_rejected FROM weir.jobs WHERE id = ANY($2)
     ), lease AS MATERIALIZED (
         SELECT o.n, o.complete, o.dimension AS given, o.embedded, o.refused, j.id, j.source_id, j.model,
                j.first_item_id, j.last_item_id, j.chunks_done, j.chunks_truncated, j.chunks_rejected, j.chunks_total,
                j.changes
         FROM unnest($2::bigint[], $3::bigint[], $4::bool[], $5::int[], $6::int[], $7::int[], $19::text[],
                     $20::text[]) WITH ORDINALITY
             AS o(job_id, epoch, complete, dimension, embedded, refused, claimed_by, namespaces, n)
         JOIN weir.jobs j ON j.id = o.job_id AND j.epoch = o.epoch
         WHERE j.state = 'running' AND ", is_of!("o.claimed_by", "o.namespaces"), "
         FOR NO KEY UPDATE OF j", $lock, "
     ), embedded AS MATERIALIZED (
         SELECT l.n, l.source_id, l.model, c.item_id, c.chunk_index, c.text_hash, e.embedding,
                -- All of its characters, or more, is the whole text. Only of what is said to be truncated is
                -- the text read, and the prompt, which does not count.
                CASE WHEN e.truncated_to IS NOT NULL THEN (
                    SELECT greatest(it.chars, 1)
                    FROM (SELECT e.truncated_to - coalesce(char_length(", prompt_of!("s", "c.item_id"), "), 0) AS chars
                          FROM weir.sources s WHERE s.id = l.source_id) it
                    WHERE it.chars < char_length(c.text)) END AS truncated_to
         FROM unnest($8::int[], $9::text[], $10::int[], $11::bytea[], $12::vector[], $13::int[])
             AS e(n, item_id, chunk_index, text_hash, embedding, truncated_to)
         JOIN lease l ON l.n = e.n
         JOIN weir.chunks c ON c.source_id = l.source_id AND c.item_id = e.item_id
             AND c.chunk_index = e.chunk_index AND c.text_hash = e.text_hash
         WHERE e.item_id BETWEEN l.first_item_id AND l.last_item_id
     ), rejected AS MATERIALIZED (
         SELECT l.n, l.source_id, l.model, c.item_id, c.chunk_index, c.text_hash, r.reason
         FROM unnest($14::int[], $15::text[], $16::int[], $17::bytea[], $18::text[])
             AS r(n, item_id, chunk_index, text_hash, reason)
         JOIN lease l ON l.n = r.n
         JOIN weir.chunks c ON c.source_id = l.source_id AND c.item_id = r.item_id
             AND c.chunk_index = r.chunk_index AND c.text_hash = r.text_hash
         WHERE r.item_id BETWEEN l.first_item_id AND l.last_item_id
     ), fitting AS MATERIALIZED (
         -- The lock is shared, and keeps the dimension what it is.
         SELECT l.n FROM lease l JOIN weir.models m ON m.name = l.model AND m.dimension = l.given
         FOR KEY SHARE OF m", $lock, "
     ), verdict AS MATERIALIZED (
         SELECT n, outdated, fits, late_embedded, late_rejected,
                -- Where no write changed anything since the claim, what does not match never did.
                changes > 0 OR late_embedded + late_rejected = 0 AS matched
         FROM (SELECT l.n, l.changes,
                      (l.changes, l.chunks_done, l.chunks_rejected) <> (s.changes, s.chunks_done, s.chunks_rejected)
                          AS outdated,
                      l.given IS NULL OR f.n IS NOT NULL AS fits,
                      l.embedded - coalesce(e.chunks, 0) AS late_embedded,
                      l.refused - coalesce(r.chunks, 0) AS late_rejected
               FROM lease l
               JOIN seen s ON s.id = l.id
               LEFT JOIN (SELECT n, count(*) AS chunks FROM embedded GROUP BY n) e ON e.n = l.n
               LEFT JOIN (SELECT n, count(*) AS chunks FROM rejected GROUP BY n) r ON r.n = l.n
               LEFT JOIN fitting f ON f.n = l.n) found
     ), sound AS MATERIALIZED (
         SELECT n FROM verdict WHERE matched AND fits AND NOT outdated
     ), written AS (
         INSERT INTO weir.embeddings AS e (source_id, item_id, chunk_index, model, text_hash, embedding, truncated_to)
         SELECT source_id, item_id, chunk_index, model, text_hash, embedding, truncated_to
         FROM embedded n JOIN sound USING (n)
         -- The first verdict on a text holds; one that was counted as rejected is not counted again.
         WHERE NOT EXISTS (
             SELECT FROM weir.rejections r
             WHERE r.source_id = n.source_id AND r.item_id = n.item_id AND r.chunk_index = n.chunk_index
               AND r.model = n.model AND r.text_hash = n.text_hash)
         ON CONFLICT (source_id, item_id, chunk_index) DO UPDATE
         SET model = EXCLUDED.model, text_hash = EXCLUDED.text_hash, embedding = EXCLUDED.embedding,
             truncated_to = EXCLUDED.truncated_to, embedded_at = now()
         WHERE (e.model, e.text_hash) IS DISTINCT FROM (EXCLUDED.model, EXCLUDED.text_hash)
         RETURNING e.source_id, e.item_id, e.chunk_index, e.truncated_to
     ), replaced AS (
         DELETE FROM weir.embeddings e USING rejected r JOIN sound USING (n)
         WHERE e.source_id = r.source_id AND e.item_id = r.item_id AND e.chunk_index = r.chunk_index
           AND (e.model, e.text_hash) IS DISTINCT FROM (r.model, r.text_hash)
     ), refused AS (
         INSERT INTO weir.rejections AS r (source_id, item_id, chunk_index, model, text_hash, reason)
         SELECT source_id, item_id, chunk_index, model, text_hash, reason
         FROM rejected n JOIN sound USING (n)
         WHERE NOT EXISTS (
             SELECT FROM weir.embeddings e
             WHERE e.source_id = n.source_id AND e.item_id = n.item_id AND e.chunk_index = n.chunk_index
               AND e.model = n.model AND e.text_hash = n.text_hash)
         ON CONFLICT (source_id, item_id, chunk_index) DO UPDATE
         SET model = EXCLUDED.model, text_hash = EXCLUDED.text_hash, reason = EXCLUDED.reason, rejected_at = now()
         WHERE (r.model, r.text_hash) IS DISTINCT FROM (EXCLUDED.model, EXCLUDED.text_hash)
         RETURNING r.source_id, r.item_id, r.chunk_index, r.xmax = 0 AS added
     ), turned_down AS MATERIALIZED (
         SELECT r.n, count(*) AS rejected, count(*) FILTER (WHERE f.added) AS added
         FROM refused f JOIN rejected r USING (source_id, item_id, chunk_index)
         GROUP BY r.n
     ), noted AS (
         -- The row is this job's alone, and nobody else waits for it.
         INSERT INTO weir.rejection_counts AS k (source_id, job_id, chunks)
         SELECT l.source_id, l.id, t.added FROM turned_down t JOIN lease l USING (n) WHERE t.added > 0
         ON CONFLICT (source_id, job_id) DO UPDATE SET chunks = k.chunks + EXCLUDED.chunks
     ), settled AS MATERIALIZED (
         -- A vector deleted by hand under a running job is counted when it is made again; the
         -- counts stay within the plan all the same.
         SELECT id, fresh, done, least(truncated, done) AS truncated, rejected,
                complete AND done + rejected = chunks_total AS finished
         FROM (SELECT id, complete, chunks_total, done + rejected AS fresh,
                      chunks_truncated + truncated AS truncated,
                      least(chunks_done + done, chunks_total - chunks_rejected) AS done,
                      least(chunks_rejected + rejected,
                            chunks_total - least(chunks_done + done, chunks_total - chunks_rejected)) AS rejected
               FROM (SELECT l.*, coalesce(w.done, 0)::int AS done, coalesce(w.truncated, 0)::int AS truncated,
                            coalesce(f.rejected, 0)::int AS rejected
                     FROM lease l JOIN sound USING (n)
                     LEFT JOIN (SELECT n, count(*) AS done, count(truncated_to) AS truncated
                                -- Grouped, not joined: nothing tells the planner how many there are, and it
                                -- would compare each with each.
                                FROM (SELECT max(n) AS n, max(truncated_to) AS truncated_to
                                      FROM (SELECT source_id, item_id, chunk_index, n, NULL AS truncated_to,
                                                   false AS fresh
                                            FROM embedded
                                            UNION ALL
                                            SELECT source_id, item_id, chunk_index, NULL, truncated_to, true
                                            FROM written) both_of_it
                                      GROUP BY source_id, item_id, chunk_index HAVING bool_or(fresh)) counted
                                GROUP BY n) w USING (n)
                     LEFT JOIN turned_down f USING (n)) fresh) counted
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
             lease_expires_at = CASE WHEN s.finished THEN NULL ELSE now() + $1 END
         FROM settled s WHERE j.id = s.id
         RETURNING j.id, j.source_id, j.chunks_done AS done, j.chunks_truncated AS truncated,
                   j.chunks_rejected AS rejected, j.chunks_total AS total, j.suspects, j.lease_expires_at
     )
     SELECT v.n, v.outdated, v.matched, v.fits, v.late_embedded, v.late_rejected, u.source_id, u.done, u.truncated, u.rejected, u.total, u.suspects,
            u.lease_expires_at
     FROM verdict v JOIN lease l USING (n) LEFT JOIN updated u ON u.id = l.id"
        )
    };
}

/// Writes outcomes of different jobs: of each all that is of a present text or,
/// when a chunk never was the job's or the dimension is another, nothing. The
/// jobs' rows are locked first, so that whoever changes a source's chunks comes
/// before or after, never between (law 7). `None`: the lease is not held or, with [`Locked::Pass`],
/// somebody else has the lock.
pub(super) async fn write_outcomes(
    tx: &mut Transaction,
    outcomes: &[&Outcome],
    lease_duration: Duration,
    locked: Locked,
) -> Result<Vec<Option<Verdict>>, StoreError> {
    let statement = match locked {
        Locked::Wait => outcomes_sql!(""),
        Locked::Pass => outcomes_sql!(" SKIP LOCKED"),
    };
    let (embedded, rejected) = (Embedded::of(outcomes), Rejected::of(outcomes));
    let column = |of: fn(&Outcome) -> i64| outcomes.iter().map(|it| of(it)).collect::<Vec<_>>();
    let count = |of: fn(&Outcome) -> usize| {
        let counts = outcomes.iter().map(|it| of(it) as i32);
        counts.collect::<Vec<_>>()
    };
    let (names, namespaces) = holders(outcomes.iter().map(|it| &it.fence));
    let found: Vec<Verdict> = sqlx::query_as(statement)
        .bind(interval(lease_duration))
        .bind(column(|it| it.fence.lease.job_id))
        .bind(column(|it| it.fence.lease.epoch))
        .bind(outcomes.iter().map(|it| it.complete).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|it| it.dimension()).collect::<Vec<_>>())
        .bind(count(|it| it.embedded.len()))
        .bind(count(|it| it.rejected.len()))
        .bind(embedded.n)
        .bind(embedded.item_id)
        .bind(embedded.chunk_index)
        .bind(embedded.text_hash)
        .bind(embedded.vector)
        .bind(embedded.truncated_to)
        .bind(rejected.n)
        .bind(rejected.item_id)
        .bind(rejected.chunk_index)
        .bind(rejected.text_hash)
        .bind(rejected.reason)
        .bind(names)
        .bind(namespaces)
        .fetch_all(&mut **tx)
        .await?;
    let mut verdicts: Vec<Option<Verdict>> = outcomes.iter().map(|_| None).collect();
    for verdict in found {
        if let Some(place) = verdicts.get_mut(verdict.n as usize - 1) {
            *place = Some(verdict);
        }
    }
    Ok(verdicts)
}

/// Embedded chunks of all outcomes, by column.
#[derive(Default)]
struct Embedded<'a> {
    n: Vec<i32>,
    item_id: Vec<&'a str>,
    chunk_index: Vec<i32>,
    text_hash: Vec<&'a [u8]>,
    vector: Vec<Packed<'a>>,
    truncated_to: Vec<Option<i32>>,
}

impl<'a> Embedded<'a> {
    fn of(outcomes: &[&'a Outcome]) -> Self {
        let mut columns = Self::default();
        for (n, outcome) in (1..).zip(outcomes) {
            for chunk in &outcome.embedded {
                columns.n.push(n);
                columns.item_id.push(&chunk.item_id);
                columns.chunk_index.push(chunk.chunk_index);
                columns.text_hash.push(as_bytes(&chunk.text_hash));
                columns.vector.push(Packed(&chunk.vector));
                columns.truncated_to.push(chunk.truncated_to);
            }
        }
        columns
    }
}

/// Rejected chunks of all outcomes, by column.
#[derive(Default)]
struct Rejected<'a> {
    n: Vec<i32>,
    item_id: Vec<&'a str>,
    chunk_index: Vec<i32>,
    text_hash: Vec<&'a [u8]>,
    reason: Vec<&'a str>,
}

impl<'a> Rejected<'a> {
    fn of(outcomes: &[&'a Outcome]) -> Self {
        let mut columns = Self::default();
        for (n, outcome) in (1..).zip(outcomes) {
            for chunk in &outcome.rejected {
                columns.n.push(n);
                columns.item_id.push(&chunk.item_id);
                columns.chunk_index.push(chunk.chunk_index);
                columns.text_hash.push(as_bytes(&chunk.text_hash));
                columns.reason.push(&chunk.reason);
            }
        }
        columns
    }
}

fn as_bytes(hash: &TextHash) -> &[u8] {
    hash
}

/// Numbers as pgvector's type `vector` has them on the wire, not copied on the
/// way: dimension, two bytes unused, the numbers.
struct Packed<'a>(&'a [f32]);

impl Type<Postgres> for Packed<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("vector")
    }
}

impl PgHasArrayType for Packed<'_> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("_vector")
    }
}

impl Encode<'_, Postgres> for Packed<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.reserve(4 + 4 * self.0.len());
        buffer.extend(u16::try_from(self.0.len())?.to_be_bytes());
        buffer.extend([0; 2]);
        buffer.extend(self.0.iter().flat_map(|number| number.to_be_bytes()));
        Ok(IsNull::No)
    }
}
