//! What stands before each text is the coordinator's to add, from its file of
//! models; another prompt has all texts embedded again.

use std::{collections::HashMap, fs, path::Path};

use tempfile::NamedTempFile;
use weir_proto::v1::{
    Item, ItemList, PutSourceRequest, put_source_request::Content,
    source_service_client::SourceServiceClient,
};
use weir_tests::{
    clients::until,
    cluster::{Coordinator, Worker},
    postgres::TestDatabase,
};

use crate::world::World;

/// Items of a source: three batches.
const ITEMS: usize = 24;

/// A file of models in which the model of the tests has this prompt.
fn models(prompt: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    fs::write(
        file.path(),
        format!("[fake.document]\nprompt = {prompt:?}\n"),
    )
    .unwrap();
    file
}

fn path(file: &NamedTempFile) -> &str {
    let path: &Path = file.path();
    path.to_str().unwrap()
}

/// The texts of a source, as they are embedded.
fn texts(prompt: &str, source: &str) -> Vec<String> {
    let texts = (0..ITEMS).map(|number| format!("{prompt}text {number} of {source}"));
    texts.collect()
}

async fn put(coordinator: &Coordinator, source: &str) {
    let items = texts("", source).into_iter().enumerate();
    let items = items.map(|(number, text)| Item {
        item_id: format!("{number:02}"),
        text,
        metadata: None,
    });
    let request = PutSourceRequest {
        name: source.to_owned(),
        content: Some(Content::Items(ItemList {
            items: items.collect(),
        })),
        ..PutSourceRequest::default()
    };
    let mut sources = SourceServiceClient::new(coordinator.connect().await);
    sources.put_source(request).await.unwrap();
}

/// Waits until the vectors of a source are those of its texts with the prompt.
async fn embedded_with(world: &World, prompt: &str, source: &str) {
    let wanted = texts(prompt, source);
    until(async || {
        let persisted = world.persisted(source).await;
        persisted.len() == ITEMS && persisted.iter().all(|chunk| wanted.contains(&chunk.text))
    })
    .await;
}

/// Asserts that the embedder got each of these texts once, besides its probes,
/// and nothing else of these sources.
fn assert_once(world: &World, wanted: impl IntoIterator<Item = String>) {
    let mut received = world.embedder.received();
    received.retain(|text, _| text.contains(" of "));
    let wanted: HashMap<String, usize> = wanted.into_iter().map(|text| (text, 1)).collect();
    assert_eq!(received, wanted);
}

#[tokio::test]
async fn a_start_with_another_prompt_embeds_all_again_once() {
    let (before, after) = (models("one: "), models("two: "));
    let database = TestDatabase::create().await;
    let mut world = World::start_on(database, &[("WEIR_MODELS_FILE", path(&before))]).await;
    // Its own file says nothing of prompts: texts come with theirs.
    let _worker: Worker = world.worker("8");
    put(&world.coordinator, "api").await;
    embedded_with(&world, "one: ", "api").await;
    assert_once(&world, texts("one: ", "api"));

    let address = world.coordinator.address().to_string();
    world.coordinator.process.sigterm();
    world.coordinator.process.wait().await;
    let settings = [
        ("WEIR_MODELS_FILE", path(&after)),
        ("WEIR_LISTEN", &address),
    ];
    world.coordinator = Coordinator::spawn(world.database.url(), &settings).await;
    embedded_with(&world, "two: ", "api").await;
    let all = texts("one: ", "api")
        .into_iter()
        .chain(texts("two: ", "api"));
    assert_once(&world, all.clone());
    world.assert_exact("api").await;

    // The same content queues nothing, with the same prompt.
    put(&world.coordinator, "api").await;
    put(&world.coordinator, "next").await;
    embedded_with(&world, "two: ", "next").await;
    assert_once(&world, all.chain(texts("two: ", "next")));
}

#[tokio::test]
async fn replicas_with_different_files_do_not_take_turns() {
    let (before, after) = (models("one: "), models("two: "));
    let database = TestDatabase::create().await;
    let settings = [
        ("WEIR_MODELS_FILE", path(&before)),
        ("WEIR_POLL_INTERVAL", "50ms"),
    ];
    let world = World::start_on(database, &settings).await;
    let _worker = world.worker("8");
    put(&world.coordinator, "first").await;
    embedded_with(&world, "one: ", "first").await;
    let settings = [
        ("WEIR_MODELS_FILE", path(&after)),
        ("WEIR_POLL_INTERVAL", "50ms"),
    ];
    let newer = Coordinator::spawn(world.database.url(), &settings).await;
    embedded_with(&world, "two: ", "first").await;
    let mut wanted = texts("one: ", "first");
    wanted.extend(texts("two: ", "first"));
    // Whichever takes a write, and while both make their rounds.
    for (coordinator, source) in [
        (&world.coordinator, "second"),
        (&newer, "third"),
        (&world.coordinator, "fourth"),
        (&newer, "fifth"),
    ] {
        put(coordinator, source).await;
        put(coordinator, "first").await;
        embedded_with(&world, "two: ", source).await;
        wanted.extend(texts("two: ", source));
    }
    assert_once(&world, wanted);
    assert_eq!(world.rows("prompts").await, 2);
    assert_eq!(world.rows("jobs WHERE NOT settled").await, 0);
}
