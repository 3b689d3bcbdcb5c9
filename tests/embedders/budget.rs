//! LiteLLM's proxy before a server, with a budget that runs out: an outage for
//! Weir, whatever status the proxy gives it.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::process::Command;
use weir_proto::v1::JobState;
use weir_tests::{
    clients::until,
    cluster::{MODEL, Worker},
    world::World,
};

use crate::{
    build, ours,
    process::{Group, free_port, text},
};

/// The key that may call, and the one that owns the proxy.
const KEY: &str = "sk-6b0d5e0f3a7c41d98e52";
const OWNER: &str = "sk-owner-94c1f7e2b8a3460d";

/// Texts of a source. A character of them costs as much as a token, a tenth of
/// a cent.
const TEXTS: usize = 40;

/// How a budget that is spent is told.
struct Told {
    status: u16,
    words: &'static str,
    /// Whose it is: the key's, as long as the file says; otherwise the model's
    /// for some seconds.
    of_key: bool,
}

const WAYS: [Told; 3] = [
    // What it says since 2026, and what it said before.
    Told {
        status: 422,
        words: "exceeded budget for model",
        of_key: true,
    },
    Told {
        status: 400,
        words: "exceeded budget for model",
        of_key: true,
    },
    Told {
        status: 429,
        words: "crossed budget",
        of_key: false,
    },
];

/// Spends a budget in each way, and says what came of it.
pub(crate) async fn check(folder: &Path) -> anyhow::Result<String> {
    let mut said = Vec::new();
    for told in &WAYS {
        let outcome = spend(folder, told).await;
        said.push(outcome.with_context(|| format!("a budget told with {}", told.status))?);
    }
    Ok(said.join("; "))
}

/// The proxy, and the file that holds the budget of its key in dollars.
struct Proxy {
    _process: Group,
    files: TempDir,
    url: String,
}

impl Proxy {
    async fn start(folder: &Path, told: &Told, server: &str) -> anyhow::Result<Self> {
        let files = tempfile::tempdir()?;
        let file = |name: &str| files.path().join(name);
        fs::write(file("config.yaml"), config(told, server))?;
        fs::copy(ours("litellm/budget.py"), file("budget.py"))?;
        fs::write(file("key"), KEY)?;
        fs::write(file("dollars"), "0.15")?;
        let port = free_port()?;
        let mut command = Command::new(folder.join("litellm/bin/litellm"));
        command
            .args(["--config", text(&file("config.yaml"))?])
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .env("BUDGET_KEY", KEY)
            .env("BUDGET_FILE", file("dollars"))
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
        let mut process = Group::spawn(&mut command, &folder.join("litellm/log"))?;
        process.listens(port).await?;
        Ok(Self {
            _process: process,
            files,
            url: format!("http://127.0.0.1:{port}"),
        })
    }

    /// Gives the key so many dollars in all.
    fn grant(&self, dollars: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.files.path().join("dollars"), dollars)?)
    }
}

fn config(told: &Told, server: &str) -> String {
    let of_model = if told.of_key {
        ""
    } else {
        "\n      max_budget: 0.15\n      budget_duration: 5s"
    };
    let auth = if told.of_key {
        "\n  custom_auth: budget.check\n  custom_auth_run_common_checks: true"
    } else {
        ""
    };
    let master = if told.of_key { OWNER } else { KEY };
    let status = told.status;
    format!(
        "model_list:
  - model_name: {MODEL}
    litellm_params:
      model: openai/{MODEL}
      api_base: {server}/v1
      api_key: none
      input_cost_per_token: 0.001{of_model}
general_settings:
  master_key: {master}{auth}
litellm_settings:
  telemetry: false
  num_retries: 0
  enable_post_custom_auth_checks: true
  budget_exceeded_status_code: {status}
"
    )
}

/// Embeds more than the budget pays for, and then the rest. Nothing is
/// rejected, nobody is charged, and no text is embedded twice.
async fn spend(folder: &Path, told: &Told) -> anyhow::Result<String> {
    let world = World::start(&[]).await;
    let proxy = Proxy::start(folder, told, &world.embedder.url()).await?;
    let key = proxy.files.path().join("key");
    let flags = ["--embedder", "openai", "--embedder-url", &proxy.url];
    let flags = [&flags[..], &["--embedder-api-key-file", text(&key)?]].concat();
    build(&flags, MODEL).await?.probe(0).await?;

    let settings = [
        ("WEIR_EMBEDDER", "openai"),
        ("WEIR_EMBEDDER_API_KEY_FILE", text(&key)?),
        ("WEIR_BATCH_SIZE", "4"),
    ];
    let items = (0..TEXTS).map(|number| (format!("{number:02}"), format!("parcel {number:02}")));
    let put = world.put_items("source", items).await;
    let job_id = put.jobs[0].job_id;
    let _worker = Worker::spawn(&world.coordinator.url(), &proxy.url, &settings);
    let mut paid = None;
    if told.of_key {
        let is_told = async || {
            let job = world.job(job_id).await;
            job.last_error.contains(told.words) || job.state() == JobState::Succeeded
        };
        until(is_told).await;
        let source = world.source("source").await.source;
        let source = source.context("the source is there")?;
        ensure!(
            (1..TEXTS as i64).contains(&source.chunks_embedded) && source.chunks_rejected == 0,
            "the budget pays for some, and the others wait: {source:?}"
        );
        paid = Some(source.chunks_embedded);
        proxy.grant("100")?;
    }
    world.succeeded(job_id).await;
    world.assert_exact("source").await;
    let history = world.history(job_id).await;
    ensure!(
        history.iter().all(|was| was.attempt == 0),
        "charged: {history:?}"
    );
    ensure!(world.rows("rejections").await == 0, "a text is rejected");
    let mut again = world.embedder.answered();
    again.retain(|text, times| text != "probe" && *times > 1);
    ensure!(again.is_empty(), "embedded again: {again:?}");
    let paid = paid.map_or_else(String::new, |paid| {
        format!(" after {paid} of {TEXTS} texts")
    });
    Ok(format!(
        "{}: spent{paid}, all embedded once it was back",
        told.status
    ))
}
