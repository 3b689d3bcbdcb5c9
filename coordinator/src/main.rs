//! The process `weir-coordinator`: serves, or migrates and exits.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{fd::AsFd, unix::fs::PermissionsExt as _},
};

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weir_coordinator::{
    access::NewToken,
    config::{Command, Config},
    server, store, telemetry,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut config = Config::parse();
    telemetry::init(&config.log)?;
    match config.command.take().unwrap_or(Command::Serve) {
        Command::Migrate => {
            let pool = store::connect(&config.database)?.general;
            store::migrate(&pool, true).await?;
            tracing::info!("The database is up to date.");
            Ok(())
        }
        Command::Token {
            name,
            role,
            namespaces,
        } => {
            let drawn = NewToken::new(&name, role, &namespaces, rand::random())?;
            writeln!(io::stdout(), "{}", drawn.token)?;
            if is_file_of_others(&io::stdout()) {
                // A comment, for the table may go on to the tokens file from here.
                writeln!(
                    io::stderr(),
                    "# The token of {name} was written to a file that others can read: chmod 600 it, and say umask 077 \
                     before the next."
                )?;
            }
            writeln!(io::stderr(), "{}", drawn.table)?;
            Ok(())
        }
        Command::Serve => {
            let server = server::bind(config).await?;
            let shutdown = CancellationToken::new();
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let stop = shutdown.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("Stopping; calls under way may end.");
                stop.cancel();
            });
            server.run(shutdown).await
        }
    }
}

/// Whether what is written here ends up in a file that its group or others can
/// read.
fn is_file_of_others(out: &impl AsFd) -> bool {
    let file = out.as_fd().try_clone_to_owned().map(File::from);
    let metadata = file.and_then(|file| file.metadata());
    metadata.is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o044 != 0)
}
