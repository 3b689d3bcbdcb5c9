//! What something that was under way came to, and what follows from it.

use std::{sync::Arc, time::SystemTime};

use weir_telemetry::TraceContext;

use super::{
    Busy, Lease, Renewal, Session, Standing,
    lease::Of,
    work::{self, Answered, Claimed, Done},
};
use crate::{
    dispatch::{
        Ended, HeldLease, ToWorker,
        hand_back::Release,
        opener::{Held, Opened},
    },
    job::state::RevokeReason,
    spans::{self, trace_id},
    store::{
        StoreError,
        batches::Progress,
        fence::Fence,
        lease::{LeaseState, Opening},
        rows::{Job, LeaseKey},
    },
};

impl Session {
    pub(super) fn settle(&mut self, done: Done) {
        match done {
            Done::Claimed {
                model,
                beside,
                claimed,
            } => self.claimed(&model, beside, claimed),
            Done::Opened(claimed, opened) => self.opened(claimed, opened),
            Done::TakenUp(held, opened) => self.taken_up(held, opened),
            Done::Listed(lease, pending) => {
                self.read(lease, pending, Lease::listed);
            }
            Done::Read(lease, texts) => self.read(lease, texts, Lease::read),
            Done::Completed(lease, completed) => self.completed(lease, completed),
            Done::HandedBack {
                lease,
                refused,
                result,
            } => match result {
                Ok(()) => {
                    let how = refused.map_or(Ended::Released, Ended::Refused);
                    self.end_lease(lease, how);
                }
                Err(error @ StoreError::LeaseLost { .. }) => self.lost(lease, error),
                // It runs out.
                Err(error) => {
                    tracing::warn!(%error, job_id = lease.job_id, "A job could not be handed back.");
                    self.end_lease(lease, Ended::Revoked(RevokeReason::LeaseLost));
                }
            },
            Done::Persisted(answered, progress) => self.persisted(answered, progress),
            Done::Renewed(leases, renewed) => self.renewed(leases, renewed),
            Done::Checked(lease, state) => self.checked(lease, state),
        }
    }

    /// Opens what was claimed.
    fn claimed(
        &mut self,
        name: &str,
        beside: bool,
        claimed: Result<(Vec<Job>, SystemTime), StoreError>,
    ) {
        let Some(model) = self.models.get_mut(name) else {
            return;
        };
        model.claims[usize::from(beside)] = None;
        let batch_size = i32::try_from(model.batch_size).unwrap_or(i32::MAX);
        let (jobs, began) = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::debug!(%error, worker_id = &*self.worker_id, "A claim for a session failed.");
                return;
            }
        };
        let chunks = |job: &Job| i64::from(job.chunks_pending());
        let (model, standing) = (Arc::clone(&model.name), model.standing.clone());
        for job in jobs {
            let trace = self.dispatch.claimed(&job, began);
            let fence = self.worker.fence(job.lease());
            if let Some(release) = hands_back(&standing, self.is_draining) {
                self.begin(|dispatch| work::release(dispatch, fence, release, trace));
                continue;
            }
            let opening = Opening {
                fence: fence.clone(),
                batch_size,
                session: Some(self.place.session()),
            };
            self.opening(&model, chunks(&job));
            let claimed = Claimed {
                fence,
                model: Arc::clone(&model),
                chunks: chunks(&job),
                trace,
            };
            self.begin(|dispatch| work::open(dispatch, claimed, opening));
        }
    }

    /// Counts chunks of jobs that were claimed and are not open yet.
    fn opening(&mut self, model: &str, chunks: i64) {
        if let Some(model) = self.models.get_mut(model) {
            model.opening += chunks;
        }
    }

    fn opened(&mut self, claimed: Claimed, opened: Result<Opened, StoreError>) {
        let Claimed {
            fence,
            model,
            chunks,
            trace,
        } = claimed;
        self.opening(&model, -chunks);
        match opened {
            Ok(Opened::Held(held)) => {
                self.dispatch.metrics.renewals.open.increment(1);
                let lease = new_lease(fence, *held, trace);
                let job_id = lease.fence.lease.job_id;
                tracing::debug!(
                    job_id,
                    namespace = &*lease.of.namespace,
                    source = &*lease.of.source,
                    ready = lease.ready(),
                    "A lease is open."
                );
                self.replace(job_id);
                self.leases.insert(job_id, lease);
            }
            Ok(Opened::Finished(_)) => {}
            // The worker knows nothing of it. Nobody is heard of under the lease, so that
            // it goes back uncharged.
            Err(error) => {
                tracing::debug!(%error, job_id = fence.lease.job_id, "A claimed job was not opened.");
            }
        }
    }

    /// Lets go of a lease on a job that was lost, and that the session has claimed again. The
    /// worker is told why it was lost as soon as that is known.
    fn replace(&mut self, job_id: i64) {
        let Some(lost) = self.leases.get(&job_id).map(|it| it.fence.lease) else {
            return;
        };
        if let Some(lost) = self.forget(lost) {
            self.replaced.push(lost.fence.lease);
            self.begin(|dispatch| work::check(dispatch, lost.fence));
        }
    }

    /// Goes on with a lease of which the worker holds parts, or tells that it is gone.
    fn taken_up(&mut self, held: HeldLease, opened: Result<Opened, StoreError>) {
        let lease = held.fence.lease;
        let waiting = self.taking_up.remove(&lease.job_id).unwrap_or_default();
        let how = match opened {
            Ok(Opened::Held(opened)) => {
                self.dispatch.metrics.renewals.open.increment(1);
                let trace = spans::trace_of(&opened.job);
                let is_served = self.models.contains_key(opened.job.model.as_str());
                let mut taken = new_lease(held.fence.clone(), *opened, trace);
                for part in held.parts {
                    taken.hold(part.seq, part.chunks);
                }
                if !is_served {
                    taken.busy = Some(Busy::Ending);
                    let why = "the worker opened a session without its model";
                    let (fence, release) = (held.fence, Release::Unneeded(why.to_owned()));
                    self.begin(|dispatch| work::release(dispatch, fence, release, trace));
                }
                self.leases.insert(lease.job_id, taken);
                for part in waiting {
                    self.answered(part);
                }
                return;
            }
            Ok(Opened::Finished(job)) => finished(&job),
            Err(error) => {
                tracing::info!(%error, job_id = lease.job_id, epoch = lease.epoch, "A session lost a lease.");
                let reason = match error {
                    StoreError::LeaseLost { reason, .. } => reason,
                    // It is not its own, or there is no such job.
                    _ => RevokeReason::LeaseLost,
                };
                self.revocation(reason)
            }
        };
        for part in &held.parts {
            self.parts.remove(&part.seq);
        }
        self.say(ToWorker::Ended { lease, how });
    }

    /// Takes in what was read of a job.
    fn read<T>(
        &mut self,
        lease: LeaseKey,
        read: Result<T, StoreError>,
        take_in: impl FnOnce(&mut Lease, T),
    ) {
        let Some(held) = self.held(lease) else {
            return;
        };
        held.busy = None;
        match read {
            Ok(read) => take_in(held, read),
            Err(error) => self.lost(lease, error),
        }
    }

    fn completed(&mut self, lease: LeaseKey, completed: Result<Box<Job>, StoreError>) {
        match completed {
            Ok(job) => self.end_lease(lease, finished(&job)),
            // Writes have added to the job after it had listed what is pending, or rejections
            // were taken back.
            Err(StoreError::Precondition(_)) => {
                if let Some(held) = self.held(lease) {
                    held.busy = None;
                    held.look_again();
                }
            }
            Err(error) => self.lost(lease, error),
        }
    }

    /// Takes in that a result was written.
    fn persisted(&mut self, answered: Answered, progress: Result<Progress, StoreError>) {
        let Answered {
            lease, seq, whole, ..
        } = answered;
        let progress = match progress {
            Ok(progress) => progress,
            Err(error) => return self.lost(lease, error),
        };
        self.dispatch.metrics.renewals.result.increment(1);
        self.dispatch.wakeup.report_change(progress.source_id);
        let Some(held) = self.held(lease) else {
            return;
        };
        let (late, trace) = (progress.late.chunks(), held.of.trace);
        let model = Arc::clone(&held.of.model);
        held.suspects = progress.suspects;
        // What the result leaves out, or was made of another text, is pending again.
        held.settled(seq, whole && late == 0);
        self.parts.remove(&seq);
        self.place.embedded(&model, answered.embedded);
        match self.outgoing.back_mut() {
            Some(ToWorker::Ack(parts)) => parts.push((seq, late)),
            _ => self.say(ToWorker::Ack(vec![(seq, late)])),
        }
        if progress.finished {
            self.dispatch.succeeded(lease, trace, SystemTime::now());
            let how = Ended::Finished {
                done: progress.done,
                rejected: progress.rejected,
                truncated: progress.truncated,
            };
            self.end_lease(lease, how);
        }
    }

    /// Looks after the leases that a renewal left out: they have ended, or somebody has
    /// locked their jobs.
    fn renewed(&mut self, leases: Vec<LeaseKey>, renewed: Result<Vec<i64>, StoreError>) {
        let again = std::mem::replace(&mut self.renewal, Renewal::Idle) == Renewal::Again;
        match renewed {
            Ok(renewed) => {
                let counter = &self.dispatch.metrics.renewals.heartbeat;
                counter.increment(renewed.len() as u64);
                for lease in leases {
                    if !renewed.contains(&lease.job_id) {
                        self.check(lease);
                    }
                }
            }
            // The next heartbeat tries again.
            Err(error) => {
                tracing::debug!(%error, worker_id = &*self.worker_id, "The leases of a session were not renewed.");
            }
        }
        if again {
            self.heartbeat();
        }
    }

    /// Looks after the leases on jobs of a source of which some were revoked; of all
    /// sources, where it is not known which.
    pub(super) fn revoked(&mut self, source_id: Option<i64>) {
        let concerned = |lease: &&Lease| source_id.is_none_or(|it| it == lease.of.source_id);
        let leases = self.leases.values().filter(concerned);
        let leases: Vec<LeaseKey> = leases.map(|it| it.fence.lease).collect();
        for lease in leases {
            self.check(lease);
        }
    }

    fn check(&mut self, lease: LeaseKey) {
        if let Some(held) = self.held(lease) {
            let fence = held.fence.clone();
            self.begin(|dispatch| work::check(dispatch, fence));
        }
    }

    fn checked(&mut self, lease: LeaseKey, state: Result<LeaseState, StoreError>) {
        if self.replaced.contains(&lease) {
            self.replaced.retain(|it| *it != lease);
            let reason = match state {
                Err(StoreError::LeaseLost { reason, .. }) => reason,
                _ => RevokeReason::LeaseLost,
            };
            let how = self.revocation(reason);
            return self.say(ToWorker::Ended { lease, how });
        }
        match state {
            Ok(LeaseState::Held(_)) => {}
            Ok(LeaseState::Finished(job)) => self.end_lease(lease, finished(&job)),
            Err(error) => self.lost(lease, error),
        }
    }

    /// Ends a lease that cannot be gone on with.
    fn lost(&mut self, lease: LeaseKey, error: StoreError) {
        let Some(held) = self.held(lease) else {
            return;
        };
        let (fence, trace) = (held.fence.clone(), held.of.trace);
        match error {
            StoreError::LeaseLost { reason, why } => {
                spans::happened(&self.dispatch.tracer, trace, "revoke", lease, || {
                    why.clone()
                });
                tracing::info!(
                    job_id = lease.job_id,
                    epoch = lease.epoch,
                    %reason,
                    why,
                    trace_id = trace_id(trace),
                    "A session lost a lease."
                );
                let how = self.revocation(reason);
                self.end_lease(lease, how);
            }
            error @ StoreError::Invalid(_) => self.refuse(fence, error.to_string()),
            error => {
                // Of what is not the job's fault nothing is charged.
                tracing::warn!(%error, job_id = lease.job_id, epoch = lease.epoch, "A job is put off.");
                held.busy = Some(Busy::Ending);
                let release = Release::Refused(error.to_string());
                self.begin(|dispatch| work::release(dispatch, fence, release, trace));
            }
        }
    }

    /// How a lease ends that is lost; counted.
    fn revocation(&self, reason: RevokeReason) -> Ended {
        self.dispatch.metrics.lease_lost(reason);
        Ended::Revoked(reason)
    }

    /// Hands a job back, charged, whose worker sent what cannot be taken.
    pub(super) fn refuse(&mut self, fence: Fence, fault: String) {
        let Some(held) = self.held(fence.lease) else {
            return;
        };
        let trace = held.of.trace;
        held.busy = Some(Busy::Ending);
        self.begin(|dispatch| work::fail(dispatch, fence, fault, trace));
    }

    /// The lease, where it is still the one that is held on its job.
    fn held(&mut self, lease: LeaseKey) -> Option<&mut Lease> {
        let held = self.leases.get_mut(&lease.job_id)?;
        (held.fence.lease == lease).then_some(held)
    }
}

/// Why the jobs of a model go back, if they do.
pub(super) fn hands_back(standing: &Standing, is_draining: bool) -> Option<Release> {
    match standing {
        Standing::Down(reason) => Some(Release::EmbedderDown(reason.clone())),
        Standing::Fit | Standing::Resting => {
            is_draining.then(|| Release::Unneeded("the worker is draining".to_owned()))
        }
    }
}

/// A lease that was opened.
fn new_lease(fence: Fence, held: Held, trace: Option<TraceContext>) -> Lease {
    let Held { job, texts } = held;
    let (suspects, pending) = (job.suspects, job.chunks_pending().into());
    Lease::new(fence, Of::new(&job, trace), suspects, pending, texts)
}

fn finished(job: &Job) -> Ended {
    Ended::Finished {
        done: job.chunks_done.into(),
        rejected: job.chunks_rejected.into(),
        truncated: job.chunks_truncated.into(),
    }
}
