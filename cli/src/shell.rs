//! `weir completions` and `weir man`: what goes into a package beside the
//! program.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::{args::Cli, failure::Failure, output};

/// What `weir completions` understands.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// What `weir man` understands.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder to write the pages to; made if it is not there.
    dir: PathBuf,
}

/// Writes the completions to stdout.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "weir", &mut script);
    let mut stdout = io::stdout().lock();
    stdout.write_all(&script)?;
    Ok(stdout.flush()?)
}

/// Writes a page for each command.
pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let dir = &args.dir;
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .with_context(|| format!("cannot write manual pages to {}", dir.display()))?;
    Ok(output::line(format!(
        "The manual is in {}: man {}",
        dir.display(),
        dir.join("weir.1").display()
    ))?)
}
