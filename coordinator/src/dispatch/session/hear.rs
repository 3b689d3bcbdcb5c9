//! What a worker says, and what follows from it.

use weir_proto::limits::MAX_CREDIT;
use weir_telemetry::{KeyValue, SpanKind};

use super::{End, Renewal, Session, lease::Lease, model::Standing, work};
use crate::{
    dispatch::{Condition, FromWorker, HeldLease, PartResult, ToWorker},
    store::{batches::Outcome, lease::Opening, workers::EmbedderState},
};

impl Session {
    pub(super) fn hear(&mut self, message: FromWorker) -> Result<(), End> {
        match message {
            FromWorker::Credit { model, chunks } => self.credit(&model, chunks),
            FromWorker::Result(parts) => {
                for part in parts {
                    self.answered(part);
                }
                Ok(())
            }
            FromWorker::Heartbeat => {
                self.heartbeat();
                Ok(())
            }
            FromWorker::Condition { model, condition } => self.condition(&model, condition),
            FromWorker::Drain => {
                self.is_draining = true;
                self.over.cancel();
                self.place.draining();
                Ok(())
            }
        }
    }

    fn credit(&mut self, model: &str, chunks: usize) -> Result<(), End> {
        let granted: usize = self.models.values().map(|model| model.credit).sum();
        let sent: usize = self.leases.values().map(Lease::with_worker).sum();
        if granted + sent + chunks > MAX_CREDIT as usize {
            return Err(End::breach(
                "credit.chunks",
                format!(
                    "credit and chunks that are not answered may be {MAX_CREDIT} together; with {chunks} more they \
                     are {}",
                    granted + sent + chunks
                ),
            ));
        }
        let model = self.models.get_mut(model);
        let model = model.ok_or_else(|| unknown_model("credit.model"))?;
        model.credit += chunks;
        Ok(())
    }

    fn condition(&mut self, name: &str, condition: Condition) -> Result<(), End> {
        let model = self.models.get_mut(name);
        let model = model.ok_or_else(|| unknown_model("condition.model"))?;
        model.stand(match condition.state {
            EmbedderState::Fit => Standing::Fit,
            EmbedderState::Down => Standing::Down(condition.reason.clone()),
            EmbedderState::Untried | EmbedderState::Resting => Standing::Resting,
        });
        self.place.condition(name, condition);
        Ok(())
    }

    /// Renews all leases in one statement. One that is under way when a heartbeat comes
    /// is followed by another.
    pub(super) fn heartbeat(&mut self) {
        if self.renewal != Renewal::Idle {
            self.renewal = Renewal::Again;
            return;
        }
        let fences: Vec<_> = self.leases.values().map(|it| it.fence.clone()).collect();
        if fences.is_empty() {
            return;
        }
        self.renewal = Renewal::UnderWay;
        self.begin(|dispatch| work::renew(dispatch, fences));
    }

    /// Takes in the result of a part, and has it written.
    pub(super) fn answered(&mut self, part: PartResult) {
        let PartResult { seq, content } = part;
        let Some(job_id) = self.parts.get(&seq).copied() else {
            // Its lease has ended meanwhile.
            return;
        };
        if let Some(waiting) = self.taking_up.get_mut(&job_id) {
            waiting.push(PartResult { seq, content });
            return;
        }
        let Some(lease) = self.leases.get_mut(&job_id) else {
            return;
        };
        let Some((chunks, sent)) = lease.answered(seq) else {
            return;
        };
        if let Some(sent) = sent {
            let round_trip = sent.elapsed().as_secs_f64();
            self.dispatch.metrics.round_trip.record(round_trip);
        }
        let content = match content {
            Ok(content) => content,
            Err(fault) => {
                let fence = lease.fence.clone();
                self.refuse(fence, fault);
                return;
            }
        };
        if content.chunks() == 0 {
            self.handed_back(job_id, seq);
            return;
        }
        let whole = content.chunks() >= chunks;
        let trace = lease.of.trace;
        let span =
            self.dispatch
                .tracer
                .child(trace.as_ref(), "persist", SpanKind::Internal, || {
                    [
                        KeyValue::new("weir.batch.seq", seq),
                        KeyValue::new("weir.chunks.embedded", content.embedded.len() as i64),
                        KeyValue::new("weir.chunks.rejected", content.rejected.len() as i64),
                    ]
                });
        let outcome = Outcome {
            fence: lease.fence.clone(),
            embedded: content.embedded,
            rejected: content.rejected,
            complete: true,
            may_be_first: self.worker.namespaces().is_none(),
        };
        let written = work::Answered {
            lease: outcome.fence.lease,
            seq,
            whole,
            embedded: outcome.embedded.len(),
        };
        self.begin(|dispatch| work::persist(dispatch, written, outcome, trace, span));
    }

    /// Takes back a part of which nothing was embedded.
    fn handed_back(&mut self, job_id: i64, seq: i64) {
        if let Some(lease) = self.leases.get_mut(&job_id) {
            lease.settled(seq, false);
        }
        self.parts.remove(&seq);
        self.say(ToWorker::Ack(vec![(seq, 0)]));
    }

    /// Begins to go on with the leases of which the worker holds parts. Each waits for
    /// itself alone, and its results with it.
    pub(super) fn take_up(&mut self, held: Vec<HeldLease>) {
        let sizes = self.models.values().map(|model| model.batch_size);
        let batch_size = i32::try_from(sizes.max().unwrap_or(1)).unwrap_or(i32::MAX);
        for held in held {
            let job_id = held.fence.lease.job_id;
            for part in &held.parts {
                self.parts.insert(part.seq, job_id);
            }
            self.taking_up.insert(job_id, Vec::new());
            let opening = Opening {
                fence: held.fence.clone(),
                batch_size,
                session: Some(self.place.session()),
            };
            self.begin(|dispatch| work::take_up(dispatch, held, opening));
        }
    }
}

pub(super) fn unknown_model(field: &str) -> End {
    End::breach(field, "is not a model that the session was opened with")
}
