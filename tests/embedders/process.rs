//! Servers of other projects as processes.

use std::{fmt::Display, fs::File, net::TcpListener, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};
use weir_embedder::Embedder;

/// Long enough to load a model.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// A process and those that it starts, which are killed with this value.
pub(crate) struct Group(Child);

impl Group {
    /// Starts a program that writes to this file.
    pub(crate) fn spawn(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map(Self)
            .with_context(|| format!("cannot start {}", command.as_std().get_program().display()))
    }

    /// Waits until the embedder answers a probe.
    pub(crate) async fn ready(&mut self, embedder: &dyn Embedder) -> anyhow::Result<()> {
        self.until(async || embedder.probe(0).await).await
    }

    /// Waits until it takes connections at this port.
    pub(crate) async fn listens(&mut self, port: u16) -> anyhow::Result<()> {
        self.until(async || TcpStream::connect(("127.0.0.1", port)).await)
            .await
    }

    /// Tries until it succeeds, for as long as the process lives.
    async fn until<T, E: Display>(
        &mut self,
        mut attempt: impl AsyncFnMut() -> Result<T, E>,
    ) -> anyhow::Result<()> {
        let succeeds = timeout(PATIENCE, async {
            loop {
                let Err(error) = attempt().await else {
                    return Ok(());
                };
                if let Some(status) = self.0.try_wait()? {
                    bail!("it ended with {status}; the last try failed: {error}");
                }
                sleep(Duration::from_millis(200)).await;
            }
        });
        succeeds.await.context("it does not answer")?
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = id.and_then(Pid::from_raw) {
            // An error means that all of them have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// A port of this machine that is free now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
