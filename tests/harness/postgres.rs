//! A fresh database for each test.

use std::{env, path::PathBuf, str::FromStr as _, sync::OnceLock, thread};

use rand::RngExt as _;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use weir_cli::postgres::{EmbeddedPostgres, Options};

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
        let admin = admin_options();
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
        _ => PgConnectOptions::from_str(&embedded().url()).expect("sqlx takes our own URL"),
    }
}

/// The one embedded server of this process. It is never dropped: it ends with
/// the process, and the next one removes its files.
fn embedded() -> &'static EmbeddedPostgres {
    static SERVER: OnceLock<EmbeddedPostgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let settings = [
            // Nothing here outlives the process.
            ("fsync", "off"),
            ("synchronous_commit", "off"),
            ("full_page_writes", "off"),
            ("max_connections", "400"),
        ];
        EmbeddedPostgres::start(&Options {
            runtime_dir: runtime_dir(),
            data_dir: None,
            settings: settings
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
        })
        .expect("the embedded Postgres starts")
    })
}

/// The folder that `make runtime` fills.
pub fn runtime_dir() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.runtime"))
}
