//! The command line.

use std::path::PathBuf;

use clap::{
    ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    parser::ValueSource,
};
use weir_proto::secret::UrlText;

use crate::{
    chunks, credentials::Credentials, doctor, failures, job, jobs, local, put, search, shell,
    sources, status, steer, up, watch, workers,
};

const EXIT_CODES: &str = "Exit codes:
  0  done; for watch and put --watch: everything is embedded; for status: healthy or indexing
  1  something failed
  2  the command line, or the configuration file, is wrong
  3  the coordinator, or its database, cannot be reached
  4  for status: degraded
  5  for watch and put --watch: all is embedded but texts that were rejected (weir chunks NAME says
     why; weir retry --source NAME takes it back)";

/// Keeps vector embeddings up to date: hands documents to a coordinator, and
/// shows how far they are.
#[derive(Debug, Parser)]
#[command(name = "weir", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Cli {
    /// What every command understands.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Reads the command line of this process. Ends the process, with exit
    /// code 2, when it is wrong.
    pub(crate) fn from_process() -> Self {
        let command = local::embed_locally_by_default(Self::command(), &local::runtime_dir());
        Self::of(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }

    fn of(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut cli = Self::from_arg_matches(matches)?;
        if let (Command::Up(args), Some((_, of_up))) = (&mut cli.command, matches.subcommand()) {
            let source = of_up.value_source("runtime_dir");
            args.runtime_was_found = source == Some(ValueSource::DefaultValue);
        }
        Ok(cli)
    }
}

/// What every command understands.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Global {
    /// Where the coordinator is.
    #[arg(
        long,
        global = true,
        env = "WEIR_COORDINATOR",
        value_name = "URL",
        hide_env_values = true,
        help = "The coordinator to talk to [default: http://127.0.0.1:7400]"
    )]
    pub(crate) coordinator: Option<UrlText>,
    /// The namespace of the sources [default: default].
    #[arg(
        long,
        short,
        global = true,
        env = "WEIR_NAMESPACE",
        value_name = "NAME"
    )]
    pub(crate) namespace: Option<String>,
    /// How the coordinator is known, and who we are to it.
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    /// The profile of the configuration file whose settings apply where a flag or a variable says
    /// nothing [default: the file's default-profile].
    #[arg(long, global = true, env = "WEIR_PROFILE", value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// The configuration file [default: weir/config.toml in the folder for configuration,
    /// ~/.config].
    #[arg(long, global = true, env = "WEIR_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Write JSON: one document, or one a line where a command goes on.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to log on stderr: a level, or target=level, separated by commas.
    #[arg(
        long,
        global = true,
        env = "WEIR_LOG",
        default_value = "warn",
        value_name = "FILTER"
    )]
    pub(crate) log: String,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run all of Weir in this process: Postgres, coordinator and workers.
    Up(up::UpArgs),
    /// Put a document: its content replaces the source's.
    Put(put::PutArgs),
    /// Show one source, with what is open.
    Get(sources::GetArgs),
    /// List the sources.
    Ls(sources::LsArgs),
    /// Watch sources until everything is embedded.
    Watch(watch::WatchArgs),
    /// Say how a namespace, or all of it, stands.
    Status(status::StatusArgs),
    /// List what went wrong, by cause.
    Failures(failures::FailuresArgs),
    /// Take a failure off the list until it is seen again.
    Dismiss(failures::DismissArgs),
    /// List jobs, newest first.
    Jobs(jobs::JobsArgs),
    /// Show one job with its tries.
    Job(job::JobArgs),
    /// List the workers that are connected, and how their embedders are.
    Workers(workers::WorkersArgs),
    /// List a source's chunks by what became of them.
    Chunks(chunks::ChunksArgs),
    /// Have jobs run again.
    Retry(steer::RetryArgs),
    /// Cancel jobs; what is embedded stays.
    Cancel(steer::CancelArgs),
    /// Search by meaning.
    Search(search::SearchArgs),
    /// Delete a source with its vectors.
    Rm(sources::RmArgs),
    /// Check the set-up: configuration, coordinator, database, embedder.
    Doctor(doctor::DoctorArgs),
    /// Write what a shell needs to complete commands.
    Completions(shell::CompletionsArgs),
    /// Write the manual pages.
    Man(shell::ManArgs),
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use weir_embedder::EmbedderKind;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        let command = local::embed_locally_by_default(Cli::command(), Path::new("/there"));
        command.debug_assert();
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("Exit codes"), "{help}");
    }

    #[test]
    fn a_runtime_that_is_named_is_not_one_that_was_found() {
        let found = |words: &[&str]| {
            let command = local::embed_locally_by_default(Cli::command(), Path::new("/there"));
            let matches = command.try_get_matches_from(words).unwrap();
            match Cli::of(&matches).unwrap().command {
                Command::Up(args) => args.runtime_was_found,
                other => panic!("{other:?}"),
            }
        };
        assert!(found(&["weir", "up"]));
        assert!(!found(&["weir", "up", "--runtime-dir", "/there"]));
    }

    /// A file means the same to all programs, whatever the defaults of this one.
    #[test]
    fn texts_are_embedded_here_unless_a_file_says_how() {
        let embedder = |words: &[&str]| {
            let command = local::embed_locally_by_default(Cli::command(), Path::new("/there"));
            let matches = command.try_get_matches_from(words).unwrap();
            match Cli::of(&matches).unwrap().command {
                Command::Search(args) => args.embedder.embedder,
                Command::Up(args) => args.embedder.embedder,
                other => panic!("{other:?}"),
            }
        };
        let local = Some(EmbedderKind::Local);
        assert_eq!(embedder(&["weir", "search", "words"]), local);
        assert_eq!(embedder(&["weir", "up"]), local);
        let of_file = ["--models-file", "f"];
        assert_eq!(embedder(&[&["weir", "up"][..], &of_file].concat()), None);
        let search = [&["weir", "search", "words"][..], &of_file].concat();
        assert_eq!(embedder(&search), None);
        let tei = [&search[..], &["--embedder", "tei"]].concat();
        assert_eq!(embedder(&tei), Some(EmbedderKind::Tei));
    }
}
