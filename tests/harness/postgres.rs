//! A fresh database for each test, or a whole server, to be crashed.

use std::{env, fs, path::PathBuf, str::FromStr as _, sync::OnceLock, thread, time::Duration};

use rand::RngExt as _;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tempfile::TempDir;
use tokio::{task, time};
use weir_cli::postgres::{EmbeddedPostgres, Options};

use crate::PATIENCE;

/// Connections of a test's own pool. Servers are shared by many tests.
const POOL_SIZE: u32 = 8;

/// An empty database, dropped with this value, with the connections that are
/// open to it.
#[derive(Debug)]
pub struct TestDatabase {
    url: String,
    pool: PgPool,
    name: String,
    admin: PgConnectOptions,
}

impl TestDatabase {
    /// Creates a database: on the server of `WEIR_DATABASE_URL`, which must
    /// have pgvector and let the user create databases, or where that is not
    /// set on a Postgres that is embedded in this process.
    pub async fn create() -> Self {
        Self::create_with(admin_options()).await
    }

    /// Creates a database on a server of the test's own.
    pub async fn create_on(server: &OwnPostgres) -> Self {
        Self::create_at(&server.url()).await
    }

    /// Creates a database on a server that is there, whose superuser the URL
    /// names.
    pub async fn create_at(server: &str) -> Self {
        Self::create_with(options(server)).await
    }

    async fn create_with(admin: PgConnectOptions) -> Self {
        let name = format!("weir_test_{:016x}", rand::rng().random::<u64>());
        let mut connection = admin
            .connect()
            .await
            .expect("the test server takes connections");
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await
            .expect("a database can be created");
        connection.close().await.expect("the connection closes");
        let options = admin.clone().database(&name);
        let pool = PgPoolOptions::new()
            .max_connections(POOL_SIZE)
            .connect_with(options.clone())
            .await
            .expect("the new database takes connections");
        Self {
            url: options.to_url_lossy().into(),
            pool,
            name,
            admin,
        }
    }

    /// The database's URL, as coordinators take it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Connections to the database.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (admin, name) = (self.admin.clone(), std::mem::take(&mut self.name));
        // This thread may be running a runtime already, which cannot be nested.
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(drop_database(&admin, &name))
        })
        .join();
        if !matches!(dropped, Ok(Ok(()))) {
            eprintln!("A test database was left behind: {dropped:?}");
        }
    }
}

async fn drop_database(admin: &PgConnectOptions, name: &str) -> anyhow::Result<()> {
    let mut connection: PgConnection = admin.connect().await?;
    // Processes of the test may still be connected.
    let sql = format!("DROP DATABASE {name} WITH (FORCE)");
    sqlx::query(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await?;
    Ok(connection.close().await?)
}

/// Where databases are created.
fn admin_options() -> PgConnectOptions {
    match env::var("WEIR_DATABASE_URL") {
        Ok(url) if !url.is_empty() => {
            PgConnectOptions::from_str(&url).expect("WEIR_DATABASE_URL is the URL of a Postgres")
        }
        _ => options(&embedded().url()),
    }
}

pub(crate) fn options(url: &str) -> PgConnectOptions {
    PgConnectOptions::from_str(url).expect("sqlx takes our own URL")
}

/// The one embedded server of this process. It is never dropped: it ends with
/// the process, and the next one removes its files.
fn embedded() -> &'static EmbeddedPostgres {
    static SERVER: OnceLock<EmbeddedPostgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        start(owned(&[
            // Nothing here outlives the process.
            ("fsync", "off"),
            ("synchronous_commit", "off"),
            ("full_page_writes", "off"),
            ("max_connections", "400"),
        ]))
    })
}

fn start(settings: Vec<(String, String)>) -> EmbeddedPostgres {
    EmbeddedPostgres::start(&Options {
        runtime_dir: runtime_dir(),
        data_dir: None,
        settings,
    })
    .expect("the embedded Postgres starts")
}

pub(crate) fn owned(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    settings.iter().map(own).collect()
}

/// A Postgres of one test's own, which can be crashed, silenced and started
/// again. It ends with this value.
#[derive(Debug)]
pub struct OwnPostgres {
    /// Missing only while it starts again.
    server: Option<EmbeddedPostgres>,
    url: String,
    socket: PathBuf,
    /// The processes that are stopped where they are.
    silent: Vec<Pid>,
    /// The data of one that was a standby. Dropped after the server.
    _data: Option<TempDir>,
}

impl OwnPostgres {
    /// Starts one, with the empty database `weir`. What is committed survives a
    /// crash of its processes, if not one of the machine. `settings` are added,
    /// as in `postgresql.conf`.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let mut all = vec![
            // What a process has written stays with the kernel.
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("shared_buffers", "32MB"),
        ];
        all.extend_from_slice(settings);
        let all = owned(&all);
        // Blocks for a moment, in which the test's other tasks are to go on.
        let server = task::spawn_blocking(move || start(all))
            .await
            .expect("the embedded Postgres starts");
        Self::of(server, None)
    }

    /// One that runs, on data that are removed with it or its own.
    pub(crate) fn of(server: EmbeddedPostgres, data: Option<TempDir>) -> Self {
        Self {
            url: server.url(),
            socket: server.socket(),
            server: Some(server),
            silent: Vec::new(),
            _data: data,
        }
    }

    /// The URL of the database `weir`; the same after a restart.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The path of its socket; the same after a restart.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// Kills all its processes, as a machine that loses power does, and returns
    /// when they are gone and its connections are cut.
    pub async fn kill(&mut self) {
        let pids = if self.silent.is_empty() {
            self.stop_all().await
        } else {
            std::mem::take(&mut self.silent)
        };
        for &pid in &pids {
            send(pid, Signal::KILL);
        }
        let gone = async {
            while !pids.iter().copied().all(is_gone) {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(PATIENCE, gone)
            .await
            .expect("what is killed ends");
    }

    /// Starts it again on the same data, after it was killed, and returns when
    /// it takes connections.
    pub async fn start_again(&mut self) {
        assert!(self.silent.is_empty(), "the server is stopped, not dead");
        let mut server = self.server.take().expect("it has been started");
        let again = task::spawn_blocking(move || {
            server.start_again().expect("Postgres starts again");
            server
        });
        self.server = Some(again.await.expect("Postgres starts again"));
    }

    /// Stops all its processes where they are: connections stay open, and
    /// nothing on them is answered.
    pub async fn sigstop(&mut self) {
        self.silent = self.stop_all().await;
    }

    /// Lets it go on.
    pub fn sigcont(&mut self) {
        for pid in self.silent.drain(..) {
            send(pid, Signal::CONT);
        }
    }

    /// Stops its processes, and returns them.
    async fn stop_all(&self) -> Vec<Pid> {
        let mut connection = options(&self.url)
            .connect()
            .await
            .expect("the server takes connections");
        let server = self.server.as_ref().and_then(EmbeddedPostgres::pid);
        let server = server.and_then(|pid| i32::try_from(pid).ok());
        let server = server.and_then(Pid::from_raw).expect("the server runs");
        // From now on there are no new processes.
        send(server, Signal::STOP);
        let others: Vec<i32> = sqlx::query_scalar("SELECT pid FROM pg_stat_activity")
            .fetch_all(&mut connection)
            .await
            .expect("a server that is alive names its processes");
        let others: Vec<Pid> = others.into_iter().filter_map(Pid::from_raw).collect();
        for &pid in &others {
            send(pid, Signal::STOP);
        }
        [vec![server], others].concat()
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        // What is stopped cannot end.
        self.sigcont();
    }
}

/// Signals a process of a server, which may have ended meanwhile.
fn send(pid: Pid, signal: Signal) {
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("cannot signal a process of Postgres: {error}"),
    }
}

/// Whether a process has ended, be it that nobody has taken note yet.
fn is_gone(pid: Pid) -> bool {
    if test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
        return true;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses.
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
}

/// The folder that `make runtime` fills.
pub fn runtime_dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.runtime"))
}
