//! Settings of who is let in.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::ConfigError;
use crate::access::Host;

/// Who is let in, and how they prove it.
#[derive(Debug, Clone, Args)]
pub struct SecurityConfig {
    /// Certificate chain to serve TLS with, in PEM. Read again when it changes, as are all files
    /// here.
    #[arg(long, env = "WEIR_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of that certificate, in PEM.
    #[arg(long, env = "WEIR_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Authorities of clients and workers, in PEM: whoever calls needs a certificate of one of them.
    #[arg(
        long,
        env = "WEIR_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_client_ca: Option<PathBuf>,
    /// The tokens of clients and workers, a TOML table each, as `weir-coordinator token` writes
    /// them: whoever calls needs one.
    #[arg(long, env = "WEIR_TOKENS_FILE", value_name = "FILE")]
    pub tokens_file: Option<PathBuf>,
    /// Serve on an address that other machines reach although neither tokens nor certificates of
    /// clients are asked for.
    #[arg(long, env = "WEIR_INSECURE", default_value = "false", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure: bool,
    /// Names that the port may be called by, separated by commas, each a host or host:port: besides
    /// loopback names and the address that a call came to. Others are answered only where this is
    /// not set and tokens or certificates of clients are asked for.
    #[arg(
        long,
        env = "WEIR_ALLOWED_HOSTS",
        value_name = "HOSTS",
        value_delimiter = ','
    )]
    pub allowed_hosts: Vec<Host>,
    /// Whether anybody may ask over gRPC reflection what the services look like.
    #[arg(long, env = "WEIR_REFLECTION", default_value = "true", action = clap::ArgAction::Set)]
    pub reflection: bool,
}

impl SecurityConfig {
    /// Refuses an open door that nobody asked for.
    pub(super) fn validate(&self, listen: SocketAddr) -> Result<(), ConfigError> {
        if self.is_open() && !listen.ip().is_loopback() && !self.insecure {
            return Err(ConfigError::OpenDoor { listen });
        }
        Ok(())
    }

    /// The hosts that the port may be called by, besides its own; `None` for
    /// all.
    pub(crate) fn hosts(&self) -> Option<&[Host]> {
        let any = self.allowed_hosts.is_empty() && !self.is_open();
        (!any).then_some(&self.allowed_hosts)
    }

    /// Whether nobody is asked who they are.
    fn is_open(&self) -> bool {
        self.tokens_file.is_none() && self.tls_client_ca.is_none()
    }

    /// What the log should say about these settings, if anything.
    pub fn warning(&self, listen: SocketAddr) -> Option<&'static str> {
        if listen.ip().is_loopback() {
            return None;
        }
        if self.is_open() {
            return Some(
                "Serving INSECURELY, as --insecure says: whoever reaches this address can read, write and delete \
                 everything.",
            );
        }
        self.tls_cert.is_none().then_some(
            "Serving without TLS: tokens and texts can be read on their way. Leave that only to a network that \
             encrypts by itself.",
        )
    }
}
