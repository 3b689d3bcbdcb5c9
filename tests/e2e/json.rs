//! The services as JSON over plain HTTP.

use reqwest::StatusCode;
use serde_json::{Value, json};
use weir_tests::clients::{Weir, http};

async fn post(weir: &Weir, call: &str, request: &str) -> (StatusCode, Value) {
    let url = format!("{}/api/{call}", weir.coordinator.url());
    let post = http().post(url).header("content-type", "application/json");
    let answer = post.body(request.to_owned()).send().await.unwrap();
    let status = answer.status();
    let body = answer.text().await.unwrap();
    let parsed = serde_json::from_str(&body);
    (status, parsed.unwrap_or_else(|_| panic!("no JSON: {body}")))
}

#[tokio::test]
async fn a_source_is_put_and_its_job_is_read_as_json() {
    let weir = Weir::start().await;
    let request = json!({
        "name": "pages",
        "items": { "items": [{ "itemId": "a", "text": "one" }] },
    });
    let (status, put) = post(&weir, "SourceService/PutSource", &request.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{put}");
    assert_eq!(put["source"]["chunks"], "1", "64-bit numbers are strings");
    let job_id = &put["jobs"][0]["jobId"];
    let request = json!({ "jobId": job_id }).to_string();
    let (status, got) = post(&weir, "JobService/GetJob", &request).await;
    assert_eq!(status, StatusCode::OK, "{got}");
    assert_eq!(got["job"]["state"], "JOB_STATE_QUEUED");
    assert_eq!(got["job"]["attempt"], 0, "also what is zero is there");
    let (_, listed) = post(&weir, "JobService/ListJobs", "{}").await;
    assert_eq!(listed["jobs"].as_array().map(Vec::len), Some(1), "{listed}");
}

#[tokio::test]
async fn what_grpc_refuses_is_refused_with_its_code_and_fields() {
    let weir = Weir::start().await;
    for (call, request, status, code, told) in [
        (
            "JobService/GetJob",
            r#"{"jobId":7}"#,
            404,
            "NOT_FOUND",
            "no job 7",
        ),
        (
            "JobService/GetJob",
            "{",
            400,
            "INVALID_ARGUMENT",
            "no GetJobRequest in JSON",
        ),
        (
            "JobService/GetJob",
            r#"{"job":7}"#,
            400,
            "INVALID_ARGUMENT",
            "unrecognized field",
        ),
        (
            "JobService/GetJob",
            "{} {}",
            400,
            "INVALID_ARGUMENT",
            "trailing characters",
        ),
        (
            "JobService/Nothing",
            "{}",
            501,
            "UNIMPLEMENTED",
            "no call JobService/Nothing",
        ),
        (
            "WorkerService/ClaimJob",
            "{}",
            501,
            "UNIMPLEMENTED",
            "no call WorkerService",
        ),
        (
            "SourceService/ImportSource",
            "{}",
            501,
            "UNIMPLEMENTED",
            "takes a stream",
        ),
        (
            "JobService/WatchJob",
            "{}",
            405,
            "INVALID_ARGUMENT",
            "GET it",
        ),
    ] {
        let (got, answer) = post(&weir, call, request).await;
        assert_eq!(got.as_u16(), status, "{call}: {answer}");
        assert_eq!(answer["code"], code, "{call}");
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(told), "{call}: {message}");
    }
    let (status, answer) = post(&weir, "JobService/ListJobs", r#"{"pageSize":-1}"#).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["violations"][0]["field"], "page_size", "{answer}");
}

#[tokio::test]
async fn a_form_of_another_site_can_call_nothing() {
    let weir = Weir::start().await;
    let url = format!("{}/api/JobService/ListJobs", weir.coordinator.url());
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let post = http().post(&url).header("content-type", kind);
        let answer = post.body("{}").send().await.unwrap();
        assert_eq!(
            answer.status(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "{kind}"
        );
    }
    let answer = http().get(url).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_watch_is_a_stream_of_events_that_says_when_it_is_over() {
    let weir = Weir::start().await;
    let job_id = weir.put("pages", &["one"]).await.jobs[0].job_id;
    let url = format!("{}/api/JobService/WatchJob", weir.coordinator.url());
    let request = json!({ "jobId": job_id }).to_string();
    let get = http().get(&url).query(&[("request", request)]);
    let mut answer = get.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut said = String::new();
    while !said.contains("JOB_STATE_QUEUED") {
        said += std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap();
    }
    let cancel = json!({ "jobId": job_id }).to_string();
    let (status, _) = post(&weir, "JobService/CancelJob", &cancel).await;
    assert_eq!(status, StatusCode::OK);
    while let Some(more) = answer.chunk().await.unwrap() {
        said += std::str::from_utf8(&more).unwrap();
    }
    let last = said.rfind("JOB_STATE_CANCELLED").unwrap();
    assert!(said.rfind("event: end\n").unwrap() > last, "{said}");

    let get = http().get(&url).query(&[("request", r#"{"jobId":"99"}"#)]);
    let answer = get.send().await.unwrap();
    let (status, said) = (answer.status(), answer.text().await.unwrap());
    let refused = status == StatusCode::NOT_FOUND || said.contains("event: failed\n");
    assert!(refused && said.contains("NOT_FOUND"), "{status}: {said}");
}

/// What is left out and what is 0 are told apart in JSON as well.
#[tokio::test]
async fn an_expected_revision_of_zero_is_not_left_out() {
    let weir = Weir::start().await;
    let put = |text: &str, more: Value| {
        let items = json!({ "items": [{ "itemId": "a", "text": text }] });
        let mut request = json!({ "name": "pages", "items": items });
        if !more.is_null() {
            request["expectedRevision"] = more;
        }
        request.to_string()
    };
    let call = "SourceService/PutSource";
    for (text, expected, status) in [
        ("one", json!("0"), StatusCode::OK),
        ("two", json!("0"), StatusCode::CONFLICT),
        ("two", json!("7"), StatusCode::CONFLICT),
        ("two", json!(null), StatusCode::OK),
        ("three", json!("2"), StatusCode::OK),
        ("three", json!("2"), StatusCode::OK),
    ] {
        let (got, answer) = post(&weir, call, &put(text, expected)).await;
        assert_eq!(got, status, "{answer}");
    }
}
