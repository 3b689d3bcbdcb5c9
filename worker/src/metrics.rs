//! Every metric of the worker: named and described here, once, and shown on
//! `/metrics` of `--http-listen`. `docs/metrics.md` says what question each
//! answers.

use weir_embedder::{EmbedError, EmbedderKind, Embedding, judge::CallSize};
pub(crate) use weir_metrics::{Counter, Open, Page};
use weir_metrics::{Gauge, Histogram, Metric};

use crate::part::End;

const BUILD_INFO: Metric = Metric::new(
    "weir_build_info",
    "Always 1; what runs, and which version of it.",
);
const LEASES_OPEN: Metric = Metric::new("weir_worker_leases_open", "Leases worked on now.");
const LEASES_ENDED: Metric = Metric::new(
    "weir_worker_leases_ended_total",
    "Leases that ended, by how.",
);
const STREAM_FAILURES: Metric = Metric::new(
    "weir_worker_stream_failures_total",
    "Streams to the coordinator that broke or were refused.",
);
const BATCH_EMBED: Metric = Metric::new(
    "weir_batch_embed_seconds",
    "From a batch in the worker's hands to its outcome, the wait for a call included.",
);
const UP: Metric = Metric::new(
    "weir_embedder_up",
    "Whether the embedder is fit; while not, nothing is taken.",
);
const RESTING: Metric = Metric::new(
    "weir_embedder_resting",
    "Whether the embedder is left alone for a while because it was overloaded.",
);
const UNDER_WAY: Metric = Metric::new(
    "weir_embedder_calls_under_way",
    "Calls to the embedder now.",
);
const ALLOWED: Metric = Metric::new(
    "weir_embedder_calls_allowed",
    "Most calls at the same time, as learned by now.",
);
const CALL_TEXTS: Metric = Metric::new(
    "weir_embedder_call_texts_allowed",
    "Most texts in one call, as learned by now.",
);
const PAUSES: Metric = Metric::new(
    "weir_embedder_pauses_total",
    "Pauses of the embedder, by why.",
);
const CALLS: Metric = Metric::new(
    "weir_embedder_calls_total",
    "Calls to the embedder that ended, by how.",
);
const CALL_DURATION: Metric = Metric::new(
    "weir_embedder_call_duration_seconds",
    "How long calls to the embedder took, however they ended.",
);
const TEXTS: Metric = Metric::new(
    "weir_embedder_texts_total",
    "Texts that the embedder made vectors of.",
);
const TOKENS: Metric = Metric::new(
    "weir_embedder_tokens_total",
    "Estimated tokens of these texts; a token is taken for four bytes.",
);

/// A page for a worker that shows it, or for one that does not.
pub(crate) fn page(shown: bool) -> Page {
    let page = if shown {
        Page::default()
    } else {
        Page::unseen()
    };
    let info = [
        ("program", "worker"),
        ("version", env!("CARGO_PKG_VERSION")),
    ];
    page.gauge(&BUILD_INFO, &info).set(1.0);
    page
}

/// Counts streams that broke or were refused.
pub(crate) fn stream_failures(page: &Page) -> Counter {
    page.counter(&STREAM_FAILURES, &[])
}

/// The handles of all metrics of one model.
#[derive(Debug)]
pub(crate) struct Metrics {
    leases_open: Gauge,
    leases_ended: [Counter; End::ALL.len()],
    pub(crate) batch_embed: Histogram,
    pub(crate) embedder: State,
    pub(crate) pauses: Pauses,
    calls: Calls,
}

/// How the embedder is now.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) up: Gauge,
    pub(crate) resting: Gauge,
    pub(crate) under_way: Gauge,
    pub(crate) allowed: Gauge,
    pub(crate) texts_allowed: Gauge,
}

/// Why the embedder was given a pause.
#[derive(Debug)]
pub(crate) struct Pauses {
    /// It is at fault; nothing is taken.
    pub(crate) down: Counter,
    /// It has too much to do.
    pub(crate) overloaded: Counter,
}

/// How calls to the embedder ended.
#[derive(Debug)]
struct Calls {
    ok: Counter,
    input: Counter,
    too_long: Counter,
    too_many: Counter,
    overloaded: Counter,
    embedder: Counter,
    timeout: Counter,
    transient: Counter,
    duration: Histogram,
    texts: Counter,
    tokens: Counter,
}

impl Metrics {
    /// Those of a model that is embedded by this kind of embedder.
    pub(crate) fn new(page: &Page, model: &str, kind: EmbedderKind) -> Self {
        let model = ("model", model);
        let kind = ("embedder", kind.as_str());
        let ended = |how| page.counter(&LEASES_ENDED, &[model, ("how", how)]);
        let state = |metric| page.gauge(metric, &[model, kind]);
        let pauses = |cause| page.counter(&PAUSES, &[model, kind, ("cause", cause)]);
        let calls = |outcome| page.counter(&CALLS, &[model, kind, ("outcome", outcome)]);
        Self {
            leases_open: page.gauge(&LEASES_OPEN, &[model]),
            leases_ended: End::ALL.map(|end| ended(end.as_str())),
            batch_embed: page.histogram(&BATCH_EMBED, &[model]),
            embedder: State {
                up: state(&UP),
                resting: state(&RESTING),
                under_way: state(&UNDER_WAY),
                allowed: state(&ALLOWED),
                texts_allowed: state(&CALL_TEXTS),
            },
            pauses: Pauses {
                down: pauses("down"),
                overloaded: pauses("overloaded"),
            },
            calls: Calls {
                ok: calls("ok"),
                input: calls("input"),
                too_long: calls("too_long"),
                too_many: calls("too_many"),
                overloaded: calls("overloaded"),
                embedder: calls("embedder"),
                timeout: calls("timeout"),
                transient: calls("transient"),
                duration: page.histogram(&CALL_DURATION, &[model, kind]),
                texts: page.counter(&TEXTS, &[model, kind]),
                tokens: page.counter(&TOKENS, &[model, kind]),
            },
        }
    }

    /// Work on a lease begins; it is open until what is returned is dropped.
    pub(crate) fn lease_began(&self) -> Open {
        Open::new(&self.leases_open)
    }

    /// A lease has ended.
    pub(crate) fn lease_ended(&self, end: End) {
        let ended = End::ALL.iter().zip(&self.leases_ended);
        for (_, counter) in ended.filter(|(it, _)| **it == end) {
            counter.increment(1);
        }
    }

    /// A call of this size ended after `seconds`.
    pub(crate) fn called(
        &self,
        answer: &Result<Vec<Embedding>, EmbedError>,
        size: CallSize,
        seconds: f64,
    ) {
        let calls = &self.calls;
        calls.duration.record(seconds);
        let outcome = match answer {
            Ok(vectors) => {
                let usable = vectors.iter().flatten().count();
                calls.texts.increment(usable as u64);
                calls.tokens.increment(size.tokens as u64);
                &calls.ok
            }
            Err(EmbedError::Input { .. }) => &calls.input,
            Err(EmbedError::TooLong { .. }) => &calls.too_long,
            Err(EmbedError::TooMany { .. }) => &calls.too_many,
            Err(EmbedError::Overloaded { .. }) => &calls.overloaded,
            Err(EmbedError::Embedder { .. }) => &calls.embedder,
            Err(EmbedError::Timeout { .. }) => &calls.timeout,
            // Told apart only for what is tried next.
            Err(EmbedError::Broken { .. } | EmbedError::Transient { .. }) => &calls.transient,
        };
        outcome.increment(1);
    }
}

#[cfg(test)]
impl Metrics {
    /// Those that nobody asks for.
    pub(crate) fn unseen() -> Self {
        Self::new(&Page::unseen(), "model", EmbedderKind::Ollama)
    }
}
