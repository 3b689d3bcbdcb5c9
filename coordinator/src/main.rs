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

fn main() -> anyhow::Result<()> {
    // Before there are threads, each of which would be given a heap of its own.
    give_memory_back();
    run()
}

#[tokio::main]
async fn run() -> anyhow::Result<()> {
    let mut config = Config::parse();
    telemetry::init(&config.log, store::POOL_LOG)?;
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

/// Has the allocator of glibc give freed memory back. By default it keeps a heap
/// for every thread, with holes as large as the largest messages were.
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (setting, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_MMAP_THRESHOLD, 128 << 10),
        (libc::M_TRIM_THRESHOLD, 128 << 10),
    ] {
        // SAFETY: sets a number of the allocator, which takes its own lock.
        #[expect(unsafe_code, reason = "no safe interface tunes the allocator")]
        unsafe {
            libc::mallopt(setting, value);
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
