//! `JobService`: the status API.

use tonic::{Request, Response, Status};
use weir_proto::v1::{self, job_service_server::JobService};

use super::{
    Services,
    auth::{Asked, Caller},
    convert::{job_state, job_trigger},
    door::Door,
    mask::Mask,
    overview, page, roster, traced,
    watch::{self, Cursor, PageKey, Watch},
};
use crate::{
    spans::{self, trace_id},
    store::{
        rows::{Job, SourceKey},
        sources::SourceFilter,
        status::{JobFilter, Paging},
        steer::{Retry, SourceRetry},
    },
};

/// Most tries that come with a job.
const MAX_ATTEMPTS_TOLD: i64 = 100;

/// Tells how far jobs are.
#[derive(Debug, Clone)]
pub(crate) struct Jobs(pub(crate) Services);

impl Jobs {
    fn wire(&self, jobs: Vec<Job>) -> Vec<v1::Job> {
        let jobs = jobs.into_iter();
        jobs.map(|job| self.0.wire_job(job)).collect()
    }
}

/// Checks which jobs are asked for.
fn job_filter(
    door: &mut Door,
    request: &mut v1::ListJobsRequest,
) -> (Option<Asked<String>>, JobFilter) {
    let text = std::mem::take::<String>;
    let source = text(&mut request.source);
    let source = (!source.is_empty()).then(|| door.name("source", source));
    let source_prefix = door.prefix("source_prefix", text(&mut request.source_prefix));
    if source.is_some() && source_prefix.is_some() {
        door.refuse("source_prefix", "cannot go together with source");
    }
    let named = source.is_some() || source_prefix.is_some() || !request.namespace.is_empty();
    let mut states = Vec::new();
    for (index, state) in request.states.iter().enumerate() {
        match job_state(*state) {
            Some(state) => states.push(state),
            None => door.refuse(format!("states[{index}]"), "is not a job state"),
        }
    }
    let mut triggers = Vec::new();
    for (index, trigger) in request.triggers.iter().enumerate() {
        match job_trigger(*trigger) {
            Some(trigger) => triggers.push(trigger),
            None => door.refuse(format!("triggers[{index}]"), "is not a job trigger"),
        }
    }
    if request.failure_id < 0 {
        door.refuse("failure_id", "must be the id of a failure, or 0");
    }
    let namespace = named.then(|| door.namespace(text(&mut request.namespace)));
    let filter = JobFilter {
        source,
        source_prefix,
        states,
        triggers,
        model: door.any_model(text(&mut request.model)),
        failure_id: (request.failure_id != 0).then_some(request.failure_id),
    };
    (namespace, filter)
}

#[tonic::async_trait]
impl JobService for Jobs {
    type WatchJobStream = Watch<v1::WatchJobResponse>;
    type WatchSourceStream = Watch<v1::WatchSourceResponse>;
    type WatchSourcesStream = Watch<v1::WatchSourcesResponse>;
    type WatchStatusStream = Watch<v1::WatchStatusResponse>;

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (scope, job_id) = (caller.scope(), request.into_inner().job_id);
        let store = &self.0.store;
        let job = store.job(&scope, job_id).await?;
        let attempts = store.attempts(&scope, job_id, MAX_ATTEMPTS_TOLD).await?;
        Ok(Response::new(v1::GetJobResponse {
            job: Some(self.0.wire_job(job)),
            attempts: attempts.into_iter().map(Into::into).collect(),
        }))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let mut request = request.into_inner();
        let mut door = Door::default();
        let (namespace, filter) = job_filter(&mut door, &mut request);
        let mask = Mask::read(&mut door, request.read_mask, "weir.v1.Job");
        let limit = door.page_size(request.page_size);
        door.close()?;
        let scope = caller.narrow(namespace)?;
        let query = ("jobs", &scope, &filter);
        let paging: Option<Paging<i64>> = page::position(&query, &request.page_token)?;
        let found = self
            .0
            .store
            .jobs(&scope, &filter, paging.as_ref(), limit)
            .await?;
        let (next_page_token, previous_page_token) = page::tokens(&query, &found)?;
        let mut jobs = self.wire(found.rows);
        if let Some(mask) = mask {
            jobs = mask.apply_all(&jobs)?;
        }
        Ok(Response::new(v1::ListJobsResponse {
            jobs,
            next_page_token,
            previous_page_token,
        }))
    }

    async fn watch_job(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let cursor = Cursor::read(&request.cursor)?;
        let job = self.0.store.job(&caller.scope(), request.job_id).await?;
        Ok(Response::new(watch::watch_job(&self.0, &job, cursor)))
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
        let key = caller.admit(key)?;
        let cursor = Cursor::read(&request.cursor)?;
        let source_id = self.0.store.source_id(&key).await?;
        Ok(Response::new(watch::watch_source(
            &self.0,
            source_id,
            key,
            request.until_idle,
            cursor,
        )))
    }

    async fn watch_sources(
        &self,
        request: Request<v1::WatchSourcesRequest>,
    ) -> Result<Response<Self::WatchSourcesStream>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let namespace = door.any_namespace(request.namespace);
        let filter = SourceFilter {
            name_prefix: door.prefix("name_prefix", request.name_prefix),
            model: door.any_model(request.model),
            unsettled_only: request.unsettled_only,
        };
        let limit = door.page_size(request.page_size);
        door.close()?;
        let scope = caller.narrow(namespace)?;
        let query = ("sources", &scope, &filter);
        let paging: Option<Paging<SourceKey>> = page::position(&query, &request.page_token)?;
        let page = PageKey {
            scope,
            filter,
            paging,
            limit,
        };
        Ok(Response::new(watch::watch_sources(&self.0, page)))
    }

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let caller = Caller::of(&request)?;
        let scope = caller.narrow(one_namespace(request.into_inner().namespace)?)?;
        let status = overview::status(&self.0, scope).await?;
        Ok(Response::new(status))
    }

    async fn watch_status(
        &self,
        request: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let caller = Caller::of(&request)?;
        let scope = caller.narrow(one_namespace(request.into_inner().namespace)?)?;
        Ok(Response::new(watch::watch_status(&self.0, scope)))
    }

    async fn list_failures(
        &self,
        request: Request<v1::ListFailuresRequest>,
    ) -> Result<Response<v1::ListFailuresResponse>, Status> {
        let caller = Caller::of(&request)?;
        let failures = overview::failures(&self.0, &caller, request.into_inner()).await?;
        Ok(Response::new(failures))
    }

    async fn dismiss_failure(
        &self,
        request: Request<v1::DismissFailureRequest>,
    ) -> Result<Response<v1::DismissFailureResponse>, Status> {
        let caller = Caller::of(&request)?;
        let failure_id = request.into_inner().failure_id;
        let scope = caller.scope();
        let failure = self.0.store.dismiss_failure(&scope, failure_id).await?;
        tracing::info!(failure_id, "A client dismissed a failure.");
        Ok(Response::new(v1::DismissFailureResponse {
            failure: Some(failure.into()),
        }))
    }

    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let caller = Caller::of(&request)?;
        let workers = roster::workers(&self.0, &caller, request.into_inner()).await?;
        Ok(Response::new(workers))
    }

    async fn get_activity(
        &self,
        request: Request<v1::GetActivityRequest>,
    ) -> Result<Response<v1::GetActivityResponse>, Status> {
        let caller = Caller::of(&request)?;
        caller.check_all()?;
        let activity = overview::activity(&self.0, request.into_inner()).await?;
        Ok(Response::new(activity))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        let job_id = request.into_inner().job_id;
        let job = self.0.store.cancel_job(&caller.scope(), job_id).await?;
        tracing::info!(
            job_id = job.id,
            trace_id = trace_id(spans::trace_of(&job)),
            "A client cancelled a job."
        );
        Ok(Response::new(v1::CancelJobResponse {
            job: Some(self.0.wire_job(job)),
        }))
    }

    async fn retry_job(
        &self,
        request: Request<v1::RetryJobRequest>,
    ) -> Result<Response<v1::RetryJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (metadata, _, request) = request.into_parts();
        let trace = traced::caller(metadata.as_ref());
        let retry = Retry {
            scope: caller.scope(),
            job_id: request.job_id,
            force: request.force,
            max_chunks_per_job: self.0.max_chunks_per_job,
            traceparent: trace.map(|trace| trace.to_string()),
        };
        let retried = self.0.store.retry_job(&retry).await?;
        tracing::info!(
            job_id = retry.job_id,
            force = retry.force,
            jobs_queued = retried.jobs.len(),
            goes_on = retried.goes_on,
            trace_id = trace_id(trace),
            "A client had a job run again."
        );
        Ok(Response::new(v1::RetryJobResponse {
            jobs: self.wire(retried.jobs),
            goes_on: retried.goes_on,
        }))
    }

    async fn retry_source(
        &self,
        request: Request<v1::RetrySourceRequest>,
    ) -> Result<Response<v1::RetrySourceResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (metadata, _, request) = request.into_parts();
        let trace = traced::caller(metadata.as_ref());
        let mut door = Door::default();
        let key = door.source_key(request.namespace, request.name);
        door.close()?;
        let retry = SourceRetry {
            key: caller.admit(key)?,
            max_chunks_per_job: self.0.max_chunks_per_job,
            traceparent: trace.map(|trace| trace.to_string()),
        };
        let retried = self.0.store.retry_source(&retry).await?;
        tracing::info!(
            namespace = retry.key.namespace,
            source = retry.key.name,
            chunks_taken_back = retried.taken_back,
            jobs_open = retried.jobs.len(),
            trace_id = trace_id(trace),
            "A client had a source run again."
        );
        Ok(Response::new(v1::RetrySourceResponse {
            chunks_taken_back: retried.taken_back,
            jobs: self.wire(retried.jobs),
        }))
    }

    async fn get_queue_stats(
        &self,
        request: Request<v1::GetQueueStatsRequest>,
    ) -> Result<Response<v1::GetQueueStatsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let namespace = door.any_namespace(request.namespace);
        let model = door.any_model(request.model);
        door.close()?;
        let scope = caller.narrow(namespace)?;
        let queues = overview::queues(&self.0, &scope, model.as_deref()).await?;
        Ok(Response::new(queues))
    }
}

/// A namespace, or all of them where it is left empty.
fn one_namespace(namespace: String) -> Result<Option<Asked<String>>, Status> {
    let mut door = Door::default();
    let namespace = door.any_namespace(namespace);
    door.close()?;
    Ok(namespace)
}
