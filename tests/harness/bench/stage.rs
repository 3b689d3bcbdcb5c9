//! What is measured, on the stage: a Postgres, a coordinator, and workers.

use std::{env, fs, process::Stdio, time::Duration};

use crate::{
    cluster::Coordinator,
    postgres::{TestDatabase, runtime_dir},
};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::process::{Child, Command};
use weir_cli::{
    child::{Signal, die_with_parent},
    postgres::{EmbeddedPostgres, Options},
};

use super::report::Report;

/// Settings of the server: it waits for the disk with each commit, as one does
/// that is not to lose anything.
const SETTINGS: [(&str, &str); 8] = [
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "1GB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "15min"),
    ("max_connections", "200"),
    ("track_commit_timestamp", "on"),
    ("autovacuum_naptime", "10s"),
];

/// Settings of the workers, the same for a backlog and for single jobs.
const WORKER: [&str; 2] = ["--batch-size=256", "--batch-tokens=1000000"];

/// A setting as it is given, `name=value`.
pub fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The usual settings of the server, with others beside or instead of them.
pub fn settings(others: &[(String, String)]) -> Vec<(String, String)> {
    let usual = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let usual = usual
        .into_iter()
        .filter(|(name, _)| others.iter().all(|(other, _)| other != name));
    usual.chain(others.iter().cloned()).collect()
}

/// The machine and the settings of the server.
pub fn circumstances(settings: &[(String, String)]) -> Vec<(String, String)> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let cpu = cpu.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let machine = [("machine".to_owned(), format!("{cores} cores of {cpu}"))];
    machine
        .into_iter()
        .chain(settings.iter().cloned())
        .collect()
}

/// A Postgres of the benchmark's own.
#[derive(Debug)]
pub struct Server {
    server: EmbeddedPostgres,
    /// Whether it counts its statements.
    pub statements: bool,
}

impl Server {
    /// Starts it with these settings, to count its statements or not.
    pub fn start(settings: &[(String, String)], statements: bool) -> Self {
        let counting = [
            ("shared_preload_libraries", "pg_stat_statements"),
            ("pg_stat_statements.track_planning", "on"),
        ];
        let counting = counting.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let counting = counting.into_iter().filter(|_| statements);
        let settings = settings.iter().cloned().chain(counting);
        let server = EmbeddedPostgres::start(&Options {
            runtime_dir: runtime_dir(),
            data_dir: None,
            settings: settings.collect(),
        });
        Self {
            server: server.expect("the embedded Postgres starts; `make runtime` gets it"),
            statements,
        }
    }

    /// An empty database on it.
    pub async fn database(&self) -> TestDatabase {
        TestDatabase::create_at(&self.server.url()).await
    }

    /// CPU time of all its processes, those that ended included.
    pub fn cpu(&self) -> Duration {
        let parent = self.server.pid().expect("the server runs");
        let mut ticks = stat(parent).map_or(0, |stat| stat.own + stat.waited_for);
        for pid in fs::read_dir("/proc").expect("Linux").flatten() {
            let pid = pid.file_name().to_string_lossy().parse().unwrap_or(0);
            ticks += stat(pid)
                .filter(|it| it.parent == parent)
                .map_or(0, |it| it.own);
        }
        from_ticks(ticks)
    }
}

/// A coordinator with an empty database.
#[derive(Debug)]
pub struct Stage {
    /// The database.
    pub database: TestDatabase,
    /// The coordinator.
    pub coordinator: Coordinator,
    workers: Vec<Child>,
}

impl Stage {
    /// Starts a coordinator with these variables on an empty database.
    pub async fn set(server: &Server, environment: &[(&str, &str)]) -> Self {
        let database = server.database().await;
        let quiet = [("WEIR_LOG", "warn,weir_coordinator::server=info")];
        let environment = [&quiet, environment].concat();
        let coordinator = Coordinator::spawn(database.url(), &environment).await;
        Self {
            database,
            coordinator,
            workers: Vec::new(),
        }
    }

    /// Connections to the database.
    pub fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    /// Starts a worker whose embedder makes such vectors in this time. `flags`
    /// go beyond the settings that all have.
    pub fn worker(&mut self, dimension: usize, delay: Duration, flags: &[&str]) {
        let mut command = std::process::Command::new(env::current_exe().expect("a program"));
        command
            .args(["worker", "--dimension", &dimension.to_string()])
            .args(["--delay", &humantime::format_duration(delay).to_string()])
            .args(["--", "--log=warn", "--coordinator", &self.coordinator.url()])
            .args(WORKER.iter().filter(|common| {
                let name = common.split('=').next();
                flags.iter().all(|flag| flag.split('=').next() != name)
            }))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        die_with_parent(&mut command, Signal::KILL);
        let child = Command::from(command).kill_on_drop(true).spawn();
        self.workers.push(child.expect("this program starts again"));
    }

    /// CPU time and peak memory of the coordinator, and of all workers.
    pub fn usage(&self) -> (Usage, Usage) {
        let coordinator = usage(self.coordinator.process.pid());
        let workers = self.workers.iter().filter_map(Child::id).map(usage);
        let workers = workers.fold(Usage::default(), |sum, one| Usage {
            cpu: sum.cpu + one.cpu,
            peak_mib: sum.peak_mib.max(one.peak_mib),
        });
        (coordinator, workers)
    }

    /// One number of the database.
    pub async fn ask(&self, sql: impl Into<String>) -> f64 {
        let sql = AssertSqlSafe(format!("SELECT ({})::float8", sql.into()));
        let answer: Option<f64> = sqlx::query_scalar(sql)
            .fetch_one(self.pool())
            .await
            .expect("a sound question");
        answer.unwrap_or_default()
    }

    /// Waits until no job is open. Asks rarely: the question costs time, too.
    pub async fn done(&self) {
        while self
            .ask("SELECT count(*) FROM weir.jobs WHERE state IN ('queued', 'running')")
            .await
            > 0.0
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// CPU time that each part had used at some moment.
#[derive(Debug)]
pub struct Cpu {
    postgres: Duration,
    coordinator: Duration,
    workers: Duration,
}

impl Cpu {
    /// What they have used by now.
    pub fn of(server: &Server, stage: &Stage) -> Self {
        let (coordinator, workers) = stage.usage();
        Self {
            postgres: server.cpu(),
            coordinator: coordinator.cpu,
            workers: workers.cpu,
        }
    }

    /// Notes what each has used since, by one of so many pieces of work.
    pub fn note_since(
        &self,
        server: &Server,
        stage: &Stage,
        what: &str,
        (unit, pieces): (&'static str, f64),
        report: &mut Report,
    ) {
        let now = Self::of(server, stage);
        for (of, before, now) in [
            ("postgres", self.postgres, now.postgres),
            ("coordinator", self.coordinator, now.coordinator),
            ("worker", self.workers, now.workers),
        ] {
            let micros = now.saturating_sub(before).as_secs_f64() * 1e6 / pieces;
            report.note(format!("{what}: CPU of {of}"), unit, micros);
        }
    }
}

/// What a process used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// CPU time.
    pub cpu: Duration,
    /// Most memory that it had at a time.
    pub peak_mib: f64,
}

fn usage(pid: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_kib = peak.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
    Usage {
        cpu: from_ticks(stat(pid).map_or(0, |stat| stat.own)),
        peak_mib: peak_kib.unwrap_or_default() / 1024.0,
    }
}

struct Stat {
    parent: u32,
    own: u64,
    waited_for: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        own: number(11)? + number(12)?,
        waited_for: number(13)? + number(14)?,
    })
}

fn from_ticks(ticks: u64) -> Duration {
    // USER_HZ, which every Linux that matters has at 100.
    Duration::from_millis(ticks * 10)
}
