//! What a write of content means for the jobs of its source. It ends none: a
//! chunk that it changes is pending within the open job that covers it, and what
//! no open job covers gets a new one.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::ContentWrite;
use crate::{
    job::{
        plan::{ItemRange, JobCutter},
        state::{JobState, Trigger},
    },
    store::{
        REVOKE_CHANNEL, StoreError,
        database::Transaction,
        locks::{LockedSource, UnsettledJob, lock_covering_jobs, lock_unsettled_jobs},
        planning::{Order, Wanted, is_pending, plan, queue_jobs, queue_pending, take_over},
        prompts::take_step,
        sources::notify,
    },
};

/// Most chunks that are not pending between two items of one new job. Whoever
/// works on a job reads all chunks of its range, and a job more costs about as
/// much as so many of these.
const SPAN: i64 = 64;

/// How many times the size of a new job a queued one may grow to by what is
/// written into its range, before it is divided.
const GROWTH: i32 = 2;

/// How long a write takes that makes up for the time in which nobody could renew
/// the leases of the jobs that it had locked. A lease has as much to spare.
const LONG: Duration = Duration::from_secs(1);

/// What a write did to the pending chunks of an item.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shift {
    /// Chunks that are pending and were not.
    pub(super) more: i32,
    /// Chunks that were pending and are gone.
    pub(super) fewer: i32,
    /// Chunks that were written, and so are pending.
    pub(super) written: i32,
    /// Whether all of its chunks are gone.
    pub(super) gone: bool,
}

/// The jobs of a write's source, as far as it has to do with them.
#[derive(Debug)]
pub(super) struct Jobs {
    /// Of what no open job covers. It is in order, for a write goes through its
    /// source in order.
    new: JobCutter,
    /// The last item that is in a new job.
    last: Option<String>,
    /// Open jobs that have nothing left to embed.
    empty: BTreeSet<i64>,
    /// Queued jobs that have become too large, by id. They stay locked.
    overfull: BTreeMap<i64, UnsettledJob>,
    /// Open jobs that were there and embed what was written.
    embed: BTreeSet<i64>,
}

impl Jobs {
    pub(super) fn new(max_chunks_per_job: i32) -> Self {
        Self {
            new: JobCutter::new(max_chunks_per_job, Vec::new()),
            last: None,
            empty: BTreeSet::new(),
            overfull: BTreeMap::new(),
            embed: BTreeSet::new(),
        }
    }
}

/// What a write came to for the jobs of its source.
#[derive(Debug)]
pub(super) struct Planned {
    /// Whether they are not what they were, but for their counts.
    pub(super) changed: bool,
    /// Those that embed what it changed.
    pub(super) jobs: Vec<i64>,
}

impl ContentWrite<'_> {
    /// Locks the jobs that have to do with some items, which are in order, before
    /// their chunks change.
    pub(super) async fn hold_jobs(
        &mut self,
        item_ids: &[&str],
    ) -> Result<Vec<UnsettledJob>, StoreError> {
        // What is still to be moved to another model is in no job.
        let item_ids = item_ids.iter().copied();
        let item_ids: Vec<&str> = item_ids.filter(|it| !self.source.is_unmoved(it)).collect();
        if self.is_created() || self.is_new_model() || item_ids.is_empty() {
            return Ok(Vec::new());
        }
        let held = lock_covering_jobs(&mut self.tx, self.source.id, &item_ids).await?;
        let running = held.iter().filter(|job| job.state == JobState::Running);
        self.running.extend(running.map(|job| job.id));
        Ok(held)
    }

    /// Gives running jobs the time that their leases could not be renewed, for a
    /// long write had their rows.
    pub(super) async fn make_up_for_leases(&mut self) -> Result<(), StoreError> {
        if self.running.is_empty() || self.began.elapsed() < LONG {
            return Ok(());
        }
        let ids: Vec<i64> = self.running.iter().copied().collect();
        sqlx::query(
            "-- store::content::make_up_for_leases
             UPDATE weir.jobs SET lease_expires_at = lease_expires_at + (clock_timestamp() - now())
             WHERE id = ANY($1) AND state = 'running'",
        )
        .bind(ids)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Tells the jobs, which are held, what became of the chunks of some items.
    pub(super) async fn shift_jobs(
        &mut self,
        held: &[UnsettledJob],
        shifts: &BTreeMap<String, Shift>,
    ) -> Result<(), StoreError> {
        // Of another model everything is pending, whatever was; it is planned at the end.
        if self.is_new_model() || shifts.is_empty() {
            return Ok(());
        }
        if self.is_created() {
            for (item_id, shift) in shifts {
                self.jobs.new.push(item_id.clone(), shift.more, true);
            }
            return Ok(());
        }
        let (open, ended): (Vec<_>, Vec<_>) = held.iter().partition(|job| job.is_open());
        let mut of_open: BTreeMap<i64, i32> = BTreeMap::new();
        let mut uncovered: Vec<&str> = Vec::new();
        for (item_id, shift) in shifts {
            match open.iter().find(|job| job.covers(item_id)) {
                Some(job) => {
                    *of_open.entry(job.id).or_default() += shift.more - shift.fewer;
                    if shift.written > 0 {
                        self.jobs.embed.insert(job.id);
                        self.change.chunks_pending += i64::from(shift.written);
                    }
                }
                None => uncovered.push(item_id),
            }
        }
        self.shift_open(&open, &of_open).await?;
        let left: Vec<&str> = uncovered
            .iter()
            .copied()
            .filter(|item_id| !shifts[*item_id].gone)
            .collect();
        let pending = self.plan_uncovered(&left).await?;
        let pending: BTreeMap<&str, i32> = left.into_iter().zip(pending).collect();
        let mut taken: BTreeMap<i64, i32> = BTreeMap::new();
        for item_id in uncovered {
            let Shift { more, fewer, .. } = shifts[item_id];
            // The newest of those that cover it has what was pending of it.
            if let Some(owner) = ended.iter().rev().find(|job| job.covers(item_id)) {
                let pending = pending.get(item_id).copied().unwrap_or_default();
                *taken.entry(owner.id).or_default() += pending - more + fewer;
            }
        }
        take_from_ended(&mut self.tx, &taken).await
    }

    /// Changes the counts of open jobs by what was written within their ranges.
    async fn shift_open(
        &mut self,
        open: &[&UnsettledJob],
        shifts: &BTreeMap<i64, i32>,
    ) -> Result<(), StoreError> {
        if shifts.is_empty() {
            return Ok(());
        }
        let (ids, chunks): (Vec<i64>, Vec<i32>) = shifts.iter().unzip();
        let shifted: Vec<(i64, i32)> = sqlx::query_as(
            "-- store::content::shift_open
             UPDATE weir.jobs j
             SET chunks_total = j.chunks_total + s.chunks, changes = j.changes + 1,
                 priority = greatest(j.priority, $3)
             FROM unnest($1::bigint[], $2::int[]) AS s(id, chunks)
             WHERE j.id = s.id
             RETURNING j.id, j.chunks_total - j.chunks_done - j.chunks_rejected",
        )
        .bind(&ids)
        .bind(&chunks)
        .bind(self.write.priority)
        .fetch_all(&mut *self.tx)
        .await?;
        let too_many = self.write.max_chunks_per_job.saturating_mul(GROWTH);
        for (id, pending) in shifted {
            let mut queued = open
                .iter()
                .filter(|job| job.id == id && job.state == JobState::Queued);
            self.jobs.overfull.remove(&id);
            self.jobs.empty.remove(&id);
            if pending == 0 {
                self.jobs.empty.insert(id);
            } else if pending > too_many
                && let Some(job) = queued.next()
            {
                self.jobs.overfull.insert(id, (*job).clone());
            }
        }
        Ok(())
    }

    /// Plans new jobs of items that no open job covers, and returns how many
    /// chunks are pending of each.
    async fn plan_uncovered(&mut self, item_ids: &[&str]) -> Result<Vec<i32>, StoreError> {
        if item_ids.is_empty() {
            return Ok(Vec::new());
        }
        let before = std::iter::once(self.jobs.last.as_deref())
            .chain(item_ids.iter().map(|item_id| Some(*item_id)));
        let before: Vec<Option<&str>> = before.take(item_ids.len()).collect();
        let found: Vec<(String, i32, bool)> = sqlx::query_as(concat!(
            "-- store::content::plan_uncovered
             SELECT i.item_id, p.pending, a.adjoins
             FROM unnest($3::text[], $4::text[]) WITH ORDINALITY AS i(item_id, before, place)
             CROSS JOIN LATERAL (
                 SELECT count(*)::int AS pending FROM weir.chunks c
                 WHERE c.source_id = $1 AND c.item_id = i.item_id AND ",
            is_pending!("$2"),
            " OFFSET 0) p
             CROSS JOIN LATERAL (
                 SELECT i.before IS NOT NULL
                    AND NOT EXISTS (
                        SELECT FROM weir.jobs
                        WHERE source_id = $1 AND NOT settled AND state IN ('queued', 'running')
                          AND first_item_id > i.before AND first_item_id < i.item_id)
                    -- What those between left pending is not taken from them.
                    AND NOT EXISTS (
                        SELECT FROM weir.jobs
                        WHERE source_id = $1 AND NOT settled
                          AND ((state IN ('queued', 'running')), first_item_id) < (false, i.item_id)
                          AND last_item_id > i.before)
                    AND (SELECT count(*) <= $5 FROM (
                             SELECT FROM weir.chunks c
                             WHERE c.source_id = $1 AND c.item_id > i.before AND c.item_id < i.item_id
                             LIMIT $5 + 1) between_them) AS adjoins
                 OFFSET 0) a
             ORDER BY i.place"
        ))
        .bind(self.source.id)
        .bind(&self.source.model)
        .bind(item_ids)
        .bind(before)
        .bind(SPAN)
        .fetch_all(&mut *self.tx)
        .await?;
        let mut pending = Vec::with_capacity(found.len());
        let mut adjoins_all = true;
        for (item_id, chunks, adjoins) in found {
            pending.push(chunks);
            // One of which nothing is pending is in no job, and the next has to adjoin the one before it.
            adjoins_all &= adjoins;
            if chunks > 0 {
                self.jobs.new.push(item_id.clone(), chunks, adjoins_all);
                self.jobs.last = Some(item_id);
                adjoins_all = true;
            }
        }
        Ok(pending)
    }

    /// Queues the jobs that the write has planned, ends those that have nothing
    /// left, divides those that have grown too large, and takes up what was
    /// cancelled, where the whole content is written.
    pub(super) async fn queue_new_jobs(&mut self) -> Result<Planned, StoreError> {
        let order = Order {
            trigger: Trigger::Write,
            priority: self.write.priority,
            max_chunks_per_job: self.write.max_chunks_per_job,
            traceparent: self.write.traceparent.as_deref(),
            parkings: 0,
            run_at: None,
        };
        if self.is_new_model() {
            let (tx, source) = (&mut self.tx, &mut self.source);
            let jobs = if source.chunks_to_move.is_some() {
                source
                    .note_mover(tx, order.priority, order.traceparent)
                    .await?;
                take_step(tx, source, self.step_chunks, order.max_chunks_per_job).await?
            } else {
                let wanted = Wanted::pending(vec![ItemRange::everything()]);
                queue_pending(tx, source, wanted, Vec::new(), &order).await?
            };
            let unmoved = source.chunks_to_move.unwrap_or_default();
            self.change.chunks_pending = chunks_of(tx, &jobs).await? + unmoved;
            let changed = true;
            return Ok(Planned { changed, jobs });
        }
        let Jobs {
            new,
            empty,
            overfull,
            embed,
            ..
        } = std::mem::replace(&mut self.jobs, Jobs::new(0));
        let take_up = self.whole && !self.is_created();
        let (tx, source) = (&mut self.tx, &self.source);
        let planned = new.finish();
        let chunks = planned.iter().map(|job| i64::from(job.chunks));
        self.change.chunks_pending += chunks.sum::<i64>();
        let mut jobs = queue_jobs(tx, source, &planned, &order).await?;
        let mut changed = !jobs.is_empty();
        if take_up && let Some(taken_up) = take_up_cancelled(tx, source, &order).await? {
            self.change.chunks_pending += chunks_of(tx, &taken_up).await?;
            jobs.extend(taken_up);
            changed = true;
        }
        end_empty(tx, source.id, &empty).await?;
        for job in overfull.into_values() {
            jobs.extend(divide(tx, source, &job, &order).await?);
        }
        jobs.extend(embed.difference(&empty));
        Ok(Planned { changed, jobs })
    }
}

/// How many chunks jobs have that were just queued.
async fn chunks_of(tx: &mut Transaction, jobs: &[i64]) -> Result<i64, StoreError> {
    if jobs.is_empty() {
        return Ok(0);
    }
    Ok(sqlx::query_scalar(
        "-- store::content::chunks_of
         SELECT coalesce(sum(chunks_total), 0)::bigint FROM weir.jobs WHERE id = ANY($1)",
    )
    .bind(jobs)
    .fetch_one(&mut **tx)
    .await?)
}

/// Ends open jobs of which nothing is pending any more: all that was has changed
/// hands or is gone. Not before the end of the write, which may add to them.
async fn end_empty(
    tx: &mut Transaction,
    source_id: i64,
    job_ids: &BTreeSet<i64>,
) -> Result<(), StoreError> {
    if job_ids.is_empty() {
        return Ok(());
    }
    let held: bool = sqlx::query_scalar(
        "-- store::content::end_empty
         WITH ended AS (
             UPDATE weir.jobs j
             SET state = 'succeeded', settled = true, finished_at = now(), lease_expires_at = NULL, attempt = 0,
                 embedder_down = false
             WHERE j.id = ANY($1)
             RETURNING j.worker_id
         )
         SELECT count(worker_id) > 0 FROM ended",
    )
    .bind(job_ids.iter().copied().collect::<Vec<_>>())
    .fetch_one(&mut **tx)
    .await?;
    if held {
        notify(tx, REVOKE_CHANNEL, source_id).await?;
    }
    Ok(())
}

/// Takes chunks from ended jobs, which new jobs embed or which are gone. One that
/// leaves nothing pending any more is settled.
async fn take_from_ended(
    tx: &mut Transaction,
    taken: &BTreeMap<i64, i32>,
) -> Result<(), StoreError> {
    let taken = taken.iter().filter(|(_, chunks)| **chunks != 0);
    let (ids, chunks): (Vec<i64>, Vec<i32>) = taken.unzip();
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "-- store::content::take_from_ended
         UPDATE weir.jobs j SET chunks_total = l.total, settled = l.over,
                run_at = CASE WHEN l.over THEN least(j.run_at, now()) ELSE j.run_at END
         FROM (SELECT j.id, j.chunks_total - t.chunks AS total,
                      j.chunks_total - t.chunks = j.chunks_done + j.chunks_rejected AS over
               FROM unnest($1::bigint[], $2::int[]) AS t(id, chunks) JOIN weir.jobs j USING (id)) l
         WHERE j.id = l.id",
    )
    .bind(ids)
    .bind(chunks)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Queues what cancelled jobs left pending. `None`: there were none.
async fn take_up_cancelled(
    tx: &mut Transaction,
    source: &LockedSource,
    order: &Order<'_>,
) -> Result<Option<Vec<i64>>, StoreError> {
    let any: bool = sqlx::query_scalar(
        "-- store::content::take_up_cancelled
         SELECT EXISTS (
             SELECT FROM weir.jobs
             WHERE source_id = $1 AND NOT settled AND ((state IN ('queued', 'running')), first_item_id) < (true, '')
               AND state = 'cancelled')",
    )
    .bind(source.id)
    .fetch_one(&mut **tx)
    .await?;
    if !any {
        return Ok(None);
    }
    let unsettled = lock_unsettled_jobs(tx, source.id).await?;
    let cancelled: Vec<_> = unsettled
        .iter()
        .filter(|job| job.state == JobState::Cancelled)
        .collect();
    if cancelled.is_empty() {
        return Ok(None);
    }
    let queued = take_over(tx, source, &unsettled, &cancelled, order).await?;
    Ok(Some(queued))
}

/// Divides a queued job, which is locked and has become too large: it keeps the
/// first of its items, and new jobs at its place get the others. Returns these.
async fn divide(
    tx: &mut Transaction,
    source: &LockedSource,
    job: &UnsettledJob,
    order: &Order<'_>,
) -> Result<Vec<i64>, StoreError> {
    let cutter = JobCutter::new(order.max_chunks_per_job, Vec::new());
    let pieces = plan(tx, source, Wanted::pending(vec![job.range()]), cutter).await?;
    let Some((first, others)) = pieces
        .split_first()
        .filter(|(_, others)| !others.is_empty())
    else {
        return Ok(Vec::new());
    };
    sqlx::query(
        "-- store::content::divide
         UPDATE weir.jobs SET last_item_id = $2, chunks_total = chunks_done + chunks_rejected + $3 WHERE id = $1",
    )
    .bind(job.id)
    .bind(&first.range.last)
    .bind(first.chunks)
    .execute(&mut **tx)
    .await?;
    let order = Order {
        // As the write has left it.
        priority: job.priority.max(order.priority),
        traceparent: job.traceparent.as_deref(),
        run_at: Some(job.run_at),
        ..*order
    };
    queue_jobs(tx, source, others, &order).await
}
