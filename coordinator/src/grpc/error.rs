//! The one table from faults to status codes. Causes are logged here, once, and
//! never sent.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{
    ingest::IngestError,
    store::{StoreError, Violation},
};

/// `INVALID_ARGUMENT` that names each field and its fault, in the message and
/// as a `google.rpc.BadRequest`.
pub(crate) fn invalid(violations: Vec<Violation>) -> Status {
    let message = violations
        .iter()
        .map(|violation| format!("{}: {}", violation.field, violation.message))
        .collect::<Vec<_>>()
        .join("; ");
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
            StoreError::Precondition(message) => Self::failed_precondition(message),
            StoreError::Invalid(violations) => invalid(violations),
            StoreError::Unavailable(cause) => {
                tracing::warn!(%cause, "The database is unavailable.");
                Self::unavailable("the database is unavailable; try again")
            }
            StoreError::Internal(cause) => {
                tracing::error!(%cause, "A call failed on a fault of the coordinator.");
                Self::internal("internal error; the coordinator's log has the cause")
            }
        }
    }
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
