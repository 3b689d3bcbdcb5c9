//! Who is connected: the sessions of all replicas, and what they tell of their
//! embedders.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tonic::Status;
use weir_proto::v1;

use super::{Services, auth::Caller, convert::timestamp, door::Door, mask::Mask, page};
use crate::store::workers::{
    EmbedderState, SessionModel, Worker, WorkerFilter, WorkerPosition, session_grace,
};

/// Lists the workers that are connected.
pub(super) async fn workers(
    services: &Services,
    caller: &Caller,
    request: v1::ListWorkersRequest,
) -> Result<v1::ListWorkersResponse, Status> {
    let mut door = Door::default();
    let model = door.any_model(request.model);
    let mask = Mask::read(&mut door, request.read_mask, "weir.v1.Worker");
    let limit = door.page_size(request.page_size);
    door.close()?;
    let scope = caller.scope();
    let query = ("workers", &scope, &model);
    let after: Option<WorkerPosition> = page::position(&query, &request.page_token)?;
    let filter = WorkerFilter {
        scope: &scope,
        model: model.as_deref(),
        touched_within: session_grace(services.dispatch.orphan_grace),
    };
    let found = services
        .store
        .workers(&filter, after.as_ref(), limit)
        .await?;
    let next_page_token = match found.last() {
        Some(last) if found.len() as i64 == limit => {
            page::token(&query, &(&last.worker_id, &last.session))?
        }
        _ => String::new(),
    };
    let mut workers: Vec<v1::Worker> = found.into_iter().map(Into::into).collect();
    if let Some(mask) = mask {
        workers = mask.apply_all(&workers)?;
    }
    Ok(v1::ListWorkersResponse {
        workers,
        next_page_token,
    })
}

impl From<Worker> for v1::Worker {
    fn from(worker: Worker) -> Self {
        let told = worker.touched_at;
        Self {
            worker_id: worker.worker_id,
            version: worker.version,
            replica: worker.replica,
            connect_time: Some(timestamp(worker.connected_at)),
            draining: worker.draining,
            models: worker
                .models
                .0
                .into_iter()
                .map(|it| model(it, told))
                .collect(),
            age_seconds: worker.age_seconds,
        }
    }
}

/// What was told of a model at this time.
fn model(model: SessionModel, told: DateTime<Utc>) -> v1::WorkerModel {
    let since = told.checked_sub_signed(
        chrono::TimeDelta::from_std(Duration::from_millis(model.in_state_ms)).unwrap_or_default(),
    );
    let condition = model.condition;
    v1::WorkerModel {
        name: model.name,
        state: v1::EmbedderState::from(condition.state).into(),
        reason: condition.reason,
        since_time: since.map(timestamp),
        dimension: condition.dimension.unwrap_or_default(),
        longest_input: condition.longest_input.unwrap_or_default(),
        chunks_in_hand: i64::try_from(model.chunks_in_hand).unwrap_or(i64::MAX),
        chunks_per_second: model.chunks_per_second,
    }
}

impl From<EmbedderState> for v1::EmbedderState {
    fn from(state: EmbedderState) -> Self {
        match state {
            EmbedderState::Untried => Self::Unspecified,
            EmbedderState::Fit => Self::Fit,
            EmbedderState::Resting => Self::Resting,
            EmbedderState::Down => Self::Down,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_told_since_it_began() {
        let told = DateTime::from_timestamp(1_000, 0).unwrap();
        let wire = model(
            SessionModel {
                in_state_ms: 1_500,
                ..SessionModel::default()
            },
            told,
        );
        let since = wire.since_time.unwrap();
        assert_eq!((since.seconds, since.nanos), (998, 500_000_000));
        // Whatever a row says, an answer comes.
        let absurd = SessionModel {
            in_state_ms: u64::MAX,
            chunks_in_hand: u64::MAX,
            ..SessionModel::default()
        };
        assert_eq!(model(absurd, told).chunks_in_hand, i64::MAX);
    }
}
