//! Sees that `make bench` still runs: one small run of everything, with the
//! programs of this build. What it measures means nothing.

use std::{fs, process::Command};

use serde_json::Value;
use weir_tests::cluster::binary;

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
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("bench.json");
    let output = Command::new(binary("weir-bench"))
        .args(["--smoke", "--commit=smoke", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(report["commit"], "smoke");
    assert_eq!(report["circumstances"]["fsync"], "on");
    let figures = report["figures"].as_array().unwrap();
    for name in FIGURES {
        let figure = figures.iter().find(|figure| figure["name"] == name);
        let median = figure.and_then(|figure| figure["median"].as_f64());
        assert!(
            median.is_some_and(|median| median > 0.0),
            "{name}: {figure:?}"
        );
    }
}
