//! `JobService`: the status API.

use std::{pin::Pin, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};
use weir_proto::v1::{self, job_service_server::JobService};

use super::{
    Services,
    auth::Caller,
    convert::{job_state, wire_job},
    door::Door,
    error::going_away,
    page,
    sources::traceparent,
};
use crate::{
    store::{
        StoreError,
        rows::{Job, SourceKey},
        status::JobFilter,
        steer::Retry,
    },
    wakeup::Subscription,
};

/// Least time between two messages of a watch: five a second.
const WATCH_PAUSE: Duration = Duration::from_millis(200);

/// A watcher looks again by itself after this many poll intervals, should a
/// notification be lost.
const WATCH_POLLS: u32 = 5;

/// Tells how far jobs are.
#[derive(Debug, Clone)]
pub(crate) struct Jobs(pub(crate) Services);

type Watch<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a look at something watched found.
struct Look<T> {
    state: T,
    /// Nothing is to be seen after this.
    last: bool,
}

impl Jobs {
    /// A job that the caller may see. To others it is not there.
    async fn job(&self, caller: &Caller, job_id: i64) -> Result<Job, StoreError> {
        let job = self.0.store.job(job_id).await?;
        if !caller.may(&job.namespace) {
            return Err(StoreError::no_job(job_id));
        }
        Ok(job)
    }

    /// Streams what `look` sees: at first, and whenever it has changed. Looks
    /// when the source changes and, rarely, unasked.
    fn watch<T, F>(&self, mut changes: Subscription, look: F) -> Watch<T>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
        F: AsyncLook<T>,
    {
        let (sender, receiver) = mpsc::channel(1);
        let services = self.0.clone();
        let unasked = services.poll_interval * WATCH_POLLS;
        services.tasks.clone().spawn(async move {
            let mut seen: Option<T> = None;
            loop {
                let Look { state, last } = match look.look(&services).await {
                    Ok(look) => look,
                    Err(error) => {
                        let _ = sender.send(Err(error.into())).await;
                        return;
                    }
                };
                if seen.as_ref() != Some(&state) {
                    seen = Some(state.clone());
                    if sender.send(Ok(state)).await.is_err() {
                        return;
                    }
                }
                if last {
                    return;
                }
                tokio::select! {
                    // A client waits here for as long as the job takes; it must not hold up the stop.
                    () = services.shutdown.cancelled() => {
                        let _ = sender.send(Err(going_away())).await;
                        return;
                    }
                    () = sender.closed() => return,
                    () = async {
                        tokio::time::sleep(WATCH_PAUSE).await;
                        let _ = tokio::time::timeout(unasked, changes.changed()).await;
                    } => {}
                }
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }
}

/// How a watch looks at what it watches.
trait AsyncLook<T>: Send + 'static {
    fn look(&self, services: &Services)
    -> impl Future<Output = Result<Look<T>, StoreError>> + Send;
}

struct LookAtJob {
    job_id: i64,
}

impl AsyncLook<v1::WatchJobResponse> for LookAtJob {
    async fn look(&self, services: &Services) -> Result<Look<v1::WatchJobResponse>, StoreError> {
        let job = services.store.job(self.job_id).await?;
        let last = !job.state.is_open();
        Ok(Look {
            state: v1::WatchJobResponse {
                job: Some(wire_job(job, services.policy.max_attempts)),
            },
            last,
        })
    }
}

struct LookAtSource {
    key: SourceKey,
    until_idle: bool,
}

impl AsyncLook<v1::WatchSourceResponse> for LookAtSource {
    async fn look(&self, services: &Services) -> Result<Look<v1::WatchSourceResponse>, StoreError> {
        let state = services.store.source(&self.key).await?;
        let idle = !state.jobs.iter().any(|job| job.state.is_open());
        Ok(Look {
            state: v1::WatchSourceResponse {
                source: Some(state.source.into()),
                jobs: state
                    .jobs
                    .into_iter()
                    .map(|job| wire_job(job, services.policy.max_attempts))
                    .collect(),
            },
            last: self.until_idle && idle,
        })
    }
}

#[tonic::async_trait]
impl JobService for Jobs {
    type WatchJobStream = Watch<v1::WatchJobResponse>;
    type WatchSourceStream = Watch<v1::WatchSourceResponse>;

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        let job = self.job(&caller, request.into_inner().job_id).await?;
        Ok(Response::new(v1::GetJobResponse {
            job: Some(wire_job(job, self.0.policy.max_attempts)),
        }))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let source = (!request.source.is_empty()).then(|| door.name("source", request.source));
        let namespace = (source.is_some() || !request.namespace.is_empty())
            .then(|| door.namespace(request.namespace));
        let mut states = Vec::new();
        for (index, state) in request.states.into_iter().enumerate() {
            match job_state(state) {
                Some(state) => states.push(state),
                None => door.refuse(format!("states[{index}]"), "is not a job state"),
            }
        }
        let limit = door.page_size(request.page_size);
        door.close()?;
        let namespace = caller.narrow(namespace)?;
        let words: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
        let query = ("jobs", &namespace, &source, &words);
        let before: Option<i64> = page::position(&query, &request.page_token)?;
        let filter = JobFilter {
            namespace: namespace.clone(),
            source: source.clone(),
            states: states.clone(),
        };
        let jobs = self.0.store.jobs(&filter, before, limit).await?;
        let next_page_token = match jobs.last() {
            Some(last) if jobs.len() as i64 == limit => page::token(&query, &last.id)?,
            _ => String::new(),
        };
        Ok(Response::new(v1::ListJobsResponse {
            jobs: jobs
                .into_iter()
                .map(|job| wire_job(job, self.0.policy.max_attempts))
                .collect(),
            next_page_token,
        }))
    }

    async fn watch_job(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let caller = Caller::of(&request)?;
        let job_id = request.into_inner().job_id;
        // The place in line is taken before the first look, so that no change falls between.
        let source_id = self.job(&caller, job_id).await?.source_id;
        let changes = self.0.wakeup.changes(source_id);
        Ok(Response::new(self.watch(changes, LookAtJob { job_id })))
    }

    async fn watch_source(
        &self,
        request: Request<v1::WatchSourceRequest>,
    ) -> Result<Response<Self::WatchSourceStream>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let key = door.source_key(request.namespace, request.name);
        door.close()?;
        caller.check(&key.namespace)?;
        let source_id = self.0.store.source(&key).await?.source.id;
        let changes = self.0.wakeup.changes(source_id);
        Ok(Response::new(self.watch(
            changes,
            LookAtSource {
                key,
                until_idle: request.until_idle,
            },
        )))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        let job_id = request.into_inner().job_id;
        self.job(&caller, job_id).await?;
        let job = self.0.store.cancel_job(job_id).await?;
        tracing::info!(job_id = job.id, "A client cancelled a job.");
        Ok(Response::new(v1::CancelJobResponse {
            job: Some(wire_job(job, self.0.policy.max_attempts)),
        }))
    }

    async fn retry_job(
        &self,
        request: Request<v1::RetryJobRequest>,
    ) -> Result<Response<v1::RetryJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (metadata, _, request) = request.into_parts();
        self.job(&caller, request.job_id).await?;
        let retry = Retry {
            job_id: request.job_id,
            force: request.force,
            max_chunks_per_job: self.0.max_chunks_per_job,
            traceparent: traceparent(metadata.as_ref()),
        };
        let jobs = self.0.store.retry_job(&retry).await?;
        tracing::info!(
            job_id = retry.job_id,
            force = retry.force,
            jobs_queued = jobs.len(),
            "A client had a job run again."
        );
        Ok(Response::new(v1::RetryJobResponse {
            jobs: jobs
                .into_iter()
                .map(|job| wire_job(job, self.0.policy.max_attempts))
                .collect(),
        }))
    }

    async fn get_queue_stats(
        &self,
        request: Request<v1::GetQueueStatsRequest>,
    ) -> Result<Response<v1::GetQueueStatsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let namespace = (!request.namespace.is_empty()).then(|| door.namespace(request.namespace));
        let model = door.model(request.model, &self.0.models);
        door.close()?;
        let namespace = caller.narrow(namespace)?;
        let queues = self
            .0
            .store
            .queue_stats(namespace.as_deref(), model.as_deref())
            .await?
            .into_iter()
            .map(|stats| v1::QueueStats {
                namespace: stats.namespace,
                model: stats.model,
                jobs_ready: stats.jobs_ready,
                jobs_delayed: stats.jobs_delayed,
                jobs_running: stats.jobs_running,
                chunks_pending: stats.chunks_pending,
                oldest_ready_age_seconds: stats.oldest_ready_age_seconds,
            })
            .collect();
        Ok(Response::new(v1::GetQueueStatsResponse { queues }))
    }
}
