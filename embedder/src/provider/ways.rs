//! What only a server can tell of how it is asked, its address and the form of
//! a request, is found out by probes: by what it does and not by what it says.
//!
//! A way that passed a probe is taken by every call, until a probe fails: then
//! all ways are tried again, by as many calls as there are forms, and one for
//! each further address.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use reqwest::Url;
use tracing::debug;

use super::{address::shown, http::Failure};

/// What a failure speaks against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is something else at the address.
    Address,
    /// Perhaps the form of the request.
    Form,
    /// Nothing that another way would mend.
    Server,
}

/// An address, and the form of what is sent there.
pub(super) struct Way<F> {
    pub(super) url: Url,
    pub(super) form: F,
}

/// The ways in which a server may be asked.
pub(super) struct Ways<F> {
    /// Those of one address side by side.
    all: Vec<Way<F>>,
    taken: AtomicUsize,
    /// Whether the last probe passed.
    is_known: AtomicBool,
}

/// A probe that looks for a way.
pub(super) struct Search<'a, F> {
    ways: &'a Ways<F>,
    at: usize,
    is_known: bool,
    /// What is told if no way is found.
    failure: Option<Failure>,
}

impl<F> Ways<F> {
    /// Those to these addresses in these forms; there is at least one of each.
    pub(super) fn new(addresses: Vec<Url>, forms: impl Fn(&Url) -> Vec<F>) -> Self {
        let ways = |url: Url| {
            let forms = forms(&url).into_iter();
            forms.map(move |form| Way {
                url: url.clone(),
                form,
            })
        };
        Self {
            all: addresses.into_iter().flat_map(ways).collect(),
            taken: AtomicUsize::new(0),
            is_known: AtomicBool::new(false),
        }
    }

    /// The way to take with texts.
    pub(super) fn taken(&self) -> &Way<F> {
        &self.all[self.taken.load(Ordering::Relaxed)]
    }

    pub(super) fn search(&self) -> Search<'_, F> {
        let is_known = self.is_known.load(Ordering::Relaxed);
        let first = self.taken.load(Ordering::Relaxed);
        Search {
            ways: self,
            at: if is_known { first } else { 0 },
            is_known,
            failure: None,
        }
    }
}

impl<'a, F: fmt::Debug> Search<'a, F> {
    /// The way to try.
    pub(super) fn way(&self) -> &'a Way<F> {
        &self.ways.all[self.at]
    }

    /// The way passed: it is taken from now on.
    pub(super) fn passed(self) {
        self.ways.taken.store(self.at, Ordering::Relaxed);
        if !self.ways.is_known.swap(true, Ordering::Relaxed) {
            let way = self.way();
            debug!(at = shown(&way.url), form = ?way.form, "The embedding server is asked like this.");
        }
    }

    /// The way failed. Returns why the probe did, if there is no other to try.
    pub(super) fn failed(&mut self, fault: Fault, failure: Failure) -> Option<Failure> {
        let here = &self.way().url;
        let mut rest = self.ways.all.iter().enumerate().skip(self.at + 1);
        let further = match fault {
            Fault::Address => rest.find(|(_, way)| way.url != *here),
            Fault::Form => rest.next().filter(|(_, way)| way.url == *here),
            Fault::Server => None,
        };
        // Of several addresses the one that gives a reason says more.
        let told = match self.failure.take() {
            Some(before)
                if fault == Fault::Address && (before.has_words() || !failure.has_words()) =>
            {
                before
            }
            _ => failure,
        };
        // Experiments of a judge are probes, too: one that fails is one call.
        if let Some((at, _)) = further.filter(|_| !self.is_known) {
            self.at = at;
            self.failure = Some(told);
            return None;
        }
        self.ways.is_known.store(false, Ordering::Relaxed);
        Some(told)
    }
}
