//! A worker that serves several models, each with its own embedder.

use std::fs;

use reqwest::StatusCode;
use weir_proto::v1::{
    Item, ItemList, Job, JobState, PutSourceRequest, put_source_request::Content,
};
use weir_tests::{
    clients::{http, until},
    cluster::Worker,
    embedder::{FakeEmbedder, Rude},
};

use crate::world::World;

/// Puts a source of ten items that is embedded with a model.
async fn put(world: &World, model: &str) -> i64 {
    let item = |number: i32| Item {
        item_id: number.to_string(),
        text: format!("text {number} for {model}"),
        metadata: None,
    };
    let items = (0..10).map(item).collect();
    let request = PutSourceRequest {
        name: format!("of-{model}"),
        model: model.to_owned(),
        content: Some(Content::Items(ItemList { items })),
        ..PutSourceRequest::default()
    };
    let answer = world.sources().await.put_source(request).await.unwrap();
    answer.into_inner().jobs[0].job_id
}

async fn readiness(address: &str) -> (StatusCode, String) {
    let answer = http()
        .get(format!("http://{address}/readyz"))
        .send()
        .await
        .unwrap();
    (answer.status(), answer.text().await.unwrap())
}

fn texts_for(embedder: &FakeEmbedder, model: &str) -> usize {
    let texts = embedder.received().into_keys();
    texts.filter(|text| text.ends_with(model)).count()
}

#[tokio::test]
async fn each_model_has_its_embedder_and_one_that_is_down_holds_up_no_other() {
    let world = World::start(&[("WEIR_MODELS", "small,large")]).await;
    let large = FakeEmbedder::start().await;
    large.rule(|_| Some(Rude::Status(503, None, "the model is loading".into())));
    let file = tempfile::NamedTempFile::new().unwrap();
    let tables = format!(
        "[small]\nembedder-url = \"{}\"\n[large]\nembedder-url = \"{}\"\nbatch-size = 5\n",
        world.embedder.url(),
        large.url()
    );
    fs::write(file.path(), tables).unwrap();
    let jobs = (put(&world, "small").await, put(&world, "large").await);
    let settings = [
        ("WEIR_MODELS_FILE", file.path().to_str().unwrap()),
        ("WEIR_HTTP_LISTEN", "127.0.0.1:0"),
    ];
    let worker = Worker::spawn(&world.coordinator.url(), "http://127.0.0.1:9", &settings);
    let event = worker
        .process
        .wait_for_event("Serving /livez and /readyz.")
        .await;
    let address = event["address"].as_str().unwrap();

    world.succeeded(jobs.0).await;
    let (status, said) = readiness(address).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{said}");
    assert!(said.contains("small: ready\n"), "{said}");
    assert!(
        said.contains("large: ") && said.contains("the model is loading"),
        "{said}"
    );
    let waiting: Job = world.job(jobs.1).await;
    assert_eq!(
        (waiting.state(), waiting.epoch),
        (JobState::Queued, 0),
        "{waiting:?}"
    );

    large.behave();
    world.succeeded(jobs.1).await;
    until(async || readiness(address).await.0 == StatusCode::OK).await;
    assert_eq!(texts_for(&world.embedder, "small"), 10);
    assert_eq!(texts_for(&world.embedder, "large"), 0);
    assert_eq!(texts_for(&large, "large"), 10);
    assert_eq!(texts_for(&large, "small"), 0);
    let sizes = large.calls().into_iter().map(|call| call.texts.len()).max();
    assert_eq!(sizes, Some(5), "the table's batch size");
}

#[tokio::test]
async fn a_worker_without_its_coordinator_is_alive_and_not_ready() {
    let world = World::start(&[]).await;
    let settings = [("WEIR_HTTP_LISTEN", "127.0.0.1:0")];
    let worker = Worker::spawn("http://127.0.0.1:9", &world.embedder.url(), &settings);
    let event = worker
        .process
        .wait_for_event("Serving /livez and /readyz.")
        .await;
    let address = event["address"].as_str().unwrap();
    let said = "fake: cannot claim jobs: ";
    until(async || readiness(address).await.1.starts_with(said)).await;
    assert_eq!(readiness(address).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let live = http()
        .get(format!("http://{address}/livez"))
        .send()
        .await
        .unwrap();
    assert_eq!(live.status(), StatusCode::OK);
}
