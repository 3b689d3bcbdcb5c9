//! A worker that serves several models, each with its own embedder.

use std::fs;

use reqwest::StatusCode;
use weir_proto::v1::{
    GetSourceRequest, Item, ItemList, Job, JobState, ListSourcesRequest, PutSourceRequest,
    put_source_request::Content, source_service_client::SourceServiceClient,
};
use weir_tests::{
    clients::{http, until},
    cluster::{Coordinator, Process, Worker, weir, weir_in},
    embedder::{FakeEmbedder, Rude},
    postgres::TestDatabase,
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
        "[small]\nurl = \"{}\"\n[large]\nurl = \"{}\"\nbatch-size = 5\n[unserved]\nurl = \"http://127.0.0.1:9\"\n",
        world.embedder.url(),
        large.url()
    );
    fs::write(file.path(), tables).unwrap();
    let jobs = (put(&world, "small").await, put(&world, "large").await);
    let settings = [
        ("WEIR_MODELS_FILE", file.path().to_str().unwrap()),
        ("WEIR_MODEL", "small,large"),
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
    let said = "fake: no session with the coordinator: ";
    until(async || readiness(address).await.1.starts_with(said)).await;
    assert_eq!(readiness(address).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let live = http()
        .get(format!("http://{address}/livez"))
        .send()
        .await
        .unwrap();
    assert_eq!(live.status(), StatusCode::OK);
}

/// Sources outlive the setting: whoever waits for a model that was taken out
/// says so, everywhere, and goes on once it is back.
#[tokio::test]
async fn a_model_that_is_not_served_is_told_of_and_nothing_of_it_is_lost() {
    let world = World::start(&[("WEIR_MODELS", "fake,large")]).await;
    let job_id = put(&world, "large").await;
    let url = world.database.url();
    let mut other = Coordinator::spawn(url, &[("WEIR_MODELS", "fake")]).await;
    let told = other
        .process
        .wait_for_event(
            "Sources have a model that is not served by this coordinator, and nothing of them can be embedded: \
             add it to --models (WEIR_MODELS) or its models file.",
        )
        .await;
    assert_eq!(
        (&told["model"], &told["sources"], &told["open_jobs"]),
        (&"large".into(), &1.into(), &1.into())
    );
    let why = "the model \"large\" is not served by this coordinator: add it to --models (WEIR_MODELS) or its models file";
    let mut sources = SourceServiceClient::new(other.connect().await);
    let get = GetSourceRequest {
        name: "of-large".to_owned(),
        ..GetSourceRequest::default()
    };
    let found = sources.get_source(get).await.unwrap().into_inner();
    let badge = found.source.unwrap().badge.unwrap();
    assert_eq!(badge.text, "queued, model not served");
    assert_eq!((badge.last_error.as_str(), badge.degraded), (why, true));
    assert_eq!(found.jobs[0].last_error, why);
    let list = ListSourcesRequest {
        model: "large".to_owned(),
        ..ListSourcesRequest::default()
    };
    let listed = sources.list_sources(list).await.unwrap().into_inner();
    let listed = listed.sources[0].clone();
    assert_eq!(listed.source.unwrap().badge.unwrap(), badge);
    assert_eq!(listed.job.unwrap().last_error, why);
    for command in [&["get", "of-large"][..], &["ls"], &["status"], &["jobs"]] {
        let ran = weir(&other.url(), &[command, &["--json"]].concat()).await;
        let said = String::from_utf8(ran.stdout).unwrap();
        assert!(
            said.contains("--models (WEIR_MODELS)"),
            "{command:?}: {said}"
        );
    }
    let status = weir(&other.url(), &["status"]).await;
    assert_eq!(status.status.code(), Some(4), "degraded: {status:?}");
    other.process.sigkill().await;

    // Where it is served nothing is wrong, and it is embedded.
    let served = world
        .source("of-large")
        .await
        .source
        .unwrap()
        .badge
        .unwrap();
    assert_eq!((served.text.as_str(), served.degraded), ("queued", false));
    let settings = [("WEIR_MODEL", "large")];
    let _worker = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
    world.succeeded(job_id).await;
}

#[tokio::test]
async fn a_dimension_that_is_not_that_of_the_vectors_is_refused_at_the_start() {
    let world = World::start(&[]).await;
    let job_id = put(&world, "fake").await;
    let _worker = world.worker("4");
    world.succeeded(job_id).await;
    let settings = [
        ("WEIR_DATABASE_URL", world.database.url()),
        ("WEIR_LISTEN", "127.0.0.1:0"),
        ("WEIR_MODELS", "fake=17"),
    ];
    let mut wrong = Process::spawn("weir-coordinator", &[], &settings);
    assert!(!wrong.wait().await.success());
    let said = wrong.log().join("\n");
    for part in ["--models (WEIR_MODELS)", "fake", "17", "fake=16"] {
        assert!(said.contains(part), "{said}");
    }
    let _right = Coordinator::spawn(world.database.url(), &[("WEIR_MODELS", "fake=16")]).await;
}

/// One file for coordinator, worker and command line.
#[tokio::test]
async fn one_file_of_models_serves_all_programs() {
    let embedder = FakeEmbedder::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let tables = format!(
        "[docs]\nurl = \"{}\"\nkey-file = \"/of/the/worker\"\ninsecure-key = true\ndimension = 16\n\
         [docs.query]\nprompt = \"query: \"\n",
        embedder.url()
    );
    fs::write(file.path(), &tables).unwrap();
    let path = file.path().to_str().unwrap();
    // The keys of others need not be there.
    let world = World::start(&[("WEIR_MODELS_FILE", path)]).await;

    let tables = tables.replace("key-file = \"/of/the/worker\"\n", "");
    fs::write(file.path(), tables).unwrap();
    let job_id = put(&world, "").await;
    let settings = [("WEIR_MODEL", "docs"), ("WEIR_MODELS_FILE", path)];
    let _worker = Worker::spawn(&world.coordinator.url(), "http://127.0.0.1:9", &settings);
    world.succeeded(job_id).await;

    let environment = [
        ("WEIR_COORDINATOR", &*world.coordinator.url()),
        ("WEIR_MODELS_FILE", path),
    ];
    let search = ["search", "--source", "of-", "--json", "text 1 for "];
    let ran = weir_in(&environment, &search).await;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{ran:?}");
    assert!(said.contains("\"hits\""), "{said}");
}

#[tokio::test]
async fn a_file_that_cannot_be_used_ends_each_program_at_its_start() {
    let database = TestDatabase::create().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "[docs]\nurll = \"http://hunter2\"\n").unwrap();
    let path = file.path().to_str().unwrap();
    for name in ["weir-coordinator", "weir-worker"] {
        let settings = [
            ("WEIR_DATABASE_URL", database.url()),
            ("WEIR_LISTEN", "127.0.0.1:0"),
            ("WEIR_MODELS_FILE", path),
        ];
        let mut process = Process::spawn(name, &[], &settings);
        assert!(!process.wait().await.success());
        let said = process.log().join("\n");
        for part in ["WEIR_MODELS_FILE", path, "docs", "`urll`", "`url`"] {
            assert!(said.contains(part), "{name}: {said}");
        }
        assert!(!said.contains("hunter2"), "{name}: {said}");
    }
}
