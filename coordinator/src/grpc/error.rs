//! The one table from faults to status codes. Causes are logged here, once, and
//! never sent.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{
    ingest::IngestError,
    store::{StoreError, Violation},
};

/// How often it is said that calls fail for want of the database.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Most bytes that the faults of one answer say. A status travels in headers,
/// of which many clients take 8 KiB, and these bytes are in it three times:
/// percent-encoded, and twice in base64.
const MAX_FAULT_BYTES: usize = 1_200;

/// `INVALID_ARGUMENT` that names each field and its fault, in the message and
/// as a `google.rpc.BadRequest`; the first ones where there are very many.
pub(crate) fn invalid(mut violations: Vec<Violation>) -> Status {
    let mut room = MAX_FAULT_BYTES;
    let mut told = 0;
    for violation in &mut violations {
        let bytes = violation.field.len() + violation.message.len();
        if bytes > room {
            if told > 0 {
                break;
            }
            let end = room.saturating_sub(violation.field.len());
            let end = violation.message.floor_char_boundary(end);
            violation.message.truncate(end);
        }
        room = room.saturating_sub(bytes);
        told += 1;
    }
    let untold = violations.len() - told;
    violations.truncate(told);
    let mut message = violations
        .iter()
        .map(|violation| format!("{}: {}", violation.field, violation.message))
        .collect::<Vec<_>>()
        .join("; ");
    if untold > 0 {
        message.push_str("; and more of the kind");
    }
    let details = ErrorDetails::with_bad_request(
        violations
            .into_iter()
            .map(|violation| FieldViolation::new(violation.field, violation.message))
            .collect::<Vec<_>>(),
    );
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// `INVALID_ARGUMENT` for one field.
pub(crate) fn invalid_field(field: impl Into<String>, message: impl Into<String>) -> Status {
    invalid(vec![Violation::new(field, message)])
}

/// The status of a document that could not be read.
pub(crate) fn unreadable(field: &str, error: &IngestError) -> Status {
    invalid_field(field, error.to_string())
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(message) => Self::not_found(message),
            StoreError::LeaseLost { why, .. } => Self::aborted(format!("lease lost: {why}")),
            StoreError::Denied(message) => Self::permission_denied(message),
            StoreError::Precondition(message) | StoreError::NoDimension(message) => {
                Self::failed_precondition(message)
            }
            StoreError::Aborted(message) => Self::aborted(message),
            StoreError::Exhausted(message) => Self::resource_exhausted(message),
            StoreError::Invalid(violations) => invalid(violations),
            StoreError::Locked(message) => Self::unavailable(message),
            StoreError::Unavailable(cause) => {
                if is_worth_saying() {
                    tracing::warn!(%cause, "Calls fail because the database is unavailable.");
                } else {
                    tracing::debug!(%cause, "A call failed because the database is unavailable.");
                }
                Self::unavailable("the database is unavailable; try again")
            }
            StoreError::Internal(cause) => {
                tracing::error!(%cause, "A call failed on a fault of the coordinator.");
                Self::internal("internal error; the coordinator's log has the cause")
            }
        }
    }
}

/// While the database is away every call fails, and workers call again and
/// again: it is said once in a while.
fn is_worth_saying() -> bool {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let worth = said.is_none_or(|said| said.elapsed() >= SAY_AGAIN);
    if worth {
        *said = Some(Instant::now());
    }
    worth
}

/// What calls and streams are told when this replica stops.
pub(crate) fn going_away() -> Status {
    Status::unavailable("this coordinator is stopping; call again, on any replica")
}

/// A query that does not serialize, which no query of ours can.
pub(crate) fn unusable_query(cause: &serde_json::Error) -> Status {
    tracing::error!(%cause, "A page token could not be made.");
    Status::internal("internal error; the coordinator's log has the cause")
}
