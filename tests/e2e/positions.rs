//! Page tokens and cursors are a client's to send: one that was made up is
//! refused like any other bad field, whatever position is in it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tonic::Status;
use weir_proto::v1;
use weir_tests::clients::{Weir, assert_invalid, put_texts};

/// A token of the same query with another position in it.
fn forged(token: &str, position: &Value) -> String {
    let mut bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
    bytes.truncate(8);
    bytes.extend(position.to_string().as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Positions one way and the other.
fn both_ways(positions: Vec<Value>) -> Vec<Value> {
    let ways = |position: Value| [json!({ "After": position }), json!({ "Before": position })];
    positions.into_iter().flat_map(ways).collect()
}

fn bad_ids() -> Vec<Value> {
    vec![
        json!(i64::MIN),
        json!(i64::MIN + 1),
        json!(-1),
        json!(u64::MAX),
        json!(1.5),
        json!("7"),
    ]
}

fn bad_keys() -> Vec<Value> {
    let long = "a".repeat(100_000);
    let key = |namespace: &str, name: &str| json!({ "namespace": namespace, "name": name });
    vec![
        key("default", "a\0b"),
        key("de\0fault", "a"),
        key("", ""),
        key("default", &long),
        key(&long, "a"),
        key("Default", "a"),
    ]
}

fn bad_failures() -> Vec<Value> {
    let times = [
        "-200000-01-01T00:00:00Z",
        "+262142-12-31T23:59:59Z",
        "-4714-01-01T00:00:00Z",
        "yesterday",
    ];
    let mut bad: Vec<Value> = times.iter().map(|time| json!([time, 1])).collect();
    bad.extend(
        bad_ids()
            .into_iter()
            .map(|id| json!(["2026-01-01T00:00:00Z", id])),
    );
    bad
}

fn bad_workers() -> Vec<Value> {
    let session = "a".repeat(32);
    vec![
        json!(["", session]),
        json!(["a b", session]),
        json!(["a\0", session]),
        json!(["a".repeat(201), session]),
        json!(["a", "a"]),
        json!(["a", "A".repeat(32)]),
        json!(["a", 1]),
    ]
}

fn bad_chunks() -> Vec<Value> {
    vec![
        json!(["a\0b", 0]),
        json!(["", 0]),
        json!(["a".repeat(100_000), 0]),
        json!(["a", -1]),
        json!(["a", i64::MAX]),
    ]
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, field: &str, sent: &Value) {
    let sent: String = sent.to_string().chars().take(200).collect();
    let status = answer.expect_err(&sent);
    assert_invalid(&status, field, "");
}

#[tokio::test]
async fn a_position_that_was_made_up_is_refused_by_name() {
    let weir = Weir::start().await;
    weir.put("one", &["a", "b"]).await;
    weir.put("two", &["a", "b"]).await;
    sqlx::query(
        "INSERT INTO weir.failures (namespace, model, cause, last_error, last_job_id, last_source, occurrences)
         VALUES ('default', 'fake', 'c', 'e', 1, 's', 1), ('default', 'fake', 'd', 'e', 1, 's', 1)",
    )
    .execute(weir.database.pool())
    .await
    .unwrap();
    let (mut jobs, mut sources) = (weir.jobs(), weir.sources());
    let good = v1::ListJobsRequest {
        page_size: 1,
        ..v1::ListJobsRequest::default()
    };
    let first = jobs.list_jobs(good.clone()).await.unwrap().into_inner();
    for position in both_ways(bad_ids()) {
        let page_token = forged(&first.next_page_token, &position);
        let list = v1::ListJobsRequest {
            page_token,
            ..good.clone()
        };
        refused(jobs.list_jobs(list).await, "page_token", &position);
    }

    let good = v1::ListSourcesRequest {
        page_size: 1,
        ..v1::ListSourcesRequest::default()
    };
    let first = sources
        .list_sources(good.clone())
        .await
        .unwrap()
        .into_inner();
    for position in both_ways(bad_keys()) {
        let page_token = forged(&first.next_page_token, &position);
        let list = v1::ListSourcesRequest {
            page_token: page_token.clone(),
            ..good.clone()
        };
        refused(sources.list_sources(list).await, "page_token", &position);
        let watch = v1::WatchSourcesRequest {
            page_token,
            page_size: 1,
            ..v1::WatchSourcesRequest::default()
        };
        refused(jobs.watch_sources(watch).await, "page_token", &position);
    }

    let good = v1::ListFailuresRequest {
        page_size: 1,
        ..v1::ListFailuresRequest::default()
    };
    let first = jobs.list_failures(good.clone()).await.unwrap().into_inner();
    for position in bad_failures() {
        let list = v1::ListFailuresRequest {
            page_token: forged(&first.next_page_token, &position),
            ..good.clone()
        };
        refused(jobs.list_failures(list).await, "page_token", &position);
    }

    let good = v1::ListChunksRequest {
        name: "one".to_owned(),
        state: v1::ChunkState::Pending.into(),
        page_size: 1,
        ..v1::ListChunksRequest::default()
    };
    let first = sources
        .list_chunks(good.clone())
        .await
        .unwrap()
        .into_inner();
    for position in bad_chunks() {
        let list = v1::ListChunksRequest {
            page_token: forged(&first.next_page_token, &position),
            ..good.clone()
        };
        refused(sources.list_chunks(list).await, "page_token", &position);
    }
}

#[tokio::test]
async fn a_position_among_workers_that_was_made_up_is_refused_by_name() {
    let weir = Weir::start().await;
    sqlx::query(
        "INSERT INTO weir.workers (session, worker_id, version, replica, models, touched_at)
         SELECT repeat(digit, 32), 'w', '', 'r', '[]', now() + interval '1 h' FROM unnest(ARRAY['a', 'b']) AS digit",
    )
    .execute(weir.database.pool())
    .await
    .unwrap();
    let mut jobs = weir.jobs();
    let good = v1::ListWorkersRequest {
        page_size: 1,
        ..v1::ListWorkersRequest::default()
    };
    let first = jobs.list_workers(good.clone()).await.unwrap().into_inner();
    for position in bad_workers() {
        let list = v1::ListWorkersRequest {
            page_token: forged(&first.next_page_token, &position),
            ..good.clone()
        };
        refused(jobs.list_workers(list).await, "page_token", &position);
    }
}

#[tokio::test]
async fn a_cursor_that_was_made_up_is_refused_by_name() {
    let weir = Weir::start().await;
    let put = weir
        .sources()
        .put_source(put_texts("one", &["a"]))
        .await
        .unwrap()
        .into_inner();
    let cursors = [
        json!({ "digest": 1, "jobs": [-1] }),
        json!({ "digest": 1, "jobs": [0] }),
        json!({ "digest": 1, "jobs": [i64::MIN] }),
        json!({ "digest": 1, "jobs": [i64::MAX, 1] }),
        json!({ "digest": 1, "jobs": [7, i64::MIN] }),
        json!({ "digest": -1 }),
        json!({ "digest": 1, "jobs": ["7"] }),
    ];
    for sent in cursors {
        let cursor = URL_SAFE_NO_PAD.encode(sent.to_string());
        let watch = v1::WatchSourceRequest {
            name: "one".to_owned(),
            cursor: cursor.clone(),
            ..v1::WatchSourceRequest::default()
        };
        refused(weir.jobs().watch_source(watch).await, "cursor", &sent);
        let job_id = put.jobs[0].job_id;
        let watch = v1::WatchJobRequest { job_id, cursor };
        refused(weir.jobs().watch_job(watch).await, "cursor", &sent);
    }
}

/// The first and the last ids there may be, from which no page begins any more.
#[tokio::test]
async fn an_empty_page_at_either_end_leads_back() {
    let weir = Weir::start().await;
    weir.put("one", &["a"]).await;
    weir.put("two", &["a"]).await;
    let mut jobs = weir.jobs();
    let list = |page_token: String| v1::ListJobsRequest {
        page_size: 1,
        page_token,
        ..v1::ListJobsRequest::default()
    };
    let first = jobs
        .list_jobs(list(String::new()))
        .await
        .unwrap()
        .into_inner();
    for id in [0, 1, i64::MAX - 1, i64::MAX] {
        for (way, whole) in [("After", id < 2), ("Before", id > 2)] {
            let token = forged(&first.next_page_token, &json!({ way: id }));
            let page = jobs.list_jobs(list(token)).await.unwrap().into_inner();
            assert_eq!(page.jobs.is_empty(), whole, "{way} {id}");
            if whole {
                let back = format!("{}{}", page.next_page_token, page.previous_page_token);
                let page = jobs.list_jobs(list(back)).await.unwrap().into_inner();
                assert_eq!(page.jobs.len(), 1, "{way} {id}");
            }
        }
    }
}
