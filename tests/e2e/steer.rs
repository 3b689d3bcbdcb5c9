//! Jobs that clients cancel and have run again, and sources that the
//! reconciler puts right.

use std::{collections::HashMap, time::Duration};

use serde_json::Value;
use weir_proto::v1::{
    CancelJobRequest, JobState, JobTrigger, RetryJobRequest, job_service_client::JobServiceClient,
};
use weir_tests::cluster::{Coordinator, Worker, weir};

use crate::{clients::until, world::World};

/// Only notifications bring word in time.
const NO_POLL: (&str, &str) = ("WEIR_POLL_INTERVAL", "1h");

/// A reconciler that is always at it.
const BUSY: [(&str, &str); 2] = [
    ("WEIR_RECONCILE_INTERVAL", "50ms"),
    ("WEIR_POLL_INTERVAL", "50ms"),
];

fn items(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|id| (format!("{id:03}"), format!("the text of item {id}")))
}

/// Runs `weir … --json` and returns its exit code and what it said.
async fn run(world: &World, args: &[&str]) -> (Option<i32>, Value) {
    let output = weir(&world.coordinator.url(), &[args, &["--json"]].concat()).await;
    let said = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        Value::String(complaint.into_owned())
    });
    (output.status.code(), said)
}

/// The texts that came to the embedder, without probes.
fn received(world: &World) -> HashMap<String, usize> {
    let mut received = world.embedder.received();
    received.remove("probe");
    received
}

/// Waits for the newest job after `before` that the reconciler queued.
async fn reconciled(world: &World, before: i64) -> i64 {
    let newest = async || -> Option<i64> {
        sqlx::query_scalar("SELECT max(id) FROM weir.jobs WHERE trigger = 'reconcile' AND id > $1")
            .bind(before)
            .fetch_one(world.database.pool())
            .await
            .unwrap()
    };
    until(async || newest().await.is_some()).await;
    newest().await.unwrap()
}

async fn meddle(world: &World, sql: &'static str) {
    sqlx::raw_sql(sql)
        .execute(world.database.pool())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_job_cancelled_on_one_replica_ends_on_the_other() {
    let world = World::start(&[NO_POLL]).await;
    let replica = Coordinator::spawn(world.database.url(), &[NO_POLL]).await;
    world
        .embedder
        .set_delay(Duration::from_millis(100), Duration::ZERO);
    let job_id = world.put_items("long", items(200)).await.jobs[0].job_id;
    let worker = world.worker("8");
    world.embedded("long", 24).await;
    world.embedder.close_gate();
    // The next call, if one was under way when the gate fell, is the last.
    let calls = world.embedder.calls().len();
    world.embedder.calls_started(calls + 1).await;

    let mut jobs = JobServiceClient::new(replica.connect().await);
    let answer = jobs.cancel_job(CancelJobRequest { job_id }).await.unwrap();
    let cancelled = answer.into_inner().job.unwrap();
    assert_eq!(cancelled.state(), JobState::Cancelled, "{cancelled:?}");
    let dropped = "The lease ended; job dropped.";
    let dropped = worker.process.wait_for_event(dropped).await;
    assert!(
        dropped.to_string().contains("client cancelled"),
        "{dropped}"
    );
    let lost = world
        .coordinator
        .process
        .wait_for_event("A session lost a lease.")
        .await;
    assert_eq!(lost["reason"], "cancelled", "{lost}");

    let (before, persisted) = (received(&world), world.persisted("long").await.len());
    world.embedder.open_gate();
    // When the same worker has done what came next, the cancelled job stands where it stood.
    let next = world.put_items("next", [("a".into(), "next".into())]).await;
    world.succeeded(next.jobs[0].job_id).await;
    let mut after = received(&world);
    after.remove("next");
    assert_eq!(after, before);
    assert_eq!(world.persisted("long").await.len(), persisted);
    assert_eq!(world.job(job_id).await, cancelled);
    let unsettled = world.source("long").await.jobs;
    assert_eq!(unsettled, [cancelled], "its chunks are still pending");

    // Cancelling again changes nothing; the command line takes it up where it was.
    let (code, said) = run(&world, &["cancel", &job_id.to_string()]).await;
    assert_eq!(
        (code, &said["jobs"][0]["state"]),
        (Some(0), &"cancelled".into())
    );
    let told = weir(&world.coordinator.url(), &["cancel", &job_id.to_string()]).await;
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("default/long is cancelled; "), "{told}");
    let (code, said) = run(&world, &["retry", &job_id.to_string()]).await;
    assert_eq!(code, Some(0), "{said}");
    let again = said["jobs"][0]["job_id"].as_i64().unwrap();
    let again = world.succeeded(again).await;
    assert_eq!(again.trigger(), JobTrigger::Retry);
    assert_eq!(again.chunks_total, 200 - persisted as i64);
    assert_eq!(world.persisted("long").await.len(), 200);
    assert_eq!(world.source("long").await.jobs, []);
}

#[tokio::test]
async fn a_failed_job_is_parked_and_runs_again_on_demand() {
    let world = World::start(&[("WEIR_MAX_ATTEMPTS", "1")]).await;
    let failing = world.failing_worker("out of order").await;
    let job_id = world.put_items("broken", items(10)).await.jobs[0].job_id;
    let failed = world.ended(job_id).await;
    assert_eq!(failed.state(), JobState::Failed, "{failed:?}");
    let seconds = |time: Option<prost_types::Timestamp>| time.unwrap().seconds;
    let parked = seconds(failed.run_time) - seconds(failed.finish_time);
    assert_eq!(parked, 30 * 60, "{failed:?}");
    let told = weir(&world.coordinator.url(), &["jobs", "broken"]).await;
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("queued again in 29 min"), "{told}");

    drop(failing);
    let _worker = world.worker("4");
    let id = job_id.to_string();
    let (code, said) = run(&world, &["retry", &id]).await;
    assert_eq!(code, Some(0), "{said}");
    let again = said["jobs"][0]["job_id"].as_i64().unwrap();
    world.succeeded(again).await;
    world.assert_exact("broken").await;
    assert_eq!(world.source("broken").await.jobs, []);

    for (args, what) in [
        (["retry", &id], "taken over"),
        (["cancel", &id], "failed already"),
        (["retry", "4711"], "no job 4711"),
        (["cancel", "4711"], "no job 4711"),
    ] {
        let (code, said) = run(&world, &args).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.to_string().contains(what), "{said}");
    }
}

#[tokio::test]
async fn force_embeds_everything_anew() {
    let world = World::start(&[]).await;
    let job_id = world.put_items("swapped", items(30)).await.jobs[0].job_id;
    let _worker = world.worker("8");
    world.succeeded(job_id).await;
    assert!(received(&world).values().all(|times| *times == 1));
    let (code, said) = run(&world, &["retry", &job_id.to_string(), "--force"]).await;
    assert_eq!(code, Some(0), "{said}");
    world
        .succeeded(said["jobs"][0]["job_id"].as_i64().unwrap())
        .await;
    world.assert_exact("swapped").await;
    let twice = received(&world);
    assert_eq!(twice.len(), 30);
    assert!(twice.values().all(|times| *times == 2), "{twice:?}");

    // A caller's trace goes on in the jobs that it causes.
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut request = tonic::Request::new(RetryJobRequest {
        job_id,
        force: true,
    });
    request
        .metadata_mut()
        .insert("traceparent", trace.parse().unwrap());
    let answer = world.jobs().await.retry_job(request).await.unwrap();
    let caused = answer.into_inner().jobs[0].job_id;
    let kept: String = sqlx::query_scalar("SELECT traceparent FROM weir.jobs WHERE id = $1")
        .bind(caused)
        .fetch_one(world.database.pool())
        .await
        .unwrap();
    assert_eq!(kept, trace);
}

#[tokio::test]
async fn lost_vectors_and_another_model_are_noticed() {
    let models = ("WEIR_MODELS", "fake,other");
    let world = World::start(&[&BUSY[..], &[models]].concat()).await;
    let job_id = world.put_items("meddled", items(30)).await.jobs[0].job_id;
    let _worker = world.worker("8");
    world.succeeded(job_id).await;
    meddle(
        &world,
        "DELETE FROM weir.embeddings WHERE item_id BETWEEN '010' AND '014'",
    )
    .await;
    let of_lost = world.succeeded(reconciled(&world, job_id).await).await;
    assert_eq!(of_lost.trigger(), JobTrigger::Reconcile);
    assert_eq!(of_lost.chunks_total, 5, "{of_lost:?}");
    world.assert_exact("meddled").await;
    let twice = received(&world).into_values().filter(|times| *times == 2);
    assert_eq!(twice.count(), 5);
    let event = world
        .coordinator
        .process
        .wait_for_event(
            "A source's vectors, jobs or counts did not match its chunks; it was put right.",
        )
        .await;
    assert_eq!(
        (&event["uncovered"], &event["jobs_queued"]),
        (&Value::Bool(true), &1.into()),
        "{event}"
    );

    meddle(&world, "UPDATE weir.sources SET model = 'other'").await;
    let of_model = reconciled(&world, of_lost.job_id).await;
    let settings = [("WEIR_MODEL", "other")];
    let _other = Worker::spawn(&world.coordinator.url(), &world.embedder.url(), &settings);
    let of_model = world.succeeded(of_model).await;
    assert_eq!(
        (of_model.model.as_str(), of_model.chunks_total),
        ("other", 30)
    );
    world.assert_exact("meddled").await;
}

#[tokio::test]
async fn what_keeps_failing_is_queued_ever_more_rarely_and_heals_by_itself() {
    let settings = [
        ("WEIR_MAX_ATTEMPTS", "1"),
        ("WEIR_PARK_BASE", "100ms"),
        ("WEIR_PARK_CAP", "1h"),
    ];
    let world = World::start(&[&BUSY[..], &settings].concat()).await;
    let failing = world.failing_worker("out of order").await;
    world.put_items("failing", items(5)).await;
    let parked = async || -> Vec<(i16, i64)> {
        sqlx::query_as(
            "SELECT parkings, round(extract(epoch FROM run_at - finished_at) * 1000)::bigint
             FROM weir.jobs WHERE state = 'failed' ORDER BY id",
        )
        .fetch_all(world.database.pool())
        .await
        .unwrap()
    };
    until(async || parked().await.len() >= 3).await;
    assert_eq!(parked().await[..3], [(0, 100), (1, 200), (2, 400)]);

    drop(failing);
    let _worker = world.worker("8");
    let done = world
        .watch_source("failing", |state| {
            state.source.as_ref().unwrap().chunks_embedded == 5
        })
        .await;
    assert_eq!(done.jobs, [], "no failure is left behind");
    world.assert_exact("failing").await;
}
