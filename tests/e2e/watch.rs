//! Watches: the present first, then every change, and after a broken
//! connection what has changed since.

use futures::FutureExt as _;
use tonic::{Code, Streaming};
use weir_proto::v1::{self, JobState, job_service_client::JobServiceClient};
use weir_tests::{
    PATIENCE,
    clients::{Weir, assert_invalid, embedded, http, upsert},
    cluster::Coordinator,
};

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await;
    message.expect("in time").unwrap().expect("it goes on")
}

async fn ended<T: std::fmt::Debug>(stream: &mut Streaming<T>) {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await;
    let message = message.expect("in time").unwrap();
    assert!(message.is_none(), "{message:?}");
}

fn of_source(name: &str, until_idle: bool, cursor: &str) -> v1::WatchSourceRequest {
    v1::WatchSourceRequest {
        name: name.to_owned(),
        until_idle,
        cursor: cursor.to_owned(),
        ..v1::WatchSourceRequest::default()
    }
}

/// Claims a job by hand and embeds all of it.
async fn embed(weir: &Weir) -> i64 {
    let lease = weir.claim().await;
    let chunks = weir.batch(&lease).await;
    let vectors = chunks.iter().map(|chunk| embedded(chunk, &[1.0, 2.0]));
    let result = upsert(&lease, vectors.collect());
    weir.worker().upsert_batch(result).await.unwrap();
    let done = v1::CompleteJobRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
    };
    weir.worker().complete_job(done).await.unwrap();
    lease.job_id
}

#[tokio::test]
async fn a_watch_of_a_source_misses_no_end_of_a_job_wherever_it_is_resumed() {
    let weir = Weir::start().await;
    let replica = Coordinator::spawn(weir.database.url(), &[]).await;
    let mut elsewhere = JobServiceClient::new(replica.connect().await);
    weir.put("shop", &["one", "two"]).await;
    let mut watch = weir
        .jobs()
        .watch_source(of_source("shop", false, ""))
        .await
        .unwrap()
        .into_inner();
    let first = next(&mut watch).await;
    assert_eq!(
        first.source.as_ref().unwrap().badge.as_ref().unwrap().text,
        "queued"
    );
    assert_eq!((first.jobs.len(), first.ended.len()), (1, 0));
    let job_id = embed(&weir).await;
    let last = loop {
        let state = next(&mut watch).await;
        if state.jobs.is_empty() {
            break state;
        }
        assert!(state.ended.is_empty(), "{state:?}");
    };
    let succeeded = |state: &v1::WatchSourceResponse| {
        let [job] = state.ended.as_slice() else {
            panic!("one job ended: {state:?}");
        };
        assert_eq!((job.job_id, job.state()), (job_id, JobState::Succeeded));
    };
    succeeded(&last);
    assert_eq!(
        last.source.as_ref().unwrap().badge.as_ref().unwrap().text,
        "2/2 indexed"
    );

    // Whoever had the first state only, and comes to another replica, hears of the end as well.
    let resumed = elsewhere
        .watch_source(of_source("shop", true, &first.cursor))
        .await;
    let mut resumed = resumed.unwrap().into_inner();
    succeeded(&next(&mut resumed).await);
    ended(&mut resumed).await;
    // Whoever had the last one hears nothing twice.
    let again = elsewhere
        .watch_source(of_source("shop", true, &last.cursor))
        .await;
    ended(&mut again.unwrap().into_inner()).await;
    let mut again = elsewhere
        .watch_source(of_source("shop", false, &last.cursor))
        .await
        .unwrap()
        .into_inner();
    weir.put("shop", &["one", "three"]).await;
    assert_eq!(next(&mut again).await.source.unwrap().revision, 2);

    let status = elsewhere
        .watch_source(of_source("shop", false, "elsewhere"))
        .await;
    assert_invalid(&status.unwrap_err(), "cursor", "is none of a watch");
}

#[tokio::test]
async fn a_watch_of_a_job_is_resumed_after_its_end() {
    let weir = Weir::start().await;
    let job_id = weir.put("shop", &["one"]).await.jobs[0].job_id;
    let request = |cursor: &str| v1::WatchJobRequest {
        job_id,
        cursor: cursor.to_owned(),
    };
    let mut watch = weir
        .jobs()
        .watch_job(request(""))
        .await
        .unwrap()
        .into_inner();
    let first = next(&mut watch).await;
    assert_eq!(first.job.unwrap().state(), JobState::Queued);
    drop(watch);
    embed(&weir).await;
    let mut watch = weir
        .jobs()
        .watch_job(request(&first.cursor))
        .await
        .unwrap()
        .into_inner();
    let last = next(&mut watch).await;
    assert_eq!(last.job.unwrap().state(), JobState::Succeeded);
    ended(&mut watch).await;
    let again = weir.jobs().watch_job(request(&last.cursor)).await;
    ended(&mut again.unwrap().into_inner()).await;
}

#[tokio::test]
async fn a_page_of_sources_ticks() {
    let weir = Weir::start().await;
    weir.put("a", &["one"]).await;
    weir.put("b", &["two"]).await;
    let nowhere = v1::WatchSourcesRequest {
        namespace: "nowhere".to_owned(),
        ..v1::WatchSourcesRequest::default()
    };
    let empty = weir.jobs().watch_sources(nowhere).await;
    let mut empty = empty.unwrap().into_inner();
    assert_eq!(next(&mut empty).await, v1::WatchSourcesResponse::default());
    let request = v1::WatchSourcesRequest::default();
    let mut watch = weir
        .jobs()
        .watch_sources(request)
        .await
        .unwrap()
        .into_inner();
    let texts = |state: &v1::WatchSourcesResponse| {
        let sources = state.sources.iter().map(|it| it.source.as_ref().unwrap());
        let texts = sources.map(|it| format!("{} {}", it.name, it.badge.as_ref().unwrap().text));
        texts.collect::<Vec<_>>()
    };
    assert_eq!(texts(&next(&mut watch).await), ["a queued", "b queued"]);
    embed(&weir).await;
    loop {
        let changed = texts(&next(&mut watch).await);
        assert!(
            changed.iter().all(|text| text.starts_with("a ")),
            "{changed:?}"
        );
        if changed == ["a 1/1 indexed"] {
            break;
        }
    }
    let delete = v1::DeleteSourceRequest {
        name: "b".to_owned(),
        ..v1::DeleteSourceRequest::default()
    };
    weir.sources().delete_source(delete).await.unwrap();
    let state = next(&mut watch).await;
    let gone: Vec<&str> = state.gone.iter().map(|key| key.name.as_str()).collect();
    assert_eq!((state.sources.len(), gone), (0, vec!["b"]));
    let said_again = empty.message().now_or_never();
    assert!(
        said_again.is_none(),
        "an empty page is told once: {said_again:?}"
    );
}

#[tokio::test]
async fn the_verdict_is_watched() {
    let weir = Weir::start().await;
    let mut watch = weir
        .jobs()
        .watch_status(v1::WatchStatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    let total = |state: v1::WatchStatusResponse| state.status.unwrap().total.unwrap();
    assert_eq!(
        total(next(&mut watch).await).verdict(),
        v1::Verdict::Healthy
    );
    let job_id = weir.put("shop", &["one"]).await.jobs[0].job_id;
    assert_eq!(
        total(next(&mut watch).await).verdict(),
        v1::Verdict::Indexing
    );
    let cancel = v1::CancelJobRequest { job_id };
    weir.jobs().cancel_job(cancel).await.unwrap();
    let degraded = loop {
        let total = total(next(&mut watch).await);
        if total.verdict() == v1::Verdict::Degraded {
            break total;
        }
    };
    assert_eq!(
        degraded.reasons,
        ["1 job was cancelled and left chunks pending"]
    );
}

#[tokio::test]
async fn a_browser_that_was_cut_off_goes_on_by_the_id_of_its_last_event() {
    let weir = Weir::start().await;
    weir.put("shop", &["one"]).await;
    let url = format!("{}/api/JobService/WatchSource", weir.coordinator.url());
    let request = r#"{"name": "shop", "untilIdle": true}"#;
    let first = weir.jobs().watch_source(of_source("shop", false, "")).await;
    let cursor = next(&mut first.unwrap().into_inner()).await.cursor;
    embed(&weir).await;
    let events = http()
        .get(&url)
        .query(&[("request", request)])
        .header("last-event-id", &cursor)
        .send()
        .await
        .unwrap();
    let events = events.text().await.unwrap();
    assert_eq!(events.matches("event: end").count(), 1, "{events}");
    let ended = events.contains(r#""ended":[{"jobId""#) && events.contains("JOB_STATE_SUCCEEDED");
    assert!(ended, "{events}");
}

#[tokio::test]
async fn a_source_that_is_deleted_ends_its_watch() {
    let weir = Weir::start().await;
    weir.put("shop", &["one"]).await;
    let watch = weir.jobs().watch_source(of_source("shop", false, "")).await;
    let mut watch = watch.unwrap().into_inner();
    next(&mut watch).await;
    let delete = v1::DeleteSourceRequest {
        name: "shop".to_owned(),
        ..v1::DeleteSourceRequest::default()
    };
    weir.sources().delete_source(delete).await.unwrap();
    let missing = weir.jobs().watch_source(of_source("shop", false, "")).await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
    // Another takes its name at once, and is watched by itself.
    weir.put("shop", &["two", "three"]).await;
    let another = weir.jobs().watch_source(of_source("shop", false, "")).await;
    let another = next(&mut another.unwrap().into_inner()).await;
    assert_eq!(another.source.unwrap().chunks, 2);
    let status = tokio::time::timeout(PATIENCE, watch.message()).await;
    assert_eq!(status.expect("in time").unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_cursor_tells_nothing_of_another_source() {
    let weir = Weir::start().await;
    weir.put("shop", &["one"]).await;
    weir.put("depot", &[]).await;
    let watch = weir.jobs().watch_source(of_source("shop", false, "")).await;
    let cursor = next(&mut watch.unwrap().into_inner()).await.cursor;
    embed(&weir).await;
    let watch = weir
        .jobs()
        .watch_source(of_source("depot", true, &cursor))
        .await;
    let state = next(&mut watch.unwrap().into_inner()).await;
    assert_eq!(
        (state.source.unwrap().name.as_str(), state.ended.len()),
        ("depot", 0)
    );
}
