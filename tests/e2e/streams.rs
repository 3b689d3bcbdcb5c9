//! How many streams a client may have open, however they come.

use reqwest::StatusCode;
use serde_json::Value;
use tonic::{Code, Status, Streaming};
use weir_proto::{
    externalscaler::{ScaledObjectRef, external_scaler_client::ExternalScalerClient},
    v1::{self, job_service_client::JobServiceClient},
};
use weir_tests::{
    certificates::text_of,
    clients::{Weir, assert_status, http, until},
    cluster::MODEL,
    session::Session,
    tokens::Tokens,
};

use crate::security::with_token;

/// Each client may have two.
const TWO: (&str, &str) = ("WEIR_MAX_STREAMS_PER_CLIENT", "2");

type Watched = Result<Streaming<v1::WatchStatusResponse>, Status>;

async fn watch(weir: &Weir) -> Watched {
    let mut jobs = weir.jobs();
    let watch = jobs.watch_status(v1::WatchStatusRequest::default());
    Ok(watch.await?.into_inner())
}

/// A watch as a page opens it.
async fn events(weir: &Weir) -> reqwest::Response {
    let url = format!("{}/api/JobService/WatchStatus", weir.coordinator.url());
    http().get(url).send().await.unwrap()
}

/// A watch over gRPC-Web, and the status it begins with.
async fn web(weir: &Weir) -> (reqwest::Response, Option<String>) {
    let url = format!("{}/weir.v1.JobService/WatchStatus", weir.coordinator.url());
    let watch = http().post(url).body(vec![0_u8; 5]);
    let watch = watch.header("content-type", "application/grpc-web+proto");
    let answer = watch.send().await.unwrap();
    let status = answer.headers().get("grpc-status");
    let status = status.map(|status| status.to_str().unwrap().to_owned());
    (answer, status)
}

async fn scaler(weir: &Weir) -> Result<(), Status> {
    let mut pool = ScaledObjectRef::default();
    let models = ("models".to_owned(), MODEL.to_owned());
    pool.scaler_metadata.extend([models]);
    let mut scaler = ExternalScalerClient::new(weir.channel.clone());
    scaler.stream_is_active(pool).await.map(drop)
}

#[tokio::test]
async fn a_client_has_so_many_streams_however_they_come() {
    let weir = Weir::with(&[TWO]).await;
    let first = watch(&weir).await.unwrap();
    let second = events(&weir).await;
    assert_eq!(second.status(), StatusCode::OK);

    let refused = watch(&weir).await.unwrap_err();
    let what = "raise --max-streams-per-client (WEIR_MAX_STREAMS_PER_CLIENT)";
    assert_status(&refused, Code::ResourceExhausted, what);
    let refused = events(&weir).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let refused: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
    assert_eq!(refused["code"], "RESOURCE_EXHAUSTED");
    // What is spelled otherwise is no way around it.
    let spelled = format!("{}/api/JobService/Watch%53tatus", weir.coordinator.url());
    let refused = http().get(spelled).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::NOT_IMPLEMENTED);
    assert_eq!(web(&weir).await.1.as_deref(), Some("8"));
    let refused = scaler(&weir).await.unwrap_err();
    assert_status(
        &refused,
        Code::ResourceExhausted,
        "2 streams of this address",
    );

    // What is no watch goes on, work among it.
    weir.put("notes", &["a"]).await;
    let mut session = Session::open(&weir, 1).await;
    session.grant(1);
    session.part().await;

    // Whoever ends one has room for another, however it comes.
    drop(first);
    until(async || web(&weir).await.1.is_none()).await;
    drop(second);
    until(async || watch(&weir).await.is_ok()).await;
}

#[tokio::test]
async fn each_token_has_its_own_streams() {
    let tokens = Tokens::new();
    let one = tokens.add("one", "client", &["*"]);
    let other = tokens.add("other", "client", &["*"]);
    let weir = Weir::with(&[TWO, ("WEIR_TOKENS_FILE", text_of(&tokens.path()))]).await;
    let watch = async |token: &str| {
        let channel = weir.channel.clone();
        let mut jobs = JobServiceClient::with_interceptor(channel, with_token(token));
        jobs.watch_status(v1::WatchStatusRequest::default()).await
    };
    let _open = (watch(&one).await.unwrap(), watch(&one).await.unwrap());
    let refused = watch(&one).await.unwrap_err();
    assert_status(&refused, Code::ResourceExhausted, "2 streams of this token");
    watch(&other).await.unwrap();
}
