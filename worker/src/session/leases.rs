//! The leases that are worked on: from the first part of each to its end, for
//! people, metrics and traces. What is done depends on none of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::time::Instant;
use tracing::{Span as LogSpan, debug, field, info, info_span, warn};
use weir_telemetry::{Span, TraceContext};

use super::spans;
use crate::{
    metrics::Open,
    part::{End, LeaseId, Part},
    worker::Worker,
};

pub(super) struct Leases {
    worker: Arc<Worker>,
    open: BTreeMap<LeaseId, Lease>,
}

struct Lease {
    /// The place of its model.
    model: usize,
    began: Instant,
    /// Chunks whose outcome was acknowledged.
    persisted: usize,
    trace: TraceContext,
    /// What its log lines are within.
    log: LogSpan,
    span: Span,
    _open: Open,
}

impl Leases {
    pub(super) const fn new(worker: Arc<Worker>) -> Self {
        let open = BTreeMap::new();
        Self { worker, open }
    }

    /// A part came, the first of its lease perhaps. Returns what its spans hang on.
    pub(super) fn received(&mut self, model: usize, part: &Part) -> TraceContext {
        let worker = &self.worker;
        let lease = self.open.entry(part.lease);
        let lease = lease.or_insert_with(|| Lease::begin(worker, model, part));
        lease.log.in_scope(|| {
            debug!(
                seq = part.seq,
                source = part.source,
                chunks = part.chunks.len(),
                "A batch came."
            );
        });
        part.trace.unwrap_or(lease.trace)
    }

    /// The outcome of so many chunks of a lease is in the database.
    pub(super) fn persisted(&mut self, lease: LeaseId, chunks: usize) {
        if let Some(lease) = self.open.get_mut(&lease) {
            lease.persisted += chunks;
        }
    }

    /// The place of the model of a lease that is worked on.
    pub(super) fn model(&self, lease: LeaseId) -> Option<usize> {
        self.open.get(&lease).map(|lease| lease.model)
    }

    /// A lease has ended; nothing happens where no part of it ever came.
    pub(super) fn end(&mut self, lease: LeaseId, end: End, reason: &str) {
        if let Some(lease) = self.open.remove(&lease) {
            lease.end(&self.worker, end, reason);
        }
    }

    /// All leases have ended but those that are to be kept.
    pub(super) fn end_all_but(&mut self, kept: &BTreeSet<LeaseId>, end: End, reason: &str) {
        let gone = self.open.extract_if(.., |lease, _| !kept.contains(lease));
        for (_, lease) in gone {
            lease.end(&self.worker, end, reason);
        }
    }
}

impl Lease {
    fn begin(worker: &Worker, model: usize, part: &Part) -> Self {
        let served = &worker.models[model];
        let (span, trace) = spans::session(worker, &served.profile.name, part);
        let log = info_span!(
            parent: None,
            "lease",
            job_id = part.lease.job_id,
            epoch = part.lease.epoch,
            source = part.source,
            trace_id = field::display(trace.trace_id()),
        );
        log.in_scope(|| info!("The job started."));
        Self {
            model,
            began: Instant::now(),
            persisted: 0,
            trace,
            log,
            span,
            _open: served.endpoint.metrics.lease_began(),
        }
    }

    fn end(self, worker: &Worker, end: End, reason: &str) {
        let chunks = self.persisted;
        spans::ended(&self.span, end, reason, chunks);
        worker.models[self.model].endpoint.metrics.lease_ended(end);
        let elapsed_ms = self.began.elapsed().as_millis();
        let _log = self.log.enter();
        let unwanted = match end {
            End::Finished => return info!(chunks, elapsed_ms, "The job finished."),
            End::Released => return info!(chunks, elapsed_ms, reason, "The job was released."),
            End::Lost => "The lease ended; job dropped.",
            End::Refused => "The coordinator refused a result; the job went back.",
            End::Unreachable => "The coordinator was unreachable for too long; job dropped.",
        };
        warn!(chunks, elapsed_ms, reason, "{unwanted}");
    }
}
