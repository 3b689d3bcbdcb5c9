//! The worker's process, with an embedder that takes no time, or a fixed time.

use std::{ffi::OsString, sync::Arc, time::Duration};

use crate::cluster::MODEL;
use async_trait::async_trait;
use clap::Parser as _;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use weir_embedder::{EmbedError, Embedder, Embedding, Limits, Probe};
use weir_worker::{Config, Served, telemetry};

/// Vectors that the stub draws from: noise, so that nothing compresses them.
const VECTORS: usize = 64;

/// How the stub embeds, and what the worker is told besides.
#[derive(Debug, clap::Args)]
pub struct WorkerArgs {
    /// Numbers in a vector.
    #[arg(long)]
    dimension: usize,
    /// How long each call takes.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "0s")]
    delay: Duration,
    /// Flags of the worker.
    #[arg(last = true)]
    worker: Vec<OsString>,
}

struct Stub {
    vectors: Vec<Vec<f32>>,
    delay: Duration,
}

#[async_trait]
impl Embedder for Stub {
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Embedding>, EmbedError> {
        if !self.delay.is_zero() {
            // The runtime's own clock is late by up to a millisecond, which were measured as the worker's.
            let delay = self.delay;
            let slept = spawn_blocking(move || std::thread::sleep(delay)).await;
            slept.expect("a sleep does not fail");
        }
        let vector = |text: &&str| {
            let place = text.bytes().map(usize::from).sum::<usize>();
            Ok(self.vectors[place % VECTORS].clone())
        };
        Ok(texts.iter().map(vector).collect())
    }

    async fn probe(&self, _: usize) -> Result<Probe, EmbedError> {
        Ok(Probe {
            dimension: self.vectors[0].len(),
            limits: Limits::default(),
        })
    }
}

/// Noise of a dimension.
pub fn vectors(dimension: usize) -> Vec<Vec<f32>> {
    let mut random = SmallRng::seed_from_u64(dimension as u64);
    (0..VECTORS)
        .map(|_| {
            (0..dimension)
                .map(|_| random.random_range(-1.0..1.0))
                .collect()
        })
        .collect()
}

/// Works until it is told to stop.
pub async fn work(args: WorkerArgs) -> anyhow::Result<()> {
    let own = [
        OsString::from("weir-worker"),
        "--model".into(),
        MODEL.into(),
    ];
    let words: Vec<OsString> = own.into_iter().chain(args.worker).collect();
    let config = Config::parse_from(&words);
    telemetry::init(config.log_format, &config.log)?;
    let stub: Arc<dyn Embedder> = Arc::new(Stub {
        vectors: vectors(args.dimension),
        delay: args.delay,
    });
    let served = config.models()?.into_iter();
    let served = served.map(|model| Served::by(model, Arc::clone(&stub)));
    weir_worker::run(config.clone(), served.collect(), CancellationToken::new()).await
}
