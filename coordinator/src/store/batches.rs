//! Batches: what of a job is pending, its texts, and the results that settle
//! it.

use std::time::Duration;

use super::{
    Store, StoreError, Violation,
    database::Transaction,
    lease::interval,
    rows::{Embedded, LeaseKey, Rejected},
};
use chrono::{DateTime, Utc};

/// The outcome of some chunks of a job, on its way into the database.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The lease it is written under.
    pub lease: LeaseKey,
    /// Chunks with their vectors, all of one dimension.
    pub embedded: Vec<Embedded>,
    /// Chunks that the embedder refused. No chunk is named twice.
    pub rejected: Vec<Rejected>,
    /// End the job as succeeded if nothing of it is left.
    pub complete: bool,
}

/// How a job stands after an outcome was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The job's source.
    pub source_id: i64,
    /// Chunks embedded.
    pub done: i64,
    /// Chunks rejected.
    pub rejected: i64,
    /// Chunks it was planned with.
    pub total: i64,
    /// Whether it has succeeded.
    pub finished: bool,
    /// Chunks suspected to hold a text that kills its worker.
    pub suspects: i32,
    /// Until when the lease was renewed; `None` when the job has succeeded.
    pub lease_expires_at: Option<DateTime<Utc>>,
}

/// What the statement says of an outcome. No row at all: the lease is not held.
#[derive(Debug, sqlx::FromRow)]
struct Verdict {
    matched: bool,
    dimension: Option<i32>,
    source_id: Option<i64>,
    done: Option<i32>,
    rejected: Option<i32>,
    total: Option<i32>,
    suspects: Option<i32>,
    lease_expires_at: Option<DateTime<Utc>>,
}

impl Store {
    /// Writes the outcomes of several jobs in one transaction, each with the
    /// renewal of its lease. An outcome that is refused does not hinder the
    /// others; an error of the database fails them all, and none is written.
    pub async fn upsert(
        &self,
        outcomes: &[Outcome],
        lease_duration: Duration,
    ) -> Result<Vec<Result<Progress, StoreError>>, StoreError> {
        // Every transaction takes the locks of jobs in the same order.
        let mut order: Vec<usize> = (0..outcomes.len()).collect();
        order.sort_by_key(|index| outcomes[*index].lease.job_id);
        let mut results: Vec<Option<Result<Progress, StoreError>>> = Vec::new();
        results.resize_with(outcomes.len(), || None);
        let mut tx = self.pool.begin().await?;
        for index in order {
            results[index] = match upsert_one(&mut tx, &outcomes[index], lease_duration).await {
                Ok(progress) => progress.map(Ok),
                Err(error @ (StoreError::Unavailable(_) | StoreError::Internal(_))) => {
                    return Err(error);
                }
                Err(refusal) => Some(Err(refusal)),
            };
        }
        tx.commit().await?;
        let mut answers = Vec::with_capacity(results.len());
        for (outcome, result) in outcomes.iter().zip(results) {
            answers.push(match result {
                Some(result) => result,
                None => self.after_the_end(outcome).await,
            });
        }
        Ok(answers)
    }

    /// What to say to an outcome whose lease is not held: fine, when the job
    /// has succeeded under it, for then the outcome is there already.
    async fn after_the_end(&self, outcome: &Outcome) -> Result<Progress, StoreError> {
        let job = self.not_held(outcome.lease).await?;
        Ok(Progress {
            source_id: job.source_id,
            done: job.chunks_done.into(),
            rejected: job.chunks_rejected.into(),
            total: job.chunks_total.into(),
            finished: true,
            suspects: 0,
            lease_expires_at: None,
        })
    }
}

/// Writes one outcome. `None`: the lease is not held.
pub(super) async fn upsert_one(
    tx: &mut Transaction,
    outcome: &Outcome,
    lease_duration: Duration,
) -> Result<Option<Progress>, StoreError> {
    let dimension = outcome
        .embedded
        .first()
        .map(|chunk| chunk.vector.len() as i32);
    let mut verdict = write_outcome(tx, outcome, dimension, lease_duration).await?;
    if let (
        Some(Verdict {
            matched: true,
            dimension: None,
            ..
        }),
        Some(dimension),
    ) = (&verdict, dimension)
    {
        // The first vectors of the model.
        sqlx::query(
            "-- store::batches::upsert_one
             INSERT INTO weir.models (name, dimension)
             SELECT model, $2 FROM weir.jobs WHERE id = $1 ON CONFLICT (name) DO NOTHING",
        )
        .bind(outcome.lease.job_id)
        .bind(dimension)
        .execute(&mut **tx)
        .await?;
        verdict = write_outcome(tx, outcome, Some(dimension), lease_duration).await?;
    }
    let Some(verdict) = verdict else {
        return Ok(None);
    };
    if !verdict.matched {
        return Err(StoreError::Invalid(strangers(tx, outcome).await?));
    }
    match (
        verdict.source_id,
        verdict.done,
        verdict.rejected,
        verdict.total,
        verdict.suspects,
    ) {
        (Some(source_id), Some(done), Some(rejected), Some(total), Some(suspects)) => {
            Ok(Some(Progress {
                source_id,
                done: done.into(),
                rejected: rejected.into(),
                total: total.into(),
                finished: verdict.lease_expires_at.is_none(),
                suspects,
                lease_expires_at: verdict.lease_expires_at,
            }))
        }
        _ => Err(StoreError::invalid(
            "embedded[0].vector",
            format!(
                "has {} numbers, but vectors of this model have {}",
                dimension.unwrap_or(0),
                verdict.dimension.unwrap_or(0)
            ),
        )),
    }
}

/// Parameters: the job and epoch; the embedded chunks as columns; the rejected
/// ones; the vectors' dimension, if any; how long the lease lasts from now;
/// whether to end the job when nothing of it is left.
const WRITE_OUTCOME: &str = "-- store::batches::write_outcome
     WITH lease AS MATERIALIZED (
         SELECT id, source_id, model, first_item_id, last_item_id, chunks_done, chunks_rejected, chunks_total
         FROM weir.jobs WHERE id = $1 AND epoch = $2 AND state = 'running' FOR NO KEY UPDATE
     ), embedded AS MATERIALIZED (
         SELECT l.source_id, l.model, c.item_id, c.chunk_index, c.text_hash, n.embedding
         FROM lease l
         CROSS JOIN unnest($3::text[], $4::int[], $5::bytea[], $6::vector[])
             AS n(item_id, chunk_index, text_hash, embedding)
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
         INSERT INTO weir.embeddings AS e (source_id, item_id, chunk_index, model, text_hash, embedding)
         SELECT source_id, item_id, chunk_index, model, text_hash, embedding FROM embedded n, sound
         -- The first verdict on a text holds; one that was counted as rejected is not counted again.
         WHERE NOT EXISTS (
             SELECT FROM weir.rejections r
             WHERE r.source_id = n.source_id AND r.item_id = n.item_id AND r.chunk_index = n.chunk_index
               AND r.model = n.model AND r.text_hash = n.text_hash)
         ON CONFLICT (source_id, item_id, chunk_index) DO UPDATE
         SET model = EXCLUDED.model, text_hash = EXCLUDED.text_hash, embedding = EXCLUDED.embedding,
             embedded_at = now()
         WHERE (e.model, e.text_hash) IS DISTINCT FROM (EXCLUDED.model, EXCLUDED.text_hash)
         RETURNING 1
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
         SELECT id, fresh, done, rejected, $13 AND done + rejected = chunks_total AS finished
         FROM (SELECT l.id, l.chunks_total, w.done + f.rejected AS fresh,
                      least(l.chunks_done + w.done, l.chunks_total - l.chunks_rejected) AS done,
                      least(l.chunks_rejected + f.rejected,
                            l.chunks_total - least(l.chunks_done + w.done, l.chunks_total - l.chunks_rejected))
                          AS rejected
               FROM lease l, sound,
                    (SELECT count(*)::int AS done FROM written) w,
                    (SELECT count(*)::int AS rejected FROM refused) f) counted
     ), updated AS (
         UPDATE weir.jobs j
         SET chunks_done = s.done,
             chunks_rejected = s.rejected,
             heard = true,
             attempt = CASE WHEN s.fresh > 0 THEN 0 ELSE j.attempt END,
             progressed_at = CASE WHEN s.fresh > 0 THEN now() ELSE j.progressed_at END,
             suspects = greatest(j.suspects - s.fresh, 0),
             state = CASE WHEN s.finished THEN 'succeeded' ELSE j.state END,
             settled = s.finished,
             finished_at = CASE WHEN s.finished THEN now() END,
             worker_id = CASE WHEN s.finished THEN NULL ELSE j.worker_id END,
             claimed_at = CASE WHEN s.finished THEN NULL ELSE j.claimed_at END,
             lease_expires_at = CASE WHEN s.finished THEN NULL ELSE now() + $12 END
         FROM settled s WHERE j.id = s.id
         RETURNING j.source_id, j.chunks_done AS done, j.chunks_rejected AS rejected, j.chunks_total AS total,
                   j.suspects, j.lease_expires_at
     )
     SELECT v.matched, v.dimension, u.source_id, u.done, u.rejected, u.total, u.suspects, u.lease_expires_at
     FROM verdict v LEFT JOIN updated u ON true";

/// The one statement that writes an outcome: all of it or, when a chunk does
/// not match or the dimension is another, nothing. The job's row is locked
/// first, so that whoever changes the source's chunks comes before or after,
/// never between (law 7).
async fn write_outcome(
    tx: &mut Transaction,
    outcome: &Outcome,
    dimension: Option<i32>,
    lease_duration: Duration,
) -> Result<Option<Verdict>, StoreError> {
    let embedded = &outcome.embedded;
    let rejected = &outcome.rejected;
    Ok(sqlx::query_as(WRITE_OUTCOME)
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
        .fetch_optional(&mut **tx)
        .await?)
}

/// Names the chunks of an outcome that its job does not have.
async fn strangers(tx: &mut Transaction, outcome: &Outcome) -> Result<Vec<Violation>, StoreError> {
    let embedded = outcome.embedded.iter().enumerate().map(|(index, chunk)| {
        (
            format!("embedded[{index}]"),
            &chunk.item_id,
            chunk.chunk_index,
            &chunk.text_hash,
        )
    });
    let rejected = outcome.rejected.iter().enumerate().map(|(index, chunk)| {
        (
            format!("rejected[{index}]"),
            &chunk.item_id,
            chunk.chunk_index,
            &chunk.text_hash,
        )
    });
    let named: Vec<_> = embedded.chain(rejected).collect();
    let known: Vec<i64> = sqlx::query_scalar(
        "-- store::batches::strangers
         SELECT n.place FROM weir.jobs j
         CROSS JOIN unnest($2::text[], $3::int[], $4::bytea[]) WITH ORDINALITY
             AS n(item_id, chunk_index, text_hash, place)
         JOIN weir.chunks c ON c.source_id = j.source_id AND c.item_id = n.item_id
             AND c.chunk_index = n.chunk_index AND c.text_hash = n.text_hash
         WHERE j.id = $1 AND n.item_id BETWEEN j.first_item_id AND j.last_item_id",
    )
    .bind(outcome.lease.job_id)
    .bind(
        named
            .iter()
            .map(|(_, item_id, ..)| item_id.as_str())
            .collect::<Vec<_>>(),
    )
    .bind(
        named
            .iter()
            .map(|(_, _, index, _)| *index)
            .collect::<Vec<_>>(),
    )
    .bind(
        named
            .iter()
            .map(|(.., hash)| hash.as_slice())
            .collect::<Vec<_>>(),
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok((1..)
        .zip(&named)
        .filter(|(place, _)| !known.contains(place))
        .take(10)
        .map(|(_, (field, item_id, index, _))| {
            Violation::new(
                field.clone(),
                format!(
                    "chunk {index} of item {item_id:?} with this text_hash is not part of job {}",
                    outcome.lease.job_id
                ),
            )
        })
        .collect())
}
