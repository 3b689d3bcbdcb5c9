//! What embedding costs: calls where some texts are bad or the embedder is out
//! for a while, time where calls are rationed, and time where sources are small. Real processes, and the fake
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

mod outage;
mod poison;
mod quota;
mod run;
mod small;

use std::env;

use crate::run::Outcome;

/// Enough to see each of them work.
const FEW: usize = 200;

fn texts() -> usize {
    match env::var("BENCH_TEXTS") {
        Ok(texts) if !texts.is_empty() => texts.parse().expect("BENCH_TEXTS is a number"),
        _ => FEW,
    }
}

/// A table that is printed as it grows, and what should not have happened.
struct Table {
    wrong: Vec<String>,
}

impl Table {
    fn new(title: &str) -> Self {
        println!("\n\n{title}");
        Self { wrong: Vec::new() }
    }

    /// Notes whether another number of texts came to a vector, or to nothing,
    /// than should have, or a job was charged.
    fn expect(&mut self, what: &str, outcome: &Outcome, texts: i64, rejected: i64) {
        let (embedded, refused, charged) = (outcome.embedded, outcome.rejected, outcome.charged);
        if (embedded, refused, charged) != (texts - rejected, rejected, 0) {
            self.wrong.push(format!(
                "{what}: {embedded} embedded, {refused} rejected, {charged} charged; \
                 {rejected} of {texts} are bad"
            ));
        }
    }

    /// Fails on what went wrong.
    fn end(self) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_where_texts_are_bad() {
    poison::compare(texts()).await.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_where_the_embedder_is_out_for_a_while() {
    outage::compare(texts()).await.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_where_calls_are_rationed() {
    quota::drain(texts()).await.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_where_sources_are_small() {
    small::compare(texts()).await.end();
}
