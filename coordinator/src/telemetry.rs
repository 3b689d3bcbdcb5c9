//! Logs, to standard error.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// Starts logging for this process. Of `hushed`, a target, nothing is logged
/// unless the directives name it.
pub fn init(config: &LogConfig, hushed: &str) -> anyhow::Result<()> {
    let mut filter = EnvFilter::try_new(&config.log).context(
        "--log (WEIR_LOG) is not a list of directives such as info,weir_coordinator=debug",
    )?;
    if !config.log.contains(hushed) {
        filter = filter.add_directive(format!("{hushed}=off").parse()?);
    }
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match config.log_format {
        LogFormat::Human => subscriber.try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!("logging could not be started: {error}"))
}
