//! The composition root: what is built from a configuration, and how it runs
//! and stops.

mod doors;

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{
    server::NamedService,
    service::{LayerExt as _, Routes},
    transport::Server as Transport,
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_web::GrpcWebLayer;
use tower::util::MapResponseLayer;
use weir_proto::{
    externalscaler::external_scaler_server::ExternalScalerServer,
    limits::{MAX_CLIENT_MESSAGE_BYTES, MAX_WORKER_MESSAGE_BYTES},
    v1::{
        FILE_DESCRIPTOR_SET, job_service_server::JobServiceServer,
        search_service_server::SearchServiceServer, source_service_server::SourceServiceServer,
        worker_service_server::WorkerServiceServer,
    },
};
use weir_telemetry::Tracer;

use self::doors::Doors;
use crate::{
    config::{Config, ServeConfig},
    dispatch::{
        Dispatch,
        claimer::Claimer,
        opener::Opener,
        roster::{Pace, Roster},
        writer::Writer,
    },
    grpc::{
        self, Hubs, Inner, Jobs, Scaler, Searches, Services, Sources, SpanLayer, Workers,
        admission::Admission, measured::Measure, memory::Memory, origin::OriginLayer,
    },
    http::{self, Scrape},
    job::chunk::Chunker,
    look::{Queue, Ready, Turns},
    maintenance::{
        self, database, models, prompts, reconciler::Reconciler, rescuer::Rescuer, retention,
        sampler, steps, sweeper,
    },
    metrics::Metrics,
    store::{self, Store, activity::SAMPLE_SECONDS, quota::Quota, rescue::Patience},
    tls,
    wakeup::Wakeup,
};

/// How often a silent peer is asked whether it is still there, and how long it
/// may take to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));

/// Largest headers of a call, in bytes; a token is a small part of that.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// How often left-over imports, and jobs past their time, are looked for.
const SWEEP_EVERY: Duration = Duration::from_mins(10);

/// How often the pool of connections is looked at.
const POOL_EVERY: Duration = Duration::from_secs(1);

/// How often the database is asked for the health service.
const HEALTH_EVERY: Duration = Duration::from_secs(5);

/// How often the queue is looked at when nobody asks.
const FIGURES_EVERY: Duration = Duration::from_secs(4);

/// A coordinator that has its port and its database, and serves when it is run.
#[derive(Debug)]
pub struct Server {
    config: ServeConfig,
    chunker: Arc<Chunker>,
    store: Store,
    /// Turns of all who look on behalf of watchers.
    turns: Turns,
    listener: TcpListener,
    address: SocketAddr,
    doors: Doors,
    tracer: Tracer,
}

/// Checks the configuration, brings the database up to date where it is to be,
/// and takes the port.
pub async fn bind(mut config: Config) -> anyhow::Result<Server> {
    let chunker = config.serve.validate()?;
    let doors = Doors::open(&config.serve.security)?;
    let pools = store::connect(&config.database)?;
    let limit = config.database.database_timeout + config.database.statement_timeout;
    store::migrate(&pools.general, config.serve.migrate).await?;
    let listener = TcpListener::bind(config.serve.listen)
        .await
        .with_context(|| {
            format!(
                "--listen (WEIR_LISTEN): cannot listen on {}",
                config.serve.listen
            )
        })?;
    let address = listener.local_addr()?;
    let tracer = Tracer::start("weir-coordinator", &address.to_string(), &config.trace)?;
    if let Some(warning) = config.serve.security.warning(address) {
        tracing::warn!(%address, warning);
    }
    let limits = &config.serve.limits;
    let told = config.serve.models.iter();
    let dimensions = told.filter_map(|model| Some((model.name.clone(), model.dimension?)));
    let quota = Quota {
        max_sources: limits.max_sources_per_namespace.map(NonZeroU32::get),
        max_pending_chunks: limits.max_pending_chunks_per_namespace.map(NonZeroU32::get),
    };
    let store = Store::new(pools.general, limit)
        .with_leases(pools.leases)
        .with_aside(pools.aside)
        .with_quota(quota)
        .with_dimensions(dimensions.collect());
    store
        .set_dimensions()
        .await
        .context("--models (WEIR_MODELS), or dimension in the models file")?;
    let models = config.serve.models.iter();
    let prompts: Vec<_> = models
        .map(|it| (it.name.as_str(), it.document_prompt.as_str()))
        .collect();
    for model in store.set_prompts(&prompts).await? {
        tracing::info!(
            model,
            "Set the prompt of a model for documents; sources that have another are embedded anew."
        );
    }
    Ok(Server {
        config: config.serve,
        chunker: Arc::new(chunker),
        turns: Turns::of(config.database.database_connections.get()),
        store,
        listener,
        address,
        doors,
        tracer,
    })
}

impl Server {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`. Then it says that it is not ready and goes on for
    /// the drain delay. After that it ends streams and long polls, sends their
    /// connections away, accepts no more of them, and lets calls under way end,
    /// for at most the drain timeout.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let tasks = TaskTracker::new();
        let wakeup = Wakeup::default();
        let writer_tasks = TaskTracker::new();
        let metrics = Arc::new(Metrics::new(&self.config.model_names()));
        // A call that is told to go elsewhere before its connection is would come back here.
        let unready = CancellationToken::new();
        let services = self.services(&wakeup, &unready, &tasks, &writer_tasks, &metrics);
        let (reporter, health) = tonic_health::server::health_reporter();
        let background = TaskTracker::new();
        let ready = Ready::new(self.store.clone());
        background.spawn(report_health(
            ready.clone(),
            reporter,
            shutdown.clone(),
            (unready.clone().drop_guard(), self.config.drain_delay),
        ));
        self.start_background(&services, &background, &unready);
        // For as long as sessions go on, which is longer than calls are accepted.
        let served = CancellationToken::new();
        let _unserved = served.clone().drop_guard();
        self.start_touches(&services, &background, &served);

        let spans = SpanLayer::new(self.tracer.clone());
        let pages = http::router(
            Scrape::new(&self.config, services.queue.clone(), metrics.clone()),
            ready,
            self.config.dashboard,
            shutdown.clone(),
        );
        let routes = routes(
            services,
            pages,
            health,
            self.config.security.reflection,
            &spans,
        )?;
        let (gate, certificates) =
            self.doors
                .keep(&self.config, &metrics, &background, &shutdown)?;
        let incoming = tls::incoming(self.listener, certificates, &background);
        let (delay, timeout) = (self.config.drain_delay, self.config.drain_timeout);
        let serving = Transport::builder()
            .accept_http1(true)
            .http2_keepalive_interval(Some(KEEPALIVE.0))
            .http2_keepalive_timeout(Some(KEEPALIVE.1))
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .max_concurrent_streams(self.config.limits.max_calls_per_connection.get())
            .layer(OriginLayer::new(&self.config.security, self.address.ip()))
            .layer(gate)
            .layer(MapResponseLayer::new(grpc::limits::relabel))
            .layer(spans)
            .add_routes(routes)
            // Whoever asks about this replica's health is told before anybody is refused.
            .serve_with_incoming_shutdown(incoming, unready.cancelled_owned());
        tracing::info!(address = %self.address, "listening");
        let deadline = async {
            shutdown.cancelled().await;
            tokio::time::sleep(delay + timeout).await;
        };
        // Results that were taken are written before the process ends.
        let drained = async {
            serving.await?;
            for tracker in [&tasks, &writer_tasks, &background] {
                tracker.close();
                tracker.wait().await;
                served.cancel();
            }
            anyhow::Ok(())
        };
        tokio::select! {
            drained = drained => drained?,
            () = deadline => tracing::warn!(
                "Calls were still under way after the drain timeout; they are cut off."
            ),
        }
        self.tracer.shutdown().await;
        tracing::info!("stopped");
        Ok(())
    }

    fn services(
        &self,
        wakeup: &Wakeup,
        shutdown: &CancellationToken,
        tasks: &TaskTracker,
        writer_tasks: &TaskTracker,
        metrics: &Arc<Metrics>,
    ) -> Services {
        let lease_duration = self.config.lease_duration;
        let (store, weights) = (&self.store, self.config.weights());
        let dispatch = Dispatch {
            claimer: Claimer::new(store.clone(), wakeup.clone(), weights.clone()),
            opener: Opener::start(store, lease_duration, writer_tasks),
            writer: Writer::start(
                store,
                lease_duration,
                writer_tasks,
                metrics.clone(),
                &self.tracer,
            ),
            roster: Roster::new(wakeup.replica()),
            store: store.clone(),
            wakeup: wakeup.clone(),
            metrics: metrics.clone(),
            tracer: self.tracer.clone(),
            weights,
            policy: self.config.retry_policy(),
            lease_duration,
            orphan_grace: self.config.orphan_grace,
            max_batch_size: self.config.max_batch_size,
            shutdown: shutdown.clone(),
        };
        Services {
            inner: Arc::new(Inner {
                dispatch: Arc::new(dispatch),
                tracer: self.tracer.clone(),
                memory: Memory::default(),
                metrics: metrics.clone(),
                store: self.store.clone(),
                wakeup: wakeup.clone(),
                chunker: self.chunker.clone(),
                models: self.config.model_names(),
                trace_url: self.config.trace_url.clone(),
                queue: Queue::new(self.store.clone()),
                hubs: Hubs::new(&self.turns),
                max_chunks_per_job: self.config.max_chunks_per_job,
                poll_interval: self.config.poll_interval,
                shutdown: shutdown.clone(),
                tasks: tasks.clone(),
            }),
        }
    }

    /// Starts what belongs to no call.
    fn start_background(
        &self,
        services: &Services,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        let (store, wakeup, stop) = (
            self.store.clone(),
            services.wakeup.clone(),
            shutdown.clone(),
        );
        tasks.spawn(async move { wakeup.listen(&store, &stop).await });
        let (store, wakeup, stop) = (
            self.store.clone(),
            services.wakeup.clone(),
            shutdown.clone(),
        );
        tasks.spawn(async move {
            tokio::join!(
                wakeup.announce(&store, &stop),
                wakeup.announce_queued(&store, &stop)
            );
        });
        let (metrics, stop) = (services.metrics.clone(), shutdown.clone());
        tasks.spawn(async move { stop.run_until_cancelled(metrics.page().keep()).await });
        let (store, models, stop) = (
            self.store.clone(),
            self.config.model_names(),
            shutdown.clone(),
        );
        tasks.spawn(async move {
            stop.run_until_cancelled(models::tell_unserved(&store, &models))
                .await
        });
        let (store, metrics) = (self.store.clone(), services.metrics.clone());
        tasks.spawn(maintenance::every(
            "pool",
            POOL_EVERY,
            shutdown.clone(),
            async move || {
                database::tick(&store, &metrics).await;
                Ok(false)
            },
        ));
        self.start_figures(services, tasks, shutdown);
        self.start_maintenance(services, tasks, shutdown);
    }

    /// Starts what tells the database of the sessions of this replica.
    fn start_touches(&self, services: &Services, tasks: &TaskTracker, served: &CancellationToken) {
        let (store, roster) = (self.store.clone(), services.dispatch.roster.clone());
        let metrics = services.metrics.clone();
        let pace = Pace::of(self.config.orphan_grace);
        tasks.spawn(maintenance::every(
            "sessions",
            pace.pause,
            served.clone(),
            async move || {
                roster.due(pace).await;
                metrics.sessions.set(roster.len() as f64);
                roster.touch(&store, pace.every).await?;
                Ok(false)
            },
        ));
    }

    /// Starts what looks at the queue, and keeps what was seen for the last hour.
    fn start_figures(
        &self,
        services: &Services,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        let queue = services.queue.clone();
        tasks.spawn(maintenance::every(
            "queue figures",
            FIGURES_EVERY,
            shutdown.clone(),
            async move || queue.renew().await,
        ));
        let (store, writer) = (self.store.clone(), services.dispatch.writer.clone());
        let (wakeup, queue) = (services.wakeup.clone(), services.queue.clone());
        tasks.spawn(maintenance::every(
            "sampler",
            Duration::from_secs(SAMPLE_SECONDS.unsigned_abs().into()),
            shutdown.clone(),
            async move || {
                let figures = queue.lately().await?;
                sampler::tick(&store, &writer, wakeup.replica(), &figures.stats).await
            },
        ));
    }

    /// Starts what keeps the queue and the sources in order.
    fn start_maintenance(
        &self,
        services: &Services,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        let poll = self.config.poll_interval;
        let mut rescuer = Rescuer {
            store: self.store.clone(),
            wakeup: services.wakeup.clone(),
            metrics: services.metrics.clone(),
            policy: services.dispatch.policy,
            tracer: self.tracer.clone(),
            patience: Patience {
                orphan_grace: self.config.orphan_grace,
                progress_deadline: self.config.progress_deadline,
            },
            answers_since: None,
        };
        tasks.spawn(maintenance::every(
            "rescuer",
            poll,
            shutdown.clone(),
            async move || rescuer.step().await,
        ));
        let (store, wakeup) = (self.store.clone(), services.wakeup.clone());
        let models = self.config.model_names();
        tasks.spawn(maintenance::every(
            "due jobs",
            poll,
            shutdown.clone(),
            async move || {
                if wakeup.is_awaited() && store.any_due(&models).await? {
                    wakeup.report_due();
                }
                Ok(false)
            },
        ));
        let store = self.store.clone();
        tasks.spawn(maintenance::every(
            "sweeper",
            SWEEP_EVERY,
            shutdown.clone(),
            async move || sweeper::tick(&store).await,
        ));
        let (store, metrics) = (self.store.clone(), services.metrics.clone());
        tasks.spawn(maintenance::every(
            "steps",
            poll,
            shutdown.clone(),
            async move || {
                let round = steps::tick(&store).await?;
                metrics.leftover_rows.set(round.rows_left as f64);
                metrics.forced_ranges.set(round.ranges as f64);
                Ok(round.done > 0)
            },
        ));
        let (store, most) = (self.store.clone(), self.config.max_chunks_per_job);
        tasks.spawn(maintenance::every(
            "prompts",
            poll,
            shutdown.clone(),
            async move || prompts::tick(&store, most).await,
        ));
        let (store, keep) = (self.store.clone(), self.config.job_retention);
        tasks.spawn(maintenance::every(
            "retention",
            SWEEP_EVERY,
            shutdown.clone(),
            async move || retention::tick(&store, keep).await,
        ));
        let reconciler = Reconciler {
            store: self.store.clone(),
            interval: self.config.reconcile_interval,
            tracer: self.tracer.clone(),
            max_chunks_per_job: self.config.max_chunks_per_job,
        };
        let metrics = services.metrics.clone();
        tasks.spawn(maintenance::every(
            "reconciler",
            poll,
            shutdown.clone(),
            async move || {
                let step = reconciler.tick().await?;
                metrics
                    .retries
                    .parked
                    .increment(step.unparked.queued as u64);
                metrics.sources_repaired.increment(step.repaired as u64);
                metrics.sources_failed.increment(step.failed as u64);
                Ok(step.more)
            },
        ));
    }
}

/// Everything that is served on the port.
fn routes(
    services: Services,
    pages: axum::Router,
    health: impl tonic::codegen::Service<
        ::http::Request<tonic::body::Body>,
        Response = ::http::Response<tonic::body::Body>,
        Error = std::convert::Infallible,
        Future: Send,
    > + NamedService
    + Clone
    + Send
    + Sync
    + 'static,
    reflection: bool,
    spans: &SpanLayer,
) -> anyhow::Result<Routes> {
    let web = GrpcWebLayer::new();
    let measure = Measure::new(&services.metrics)?;
    let memory = services.memory.clone();
    let admission = Admission::new(memory.clone())?;
    let sources = SourceServiceServer::new(Sources(services.clone()))
        .max_decoding_message_size(MAX_CLIENT_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_CLIENT_MESSAGE_BYTES);
    let sources = measure.named_layer(sources);
    let jobs = JobServiceServer::new(Jobs(services.clone()))
        .max_encoding_message_size(MAX_CLIENT_MESSAGE_BYTES);
    let jobs = measure.named_layer(jobs);
    let searches = SearchServiceServer::new(Searches(services.clone()))
        .max_encoding_message_size(MAX_CLIENT_MESSAGE_BYTES);
    let searches = measure.named_layer(searches);
    let scaler = measure.named_layer(ExternalScalerServer::new(Scaler(services.clone())));
    let workers = WorkerServiceServer::new(Workers(services))
        .max_decoding_message_size(MAX_WORKER_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_WORKER_MESSAGE_BYTES);
    let workers = measure.named_layer(workers);
    // What is done to a call on the wire is done here, too.
    let in_process = Routes::new(sources.clone())
        .add_service(jobs.clone())
        .add_service(searches.clone())
        .into_axum_router()
        .layer(MapResponseLayer::new(grpc::limits::relabel))
        .layer(spans.clone());
    let pages = pages.merge(grpc::json::router(in_process, memory)?);
    let routes = Routes::from(pages)
        .add_service(web.named_layer(admission.named_layer(sources)))
        .add_service(web.named_layer(admission.named_layer(jobs)))
        .add_service(web.named_layer(admission.named_layer(searches)))
        .add_service(admission.named_layer(workers))
        .add_service(scaler)
        .add_service(health);
    if !reflection {
        return Ok(routes);
    }
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(routes
        .add_service(described().build_v1()?)
        .add_service(described().build_v1alpha()?))
}

/// Keeps the health service true: serving while the database answers and the
/// process is not stopping. Ends those who watch it and drops the guard when it
/// has said that it stops and the delay after that is over.
async fn report_health(
    ready: Ready,
    mut reporter: HealthReporter,
    shutdown: CancellationToken,
    (unready, delay): (DropGuard, Duration),
) {
    let names = [
        "",
        SourceServiceServer::<Sources>::NAME,
        JobServiceServer::<Jobs>::NAME,
        SearchServiceServer::<Searches>::NAME,
        WorkerServiceServer::<Workers>::NAME,
    ];
    loop {
        let serving = tokio::select! {
            biased;
            // Also while the database is asked, which may take its time.
            () = shutdown.cancelled() => false,
            answers = ready.answers() => answers,
        };
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for name in names {
            reporter.set_service_status(name, status).await;
        }
        if shutdown.is_cancelled() && !serving {
            break;
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(HEALTH_EVERY) => {}
        }
    }
    tokio::time::sleep(delay).await;
    // Watchers wait for as long as they can; they must not hold up the stop.
    for name in names {
        reporter.clear_service_status(name).await;
    }
    drop(unready);
}
