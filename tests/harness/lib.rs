//! What the tests share: a database of their own, an embedder that they
//! script, and the real processes.
//!
//! Everything here panics where a test could not go on anyway, with a message
//! that says what was missing.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a harness fails the test that uses it, and tells what its processes said"
)]

pub mod bench;
pub mod certificates;
pub mod clients;
pub mod cluster;
pub mod collector;
pub mod embedder;
pub mod invariants;
pub mod pair;
pub mod pgproxy;
pub mod postgres;
pub mod proxy;
pub mod session;
pub mod standby;
pub mod tokens;
pub mod traces;
pub mod world;

use std::time::Duration;

/// How long anything that a test waits for may take. Nothing depends on it but
/// how soon a broken test fails.
pub const PATIENCE: Duration = Duration::from_mins(1);
