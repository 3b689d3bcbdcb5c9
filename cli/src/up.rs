//! `weir up`: Postgres, the coordinator and workers in one process.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process,
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow};
use clap::{Args, Parser as _};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;
use weir_coordinator::server::{self, Server};
use weir_embedder::{Embedder, EmbedderConfig, Profile, Role};
use weir_proto::secret::UrlText;
use weir_telemetry::TraceConfig;
use weir_worker::Served;

use crate::{
    failure::Failure,
    local::DEFAULT_MODEL,
    output::{self, count},
    postgres::{EmbeddedPostgres, Options},
    trust,
};

/// What a process ends with that an interrupt ended.
const EXIT_INTERRUPTED: i32 = 130;

/// What `weir up` understands. The settings of the coordinator and the workers
/// that it has no flag for are read from their environment variables.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Where the embedded Postgres keeps its data.
    #[arg(
        long,
        env = "WEIR_DATA_DIR",
        default_value = ".weir/data",
        value_name = "DIR"
    )]
    data_dir: PathBuf,
    /// The folder that `make runtime` filled.
    #[arg(
        long,
        env = "WEIR_RUNTIME_DIR",
        default_value = ".runtime",
        value_name = "DIR"
    )]
    runtime_dir: PathBuf,
    /// Whether that folder was found, and not named.
    #[arg(skip)]
    pub(crate) runtime_was_found: bool,
    /// Address to serve on. Port 0 takes any free one.
    #[arg(
        long,
        env = "WEIR_LISTEN",
        default_value = "127.0.0.1:7400",
        value_name = "ADDRESS"
    )]
    listen: SocketAddr,
    /// How many workers to run; none when others are to do the work.
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(0..=64))]
    workers: u32,
    /// Use this Postgres instead of an embedded one.
    #[arg(
        long,
        env = "WEIR_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    database_url: Option<UrlText>,
    /// The embedding model.
    #[arg(long, env = "WEIR_MODEL", default_value = DEFAULT_MODEL, value_name = "NAME")]
    model: String,
    /// Instead of --model: the models of this file of profiles, the first of which is the default of
    /// sources.
    #[arg(
        long,
        env = "WEIR_MODELS_FILE",
        value_name = "FILE",
        conflicts_with = "model"
    )]
    models_file: Option<PathBuf>,
    /// How chunks are embedded.
    #[command(flatten)]
    pub(crate) embedder: EmbedderConfig,
    /// Which traces are sent, and where.
    #[command(flatten)]
    trace: TraceConfig,
}

/// Runs until a signal, then ends everything in order: the workers hand back
/// what they hold, the coordinator finishes its calls, Postgres writes what is
/// open.
pub(crate) async fn up(args: UpArgs) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let given = args.database_url.as_ref().map(UrlText::as_str);
    let (postgres, url) = if let Some(url) = given.filter(|url| !url.is_empty()) {
        (None, url.to_owned())
    } else {
        let postgres = start_postgres(&args).await?;
        let url = postgres.url();
        (Some(postgres), url)
    };
    let outcome = serve(&args, &url, &stop).await;
    if let Some(postgres) = postgres {
        spawn_blocking(|| postgres.stop())
            .await
            .context("Postgres did not stop cleanly")?;
    }
    outcome?;
    output::line("Stopped.")?;
    Ok(())
}

async fn start_postgres(args: &UpArgs) -> Result<EmbeddedPostgres> {
    let runtime_dir = if args.runtime_was_found && args.runtime_dir.exists() {
        trust::own_runtime(&args.runtime_dir)?
    } else {
        args.runtime_dir.clone()
    };
    let options = Options {
        runtime_dir,
        data_dir: Some(args.data_dir.clone()),
        settings: Vec::new(),
    };
    spawn_blocking(move || EmbeddedPostgres::start(&options))
        .await
        .context("the start of Postgres was cut off")?
}

async fn serve(args: &UpArgs, url: &str, stop: &CancellationToken) -> Result<()> {
    let file = args.models_file.as_deref();
    let models = args.embedder.profiles(file, &args.named())?;
    let mut config = coordinator_config(args, url)?;
    config.trace = args.trace.clone();
    let server = server::bind(config)
        .await
        .context("the coordinator cannot start")?;
    let address = server.local_addr();
    let mut embedders = Vec::new();
    if args.workers > 0 {
        for model in &models {
            let embedder = weir_embedder::build(model, Role::Document).await;
            let embedder = embedder.with_context(|| format!("model {:?}", model.name));
            embedders.push((model.clone(), embedder.context("the workers cannot embed")?));
        }
    }
    let mut running = Running::start(args, server, address, &embedders)?;
    let models: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
    output::line(format!(
        "Weir is ready at http://{address}, with {} for {}.\nPut a document: weir put FILE \
         --watch{}\nCtrl-C stops everything.",
        count(args.workers.into(), "worker"),
        models.join(", "),
        if address == SocketAddr::from(([127, 0, 0, 1], 7400)) {
            String::new()
        } else {
            format!(" --coordinator http://{}", reachable(address))
        }
    ))?;
    let early = tokio::select! {
        () = stop.cancelled() => Ok(()),
        early = running.end_of_any() => early,
    };
    early.and(running.stop().await)
}

/// The coordinator and the workers of this process.
struct Running {
    coordinator: JoinSet<Result<()>>,
    workers: JoinSet<Result<()>>,
    stop_coordinator: CancellationToken,
    stop_workers: CancellationToken,
}

impl Running {
    fn start(
        args: &UpArgs,
        server: Server,
        address: SocketAddr,
        embedders: &[(Profile, Arc<dyn Embedder>)],
    ) -> Result<Self> {
        let mut running = Self {
            coordinator: JoinSet::new(),
            workers: JoinSet::new(),
            stop_coordinator: CancellationToken::new(),
            stop_workers: CancellationToken::new(),
        };
        for number in 1..=args.workers {
            let config = worker_config(args, address, number)?;
            let models = embedders.iter().cloned();
            let models = models.map(|(model, embedder)| Served::by(model, embedder));
            running.workers.spawn(weir_worker::run(
                config,
                models.collect(),
                running.stop_workers.clone(),
            ));
        }
        running
            .coordinator
            .spawn(server.run(running.stop_coordinator.clone()));
        Ok(running)
    }

    /// Waits for a part to end without having been told to.
    async fn end_of_any(&mut self) -> Result<()> {
        let (part, outcome) = tokio::select! {
            Some(outcome) = self.coordinator.join_next() => ("the coordinator", outcome),
            Some(outcome) = self.workers.join_next() => ("a worker", outcome),
        };
        outcome
            .map_err(anyhow::Error::from)
            .flatten()
            .and_then(|()| Err(anyhow!("it ended by itself")))
            .with_context(|| format!("{part} failed"))
    }

    /// Ends the workers, then the coordinator, which they need until then.
    async fn stop(mut self) -> Result<()> {
        let mut outcome = Ok(());
        self.stop_workers.cancel();
        while let Some(ended) = self.workers.join_next().await {
            outcome = outcome.and(ended.map_err(anyhow::Error::from).flatten());
        }
        self.stop_coordinator.cancel();
        while let Some(ended) = self.coordinator.join_next().await {
            outcome = outcome.and(ended.map_err(anyhow::Error::from).flatten());
        }
        outcome
    }
}

impl UpArgs {
    /// The models that are named by flags: none where a file names them.
    fn named(&self) -> Vec<String> {
        let named = self.models_file.is_none().then(|| self.model.clone());
        named.into_iter().collect()
    }
}

fn coordinator_config(args: &UpArgs, url: &str) -> Result<weir_coordinator::config::Config> {
    let listen = args.listen.to_string();
    let words = [
        "weir-coordinator",
        "--database-url",
        url,
        "--listen",
        &listen,
    ];
    let mut words: Vec<OsString> = words.iter().map(OsString::from).collect();
    match &args.models_file {
        Some(path) => words.extend(["--models-file".into(), path.into()]),
        None => words.extend(["--models", &args.model].map(OsString::from)),
    }
    weir_coordinator::config::Config::try_parse_from(words)
        .context("the coordinator's settings are wrong")
}

fn worker_config(
    args: &UpArgs,
    address: SocketAddr,
    number: u32,
) -> Result<weir_worker::config::Config> {
    let coordinator = format!("http://{}", reachable(address));
    let words = vec![
        "weir-worker".to_owned(),
        "--coordinator".to_owned(),
        coordinator,
        "--model".to_owned(),
        args.model.clone(),
    ];
    let mut config = weir_worker::config::Config::try_parse_from(words)
        .context("the workers' settings are wrong")?;
    config.trace = args.trace.clone();
    // One id, or one address, from the environment would be the same for all of them.
    config.worker_id = format!("{}-{number}", config.worker_id);
    if args.workers > 1 {
        config.http_listen = None;
    }
    Ok(config)
}

/// Where this machine reaches a server that listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The first SIGINT or SIGTERM stops everything in order, the second at once;
/// Postgres then recovers at the next start.
fn stop_on_signals(stop: CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.is_cancelled() {
                process::exit(EXIT_INTERRUPTED);
            }
            stop.cancel();
            // Whoever waits can see that it is under way; nothing depends on it.
            let _ = output::line("Stopping; once more to stop at once.");
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_reach_a_coordinator_that_listens_everywhere() {
        let reachable = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(reachable("0.0.0.0:7400"), "127.0.0.1:7400");
        assert_eq!(reachable("[::]:7400"), "[::1]:7400");
        assert_eq!(reachable("10.0.0.1:7400"), "10.0.0.1:7400");
    }
}
