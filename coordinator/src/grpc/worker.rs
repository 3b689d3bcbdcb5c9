//! `WorkerService`: claims, and the unary twins of the stream.

use std::{pin::Pin, time::Duration};

use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use weir_proto::{
    limits::{MAX_CLAIM_MODELS, MAX_CLAIM_WAIT_SECONDS},
    v1::{self, worker_service_server::WorkerService},
};
use weir_telemetry::TraceContext;

use super::{
    Services,
    auth::Caller,
    convert::{duration, wire_duration},
    door::Door,
    error::going_away,
    stream, traced,
};
use crate::{
    dispatch::{MAX_BATCH_BYTES, hand_back::Release},
    job::{blame::suspected_batch, plan::next_batch_len, retry::Decision},
    spans,
    store::{
        StoreError,
        batches::Outcome,
        claim::Claim,
        lease::{LeaseState, Opening},
        rows::Job,
    },
};

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
            lease_duration: wire_duration(self.0.dispatch.lease_duration),
            max_batch_size: self.0.dispatch.max_batch_size,
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
        door.worker_id("worker_id", &request.worker_id);
        if !(1..=MAX_CLAIM_MODELS).contains(&request.models.len()) {
            door.refuse(
                "models",
                format!("must name 1 to {MAX_CLAIM_MODELS} models"),
            );
        }
        for (index, model) in request.models.iter().enumerate() {
            door.known_model(format!("models[{index}]"), model, &self.0.models);
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
            lease_duration: self.0.dispatch.lease_duration,
        };
        let dispatch = &self.0.dispatch;
        let claimed = dispatch.claimer.claim(&claim, wait, &self.0.shutdown);
        let (jobs, began) = claimed.await?;
        if jobs.is_empty() && self.0.shutdown.is_cancelled() {
            return Err(going_away());
        }
        let leases = jobs.into_iter().map(|job| {
            let trace = dispatch.claimed(&job, began);
            self.lease(job, trace)
        });
        Ok(Response::new(v1::ClaimJobResponse {
            leases: leases.collect(),
            lease_duration: wire_duration(self.0.dispatch.lease_duration),
        }))
    }

    async fn stream_batches(
        &self,
        request: Request<Streaming<v1::StreamBatchesRequest>>,
    ) -> Result<Response<Self::StreamBatchesStream>, Status> {
        let caller = Caller::of(&request)?;
        let inbox = request.into_inner();
        let answers = stream::serve(&self.0, caller, inbox);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let lease = door.lease(request.job_id, request.epoch);
        let longest = self.0.dispatch.lease_duration;
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
        let most = self.0.dispatch.max_batch_size;
        let size = door
            .number("batch_size", request.batch_size, most, 1..=i32::MAX)
            .min(most);
        door.close()?;
        let fence = caller.fence(lease);
        let opening = Opening {
            fence: fence.clone(),
            batch_size: size,
            session: None,
        };
        let opened = self
            .0
            .store
            .open(&opening, self.0.dispatch.lease_duration)
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
        let pending = self
            .0
            .store
            .pending(opening.fence.lease, size.into())
            .await?;
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
        let trace = traced::caller(request.metadata().as_ref());
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let lease = door.lease(request.job_id, request.epoch);
        let (embedded, rejected) = door.outcome(request.embedded, request.rejected);
        door.close()?;
        let fence = caller.fence(lease);
        let dispatch = &self.0.dispatch;
        let progress = dispatch
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
                dispatch.give_back(&fence, &error).await;
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
        let trace = traced::caller(request.metadata().as_ref());
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let lease = door.lease(request.job_id, request.epoch);
        door.close()?;
        let fence = caller.fence(lease);
        let completed = self.0.dispatch.complete(&fence, trace).await;
        let job = completed.map_err(|error| self.refusal(error))?;
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
        let trace = traced::caller(request.metadata().as_ref());
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let lease = door.lease(request.job_id, request.epoch);
        let reason = door.reason("reason".to_owned(), &request.reason);
        door.close()?;
        let fence = caller.fence(lease);
        let failed = self.0.dispatch.fail(&fence, &reason, trace).await;
        let failed = failed.map_err(|error| self.refusal(error))?;
        spans::handed_back(fence.lease, &reason, Some(failed.decision));
        let response = match failed.decision {
            Decision::Retry { delay, .. } => v1::FailJobResponse {
                failed: false,
                retry_delay: wire_duration(delay),
            },
            Decision::Fail { .. } => v1::FailJobResponse {
                failed: true,
                retry_delay: None,
            },
        };
        Ok(Response::new(response))
    }

    async fn release_job(
        &self,
        request: Request<v1::ReleaseJobRequest>,
    ) -> Result<Response<v1::ReleaseJobResponse>, Status> {
        let trace = traced::caller(request.metadata().as_ref());
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
        let release = if embedder_down {
            Release::EmbedderDown(reason)
        } else {
            Release::Unneeded(reason)
        };
        let released = self.0.dispatch.release(&fence, &release, trace).await;
        released.map_err(|error| self.refusal(error))?;
        spans::handed_back(fence.lease, release.reason(), None);
        Ok(Response::new(v1::ReleaseJobResponse {}))
    }
}
