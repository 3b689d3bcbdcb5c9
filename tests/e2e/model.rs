//! All of Weir in one process with a real model, and the command line, as the
//! README shows them.

use std::{fs, net::TcpListener, path::Path, process::Output, time::Duration};

use serde_json::Value;
use tokio::{process::Command, time};
use weir_tests::{
    cluster::{Process, binary, weir},
    postgres::runtime_dir,
};

use crate::world::logistics;

/// A real model on a busy machine takes its time.
const MODEL_PATIENCE: Duration = Duration::from_mins(5);

/// What is asked, and the operation that answers it without sharing a word.
const QUESTIONS: [(&str, &str); 5] = [
    ("how warm was the cargo", "listTemperatureExcursions"),
    ("pollution caused by transport", "estimateEmissions"),
    ("shut a depot", "closeWarehouse"),
    ("petrol money", "recordFuelPurchase"),
    ("am I in debt", "getBalance"),
];

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// Runs a command that must succeed and returns the JSON on each line.
async fn answer(url: &str, args: &[&str]) -> Value {
    let output = weir(url, &[args, &["--json"]].concat()).await;
    assert_eq!(code(&output), Some(0), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Puts the document and returns what was written, a document of JSON a line.
async fn put_and_watch(url: &str, document: &str) -> Vec<Value> {
    let run = Command::new(binary("weir"))
        .args(["put", document, "--name", "logistics", "--watch", "--json"])
        .args(["--namespace", "default", "--log", "warn"])
        .env("WEIR_COORDINATOR", url)
        .kill_on_drop(true)
        .output();
    let output = time::timeout(MODEL_PATIENCE, run).await.unwrap().unwrap();
    assert_eq!(code(&output), Some(0), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn the_readme_comes_true_with_a_real_model() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let runtime = runtime_dir();
    let model = runtime.join("model");
    let (data_arg, model) = (data.to_str().unwrap(), model.to_str().unwrap());
    let mut up = Process::spawn(
        "weir",
        &["up", "--listen", "127.0.0.1:0", "--data-dir", data_arg],
        &[
            ("WEIR_LOG", "info"),
            ("WEIR_RUNTIME_DIR", runtime.to_str().unwrap()),
            ("WEIR_LOCAL_MODEL_DIR", model),
        ],
    );
    let address = |line: &str| {
        let (_, address) = line.split_once("listening address=")?;
        Some(format!("http://{}", address.trim()))
    };
    let url = up.wait_for_line(address).await;
    let document = logistics();
    let document = document.to_str().unwrap();

    let states = put_and_watch(&url, document).await;
    assert_eq!(states[0]["change"]["items_added"], 148);
    let end = &states[states.len() - 1];
    assert_eq!(end["source"]["chunks_embedded"], end["source"]["chunks"]);
    assert_eq!(end["jobs"], Value::Array(Vec::new()));

    for (question, operation) in QUESTIONS {
        let search = ["search", question, "--source", "logistics", "--limit", "3"];
        let search = [&search[..], &["--local-model-dir", model]].concat();
        let found = answer(&url, &search).await;
        let hits = found["hits"].as_array().unwrap();
        let ids: Vec<_> = hits.iter().map(|hit| &hit["item_id"]).collect();
        let hit = hits.iter().find(|hit| hit["item_id"] == operation);
        let hit = hit.unwrap_or_else(|| panic!("{question}: {ids:?}"));
        // Found by meaning, for there is no word to find it by.
        let text = hit["text"].as_str().unwrap().to_lowercase();
        let mut words = question.split(' ').filter(|word| word.len() > 3);
        assert!(words.all(|word| !text.contains(word)), "{question}: {text}");
    }

    // The same again changes nothing and queues nothing.
    let again = answer(&url, &["put", document, "--name", "logistics"]).await;
    assert_eq!(again["change"]["items_unchanged"], 148);
    assert_eq!(again["change"]["chunks_pending"], 0);
    assert_eq!(again["source"]["revision"], 1);
    let jobs = answer(&url, &["jobs"]).await;
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(jobs["jobs"][0]["state"], "succeeded");
    assert_eq!(jobs["jobs"][0]["attempt"], 0);

    let listed = answer(&url, &["ls"]).await;
    assert_eq!(listed["sources"].as_array().unwrap().len(), 1);
    let got = answer(&url, &["get", "logistics"]).await;
    assert_eq!(got["source"], listed["sources"][0]["source"]);
    assert_eq!(got["source"]["items"], 148);
    let removed = answer(&url, &["rm", "logistics"]).await;
    assert_eq!(removed["items_deleted"], 148);
    let listed = answer(&url, &["ls"]).await;
    assert_eq!(listed["sources"], Value::Array(Vec::new()));
    assert_eq!(code(&weir(&url, &["get", "logistics"]).await), Some(1));
    failed_puts(&url, home.path()).await;

    up.sigterm();
    assert_eq!(up.wait().await.code(), Some(0));
    // Where root started it, Postgres keeps its data elsewhere.
    let _ = fs::remove_dir_all(fs::canonicalize(&data).unwrap());
}

/// What goes wrong with a put is said, in its exit code too.
async fn failed_puts(url: &str, home: &Path) {
    let missing = home.join("missing.yaml");
    let broken = home.join("broken.jsonl");
    fs::write(
        &broken,
        "{\"item_id\": \"a\", \"text\": \"fine\"}\nnot json\n",
    )
    .unwrap();
    for file in [missing, broken] {
        let output = weir(url, &["put", file.to_str().unwrap()]).await;
        assert_eq!(code(&output), Some(1), "{output:?}");
        assert!(output.stderr.starts_with(b"weir: "), "{output:?}");
    }
    let listed = answer(url, &["ls"]).await;
    assert_eq!(
        listed["sources"],
        Value::Array(Vec::new()),
        "all or nothing"
    );
}

#[tokio::test]
async fn exit_codes_tell_a_wrong_command_from_an_unreachable_coordinator() {
    // A port on which nobody listens any more.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let url = format!("http://{}", port.unwrap());
    for args in [&["ls"][..], &["get", "a"], &["rm", "a"], &["jobs"]] {
        let output = weir(&url, args).await;
        assert_eq!(code(&output), Some(3), "{args:?}: {output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&url), "{said}");
    }
    for args in [&["put"][..], &["ls", "--nonsense"], &["frobnicate"]] {
        let output = weir(&url, args).await;
        assert_eq!(code(&output), Some(2), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}
