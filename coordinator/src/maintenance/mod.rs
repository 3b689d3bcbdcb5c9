//! Work that belongs to no call: each job of it is a timer around a public
//! one-step body, and runs in every replica without a leader.

pub(crate) mod database;
pub(crate) mod models;
pub mod prompts;
pub mod reconciler;
pub mod rescuer;
pub mod retention;
pub mod sampler;
pub mod steps;
pub mod sweeper;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::StoreError;

/// Runs `step` every `period` until `shutdown`. A step that returns `true` left
/// work behind and runs again at once. Errors are logged when they begin and
/// when they end, not each time.
pub(crate) async fn every(
    name: &'static str,
    period: Duration,
    shutdown: CancellationToken,
    mut step: impl AsyncFnMut() -> Result<bool, StoreError>,
) {
    let mut failing = false;
    loop {
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = step() => outcome,
        };
        match &outcome {
            Err(error) if !failing => {
                tracing::warn!(
                    task = name,
                    error = error as &dyn std::error::Error,
                    "A maintenance task fails; it goes on trying."
                );
            }
            Ok(_) if failing => tracing::info!(task = name, "A maintenance task works again."),
            _ => {}
        }
        failing = outcome.is_err();
        if matches!(outcome, Ok(true)) {
            continue;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
    }
}
