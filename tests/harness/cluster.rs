//! The real processes: started, listened to, and ended by signal.

use std::{
    env,
    io::{BufRead as _, BufReader, PipeReader},
    net::SocketAddr,
    path::PathBuf,
    process::{self, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use tokio::{process::Child, sync::watch, time};
use tonic::transport::{Channel, Endpoint};
use weir_cli::child::{Signal, die_with_parent};

use crate::PATIENCE;

/// The model that coordinators and workers of tests have unless told
/// otherwise.
pub const MODEL: &str = "fake";

/// How long what a process wrote is waited for after its end. It is in the pipe
/// by then.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Finds a binary of this workspace: cargo puts them in the folder of the
/// profile, and the tests in `deps` below it.
pub fn binary(name: &str) -> PathBuf {
    let program = env::current_exe().expect("a process knows its program");
    let folder = program.parent().expect("a program is in a folder");
    let profile = if folder.ends_with("deps") {
        folder.parent().expect("deps is below the profile")
    } else {
        folder
    };
    let binary = profile.join(name);
    assert!(
        binary.is_file(),
        "{} is missing: run `make test`, which begins with `cargo build --workspace --bins`",
        binary.display()
    );
    binary
}

/// A running process; what it writes is kept. It is killed with this value, and
/// when the thread that started it ends.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    lines: watch::Receiver<Vec<String>>,
}

impl Process {
    /// Starts a binary of this workspace. It inherits no `WEIR_…` variable.
    pub fn spawn(name: &'static str, args: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start(name, command(name, args, environment))
    }

    /// Starts any program.
    pub fn start(name: &'static str, mut command: process::Command) -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe can be made");
        let twin = writer.try_clone().expect("a pipe has room for another end");
        command.stdin(Stdio::null()).stdout(twin).stderr(writer);
        die_with_parent(&mut command, Signal::KILL);
        let child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let (sender, lines) = watch::channel(Vec::new());
        thread::spawn(move || collect(reader, &sender));
        Self { name, child, lines }
    }

    /// The process's id. Panics when it has been waited for.
    pub fn pid(&self) -> u32 {
        self.child
            .id()
            .unwrap_or_else(|| panic!("{} has ended", self.name))
    }

    /// Sends a signal. Panics when the process has been waited for.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a child has an id"), signal)
            .unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
    }

    /// Kills the process, as a node that loses power does, and waits until it
    /// is gone.
    pub async fn sigkill(&mut self) {
        self.signal(Signal::KILL);
        self.wait().await;
    }

    /// Asks the process to end.
    pub fn sigterm(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops the process where it is; its sockets stay open.
    pub fn sigstop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a stopped process go on.
    pub fn sigcont(&self) {
        self.signal(Signal::CONT);
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be looked after")
    }

    /// Waits for the process to end, and until all that it wrote can be read.
    pub async fn wait(&mut self) -> ExitStatus {
        let name = self.name;
        let status = time::timeout(PATIENCE, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("{name} did not end"))
            .expect("a child can be waited for");
        let mut lines = self.lines.clone();
        let read = async { while lines.changed().await.is_ok() {} };
        // A child of its own that lives on keeps the pipe open.
        let _ = time::timeout(LAST_WORDS, read).await;
        status
    }

    /// What it wrote so far, by line: all of it once [`Self::wait`] has
    /// returned.
    pub fn log(&self) -> Vec<String> {
        self.lines.borrow().clone()
    }

    /// Waits for a line, from its start on, for which `find` returns
    /// something, and returns that.
    pub async fn wait_for_line<T>(&self, find: impl Fn(&str) -> Option<T>) -> T {
        let found = time::timeout(PATIENCE, self.find_line(find)).await;
        let name = self.name;
        found
            .unwrap_or_else(|_| panic!("{name} did not write the line that was waited for"))
            .unwrap_or_else(|| panic!("{name} ended without the line that was waited for"))
    }

    /// As [`Self::wait_for_line`], for as long as the process lives: `None`
    /// when it ended without such a line.
    pub async fn find_line<T>(&self, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        let mut lines = self.lines.clone();
        let found = lines.wait_for(|lines| lines.iter().any(|line| find(line).is_some()));
        let lines = found.await.ok()?;
        lines.iter().find_map(|line| find(line))
    }

    /// Waits for an event in its JSON log with this message.
    pub async fn wait_for_event(&self, message: &str) -> Value {
        self.wait_for_line(|line| event_in(line, message)).await
    }
}

/// The fields of a line of a JSON log, if it is an event with this message.
pub fn event_in(line: &str, message: &str) -> Option<Value> {
    let event: Value = serde_json::from_str(line).ok()?;
    // Fields are flattened or not, as the process likes.
    let fields = if event["fields"].is_object() {
        &event["fields"]
    } else {
        &event
    };
    (fields["message"] == message).then(|| fields.clone())
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            let lines = self.lines.borrow();
            eprintln!("--- {} said:\n{}\n---", self.name, lines.join("\n"));
        }
    }
}

fn command(name: &str, args: &[&str], environment: &[(&str, &str)]) -> process::Command {
    let mut command = process::Command::new(binary(name));
    for (variable, _) in env::vars_os() {
        if variable.as_encoded_bytes().starts_with(b"WEIR_") {
            command.env_remove(variable);
        }
    }
    command.args(args).envs(environment.iter().copied());
    command
}

fn collect(reader: PipeReader, lines: &watch::Sender<Vec<String>>) {
    for line in BufReader::new(reader).split(b'\n') {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line).into_owned();
        lines.send_modify(|lines| lines.push(line));
    }
}

/// A running coordinator.
#[derive(Debug)]
pub struct Coordinator {
    /// Its process.
    pub process: Process,
    address: SocketAddr,
}

impl Coordinator {
    /// Starts one on a database and waits until it listens, on a free port of
    /// this machine. `environment` adds variables and overrides what is set
    /// here: `WEIR_LISTEN`, `WEIR_MODELS` ([`MODEL`]) unless there is a file of
    /// them, and the log's.
    pub async fn spawn(database_url: &str, environment: &[(&str, &str)]) -> Self {
        let mut all = vec![
            ("WEIR_DATABASE_URL", database_url),
            ("WEIR_LISTEN", "127.0.0.1:0"),
            ("WEIR_LOG_FORMAT", "json"),
            ("WEIR_LOG", "info"),
        ];
        if !has_models_file(environment) {
            all.push(("WEIR_MODELS", MODEL));
        }
        all.extend_from_slice(environment);
        let process = Process::spawn("weir-coordinator", &[], &all);
        let event = process.wait_for_event("listening").await;
        let address = event["address"]
            .as_str()
            .and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("no address in {event}"));
        Self { process, address }
    }

    /// Its URL where it serves in TLS.
    pub fn tls_url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A connection to it, for any of its clients.
    pub async fn connect(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.url()).expect("the URL is ours");
        endpoint
            .connect()
            .await
            .expect("a coordinator that listens takes connections")
    }
}

/// Whether a file says which models there are.
fn has_models_file(environment: &[(&str, &str)]) -> bool {
    let mut names = environment.iter().map(|(name, _)| *name);
    names.any(|name| name == "WEIR_MODELS_FILE")
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    /// Its process.
    pub process: Process,
}

impl Worker {
    /// Starts one for a coordinator and an Ollama-like embedder, given by
    /// their URLs. `environment` adds variables and overrides what is set
    /// here, `WEIR_MODEL` ([`MODEL`]) among it.
    pub fn spawn(coordinator: &str, embedder: &str, environment: &[(&str, &str)]) -> Self {
        let mut all = vec![
            ("WEIR_COORDINATOR", coordinator),
            ("WEIR_EMBEDDER", "ollama"),
            ("WEIR_EMBEDDER_URL", embedder),
            ("WEIR_LOG_FORMAT", "json"),
            ("WEIR_LOG", "info"),
        ];
        if !has_models_file(environment) {
            all.push(("WEIR_MODEL", MODEL));
        }
        all.extend_from_slice(environment);
        Self {
            process: Process::spawn("weir-worker", &[], &all),
        }
    }
}

/// Runs the command `weir` to its end, for the coordinator of this URL.
pub async fn weir(coordinator: &str, args: &[&str]) -> Output {
    weir_in(&[("WEIR_COORDINATOR", coordinator)], args).await
}

/// Runs the command `weir` to its end, with these variables and a home that is
/// empty.
pub async fn weir_in(environment: &[(&str, &str)], args: &[&str]) -> Output {
    let home = tempfile::tempdir().expect("a temporary folder can be made");
    let mut command = command("weir", args, environment);
    command
        .env("HOME", home.path())
        .env_remove("XDG_CONFIG_HOME");
    command.stdin(Stdio::null());
    die_with_parent(&mut command, Signal::KILL);
    let run = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .output();
    time::timeout(PATIENCE, run)
        .await
        .unwrap_or_else(|_| panic!("weir {args:?} did not end"))
        .expect("weir can be started")
}
