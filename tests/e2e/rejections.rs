//! Texts that an embedder rejects: told with an exit code of their own, and
//! taken back once it is mended.

use std::{fs, path::Path};

use serde_json::Value;
use weir_proto::v1;
use weir_tests::{
    cluster::weir_in,
    embedder::Rude,
    session::{Session, rejects, result},
};

use crate::{clients::Weir, world::World};

/// What the scripted model cannot take.
const POISON: &str = "NANTEXT";

/// Runs the command line, and returns its exit code and all that it said.
async fn weir(world: &World, args: &[&str]) -> (Option<i32>, String) {
    let url = world.coordinator.url();
    let output = weir_in(&[("WEIR_COORDINATOR", &url)], args).await;
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// The one document that a command writes.
async fn told(world: &World, args: &[&str]) -> (Option<i32>, Value) {
    let (code, said) = weir(world, &[args, &["--json"]].concat()).await;
    let json = said.lines().next().unwrap_or_default();
    (code, serde_json::from_str(json).expect(&said))
}

/// Items of a file of JSON Lines: those whose text has the poison, and others.
fn items_of(file: &str) -> (Vec<String>, Vec<String>) {
    let lines = fs::read_to_string(file).unwrap();
    let items = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (bad, good): (Vec<_>, Vec<_>) =
        items.partition(|item| item["text"].as_str().unwrap().contains(POISON));
    let ids = |items: Vec<Value>| {
        let ids = items.iter().map(|item| item["item_id"].as_str().unwrap());
        ids.map(ToOwned::to_owned).collect()
    };
    (ids(bad), ids(good))
}

#[tokio::test]
async fn what_is_rejected_is_told_and_embedded_once_the_embedder_takes_it() {
    for (file, status) in [
        ("poison-3.jsonl", 500),
        ("poison-3.jsonl", 400),
        ("forty-one-bad.jsonl", 500),
    ] {
        let path = format!("{}/e2e/rejections/{file}", env!("CARGO_MANIFEST_DIR"));
        let name = Path::new(file).file_stem().unwrap().to_str().unwrap();
        let (bad, good) = items_of(&path);
        assert!(!bad.is_empty() && good.len() >= 2, "{file}");
        told_and_taken_back(&path, name, status, &bad, &good).await;
    }
}

async fn told_and_taken_back(path: &str, name: &str, status: u16, bad: &[String], good: &[String]) {
    let world = World::start(&[]).await;
    let model_fails = |texts: &[String]| texts.iter().any(|text| text.contains(POISON));
    let nan = move || Rude::Status(status, None, r#"{"error":"NaN in the embedding"}"#.into());
    world
        .embedder
        .rule(move |texts| model_fails(texts).then(nan));
    let _worker = world.worker("64");

    let (code, said) = weir(&world, &["put", path, "--name", name, "--watch"]).await;
    assert_eq!(code, Some(5), "{said}");
    let all = bad.len() + good.len();
    let badge = format!("{}/{all} indexed, {} rejected", good.len(), bad.len());
    assert!(said.contains(&badge), "{said}");
    assert!(
        said.contains(&format!("weir retry --source {name}"))
            && said.contains(&format!("weir chunks {name}")),
        "{said}"
    );
    let mut embedded: Vec<String> = world
        .persisted(name)
        .await
        .into_iter()
        .map(|chunk| chunk.item_id)
        .collect();
    embedded.sort();
    assert_eq!(embedded, good);
    let rejected: Vec<String> =
        sqlx::query_scalar("SELECT item_id FROM weir.rejections ORDER BY item_id")
            .fetch_all(world.database.pool())
            .await
            .unwrap();
    assert_eq!(rejected, bad);

    // Everywhere, with how many, since when, and the embedder's words.
    let sentence = format!("{} of {all} chunks rejected, since 2", bad.len());
    for (args, expected) in [
        (&["status"] as &[_], Some(4)),
        (&["get", name], Some(0)),
        (&["ls"], Some(0)),
        (&["watch", name], Some(5)),
        (&["watch"], Some(5)),
        (&["watch", "--all"], Some(5)),
    ] {
        let (code, said) = weir(&world, args).await;
        assert_eq!(code, expected, "{args:?}: {said}");
        assert!(
            said.contains(&sentence) && said.contains("NaN in the embedding"),
            "{args:?}: {said}"
        );
    }
    let (_, status) = told(&world, &["status"]).await;
    for figures in [&status["total"], &status["namespaces"][0]] {
        assert_eq!(figures["verdict"], "degraded", "{status}");
        assert_eq!(figures["chunks_rejected"], bad.len(), "{status}");
        let reason = figures["last_rejection_reason"].as_str().unwrap();
        assert!(reason.contains("NaN in the embedding"), "{status}");
        assert!(figures["first_rejection_time"].is_string(), "{status}");
    }

    // Mended, it gets what was rejected and nothing else.
    world.embedder.behave();
    let before = world.embedder.calls().len();
    let (code, retried) = told(&world, &["retry", "--source", name]).await;
    assert_eq!(code, Some(0), "{retried}");
    assert_eq!(retried["chunks_taken_back"], bad.len(), "{retried}");
    let (code, said) = weir(&world, &["watch", name]).await;
    assert_eq!(code, Some(0), "{said}");
    for call in &world.embedder.calls()[before..] {
        let fits = |text: &String| text.contains(POISON) || text == "probe";
        assert!(call.texts.iter().all(fits), "{call:?}");
    }
    world.assert_exact(name).await;
    let (code, said) = weir(&world, &["status"]).await;
    assert_eq!((code, said.lines().next()), (Some(0), Some("healthy")));
    let (code, said) = weir(&world, &["retry", "--source", name]).await;
    assert_eq!((code, &*said), (Some(0), "There is nothing to retry.\n"));
}

#[tokio::test]
async fn a_session_gets_what_is_taken_back_of_its_job() {
    let weir = Weir::start().await;
    let job_id = weir.put("source", &["1", "22"]).await.jobs[0].job_id;
    let mut session = Session::open(&weir, 1).await;
    session.grant(3);
    let (first, second) = (session.part().await, session.part().await);
    // All of it is with the worker, and the first is rejected.
    session.send(result([rejects(&first, "not today")]));
    session.ack(first.seq).await;
    let retry = v1::RetrySourceRequest {
        name: "source".to_owned(),
        ..v1::RetrySourceRequest::default()
    };
    let retried = weir.jobs().retry_source(retry).await.unwrap().into_inner();
    assert_eq!(
        (retried.chunks_taken_back, retried.jobs[0].job_id),
        (1, job_id)
    );

    session.embed_and_wait(&second).await;
    let again = session.part().await;
    assert_eq!(again.chunks, first.chunks);
    session.embed(&again);
    let finished = session.finished(job_id).await;
    assert_eq!((finished.chunks_done, finished.chunks_rejected), (2, 0));
    let source = weir.source("source").await.unwrap();
    assert_eq!((source.chunks_embedded, source.chunks_rejected), (2, 0));
}
