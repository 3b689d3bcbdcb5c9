//! The end of a lease that did not finish its job.

use std::time::Duration;

use backon::Retryable as _;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::{
    backoff,
    coordinator::{CallError, Coordinator, HandBack, Lease},
};

/// How long it is tried to hand a job back. After that its lease runs out.
const HAND_BACK_LIMIT: Duration = Duration::from_secs(5);

/// Hands a job back, and says when that did not work: then its lease runs out.
pub(super) async fn hand_back(
    coordinator: &Coordinator,
    lease: &Lease,
    how: HandBack,
    reason: &str,
) {
    let retry = backoff::waits(Duration::from_millis(100), Duration::from_secs(1));
    let attempts = (|| coordinator.hand_back(lease, how, reason))
        .retry(retry)
        .when(|error| matches!(error, CallError::Unavailable(_)));
    match timeout(HAND_BACK_LIMIT, attempts).await {
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
