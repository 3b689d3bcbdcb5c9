//! What decides who comes in, and is read again while the server runs.

use std::sync::Arc;

use anyhow::anyhow;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::Tokens,
    config::{SecurityConfig, ServeConfig},
    files::{Files, Read},
    grpc::auth::{Gate, GateLayer},
    metrics::Metrics,
    tls::{self, Certificates},
};

const TOKENS_SETTING: &str = "--tokens-file (WEIR_TOKENS_FILE)";

/// What decides who comes in, read from files that may change.
#[derive(Debug)]
pub(super) struct Doors {
    certificates: Option<Files<rustls::ServerConfig>>,
    tokens: Option<Files<Tokens>>,
}

impl Doors {
    /// Reads the files for the first time.
    pub(super) fn open(config: &SecurityConfig) -> anyhow::Result<Self> {
        let tokens = config.tokens_file.clone().map(|path| {
            Files::open(TOKENS_SETTING, vec![path], |parts, held| {
                read_tokens(&parts.concat(), held)
            })
        });
        Ok(Self {
            certificates: tls::open(config)?,
            tokens: tokens.transpose()?,
        })
    }

    /// Goes on to read the files, and gives what is to stand before the
    /// services and what connections are made with.
    pub(super) fn keep(
        self,
        config: &ServeConfig,
        metrics: &Metrics,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<(GateLayer, Option<Certificates>)> {
        let tokens = self.tokens.as_ref().map(Files::subscribe);
        let certificates = self.certificates.as_ref().map(Files::subscribe);
        let report = |setting| {
            let gauge = metrics.files_in_force(setting);
            move |in_force| gauge.set(f64::from(u8::from(in_force)))
        };
        if let Some(files) = self.tokens {
            tasks.spawn(files.keep(shutdown.clone(), report("tokens")));
        }
        if let Some(files) = self.certificates {
            tasks.spawn(files.keep(shutdown.clone(), report("certificates")));
        }
        let gate = Gate::new(tokens, &config.security, &config.limits)?;
        Ok((GateLayer(Arc::new(gate)), certificates))
    }
}

/// Reads a tokens file: at start whole or not at all, later table by table.
fn read_tokens(file: &[u8], held: Option<&Tokens>) -> anyhow::Result<Read<Tokens>> {
    let Some(held) = held else {
        return Ok(Tokens::parse(file)?.into());
    };
    let (value, faults) = held.replaced_by(file)?;
    if value.is_empty() {
        tracing::warn!("No token is in force any more: nobody is let in.");
    }
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let fault = (!faults.is_empty()).then(|| anyhow!("{}", faults.join("; ")));
    Ok(Read { value, fault })
}
