//! The settings: command line, then environment, checked once.

mod credentials;

use std::{net::SocketAddr, path::PathBuf, process, time::Duration};

use anyhow::ensure;
use clap::Parser;
use rand::distr::{Alphanumeric, SampleString as _};
use tonic::transport::Uri;
use weir_embedder::{EmbedderConfig, Profile};
use weir_proto::{limits, secret::UrlParser};
use weir_telemetry::TraceConfig;

pub use self::credentials::Credentials;
use crate::telemetry::LogFormat;

/// Takes batches of texts from the coordinator, embeds them and sends the vectors back.
#[derive(Debug, Clone, Parser)]
#[command(name = "weir-worker", version)]
pub struct Config {
    /// The coordinator, as `http://host:port` or `https://host:port`. One
    /// address; for several replicas, that of the balancer before them.
    #[arg(long, env = "WEIR_COORDINATOR", default_value = "http://127.0.0.1:7400", hide_env_values = true, value_parser = UrlParser(coordinator))]
    pub coordinator: Uri,

    /// How this worker and the coordinator know each other.
    #[command(flatten)]
    pub credentials: Credentials,

    /// The models to embed with, separated by commas. With
    /// --models-file, those of the file; all of it where none is named.
    #[arg(long, env = "WEIR_MODEL", value_name = "NAMES", required_unless_present = "models_file", value_delimiter = ',', value_parser = model)]
    pub model: Vec<String>,

    /// File of model profiles, in TOML, a table a model: how each is reached and
    /// what it wants. Over the flags, which hold for all models. The same file
    /// may be given to the coordinator and the command line.
    #[arg(long, env = "WEIR_MODELS_FILE", value_name = "FILE")]
    pub models_file: Option<PathBuf>,

    /// Who this worker is, unique among live workers: up to 200 visible ASCII
    /// characters. By default host, process and a random ending.
    #[arg(long, env = "WEIR_WORKER_ID", default_value_t = generated_worker_id(), hide_default_value = true, value_parser = worker_id)]
    pub worker_id: String,

    /// How long a stopping worker may go on with the batches it has, before it
    /// hands them back.
    #[arg(long, env = "WEIR_DRAIN_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,

    /// Address to serve `/livez` and `/readyz` on, for probes, and `/metrics`;
    /// not served by default. Port 0 takes any free one.
    #[arg(long, env = "WEIR_HTTP_LISTEN", value_name = "ADDRESS")]
    pub http_listen: Option<SocketAddr>,

    /// How texts are embedded.
    #[command(flatten)]
    pub embedder: EmbedderConfig,

    /// How logs are written.
    #[arg(long, env = "WEIR_LOG_FORMAT", default_value = "human")]
    pub log_format: LogFormat,

    /// What is logged: `info`, or by target, `info,weir_worker=debug`.
    #[arg(long, env = "WEIR_LOG", default_value = "info")]
    pub log: String,

    /// Which traces are sent, and where.
    #[command(flatten)]
    pub trace: TraceConfig,
}

fn coordinator(text: &str) -> Result<Uri, String> {
    let uri: Uri = text
        .parse()
        .map_err(|error| format!("not a URL: {error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("it must start with http:// or https://".to_owned());
    }
    if uri.path() != "/" || uri.query().is_some() {
        return Err("it must end after host and port".to_owned());
    }
    // Addresses are logged.
    if uri.authority().is_some_and(|it| it.as_str().contains('@')) {
        return Err(
            "it must not hold a user or password; a token goes into --token-file".to_owned(),
        );
    }
    Ok(uri)
}

fn model(text: &str) -> Result<String, String> {
    weir_embedder::model_name(text)?;
    Ok(text.to_owned())
}

impl Config {
    /// Returns the profiles of the models to serve. Fails, naming the setting,
    /// when they cannot be read.
    pub fn models(&self) -> anyhow::Result<Vec<Profile>> {
        for (index, model) in self.model.iter().enumerate() {
            ensure!(
                !self.model[..index].contains(model),
                "--model (WEIR_MODEL): {model:?} is named twice"
            );
        }
        let file = self.models_file.as_deref();
        self.embedder.profiles(file, &self.model)
    }
}

fn worker_id(text: &str) -> Result<String, String> {
    let visible = text.chars().all(|c| c.is_ascii_graphic());
    if text.is_empty() || !visible || text.len() > limits::MAX_WORKER_ID_CHARS {
        return Err(format!(
            "a worker's id has 1 to {} visible ASCII characters",
            limits::MAX_WORKER_ID_CHARS
        ));
    }
    Ok(text.to_owned())
}

/// `host-pid-random`. The random ending keeps containers apart that share a
/// host name and have the same process id.
fn generated_worker_id() -> String {
    let node = rustix::system::uname();
    let host: String = node
        .nodename()
        .to_string_lossy()
        .chars()
        .filter(char::is_ascii_graphic)
        .take(100)
        .collect();
    let ending = Alphanumeric.sample_string(&mut rand::rng(), 6);
    format!("{host}-{}-{ending}", process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, clap::Error> {
        Config::try_parse_from(["weir-worker", "--model", "m"].iter().chain(args))
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.coordinator, "http://127.0.0.1:7400/");
        assert_eq!(config.http_listen, None);
        let model = config.models().unwrap().remove(0);
        assert_eq!((model.batch_size, model.batch_tokens), (32, 16_384));
        assert_eq!(model.concurrency, 4);
        assert_eq!(model.timeout, Duration::from_mins(5));
        assert_eq!(config.drain_timeout, Duration::from_secs(30));
        assert_eq!(config.log_format, LogFormat::Human);
        assert_eq!(config.log, "info");
    }

    #[test]
    fn the_default_worker_id_is_valid_and_differs_each_time() {
        let (one, two) = (generated_worker_id(), generated_worker_id());
        assert_eq!(worker_id(&one), Ok(one.clone()));
        assert_ne!(one, two);
    }

    #[test]
    fn a_bad_setting_is_refused_by_name() {
        let long = "m".repeat(201);
        for (name, value) in [
            ("--coordinator", "127.0.0.1:7400"),
            ("--coordinator", "ftp://host"),
            ("--coordinator", "http://host:1/path"),
            ("--coordinator", "http://a:1,http://b:1"),
            ("--coordinator", "http://user:hunter2@host:1"),
            ("--coordinator", "http://user:hunter2@ho st"),
            ("--embedder-url", "http://user:hunter2@host"),
            ("--embedder-url", "http://user:hunter2@host:port"),
            ("--worker-id", ""),
            ("--worker-id", "a b"),
            ("--worker-id", &long),
            ("--http-listen", "7401"),
            ("--batch-size", "0"),
            ("--batch-size", "10001"),
            ("--batch-tokens", "0"),
            ("--embedder-concurrency", "0"),
            ("--requests-per-minute", "0"),
            ("--tokens-per-minute", "0"),
            ("--embed-timeout", "0s"),
            ("--embedder", "oracle"),
            ("--dimensions", "0"),
            ("--drain-timeout", "-1s"),
            ("--log-format", "xml"),
            ("--client-cert", "without-key.pem"),
            ("--client-key", "without-cert.pem"),
        ] {
            let error = parse(&[&format!("{name}={value}")]).unwrap_err();
            assert!(
                error.to_string().contains(name),
                "{name}={value} gave: {error}"
            );
            let all = format!("{error} {error:?}");
            assert!(!all.contains("hunter2"), "{name}: {all}");
        }
        for model in ["", " ", &long, "a,,b", "a, b"] {
            let error = Config::try_parse_from(["weir-worker", "--model", model]).unwrap_err();
            assert!(error.to_string().contains("--model"), "{error}");
        }
    }

    fn models(file: &str, flags: &[&str]) -> anyhow::Result<Vec<Profile>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.toml");
        std::fs::write(&path, file).unwrap();
        let words = ["weir-worker", "--models-file", path.to_str().unwrap()];
        let words = words.iter().chain(flags);
        Config::try_parse_from(words).unwrap().models()
    }

    #[test]
    fn all_models_of_the_file_are_served_or_those_that_are_named() {
        let file = "[small]\nbatch-size = 8\n[large]\n[other]\n";
        let names = |flags: &[&str]| -> Vec<String> {
            let models = models(file, flags).unwrap().into_iter();
            models.map(|model| model.name).collect()
        };
        assert_eq!(names(&[]), ["small", "large", "other"]);
        assert_eq!(names(&["--model", "other,small"]), ["other", "small"]);
        let sizes = models(file, &["--batch-size=16"]).unwrap().into_iter();
        let sizes: Vec<u32> = sizes.map(|model| model.batch_size).collect();
        assert_eq!(sizes, [8, 16, 16]);
        let error = models(file, &["--model", "large,little"]).unwrap_err();
        for part in ["WEIR_MODELS_FILE", "[\"little\"]", "small, large, other"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        let error = models(file, &["--model", "large,large"]).unwrap_err();
        assert!(error.to_string().contains("WEIR_MODEL"), "{error}");
    }

    #[test]
    fn models_without_a_file_are_reached_as_the_flags_say() {
        let words = ["weir-worker", "--model", "a,b", "--batch-size=7"];
        let models = Config::try_parse_from(words).unwrap().models().unwrap();
        let told: Vec<_> = models.iter().map(|it| (&*it.name, it.batch_size)).collect();
        assert_eq!(told, [("a", 7), ("b", 7)]);
        let error = Config::try_parse_from(["weir-worker"]).unwrap_err();
        assert!(error.to_string().contains("--model"), "{error}");
    }
}
