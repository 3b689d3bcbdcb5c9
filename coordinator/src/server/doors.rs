//! What decides who comes in, and is read again while the server runs.

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::Tokens,
    config::{SecurityConfig, ServeConfig},
    files::Files,
    grpc::auth::{Gate, GateLayer},
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
            Files::open(TOKENS_SETTING, vec![path], |parts| {
                Ok(Tokens::parse(&parts.concat())?)
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
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<(GateLayer, Option<Certificates>)> {
        let tokens = self.tokens.as_ref().map(Files::subscribe);
        let certificates = self.certificates.as_ref().map(Files::subscribe);
        if let Some(files) = self.tokens {
            tasks.spawn(files.keep(shutdown.clone()));
        }
        if let Some(files) = self.certificates {
            tasks.spawn(files.keep(shutdown.clone()));
        }
        let gate = Gate::new(tokens, &config.security, &config.limits)?;
        Ok((GateLayer(Arc::new(gate)), certificates))
    }
}
