//! Weir as a whole: real processes, a real Postgres, real sockets. Each test
//! has a database, a coordinator and an embedder of its own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where it cannot go on"
)]

mod api;
mod batches;
mod bisection;
mod blame;
mod browsers;
mod change;
mod cli;
mod database_away;
mod doctor;
mod door;
mod drain;
mod failover;
mod figures;
mod foreign;
mod heartbeat;
mod json;
mod lease;
mod looks;
mod memory;
mod metrics;
mod migrate;
mod model;
mod models;
mod orphans;
mod positions;
mod prompts;
mod rejections;
mod restart;
mod revisions;
mod rolling;
mod scaler;
mod secrets;
mod security;
mod session;
mod settings;
mod status;
mod steer;
mod story;
mod streams;
mod tables;
mod tls;
mod tracing;
mod watch;
mod workers;

use weir_tests::{clients, world};
