//! `weir workers`: who is connected, and how their embedders are.

use std::time::SystemTime;

use clap::Args;
use serde::Serialize;
use weir_proto::v1::{self, EmbedderState};

use crate::{
    connect::Session,
    failure::Failure,
    output::{self, ago},
    page,
    table::{Cell, Tone, table},
    view,
};

/// What `weir workers` understands.
#[derive(Debug, Args)]
pub(crate) struct WorkersArgs {
    /// Only the workers that embed with this model.
    #[arg(long)]
    model: Option<String>,
    /// Most workers to list.
    #[arg(long, default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

/// Lists the workers that are connected, by name.
pub(crate) async fn workers(session: &Session, args: WorkersArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        workers: Vec<view::Worker>,
    }

    let mut client = session.jobs();
    let workers = page::gather(args.limit as usize, async |page_size, page_token| {
        let request = v1::ListWorkersRequest {
            model: args.model.clone().unwrap_or_default(),
            page_size,
            page_token,
            read_mask: None,
        };
        let page = client.list_workers(request).await?.into_inner();
        Ok((page.workers, page.next_page_token))
    })
    .await?;
    if session.json {
        return Ok(output::json(&Answer {
            workers: view::all(&workers),
        })?);
    }
    if workers.is_empty() {
        return Ok(output::line("No workers are connected.")?);
    }
    let now = SystemTime::now();
    Ok(output::fitting(&worker_table(
        &workers,
        args.model.as_deref(),
        now,
    ))?)
}

/// Workers as a table: a line for each model, or for the one that was asked for.
fn worker_table(workers: &[v1::Worker], model: Option<&str>, now: SystemTime) -> String {
    let rows: Vec<_> = workers
        .iter()
        .flat_map(|worker| worker.models.iter().map(move |it| (worker, it)))
        .filter(|(_, it)| model.is_none_or(|model| it.name == model))
        .map(|(worker, it)| row(worker, it, now))
        .collect();
    table(
        [
            "WORKER",
            "SINCE",
            "MODEL",
            "STATE",
            ">IN HAND",
            ">CHUNKS/S",
            "VERSION",
            "NOTE",
        ],
        &rows,
    )
}

fn row(worker: &v1::Worker, model: &v1::WorkerModel, now: SystemTime) -> [Cell; 8] {
    [
        worker.worker_id.as_str().into(),
        ago(worker.connect_time, now).into(),
        model.name.as_str().into(),
        Cell::toned(view::embedder_state(model.state()), tone(model.state())),
        model.chunks_in_hand.into(),
        format!("{:.1}", model.chunks_per_second).into(),
        worker.version.as_str().into(),
        note(worker, model, now).into(),
    ]
}

/// How an embedder's state is meant.
fn tone(state: EmbedderState) -> Tone {
    match state {
        EmbedderState::Fit => Tone::Good,
        EmbedderState::Resting => Tone::Doubtful,
        EmbedderState::Down => Tone::Bad,
        EmbedderState::Unspecified => Tone::Plain,
    }
}

/// What there is to say beyond the state: that the worker is to stop, and since
/// when its embedder does not embed, and why.
fn note(worker: &v1::Worker, model: &v1::WorkerModel, now: SystemTime) -> String {
    let embedder = match model.state() {
        EmbedderState::Fit | EmbedderState::Unspecified => None,
        EmbedderState::Resting | EmbedderState::Down => {
            let since = format!("since {}", ago(model.since_time, now));
            Some(if model.reason.is_empty() {
                since
            } else {
                format!("{since}: {}", model.reason)
            })
        }
    };
    let draining = worker.draining.then(|| "draining".to_owned());
    let parts: Vec<_> = [draining, embedder].into_iter().flatten().collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::printable::{HOSTILE, assert_harmless};

    fn model(name: &str, state: EmbedderState, reason: &str, now: SystemTime) -> v1::WorkerModel {
        v1::WorkerModel {
            name: name.into(),
            state: state.into(),
            reason: reason.into(),
            since_time: Some((now - Duration::from_secs(12)).into()),
            chunks_in_hand: 64,
            chunks_per_second: 2.25,
            ..v1::WorkerModel::default()
        }
    }

    fn worker(name: &str, models: Vec<v1::WorkerModel>, now: SystemTime) -> v1::Worker {
        v1::Worker {
            worker_id: name.into(),
            version: "0.1.0".into(),
            connect_time: Some((now - Duration::from_secs(61)).into()),
            models,
            ..v1::Worker::default()
        }
    }

    #[test]
    fn each_model_of_a_worker_tells_how_its_embedder_is() {
        let now = SystemTime::now();
        let small = model("small", EmbedderState::Fit, "", now);
        let large = model("large", EmbedderState::Down, "connection refused", now);
        let resting = model("large", EmbedderState::Resting, "", now);
        let draining = v1::Worker {
            draining: true,
            ..worker("b", vec![resting], now)
        };
        let workers = [worker("a", vec![small, large], now), draining];
        assert_eq!(
            worker_table(&workers, None, now),
            "WORKER  SINCE           MODEL  STATE    IN HAND  CHUNKS/S  VERSION  NOTE\n\
             a       1 min 01 s ago  small  fit           64       2.2  0.1.0\n\
             a       1 min 01 s ago  large  down          64       2.2  0.1.0    since 12 s ago: connection refused\n\
             b       1 min 01 s ago  large  resting       64       2.2  0.1.0    draining; since 12 s ago"
        );
        let of_one = worker_table(&workers, Some("small"), now);
        assert_eq!(of_one.lines().count(), 2, "{of_one}");
    }

    #[test]
    fn a_hostile_name_is_harmless() {
        let now = SystemTime::now();
        let model = model(HOSTILE, EmbedderState::Down, HOSTILE, now);
        let worker = v1::Worker {
            version: HOSTILE.into(),
            ..worker(HOSTILE, vec![model], now)
        };
        assert_harmless(&worker_table(&[worker], None, now));
    }
}
