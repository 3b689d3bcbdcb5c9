//! What embedding costs: calls where some texts are bad, time where calls are
//! rationed, and time where sources are small. Real processes, and the fake
//! embedder at the wire.
//!
//! `BENCH_TEXTS` says of how many texts. Unset they are few, so that this is a
//! test of the bench, whose figures say little.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench prints what it measures, and ends where it cannot go on"
)]

mod poison;
mod quota;
mod run;
mod small;

use std::env;

/// Enough to see each of the three work.
const FEW: usize = 200;

fn texts() -> usize {
    match env::var("BENCH_TEXTS") {
        Ok(texts) if !texts.is_empty() => texts.parse().expect("BENCH_TEXTS is a number"),
        _ => FEW,
    }
}

/// Prints a table, so that none stands in another.
fn print(lines: &[String]) {
    println!("\n\n{}\n", lines.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_where_texts_are_bad() {
    print(&poison::compare(texts()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_where_calls_are_rationed() {
    print(&[quota::drain(texts()).await]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_where_sources_are_small() {
    print(&small::compare(texts()).await);
}
