//! Settings that cannot work are refused at start, by name; one that may not
//! work is warned of.

use std::fs;

use weir_tests::{
    cluster::{Coordinator, Process, Worker},
    embedder::FakeEmbedder,
    postgres::TestDatabase,
};

/// Starts a program with its settings and these, which it must refuse at once,
/// and returns what it said.
async fn refused(name: &'static str, base: &[(&str, &str)], bad: &[(&str, &str)]) -> String {
    let environment = [base, bad].concat();
    let mut process = Process::spawn(name, &[], &environment);
    let status = process.wait().await;
    let said = process.log().join("\n");
    assert!(!status.success(), "{name} takes {bad:?}: {said}");
    said
}

#[tokio::test]
async fn a_worker_refuses_what_cannot_work_and_names_the_setting() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    let empty = empty.to_str().unwrap();
    let models = folder.path().join("models.toml");
    fs::write(&models, "[m]\nprovider = 'oracle'").unwrap();
    let models = models.to_str().unwrap();
    let openai = [
        ("WEIR_EMBEDDER", "openai"),
        ("WEIR_EMBEDDER_URL", "http://127.0.0.1:9"),
    ];
    let key = |file| [&openai[..], &[("WEIR_EMBEDDER_API_KEY_FILE", file)]].concat();
    for (bad, named) in [
        (vec![("WEIR_EMBEDDER", "oracle")], "--embedder"),
        (vec![("WEIR_BATCH_SIZE", "0")], "--batch-size"),
        (vec![("WEIR_BATCH_TOKENS", "0")], "--batch-tokens"),
        (vec![("WEIR_EMBED_TIMEOUT", "0s")], "--embed-timeout"),
        (vec![("WEIR_EMBEDDER_URL", "localhost")], "--embedder-url"),
        (vec![("WEIR_EMBEDDER", "openai")], "WEIR_EMBEDDER_URL"),
        (vec![("WEIR_EMBEDDER", "local")], "WEIR_LOCAL_MODEL_DIR"),
        (key("/no/key"), "WEIR_EMBEDDER_API_KEY_FILE"),
        (key(empty), "WEIR_EMBEDDER_API_KEY_FILE"),
        (vec![("WEIR_MODELS_FILE", "/no/file")], "--models-file"),
        (
            vec![("WEIR_HTTP_LISTEN", "192.0.2.1:1")],
            "WEIR_HTTP_LISTEN",
        ),
        (vec![("WEIR_LOG", "!")], "WEIR_LOG"),
    ] {
        let said = refused("weir-worker", &[("WEIR_MODEL", "m")], &bad).await;
        assert!(said.contains(named), "{bad:?}: {said}");
    }
    let said = refused("weir-worker", &[], &[("WEIR_MODELS_FILE", models)]).await;
    for named in ["WEIR_MODELS_FILE", models, "\"m\"", "provider", "oracle"] {
        assert!(said.contains(named), "{named}: {said}");
    }
}

#[tokio::test]
async fn a_worker_that_nobody_gives_work_still_warns_of_a_lease_shorter_than_its_calls() {
    let database = TestDatabase::create().await;
    let coordinator = [("WEIR_LEASE_DURATION", "30s"), ("WEIR_ORPHAN_GRACE", "5s")];
    let coordinator = Coordinator::spawn(database.url(), &coordinator).await;
    let embedder = FakeEmbedder::start().await;
    let worker = [("WEIR_EMBED_TIMEOUT", "30s")];
    let worker = Worker::spawn(&coordinator.url(), &embedder.url(), &worker);
    let said = worker.process.wait_for_line(|line| {
        let named = line.contains("WEIR_EMBED_TIMEOUT") && line.contains("WEIR_LEASE_DURATION");
        named.then(|| line.to_owned())
    });
    assert!(said.await.contains("WARN"));
}
