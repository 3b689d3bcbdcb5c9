//! What happened in a run: the faults, and what should not have been.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use crate::schedule::{Fault, Place};

/// A fault as it was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    pub(crate) place: Place,
    pub(crate) fault: Fault,
    pub(crate) from: SystemTime,
    /// When the harness had ended it; what started again was up.
    pub(crate) to: SystemTime,
}

/// Shared by everything in a run.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    started: Instant,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Vec<Event>,
    findings: Vec<String>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            inner: Arc::default(),
        }
    }

    /// How long the run has lasted.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Tells whoever watches the run.
    pub(crate) fn say(&self, what: &str) {
        println!("[{:7.2} s] {what}", self.elapsed().as_secs_f64());
    }

    pub(crate) fn note(&self, event: Event) {
        self.inner().events.push(event);
    }

    /// Notes what should not have been; the run fails at its end.
    pub(crate) fn find(&self, what: String) {
        self.say(&format!("FOUND: {what}"));
        self.inner().findings.push(what);
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.inner().events.clone()
    }

    pub(crate) fn findings(&self) -> Vec<String> {
        self.inner().findings.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
