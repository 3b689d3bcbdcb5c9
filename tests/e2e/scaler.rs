//! KEDA asks how many workers there should be.

use std::{collections::HashMap, fs, path::Path};

use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming, transport::Channel};
use weir_proto::{
    externalscaler::{
        GetMetricsRequest, IsActiveResponse, ScaledObjectRef,
        external_scaler_client::ExternalScalerClient,
    },
    v1,
};
use weir_tests::{PATIENCE, cluster::MODEL, embedder::expected_vector};

use crate::clients::{Weir, assert_invalid, assert_status, embedded, put_texts, until, upsert};

fn scaled(metadata: &[(&str, &str)]) -> ScaledObjectRef {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    ScaledObjectRef {
        name: "weir-worker".to_owned(),
        namespace: "weir".to_owned(),
        scaler_metadata: metadata.iter().map(own).collect(),
    }
}

fn scaler(weir: &Weir) -> ExternalScalerClient<Channel> {
    ExternalScalerClient::new(weir.channel.clone())
}

async fn pending(weir: &Weir, metadata: &[(&str, &str)]) -> i64 {
    let request = GetMetricsRequest {
        scaled_object_ref: Some(scaled(metadata)),
        metric_name: "weir-pending-chunks".to_owned(),
    };
    let answer = scaler(weir).get_metrics(request).await.unwrap();
    let value = answer.into_inner().metric_values.remove(0);
    assert_eq!(value.metric_name, "weir-pending-chunks");
    assert!((value.metric_value_float - value.metric_value as f64).abs() < f64::EPSILON);
    value.metric_value
}

/// Waits until so much is pending: what KEDA is told may be a second old.
async fn pends(weir: &Weir, metadata: &[(&str, &str)], chunks: i64) {
    until(async || pending(weir, metadata).await == chunks).await;
}

async fn is_active(weir: &Weir, metadata: &[(&str, &str)]) -> bool {
    let answer = scaler(weir).is_active(scaled(metadata)).await;
    answer.unwrap().into_inner().result
}

async fn put_in(weir: &Weir, namespace: &str, texts: &[&str]) {
    let mut request = put_texts("notes", texts);
    request.namespace = namespace.to_owned();
    weir.sources().put_source(request).await.unwrap();
}

/// Persists the first pending chunk of a lease.
async fn embed_one(weir: &Weir, lease: &v1::Lease) {
    let chunk = weir.batch(lease).await.remove(0);
    let vector = embedded(&chunk, &expected_vector(&chunk.text));
    let request = upsert(lease, vec![vector]);
    weir.worker().upsert_batch(request).await.unwrap();
}

#[tokio::test]
async fn work_is_counted_while_it_waits_and_while_it_is_done() {
    let weir = Weir::with(&[
        ("WEIR_MODELS", "fake,other"),
        ("WEIR_BACKOFF_BASE", "1h"),
        ("WEIR_BACKOFF_CAP", "2h"),
    ])
    .await;
    let pool = [("models", MODEL), ("scalerAddress", "weir:7400")];
    pends(&weir, &pool, 0).await;
    assert!(!is_active(&weir, &pool).await);

    put_in(&weir, "default", &["a", "b", "c"]).await;
    put_in(&weir, "depot", &["d"]).await;
    pends(&weir, &pool, 4).await;
    assert!(is_active(&weir, &pool).await);
    let of = |namespaces| [("models", MODEL), ("namespaces", namespaces)];
    pends(&weir, &of("depot"), 1).await;
    pends(&weir, &of("depot, default"), 4).await;
    pends(&weir, &[("models", "other")], 0).await;
    pends(&weir, &[("models", "other,fake")], 4).await;
    let patient = [("models", MODEL), ("activationChunks", "4")];
    assert!(!is_active(&weir, &patient).await);

    // What a worker has is not done.
    let lease = weir.claim().await;
    pends(&weir, &of("default"), 3).await;
    embed_one(&weir, &lease).await;
    pends(&weir, &of("default"), 2).await;

    // What has to wait for its time needs no worker until then.
    let fail = v1::FailJobRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        reason: "of no use".to_owned(),
    };
    weir.worker().fail_job(fail).await.unwrap();
    pends(&weir, &of("default"), 0).await;
}

#[tokio::test]
async fn the_target_is_what_the_metadata_says() {
    let weir = Weir::start().await;
    for (metadata, target) in [
        (&[("models", MODEL)][..], 2_000),
        (&[("models", MODEL), ("chunksPerWorker", "50")], 50),
    ] {
        let answer = scaler(&weir).get_metric_spec(scaled(metadata)).await;
        let specs = answer.unwrap().into_inner().metric_specs;
        assert_eq!(specs.len(), 1);
        assert_eq!(specs[0].metric_name, "weir-pending-chunks");
        assert_eq!(specs[0].target_size, target);
        assert!((specs[0].target_size_float - target as f64).abs() < f64::EPSILON);
    }
}

#[tokio::test]
async fn metadata_that_says_nothing_is_refused_by_its_key() {
    let weir = Weir::start().await;
    for (metadata, key, what) in [
        (&[][..], "models", "must name"),
        (&[("models", " ,")], "models", "must name"),
        (&[("models", "fak")], "models", "\"fak\" is not a model"),
        (
            &[("models", MODEL), ("namespaces", "Not One")],
            "namespaces",
            "lower-case",
        ),
        (
            &[("models", MODEL), ("chunksPerWorker", "0")],
            "chunksPerWorker",
            "1 to 1000000",
        ),
        (
            &[("models", MODEL), ("chunksPerWorker", "many")],
            "chunksPerWorker",
            "whole number",
        ),
        (
            &[("models", MODEL), ("activationChunks", "-1")],
            "activationChunks",
            "0 to 1000000",
        ),
        (&[("models", MODEL), ("model", MODEL)], "model", "not known"),
    ] {
        let object = scaled(metadata);
        let mut scaler = scaler(&weir);
        let metrics = GetMetricsRequest {
            scaled_object_ref: Some(object.clone()),
            metric_name: "weir-pending-chunks".to_owned(),
        };
        let faults = [
            scaler.is_active(object.clone()).await.map(drop),
            scaler.stream_is_active(object.clone()).await.map(drop),
            scaler.get_metric_spec(object).await.map(drop),
            scaler.get_metrics(metrics).await.map(drop),
        ];
        for fault in faults {
            assert_invalid(&fault.unwrap_err(), key, what);
        }
    }
    let other = GetMetricsRequest {
        scaled_object_ref: Some(scaled(&[("models", MODEL)])),
        metric_name: "queue-length".to_owned(),
    };
    let fault = scaler(&weir).get_metrics(other).await.unwrap_err();
    assert_invalid(&fault, "metricName", "weir-pending-chunks");
}

/// Opens the stream of the pool that has all the work.
async fn stream(weir: &Weir) -> Streaming<IsActiveResponse> {
    let pool = scaled(&[("models", MODEL)]);
    let told = scaler(weir).stream_is_active(pool).await;
    told.unwrap().into_inner()
}

/// What a stream tells next.
async fn next(told: &mut Streaming<IsActiveResponse>) -> Result<bool, Status> {
    let message = timeout(PATIENCE, told.message()).await;
    let message = message.expect("the stream tells of it")?;
    Ok(message.expect("the stream goes on").result)
}

#[tokio::test]
async fn a_pool_without_workers_is_woken_by_its_first_job() {
    // Whoever waits for the poll waits longer than the test has patience.
    let mut weir = Weir::with(&[("WEIR_POLL_INTERVAL", "1h")]).await;
    let mut told = stream(&weir).await;
    assert_eq!(next(&mut told).await.ok(), Some(false));
    weir.put("notes", &["a"]).await;
    assert_eq!(next(&mut told).await.ok(), Some(true));

    weir.coordinator.process.sigterm();
    let status = next(&mut told).await.unwrap_err();
    assert_status(&status, Code::Unavailable, "stopping");
    assert_eq!(weir.coordinator.process.wait().await.code(), Some(0));
}

#[tokio::test]
async fn a_pool_whose_work_is_done_goes_to_sleep() {
    let weir = Weir::with(&[("WEIR_POLL_INTERVAL", "50ms")]).await;
    weir.put("notes", &["a"]).await;
    pends(&weir, &[("models", MODEL)], 1).await;
    let mut told = stream(&weir).await;
    assert_eq!(next(&mut told).await.ok(), Some(true));
    let lease = weir.claim().await;
    embed_one(&weir, &lease).await;
    assert_eq!(next(&mut told).await.ok(), Some(false));
}

/// The metadata of the first trigger that the chart renders of these values.
fn rendered(values: &str) -> HashMap<String, String> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/weir/ci/golden");
    let file = golden.join(env!("CARGO_PKG_VERSION")).join(values);
    let text = fs::read_to_string(file).expect("`make chart-write` wrote it");
    let manifests: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let scaled = |one: &&Value| one["kind"] == "ScaledObject";
    let scaled = manifests.iter().find(scaled).expect("something is scaled");
    serde_json::from_value(scaled["spec"]["triggers"][0]["metadata"].clone()).unwrap()
}

#[tokio::test]
async fn what_the_chart_tells_keda_is_understood() {
    let weir = Weir::with(&[("WEIR_MODELS", "bge-m3")]).await;
    let mut scaled = scaled(&[]);
    scaled.scaler_metadata = rendered("all.yaml");
    let spec = scaler(&weir).get_metric_spec(scaled.clone()).await.unwrap();
    assert_eq!(spec.into_inner().metric_specs[0].target_size, 20_000);
    put_in(&weir, "depot", &["a"]).await;
    until(async || {
        let active = scaler(&weir).is_active(scaled.clone()).await;
        active.unwrap().into_inner().result
    })
    .await;
}

#[tokio::test]
async fn the_database_answers_the_charts_question_as_the_coordinator_does() {
    let model = "o'brien/e5";
    let weir = Weir::with(&[("WEIR_MODELS", model)]).await;
    put_in(&weir, "default", &["a", "b", "c"]).await;
    put_in(&weir, "depot", &["d"]).await;
    let query = rendered("keda-postgres.yaml").remove("query").unwrap();
    let answer: f64 = sqlx::query_scalar(AssertSqlSafe(query))
        .fetch_one(weir.database.pool())
        .await
        .unwrap();
    let own = [("models", model), ("namespaces", "default")];
    pends(&weir, &own, 3).await;
    assert!((answer - 3.0).abs() < f64::EPSILON, "{answer}");
}
