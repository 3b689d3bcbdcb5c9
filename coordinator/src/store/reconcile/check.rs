//! Checks: a source is compared with its vectors, jobs and counts, a step at a
//! time, without a lock. Where a check stands is a row of `weir.checks`.

use std::time::Duration;

use crate::store::{
    Store, StoreError,
    database::Transaction,
    lease::interval,
    rejections::counts_version,
    steps::{Step, step_after},
};

/// Jobs of a source that count rejections, each in a row of its own, before these
/// are summed up.
const MANY_COUNTS: i64 = 100;

/// Most open jobs of a source that are asked for their model.
const JOBS_ASKED: i64 = 10_000;

/// How long a step that was begun is left to whoever began it. One that failed
/// begins anew then.
const STEP_LEASE: Duration = Duration::from_mins(1);

/// The chunk whose present text the result `r` was made of. Each is looked up, as
/// `OFFSET` has it: where sets are joined whose size Postgres guesses wrongly, every
/// result may meet every chunk of the step.
macro_rules! chunk_of_result {
    () => {
        "SELECT FROM weir.chunks c
         WHERE c.source_id = r.source_id AND c.item_id = r.item_id AND c.chunk_index = r.chunk_index
           AND c.text_hash = r.text_hash OFFSET 0"
    };
}
pub(super) use chunk_of_result;

/// The last item of a step whose chunks are planned for the model of the source `s`:
/// what is still to be moved to that is in no job, and has rejections that do not
/// count.
macro_rules! planned_to {
    () => {
        "least($3::text, CASE WHEN s.chunks_to_move IS NOT NULL THEN s.prompted_to END)"
    };
}

/// The result of the present text of the chunk `c` by the model of the source `s`,
/// looked up as well.
macro_rules! result_of_chunk {
    ($table:literal) => {
        concat!(
            "SELECT FROM ",
            $table,
            " r
             WHERE r.source_id = c.source_id AND r.item_id = c.item_id AND r.chunk_index = c.chunk_index
               AND r.model = s.model AND r.text_hash = c.text_hash OFFSET 0"
        )
    };
}

/// Whether the vector `r` is of no present text. One that was made with another prompt
/// that its model had, or without any, is of one: it stays until it is replaced. Only
/// where the hash is not that of the chunk is the text hashed for that.
macro_rules! is_stale_vector {
    () => {
        concat!(
            "CASE WHEN EXISTS (",
            $crate::store::reconcile::check::chunk_of_result!(),
            ") THEN false ELSE NOT EXISTS (
                 SELECT FROM weir.chunks c
                 WHERE c.source_id = r.source_id AND c.item_id = r.item_id AND c.chunk_index = r.chunk_index
                   AND (r.text_hash = sha256(convert_to(c.text, 'UTF8'))
                        OR EXISTS (
                            SELECT FROM weir.prompts p
                            WHERE p.model = r.model AND r.text_hash = sha256(convert_to(p.prompt || c.text, 'UTF8'))))
                 OFFSET 0) END"
        )
    };
}
pub(super) use is_stale_vector;

/// What is wrong with a source, as far as a step has looked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each fault is there or not, whatever the others"
)]
pub struct Findings {
    /// Chunks are pending that no unsettled job covers.
    pub uncovered: bool,
    /// There are results of chunks that are gone or have another text, or
    /// rejections by another model.
    pub stale: bool,
    /// An open job embeds with a model that is not the source's.
    pub other_model: bool,
    /// The counts of items, chunks or rejections are wrong, or those of rejections
    /// have become many.
    pub miscounted: bool,
}

impl Findings {
    /// Whether anything is wrong.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// A check of a source that is under way: up to where it has come, and what it has
/// counted so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Check {
    /// The source's row.
    pub source_id: i64,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The last item that was looked at; empty at the beginning.
    pub checked_to: String,
    /// The revision that the source has been at all the time; `None` where it
    /// changed.
    pub revision: Option<i64>,
    /// The version that its counts of rejections have been at all the time; `None`
    /// where they changed.
    pub rejections_version: Option<String>,
    /// Items so far.
    pub items: i64,
    /// Chunks so far.
    pub chunks: i64,
    /// Rejections so far.
    pub rejections: i64,
}

/// By how much the counts of a source are too small, as of one moment. What is
/// counted after that adds to what is counted, so that it holds at any later one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Miscount {
    pub(super) items: i64,
    pub(super) chunks: i64,
    pub(super) rejections: i64,
}

/// A step of a check: what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What is wrong.
    pub found: Findings,
    /// The check as it goes on after this step.
    pub(super) check: Check,
    /// From where.
    pub(super) from: String,
    pub(super) step: Step,
    pub(super) miscount: Miscount,
}

impl Checked {
    /// Whether all of the source has been looked at.
    pub fn is_last(&self) -> bool {
        self.step.is_last
    }
}

/// A source as a step sees it, all of it at one moment.
#[derive(Debug, sqlx::FromRow)]
struct Look {
    uncovered: bool,
    stale: bool,
    other_model: bool,
    items: i64,
    chunks: i64,
    rejections: i64,
    revision: i64,
    rejections_version: String,
    items_total: i64,
    chunks_total: i64,
    rejections_total: i64,
    rejection_counts: i64,
}

impl Store {
    /// Begins the checks of up to `limit` sources that have not been checked for
    /// `every`, those that have waited longest first, and takes these and up to
    /// `limit` that are under way, to take a step of each. Those whose last step is
    /// longest ago come first. Replicas do this side by side; each takes what the
    /// others leave.
    pub async fn take_checks(&self, every: Duration, limit: i64) -> Result<Vec<Check>, StoreError> {
        let mut tx = self.pool.begin().await?;
        let taken = sqlx::query_as(
            "-- store::reconcile::take_checks
             WITH due AS MATERIALIZED (
                 SELECT id FROM weir.sources WHERE checked_at <= now() - $1
                 ORDER BY checked_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
             ), marked AS (
                 UPDATE weir.sources s SET checked_at = now() FROM due WHERE s.id = due.id
             ), begun AS (
                 INSERT INTO weir.checks (source_id, due_at) SELECT id, now() + $3 FROM due
                 ON CONFLICT (source_id) DO NOTHING
                 RETURNING *
             ), next AS MATERIALIZED (
                 SELECT source_id FROM weir.checks WHERE due_at <= now()
                 ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
             ), under_way AS (
                 UPDATE weir.checks c SET due_at = now() + $3 FROM next WHERE c.source_id = next.source_id
                 RETURNING c.*
             ), taken AS (
                 SELECT * FROM under_way UNION ALL SELECT * FROM begun
             )
             SELECT t.source_id, coalesce(s.namespace, '') AS namespace, coalesce(s.name, '') AS name, t.checked_to,
                    t.revision, t.rejections_version, t.items, t.chunks, t.rejections
             FROM taken t LEFT JOIN weir.sources s ON s.id = t.source_id",
        )
        .bind(interval(every))
        .bind(limit)
        .bind(interval(STEP_LEASE))
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(taken)
    }

    /// Takes the next look of a check, at a source's next items, as of one moment and
    /// without a lock. `None`: the source is gone, and so is its check.
    pub async fn check(&self, check: &Check) -> Result<Option<Checked>, StoreError> {
        let mut tx = self.begin_step().await?;
        let (source_id, from) = (check.source_id, &check.checked_to);
        let step = step_after(&mut *tx, source_id, from, self.step_chunks).await?;
        let look: Option<Look> = sqlx::query_as(LOOK)
            .bind(source_id)
            .bind(&step.range.first)
            .bind(&step.range.last)
            .bind(from.is_empty())
            .bind(JOBS_ASKED)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(look) = look else {
            sqlx::query("-- store::reconcile::check\nDELETE FROM weir.checks WHERE source_id = $1")
                .bind(source_id)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            return Ok(None);
        };
        Ok(Some(check.and(step, &look)))
    }

    /// Goes on with a check after a step that found nothing wrong, unless somebody
    /// else did.
    pub async fn pass_check(&self, checked: &Checked) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        checked.go_on(&mut tx).await?;
        tx.commit().await?;
        Ok(())
    }
}

impl Check {
    /// Adds a step. Counts are compared where the source, and what counts its
    /// rejections, is what it was all the time.
    fn and(&self, step: Step, look: &Look) -> Checked {
        let mut check = self.clone();
        check.items += look.items;
        check.chunks += look.chunks;
        check.rejections += look.rejections;
        if self.checked_to.is_empty() {
            check.revision = Some(look.revision);
            check.rejections_version = Some(look.rejections_version.clone());
        }
        check.revision = check.revision.filter(|it| *it == look.revision);
        let version = check.rejections_version.take();
        check.rejections_version = version.filter(|it| *it == look.rejections_version);
        step.range.last.clone_into(&mut check.checked_to);
        let mut miscount = Miscount::default();
        if step.is_last && check.revision.is_some() {
            miscount.items = check.items - look.items_total;
            miscount.chunks = check.chunks - look.chunks_total;
            if check.rejections_version.is_some() {
                miscount.rejections = check.rejections - look.rejections_total;
            }
        }
        let many = step.is_last && look.rejection_counts > MANY_COUNTS;
        Checked {
            found: Findings {
                uncovered: look.uncovered,
                stale: look.stale,
                other_model: look.other_model,
                miscounted: many || miscount != Miscount::default(),
            },
            check,
            from: self.checked_to.clone(),
            step,
            miscount,
        }
    }
}

impl Checked {
    /// Notes that the step was taken. `false`: somebody else took it.
    pub(super) async fn go_on(&self, tx: &mut Transaction) -> Result<bool, StoreError> {
        let check = &self.check;
        let noted = if self.step.is_last {
            sqlx::query(
                "-- store::reconcile::go_on
                 DELETE FROM weir.checks WHERE source_id = $1 AND checked_to = $2",
            )
            .bind(check.source_id)
            .bind(&self.from)
            .execute(&mut **tx)
            .await?
        } else {
            sqlx::query(
                "-- store::reconcile::go_on
                 UPDATE weir.checks
                 SET checked_to = $3, revision = $4, rejections_version = $5, items = $6, chunks = $7, rejections = $8,
                     due_at = now()
                 WHERE source_id = $1 AND checked_to = $2",
            )
            .bind(check.source_id)
            .bind(&self.from)
            .bind(&check.checked_to)
            .bind(check.revision)
            .bind(&check.rejections_version)
            .bind(check.items)
            .bind(check.chunks)
            .bind(check.rejections)
            .execute(&mut **tx)
            .await?
        };
        Ok(noted.rows_affected() > 0)
    }
}

/// The look of a step.
///
/// What is pending and uncovered is found from one pending chunk to the next that
/// the job which covers it does not: so few jobs are read as there are about the
/// step, and no chunk that is covered. Open jobs do not overlap, and of those that
/// begin before an item the last covers it, or none does; ended ones may lie
/// within others.
const LOOK: &str = concat!(
    "-- store::reconcile::check
     WITH RECURSIVE walk AS (
         SELECT $2::text COLLATE \"C\" AS next
         UNION ALL
         SELECT coalesce(
                    (SELECT CASE WHEN j.last_item_id >= p.item_id THEN j.last_item_id END FROM weir.jobs j
                     WHERE j.source_id = $1 AND NOT j.settled AND j.state IN ('queued', 'running')
                       AND j.first_item_id <= p.item_id
                     ORDER BY j.first_item_id DESC LIMIT 1),
                    (SELECT j.last_item_id FROM weir.jobs j
                     WHERE j.source_id = $1 AND NOT j.settled AND (j.state IN ('queued', 'running')) IS FALSE
                       AND j.first_item_id <= p.item_id AND j.last_item_id >= p.item_id
                     ORDER BY j.first_item_id DESC LIMIT 1)) || E'\\x01'
         FROM walk w JOIN weir.sources s ON s.id = $1
         CROSS JOIN LATERAL (
             SELECT c.item_id FROM weir.chunks c
             WHERE c.source_id = $1 AND c.item_id >= w.next AND c.item_id <= ",
    planned_to!(),
    " AND NOT EXISTS (",
    result_of_chunk!("weir.embeddings"),
    ") AND NOT EXISTS (",
    result_of_chunk!("weir.rejections"),
    ") ORDER BY c.item_id LIMIT 1) p
     )
     SELECT EXISTS (SELECT FROM walk WHERE next IS NULL) AS uncovered,
            EXISTS (
                SELECT FROM weir.embeddings r WHERE r.source_id = $1 AND r.item_id BETWEEN $2 AND $3 AND ",
    is_stale_vector!(),
    ")
            OR EXISTS (
                SELECT FROM weir.rejections r WHERE r.source_id = $1 AND r.item_id >= $2 AND r.item_id <= ",
    planned_to!(),
    " AND (r.model <> s.model OR NOT EXISTS (",
    chunk_of_result!(),
    "))) AS stale,
            $4 AND EXISTS (
                SELECT FROM (
                    SELECT j.model FROM weir.jobs j
                    WHERE j.source_id = $1 AND NOT j.settled AND j.state IN ('queued', 'running') LIMIT $5) j
                WHERE j.model <> s.model) AS other_model,
            (SELECT count(*) FROM weir.items WHERE source_id = $1 AND item_id BETWEEN $2 AND $3) AS items,
            (SELECT count(*) FROM weir.chunks WHERE source_id = $1 AND item_id BETWEEN $2 AND $3) AS chunks,
            (SELECT count(*) FROM weir.rejections WHERE source_id = $1 AND item_id >= $2 AND item_id <= ",
    planned_to!(),
    ") AS rejections,
            s.revision, ",
    counts_version!("$1"),
    " AS rejections_version, s.items_total, s.chunks_total,
            (SELECT coalesce(sum(chunks), 0)::bigint FROM weir.rejection_counts WHERE source_id = $1) AS rejections_total,
            (SELECT count(*) FROM weir.rejection_counts WHERE source_id = $1) AS rejection_counts
     FROM weir.sources s WHERE s.id = $1"
);
