//! `WorkerService`: claims, and the unary twins of the stream.

use std::{
    pin::Pin,
    time::{Duration, SystemTime},
};

use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use weir_proto::{
    limits::{MAX_CLAIM_MODELS, MAX_CLAIM_WAIT_SECONDS, MAX_WORKER_ID_CHARS},
    v1::{self, worker_service_server::WorkerService},
};
use weir_telemetry::TraceContext;

use super::{
    Services,
    auth::Caller,
    convert::{duration, wire_duration},
    door::Door,
    error::{going_away, invalid_field},
    spans::{self, trace_id},
    stream,
};
use crate::{
    job::{blame::suspected_batch, plan::next_batch_len, retry::Decision},
    store::{StoreError, batches::Outcome, claim::Claim, lease::LeaseState, rows::Job},
};

/// Most bytes of text in one batch, so that it fits a message with room to
/// spare.
pub(crate) const MAX_BATCH_BYTES: usize = 8 << 20;

/// Hands out leases and takes results.
#[derive(Debug, Clone)]
pub(crate) struct Workers(pub(crate) Services);

impl Workers {
    fn lease(&self, job: Job, trace: Option<TraceContext>) -> v1::Lease {
        v1::Lease {
            chunks_pending: job.chunks_pending().into(),
            job_id: job.id,
            epoch: job.epoch,
            namespace: job.namespace,
            source: job.source,
            model: job.model,
            lease_duration: wire_duration(self.0.lease_duration),
            max_batch_size: self.0.max_batch_size,
            attempt: job.attempt.into(),
            traceparent: trace
                .as_ref()
                .map(TraceContext::to_string)
                .unwrap_or_default(),
        }
    }

    /// The status of a fault; a lost lease is counted.
    fn refusal(&self, error: StoreError) -> Status {
        if let StoreError::LeaseLost { reason, .. } = &error {
            self.0.metrics.lease_lost(*reason);
        }
        error.into()
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    type StreamBatchesStream =
        Pin<Box<dyn Stream<Item = Result<v1::StreamBatchesResponse, Status>> + Send>>;

    async fn claim_job(
        &self,
        request: Request<v1::ClaimJobRequest>,
    ) -> Result<Response<v1::ClaimJobResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let visible = request.worker_id.bytes().all(|b| b.is_ascii_graphic());
        if !visible || !(1..=MAX_WORKER_ID_CHARS).contains(&request.worker_id.len()) {
            door.refuse(
                "worker_id",
                format!("must be 1 to {MAX_WORKER_ID_CHARS} visible ASCII characters"),
            );
        }
        if !(1..=MAX_CLAIM_MODELS).contains(&request.models.len()) {
            door.refuse(
                "models",
                format!("must name 1 to {MAX_CLAIM_MODELS} models"),
            );
        }
        for (index, model) in request.models.iter().enumerate() {
            if !self.0.models.contains(model) {
                door.refuse(
                    format!("models[{index}]"),
                    format!(
                        "is not a model of this coordinator; it has {}",
                        self.0.models.join(", ")
                    ),
                );
            }
        }
        let max_jobs = door.number("max_jobs", request.max_jobs, 1, 1..=1_000);
        let wait = match request.wait.map(duration) {
            None => Duration::ZERO,
            Some(Some(wait))
                if wait <= Duration::from_secs(MAX_CLAIM_WAIT_SECONDS.unsigned_abs()) =>
            {
                wait
            }
            Some(_) => {
                door.refuse("wait", format!("must be 0 to {MAX_CLAIM_WAIT_SECONDS} s"));
                Duration::ZERO
            }
        };
        if request.max_chunks < 0 {
            door.refuse(
                "max_chunks",
                format!(
                    "must be 0, for no bound, or more, not {}",
                    request.max_chunks
                ),
            );
        }
        door.busy_with(&request.busy_with);
        door.close()?;
        let claim = Claim {
            worker_id: &request.worker_id,
            models: &request.models,
            max_jobs: max_jobs.into(),
            max_chunks: request.max_chunks,
            namespaces: caller.namespaces(),
            busy_with: &request.busy_with,
            claimed_by: caller.name(),
            lease_duration: self.0.lease_duration,
        };
        let (jobs, began) = self.0.claimer.claim(&claim, wait).await?;
        if jobs.is_empty() && self.0.shutdown.is_cancelled() {
            return Err(going_away());
        }
        let leases = jobs.into_iter().map(|job| {
            let trace = spans::claimed(&self.0.tracer, &job, self.0.lease_duration, began);
            tracing::info!(
                job_id = job.id,
                epoch = job.epoch,
                worker_id = request.worker_id,
                attempt = job.attempt,
                trace_id = trace_id(trace),
                "A job was claimed."
            );
            self.0.wakeup.report_change(job.source_id);
            self.0.metrics.claimed(&job.model);
            self.lease(job, trace)
        });
        Ok(Response::new(v1::ClaimJobResponse {
            leases: leases.collect(),
            lease_duration: wire_duration(self.0.lease_duration),
        }))
    }

    async fn stream_batches(
        &self,
        request: Request<Streaming<v1::StreamBatchesRequest>>,
    ) -> Result<Response<Self::StreamBatchesStream>, Status> {
        let caller = Caller::of(&request)?;
        let trace = spans::caller(request.metadata().as_ref());
        Ok(Response::new(Box::pin(stream::serve(
            self.0.clone(),
            caller,
            request.into_inner(),
            trace,
        ))))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let lease = door.lease(request.job_id, request.epoch);
        let longest = self.0.lease_duration;
        let wanted = match request.lease_duration.map(duration) {
            None => longest,
            Some(Some(wanted)) if !wanted.is_zero() && wanted <= longest => wanted,
            Some(_) => {
                door.refuse(
                    "lease_duration",
                    format!("must be more than zero and at most {longest:?}, the coordinator's lease duration"),
                );
                longest
            }
        };
        door.close()?;
        let fence = caller.fence(lease);
        let renewed = self.0.store.renew(fence, wanted).await;
        match renewed.map_err(|error| self.refusal(error))? {
            LeaseState::Held(_) => {
                self.0.metrics.renewals.call.increment(1);
                Ok(Response::new(v1::RenewLeaseResponse {
                    lease_duration: wire_duration(wanted),
                }))
            }
            LeaseState::Finished(job) => Err(Status::failed_precondition(format!(
                "job {} has already succeeded",
                job.id
            ))),
        }
    }

    async fn get_batch(
        &self,
        request: Request<v1::GetBatchRequest>,
    ) -> Result<Response<v1::GetBatchResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let lease = door.lease(request.job_id, request.epoch);
        let most = self.0.max_batch_size;
        let size = door
            .number("batch_size", request.batch_size, most, 1..=i32::MAX)
            .min(most);
        door.close()?;
        let fence = caller.fence(lease);
        let opened = self
            .0
            .store
            .open(&fence, self.0.lease_duration, size)
            .await
            .map_err(|error| self.refusal(error))?;
        let job = match opened {
            LeaseState::Held(job) => {
                self.0.metrics.renewals.call.increment(1);
                job
            }
            LeaseState::Finished(_) => {
                return Ok(Response::new(v1::GetBatchResponse { chunks: Vec::new() }));
            }
        };
        let size = match job.suspects {
            0 => size,
            suspects => size.min(suspected_batch(suspects)),
        };
        let pending = self.0.store.pending(fence.lease, size.into()).await?;
        let text_bytes = pending.iter().map(|chunk| chunk.text_bytes);
        let len = next_batch_len(text_bytes, size as usize, MAX_BATCH_BYTES);
        let chunks = self.0.store.texts(job.source_id, &pending[..len]).await?;
        Ok(Response::new(v1::GetBatchResponse {
            chunks: chunks.into_iter().map(Into::into).collect(),
        }))
    }

    async fn upsert_batch(
        &self,
        request: Request<v1::UpsertBatchRequest>,
    ) -> Result<Response<v1::UpsertBatchResponse>, Status> {
        let trace = spans::caller(request.metadata().as_ref());
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let lease = door.lease(request.job_id, request.epoch);
        let (embedded, rejected) = door.outcome(request.embedded, request.rejected);
        door.close()?;
        let fence = caller.fence(lease);
        let progress = self
            .0
            .writer
            .upsert(
                Outcome {
                    fence: fence.clone(),
                    embedded,
                    rejected,
                    complete: false,
                    may_be_first: caller.is_of_all(),
                },
                trace,
            )
            .await;
        let progress = match progress {
            Ok(progress) => progress,
            Err(error) => {
                self.0.give_back(&fence, &error).await;
                return Err(self.refusal(error));
            }
        };
        self.0.metrics.renewals.result.increment(1);
        self.0.wakeup.report_change(progress.source_id);
        Ok(Response::new(v1::UpsertBatchResponse {
            done: progress.done + progress.rejected,
            total: progress.total,
            late: progress.late.chunks(),
        }))
    }

    async fn complete_job(
        &self,
        request: Request<v1::CompleteJobRequest>,
    ) -> Result<Response<v1::CompleteJobResponse>, Status> {
        let trace = spans::caller(request.metadata().as_ref());
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let lease = door.lease(request.job_id, request.epoch);
        door.close()?;
        let fence = caller.fence(lease);
        let began = SystemTime::now();
        let completed = self.0.store.complete(&fence).await;
        let job = completed.map_err(|error| self.refusal(error))?;
        self.0.metrics.jobs_ended.succeeded.increment(1);
        self.0.wakeup.report_change(job.source_id);
        spans::completed(&self.0.tracer, trace, fence.lease, began);
        tracing::info!(
            job_id = job.id,
            epoch = job.epoch,
            trace_id = trace_id(spans::trace_of(&job)),
            "A job succeeded."
        );
        Ok(Response::new(v1::CompleteJobResponse {
            chunks_done: job.chunks_done.into(),
            chunks_rejected: job.chunks_rejected.into(),
            chunks_truncated: job.chunks_truncated.into(),
        }))
    }

    async fn fail_job(
        &self,
        request: Request<v1::FailJobRequest>,
    ) -> Result<Response<v1::FailJobResponse>, Status> {
        let trace = spans::caller(request.metadata().as_ref());
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let lease = door.lease(request.job_id, request.epoch);
        let reason = door.reason("reason".to_owned(), &request.reason);
        door.close()?;
        let fence = caller.fence(lease);
        let failed = self
            .0
            .store
            .fail(&fence, &reason, &self.0.policy, rand::random())
            .await
            .map_err(|error| self.refusal(error))?;
        self.0.wakeup.report_change(failed.source_id);
        spans::handed_back(fence.lease, &reason, Some(failed.decision));
        let response = match failed.decision {
            Decision::Retry { attempt, delay } => {
                self.0.metrics.retries.failed.increment(1);
                tracing::warn!(
                    job_id = fence.lease.job_id,
                    attempt,
                    delay_ms = delay.as_millis() as u64,
                    reason,
                    trace_id = trace_id(trace),
                    "A job failed and will be tried again."
                );
                v1::FailJobResponse {
                    failed: false,
                    retry_delay: wire_duration(delay),
                }
            }
            Decision::Fail { attempt } => {
                self.0.metrics.jobs_ended.failed.increment(1);
                tracing::error!(
                    job_id = fence.lease.job_id,
                    attempt,
                    reason,
                    trace_id = trace_id(trace),
                    "A job failed for good: its attempts are used up."
                );
                v1::FailJobResponse {
                    failed: true,
                    retry_delay: None,
                }
            }
        };
        Ok(Response::new(response))
    }

    async fn release_job(
        &self,
        request: Request<v1::ReleaseJobRequest>,
    ) -> Result<Response<v1::ReleaseJobResponse>, Status> {
        let trace = spans::caller(request.metadata().as_ref());
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let lease = door.lease(request.job_id, request.epoch);
        let reason = door.reason("reason".to_owned(), &request.reason);
        let embedder_down = match v1::ReleaseCause::try_from(request.cause) {
            Ok(v1::ReleaseCause::EmbedderDown) => true,
            Ok(v1::ReleaseCause::Unspecified | v1::ReleaseCause::Drain) => false,
            Err(_) => {
                door.refuse("cause", "is not a cause to release a job for");
                false
            }
        };
        door.close()?;
        let fence = caller.fence(lease);
        let store = &self.0.store;
        let released = if embedder_down {
            store.release_embedder_down(&fence, &reason).await
        } else {
            store.release(&fence, &reason).await
        };
        let source_id = released.map_err(|error| self.refusal(error))?;
        self.0.metrics.retries.released.increment(1);
        self.0.wakeup.report_change(source_id);
        spans::handed_back(fence.lease, &reason, None);
        tracing::info!(
            job_id = fence.lease.job_id,
            epoch = fence.lease.epoch,
            reason,
            trace_id = trace_id(trace),
            "A job was handed back."
        );
        Ok(Response::new(v1::ReleaseJobResponse {}))
    }
}

/// `INVALID_ARGUMENT` for a message of a stream that comes out of order.
pub(crate) fn out_of_order(message: &str) -> Status {
    invalid_field("message", message)
}
