//! The end of a session: what the worker holds is waited for, what it never got goes
//! back at once.

use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use super::{CLOSED_GRACE, End, Session, lease::Lease};
use crate::{
    dispatch::Dispatch,
    spans::{self, trace_id},
    store::rows::LeaseKey,
};

/// How long what is under way is waited for as a session ends.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

impl Session {
    /// How long the worker may take to come back.
    pub(super) fn grace(&self, end: &End) -> Duration {
        let grace = self.dispatch.orphan_grace;
        match end {
            // It was waited for already.
            End::Silent => Duration::ZERO,
            End::Closed | End::Drained | End::Breach { .. } => CLOSED_GRACE.min(grace),
            End::GoingAway | End::Store(_) | End::Unreadable(_) => grace,
        }
    }

    /// Ends it. What is being written or claimed is waited for, though not for long.
    pub(super) async fn close(mut self, grace: Duration) {
        self.over.cancel();
        self.is_draining = true;
        let until = Instant::now() + SETTLE_LIMIT;
        while !self.work.is_empty() {
            match timeout_at(until, self.work.next()).await {
                Ok(Some(done)) => self.settle(done),
                Ok(None) | Err(_) => break,
            }
        }
        let leases = std::mem::take(&mut self.leases).into_values();
        let (kept, free): (Vec<_>, Vec<_>) = leases.partition(|lease| !lease.is_settled());
        let (dispatch, session) = (self.dispatch, self.place.session());
        tokio::join!(
            dispatch.take_back(&session, &free),
            dispatch.wait_for(&session, &kept, grace)
        );
        // Where leases are left, its row grows old: they would be taken back at once without it.
        if kept.is_empty()
            && let Err(error) = self.place.leave(&dispatch.store).await
        {
            tracing::debug!(%error, "The row of a session that ended was left to grow old.");
        }
    }
}

impl Dispatch {
    /// Has jobs of which the worker has nothing queued again.
    async fn take_back(&self, session: &str, leases: &[Lease]) {
        if leases.is_empty() {
            return;
        }
        let keys: Vec<LeaseKey> = leases.iter().map(|it| it.fence.lease).collect();
        let reason = "the worker's session ended before it got any of it";
        match self.store.release_session(session, &keys, reason).await {
            Ok(released) => {
                self.metrics
                    .retries
                    .released
                    .increment(released.len() as u64);
                for (_, source_id) in &released {
                    self.wakeup.report_change(*source_id);
                }
                if !released.is_empty() {
                    self.wakeup.report_due();
                    tracing::info!(jobs = released.len(), reason, "Jobs were released.");
                }
            }
            // Nobody touches the session any more, so that they are taken back for that.
            Err(error) => {
                tracing::debug!(%error, "The leases of a session were left to be taken back.");
            }
        }
    }

    /// Ends leases early, of which the worker has something, unless it comes back within
    /// the grace.
    async fn wait_for(&self, session: &str, leases: &[Lease], grace: Duration) {
        let jobs: Vec<i64> = leases.iter().map(|it| it.fence.lease.job_id).collect();
        if jobs.is_empty() {
            return;
        }
        let cut = self.store.orphan_session(session, &jobs, grace);
        let cut = match cut.await {
            Ok(cut) => cut,
            // Nobody touches the session any more, so that they are taken back for that.
            Err(error) => {
                tracing::debug!(%error, "The leases of a broken session were left to be taken back.");
                return;
            }
        };
        for lease in leases {
            let key = lease.fence.lease;
            if !cut.contains(&key.job_id) {
                continue;
            }
            self.metrics.streams_broken.increment(1);
            spans::happened(&self.tracer, lease.of.trace, "orphan", key, || {
                format!("the worker's session broke; it is waited for {grace:?}")
            });
            tracing::info!(
                job_id = key.job_id,
                epoch = key.epoch,
                grace_ms = grace.as_millis() as u64,
                trace_id = trace_id(lease.of.trace),
                "A worker's session broke; its lease ends early unless it comes back."
            );
        }
    }
}
