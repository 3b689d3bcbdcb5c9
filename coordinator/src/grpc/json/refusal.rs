//! A status as HTTP and JSON have it.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::grpc::auth::http_headers;

/// A call that was refused or failed.
pub(super) struct Refusal {
    http: StatusCode,
    status: Box<Status>,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self {
            http: http_status(status.code()),
            status: Box::new(status),
        }
    }
}

impl Refusal {
    /// The body is of another type than JSON.
    pub(super) fn unsupported_type() -> Self {
        let reason = "the request must be of the type application/json";
        Self {
            http: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            status: Box::new(Status::invalid_argument(reason)),
        }
    }

    /// A stream was posted, or a call with one answer was got.
    pub(super) fn wrong_method(streaming: bool) -> Self {
        let reason = if streaming {
            "this call streams its answers: GET it, with ?request={…}"
        } else {
            "this call has one answer: POST its request"
        };
        Self {
            http: StatusCode::METHOD_NOT_ALLOWED,
            status: Box::new(Status::invalid_argument(reason)),
        }
    }

    /// `code` as gRPC names it, `message`, and `violations` by field.
    pub(super) fn to_json(&self) -> Value {
        let details = self.status.get_details_bad_request();
        let violations = details.map(|it| it.field_violations).unwrap_or_default();
        let violations = violations
            .into_iter()
            .map(|it| json!({ "field": it.field, "message": it.description }));
        json!({
            "code": name(self.status.code()),
            "message": self.status.message(),
            "violations": violations.collect::<Vec<_>>(),
        })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let more = http_headers(&self.status);
        let mut answer = (self.http, Json(self.to_json())).into_response();
        if let Some((name, value)) = more {
            answer.headers_mut().insert(name, value);
        }
        answer
    }
}

/// The code and the HTTP status that `google/rpc/code.proto` gives it.
fn table(code: Code) -> (&'static str, StatusCode) {
    match code {
        Code::Ok => ("OK", StatusCode::OK),
        Code::Cancelled => (
            "CANCELLED",
            StatusCode::from_u16(499).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        ),
        Code::Unknown => ("UNKNOWN", StatusCode::INTERNAL_SERVER_ERROR),
        Code::InvalidArgument => ("INVALID_ARGUMENT", StatusCode::BAD_REQUEST),
        Code::DeadlineExceeded => ("DEADLINE_EXCEEDED", StatusCode::GATEWAY_TIMEOUT),
        Code::NotFound => ("NOT_FOUND", StatusCode::NOT_FOUND),
        Code::AlreadyExists => ("ALREADY_EXISTS", StatusCode::CONFLICT),
        Code::PermissionDenied => ("PERMISSION_DENIED", StatusCode::FORBIDDEN),
        Code::ResourceExhausted => ("RESOURCE_EXHAUSTED", StatusCode::TOO_MANY_REQUESTS),
        Code::FailedPrecondition => ("FAILED_PRECONDITION", StatusCode::BAD_REQUEST),
        Code::Aborted => ("ABORTED", StatusCode::CONFLICT),
        Code::OutOfRange => ("OUT_OF_RANGE", StatusCode::BAD_REQUEST),
        Code::Unimplemented => ("UNIMPLEMENTED", StatusCode::NOT_IMPLEMENTED),
        Code::Internal => ("INTERNAL", StatusCode::INTERNAL_SERVER_ERROR),
        Code::Unavailable => ("UNAVAILABLE", StatusCode::SERVICE_UNAVAILABLE),
        Code::DataLoss => ("DATA_LOSS", StatusCode::INTERNAL_SERVER_ERROR),
        Code::Unauthenticated => ("UNAUTHENTICATED", StatusCode::UNAUTHORIZED),
    }
}

fn name(code: Code) -> &'static str {
    table(code).0
}

fn http_status(code: Code) -> StatusCode {
    table(code).1
}
