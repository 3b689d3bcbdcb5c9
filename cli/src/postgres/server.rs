//! The server's processes: making a cluster, running the server on it.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::user::ServerUser;
use crate::child::die_with_parent;

/// How often a state that nothing announces is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long an earlier server, orphaned a moment ago, gets to end.
const ORPHAN_GRACE: Duration = Duration::from_secs(20);
/// How long the server gets to accept connections; recovery after a crash is
/// part of it.
const START_TIMEOUT: Duration = Duration::from_mins(2);
/// How long a shutdown may take before the server is made to end at once,
/// which costs a recovery at the next start.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);
/// How many of the server's last lines are kept to explain a failed start.
const TAIL_LINES: usize = 20;

/// Makes a cluster with the database `weir` at `pgdata`: whole or not at all.
pub(super) fn init(home: &Path, pgdata: &Path, user: ServerUser, durable: bool) -> Result<()> {
    let staging = pgdata.with_extension("new");
    if staging.exists() {
        fs::remove_dir_all(&staging)
            .with_context(|| format!("cannot remove {}", staging.display()))?;
    }
    user.create_private_dir(&staging)?;
    let initdb = home.join("bin/initdb");
    let mut command = user.command(&initdb);
    command.arg("-D").arg(&staging).args([
        "--no-sync",
        "--no-instructions",
        "--username=postgres",
        "--auth=trust",
        "--encoding=UTF8",
        // Bytewise order and Unicode classes, the same on every system.
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
    ]);
    run(command, "")?;
    let mut single = user.command(&home.join("bin/postgres"));
    single
        .arg("--single")
        .arg("-D")
        .arg(&staging)
        .args(["-c", "fsync=off", "postgres"]);
    let output = run(single, "CREATE DATABASE weir;\n")?;
    // This mode reports errors of SQL only in words.
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("ERROR:") {
        bail!("cannot create the database: {}", said.trim());
    }
    if durable {
        let mut sync = user.command(&initdb);
        sync.arg("-D").arg(&staging).arg("--sync-only");
        run(sync, "")?;
    }
    fs::rename(&staging, pgdata).with_context(|| format!("cannot create {}", pgdata.display()))
}

fn run(mut command: Command, input: &str) -> Result<Output> {
    let program = PathBuf::from(command.get_program());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for {}", program.display()))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            program.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output)
}

/// What a server is started from.
#[derive(Debug)]
pub(super) struct Recipe {
    /// Where Postgres is installed.
    pub(super) home: PathBuf,
    /// The cluster's directory.
    pub(super) pgdata: PathBuf,
    /// Where the socket goes.
    pub(super) socket_dir: PathBuf,
    /// Settings of the server, as in `postgresql.conf`.
    pub(super) settings: Vec<(String, String)>,
    /// Whom it runs as.
    pub(super) user: ServerUser,
}

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    pid: u32,
    stop: mpsc::Sender<()>,
    keeper: JoinHandle<()>,
}

impl Server {
    /// Starts the server and waits until it accepts connections.
    pub(super) fn start(recipe: &Recipe) -> Result<Self> {
        await_orphan(&recipe.pgdata);
        let mut command = recipe.user.command(&recipe.home.join("bin/postgres"));
        command.arg("-D").arg(&recipe.pgdata);
        let socket_dir = recipe
            .socket_dir
            .to_str()
            .context("the socket's path is not UTF-8")?;
        let fixed = [
            ("listen_addresses", ""),
            ("unix_socket_directories", socket_dir),
            ("unix_socket_permissions", "0700"),
            ("port", "5432"),
            ("logging_collector", "off"),
            // Texts of clients stay out of the log.
            ("log_min_error_statement", "panic"),
            ("log_error_verbosity", "terse"),
        ];
        let own = recipe
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in fixed.into_iter().chain(own) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // Ctrl-C in a terminal goes to the whole process group; the server is
        // to end after those who use it, when it is told to.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        die_with_parent(&mut command, Signal::INT);

        let (stop, stopped) = mpsc::channel();
        let (ready, outcome) = mpsc::channel();
        let pgdata = recipe.pgdata.clone();
        // The server lives exactly as long as this thread, which starts it,
        // waits and ends it: the death signal is tied to the spawning thread.
        let keeper = thread::Builder::new()
            .name("postgres".into())
            .spawn(move || keep(command, &pgdata, &ready, &stopped))
            .context("cannot start a thread")?;
        match outcome.recv() {
            Ok(Ok(pid)) => Ok(Self { pid, stop, keeper }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(anyhow!("the thread that keeps Postgres ended")),
        }
    }

    /// The server's first process.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends the server and waits until it is gone.
    pub(super) fn stop(self) {
        drop(self.stop);
        // It ends on its own account only by a panic, which is on stderr.
        let _ = self.keeper.join();
    }
}

fn keep(
    mut command: Command,
    pgdata: &Path,
    ready: &mpsc::Sender<Result<u32>>,
    stopped: &mpsc::Receiver<()>,
) {
    let mut child = match command.spawn().context("cannot start Postgres") {
        Ok(child) => child,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let stderr = child.stderr.take().map(BufReader::new);
    let log = thread::spawn(move || stderr.map(forward_log).unwrap_or_default());
    let outcome = await_ready(&mut child, pgdata);
    if let Err(error) = outcome {
        end(&mut child);
        let tail: Vec<String> = log.join().unwrap_or_default().into();
        let _ = ready.send(Err(
            error.context(format!("Postgres said:\n{}", tail.join("\n")))
        ));
        return;
    }
    let _ = ready.send(Ok(child.id()));
    // Nothing is ever sent: the other end is dropped when it is time.
    let _ = stopped.recv();
    end(&mut child);
}

/// Passes the server's log on and returns its last lines.
fn forward_log(stderr: impl BufRead) -> VecDeque<String> {
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    for line in stderr.split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line).into_owned();
        tracing::debug!(target: "postgres", "{line}");
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    tail
}

fn await_ready(child: &mut Child, pgdata: &Path) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for Postgres")? {
            bail!("Postgres ended while it started ({status})");
        }
        let text = fs::read_to_string(pgdata.join("postmaster.pid")).unwrap_or_default();
        if is_ready(&text, child.id()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "Postgres does not accept connections after {} s",
                START_TIMEOUT.as_secs()
            );
        }
        thread::sleep(POLL);
    }
}

/// Whether a `postmaster.pid` says that the server of this process accepts
/// connections. Its lines are described in Postgres, `src/include/utils/pidfile.h`.
fn is_ready(pid_file: &str, pid: u32) -> bool {
    let mut lines = pid_file.lines();
    let of_child = lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid);
    of_child && lines.nth(6).is_some_and(|status| status.trim() == "ready")
}

/// Waits for a server that lost its parent a moment ago and still shuts down.
/// A lock file whose process is gone does not matter to Postgres.
fn await_orphan(pgdata: &Path) {
    let deadline = Instant::now() + ORPHAN_GRACE;
    while Instant::now() < deadline {
        let text = fs::read_to_string(pgdata.join("postmaster.pid")).unwrap_or_default();
        let pid = text
            .lines()
            .next()
            .and_then(|line| line.trim().parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            return;
        };
        if test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
            return;
        }
        thread::sleep(POLL);
    }
}

/// Shuts the server down: it cuts its connections and writes what is open. It
/// is made to end at once when that takes too long.
fn end(child: &mut Child) {
    for (signal, patience) in [(Signal::INT, STOP_TIMEOUT), (Signal::QUIT, ORPHAN_GRACE)] {
        let deadline = Instant::now() + patience;
        // The child is not waited for yet, so its id is still its own.
        let _ = kill_process(Pid::from_child(child), signal);
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(None) => thread::sleep(POLL),
                Ok(Some(_)) | Err(_) => return,
            }
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_ready_line_counts() {
        let file = |status: &str| format!("42\n/data\n1\n5432\n/socket\n\n  1 2\n{status}\n");
        assert!(is_ready(&file("ready   "), 42));
        assert!(!is_ready(&file("ready   "), 43));
        assert!(!is_ready(&file("starting"), 42));
        assert!(!is_ready("42\n/data\n", 42));
        assert!(!is_ready("", 42));
    }

    #[test]
    fn the_log_keeps_its_end() {
        let text: String = (0..50)
            .map(|n| format!("line {n}"))
            .collect::<Vec<_>>()
            .join("\n");
        let tail = forward_log(text.as_bytes());
        assert_eq!(tail.len(), TAIL_LINES);
        assert_eq!(tail.back().map(String::as_str), Some("line 49"));
        assert_eq!(tail.front().map(String::as_str), Some("line 30"));
    }
}
