//! The coordinator's settings: flags and environment variables, validated once.

mod limits;
mod models;
mod security;

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use weir_proto::secret::{UrlParser, UrlText};
use weir_telemetry::TraceConfig;

pub use self::{
    limits::{LimitsConfig, NamespaceWeight},
    models::ModelSettings,
    security::SecurityConfig,
};
use crate::{
    access::Role,
    job::{
        chunk::{Chunker, ChunkerError},
        fair_share::Weights,
        parking::ParkingPolicy,
        retry::RetryPolicy,
    },
};

/// The coordinator of Weir: owns the queue in Postgres and every lease.
#[derive(Debug, Clone, Parser)]
#[command(name = "weir-coordinator", version)]
pub struct Config {
    /// What to do; serves when left out.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The database.
    #[command(flatten)]
    pub database: DatabaseConfig,
    /// What the servers are told.
    #[command(flatten)]
    pub serve: ServeConfig,
    /// What is logged, and how.
    #[command(flatten)]
    pub log: LogConfig,
    /// Which traces are sent, and where.
    #[command(flatten)]
    pub trace: TraceConfig,
}

/// What the program is to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Serve gRPC until told to stop (the default).
    Serve,
    /// Bring the database up to this version's schema, and exit.
    Migrate,
    /// Draw a token: it is written to stdout, its table for the tokens file to stderr.
    Token {
        /// What to call it.
        name: String,
        /// What it is for.
        role: Role,
        /// Namespaces that it may use; `*` stands for all.
        #[arg(required = true)]
        namespaces: Vec<String>,
    },
}

/// Which database, and how many connections to it.
#[derive(Debug, Clone, Args)]
pub struct DatabaseConfig {
    /// The Postgres to keep everything in, as `postgres://user:password@host/database`. Connect
    /// directly or through a session pooler: a transaction pooler cannot carry LISTEN.
    #[arg(long, env = "WEIR_DATABASE_URL", hide_env_values = true, global = true)]
    pub database_url: Option<UrlText>,
    /// Most connections to the database, besides one that listens for wake-ups, one for probes, one
    /// for sessions of workers and six for claims, openings and results.
    #[arg(
        long,
        env = "WEIR_DATABASE_CONNECTIONS",
        default_value = "16",
        global = true
    )]
    pub database_connections: NonZeroU32,
    /// How long a call waits for a free connection before it answers UNAVAILABLE.
    #[arg(long, env = "WEIR_DATABASE_TIMEOUT", default_value = "5s", value_parser = positive_duration, global = true)]
    pub database_timeout: Duration,
    /// How long the database may take for one statement before the call answers UNAVAILABLE. Longer
    /// than the deletion of your largest source takes.
    #[arg(long, env = "WEIR_STATEMENT_TIMEOUT", default_value = "1m", value_parser = positive_duration, global = true)]
    pub statement_timeout: Duration,
}

/// How the coordinator serves.
#[derive(Debug, Clone, Args)]
pub struct ServeConfig {
    /// Address to serve gRPC and HTTP on. Port 0 takes any free one.
    #[arg(long, env = "WEIR_LISTEN", default_value = "127.0.0.1:7400")]
    pub listen: SocketAddr,
    /// The embedding models that sources may use, separated by commas; the first is the default.
    /// `name=768` says how many numbers its vectors have; of a model without, the first vectors say
    /// so, and these are from a worker of all namespaces.
    #[arg(long, env = "WEIR_MODELS", value_delimiter = ',')]
    pub models: Vec<ModelSettings>,
    /// Instead of --models: the file of models that workers have too, in TOML, a table a model.
    /// Names, dimensions and the prompts of documents are read of it.
    #[arg(
        long,
        env = "WEIR_MODELS_FILE",
        value_name = "FILE",
        conflicts_with = "models"
    )]
    pub models_file: Option<PathBuf>,
    /// Whether serving begins with bringing the database up to date.
    #[arg(long, env = "WEIR_MIGRATE", default_value = "true", action = clap::ArgAction::Set)]
    pub migrate: bool,
    /// How long a lease lasts from each renewal. Longer than the embedder ever takes for a batch.
    #[arg(long, env = "WEIR_LEASE_DURATION", default_value = "10m", value_parser = positive_duration)]
    pub lease_duration: Duration,
    /// How long a worker may take to come back after its connection broke or its coordinator was lost
    /// (then 3 s at least), or to be heard of after its claim, before its job goes to another. At most
    /// the lease.
    #[arg(long, env = "WEIR_ORPHAN_GRACE", default_value = "10s", value_parser = positive_duration)]
    pub orphan_grace: Duration,
    /// How long a job may hold its lease without persisting anything.
    #[arg(long, env = "WEIR_PROGRESS_DEADLINE", default_value = "1h", value_parser = positive_duration)]
    pub progress_deadline: Duration,
    /// Tries after which a job fails.
    #[arg(long, env = "WEIR_MAX_ATTEMPTS", default_value = "5", value_parser = clap::value_parser!(i16).range(1..=1000))]
    pub max_attempts: i16,
    /// Longest wait after the first failed try; doubles with each.
    #[arg(long, env = "WEIR_BACKOFF_BASE", default_value = "5s", value_parser = positive_duration)]
    pub backoff_base: Duration,
    /// No wait between tries is longer than this.
    #[arg(long, env = "WEIR_BACKOFF_CAP", default_value = "15m", value_parser = positive_duration)]
    pub backoff_cap: Duration,
    /// How long a failed job waits before what it left is queued again; doubles with each failure
    /// that follows.
    #[arg(long, env = "WEIR_PARK_BASE", default_value = "30m", value_parser = positive_duration)]
    pub park_base: Duration,
    /// No failed job waits longer than this.
    #[arg(long, env = "WEIR_PARK_CAP", default_value = "6h", value_parser = positive_duration)]
    pub park_cap: Duration,
    /// How often each source is compared with its vectors.
    #[arg(long, env = "WEIR_RECONCILE_INTERVAL", default_value = "1h", value_parser = positive_duration)]
    pub reconcile_interval: Duration,
    /// How long jobs that are over and done with are kept.
    #[arg(long, env = "WEIR_JOB_RETENTION", default_value = "14days", value_parser = positive_duration)]
    pub job_retention: Duration,
    /// Where traces can be looked at: a URL with `{trace_id}` in it, which clients
    /// of the status API and the page are given.
    #[arg(long, env = "WEIR_TRACE_URL", value_name = "URL", hide_env_values = true, value_parser = UrlParser(trace_url))]
    pub trace_url: Option<String>,
    /// Whether there is a page for operators at `/`. It can do no more than the calls that whoever
    /// opens it may make.
    #[arg(long, env = "WEIR_DASHBOARD", default_value = "true", action = clap::ArgAction::Set)]
    pub dashboard: bool,
    /// Longest chunk, in characters; longer texts are split.
    #[arg(long, env = "WEIR_CHUNK_SIZE", default_value = "1000")]
    pub chunk_size: usize,
    /// Characters that neighbouring chunks of a text share.
    #[arg(long, env = "WEIR_CHUNK_OVERLAP", default_value = "100")]
    pub chunk_overlap: usize,
    /// Most pending chunks in one job; a source with more is cut into several.
    #[arg(long, env = "WEIR_MAX_CHUNKS_PER_JOB", default_value = "1000", value_parser = clap::value_parser!(i32).range(1..=1_000_000))]
    pub max_chunks_per_job: i32,
    /// Most chunks in one batch, whatever a worker asks for.
    #[arg(long, env = "WEIR_MAX_BATCH_SIZE", default_value = "256", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub max_batch_size: i32,
    /// Most namespaces that /metrics names one by one, those with most pending chunks; the others
    /// are summed up as `other`.
    #[arg(long, env = "WEIR_METRICS_NAMESPACES", default_value = "20", value_parser = clap::value_parser!(u16).range(..=1_000))]
    pub metrics_namespaces: u16,
    /// How often the database is asked for due and expired jobs, should a wake-up be missed.
    #[arg(long, env = "WEIR_POLL_INTERVAL", default_value = "1s", value_parser = positive_duration)]
    pub poll_interval: Duration,
    /// How long it goes on to accept connections after a signal to stop, while its health says no:
    /// as long as your load balancer takes to notice.
    #[arg(long, env = "WEIR_DRAIN_DELAY", default_value = "0s", value_parser = any_duration)]
    pub drain_delay: Duration,
    /// How long calls under way may take to end after that; then they are cut off.
    #[arg(long, env = "WEIR_DRAIN_TIMEOUT", default_value = "10s", value_parser = positive_duration)]
    pub drain_timeout: Duration,
    /// Who is let in.
    #[command(flatten)]
    pub security: SecurityConfig,
    /// How much they may have.
    #[command(flatten)]
    pub limits: LimitsConfig,
}

/// What is logged, and how.
#[derive(Debug, Clone, Args)]
pub struct LogConfig {
    /// What to log, as tracing directives: a level, or target=level, separated by commas.
    #[arg(long, env = "WEIR_LOG", default_value = "info", global = true)]
    pub log: String,
    /// How to log.
    #[arg(long, env = "WEIR_LOG_FORMAT", default_value = "human", global = true)]
    pub log_format: LogFormat,
}

/// How lines of the log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// A setting that cannot be served with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// No database was named.
    #[error(
        "--database-url (WEIR_DATABASE_URL) is not set: give the Postgres to keep the queue in, \
         as postgres://user:password@host/database"
    )]
    NoDatabase,
    /// No model was named.
    #[error(
        "--models (WEIR_MODELS) is not set: name the embedding models that sources may use, \
         separated by commas, the first is the default; or give --models-file (WEIR_MODELS_FILE)"
    )]
    NoModels,
    /// A model is there twice.
    #[error("--models (WEIR_MODELS): {0:?} is named twice")]
    ModelTwice(String),
    /// A namespace has two weights.
    #[error("--namespace-weights (WEIR_NAMESPACE_WEIGHTS): {0} is named twice")]
    WeightTwice(String),
    /// The file of models cannot be used.
    #[error("{0}")]
    ModelsFile(String),
    /// The chunker cannot work with its settings.
    #[error(transparent)]
    Chunker(#[from] ChunkerError),
    /// The backoff's cap is below its base.
    #[error(
        "--backoff-cap (WEIR_BACKOFF_CAP) must not be shorter than --backoff-base (WEIR_BACKOFF_BASE)"
    )]
    BackoffCap,
    /// The parking's cap is below its base.
    #[error("--park-cap (WEIR_PARK_CAP) must not be shorter than --park-base (WEIR_PARK_BASE)")]
    ParkCap,
    /// Anybody who reaches the address could do anything.
    #[error(
        "--listen (WEIR_LISTEN): {listen} can be reached from other machines, and nobody who calls is asked who they \
         are: set --tokens-file (WEIR_TOKENS_FILE) or --tls-client-ca (WEIR_TLS_CLIENT_CA), listen on 127.0.0.1, or \
         say --insecure (WEIR_INSECURE=true)"
    )]
    OpenDoor {
        /// Where it was to listen.
        listen: SocketAddr,
    },
}

impl DatabaseConfig {
    /// The URL, which every subcommand needs.
    pub fn url(&self) -> Result<&str, ConfigError> {
        self.database_url
            .as_ref()
            .map(UrlText::as_str)
            .ok_or(ConfigError::NoDatabase)
    }
}

impl ServeConfig {
    /// Checks what the flags' own types cannot, reads the file of models into
    /// `models`, and builds the chunker.
    pub fn validate(&mut self) -> Result<Chunker, ConfigError> {
        if let Some(path) = &self.models_file {
            let models = models::from_file(path);
            self.models = models.map_err(|error| ConfigError::ModelsFile(format!("{error:#}")))?;
        }
        if self.models.is_empty() {
            return Err(ConfigError::NoModels);
        }
        for (index, model) in self.models.iter().enumerate() {
            if self.models[..index].iter().any(|it| it.name == model.name) {
                return Err(ConfigError::ModelTwice(model.name.clone()));
            }
        }
        if self.backoff_cap < self.backoff_base {
            return Err(ConfigError::BackoffCap);
        }
        if self.park_cap < self.park_base {
            return Err(ConfigError::ParkCap);
        }
        let weights = &self.limits.namespace_weights;
        for (index, it) in weights.iter().enumerate() {
            let same = |other: &NamespaceWeight| other.namespace == it.namespace;
            if weights[..index].iter().any(same) {
                return Err(ConfigError::WeightTwice(it.namespace.clone()));
            }
        }
        self.security.validate(self.listen)?;
        Ok(Chunker::new(self.chunk_size, self.chunk_overlap)?)
    }

    /// How large the shares of namespaces are.
    pub fn weights(&self) -> Weights {
        let weights = self.limits.namespace_weights.iter();
        weights
            .map(|it| (it.namespace.clone(), it.weight))
            .collect()
    }

    /// The names of the models; the first is the default.
    pub fn model_names(&self) -> Vec<String> {
        self.models.iter().map(|model| model.name.clone()).collect()
    }

    /// How failed tries are retried.
    pub fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            max_attempts: self.max_attempts,
            backoff_base: self.backoff_base,
            backoff_cap: self.backoff_cap,
            parking: ParkingPolicy {
                base: self.park_base,
                cap: self.park_cap,
            },
        }
    }
}

/// Reads a URL with a place for the id of a trace.
fn trace_url(text: &str) -> Result<String, String> {
    let url: http::Uri = text
        .replace("{trace_id}", "0")
        .parse()
        .map_err(|error| format!("it is not a URL: {error}"))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err("it must begin with http:// or https://".to_owned());
    }
    if url.authority().is_some_and(|it| it.as_str().contains('@')) {
        return Err("it must not hold a user or password: clients are given it".to_owned());
    }
    if !text.contains("{trace_id}") {
        return Err("it must have {trace_id} where the id of a trace goes".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a duration such as "10m" or "1h 30m" that is more than nothing.
fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = any_duration(text)?;
    if duration.is_zero() {
        return Err("must be more than zero".to_owned());
    }
    Ok(duration)
}

fn any_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration > Duration::from_hours(366 * 24) {
        return Err("must be at most a year".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, clap::Error> {
        Config::try_parse_from([&["weir-coordinator"], args].concat())
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let mut config = parse(&["--models", "m"]).unwrap();
        config.serve.validate().unwrap();
        assert_eq!(config.serve.lease_duration, Duration::from_mins(10));
        assert_eq!(config.serve.orphan_grace, Duration::from_secs(10));
        assert_eq!(config.serve.retry_policy(), RetryPolicy::default());
        assert_eq!(config.serve.max_chunks_per_job, 1000);
        assert_eq!(config.serve.reconcile_interval, Duration::from_hours(1));
        assert_eq!(config.serve.job_retention, Duration::from_hours(14 * 24));
        assert!(config.serve.migrate && config.serve.dashboard);
    }

    #[test]
    fn any_host_is_gone_by_only_where_callers_are_asked_who_they_are() {
        let hosts = |args: &[&str]| {
            let security = parse(args).unwrap().serve.security;
            let hosts = security.hosts()?.iter();
            Some(hosts.map(ToString::to_string).collect::<Vec<_>>())
        };
        let named = ["--allowed-hosts", "a,B.example:7400"];
        let both = vec!["a".to_owned(), "b.example:7400".to_owned()];
        assert_eq!(hosts(&[]), Some(vec![]));
        assert_eq!(hosts(&named), Some(both.clone()));
        let certificates = ["--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "a"];
        assert_eq!(hosts(&certificates[..4]), Some(vec![]));
        for asked in [&["--tokens-file", "t"][..], &certificates] {
            assert_eq!(hosts(asked), None);
            assert_eq!(hosts(&[asked, &named].concat()), Some(both.clone()));
        }
    }

    #[test]
    fn bad_settings_are_refused_by_name() {
        for (args, setting) in [
            (&["--lease-duration", "0s"][..], "--lease-duration"),
            (&["--lease-duration", "soon"], "--lease-duration"),
            (&["--orphan-grace", "0s"], "--orphan-grace"),
            (&["--max-attempts", "0"], "--max-attempts"),
            (&["--max-batch-size", "0"], "--max-batch-size"),
            (&["--listen", "here"], "--listen"),
            (&["--metrics-namespaces", "1001"], "--metrics-namespaces"),
            (&["--log-format", "xml"], "--log-format"),
            (&["--database-connections", "0"], "--database-connections"),
            (&["--tls-cert", "c"], "--tls-key"),
            (&["--tls-key", "k"], "--tls-cert"),
            (&["--tls-client-ca", "a"], "--tls-cert"),
            (&["--requests-per-second", "0"], "--requests-per-second"),
            (&["--allowed-hosts", "*"], "--allowed-hosts"),
            (&["--allowed-hosts", "a,,b"], "--allowed-hosts"),
            (&["--allowed-hosts", "http://a"], "--allowed-hosts"),
            (
                &["--max-streams-per-client", "0"],
                "--max-streams-per-client",
            ),
            (
                &["--trace-url", "http://user:hunter2@t/{trace_id}"],
                "--trace-url",
            ),
            (&["--namespace-weights", "a"], "--namespace-weights"),
            (&["--namespace-weights", "a=0"], "--namespace-weights"),
            (&["--namespace-weights", "a=1001"], "--namespace-weights"),
            (&["--namespace-weights", "a=1.5"], "--namespace-weights"),
            (&["--namespace-weights", "A=1"], "--namespace-weights"),
            (&["--namespace-weights", "a=1,,b=2"], "--namespace-weights"),
            (&["--models", "a,,b"], "--models"),
            (&["--models", "a,b=0"], "--models"),
            (&["--models", "a", "--models-file", "f"], "--models-file"),
        ] {
            let error = parse(args).unwrap_err().to_string();
            assert!(error.contains(setting), "{args:?}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        for (args, setting) in [
            (&[][..], "--models"),
            (&[], "--models-file"),
            (&["--models-file", "/nowhere"], "--models-file"),
            (&["--models", "a,a"], "--models"),
            (
                &["--models", "a", "--namespace-weights", "n=1,n=2"],
                "--namespace-weights",
            ),
            (&["--models", "a,a=3"], "--models"),
            (&["--models", "a", "--chunk-size", "0"], "chunk_size"),
            (
                &["--models", "a", "--chunk-overlap", "1000"],
                "chunk_overlap",
            ),
            (&["--models", "a", "--backoff-cap", "1s"], "--backoff-cap"),
            (&["--models", "a", "--park-cap", "29m"], "--park-cap"),
            (&["--models", "a", "--listen", "0.0.0.0:1"], "--insecure"),
            (&["--models", "a", "--listen", "[::]:1"], "--tokens-file"),
        ] {
            let error = parse(args).unwrap().serve.validate().err().unwrap();
            assert!(error.to_string().contains(setting), "{args:?}: {error}");
        }
        for more in [&["--insecure"][..], &["--tokens-file", "t"]] {
            let args = [&["--models", "a", "--listen", "0.0.0.0:1"], more].concat();
            parse(&args).unwrap().serve.validate().unwrap();
        }
        let away = parse(&[
            "--database-url",
            "postgres://u:hunter2@h/d?password=hunter2",
        ]);
        let shown = format!("{:?}", away.unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
        let error = parse(&[]).unwrap().database.url().unwrap_err();
        assert!(error.to_string().contains("WEIR_DATABASE_URL"));
    }
}
