//! How worker and coordinator know each other.

use std::path::PathBuf;

use clap::Args;

/// How worker and coordinator know each other. All files are read again: those
/// of TLS with each connection, the token with each call.
#[derive(Debug, Clone, Default, Args)]
pub struct Credentials {
    /// Authorities of the coordinator's certificate, in PEM, where they are not
    /// among those of the system.
    #[arg(long, env = "WEIR_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Certificate chain that this worker shows, in PEM.
    #[arg(
        long,
        env = "WEIR_CLIENT_CERT",
        value_name = "FILE",
        requires = "client_key"
    )]
    pub client_cert: Option<PathBuf>,

    /// Private key of that certificate, in PEM.
    #[arg(
        long,
        env = "WEIR_CLIENT_KEY",
        value_name = "FILE",
        requires = "client_cert"
    )]
    pub client_key: Option<PathBuf>,

    /// File with this worker's token.
    #[arg(long, env = "WEIR_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Send the token to another machine without TLS, for whoever is on the way
    /// to read.
    #[arg(long, env = "WEIR_INSECURE_TOKEN")]
    pub insecure_token: bool,
}
