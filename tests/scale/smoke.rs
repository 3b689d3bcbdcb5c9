//! Sees that `make scale` still runs: one small run of everything, with the
//! programs of this build. What it measures means nothing.

use weir_tests::bench::smoke;

/// A figure of each part.
const FIGURES: [&str; 7] = [
    "patch of one item, 5000 chunks pending: p50",
    "300 chunks, one item patched all the time: over nobody writes",
    "patches of 50 others, one source locked, 10 calls to it: p99",
    "one job beside 2000 chunks of another namespace: p50",
    "/metrics, 500 open jobs: p50",
    "standby promoted: until the next vector",
    "deletion of 5000 chunks: until all is done",
];

#[test]
fn a_small_run_measures_everything() {
    smoke("weir-scale", &FIGURES);
}
