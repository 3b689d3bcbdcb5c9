//! How fast the queue is, beside what its Postgres can do at all: `make bench`.
//!
//! One run starts a Postgres that waits for its disk, a coordinator and workers
//! as processes of their own, and measures the limits it is judged against on
//! the same server between the same two moments. What embeds is a stub inside
//! the worker's process, so that nothing but Weir is measured.

#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

mod latency;
mod limits;
mod scenarios;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use weir_tests::bench::{
    report::Report,
    stage::{self, Server},
    stub,
};

use self::scenarios::Scale;

/// Measures the queue.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// How often each figure is measured.
    #[arg(long, env = "BENCH_RUNS", default_value_t = 5)]
    runs: usize,
    /// Chunks that are embedded in a run.
    #[arg(long, env = "BENCH_CHUNKS", default_value_t = 100_000)]
    chunks: usize,
    /// Jobs in a long history; a tenth of it, and a queue of so many, are measured too.
    #[arg(long, env = "BENCH_HISTORY", default_value_t = 1_000_000)]
    history: usize,
    /// Claims that are made beside long snapshots.
    #[arg(long, env = "BENCH_PINNED", default_value_t = 30_000)]
    pinned: usize,
    /// Only what has this in its name.
    #[arg(long, env = "BENCH_ONLY", default_value = "")]
    only: String,
    /// Also say which statements take the time of Postgres.
    #[arg(long, env = "BENCH_STATEMENTS")]
    statements: bool,
    /// A setting of the server, `name=value`, beside or instead of the usual ones.
    #[arg(long, value_parser = stage::setting)]
    set: Vec<(String, String)>,
    /// What was measured, for the JSON.
    #[arg(long, env = "BENCH_COMMIT", default_value = "unknown")]
    commit: String,
    /// Also write the figures here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// One small run of everything, which shows that it works and measures
    /// nothing.
    #[arg(long)]
    smoke: bool,
}

/// What else this program is: the processes that it starts.
#[derive(Debug, Subcommand)]
enum Role {
    /// A worker with a stub for an embedder.
    Worker(stub::WorkerArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(Role::Worker(worker)) = args.role {
        return stub::work(worker).await;
    }
    let mut scale = if args.smoke {
        Scale::smoke()
    } else {
        Scale {
            pinned: args.pinned,
            ..Scale::full(args.chunks, args.runs, args.history)
        }
    };
    scale.statements = args.statements;
    let mut report = Report::new();
    let settings = stage::settings(&args.set);
    let circumstances = stage::circumstances(&settings);
    for (name, value) in &circumstances {
        println!("{name:<20} {value}");
    }
    for run in 0..scale.runs {
        let server = Server::start(&settings, scale.statements);
        for scenario in scenarios::ALL {
            if scenario.name.contains(&args.only) {
                eprint_progress(scenario.name, run, scale.runs);
                (scenario.run)(&server, &scale, &mut report).await?;
            }
        }
    }
    println!("{report}");
    if let Some(path) = args.json {
        std::fs::write(path, report.to_json(&args.commit, &circumstances))?;
    }
    Ok(())
}

#[expect(
    clippy::print_stderr,
    reason = "what is printed on stdout are the figures"
)]
fn eprint_progress(name: &str, run: usize, runs: usize) {
    eprintln!("{name}: run {} of {runs}", run + 1);
}
