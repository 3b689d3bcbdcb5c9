//! The queue's figures: one look for all who want them, which never wait for
//! it where there are some, and say how old they are.

use std::{collections::HashMap, time::Instant};

use futures::future::join_all;
use sqlx::{Postgres, Transaction};
use weir_proto::{
    externalscaler::{ScaledObjectRef, external_scaler_client::ExternalScalerClient},
    v1,
};
use weir_tests::{
    clients::{Weir, http, until},
    cluster::MODEL,
};

const PENDING: &str = "weir_queue_chunks_pending{namespace=\"default\",model=\"fake\"} ";
const AGE: &str = "weir_queue_figures_age_seconds ";

/// What the page of metrics says after this, if it says anything.
async fn shown(weir: &Weir, series: &str) -> Option<f64> {
    let page = format!("{}/metrics", weir.coordinator.url());
    let page = http().get(page).send().await.unwrap().text().await.unwrap();
    let value = page.lines().find_map(|line| line.strip_prefix(series));
    value.map(|value| value.parse().unwrap())
}

async fn queue(weir: &Weir) -> v1::GetQueueStatsResponse {
    let request = v1::GetQueueStatsRequest::default();
    let answer = weir.jobs().get_queue_stats(request).await;
    answer.unwrap().into_inner()
}

async fn status(weir: &Weir) -> v1::GetStatusResponse {
    let request = v1::GetStatusRequest::default();
    let answer = weir.jobs().get_status(request).await;
    answer.unwrap().into_inner()
}

/// Whether the pool of all the work is active.
async fn is_active(weir: &Weir) -> bool {
    let pool = ScaledObjectRef {
        scaler_metadata: HashMap::from([("models".to_owned(), MODEL.to_owned())]),
        ..ScaledObjectRef::default()
    };
    let mut scaler = ExternalScalerClient::new(weir.channel.clone());
    let answer = scaler.is_active(pool).await;
    answer.unwrap().into_inner().result
}

/// Keeps everybody from the jobs for as long as it lasts.
async fn lock(weir: &Weir) -> Transaction<'static, Postgres> {
    let mut locked = weir.database.pool().begin().await.unwrap();
    let lock = "LOCK TABLE weir.jobs IN ACCESS EXCLUSIVE MODE";
    sqlx::query(lock).execute(&mut *locked).await.unwrap();
    locked
}

#[tokio::test]
async fn while_a_look_hangs_what_was_seen_is_told_with_its_age() {
    let weir = Weir::start().await;
    weir.put("notes", &["a", "b", "c"]).await;
    until(async || shown(&weir, PENDING).await == Some(3.0)).await;
    let locked = lock(&weir).await;
    until(async || {
        assert_eq!(shown(&weir, PENDING).await, Some(3.0));
        shown(&weir, AGE).await.unwrap() > 2.5
    })
    .await;
    // Who asks is not kept waiting either.
    let answer = queue(&weir).await;
    assert_eq!(answer.queues[0].chunks_pending, 3);
    assert!(answer.age_seconds > 2.5, "{answer:?}");
    let answer = status(&weir).await;
    assert_eq!(answer.total.unwrap().chunks_pending, 3);
    assert!(answer.jobs_age_seconds > 2.5);
    assert!(is_active(&weir).await);
    locked.rollback().await.unwrap();
    until(async || shown(&weir, AGE).await.unwrap() < 2.5).await;
}

#[tokio::test]
async fn while_looks_fail_the_page_tells_what_was_known_and_calls_tell_why() {
    let weir = Weir::with(&[("WEIR_STATEMENT_TIMEOUT", "200ms")]).await;
    weir.put("notes", &["a", "b", "c"]).await;
    until(async || shown(&weir, PENDING).await == Some(3.0)).await;
    let locked = lock(&weir).await;
    until(async || {
        let request = v1::GetQueueStatsRequest::default();
        let answer = weir.jobs().get_queue_stats(request).await;
        answer.is_err_and(|status| status.code() == tonic::Code::Unavailable)
    })
    .await;
    assert_eq!(shown(&weir, PENDING).await, Some(3.0));
    assert!(shown(&weir, AGE).await.is_some());
    let event = "A maintenance task fails; it goes on trying.";
    let told = weir.coordinator.process.wait_for_line(|line| {
        let told = line.contains(event) && line.contains("queue figures");
        told.then_some(())
    });
    told.await;
    locked.rollback().await.unwrap();
    until(async || {
        let request = v1::GetQueueStatsRequest::default();
        weir.jobs().get_queue_stats(request).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn what_was_put_before_a_call_is_in_the_figures_of_a_small_queue() {
    let weir = Weir::start().await;
    for put in 1..=20 {
        weir.put("notes", &vec!["text"; put]).await;
        let (queue, status) = (queue(&weir).await, status(&weir).await);
        assert_eq!(queue.queues[0].chunks_pending, put as i64);
        assert_eq!(status.total.unwrap().chunks_pending, put as i64);
        assert!(is_active(&weir).await || put == 1);
    }
}

#[tokio::test]
async fn whatever_is_asked_of_a_large_queue_is_one_look_that_rests() {
    let weir = Weir::with(&[("WEIR_LOG", "info,sqlx::query=debug")]).await;
    weir.put("notes", &["a", "b", "c"]).await;
    until(async || shown(&weir, PENDING).await == Some(3.0)).await;
    let many = "INSERT INTO weir.jobs
            (source_id, revision, chunks_total, trigger, namespace, source, model, first_item_id, last_item_id)
        SELECT source_id, revision, 1, trigger, namespace, source, model, first_item_id, last_item_id
        FROM weir.jobs, generate_series(1, 10000)";
    sqlx::query(many)
        .execute(weir.database.pool())
        .await
        .unwrap();
    // Two, of which the first may have been under way.
    let looks = || {
        let log = weir.coordinator.process.log();
        let looks = log.iter().filter(|line| {
            line.contains("store::queue::queue_stats") && line.contains("GROUP BY namespace, model")
        });
        looks.count() as u64
    };
    let before = looks();
    until(async || looks() > before + 1).await;
    let pending = 10_003;
    let (before, began) = (looks(), Instant::now());
    for _ in 0..5 {
        let asked = (0..20).map(async |_| {
            assert_eq!(queue(&weir).await.queues[0].chunks_pending, pending);
            assert_eq!(status(&weir).await.total.unwrap().chunks_pending, pending);
            assert!(is_active(&weir).await);
            assert_eq!(shown(&weir, PENDING).await, Some(pending as f64));
        });
        join_all(asked).await;
    }
    let (looked, seconds) = (looks() - before, began.elapsed().as_secs() + 1);
    assert!(looked <= seconds + 1, "{looked} looks in {seconds} s");
}
