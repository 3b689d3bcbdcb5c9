//! What `make runtime` put on this machine, and the defaults that follow.

use std::{
    env,
    path::{Path, PathBuf},
};

use clap::{Command, builder::ArgPredicate};

/// The local model.
pub(crate) const DEFAULT_MODEL: &str = "all-MiniLM-L6-v2";

/// The folder that `make runtime` fills: `.runtime` where we are, or in the
/// project that this program was built in.
pub(crate) fn runtime_dir() -> PathBuf {
    let here = PathBuf::from(".runtime");
    if here.is_dir() {
        return here;
    }
    let program = env::current_exe()
        .ok()
        .and_then(|path| path.canonicalize().ok());
    program
        .iter()
        .flat_map(|path| path.ancestors())
        .map(|dir| dir.join(".runtime"))
        .find(|dir| dir.is_dir())
        .unwrap_or(here)
}

/// Makes the local model the default embedder of the commands that embed: on
/// one machine it works without a server. Workers on their own default to a
/// server instead, and so does a file of models, which must mean the same to
/// all; `doctor` looks at what they would use.
pub(crate) fn embed_locally_by_default(command: Command, runtime_dir: &Path) -> Command {
    let model_dir = runtime_dir.join("model").into_os_string();
    let runtime_dir = runtime_dir.as_os_str().to_owned();
    command.mut_subcommands(|command| {
        let embeds = command.get_name() != "doctor";
        command.mut_args(|arg| match arg.get_long() {
            Some("embedder") if embeds => arg.default_value("local").default_value_if(
                "models_file",
                ArgPredicate::IsPresent,
                None,
            ),
            Some("local-model-dir") => arg.default_value(model_dir.clone()),
            Some("runtime-dir") => arg.default_value(runtime_dir.clone()),
            _ => arg,
        })
    })
}
