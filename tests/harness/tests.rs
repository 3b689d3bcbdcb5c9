//! The harness itself: tests that lean on it must be able to trust it.

use std::io::Read as _;

use serde_json::{Value, json};
use weir_tests::{
    cluster::{Process, weir},
    embedder::{DIMENSION, FakeEmbedder, Rude, expected_vector},
    postgres::TestDatabase,
};

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

async fn embed(embedder: &FakeEmbedder, texts: &[&str]) -> reqwest::Result<Value> {
    let request = json!({ "model": "fake", "input": texts });
    let url = format!("{}/api/embed", embedder.url());
    let answer = client().post(url).json(&request).send().await?;
    answer.error_for_status()?.json().await
}

#[test]
fn vectors_are_a_pure_function_of_the_text() {
    let vector = expected_vector("a");
    assert_eq!(vector.len(), DIMENSION);
    assert_eq!(vector, expected_vector("a"));
    assert_ne!(vector, expected_vector("b"));
    let length: f32 = vector.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
}

#[tokio::test]
async fn both_protocols_give_the_same_vectors() {
    let embedder = FakeEmbedder::start().await;
    let answer = embed(&embedder, &["a", "b"]).await.unwrap();
    let vectors: Vec<Vec<f32>> = serde_json::from_value(answer["embeddings"].clone()).unwrap();
    assert_eq!(vectors, [expected_vector("a"), expected_vector("b")]);

    let request = json!({ "model": "fake", "input": "a" });
    let url = format!("{}/v1/embeddings", embedder.url());
    let answer = client().post(url).json(&request).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    let vector: Vec<f32> = serde_json::from_value(answer["data"][0]["embedding"].clone()).unwrap();
    assert_eq!(vector, expected_vector("a"));

    assert_eq!(embedder.received()["a"], 2);
    assert_eq!(embedder.answered()["b"], 1);
    assert_eq!(embedder.calls().len(), 2);
}

#[tokio::test]
async fn it_is_as_rude_as_it_is_told() {
    let embedder = FakeEmbedder::start().await;
    embedder.next(Rude::Status(503, Some("7".into()), "busy".into()));
    let error = embed(&embedder, &["a"]).await.unwrap_err();
    assert_eq!(error.status().map(|status| status.as_u16()), Some(503));

    embedder.next(Rude::CutOff);
    let error = embed(&embedder, &["a"]).await.unwrap_err();
    assert!(error.is_decode() || error.is_body(), "{error:?}");

    embedder.next(Rude::WrongCount);
    let answer = embed(&embedder, &["a", "b"]).await.unwrap();
    assert_eq!(answer["embeddings"].as_array().map(Vec::len), Some(1));

    embedder.rule(|texts| {
        texts
            .iter()
            .any(|text| text == "poison")
            .then(|| Rude::Body("{}".into()))
    });
    assert_eq!(embed(&embedder, &["a", "poison"]).await.unwrap(), json!({}));
    assert!(embed(&embedder, &["a"]).await.unwrap()["embeddings"].is_array());
    embedder.behave();
    assert!(embed(&embedder, &["poison"]).await.unwrap()["embeddings"].is_array());

    assert_eq!(embedder.received()["a"], 5);
    assert_eq!(embedder.answered()["a"], 1);
}

#[tokio::test]
async fn the_gate_holds_calls_that_have_started() {
    let embedder = FakeEmbedder::start().await;
    embedder.close_gate();
    let mut call = Box::pin(embed(&embedder, &["a"]));
    tokio::select! {
        _ = &mut call => panic!("the call went through the closed gate"),
        () = embedder.calls_started(1) => {}
    }
    assert!(!embedder.calls()[0].answered);
    embedder.open_gate();
    call.await.unwrap();
    assert!(embedder.calls()[0].answered);
}

#[tokio::test]
async fn the_gate_lets_through_as_many_calls_as_it_is_told() {
    let embedder = FakeEmbedder::start().await;
    embedder.let_through(1);
    embed(&embedder, &["a"]).await.unwrap();
    let mut call = Box::pin(embed(&embedder, &["b"]));
    tokio::select! {
        _ = &mut call => panic!("the second call went through"),
        () = embedder.calls_started(2) => {}
    }
    embedder.let_through(2);
    call.await.unwrap();
    assert_eq!(embedder.answered().len(), 2);
}

#[tokio::test]
async fn databases_are_fresh_and_go_away() {
    let (one, two) = (TestDatabase::create().await, TestDatabase::create().await);
    for database in [&one, &two] {
        sqlx::query("CREATE TABLE same ()")
            .execute(database.pool())
            .await
            .unwrap();
    }
    let left = "SELECT count(*) FROM pg_database WHERE datname = $1";
    let name: String = sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(one.pool())
        .await
        .unwrap();
    assert!(one.url().contains(&name));
    drop(one);
    let left: i64 = sqlx::query_scalar(left)
        .bind(name)
        .fetch_one(two.pool())
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn processes_are_heard_and_waited_for() {
    // A port that nothing listens on any more.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut process = Process::spawn("weir", &["ls"], &[("WEIR_COORDINATOR", &url)]);
    // It waits for an answer; nobody gives one but the end of the connection.
    let (mut connection, _) = listener.accept().unwrap();
    let _ = connection.read(&mut [0; 16]).unwrap();
    process.sigstop();
    process.sigcont();
    process.sigkill().await;
    drop(listener);

    let output = weir(&url, &["ls"]).await;
    assert_eq!(output.status.code(), Some(3));
    let process = Process::spawn("weir", &["ls"], &[("WEIR_COORDINATOR", &url)]);
    let line = process.wait_for_line(|line| line.contains("cannot reach").then(|| line.to_owned()));
    assert!(line.await.contains(&url));
}
