//! Who is connected, as clients are told.

use serde_json::{Value, json};
use weir_proto::v1::{self, EmbedderState};
use weir_tests::clients::{Weir, assert_invalid, http};

/// Three sessions, and one of which no replica has told for a while.
const SESSIONS: &str = r#"
    INSERT INTO weir.workers (session, worker_id, version, replica, models, draining, connected_at, touched_at)
    SELECT repeat(digit, 32), worker_id, '1.2.3', 'replica-1', models::jsonb, draining,
           now() - interval '1 h', now() + touched
    FROM (VALUES
        ('a', 'first', false, interval '1 h', '[
            {"name": "fake", "state": "fit", "in_state_ms": 60000, "dimension": 8, "chunks_in_hand": 7,
             "chunks_embedded": 70, "chunks_per_second": 2.5},
            {"name": "large", "state": "down", "reason": "connection refused", "longest_input": 512}]'),
        ('b', 'second', true, interval '1 h', '[{"name": "fake", "state": "resting"}]'),
        ('c', 'third', false, interval '1 h', '[{"name": "large", "state": "untried"}]'),
        ('d', 'gone', false, interval '-1 h', '[{"name": "fake", "state": "fit"}]'))
        AS it(digit, worker_id, draining, touched, models)"#;

async fn with_sessions() -> Weir {
    let weir = Weir::start().await;
    let pool = weir.database.pool();
    sqlx::raw_sql(SESSIONS).execute(pool).await.unwrap();
    weir
}

fn names(answer: &v1::ListWorkersResponse) -> Vec<&str> {
    answer
        .workers
        .iter()
        .map(|it| it.worker_id.as_str())
        .collect()
}

async fn list(weir: &Weir, request: v1::ListWorkersRequest) -> v1::ListWorkersResponse {
    weir.jobs()
        .list_workers(request)
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test]
async fn a_worker_is_told_with_its_models_and_how_its_embedders_are() {
    let weir = with_sessions().await;
    let all = list(&weir, v1::ListWorkersRequest::default()).await;
    assert_eq!(names(&all), ["first", "second", "third"]);
    assert_eq!(all.next_page_token, "");
    let first = &all.workers[0];
    assert_eq!([&first.version, &first.replica], ["1.2.3", "replica-1"]);
    let [fit, down] = &first.models[..] else {
        panic!("{first:?}");
    };
    assert_eq!((fit.state(), fit.dimension), (EmbedderState::Fit, 8));
    assert_eq!((fit.chunks_in_hand, fit.longest_input), (7, 0));
    assert!((fit.chunks_per_second - 2.5).abs() < 1e-9);
    // A minute before it was told of, which is two hours after it connected.
    let seconds = |time: Option<prost_types::Timestamp>| time.unwrap().seconds;
    let since = seconds(fit.since_time) - seconds(first.connect_time);
    assert!((since - (7_200 - 60)).abs() <= 1, "{since} s");
    assert_eq!(
        (down.state(), down.longest_input),
        (EmbedderState::Down, 512)
    );
    assert_eq!(down.reason, "connection refused");
    assert!(all.workers[1].draining && !first.draining);
}

#[tokio::test]
async fn workers_are_asked_for_by_model_in_pages_and_in_part() {
    let weir = with_sessions().await;
    let page = v1::ListWorkersRequest {
        model: "large".to_owned(),
        page_size: 1,
        ..v1::ListWorkersRequest::default()
    };
    let first = list(&weir, page.clone()).await;
    assert_eq!(names(&first), ["first"]);
    let next = v1::ListWorkersRequest {
        page_token: first.next_page_token,
        ..page.clone()
    };
    assert_eq!(names(&list(&weir, next.clone()).await), ["third"]);
    let of_another = v1::ListWorkersRequest {
        model: "fake".to_owned(),
        ..next
    };
    let refused = weir.jobs().list_workers(of_another).await.unwrap_err();
    assert_invalid(&refused, "page_token", "");
    let masked = v1::ListWorkersRequest {
        read_mask: Some(prost_types::FieldMask {
            paths: vec!["worker_id".to_owned(), "models".to_owned()],
        }),
        ..page
    };
    let part = list(&weir, masked).await.workers.remove(0);
    assert_eq!(
        (part.worker_id.as_str(), part.version.as_str()),
        ("first", "")
    );
    assert_eq!(part.models[1].state(), EmbedderState::Down);
}

#[tokio::test]
async fn workers_are_listed_as_json() {
    let weir = with_sessions().await;
    let url = format!("{}/api/JobService/ListWorkers", weir.coordinator.url());
    let post = http().post(url).header("content-type", "application/json");
    let answer = post.body(r#"{"pageSize":1}"#).send().await.unwrap();
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let worker = &answer["workers"][0];
    assert_eq!(worker["workerId"], "first");
    assert_eq!(worker["models"][1]["state"], "EMBEDDER_STATE_DOWN");
    assert_eq!(worker["models"][1]["reason"], json!("connection refused"));
}
