//! From the command line to its command.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::{
    args::{Cli, Command},
    chunks,
    config::Settings,
    connect::Session,
    doctor,
    failure::Failure,
    failures, job, jobs,
    printable::harmless,
    put, search, shell, sources, status, steer, up, watch, workers,
};

/// Runs the command line of this process and returns its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::from_process();
    let outcome = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    init_log(&cli.global.log)?;
    // TLS takes the provider that the process installs first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let global = &cli.global;
    let connect = async || Session::connect(&Settings::of(global)?).await;
    match cli.command {
        Command::Up(args) => up::up(args).await,
        Command::Put(args) => put::put(&connect().await?, args).await,
        Command::Get(args) => sources::get(&connect().await?, args).await,
        Command::Ls(args) => sources::ls(&connect().await?, args).await,
        Command::Watch(args) => watch::watch(&connect().await?, args).await,
        Command::Status(args) => status::status(&connect().await?, args).await,
        Command::Failures(args) => failures::failures(&connect().await?, args).await,
        Command::Dismiss(args) => failures::dismiss(&connect().await?, args).await,
        Command::Jobs(args) => jobs::jobs(&connect().await?, args).await,
        Command::Job(args) => job::job(&connect().await?, args).await,
        Command::Workers(args) => workers::workers(&connect().await?, args).await,
        Command::Chunks(args) => chunks::chunks(&connect().await?, args).await,
        Command::Retry(args) => steer::retry(&connect().await?, args).await,
        Command::Cancel(args) => steer::cancel(&connect().await?, args).await,
        Command::Search(args) => search::search(&connect().await?, args).await,
        Command::Rm(args) => sources::rm(&connect().await?, args).await,
        Command::Doctor(args) => doctor::doctor(global, args).await,
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    }
}

/// Tells a failure on stderr and returns its exit code.
fn report(failure: &Failure) -> ExitCode {
    if failure.is_broken_pipe() {
        return ExitCode::SUCCESS;
    }
    if failure.is_told() {
        return failure.exit_code();
    }
    // There is nobody to tell when stderr is gone.
    let _ = writeln!(
        io::stderr().lock(),
        "weir: {}",
        harmless(&failure.to_string())
    );
    failure.exit_code()
}

fn init_log(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::Usage(format!(
            "--log (WEIR_LOG) {filter:?} cannot be read: {error}"
        ))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow::anyhow!(error))
        .context("cannot start logging")?;
    Ok(())
}
