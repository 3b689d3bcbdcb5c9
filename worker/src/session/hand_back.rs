//! The end of a lease that did not finish its job.

use std::time::Duration;

use backon::Retryable as _;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::{
    backoff,
    coordinator::{CallError, Coordinator, HandBack, Lease},
    plan::BatchResult,
};

/// How long it is tried to hand a job back. After that its lease runs out.
const HAND_BACK_LIMIT: Duration = Duration::from_secs(5);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Hands a job back, after the results that were embedded and not acknowledged,
/// so that nobody has to embed them again. Says when that did not work: then
/// its lease runs out.
pub(super) async fn hand_back(
    coordinator: &Coordinator,
    lease: &Lease,
    results: &[BatchResult],
    how: HandBack,
    reason: &str,
) {
    let handing_back = async {
        for result in results {
            let persisted = patiently(|| coordinator.upsert(lease, result)).await;
            if let Err(CallError::Refused(reason)) = persisted {
                warn!(reason, "The coordinator refused a result; it is dropped.");
            } else {
                persisted?;
            }
        }
        patiently(|| coordinator.hand_back(lease, how, reason)).await
    };
    match timeout(HAND_BACK_LIMIT, handing_back).await {
        Ok(Ok(())) => {}
        // It ended, or an attempt whose answer was lost went through.
        Ok(Err(CallError::LeaseLost(reason))) => {
            debug!(
                reason,
                "The lease had ended before the job was handed back."
            );
        }
        Ok(Err(error)) => {
            warn!(%error, "The job could not be handed back; its lease will run out.");
        }
        Err(_) => warn!("The job could not be handed back in time; its lease will run out."),
    }
}

/// Calls again while the coordinator is away.
async fn patiently<F: Future<Output = Result<(), CallError>>>(
    call: impl FnMut() -> F,
) -> Result<(), CallError> {
    call.retry(backoff::waits(FIRST_WAIT, LONGEST_WAIT))
        .when(|error| matches!(error, CallError::Unavailable(_)))
        .await
}
