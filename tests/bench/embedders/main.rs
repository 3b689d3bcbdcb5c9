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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_embedding_costs() {
    let texts = match env::var("BENCH_TEXTS") {
        Ok(texts) if !texts.is_empty() => texts.parse().expect("BENCH_TEXTS is a number"),
        _ => FEW,
    };
    let mut lines = poison::compare(texts).await;
    lines.push(quota::drain(texts).await);
    lines.extend(small::compare(texts).await);
    println!(
        "\n{texts} texts, {} of them bad where some are:\n",
        poison::bad(texts)
    );
    for line in lines {
        println!("{line}");
    }
}
