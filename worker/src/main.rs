//! The process `weir-worker`: one worker, until it is told to stop.

use std::process;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use weir_worker::{Config, Served, telemetry};

/// What a process killed by an interrupt exits with.
const EXIT_INTERRUPTED: i32 = 130;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    telemetry::init(config.log_format, &config.log)?;
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone())?;
    let served = Served::all(config.models()?).await?;
    weir_worker::run(config, served, shutdown).await
}

/// The first SIGTERM or SIGINT drains, the second ends the process at once.
fn stop_on_signals(shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if shutdown.is_cancelled() {
                info!(signal = name, "Stopping at once.");
                process::exit(EXIT_INTERRUPTED);
            }
            info!(
                signal = name,
                "Stopping in good order; a second signal stops at once."
            );
            shutdown.cancel();
        }
    });
    Ok(())
}
