//! The reconciler: queues again what failed jobs left, and finds sources whose
//! vectors do not match their chunks.

use std::time::Duration;

use weir_telemetry::{KeyValue, SpanKind, Tracer};

use crate::store::{
    Store, StoreError,
    reconcile::{Findings, Unparked},
};

/// Most failed jobs in one step.
const PARKED_STEP: usize = 100;

/// Most sources checked in one step.
const CHECK_STEP: i64 = 10;

/// What the reconciler works with.
#[derive(Debug, Clone)]
pub struct Reconciler {
    /// Where the sources are.
    pub store: Store,
    /// How often each source is checked.
    pub interval: Duration,
    /// Most pending chunks in one of the jobs it queues.
    pub max_chunks_per_job: i32,
    /// Where the spans of repairs go.
    pub tracer: Tracer,
}

/// What a step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Failed jobs settled, and jobs queued in their place.
    pub unparked: Unparked,
    /// Sources checked.
    pub checked: usize,
    /// Sources that were put right.
    pub repaired: usize,
    /// Whether more may wait.
    pub more: bool,
}

impl Reconciler {
    /// Takes one step: up to a hundred failed jobs and ten sources. A source
    /// that cannot be worked on does not hinder the others.
    pub async fn tick(&self) -> Result<Reconciled, StoreError> {
        let mut step = Reconciled::default();
        let mut trouble = None;
        for source_id in self.store.parked_sources(PARKED_STEP as i64).await? {
            let unparked = self
                .store
                .unpark(source_id, PARKED_STEP, self.max_chunks_per_job)
                .await;
            match unparked {
                Ok(unparked) => {
                    step.unparked.settled += unparked.settled;
                    step.unparked.queued += unparked.queued;
                }
                Err(away @ StoreError::Unavailable(_)) => return Err(away),
                Err(error) => trouble = Some(error),
            }
        }
        if step.unparked.settled > 0 {
            tracing::info!(
                jobs_settled = step.unparked.settled,
                jobs_queued = step.unparked.queued,
                "Queued again what failed jobs had left pending."
            );
        }
        for source_id in self.store.take_unchecked(self.interval, CHECK_STEP).await? {
            step.checked += 1;
            match self.check(source_id).await {
                Ok(repaired) => step.repaired += usize::from(repaired),
                Err(away @ StoreError::Unavailable(_)) => return Err(away),
                Err(error) => trouble = Some(error),
            }
        }
        step.more = step.unparked.settled >= PARKED_STEP || step.checked >= CHECK_STEP as usize;
        trouble.map_or(Ok(step), Err)
    }

    /// Checks one source and puts it right. Returns whether it had to be.
    async fn check(&self, source_id: i64) -> Result<bool, StoreError> {
        let found = self.store.check_source(source_id).await?;
        if !found.any() {
            return Ok(false);
        }
        // Nobody called: what is queued begins a trace here.
        let (span, trace) = self.tracer.enter(None, "repair", SpanKind::Internal, || {
            [KeyValue::new("db.system.name", "postgresql")]
        });
        let repaired = self
            .store
            .repair_source(source_id, self.max_chunks_per_job, Some(&trace.to_string()))
            .await?;
        let Some(repaired) = repaired else {
            return Ok(false);
        };
        span.set(|| {
            let source = format!("{}/{}", repaired.namespace, repaired.name);
            [
                KeyValue::new("weir.source", source),
                KeyValue::new("weir.jobs.queued", repaired.queued as i64),
            ]
        });
        let Findings {
            uncovered,
            stale,
            other_model,
            miscounted,
        } = found;
        tracing::warn!(
            namespace = repaired.namespace,
            source = repaired.name,
            uncovered,
            stale,
            other_model,
            miscounted,
            results_deleted = repaired.stale_deleted,
            jobs_superseded = repaired.superseded,
            jobs_queued = repaired.queued,
            "A source's vectors, jobs or counts did not match its chunks; it was put right."
        );
        Ok(true)
    }
}
