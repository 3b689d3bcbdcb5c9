//! Workers as JSON.

use serde::Serialize;
use weir_proto::v1;

use super::{all, time};

/// A worker that is connected: `weir.v1.Worker`.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the contract names the fields")]
pub(crate) struct Worker {
    pub(crate) worker_id: String,
    pub(crate) version: String,
    pub(crate) replica: String,
    pub(crate) connect_time: Option<String>,
    pub(crate) draining: bool,
    pub(crate) models: Vec<WorkerModel>,
    pub(crate) age_seconds: f64,
}

/// A model that it embeds with: `weir.v1.WorkerModel`.
#[derive(Debug, Serialize)]
pub(crate) struct WorkerModel {
    pub(crate) name: String,
    pub(crate) state: &'static str,
    pub(crate) reason: String,
    pub(crate) since_time: Option<String>,
    /// Unset while it is not known.
    pub(crate) dimension: Option<i32>,
    /// Unset where it is not known.
    pub(crate) longest_input: Option<i32>,
    pub(crate) chunks_in_hand: i64,
    pub(crate) chunks_per_second: f64,
}

impl From<&v1::Worker> for Worker {
    fn from(worker: &v1::Worker) -> Self {
        Self {
            worker_id: worker.worker_id.clone(),
            version: worker.version.clone(),
            replica: worker.replica.clone(),
            connect_time: time(worker.connect_time),
            draining: worker.draining,
            models: all(&worker.models),
            age_seconds: worker.age_seconds,
        }
    }
}

impl From<&v1::WorkerModel> for WorkerModel {
    fn from(model: &v1::WorkerModel) -> Self {
        let known = |number: i32| (number != 0).then_some(number);
        Self {
            name: model.name.clone(),
            state: embedder_state(model.state()),
            reason: model.reason.clone(),
            since_time: time(model.since_time),
            dimension: known(model.dimension),
            longest_input: known(model.longest_input),
            chunks_in_hand: model.chunks_in_hand,
            chunks_per_second: model.chunks_per_second,
        }
    }
}

/// The state of an embedder in one word.
pub(crate) fn embedder_state(state: v1::EmbedderState) -> &'static str {
    match state {
        v1::EmbedderState::Unspecified => "untried",
        v1::EmbedderState::Fit => "fit",
        v1::EmbedderState::Resting => "resting",
        v1::EmbedderState::Down => "down",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_worker_reads_as_in_the_contract() {
        let worker = v1::Worker {
            worker_id: "w".into(),
            models: vec![v1::WorkerModel {
                name: "m".into(),
                state: v1::EmbedderState::Down.into(),
                reason: "refused".into(),
                dimension: 8,
                chunks_in_hand: 3,
                ..v1::WorkerModel::default()
            }],
            ..v1::Worker::default()
        };
        assert_eq!(
            serde_json::to_value(Worker::from(&worker)).unwrap(),
            json!({
                "worker_id": "w", "version": "", "replica": "", "connect_time": null, "draining": false,
                "models": [{
                    "name": "m", "state": "down", "reason": "refused", "since_time": null, "dimension": 8,
                    "longest_input": null, "chunks_in_hand": 3, "chunks_per_second": 0.0,
                }],
                "age_seconds": 0.0,
            })
        );
    }
}
