//! The cluster under test: real processes, a proxy before each thing that they
//! talk to, and what it takes to hurt and heal them.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures::future::join_all;
use rand::RngExt as _;
use tokio::time;
use weir_tests::{
    PATIENCE,
    cluster::{MODEL, Process, event_in},
    embedder::{FakeEmbedder, Rude},
    proxy::{Cut, FaultProxy, Target},
};

use crate::{
    clients::name_of,
    hot,
    journal::{Event, Journal},
    pen::POISON,
    schedule::{self, CLIENTS, COORDINATORS, Fault, Place, Rudeness, Step, WORKERS},
    servers::{Servers, lock_source},
};

/// Calls that a worker makes at the same time.
const CALLS: usize = 2;
/// Texts in a batch at most.
const BATCH: usize = 8;
/// Texts in a worker's hands at most: those of its calls and of one more, and as many
/// that were embedded and are not acknowledged.
pub(crate) const IN_HAND: usize = 2 * (CALLS + 1) * BATCH;

/// How long something that was asked to end may take.
const DRAIN: Duration = Duration::from_secs(30);

const COORDINATOR: [(&str, &str); 19] = [
    ("WEIR_MODELS", MODEL),
    ("WEIR_LEASE_DURATION", "3s"),
    ("WEIR_ORPHAN_GRACE", "1s"),
    ("WEIR_POLL_INTERVAL", "100ms"),
    ("WEIR_BACKOFF_BASE", "100ms"),
    ("WEIR_BACKOFF_CAP", "1s"),
    // Nothing innocent may fail, however often its workers die.
    ("WEIR_MAX_ATTEMPTS", "1000"),
    ("WEIR_MAX_CHUNKS_PER_JOB", "40"),
    ("WEIR_MAX_BATCH_SIZE", "8"),
    ("WEIR_CHUNK_SIZE", "200"),
    ("WEIR_CHUNK_OVERLAP", "40"),
    ("WEIR_DRAIN_DELAY", "200ms"),
    ("WEIR_DRAIN_TIMEOUT", "3s"),
    ("WEIR_DATABASE_CONNECTIONS", "8"),
    ("WEIR_DATABASE_TIMEOUT", "2s"),
    ("WEIR_STATEMENT_TIMEOUT", "3s"),
    // It looks all the time, and must find nothing.
    ("WEIR_RECONCILE_INTERVAL", "1s"),
    ("WEIR_LOG_FORMAT", "json"),
    ("WEIR_LOG", "info"),
];

const WORKER: [(&str, &str); 8] = [
    ("WEIR_MODEL", MODEL),
    ("WEIR_EMBEDDER", "ollama"),
    ("WEIR_BATCH_SIZE", "8"),
    ("WEIR_EMBEDDER_CONCURRENCY", "2"),
    ("WEIR_EMBED_TIMEOUT", "8s"),
    ("WEIR_DRAIN_TIMEOUT", "3s"),
    ("WEIR_LOG_FORMAT", "json"),
    ("WEIR_LOG", "info"),
];

/// What a process is started from, as often as it must be.
#[derive(Debug)]
struct Member {
    place: Place,
    program: &'static str,
    environment: Vec<(&'static str, String)>,
    process: Option<Process>,
    starts: usize,
    /// What its earlier lives said.
    said: Vec<String>,
}

/// Everything that a run is made of.
#[derive(Debug)]
pub(crate) struct Cluster {
    journal: Journal,
    seed: u64,
    postgres: tokio::sync::Mutex<Servers>,
    coordinators: Vec<tokio::sync::Mutex<Member>>,
    workers: Vec<tokio::sync::Mutex<Member>>,
    worker_links: Vec<FaultProxy>,
    embedder_links: Vec<FaultProxy>,
    postgres_links: Vec<FaultProxy>,
    /// From the harness to Postgres; nothing befalls it.
    postgres_link: FaultProxy,
    pub(crate) client_links: Vec<FaultProxy>,
    /// From the client of the hot source to the coordinators; nothing befalls it.
    pub(crate) hot_link: FaultProxy,
    pub(crate) embedder: FakeEmbedder,
    pub(crate) worker_kills: AtomicUsize,
}

impl Cluster {
    /// Starts it all, and returns when it is up.
    pub(crate) async fn start(journal: &Journal, seed: u64) -> Self {
        let postgres = Servers::start().await;
        let postgres_link = FaultProxy::start([postgres.target()]).await;
        let embedder = FakeEmbedder::start().await;
        embedder.set_delay(Duration::from_millis(200), Duration::from_millis(20));
        let at_embedder = embedder.url().replace("http://", "").parse();
        let at_embedder = Target::Tcp(at_embedder.expect("its URL is an address"));
        let (mut postgres_links, mut coordinators, mut targets) = (vec![], vec![], vec![]);
        for n in 0..COORDINATORS {
            let link = FaultProxy::start([postgres.target()]).await;
            let database = database_url(&link);
            postgres_links.push(link);
            let listen = free_port();
            targets.push(Target::Tcp(listen));
            let mut coordinator =
                Member::new(Place::Coordinator(n), "weir-coordinator", &COORDINATOR);
            coordinator.set("WEIR_DATABASE_URL", database);
            coordinator.set("WEIR_LISTEN", listen.to_string());
            coordinators.push(tokio::sync::Mutex::new(coordinator));
        }
        let (mut worker_links, mut embedder_links, mut workers) = (vec![], vec![], vec![]);
        for n in 0..WORKERS {
            let link = FaultProxy::start(targets.clone()).await;
            let mut worker = Member::new(Place::Worker(n), "weir-worker", &WORKER);
            worker.set("WEIR_COORDINATOR", link.url());
            worker_links.push(link);
            let link = FaultProxy::start([at_embedder.clone()]).await;
            worker.set("WEIR_EMBEDDER_URL", link.url());
            embedder_links.push(link);
            workers.push(tokio::sync::Mutex::new(worker));
        }
        let mut client_links = vec![];
        for _ in 0..CLIENTS {
            client_links.push(FaultProxy::start(targets.clone()).await);
        }
        let hot_link = FaultProxy::start(targets).await;
        let cluster = Self {
            journal: journal.clone(),
            seed,
            postgres: tokio::sync::Mutex::new(postgres),
            coordinators,
            workers,
            worker_links,
            embedder_links,
            postgres_links,
            postgres_link,
            client_links,
            hot_link,
            embedder,
            worker_kills: AtomicUsize::new(0),
        };
        cluster.be_rude(None, 0);
        for member in cluster.coordinators.iter().chain(&cluster.workers) {
            member.lock().await.start(journal).await;
        }
        cluster
    }

    /// The database, whichever server it is, past everything that is hurt.
    pub(crate) fn database_url(&self) -> String {
        database_url(&self.postgres_link)
    }

    /// Lets every place suffer what the seed has for it, and heals them.
    pub(crate) async fn suffer_all(&self, length: Duration) {
        let began = self.journal.elapsed();
        let steps = |place| schedule::steps(self.seed, place, length);
        let places = Place::all().into_iter();
        join_all(places.map(|place| self.suffer(place, steps(place), began))).await;
    }

    async fn suffer(&self, place: Place, steps: Vec<Step>, began: Duration) {
        for step in steps {
            time::sleep((began + step.at).saturating_sub(self.journal.elapsed())).await;
            let Step { fault, lasts, .. } = step;
            self.journal
                .say(&format!("{place}: {}", describe(fault, lasts)));
            let from = SystemTime::now();
            match place {
                Place::Coordinator(n) => self.hurt_process(&self.coordinators[n], step).await,
                Place::Worker(n) => self.hurt_process(&self.workers[n], step).await,
                Place::Node(n) => self.lose_node(n, step).await,
                Place::Postgres => self.hurt_postgres(step).await,
                Place::Source => self.lock_source(step).await,
                Place::Embedder => {
                    if let Fault::Rude(rudeness, of_hundred) = fault {
                        self.be_rude(Some(rudeness), of_hundred);
                    }
                    time::sleep(lasts).await;
                    self.be_rude(None, 0);
                }
                Place::WorkerLink(n) => hurt_link(&self.worker_links[n], step).await,
                Place::EmbedderLink(n) => hurt_link(&self.embedder_links[n], step).await,
                Place::PostgresLink(n) => hurt_link(&self.postgres_links[n], step).await,
                Place::ClientLink(n) => hurt_link(&self.client_links[n], step).await,
            }
            let to = SystemTime::now();
            self.journal.note(Event {
                place,
                fault,
                from,
                to,
            });
        }
    }

    async fn hurt_process(&self, member: &tokio::sync::Mutex<Member>, step: Step) {
        let mut member = member.lock().await;
        member.expect_alive(&self.journal).await;
        if matches!((member.place, step.fault), (Place::Worker(_), Fault::Kill)) {
            self.worker_kills.fetch_add(1, Ordering::SeqCst);
        }
        member.hurt(step, &self.journal).await;
    }

    /// A coordinator and its workers die at the same moment.
    async fn lose_node(&self, n: usize, step: Step) {
        let mut members = vec![self.coordinators[n].lock().await];
        for worker in self.workers.iter().skip(n).step_by(COORDINATORS) {
            members.push(worker.lock().await);
            self.worker_kills.fetch_add(1, Ordering::SeqCst);
        }
        for member in &mut members {
            member.expect_alive(&self.journal).await;
        }
        join_all(members.iter_mut().map(|member| member.kill())).await;
        time::sleep(step.lasts).await;
        join_all(members.iter_mut().map(|member| member.start(&self.journal))).await;
    }

    async fn hurt_postgres(&self, step: Step) {
        let mut ways: Vec<&FaultProxy> = self.postgres_links.iter().collect();
        ways.push(&self.postgres_link);
        self.postgres.lock().await.hurt(step, &ways).await;
    }

    async fn lock_source(&self, step: Step) {
        let name = match step.fault {
            Fault::Lock(Some((client, source))) => name_of(client, source),
            _ => hot::SOURCE.to_owned(),
        };
        // Where the database is away, nothing is locked, or not for long.
        if let Err(error) = lock_source(&self.database_url(), &name, step.lasts).await {
            self.journal.say(&format!("{name} was not locked: {error}"));
        }
    }

    fn be_rude(&self, rudeness: Option<Rudeness>, of_hundred: u8) {
        let random = Mutex::new(schedule::source(self.seed, &self.journal.events().len()));
        self.embedder.rule(move |texts| {
            if texts.iter().any(|text| text.contains(POISON)) {
                let body = r#"{"error": "the input is not digestible"}"#;
                return Some(Rude::Status(400, None, body.to_owned()));
            }
            let mut random = random.lock().unwrap_or_else(PoisonError::into_inner);
            let unlucky = random.random_range(0..100) < of_hundred;
            rudeness.filter(|_| unlucky).map(rude)
        });
    }

    /// Checks that everything lives, also what suffered nothing in the end.
    pub(crate) async fn expect_alive(&self) {
        for member in self.coordinators.iter().chain(&self.workers) {
            member.lock().await.expect_alive(&self.journal).await;
        }
    }

    /// Writes what the processes said to a folder.
    pub(crate) async fn keep_logs(&self, folder: &Path) -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        for member in self.coordinators.iter().chain(&self.workers) {
            let member = member.lock().await;
            let now = member
                .process
                .as_ref()
                .map(Process::log)
                .unwrap_or_default();
            let lines = [&member.said[..], &now].concat().join("\n");
            fs::write(folder.join(format!("{}.log", member.place)), lines)?;
        }
        Ok(())
    }
}

impl Member {
    fn new(
        place: Place,
        program: &'static str,
        environment: &[(&'static str, &'static str)],
    ) -> Self {
        let owned = |(name, value): &(&'static str, &str)| (*name, (*value).to_owned());
        Self {
            place,
            program,
            environment: environment.iter().map(owned).collect(),
            process: None,
            starts: 0,
            said: Vec::new(),
        }
    }

    fn set(&mut self, name: &'static str, value: String) {
        self.environment.push((name, value));
    }

    /// Starts it, again and again until it is up, as whoever runs it would: a
    /// coordinator ends at its start when it cannot reach the database.
    async fn start(&mut self, journal: &Journal) {
        let up = match self.place {
            Place::Coordinator(_) => "listening",
            _ => "The worker started.",
        };
        loop {
            self.bury();
            self.starts += 1;
            // Each life has a name of its own, under which it claims and embeds.
            let name = format!("{}.{}", self.place, self.starts);
            let mut environment: Vec<(&str, &str)> = Vec::new();
            let embedder = self
                .value("WEIR_EMBEDDER_URL")
                .map(|url| format!("{url}/{name}"));
            environment.extend(
                self.environment
                    .iter()
                    .map(|(name, value)| (*name, value.as_str())),
            );
            if let Some(embedder) = &embedder {
                environment.push(("WEIR_EMBEDDER_URL", embedder));
                environment.push(("WEIR_WORKER_ID", &name));
            }
            let process = Process::spawn(self.program, &[], &environment);
            let started = process.find_line(|line| event_in(line, up));
            let started = time::timeout(PATIENCE, started).await;
            self.process = Some(process);
            match started {
                Ok(Some(_)) => return,
                // It said why, and is started again.
                Ok(None) => time::sleep(Duration::from_millis(200)).await,
                Err(_) => {
                    journal.find(format!("{} did not start", self.place));
                    return;
                }
            }
        }
    }

    fn value(&self, name: &str) -> Option<&str> {
        let found = self.environment.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Keeps what the process of before said.
    fn bury(&mut self) {
        if let Some(process) = self.process.take() {
            self.said.extend(process.log());
            self.said
                .push(format!("--- the end of life {}", self.starts));
        }
    }

    async fn hurt(&mut self, step: Step, journal: &Journal) {
        let Some(process) = &mut self.process else {
            return;
        };
        match step.fault {
            Fault::Stop => {
                process.sigstop();
                time::sleep(step.lasts).await;
                process.sigcont();
                return;
            }
            Fault::Terminate => {
                process.sigterm();
                let ended = time::timeout(DRAIN, process.wait()).await;
                if !matches!(ended, Ok(status) if status.success()) {
                    journal.find(format!("{} did not end in order: {ended:?}", self.place));
                }
            }
            _ => process.sigkill().await,
        }
        time::sleep(step.lasts).await;
        self.start(journal).await;
    }

    async fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.sigkill().await;
        }
    }

    async fn expect_alive(&mut self, journal: &Journal) {
        let ended = self.process.as_mut().and_then(Process::ended);
        if let Some(status) = ended {
            journal.find(format!("{} ended by itself: {status}", self.place));
            self.start(journal).await;
        }
    }
}

async fn hurt_link(link: &FaultProxy, step: Step) {
    match step.fault {
        Fault::Cut(how) => link.cut(how),
        Fault::Refuse => {
            link.refuse();
            link.cut(Cut::Reset);
        }
        Fault::Delay(by) => link.delay(by),
        Fault::Silence(what) | Fault::SilenceThenCut(what) => link.silence(what),
        Fault::Kill
        | Fault::Terminate
        | Fault::Stop
        | Fault::Promote
        | Fault::Lock(_)
        | Fault::Rude(..) => {}
    }
    time::sleep(step.lasts).await;
    if matches!(step.fault, Fault::SilenceThenCut(_)) {
        link.cut(Cut::Reset);
    }
    link.resume();
}

fn database_url(link: &FaultProxy) -> String {
    format!(
        "postgres://postgres@{}/weir?sslmode=disable",
        link.address()
    )
}

fn rude(rudeness: Rudeness) -> Rude {
    let status = |code, body: &str| Rude::Status(code, None, body.to_owned());
    match rudeness {
        Rudeness::Busy => Rude::Status(429, Some("1".to_owned()), "slow down".to_owned()),
        Rudeness::Broken => status(500, "it broke"),
        Rudeness::Away => status(503, "loading"),
        Rudeness::WrongCount => Rude::WrongCount,
        Rudeness::CutOff => Rude::CutOff,
        Rudeness::Silent => Rude::Hang,
    }
}

fn describe(fault: Fault, lasts: Duration) -> String {
    let kind = fault.kind();
    let of = match fault {
        Fault::Delay(by) => format!(" by {} ms", by.as_millis()),
        Fault::Silence(what) | Fault::SilenceThenCut(what) => format!(" {what:?}"),
        Fault::Lock(Some((client, source))) => format!(" {}", name_of(client, source)),
        Fault::Rude(_, of_hundred) => format!(" to {of_hundred} of 100 calls"),
        _ => String::new(),
    };
    format!("{kind}{of}, {} ms", lasts.as_millis())
}

/// An address that was free a moment ago, for a coordinator to keep. It is none
/// that the system gives to connections: one of these could take it while its
/// coordinator is dead.
fn free_port() -> SocketAddr {
    loop {
        let port = rand::rng().random_range(10_000..30_000);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener
                .local_addr()
                .expect("a bound socket has an address");
        }
    }
}
