//! Postgres goes away, crashed or silent, and comes back; nothing else is
//! restarted.

use std::{future::Future, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;
use tonic::{Code, Response, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use weir_proto::v1::{
    ClaimJobRequest, GetJobRequest, GetQueueStatsRequest, GetSourceRequest, ImportOpen,
    ImportSourceRequest, ImportSourceResponse, Item, ItemList, PutSourceRequest, SearchRequest,
    WatchSourceRequest, import_source_request::Message as Part,
    job_service_client::JobServiceClient, put_source_request::Content,
    search_service_client::SearchServiceClient, source_service_client::SourceServiceClient,
    worker_service_client::WorkerServiceClient,
};
use weir_tests::{
    PATIENCE,
    clients::http,
    cluster::{Coordinator, MODEL},
    embedder::expected_vector,
    postgres::{OwnPostgres, TestDatabase},
};

use crate::world::World;

/// How long a coordinator waits for the database here.
const SOON: [(&str, &str); 2] = [
    ("WEIR_DATABASE_TIMEOUT", "500ms"),
    ("WEIR_STATEMENT_TIMEOUT", "500ms"),
];

/// A world on a Postgres of its own, and a second coordinator.
struct Away {
    world: World,
    second: Coordinator,
    /// Dropped last.
    postgres: OwnPostgres,
}

impl Away {
    async fn start(environment: &[(&str, &str)]) -> Self {
        let postgres = OwnPostgres::start(&[]).await;
        let environment = [&SOON[..], environment].concat();
        let database = TestDatabase::create_on(&postgres).await;
        let world = World::start_on(database, &environment).await;
        let second = Coordinator::spawn(world.database.url(), &environment).await;
        Self {
            world,
            second,
            postgres,
        }
    }

    fn coordinators(&self) -> [&Coordinator; 2] {
        [&self.world.coordinator, &self.second]
    }
}

/// What a coordinator says of its health, from now on.
async fn health(coordinator: &Coordinator) -> Streaming<HealthCheckResponse> {
    let mut client = HealthClient::new(coordinator.connect().await);
    let watch = client.watch(HealthCheckRequest::default()).await;
    watch.unwrap().into_inner()
}

async fn becomes(health: &mut Streaming<HealthCheckResponse>, status: ServingStatus) {
    let said = async {
        while let Some(said) = health.next().await {
            if said.unwrap().status() == status {
                return;
            }
        }
        panic!("the health is not watched any more");
    };
    timeout(PATIENCE, said).await.unwrap();
}

async fn readyz(coordinator: &Coordinator) -> u16 {
    let answer = http()
        .get(format!("{}/readyz", coordinator.url()))
        .send()
        .await;
    answer.unwrap().status().as_u16()
}

/// The code that a call which fails ends with.
async fn code<T: std::fmt::Debug>(call: impl Future<Output = Result<Response<T>, Status>>) -> Code {
    let answer = timeout(PATIENCE, call).await.expect("a call is answered");
    answer.unwrap_err().code()
}

fn claim(wait_seconds: i64) -> ClaimJobRequest {
    ClaimJobRequest {
        worker_id: "other".into(),
        models: vec![MODEL.into()],
        max_jobs: 1,
        max_chunks: 0,
        busy_with: Vec::new(),
        wait: Some(prost_types::Duration {
            seconds: wait_seconds,
            nanos: 0,
        }),
    }
}

/// Asserts that each service says that the database is away.
async fn assert_unavailable(coordinator: &Coordinator) {
    let channel = coordinator.connect().await;
    let mut sources = SourceServiceClient::new(channel.clone());
    let mut jobs = JobServiceClient::new(channel.clone());
    let mut searches = SearchServiceClient::new(channel.clone());
    let mut workers = WorkerServiceClient::new(channel);
    let get = GetSourceRequest {
        name: "logistics".into(),
        ..GetSourceRequest::default()
    };
    let put = PutSourceRequest {
        name: "other".into(),
        content: Some(Content::Items(ItemList::default())),
        ..PutSourceRequest::default()
    };
    let watch = WatchSourceRequest {
        name: "logistics".into(),
        ..WatchSourceRequest::default()
    };
    let search = SearchRequest {
        vector: expected_vector("text")
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect(),
        model: MODEL.into(),
        ..SearchRequest::default()
    };
    let codes = [
        code(sources.get_source(get)).await,
        code(sources.put_source(put)).await,
        code(jobs.get_job(GetJobRequest { job_id: 1 })).await,
        code(jobs.get_queue_stats(GetQueueStatsRequest::default())).await,
        code(jobs.watch_source(watch)).await,
        code(searches.search(search)).await,
        code(workers.claim_job(claim(0))).await,
    ];
    assert_eq!(codes, [Code::Unavailable; 7]);
}

/// Asserts that a coordinator has neither panicked nor flooded its log.
fn assert_calm(coordinator: &Coordinator, lines_before: usize) {
    let log = coordinator.process.log();
    assert!(!log.iter().any(|line| line.contains("panicked")));
    let since = &log[lines_before..];
    assert!(since.len() < 60, "{}", since.join("\n"));
}

#[tokio::test]
async fn a_crash_of_the_database_costs_nothing_but_time() {
    let mut away = Away::start(&[]).await;
    let world = &away.world;
    let batch_time = Duration::from_millis(200);
    world.embedder.set_delay(batch_time, Duration::ZERO);
    let mut healths = Vec::new();
    for coordinator in away.coordinators() {
        healths.push(health(coordinator).await);
    }
    let job_id = world.put_logistics().await;
    let _worker = world.worker("16");
    world.embedded("logistics", 48).await;
    let lines = away.coordinators().map(|c| c.process.log().len());

    away.postgres.kill().await;
    for (coordinator, health) in away.coordinators().iter().zip(&mut healths) {
        becomes(health, ServingStatus::NotServing).await;
        assert_eq!(readyz(coordinator).await, 503);
        assert_unavailable(coordinator).await;
    }
    away.postgres.start_again().await;
    for (coordinator, health) in away.coordinators().iter().zip(&mut healths) {
        becomes(health, ServingStatus::Serving).await;
        assert_eq!(readyz(coordinator).await, 200);
    }
    let world = &away.world;
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    let chunks = world.assert_exact("logistics").await;
    assert_eq!(world.repeated(&chunks), [].into(), "results were kept");
    for (coordinator, lines) in away.coordinators().iter().zip(lines) {
        assert_calm(coordinator, lines);
    }
}

#[tokio::test]
async fn an_outage_longer_than_the_lease_takes_no_job_from_a_live_worker() {
    let lease = Duration::from_secs(2);
    let environment = [("WEIR_LEASE_DURATION", "2s"), ("WEIR_ORPHAN_GRACE", "10s")];
    let mut away = Away::start(&environment).await;
    let world = &away.world;
    let batch_time = Duration::from_millis(200);
    world.embedder.set_delay(batch_time, Duration::ZERO);
    let job_id = world.put_logistics().await;
    let _worker = world.worker("16");
    world.embedded("logistics", 48).await;

    away.postgres.kill().await;
    // Not to await anything: this is how long the database is away.
    sleep(lease * 2).await;
    away.postgres.start_again().await;
    let job = away.world.succeeded_after_outage(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    let chunks = away.world.assert_exact("logistics").await;
    assert_eq!(away.world.repeated(&chunks), [].into());
}

#[tokio::test]
async fn a_silent_database_hangs_nobody() {
    let mut away = Away::start(&[]).await;
    let mut healths = Vec::new();
    for coordinator in away.coordinators() {
        healths.push(health(coordinator).await);
    }
    let world = &away.world;
    let batch_time = Duration::from_millis(200);
    world.embedder.set_delay(batch_time, Duration::ZERO);
    let job_id = world.put_logistics().await;
    let _worker = world.worker("16");
    world.embedded("logistics", 48).await;

    away.postgres.sigstop().await;
    for (coordinator, health) in away.coordinators().iter().zip(&mut healths) {
        becomes(health, ServingStatus::NotServing).await;
        assert_eq!(readyz(coordinator).await, 503);
        assert_unavailable(coordinator).await;
    }
    away.postgres.sigcont();
    let job = away.world.succeeded_after_outage(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    let chunks = away.world.assert_exact("logistics").await;
    assert_eq!(away.world.repeated(&chunks), [].into());
}

#[tokio::test]
async fn wake_ups_come_back_with_the_database() {
    // Whoever does not hear of it sees nothing for hours.
    let mut away = Away::start(&[("WEIR_POLL_INTERVAL", "1h")]).await;
    away.world
        .put_items("notes", [("a".into(), "text".into())])
        .await;
    away.postgres.kill().await;
    for coordinator in away.coordinators() {
        let event = "Notifications from the database have stopped; polling goes on.";
        coordinator.process.wait_for_event(event).await;
    }
    away.postgres.start_again().await;
    for coordinator in away.coordinators() {
        let event = "Notifications from the database are back.";
        coordinator.process.wait_for_event(event).await;
    }

    let mut jobs = JobServiceClient::new(away.second.connect().await);
    let request = WatchSourceRequest {
        name: "notes".into(),
        ..WatchSourceRequest::default()
    };
    let mut watch = jobs.watch_source(request).await.unwrap().into_inner();
    watch.message().await.unwrap().expect("the present state");
    // Through the other coordinator.
    away.world
        .put_items("notes", [("a".into(), "another".into())])
        .await;
    let changed = timeout(PATIENCE, watch.message()).await.unwrap();
    let source = changed.unwrap().unwrap().source.unwrap();
    assert_eq!(source.revision, 2);
    let mut workers = WorkerServiceClient::new(away.second.connect().await);
    let leases = workers.claim_job(claim(60)).await.unwrap().into_inner();
    assert_eq!(leases.leases.len(), 1);
    let mut waiting = Box::pin(workers.claim_job(claim(60)));
    // In this order: the claim is sent, and then there is something to claim.
    assert!(futures::poll!(&mut waiting).is_pending());
    away.world
        .put_items("more", [("a".into(), "text".into())])
        .await;
    let leases = timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(leases.into_inner().leases.len(), 1);
}

/// Sends an import part by part.
struct Import {
    parts: tokio::sync::mpsc::Sender<ImportSourceRequest>,
    answer: tokio::task::JoinHandle<Result<Response<ImportSourceResponse>, Status>>,
}

impl Import {
    async fn open(channel: Channel, name: &str) -> Self {
        let (parts, receiver) = tokio::sync::mpsc::channel(8);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let answer = tokio::spawn(async move {
            SourceServiceClient::new(channel)
                .import_source(stream)
                .await
        });
        let import = Self { parts, answer };
        let open = ImportOpen {
            name: name.to_owned(),
            ..ImportOpen::default()
        };
        import.send(Part::Open(open)).await;
        import
    }

    async fn send(&self, part: Part) {
        let message = Some(part);
        let sent = self.parts.send(ImportSourceRequest { message }).await;
        sent.unwrap();
    }

    async fn items(&self, numbers: std::ops::Range<usize>) {
        let items = numbers.map(|n| Item {
            item_id: format!("i{n:03}"),
            text: format!("text {n}"),
            metadata: None,
        });
        let items = items.collect();
        self.send(Part::Items(ItemList { items })).await;
    }

    async fn end(self) -> Result<Response<ImportSourceResponse>, Status> {
        drop(self.parts);
        timeout(PATIENCE, self.answer).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn an_import_that_a_crash_cut_in_two_is_not_taken_for_the_whole() {
    let mut away = Away::start(&[]).await;
    let world = &away.world;
    let old = [("old".to_owned(), "text".to_owned())];
    world.put_items("notes", old).await;
    let import = Import::open(world.coordinator.connect().await, "notes").await;
    import.items(0..50).await;
    let staged = async {
        while world.rows("import_items").await < 50 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, staged).await.unwrap();
    let mut health = health(&world.coordinator).await;
    away.postgres.kill().await;
    becomes(&mut health, ServingStatus::NotServing).await;
    away.postgres.start_again().await;
    becomes(&mut health, ServingStatus::Serving).await;
    let world = &away.world;
    assert_eq!(world.rows("import_items").await, 0, "a crash empties it");

    import.items(50..60).await;
    let error = import.end().await.unwrap_err();
    assert_eq!(error.code(), Code::Aborted, "{error:?}");
    assert!(error.message().contains("begin the import again"));
    assert_eq!(world.source("notes").await.source.unwrap().items, 1);

    let import = Import::open(world.coordinator.connect().await, "notes").await;
    import.items(0..60).await;
    let answer = import.end().await.unwrap().into_inner();
    assert_eq!(answer.source.unwrap().items, 60);
}
