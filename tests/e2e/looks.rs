//! What asks the database again and again asks it no more often when more do:
//! probes, KEDA, and those who watch different things. Counted in statements,
//! which the coordinator's log names.

use std::{collections::HashMap, time::Instant};

use futures::future::{join_all, try_join_all};
use tonic::{Streaming, transport::Channel};
use weir_proto::{
    externalscaler::{ScaledObjectRef, external_scaler_client::ExternalScalerClient},
    v1::{self, job_service_client::JobServiceClient},
};
use weir_tests::{
    PATIENCE,
    clients::{Weir, http, put_texts, until},
    cluster::MODEL,
};

/// Logs each statement.
const STATEMENTS: (&str, &str) = ("WEIR_LOG", "info,sqlx::query=debug");

/// How many statements were logged that have both in them.
fn statements(weir: &Weir, method: &str, text: &str) -> u64 {
    let log = weir.coordinator.process.log();
    let these = log.iter().filter(|line| line.contains(method));
    these.filter(|line| line.contains(text)).count() as u64
}

async fn readyz(weir: &Weir) -> u16 {
    let url = format!("{}/readyz", weir.coordinator.url());
    http().get(url).send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_thousand_probes_ask_the_database_once_a_second() {
    // The rescuer asks, too, when it begins.
    let weir = Weir::with(&[STATEMENTS, ("WEIR_POLL_INTERVAL", "1h")]).await;
    assert_eq!(readyz(&weir).await, 200);
    until(async || statements(&weir, "store::ping", "") > 0).await;
    let (before, began) = (statements(&weir, "store::ping", ""), Instant::now());
    let client = http();
    let url = format!("{}/readyz", weir.coordinator.url());
    for _ in 0..10 {
        let probes = (0..100).map(|_| client.get(&url).send());
        let answers = try_join_all(probes).await.unwrap();
        assert!(answers.iter().all(|answer| answer.status() == 200));
    }
    let asked = statements(&weir, "store::ping", "") - before;
    let seconds = began.elapsed().as_secs() + 1;
    assert!(asked <= seconds + 1, "{asked} times in {seconds} s");
}

#[tokio::test]
async fn a_replica_whose_connections_are_all_busy_is_ready() {
    let weir = Weir::with(&[STATEMENTS, ("WEIR_DATABASE_CONNECTIONS", "1")]).await;
    let mut blocked = weir.database.pool().begin().await.unwrap();
    sqlx::query("LOCK TABLE weir.sources")
        .execute(&mut *blocked)
        .await
        .unwrap();
    let mut sources = weir.sources();
    let put = tokio::spawn(async move { sources.put_source(put_texts("notes", &["a"])).await });
    until(async || {
        let waits = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting: i64 = sqlx::query_scalar(waits)
            .fetch_one(weir.database.pool())
            .await
            .unwrap();
        waiting > 0
    })
    .await;
    // For as long as it takes to ask again: an answer may be a second old.
    let asked = statements(&weir, "store::ping", "");
    until(async || {
        assert_eq!(readyz(&weir).await, 200);
        statements(&weir, "store::ping", "") > asked + 1
    })
    .await;
    blocked.rollback().await.unwrap();
    put.await.unwrap().unwrap();
}

async fn first<T>(stream: &mut Streaming<T>) -> T {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await;
    message.expect("in time").unwrap().expect("it goes on")
}

/// A watch of a page that nobody else watches.
async fn watch(
    mut jobs: JobServiceClient<Channel>,
    number: usize,
) -> Streaming<v1::WatchSourcesResponse> {
    let page = v1::WatchSourcesRequest {
        name_prefix: format!("n{number}"),
        ..v1::WatchSourcesRequest::default()
    };
    jobs.watch_sources(page).await.unwrap().into_inner()
}

/// A pool that no other stream asks about, and that is asleep.
async fn pool(weir: &Weir, number: usize) {
    let pool = ScaledObjectRef {
        scaler_metadata: HashMap::from([
            ("models".to_owned(), MODEL.to_owned()),
            ("namespaces".to_owned(), format!("n{number}")),
        ]),
        ..ScaledObjectRef::default()
    };
    let mut scaler = ExternalScalerClient::new(weir.channel.clone());
    let mut told = scaler
        .stream_is_active(pool.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(!first(&mut told).await.result);
    assert!(!scaler.is_active(pool).await.unwrap().into_inner().result);
    // It stays open for as long as the test lasts.
    tokio::spawn(async move { while let Ok(Some(_)) = told.message().await {} });
}

#[tokio::test]
async fn many_who_watch_different_things_have_their_share_and_no_more() {
    // One of four connections, which gives fifty turns a second.
    let weir = Weir::with(&[
        STATEMENTS,
        ("WEIR_DATABASE_CONNECTIONS", "4"),
        ("WEIR_MAX_STREAMS_PER_CLIENT", "1000"),
    ])
    .await;
    let began = Instant::now();
    let looks = || statements(&weir, "store::sources::sources", "SET TRANSACTION");
    let mut watches = join_all((0..300).map(|number| watch(weir.jobs(), number))).await;
    // Everybody looks again whenever anything changes, and nobody else waits for them.
    let all_told = async {
        join_all(watches.iter_mut().map(first)).await;
        join_all((0..50).map(|number| pool(&weir, number))).await;
    };
    let changes = async {
        for number in 0_u64.. {
            let put = weir.put("changing", &[&number.to_string()]).await;
            let job = weir.job(put.jobs[0].job_id).await;
            assert_eq!(job.job_id, put.jobs[0].job_id);
        }
    };
    tokio::select! {
        () = all_told => {}
        () = changes => {}
    }
    let seconds = began.elapsed().as_secs() + 1;
    let (looked, queue) = (
        looks(),
        statements(&weir, "store::queue::queue_stats", "FROM weir.jobs"),
    );
    assert!(looked <= 50 * seconds + 1, "{looked} looks in {seconds} s");
    assert!(
        queue <= seconds + 1,
        "{queue} looks at the queue in {seconds} s"
    );
    assert_eq!(statements(&weir, "store::queue::workable_chunks", ""), 0);
}
