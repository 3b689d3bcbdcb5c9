//! The leases of a session: opened, renewed and cut short many in one statement.
//! Each passes by what somebody else has locked, so that nothing waits for one job.

use std::time::Duration;

use super::{Opening, interval};
use crate::{
    job::state::AttemptOutcome,
    store::{
        QUEUE_CHANNEL, Store, StoreError,
        fence::{Fence, holders, is_of},
        rows::{Job, LeaseKey, job_columns},
        sources::notify,
    },
};

impl Store {
    /// Does what [`Self::open`] does for several jobs, each named once. Returns
    /// the jobs of those it opened: it passes by what is not held, and by what
    /// somebody else has locked.
    pub async fn open_group(
        &self,
        openings: &[Opening],
        lease_duration: Duration,
    ) -> Result<Vec<Job>, StoreError> {
        let column = |of: fn(&Opening) -> i64| openings.iter().map(of).collect::<Vec<_>>();
        let sizes: Vec<i32> = openings.iter().map(|it| it.batch_size).collect();
        let sessions: Vec<Option<&str>> = openings.iter().map(|it| it.session.as_deref()).collect();
        let fences = openings.iter().map(|it| &it.fence);
        let (names, namespaces) = holders(fences);
        Ok(sqlx::query_as(concat!(
            "-- store::lease::open_group
             WITH opened AS MATERIALIZED (
                 SELECT j.id, o.batch_size, o.session
                 FROM unnest($1::bigint[], $2::bigint[], $3::int[], $5::text[], $6::text[], $7::text[])
                     AS o(job_id, epoch, batch_size, claimed_by, namespaces, session)
                 JOIN weir.jobs j ON j.id = o.job_id AND j.epoch = o.epoch
                 WHERE j.state = 'running' AND ",
            is_of!("o.claimed_by", "o.namespaces"),
            " FOR NO KEY UPDATE OF j SKIP LOCKED
             )
             UPDATE weir.jobs j
             SET lease_expires_at = now() + $4, heard = true, batch_size = o.batch_size, session = o.session
             FROM opened o WHERE j.id = o.id
             RETURNING ",
            job_columns!()
        ))
        .bind(column(|it| it.fence.lease.job_id))
        .bind(column(|it| it.fence.lease.epoch))
        .bind(sizes)
        .bind(interval(lease_duration))
        .bind(names)
        .bind(namespaces)
        .bind(sessions)
        .fetch_all(&self.leases)
        .await?)
    }

    /// Extends several leases, each named once, as [`Self::renew`] does. Returns
    /// the ids of the jobs whose leases it extended: it passes by what is not
    /// held, and by what somebody else has locked.
    pub async fn renew_group(
        &self,
        fences: &[Fence],
        lease_duration: Duration,
    ) -> Result<Vec<i64>, StoreError> {
        if fences.is_empty() {
            return Ok(Vec::new());
        }
        let column = |of: fn(&Fence) -> i64| fences.iter().map(of).collect::<Vec<_>>();
        let (names, namespaces) = holders(fences.iter());
        Ok(sqlx::query_scalar(concat!(
            "-- store::lease::renew_group
             WITH held AS MATERIALIZED (
                 SELECT j.id
                 FROM unnest($1::bigint[], $2::bigint[], $4::text[], $5::text[])
                     AS o(job_id, epoch, claimed_by, namespaces)
                 JOIN weir.jobs j ON j.id = o.job_id AND j.epoch = o.epoch
                 WHERE j.state = 'running' AND ",
            is_of!("o.claimed_by", "o.namespaces"),
            " FOR NO KEY UPDATE OF j SKIP LOCKED
             )
             UPDATE weir.jobs j SET lease_expires_at = now() + $3, heard = true
             FROM held WHERE j.id = held.id
             RETURNING j.id",
        ))
        .bind(column(|it| it.lease.job_id))
        .bind(column(|it| it.lease.epoch))
        .bind(interval(lease_duration))
        .bind(names)
        .bind(namespaces)
        .fetch_all(&self.leases)
        .await?)
    }

    /// Queues jobs again, uncharged, of which the worker of a session that has ended got
    /// nothing, each at the epoch of its lease. Nothing happens to those of a worker that is
    /// back: its new session has another id. Returns the jobs with their sources; it passes
    /// by what somebody else has locked.
    pub async fn release_session(
        &self,
        session: &str,
        leases: &[LeaseKey],
        reason: &str,
    ) -> Result<Vec<(i64, i64)>, StoreError> {
        let (ids, epochs): (Vec<i64>, Vec<i64>) =
            leases.iter().map(|it| (it.job_id, it.epoch)).unzip();
        let mut tx = self.leases.begin().await?;
        let released: Vec<(i64, i64)> = sqlx::query_as(
            "-- store::lease::release_session
             WITH held AS MATERIALIZED (
                 SELECT j.* FROM unnest($2::bigint[], $3::bigint[]) AS o(job_id, epoch)
                 JOIN weir.jobs j ON j.id = o.job_id AND j.epoch = o.epoch
                 WHERE j.state = 'running' AND j.session = $1
                 FOR UPDATE OF j SKIP LOCKED
             ), recorded AS (
                 INSERT INTO weir.attempts
                     (job_id, epoch, worker_id, started_at, outcome, error, chunks_done, charged)
                 SELECT id, epoch, worker_id, claimed_at, $4, $5, chunks_done + chunks_rejected - claimed_done, false
                 FROM held
             )
             UPDATE weir.jobs j
             SET state = 'queued', last_error = $5, embedder_down = false, run_at = now(), worker_id = NULL,
                 lease_expires_at = NULL, claimed_at = NULL
             FROM held WHERE j.id = held.id
             RETURNING j.id, j.source_id",
        )
        .bind(session)
        .bind(ids)
        .bind(epochs)
        .bind(AttemptOutcome::Released.as_str())
        .bind(reason)
        .fetch_all(&mut *tx)
        .await?;
        if let Some((_, source_id)) = released.first() {
            notify(&mut tx, QUEUE_CHANNEL, *source_id).await?;
        }
        tx.commit().await?;
        Ok(released)
    }

    /// Ends leases early, `grace` from now, because the stream of their session
    /// broke; whatever renews one before then undoes this. Nothing happens to
    /// those that end before then anyway, and to those of a worker that is back:
    /// its new session has another id. Returns the jobs whose leases were cut
    /// short; it passes by what somebody else has locked.
    pub async fn orphan_session(
        &self,
        session: &str,
        job_ids: &[i64],
        grace: Duration,
    ) -> Result<Vec<i64>, StoreError> {
        Ok(sqlx::query_scalar(
            "-- store::lease::orphan_session
             WITH cut AS MATERIALIZED (
                 SELECT j.id FROM unnest($2::bigint[]) AS o(job_id) JOIN weir.jobs j ON j.id = o.job_id
                 WHERE j.state = 'running' AND j.session = $1 AND j.lease_expires_at > now() + $3
                 FOR NO KEY UPDATE OF j SKIP LOCKED
             )
             UPDATE weir.jobs j SET lease_expires_at = now() + $3
             FROM cut WHERE j.id = cut.id
             RETURNING j.id",
        )
        .bind(session)
        .bind(job_ids)
        .bind(interval(grace))
        .fetch_all(&self.leases)
        .await?)
    }
}
