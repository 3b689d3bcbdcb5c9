//! The embedded Postgres for real: it lasts, it ends, and it keeps to itself.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests, and a process that tells its test where it is"
)]

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use sqlx::{Connection as _, PgConnection, Row as _};
use weir_cli::postgres::{EmbeddedPostgres, Options};

/// Names the data directory that [`hold`] uses.
const HOLD: &str = "WEIR_TEST_HOLD_DATA_DIR";

fn options(data_dir: Option<&Path>) -> Options {
    Options {
        runtime_dir: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.runtime")),
        data_dir: data_dir.map(Path::to_path_buf),
        settings: vec![("fsync".into(), "off".into())],
    }
}

/// A directory in which the server's user can make its data directory too.
fn open_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::Permissions::from_mode(0o755);
    tempfile::Builder::new()
        .permissions(mode)
        .tempdir()
        .unwrap()
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: &'static str) {
    sqlx::query(sql).execute(connection).await.unwrap();
}

async fn read_one(connection: &mut PgConnection, sql: &'static str) -> String {
    sqlx::query(sql).fetch_one(connection).await.unwrap().get(0)
}

#[tokio::test]
async fn two_temporary_servers_are_strangers_and_leave_nothing() {
    let (one, two) = (options(None), options(None));
    let one = EmbeddedPostgres::start(&one).unwrap();
    let two = EmbeddedPostgres::start(&two).unwrap();
    let mut first = connect(&one.url()).await;
    let mut second = connect(&two.url()).await;

    execute(&mut first, "CREATE EXTENSION vector").await;
    let distance = "SELECT ('[1,0]'::vector <=> '[0,1]'::vector)::text";
    assert_eq!(read_one(&mut first, distance).await, "1");
    execute(&mut first, "CREATE TABLE mine ()").await;
    execute(&mut second, "CREATE TABLE mine ()").await;
    assert_eq!(
        read_one(&mut second, "SELECT 'é😀' || current_database()").await,
        "é😀weir"
    );
    let listens = "SELECT setting FROM pg_settings WHERE name = 'listen_addresses'";
    assert_eq!(read_one(&mut first, listens).await, "");

    let data_dir = PathBuf::from(read_one(&mut first, "SHOW data_directory").await);
    assert!(data_dir.exists());
    one.stop();
    assert!(!data_dir.parent().unwrap().exists());
    assert!(sqlx::query("SELECT 1").execute(&mut first).await.is_err());
    sqlx::query("SELECT 1").execute(&mut second).await.unwrap();
}

/// What others than its owner may do with each file below a folder: the folder
/// first, without what another user's programs are copied to.
fn open_to_others(folder: &Path) -> Vec<(PathBuf, u32)> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut open = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        // Postgres removes files while we look.
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        let others = metadata.permissions().mode() & 0o077;
        if others != 0 && !metadata.is_symlink() {
            found.push((path.strip_prefix(folder).unwrap().to_owned(), others));
        }
        if metadata.is_dir() && !path.ends_with("postgres-runtime") {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(entries.map(|entry| entry.path()));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn what_it_makes_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = open_dir();
    let data = dir.path().join("made/data");
    // What an earlier version left open is closed.
    std::fs::create_dir_all(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    let lock = data.join("lock");
    std::fs::write(&lock, "").unwrap();
    std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o644)).unwrap();
    let server = EmbeddedPostgres::start(&options(Some(&data))).unwrap();
    let mut connection = connect(&server.url()).await;
    execute(
        &mut connection,
        "CREATE TABLE notes AS SELECT 'mine' AS text",
    )
    .await;
    let run = server
        .socket()
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .to_owned();

    // Root's server is another user's, who passes through root's folders.
    let root = rustix::process::geteuid().is_root();
    let way = |path: &str, others| root.then(|| (PathBuf::from(path), others));
    let mut of_run: Vec<_> = way("", 0o011).into_iter().collect();
    if run.join("postgres-runtime").exists() {
        of_run.extend(way("postgres-runtime", 0o055));
    }
    assert_eq!(open_to_others(&run), of_run);
    let base = std::fs::metadata(run.with_file_name("lock")).unwrap();
    assert_eq!(base.permissions().mode() & 0o777, 0o600);
    let given = vec![(PathBuf::new(), 0o055)];
    assert_eq!(
        open_to_others(&data),
        given,
        "the folder that was there stays as it was"
    );
    assert!(std::fs::read_dir(&data).unwrap().count() > 1);

    // A folder that it makes is closed as well.
    let fresh = dir.path().join("fresh/deep/data");
    let server = EmbeddedPostgres::start(&options(Some(&fresh))).unwrap();
    let made = dir.path().join("fresh");
    let on_the_way = ["", "deep", "deep/data"].map(|path| way(path, 0o011));
    let on_the_way: Vec<_> = on_the_way.into_iter().flatten().collect();
    assert_eq!(open_to_others(&made), on_the_way);
    server.stop();
}

#[tokio::test]
async fn a_link_in_place_of_a_lock_is_not_followed() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let dir = open_dir();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    let precious = dir.path().join("precious");
    std::fs::write(&precious, "").unwrap();
    std::fs::set_permissions(&precious, std::fs::Permissions::from_mode(0o644)).unwrap();
    symlink(&precious, data.join("lock")).unwrap();
    let error = EmbeddedPostgres::start(&options(Some(&data))).unwrap_err();
    assert!(format!("{error:#}").contains("lock"), "{error:#}");
    let mode = std::fs::metadata(&precious).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[tokio::test]
async fn kept_data_is_there_again_and_has_one_user() {
    let dir = open_dir();
    let data = dir.path().join("data");
    let server = EmbeddedPostgres::start(&options(Some(&data))).unwrap();
    let mut connection = connect(&server.url()).await;
    execute(
        &mut connection,
        "CREATE TABLE notes AS SELECT 'kept' AS text",
    )
    .await;

    let error = EmbeddedPostgres::start(&options(Some(&data))).unwrap_err();
    assert!(
        error.to_string().contains("in use by another process"),
        "{error:#}"
    );

    server.stop();
    let server = EmbeddedPostgres::start(&options(Some(&data))).unwrap();
    let mut connection = connect(&server.url()).await;
    assert_eq!(
        read_one(&mut connection, "SELECT text FROM notes").await,
        "kept"
    );
}

/// Not a test by itself: the process that the next test kills.
#[test]
fn hold() {
    let Some(data) = env::var_os(HOLD) else {
        return;
    };
    let server = EmbeddedPostgres::start(&options(Some(Path::new(&data)))).unwrap();
    eprintln!("\nurl {}", server.url());
    loop {
        std::thread::park();
    }
}

/// Ends the holder if the test fails first.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a process with a server, and returns it with the server's URL.
fn start_holder(data: &Path) -> (Holder, String) {
    let mut holder = Holder(
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "hold", "--nocapture"])
            .env(HOLD, data)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let stderr = BufReader::new(holder.0.stderr.take().unwrap());
    let url = stderr
        .lines()
        .map(Result::unwrap)
        .find_map(|line| line.strip_prefix("url ").map(str::to_owned))
        .expect("the holder started a server");
    (holder, url)
}

#[tokio::test]
async fn a_killed_owner_takes_its_server_along_and_loses_nothing() {
    let dir = open_dir();
    let data = dir.path().join("data");
    let (holder, url) = start_holder(&data);
    let mut connection = connect(&url).await;
    execute(
        &mut connection,
        "CREATE TABLE notes AS SELECT 'kept' AS text",
    )
    .await;
    drop(holder);

    // Starts only once the orphan is gone: both would use the same data.
    let server = EmbeddedPostgres::start(&options(Some(&data))).unwrap();
    assert!(
        sqlx::query("SELECT 1")
            .execute(&mut connection)
            .await
            .is_err()
    );
    let mut connection = connect(&server.url()).await;
    assert_eq!(
        read_one(&mut connection, "SELECT text FROM notes").await,
        "kept"
    );
}

#[tokio::test]
async fn a_half_made_data_directory_is_made_again() {
    let dir = open_dir();
    let data = dir.path().join("data");
    EmbeddedPostgres::start(&options(Some(&data)))
        .unwrap()
        .stop();
    std::fs::rename(data.join("postgres"), data.join("postgres.new")).unwrap();
    std::fs::remove_file(data.join("postgres.new/PG_VERSION")).unwrap();

    let server = EmbeddedPostgres::start(&options(Some(&data))).unwrap();
    let mut connection = connect(&server.url()).await;
    assert_eq!(
        read_one(&mut connection, "SELECT current_database()::text").await,
        "weir"
    );
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let mut options = options(None);
    options
        .settings
        .push(("shared_buffers".into(), "nonsense".into()));
    let error = format!("{:#}", EmbeddedPostgres::start(&options).unwrap_err());
    assert!(error.contains("shared_buffers"), "{error}");
}
