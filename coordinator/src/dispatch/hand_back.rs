//! The ends of leases, for sessions and unary calls alike: what is written, counted,
//! told and logged of each.

use std::time::SystemTime;

use weir_telemetry::TraceContext;

use super::{Dispatch, REFUSED_FOR};
use crate::{
    job::retry::Decision,
    spans::{self, trace_id},
    store::{
        StoreError,
        fence::Fence,
        lease::Failed,
        rows::{Job, LeaseKey},
    },
};

/// Why a job goes back uncharged.
#[derive(Debug, Clone)]
pub(crate) enum Release {
    /// Nothing is wrong: the worker stops, or never got any of it.
    Unneeded(String),
    /// The worker's embedder is down, in its own words.
    EmbedderDown(String),
    /// A result was refused for what the worker may not decide. It waits a while.
    Refused(String),
}

impl Release {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Unneeded(reason) | Self::EmbedderDown(reason) | Self::Refused(reason) => reason,
        }
    }
}

impl Dispatch {
    /// Completes a job of which nothing is pending.
    pub(crate) async fn complete(
        &self,
        fence: &Fence,
        trace: Option<TraceContext>,
    ) -> Result<Job, StoreError> {
        let began = SystemTime::now();
        let job = self.store.complete(fence).await?;
        self.wakeup.report_change(job.source_id);
        self.succeeded(fence.lease, trace.or_else(|| spans::trace_of(&job)), began);
        Ok(job)
    }

    /// Tells that a job has succeeded, by a statement that began at `began`.
    pub(crate) fn succeeded(
        &self,
        lease: LeaseKey,
        trace: Option<TraceContext>,
        began: SystemTime,
    ) {
        self.metrics.jobs_ended.succeeded.increment(1);
        spans::completed(&self.tracer, trace, lease, began);
        tracing::info!(
            job_id = lease.job_id,
            epoch = lease.epoch,
            trace_id = trace_id(trace),
            "A job succeeded."
        );
    }

    /// Takes a job back, charged with a try.
    pub(crate) async fn fail(
        &self,
        fence: &Fence,
        reason: &str,
        trace: Option<TraceContext>,
    ) -> Result<Failed, StoreError> {
        let failed = self
            .store
            .fail(fence, reason, &self.policy, rand::random())
            .await?;
        self.wakeup.report_change(failed.source_id);
        match failed.decision {
            Decision::Retry { attempt, delay } => {
                self.metrics.retries.failed.increment(1);
                tracing::warn!(
                    job_id = fence.lease.job_id,
                    attempt,
                    delay_ms = delay.as_millis() as u64,
                    reason,
                    trace_id = trace_id(trace),
                    "A job failed and will be tried again."
                );
            }
            Decision::Fail { attempt } => {
                self.metrics.jobs_ended.failed.increment(1);
                tracing::error!(
                    job_id = fence.lease.job_id,
                    attempt,
                    reason,
                    trace_id = trace_id(trace),
                    "A job failed for good: its attempts are used up."
                );
            }
        }
        Ok(failed)
    }

    /// Takes a job back, uncharged.
    pub(crate) async fn release(
        &self,
        fence: &Fence,
        release: &Release,
        trace: Option<TraceContext>,
    ) -> Result<(), StoreError> {
        let source_id = match release {
            Release::Unneeded(reason) => self.store.release(fence, reason).await?,
            Release::EmbedderDown(reason) => {
                self.store.release_embedder_down(fence, reason).await?
            }
            Release::Refused(reason) => {
                let delay = REFUSED_FOR;
                self.store.release_refused(fence, reason, delay).await?
            }
        };
        self.metrics.retries.released.increment(1);
        self.wakeup.report_change(source_id);
        let (lease, reason) = (fence.lease, release.reason());
        if matches!(release, Release::Refused(_)) {
            tracing::warn!(
                job_id = lease.job_id,
                epoch = lease.epoch,
                reason,
                trace_id = trace_id(trace),
                "A result was refused, and its job waits."
            );
        } else {
            tracing::info!(
                job_id = lease.job_id,
                epoch = lease.epoch,
                reason,
                trace_id = trace_id(trace),
                "A job was released."
            );
        }
        Ok(())
    }

    /// Takes a job back whose result was refused because of what its worker may not
    /// decide.
    pub(crate) async fn give_back(&self, fence: &Fence, error: &StoreError) {
        let StoreError::NoDimension(reason) = error else {
            return;
        };
        let release = Release::Refused(reason.clone());
        // Otherwise its worker hands it back, or its lease runs out.
        if let Err(error) = self.release(fence, &release, None).await {
            tracing::debug!(%error, "A job whose result was refused was not taken back.");
        }
    }
}
