//! A new version goes out: every coordinator and every worker is replaced, one
//! after the other, while clients write and watch. As in a Deployment, the next
//! one takes connections before the last is told to stop, behind a balancer
//! that leads new connections to those that are ready.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures::future::join_all;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use weir_proto::v1::{
    WatchSourceRequest, job_service_client::JobServiceClient,
    source_service_client::SourceServiceClient,
};
use weir_tests::{
    cluster::{Coordinator, Worker},
    embedder::FakeEmbedder,
    invariants::broken_invariants,
    postgres::TestDatabase,
    proxy::{FaultProxy, Target},
};

use crate::clients::{item, put_items, until};

/// Clients, each with one source after the other.
const CLIENTS: usize = 4;
/// Items of a source: three batches.
const ITEMS: usize = 24;
/// How often a call is made before its client gives up.
const TRIES: u32 = 5;

/// How long a client waits before its second try; double before each next one,
/// as gRPC's own retries do.
const BACKOFF: Duration = Duration::from_millis(100);

/// The delay is longer than a client has patience.
const COORDINATOR: [(&str, &str); 2] = [("WEIR_DRAIN_DELAY", "3s"), ("WEIR_DRAIN_TIMEOUT", "20s")];
const WORKER: [(&str, &str); 1] = [("WEIR_BATCH_SIZE", "8")];

/// The processes of both Deployments.
struct Cluster {
    database: TestDatabase,
    embedder: FakeEmbedder,
    /// The Service before the coordinators.
    balancer: FaultProxy,
    coordinators: Vec<Coordinator>,
    workers: Vec<Worker>,
}

impl Cluster {
    async fn start() -> Self {
        let embedder = FakeEmbedder::start().await;
        embedder.set_delay(Duration::from_millis(50), Duration::ZERO);
        let mut cluster = Self {
            database: TestDatabase::create().await,
            embedder,
            balancer: FaultProxy::start([]).await,
            coordinators: Vec::new(),
            workers: Vec::new(),
        };
        for _ in 0..2 {
            cluster.add_coordinator().await;
        }
        for _ in 0..2 {
            cluster.add_worker().await;
        }
        cluster
    }

    async fn add_coordinator(&mut self) {
        let coordinator = Coordinator::spawn(self.database.url(), &COORDINATOR).await;
        self.coordinators.push(coordinator);
        self.balance();
    }

    async fn add_worker(&mut self) {
        let worker = Worker::spawn(&self.balancer.url(), &self.embedder.url(), &WORKER);
        worker.process.wait_for_event("The embedder answers.").await;
        self.workers.push(worker);
    }

    /// Leads new connections to all coordinators that are not told to stop.
    fn balance(&self) {
        let targets = self.coordinators.iter();
        let targets: Vec<_> = targets.map(|one| Target::Tcp(one.address())).collect();
        self.balancer.set_targets(targets);
    }

    /// Puts one that is new in the place of the oldest coordinator.
    async fn replace_coordinator(&mut self) {
        self.add_coordinator().await;
        let mut old = self.coordinators.remove(0);
        old.process.sigterm();
        self.balance();
        assert_eq!(old.process.wait().await.code(), Some(0));
        let log = old.process.log().join("\n");
        assert!(!log.contains("they are cut off"), "{log}");
    }

    /// Puts one that is new in the place of the oldest worker.
    async fn replace_worker(&mut self) {
        self.add_worker().await;
        let mut old = self.workers.remove(0);
        old.process.sigterm();
        assert_eq!(old.process.wait().await.code(), Some(0));
    }
}

/// How many sources the clients have put that are embedded.
#[derive(Default)]
struct Done(AtomicUsize);

impl Done {
    fn sources(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Makes a call, again where that is what it answers. Panics when that
    /// does not help, or is not for another try.
    async fn retried<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> T {
        for tried in 0..TRIES {
            match call().await {
                Ok(answer) => return answer,
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
            }
            sleep(BACKOFF * 2_u32.pow(tried)).await;
        }
        panic!("a call failed {TRIES} times in a row");
    }

    /// Puts a source and watches it until it is embedded, over and over.
    async fn write(&self, client: usize, channel: Channel, stop: &CancellationToken) {
        let sources = SourceServiceClient::new(channel.clone());
        let jobs = JobServiceClient::new(channel);
        let mut number = 0;
        while !stop.is_cancelled() {
            let name = format!("source-{client}-{number}");
            let text = |n| item(&format!("{n:02}"), &format!("text {n} of {name}"));
            let put = put_items(&name, (0..ITEMS).map(text).collect());
            Self::retried(async || sources.clone().put_source(put.clone()).await).await;
            let watch = WatchSourceRequest {
                name: name.clone(),
                until_idle: true,
                ..WatchSourceRequest::default()
            };
            Self::retried(async || {
                let states = jobs.clone().watch_source(watch.clone()).await?;
                let mut states = states.into_inner();
                while states.message().await?.is_some() {}
                Ok(())
            })
            .await;
            self.0.fetch_add(1, Ordering::SeqCst);
            number += 1;
        }
    }
}

#[tokio::test]
async fn a_new_version_goes_out_under_load() {
    let mut cluster = Cluster::start().await;
    let (done, stop) = (Done::default(), CancellationToken::new());
    let endpoint = Endpoint::from_shared(cluster.balancer.url()).unwrap();
    let clients = (0..CLIENTS).map(|n| done.write(n, endpoint.connect_lazy(), &stop));
    let roll = async {
        for _ in 0..2 {
            for place in ["coordinator", "worker"] {
                // It happens in the middle of work.
                let before = done.sources();
                until(async || done.sources() >= before + CLIENTS).await;
                match place {
                    "coordinator" => cluster.replace_coordinator().await,
                    _ => cluster.replace_worker().await,
                }
            }
        }
        let before = done.sources();
        until(async || done.sources() >= before + CLIENTS).await;
        stop.cancel();
    };
    tokio::join!(join_all(clients), roll);

    let sources = done.sources();
    assert_eq!(
        broken_invariants(cluster.database.pool()).await.unwrap(),
        []
    );
    let sql = "SELECT (SELECT count(*) FROM weir.embeddings),
                      (SELECT count(*) FROM weir.jobs WHERE state <> 'succeeded' OR attempt > 0)";
    let (vectors, troubled): (i64, i64) = sqlx::query_as(sql)
        .fetch_one(cluster.database.pool())
        .await
        .unwrap();
    assert_eq!(vectors, (sources * ITEMS) as i64);
    assert_eq!(troubled, 0, "a replacement is no failure of a job");
    // Every drained worker persisted what it had asked for.
    let mut received = cluster.embedder.received();
    received.remove("probe");
    received.retain(|_, times| *times > 1);
    assert_eq!(received, [].into());
}
