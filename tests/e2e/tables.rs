//! Tables that are locked for a moment, as steps of the schema lock them.

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, join_all};
use tonic::Status;
use weir_proto::v1;
use weir_tests::clients::{Weir, claim_request, vector_bytes};

/// For how long: longer than a write waits for a row and keeps its connection.
const MOMENT: Duration = Duration::from_millis(150);

/// A call, by its name.
type Call<'a> = (&'static str, BoxFuture<'a, Result<(), Status>>);

/// Every call that a client reads with.
fn reads(weir: &Weir, job_id: i64) -> Vec<Call<'_>> {
    macro_rules! call {
        ($client:ident, $method:ident, $request:expr) => {{
            let request = $request;
            let call = async move { weir.$client().$method(request).await.map(drop) };
            (stringify!($method), call.boxed())
        }};
    }
    let name = || "notes".to_owned();
    vec![
        call!(
            sources,
            get_source,
            v1::GetSourceRequest {
                name: name(),
                ..v1::GetSourceRequest::default()
            }
        ),
        call!(sources, list_sources, v1::ListSourcesRequest::default()),
        call!(
            sources,
            list_chunks,
            v1::ListChunksRequest {
                name: name(),
                state: v1::ChunkState::Pending.into(),
                ..v1::ListChunksRequest::default()
            }
        ),
        call!(jobs, get_job, v1::GetJobRequest { job_id }),
        call!(jobs, list_jobs, v1::ListJobsRequest::default()),
        call!(jobs, list_failures, v1::ListFailuresRequest::default()),
        call!(jobs, list_workers, v1::ListWorkersRequest::default()),
        call!(jobs, get_status, v1::GetStatusRequest::default()),
        call!(jobs, get_activity, v1::GetActivityRequest::default()),
        call!(
            searches,
            search,
            v1::SearchRequest {
                vector: vector_bytes(&[1.0; 8]),
                ..v1::SearchRequest::default()
            }
        ),
        call!(worker, claim_job, claim_request()),
    ]
}

#[tokio::test]
async fn a_table_that_is_locked_for_a_moment_fails_no_read_and_no_claim() {
    let weir = Weir::start().await;
    let job_id = weir.put("notes", &["a", "b"]).await.jobs[0].job_id;
    let mut locked = weir.database.pool().begin().await.unwrap();
    sqlx::query(
        "LOCK TABLE weir.sources, weir.jobs, weir.items, weir.chunks, weir.embeddings, weir.rejections, weir.models,
                    weir.failures, weir.samples, weir.workers IN ACCESS EXCLUSIVE MODE",
    )
    .execute(&mut *locked)
    .await
    .unwrap();
    let calls = reads(&weir, job_id).into_iter().map(async |(name, call)| {
        let answer = call.await;
        assert!(answer.is_ok(), "{name}: {answer:?}");
    });
    let unlock = async {
        let waits = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting = async || {
            let waiting = sqlx::query_scalar::<_, i64>(waits);
            waiting.fetch_one(weir.database.pool()).await.unwrap()
        };
        weir_tests::clients::until(async || waiting().await > 0).await;
        tokio::time::sleep(MOMENT).await;
        locked.rollback().await.unwrap();
    };
    tokio::join!(join_all(calls), unlock);
}
