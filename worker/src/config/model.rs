//! The models that a worker serves, and how it embeds with each.

use std::{ffi::OsString, fs, num::NonZeroU32, path::Path};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, CommandFactory as _, FromArgMatches as _};
use weir_embedder::{
    EmbedderConfig,
    judge::{self, CallSize},
};
use weir_proto::limits;

use super::Config;
use crate::endpoint::Settings;

/// How texts are embedded with a model.
#[derive(Debug, Clone, Args)]
pub struct ModelSettings {
    /// Most chunks in one call to the embedder.
    #[arg(long, env = "WEIR_BATCH_SIZE", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::MAX_BATCH_SIZE)))]
    pub batch_size: u32,

    /// Most estimated tokens in one call to the embedder; a token is taken for
    /// four bytes.
    #[arg(long, env = "WEIR_BATCH_TOKENS", default_value = "16384", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_tokens: u32,

    /// Most calls to the embedder at the same time. How many there are is
    /// learned from how it answers.
    #[arg(long, env = "WEIR_EMBEDDER_CONCURRENCY", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub embedder_concurrency: u32,

    /// Quota of calls to the embedder in a minute; none by default. Each worker
    /// keeps to it by itself.
    #[arg(long, env = "WEIR_REQUESTS_PER_MINUTE")]
    pub requests_per_minute: Option<NonZeroU32>,

    /// Quota of estimated tokens sent to the embedder in a minute; none by
    /// default. Each worker keeps to it by itself.
    #[arg(long, env = "WEIR_TOKENS_PER_MINUTE")]
    pub tokens_per_minute: Option<NonZeroU32>,

    /// Where and how to embed.
    #[command(flatten)]
    pub embedder: EmbedderConfig,
}

/// A model that is served.
#[derive(Debug, Clone)]
pub struct Model {
    /// The name that sources use.
    pub name: String,
    /// How it is embedded with.
    pub settings: ModelSettings,
}

/// A text that is too long is not shortened to less than this, in bytes: a
/// vector of so little would say nothing of it.
const SHORTEST_TEXT: usize = 64;

impl ModelSettings {
    /// How the embedder is used.
    pub(crate) fn endpoint(&self) -> Settings {
        Settings {
            judge: judge::Settings {
                ceiling: CallSize {
                    texts: self.batch_size as usize,
                    tokens: self.batch_tokens as usize,
                },
                shortest: SHORTEST_TEXT,
            },
            calls: self.embedder_concurrency as usize,
            timeout: self.embedder.embed_timeout,
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
        }
    }
}

impl Config {
    /// The models to serve: that of `--model`, or those of the models file.
    /// `command_line` is what these settings were parsed from; what the file
    /// says of a model takes its place.
    ///
    /// Fails, naming file, model and setting, when the file is not to be used.
    pub fn models(&self, command_line: &[OsString]) -> anyhow::Result<Vec<Model>> {
        let Some(path) = &self.models_file else {
            let name = self
                .model
                .clone()
                .context("--model (WEIR_MODEL) is not set")?;
            let settings = self.settings.clone();
            return Ok(vec![Model { name, settings }]);
        };
        from_file(path, command_line)
            .with_context(|| format!("--models-file (WEIR_MODELS_FILE) {}", path.display()))
    }
}

fn from_file(path: &Path, command_line: &[OsString]) -> anyhow::Result<Vec<Model>> {
    let text = fs::read_to_string(path).context("it cannot be read")?;
    let tables: toml::Table = text.parse().context("it is not TOML")?;
    ensure!(!tables.is_empty(), "it names no model");
    let models = tables.into_iter().map(|(name, table)| {
        let settings = settings(&name, &table, command_line);
        let settings = settings.with_context(|| format!("model {name:?}"))?;
        Ok(Model { name, settings })
    });
    models.collect()
}

/// The command line with the settings of a table after it, each of which takes
/// the place of the same flag or variable.
fn settings(
    model: &str,
    table: &toml::Value,
    command_line: &[OsString],
) -> anyhow::Result<ModelSettings> {
    super::model(model).map_err(anyhow::Error::msg)?;
    let toml::Value::Table(table) = table else {
        bail!("this is no table; settings follow a line [the-model]");
    };
    let known = ModelSettings::augment_args(clap::Command::new("model"));
    let known: Vec<&str> = known
        .get_arguments()
        .filter_map(|arg| arg.get_long())
        .collect();
    let mut words = command_line.to_vec();
    for (key, value) in table {
        ensure!(
            known.contains(&key.as_str()),
            "there is no setting {key:?}; there are {}",
            known.join(", ")
        );
        let value = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(said) => said.to_string(),
            _ => bail!("{key} must be a string, a whole number, true or false"),
        };
        words.push(format!("--{key}={value}").into());
    }
    let matches = Config::command()
        .args_override_self(true)
        .try_get_matches_from(words)?;
    Ok(ModelSettings::from_arg_matches(&matches)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;

    use super::*;
    use weir_embedder::EmbedderKind;

    fn models(file: &str, flags: &[&str]) -> anyhow::Result<Vec<Model>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.toml");
        fs::write(&path, file).unwrap();
        let path = path.to_str().unwrap();
        let words = ["weir-worker", "--models-file", path];
        let words: Vec<OsString> = words.iter().chain(flags).map(OsString::from).collect();
        Config::try_parse_from(&words).unwrap().models(&words)
    }

    #[test]
    fn a_table_of_the_file_takes_the_place_of_flags() {
        let file = r#"
            [nomic-embed-text]
            embedder-url = "http://ollama:11434"
            batch-size = 8

            ["text-embedding-3-small"]
            embedder = "openai"
            embedder-url = "https://api.example.com"
            embed-timeout = "20s"
            requests-per-minute = 500
        "#;
        let models = models(file, &["--batch-size=16", "--embed-timeout", "1m"]).unwrap();
        let [nomic, small] = models.as_slice() else {
            panic!("{models:?}");
        };
        assert_eq!(nomic.name, "nomic-embed-text");
        assert_eq!(nomic.settings.batch_size, 8);
        assert_eq!(nomic.settings.embedder.embedder, EmbedderKind::Ollama);
        assert_eq!(
            nomic.settings.embedder.embed_timeout,
            Duration::from_mins(1)
        );
        assert_eq!(small.name, "text-embedding-3-small");
        assert_eq!(small.settings.batch_size, 16);
        assert_eq!(small.settings.embedder.embedder, EmbedderKind::Openai);
        assert_eq!(
            small.settings.embedder.embed_timeout,
            Duration::from_secs(20)
        );
        assert_eq!(small.settings.requests_per_minute, NonZeroU32::new(500));
    }

    #[test]
    fn a_bad_file_is_refused_with_its_name_and_the_place() {
        for (file, told) in [
            ("", "it names no model"),
            ("[m", "it is not TOML"),
            ("batch-size = 3", "this is no table"),
            ("['']", "a model's name has 1 to"),
            (
                "[m]\nconcurrency = 3",
                "there is no setting \"concurrency\"",
            ),
            ("[m]\nbatch-size = [1]", "batch-size must be"),
            ("[m]\nbatch-size = true", "batch-size"),
            ("[m]\nbatch-size = 0", "--batch-size"),
            ("[m]\nembedder = 'oracle'", "--embedder"),
            ("[m]\nembed-timeout = '0s'", "--embed-timeout"),
        ] {
            let error = format!("{:#}", models(file, &[]).unwrap_err());
            assert!(error.contains(told), "{file}: {error}");
            assert!(error.contains("WEIR_MODELS_FILE"), "{file}: {error}");
            assert!(error.contains("models.toml"), "{file}: {error}");
        }
        let words = ["weir-worker", "--models-file", "nowhere.toml"].map(OsString::from);
        let error = Config::try_parse_from(&words).unwrap().models(&words);
        assert!(format!("{:#}", error.unwrap_err()).contains("it cannot be read"));
    }

    #[test]
    fn one_model_or_a_file_of_them() {
        for words in [
            &["weir-worker"][..],
            &["weir-worker", "--model", "m", "--models-file", "f"],
        ] {
            let error = Config::try_parse_from(words).unwrap_err().to_string();
            assert!(error.contains("--model"), "{error}");
        }
    }
}
