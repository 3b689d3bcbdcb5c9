//! The rescuer: returns jobs whose lease has expired.

use std::sync::Arc;

use tokio::time::Instant;
use weir_telemetry::{KeyValue, SpanKind, TraceContext, Tracer};

use crate::{
    job::retry::RetryPolicy,
    metrics::Metrics,
    store::{
        Store, StoreError,
        rescue::{Patience, Rescued, RescuedLease},
    },
    wakeup::Wakeup,
};

/// Most jobs in one step, so that no transaction holds many locks.
const STEP: i64 = 100;

/// What the rescuer works with.
#[derive(Debug)]
pub struct Rescuer {
    /// Where the jobs are.
    pub store: Store,
    /// Whom to tell.
    pub wakeup: Wakeup,
    /// Where what it does is counted.
    pub metrics: Arc<Metrics>,
    /// Where the spans of the jobs go.
    pub tracer: Tracer,
    /// How tries are charged.
    pub policy: RetryPolicy,
    /// How long workers are waited for.
    pub patience: Patience,
    /// Since when the database answers; unset while it does not.
    pub answers_since: Option<Instant>,
}

impl Rescuer {
    /// Takes a step, unless it is too soon, and returns whether more may wait.
    /// Leases run out while nobody can renew them: after a start, and after the
    /// database was away, workers have one orphan grace to renew theirs first.
    pub(crate) async fn step(&mut self) -> Result<bool, StoreError> {
        let Some(since) = self.answers_since else {
            self.store.ping().await?;
            self.answers_since = Some(Instant::now());
            return Ok(false);
        };
        if since.elapsed() < self.patience.orphan_grace {
            return Ok(false);
        }
        let step = self.tick().await;
        if let Err(StoreError::Unavailable(_)) = step {
            self.answers_since = None;
        }
        Ok(step?.source_ids.len() as i64 >= STEP)
    }

    /// Takes one step: up to a hundred jobs.
    pub async fn tick(&self) -> Result<Rescued, StoreError> {
        let rescued = self
            .store
            .rescue(STEP, &self.patience, &self.policy, rand::random)
            .await?;
        if !rescued.source_ids.is_empty() {
            tracing::warn!(
                retried = rescued.retried,
                failed = rescued.failed,
                rejected_texts = rescued.rejected,
                "Took jobs away from workers that went silent or made no progress."
            );
        }
        self.count(&rescued);
        for lease in &rescued.leases {
            self.tell(lease);
        }
        for source_id in &rescued.source_ids {
            self.wakeup.report_change(*source_id);
        }
        Ok(rescued)
    }

    fn count(&self, rescued: &Rescued) {
        let metrics = &self.metrics;
        metrics.rescues.unheard.increment(rescued.unheard as u64);
        metrics.rescues.silent.increment(rescued.silent as u64);
        metrics
            .rescues
            .no_progress
            .increment(rescued.stalled as u64);
        let queued = rescued.retried + rescued.rejected;
        metrics.retries.rescued.increment(queued as u64);
        metrics.jobs_ended.failed.increment(rescued.failed as u64);
        metrics.chunks.deadly.increment(rescued.rejected as u64);
    }

    /// Records in the job's trace that its lease was taken away.
    fn tell(&self, rescued: &RescuedLease) {
        let RescuedLease {
            lease,
            why,
            traceparent,
        } = rescued;
        let trace = traceparent.as_deref().and_then(TraceContext::read);
        let attributes = || {
            [
                KeyValue::new("weir.job.id", lease.job_id),
                KeyValue::new("weir.job.epoch", lease.epoch),
                KeyValue::new("weir.reason", *why),
            ]
        };
        let rescue = self
            .tracer
            .child(trace.as_ref(), "rescue", SpanKind::Internal, attributes);
        rescue.fail(*why);
    }
}
