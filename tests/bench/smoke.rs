//! Sees that `make bench` still runs: one small run of everything, with the
//! programs of this build. What it measures means nothing.

use weir_tests::bench::smoke;

/// A figure of each part of the benchmark.
const FIGURES: [&str; 8] = [
    "limit: upsert, 768 dim., 4 conn.",
    "embed: 768 dim., sources of 150",
    "jobs of one chunk",
    "put to vector, busy: p99",
    "pipelining: time over the embedder's own",
    "claim beside 500 finished: p99",
    "claim beside 3 long snapshots, the last 30: p99",
    "5 idle workers: coordinator's peak memory",
];

#[test]
fn a_small_run_measures_everything() {
    let report = smoke("weir-bench", &FIGURES);
    assert_eq!(report["circumstances"]["fsync"], "on");
}
