//! Every metric of the coordinator: named and described here, once, and shown
//! on `/metrics`. `docs/metrics.md` says what question each answers.

mod rpc;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use weir_metrics::{Counter, Gauge, Histogram, Metric, Page};

pub(crate) use self::rpc::{Call, Rpc};
use crate::job::state::RevokeReason;

const BUILD_INFO: Metric = Metric::new(
    "weir_build_info",
    "Always 1; what runs, and which version of it.",
);
const RPCS: Metric = Metric::new(
    "weir_rpcs_total",
    "Calls that ended, by method and status code.",
);
const RPC_DURATION: Metric = Metric::new(
    "weir_rpc_duration_seconds",
    "How long calls took, those that wait and streams included.",
);
const RPCS_OPEN: Metric = Metric::new(
    "weir_rpcs_open",
    "Calls under way now; of a streaming method, streams or watchers.",
);
const QUEUE_JOBS: Metric = Metric::new(
    "weir_queue_jobs",
    "Open jobs now: ready, delayed or running.",
);
const QUEUE_CHUNKS: Metric = Metric::new(
    "weir_queue_chunks_pending",
    "Chunks that open jobs have still to embed.",
);
const QUEUE_AGE: Metric = Metric::new(
    "weir_queue_oldest_ready_age_seconds",
    "How long the oldest ready job could have been claimed; 0 without one.",
);
const QUEUE_FIGURES_AGE: Metric = Metric::new(
    "weir_queue_figures_age_seconds",
    "How old what is known of the queue here is.",
);
const CLAIMS: Metric = Metric::new("weir_claims_total", "Jobs claimed by workers.");
const RENEWALS: Metric = Metric::new(
    "weir_renewals_total",
    "Renewals of leases, by what renewed them.",
);
const LEASES_LOST: Metric = Metric::new(
    "weir_leases_lost_total",
    "Workers that were told that their lease is gone, by reason.",
);
const STREAMS_BROKEN: Metric = Metric::new(
    "weir_streams_broken_total",
    "Streams that broke and left their lease to the orphan grace.",
);
const RESCUES: Metric = Metric::new(
    "weir_rescues_total",
    "Jobs taken away from their worker, by why.",
);
const RETRIES: Metric = Metric::new(
    "weir_retries_total",
    "Jobs queued again, by what went before.",
);
const JOBS_ENDED: Metric = Metric::new(
    "weir_jobs_ended_total",
    "Jobs that succeeded, or failed with their attempts used up.",
);
const CHUNKS_EMBEDDED: Metric = Metric::new(
    "weir_chunks_embedded_total",
    "Chunks persisted with a vector.",
);
const CHUNKS_LATE: Metric = Metric::new(
    "weir_chunks_late_total",
    "Chunks whose results were not stored, for a write had changed or deleted them meanwhile.",
);
const CHUNKS_TRUNCATED: Metric = Metric::new(
    "weir_chunks_truncated_total",
    "Of the chunks persisted with a vector, those truncated.",
);
const CHUNKS_REJECTED: Metric = Metric::new(
    "weir_chunks_rejected_total",
    "Chunks rejected, by who found out.",
);
const ROUND_TRIP: Metric = Metric::new(
    "weir_batch_round_trip_seconds",
    "From a batch on its way to the worker to its result.",
);
const COMMIT: Metric = Metric::new(
    "weir_batch_commit_seconds",
    "From a result to its commit, the wait for a writer included.",
);
const SOURCES_REPAIRED: Metric = Metric::new(
    "weir_sources_repaired_total",
    "Sources that the reconciler had to put right, a large one step by step.",
);
const SOURCES_FAILED: Metric = Metric::new(
    "weir_sources_failed_total",
    "Sources that the reconciler could not check or put right, each time that it tried.",
);
const SESSIONS: Metric = Metric::new(
    "weir_sessions",
    "Sessions of workers that this replica serves.",
);
const LEFTOVER_ROWS: Metric = Metric::new(
    "weir_leftover_rows",
    "Rows of deleted sources that are still to be deleted, about.",
);
const FORCED_RANGES: Metric = Metric::new(
    "weir_forced_ranges",
    "Ranges that clients have embedded anew and that are not all queued yet.",
);
const DATABASE_UP: Metric = Metric::new(
    "weir_database_up",
    "Whether a connection to the database could be had a moment ago.",
);
const FILES_IN_FORCE: Metric = Metric::new(
    "weir_files_in_force",
    "Whether all that is in the files of a setting holds; 0 while they are broken.",
);
const CONNECTIONS: Metric = Metric::new(
    "weir_database_connections",
    "Connections of a pool now: idle or in use.",
);
const MOST_CONNECTIONS: Metric = Metric::new(
    "weir_database_connections_max",
    "Most connections that a pool may have.",
);
const WAIT: Metric = Metric::new(
    "weir_database_wait_seconds",
    "How long a caller waits for a connection, tried once a second.",
);

/// The handles of every metric that is recorded as things happen.
#[derive(Debug)]
pub struct Metrics {
    page: Arc<Page>,
    claims: HashMap<String, Counter>,
    leases_lost: HashMap<RevokeReason, Counter>,
    pub(crate) renewals: Renewals,
    pub(crate) rescues: Rescues,
    pub(crate) retries: Retries,
    pub(crate) jobs_ended: JobsEnded,
    pub(crate) chunks: Chunks,
    pub(crate) database: Database,
    pub(crate) streams_broken: Counter,
    pub(crate) sources_repaired: Counter,
    pub(crate) sessions: Gauge,
    pub(crate) leftover_rows: Gauge,
    pub(crate) sources_failed: Counter,
    pub(crate) forced_ranges: Gauge,
    pub(crate) round_trip: Histogram,
    pub(crate) commit: Histogram,
}

/// Renewals by what renewed the lease.
#[derive(Debug)]
pub(crate) struct Renewals {
    /// A stream, when it was opened.
    pub(crate) open: Counter,
    /// A heartbeat on a stream.
    pub(crate) heartbeat: Counter,
    /// A result.
    pub(crate) result: Counter,
    /// `RenewLease` or `GetBatch`.
    pub(crate) call: Counter,
}

/// Jobs taken away from workers, by why.
#[derive(Debug)]
pub(crate) struct Rescues {
    /// Never heard of after the claim.
    pub(crate) unheard: Counter,
    /// The lease ran out.
    pub(crate) silent: Counter,
    /// Nothing was persisted for the progress deadline.
    pub(crate) no_progress: Counter,
}

/// Jobs queued again, by what went before.
#[derive(Debug)]
pub(crate) struct Retries {
    /// The rescuer took them away.
    pub(crate) rescued: Counter,
    /// Their worker failed them.
    pub(crate) failed: Counter,
    /// Their worker released them, uncharged.
    pub(crate) released: Counter,
    /// They had failed and were parked.
    pub(crate) parked: Counter,
}

/// Jobs that ended by themselves.
#[derive(Debug)]
pub(crate) struct JobsEnded {
    pub(crate) succeeded: Counter,
    pub(crate) failed: Counter,
}

/// What became of chunks.
#[derive(Debug)]
pub(crate) struct Chunks {
    pub(crate) embedded: Counter,
    pub(crate) truncated: Counter,
    /// Not stored, for their texts had changed meanwhile.
    pub(crate) late: Counter,
    /// Refused by an embedder.
    pub(crate) refused: Counter,
    /// Workers died or fell silent over them.
    pub(crate) deadly: Counter,
}

/// The database, and the pools of connections to it.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) up: Gauge,
    pub(crate) general: Pool,
    pub(crate) leases: Pool,
}

/// A pool of connections.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) idle: Gauge,
    pub(crate) in_use: Gauge,
    pub(crate) max: Gauge,
    pub(crate) wait: Histogram,
}

impl Metrics {
    /// A page of its own, for a coordinator of these models.
    pub fn new(models: &[String]) -> Self {
        let page = Page::default();
        let info = [
            ("program", "coordinator"),
            ("version", env!("CARGO_PKG_VERSION")),
        ];
        page.gauge(&BUILD_INFO, &info).set(1.0);
        let claims = models
            .iter()
            .map(|model| (model.clone(), page.counter(&CLAIMS, &[("model", model)])));
        let lost = RevokeReason::ALL.iter().map(|reason| {
            let counter = page.counter(&LEASES_LOST, &[("reason", reason.as_str())]);
            (*reason, counter)
        });
        let renewals = |by| page.counter(&RENEWALS, &[("by", by)]);
        let rescues = |cause| page.counter(&RESCUES, &[("cause", cause)]);
        let retries = |cause| page.counter(&RETRIES, &[("cause", cause)]);
        let ended = |state| page.counter(&JOBS_ENDED, &[("state", state)]);
        let rejected = |by| page.counter(&CHUNKS_REJECTED, &[("by", by)]);
        let pool = |pool| {
            let connections = |state| page.gauge(&CONNECTIONS, &[("pool", pool), ("state", state)]);
            Pool {
                idle: connections("idle"),
                in_use: connections("in_use"),
                max: page.gauge(&MOST_CONNECTIONS, &[("pool", pool)]),
                wait: page.histogram(&WAIT, &[("pool", pool)]),
            }
        };
        Self {
            claims: claims.collect(),
            leases_lost: lost.collect(),
            renewals: Renewals {
                open: renewals("open"),
                heartbeat: renewals("heartbeat"),
                result: renewals("result"),
                call: renewals("call"),
            },
            rescues: Rescues {
                unheard: rescues("unheard"),
                silent: rescues("silent"),
                no_progress: rescues("no_progress"),
            },
            retries: Retries {
                rescued: retries("rescued"),
                failed: retries("failed"),
                released: retries("released"),
                parked: retries("parked"),
            },
            jobs_ended: JobsEnded {
                succeeded: ended("succeeded"),
                failed: ended("failed"),
            },
            chunks: Chunks {
                embedded: page.counter(&CHUNKS_EMBEDDED, &[]),
                truncated: page.counter(&CHUNKS_TRUNCATED, &[]),
                late: page.counter(&CHUNKS_LATE, &[]),
                refused: rejected("embedder"),
                deadly: rejected("rescuer"),
            },
            database: Database {
                up: page.gauge(&DATABASE_UP, &[]),
                general: pool("general"),
                leases: pool("leases"),
            },
            streams_broken: page.counter(&STREAMS_BROKEN, &[]),
            sources_repaired: page.counter(&SOURCES_REPAIRED, &[]),
            sessions: page.gauge(&SESSIONS, &[]),
            leftover_rows: page.gauge(&LEFTOVER_ROWS, &[]),
            sources_failed: page.counter(&SOURCES_FAILED, &[]),
            forced_ranges: page.gauge(&FORCED_RANGES, &[]),
            round_trip: page.histogram(&ROUND_TRIP, &[]),
            commit: page.histogram(&COMMIT, &[]),
            page: Arc::new(page),
        }
    }

    /// The page that all of these are on.
    pub(crate) fn page(&self) -> &Page {
        &self.page
    }

    /// Whether all that is in the files of a setting holds.
    pub(crate) fn files_in_force(&self, setting: &str) -> Gauge {
        self.page.gauge(&FILES_IN_FORCE, &[("setting", setting)])
    }

    /// A job of this model was claimed.
    pub(crate) fn claimed(&self, model: &str) {
        // Workers can claim for no other models.
        if let Some(claims) = self.claims.get(model) {
            claims.increment(1);
        }
    }

    /// A worker was told that its lease is gone.
    pub(crate) fn lease_lost(&self, reason: RevokeReason) {
        if let Some(lost) = self.leases_lost.get(&reason) {
            lost.increment(1);
        }
    }
}

/// How much work one namespace and model has open.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct QueueSize {
    pub(crate) jobs_ready: i64,
    pub(crate) jobs_delayed: i64,
    pub(crate) jobs_running: i64,
    pub(crate) chunks_pending: i64,
    pub(crate) oldest_ready_age_seconds: f64,
}

/// Shows the queue by namespace and model, on a page that is made anew each
/// time: a namespace with nothing open any more is not on it.
pub(crate) fn show_queue(queue: &BTreeMap<(String, String), QueueSize>) -> String {
    let page = Page::default();
    for ((namespace, model), size) in queue {
        let of = [("namespace", namespace.as_str()), ("model", model.as_str())];
        for (state, jobs) in [
            ("ready", size.jobs_ready),
            ("delayed", size.jobs_delayed),
            ("running", size.jobs_running),
        ] {
            page.gauge(&QUEUE_JOBS, &[of[0], of[1], ("state", state)])
                .set(jobs as f64);
        }
        page.gauge(&QUEUE_CHUNKS, &of)
            .set(size.chunks_pending as f64);
        page.gauge(&QUEUE_AGE, &of)
            .set(size.oldest_ready_age_seconds);
    }
    page.render()
}

/// Shows how old what is told of the queue is.
pub(crate) fn show_queue_age(age: Duration) -> String {
    let page = Page::default();
    page.gauge(&QUEUE_FIGURES_AGE, &[]).set(age.as_secs_f64());
    page.render()
}
