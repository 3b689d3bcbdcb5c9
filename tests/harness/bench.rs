//! What the benchmarks share: a Postgres that waits for its disk, the programs
//! as processes of their own, and figures.

pub mod report;
pub mod stage;
pub mod statements;
pub mod stub;

use std::{fs, process::Command};

use serde_json::Value;

use crate::cluster::binary;

/// One small run of everything that a program measures, which has to succeed and to
/// have all of these figures. Returns what it reports.
pub fn smoke(program: &str, figures: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let output = Command::new(binary(program))
        .args(["--smoke", "--commit=smoke", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!(report["commit"], "smoke");
    let measured = report["figures"].as_array().unwrap();
    for name in figures {
        let figure = measured.iter().find(|figure| figure["name"] == *name);
        let median = figure.and_then(|figure| figure["median"].as_f64());
        assert!(
            median.is_some_and(|median| median > 0.0),
            "{name}: {figure:?}"
        );
    }
    report
}
