//! The examples of clients, which `make examples` runs: each against a real
//! coordinator, over a connection that breaks while it watches or works, and for as
//! long as its job takes to end.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends where it cannot go on, and this one shows what the examples say"
)]

mod worker;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout},
    time::timeout,
};
use weir_cli::child::{Signal, die_with_parent};
use weir_proto::v1::WatchSourceResponse;
use weir_tests::{
    PATIENCE,
    proxy::{Cut, FaultProxy, Target},
    world::World,
};

/// An example that runs, and what it has said.
struct Example {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: Vec<String>,
}

impl Example {
    fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stdin(Stdio::null());
        die_with_parent(&mut command, Signal::KILL);
        let mut command = tokio::process::Command::from(command);
        let mut process = command.kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self {
            process,
            lines,
            said: Vec::new(),
        }
    }

    /// Its next line; `None` when there are no more.
    async fn line(&mut self) -> Option<String> {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.expect("the example goes on").unwrap()?;
        println!("    {line}");
        self.said.push(line.clone());
        Some(line)
    }

    /// Reads on until it says this.
    async fn says(&mut self, what: &str) {
        while let Some(line) = self.line().await {
            if line.contains(what) {
                return;
            }
        }
        panic!("the example never said {what:?}");
    }

    /// How many of its lines contain this.
    fn count(&self, what: &str) -> usize {
        self.said.iter().filter(|line| line.contains(what)).count()
    }
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Has an example follow the source of this name, and checks what it says.
async fn follow(name: &str, mut command: Command) {
    let world = World::start(&[]).await;
    world.embedder.close_gate();
    let _worker = world.worker("1");
    let address = world.coordinator.address();
    let proxy = FaultProxy::start([Target::Tcp(address)]).await;
    command.arg(proxy.address().to_string());
    let mut example = Example::start(command);
    example.says(&format!("{name}: ")).await;

    // The job ends while the example cannot hear of it.
    proxy.refuse();
    proxy.cut(Cut::Reset);
    example.says("the connection broke").await;
    world.embedder.open_gate();
    let job_ended = |state: &WatchSourceResponse| state.jobs.is_empty();
    world.watch_source(name, job_ended).await;
    proxy.resume();
    while example.line().await.is_some() {}
    let status = timeout(PATIENCE, example.process.wait()).await;
    assert!(status.expect("it ends").unwrap().success());
    for (what, times) in [
        ("3/3 indexed", 1),
        ("ended: JOB_STATE_SUCCEEDED", 1),
        (": 3 of 3 chunks", 1),
    ] {
        assert_eq!(example.count(what), times, "{what}: {:#?}", example.said);
    }
}

#[tokio::test]
async fn python_follows_a_source_across_a_broken_connection() {
    let folder = project().join(".runtime-examples");
    let mut command = Command::new(folder.join("venv/bin/python"));
    command.env("PYTHONPATH", folder.join("stubs"));
    command.arg(project().join("examples/python/follow.py"));
    follow("teas-python", command).await;
}

#[tokio::test]
async fn node_follows_a_source_across_a_broken_connection() {
    let mut command = Command::new("node");
    command.arg(project().join("examples/node/follow.js"));
    follow("teas-node", command).await;
}
