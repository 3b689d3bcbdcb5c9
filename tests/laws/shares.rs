//! Nothing waits for another: namespaces share the workers.

use std::collections::BTreeMap;

use tonic::transport::Channel;
use weir_proto::v1::{
    ClaimJobRequest, PutSourceRequest, source_service_client::SourceServiceClient,
    worker_service_client::WorkerServiceClient,
};
use weir_tests::{
    clients::{claim_request, item, put_items, until},
    cluster::{Worker, event_in},
    world::World,
};

use crate::words::number;

const WORKERS: usize = 2;

/// Puts items of a namespace, a word and a number for each.
async fn put(sources: &mut SourceServiceClient<Channel>, namespace: &str, items: usize) {
    let items = (0..items).map(|id| item(&format!("{id:05}"), &format!("{namespace} {id}")));
    let request = PutSourceRequest {
        namespace: namespace.to_owned(),
        ..put_items("source", items.collect())
    };
    sources.put_source(request).await.unwrap();
}

/// How many leases on jobs of a namespace sessions have taken up.
fn leases_of(world: &World, namespace: &str) -> usize {
    let log = world.coordinator.process.log().into_iter();
    let opened = log.filter(|line| event_in(line, "A lease is open.").is_some());
    opened.filter(|line| line.contains(namespace)).count()
}

#[tokio::test]
async fn law_13_one_item_waits_for_two_batches_of_each_worker_at_most() {
    let world = World::start(&[("WEIR_LOG", "info,weir_coordinator=debug")]).await;
    let mut sources = world.sources().await;
    let settings = [("WEIR_BATCH_SIZE", "4"), ("WEIR_EMBEDDER_CONCURRENCY", "1")];
    let workers = [(); WORKERS]
        .map(|()| Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings));
    for worker in &workers {
        worker.process.wait_for_event("The embedder answers.").await;
    }
    let has = |call: usize, text: &str| {
        let calls = world.embedder.calls();
        calls[call].texts.iter().any(|it| it == text)
    };
    let mut answered = world.embedder.calls().len();
    world.embedder.close_gate();
    put(&mut sources, "huge", 5_000).await;
    // From here on each worker is in the middle of a call.
    world.embedder.calls_started(answered + WORKERS).await;
    // One after the other: none waits for more because there was one before it.
    for round in 0..3 {
        put(&mut sources, "small", round + 1).await;
        // It is at hand for one of their sessions when the next call is answered.
        until(async || leases_of(&world, "small") > round).await;
        let text = format!("small {round}");
        let mut waited = 0;
        while !has(answered + WORKERS - 1, &text) {
            answered += 1;
            world.embedder.let_through(answered);
            world.embedder.calls_started(answered + WORKERS).await;
            waited += 1;
            let calls = || world.embedder.calls().into_iter().map(|call| call.texts);
            let calls = || calls().collect::<Vec<_>>();
            assert!(
                waited <= 2 * WORKERS,
                "{waited} calls came before it: {:?}",
                calls()
            );
        }
        // It is the youngest of the calls that are held.
        answered += WORKERS;
        world.embedder.let_through(answered);
        let open = "SELECT count(*) FROM weir.jobs
                    WHERE namespace = 'small' AND state IN ('queued', 'running')";
        until(async || number(world.database.pool(), open).await == 0).await;
        world.embedder.calls_started(answered + WORKERS).await;
    }
    let huge = "SELECT count(*) FROM weir.embeddings e JOIN weir.sources s ON s.id = e.source_id
                WHERE s.namespace = 'huge'";
    assert!(number(world.database.pool(), huge).await < 100);
}

#[tokio::test]
async fn law_13_namespaces_are_served_by_their_weights() {
    let settings = [
        ("WEIR_NAMESPACE_WEIGHTS", "heavy=3,light=1"),
        ("WEIR_MAX_CHUNKS_PER_JOB", "2"),
        ("WEIR_ORPHAN_GRACE", "5m"),
    ];
    let world = World::start(&settings).await;
    let mut sources = world.sources().await;
    for namespace in ["light", "heavy", "usual"] {
        put(&mut sources, namespace, 60).await;
    }
    let mut worker = WorkerServiceClient::new(world.coordinator.connect().await);
    let mut got: BTreeMap<String, i64> = BTreeMap::new();
    for _ in 0..20 {
        let request = ClaimJobRequest {
            max_jobs: 2,
            ..claim_request()
        };
        let leases = worker.claim_job(request).await.unwrap().into_inner().leases;
        for lease in leases {
            *got.entry(lease.namespace).or_default() += lease.chunks_pending;
        }
    }
    let due = [("heavy", 48), ("light", 16), ("usual", 16)];
    for (namespace, due) in due {
        assert!((got[namespace] - due).abs() <= 4, "{got:?}");
    }
}
