use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, transport::Server};
use weir_proto::v1::{
    self,
    job_service_server::{JobService, JobServiceServer},
};

use super::*;
use crate::{config::Settings, connect::Session};

/// What one call of `WatchSource` answers: states, and then the end or an error.
type Answer = (Vec<i64>, Option<Status>);

/// Answers each call of `WatchSource` with the next of the script, and notes the
/// cursors that it was called with.
#[derive(Clone)]
struct Scripted {
    script: Arc<Mutex<VecDeque<Answer>>>,
    cursors: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl JobService for Scripted {
    type WatchJobStream = BoxStream<'static, Result<v1::WatchJobResponse, Status>>;
    type WatchSourceStream = BoxStream<'static, Result<v1::WatchSourceResponse, Status>>;
    type WatchSourcesStream = BoxStream<'static, Result<v1::WatchSourcesResponse, Status>>;
    type WatchStatusStream = BoxStream<'static, Result<v1::WatchStatusResponse, Status>>;

    async fn watch_source(
        &self,
        request: Request<v1::WatchSourceRequest>,
    ) -> Result<Response<Self::WatchSourceStream>, Status> {
        let cursor = request.into_inner().cursor;
        self.cursors.lock().unwrap().push(cursor);
        let next = self.script.lock().unwrap().pop_front();
        let (states, end) = next.expect("no further call");
        let state = |chunks_embedded: i64| v1::WatchSourceResponse {
            source: Some(v1::Source {
                chunks_embedded,
                ..v1::Source::default()
            }),
            cursor: format!("after {chunks_embedded}"),
            ..v1::WatchSourceResponse::default()
        };
        if let ([], Some(refused)) = (states.as_slice(), &end) {
            return Err(refused.clone());
        }
        let states = states.into_iter().map(move |embedded| Ok(state(embedded)));
        Ok(Response::new(
            stream::iter(states.chain(end.map(Err))).boxed(),
        ))
    }

    async fn get_job(
        &self,
        _: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_jobs(
        &self,
        _: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn watch_job(
        &self,
        _: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_job(
        &self,
        _: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn retry_job(
        &self,
        _: Request<v1::RetryJobRequest>,
    ) -> Result<Response<v1::RetryJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn retry_source(
        &self,
        _: Request<v1::RetrySourceRequest>,
    ) -> Result<Response<v1::RetrySourceResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_queue_stats(
        &self,
        _: Request<v1::GetQueueStatsRequest>,
    ) -> Result<Response<v1::GetQueueStatsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn watch_sources(
        &self,
        _: Request<v1::WatchSourcesRequest>,
    ) -> Result<Response<Self::WatchSourcesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn watch_status(
        &self,
        _: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_failures(
        &self,
        _: Request<v1::ListFailuresRequest>,
    ) -> Result<Response<v1::ListFailuresResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_workers(
        &self,
        _: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn dismiss_failure(
        &self,
        _: Request<v1::DismissFailureRequest>,
    ) -> Result<Response<v1::DismissFailureResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_activity(
        &self,
        _: Request<v1::GetActivityRequest>,
    ) -> Result<Response<v1::GetActivityResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Watches a coordinator that answers with this script, and returns what
/// happened, in words, with the cursors of the calls.
async fn watch_scripted(script: Vec<Answer>) -> (Vec<String>, Vec<String>) {
    let service = Scripted {
        script: Arc::new(Mutex::new(script.into())),
        cursors: Arc::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let coordinator = format!("http://{}", listener.local_addr().unwrap());
    let server: JoinHandle<_> = tokio::spawn(
        Server::builder()
            .add_service(JobServiceServer::new(service.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let settings = Settings::plain(&coordinator, "team");
    let client = Session::connect(&settings).await.unwrap().jobs();
    let open = move |cursor| {
        let mut client = client.clone();
        let request = v1::WatchSourceRequest {
            cursor,
            ..v1::WatchSourceRequest::default()
        };
        async move { client.watch_source(request).await }
    };
    let mut events = keep_open(open, false);
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        seen.push(match event {
            Event::Message(state) => format!("state {}", state.source.unwrap().chunks_embedded),
            Event::Lost(reason) => format!("lost: {reason}"),
            Event::Ended => "ended".to_owned(),
            Event::Failed(status) => format!("failed: {}", status.message()),
        });
    }
    server.abort();
    let cursors = service.cursors.lock().unwrap().clone();
    (seen, cursors)
}

#[tokio::test]
async fn a_broken_stream_is_opened_again_where_it_was() {
    let (seen, cursors) = watch_scripted(vec![
        (vec![1, 2], Some(Status::unavailable("going away"))),
        (vec![], Some(Status::internal("odd"))),
        (vec![5], None),
    ])
    .await;
    let expected = [
        "state 1",
        "state 2",
        "lost: going away",
        "lost: odd",
        "state 5",
        "ended",
    ];
    assert_eq!(seen, expected);
    assert_eq!(cursors, ["", "after 2", "after 2"]);
}

#[tokio::test]
async fn a_refused_stream_is_not() {
    let (seen, cursors) = watch_scripted(vec![
        (vec![1], Some(Status::not_found("deleted"))),
        (vec![2], None),
    ])
    .await;
    assert_eq!(seen, ["state 1", "failed: deleted"]);
    assert_eq!(cursors.len(), 1);
}

#[tokio::test]
async fn a_cursor_that_is_not_known_any_more_is_forgotten() {
    let (seen, cursors) = watch_scripted(vec![
        (vec![1], Some(Status::unavailable("restart"))),
        (
            vec![],
            Some(Status::invalid_argument("cursor is none of a watch")),
        ),
        (vec![2], None),
    ])
    .await;
    assert_eq!(seen, ["state 1", "lost: restart", "state 2", "ended"]);
    assert_eq!(cursors, ["", "after 1", ""]);
}
