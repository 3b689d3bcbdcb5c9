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
use crate::args::Global;

/// What one call of `WatchSource` answers: states, and then the end or an error.
type Answer = (Vec<i64>, Option<Status>);

/// Answers each call of `WatchSource` with the next of these.
#[derive(Clone)]
struct Scripted(Arc<Mutex<VecDeque<Answer>>>);

#[tonic::async_trait]
impl JobService for Scripted {
    type WatchJobStream = BoxStream<'static, Result<v1::WatchJobResponse, Status>>;
    type WatchSourceStream = BoxStream<'static, Result<WatchSourceResponse, Status>>;
    type WatchSourcesStream = BoxStream<'static, Result<v1::WatchSourcesResponse, Status>>;
    type WatchStatusStream = BoxStream<'static, Result<v1::WatchStatusResponse, Status>>;

    async fn watch_source(
        &self,
        request: Request<WatchSourceRequest>,
    ) -> Result<Response<Self::WatchSourceStream>, Status> {
        let request = request.into_inner();
        assert_eq!(
            (request.name.as_str(), request.namespace.as_str()),
            ("shop", "team")
        );
        let (states, end) = self.0.lock().unwrap().pop_front().expect("no further call");
        let state = |chunks_embedded| WatchSourceResponse {
            source: Some(v1::Source {
                chunks_embedded,
                ..v1::Source::default()
            }),
            ..WatchSourceResponse::default()
        };
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
/// happened, in words, with how much of the script is left.
async fn watch_scripted(script: Vec<Answer>) -> (Vec<String>, usize) {
    let script = Scripted(Arc::new(Mutex::new(script.into())));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let coordinator = format!("http://{}", listener.local_addr().unwrap());
    let service = JobServiceServer::new(script.clone());
    let server: JoinHandle<_> = tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let session = Session::connect(&Global {
        coordinator,
        namespace: "team".to_owned(),
        json: false,
        log: "off".to_owned(),
    })
    .await
    .unwrap();
    let (sender, mut events) = mpsc::channel(1);
    tokio::spawn(watch(session, "shop".to_owned(), false, 0, sender));
    let mut seen = Vec::new();
    while let Some(event) = events.recv().await {
        seen.push(match event {
            Event::State(_, state) => format!("state {}", state.source.unwrap().chunks_embedded),
            Event::Lost(_, reason) => format!("lost: {reason}"),
            Event::Settled(_) => "settled".to_owned(),
            Event::Failed(_, status) => format!("failed: {}", status.message()),
        });
    }
    server.abort();
    let left = script.0.lock().unwrap().len();
    (seen, left)
}

#[tokio::test]
async fn a_broken_stream_is_opened_again() {
    let (seen, left) = watch_scripted(vec![
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
        "settled",
    ];
    assert_eq!(
        (seen.as_slice(), left),
        (expected.map(str::to_owned).as_slice(), 0)
    );
}

#[tokio::test]
async fn a_refused_stream_is_not() {
    let (seen, left) = watch_scripted(vec![
        (vec![1], Some(Status::not_found("deleted"))),
        (vec![2], None),
    ])
    .await;
    assert_eq!(seen, ["state 1", "failed: deleted"]);
    assert_eq!(left, 1);
}
