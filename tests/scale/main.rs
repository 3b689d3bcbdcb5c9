//! What large sources, long queues and locks cost: `make scale`.
//!
//! Each figure is measured beside its reference in one run: the same on a small
//! source, on an empty queue, without the lock. What is large is built with
//! SQL; what embeds is a stub inside the worker's process.

#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

mod big;
mod burst;
mod failover;
mod figures;
mod locked;
mod patches;
mod shares;
mod steps;

use std::{path::PathBuf, pin::Pin};

use clap::{Parser, Subcommand};
use weir_tests::bench::{
    report::Report,
    stage::{self, Server},
    stub,
};

/// Measures what size costs.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// Chunks of the largest source; others have a fifth and a five-hundredth of it.
    #[arg(long, env = "SCALE_CHUNKS", default_value_t = 5_000_000)]
    chunks: i64,
    /// Only what has this in its name.
    #[arg(long, env = "SCALE_ONLY", default_value = "")]
    only: String,
    /// Also say which statements take the time of Postgres in a burst of patches.
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

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Chunks of the largest source.
    chunks: i64,
    /// Patches that are timed one after the other.
    patches: usize,
    /// Patches that come over eight connections at once.
    burst: usize,
    /// How long a source is locked, in seconds.
    locked: f64,
    /// Calls that wait for that source.
    waiting: usize,
    /// Chunks that one namespace has queued while another has one at a time.
    queued: i64,
    /// Jobs that are open where the queue is told of.
    open: i64,
    /// Servers that are lost, one after the other.
    failovers: usize,
    /// Whether to say which statements take the time of Postgres.
    statements: bool,
}

impl Scale {
    const SMOKE: Self = Self {
        chunks: 5_000,
        patches: 10,
        burst: 40,
        locked: 0.5,
        waiting: 10,
        queued: 2_000,
        open: 500,
        failovers: 1,
        statements: false,
    };

    fn full(chunks: i64) -> Self {
        Self {
            chunks,
            patches: 300,
            burst: 3_000,
            locked: 30.0,
            waiting: 200,
            queued: 1_000_000,
            open: 2_000_000,
            failovers: 3,
            statements: false,
        }
    }

    /// Chunks of the sources that are compared, the smallest first.
    fn sizes(&self) -> [i64; 3] {
        [self.chunks / 500, self.chunks / 5, self.chunks].map(|size| size.max(1))
    }
}

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// Something that is measured.
struct Part {
    name: &'static str,
    run: for<'a> fn(&'a Server, &'a Scale, &'a mut Report) -> Running<'a>,
}

const PARTS: [Part; 7] = [
    Part {
        name: "patches",
        run: |server, scale, report| Box::pin(patches::run(server, scale, report)),
    },
    Part {
        name: "burst",
        run: |server, scale, report| Box::pin(burst::run(server, scale, report)),
    },
    Part {
        name: "locked",
        run: |server, scale, report| Box::pin(locked::run(server, scale, report)),
    },
    Part {
        name: "shares",
        run: |server, scale, report| Box::pin(shares::run(server, scale, report)),
    },
    Part {
        name: "figures",
        run: |server, scale, report| Box::pin(figures::run(server, scale, report)),
    },
    Part {
        name: "failover",
        run: |_, scale, report| Box::pin(failover::run(scale, report)),
    },
    Part {
        name: "steps",
        run: |server, scale, report| Box::pin(steps::run(server, scale, report)),
    },
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(Role::Worker(worker)) = args.role {
        return stub::work(worker).await;
    }
    let scale = Scale {
        statements: args.statements,
        ..if args.smoke {
            Scale::SMOKE
        } else {
            Scale::full(args.chunks)
        }
    };
    let mut report = Report::new();
    let settings = stage::settings(&args.set);
    let circumstances = stage::circumstances(&settings);
    for (name, value) in &circumstances {
        println!("{name:<20} {value}");
    }
    for part in PARTS.iter().filter(|part| part.name.contains(&args.only)) {
        tell(part.name);
        // A server of its own: what one part leaves is not in the way of the next.
        let server = Server::start(&settings, true);
        (part.run)(&server, &scale, &mut report).await?;
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
fn tell(what: &str) {
    eprintln!("{what}");
}
