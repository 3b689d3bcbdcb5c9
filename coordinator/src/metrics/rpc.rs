//! What is recorded of each call: how many, how they ended, how long they took.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use weir_metrics::{Counter, Gauge, Histogram, Open, Page};

use super::{Metrics, RPC_DURATION, RPCS, RPCS_OPEN};

/// The status codes of gRPC, by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The metrics of one method.
#[derive(Debug)]
pub(crate) struct Rpc {
    page: Arc<Page>,
    method: String,
    /// By code, each made when it is first needed: most never are.
    ended: [OnceLock<Counter>; CODES.len()],
    duration: Histogram,
    open: Gauge,
}

impl Metrics {
    /// The metrics of one method, named as `Service/Method`.
    pub(crate) fn rpc(&self, method: &str) -> Rpc {
        let tags = [("method", method)];
        Rpc {
            ended: Default::default(),
            duration: self.page.histogram(&RPC_DURATION, &tags),
            open: self.page.gauge(&RPCS_OPEN, &tags),
            page: self.page.clone(),
            method: method.to_owned(),
        }
    }
}

impl Rpc {
    /// A call begins, and ends with what is returned.
    pub(crate) fn begin(self: &Arc<Self>) -> Call {
        Call {
            _open: Open::new(&self.open),
            rpc: self.clone(),
            began: Instant::now(),
            code: None,
        }
    }

    fn ended(&self, code: usize) {
        let counter = self.ended[code].get_or_init(|| {
            let tags = [("method", self.method.as_str()), ("code", CODES[code])];
            self.page.counter(&RPCS, &tags)
        });
        counter.increment(1);
    }
}

/// A call under way. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Call {
    rpc: Arc<Rpc>,
    began: Instant,
    _open: Open,
    /// The number of its status, once that is known.
    code: Option<usize>,
}

impl Call {
    /// Notes the status that the call ends with: a number of gRPC's.
    pub(crate) fn status(&mut self, code: usize) {
        const UNKNOWN: usize = 2;
        self.code = Some(if code < CODES.len() { code } else { UNKNOWN });
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Whoever called went away before there was a status.
        const CANCELLED: usize = 1;
        self.rpc.ended(self.code.unwrap_or(CANCELLED));
        self.rpc.duration.record(self.began.elapsed().as_secs_f64());
    }
}
