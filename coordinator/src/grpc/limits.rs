//! Messages that the transport refuses before a service sees them: those over
//! the limit with `OUT_OF_RANGE`, where clients are to get `RESOURCE_EXHAUSTED`,
//! and those that do not decode, such as texts that are not UTF-8, with
//! `INTERNAL`, where they are to get `INVALID_ARGUMENT`.

use http::{HeaderValue, Response};
use tonic::{Code, Status};

/// The transport's code, how its message begins, and the right code.
const REFUSALS: [(Code, &str, Code); 2] = [
    (
        Code::OutOfRange,
        "Error, decoded message length too large",
        Code::ResourceExhausted,
    ),
    (
        Code::Internal,
        "failed to decode Protobuf message",
        Code::InvalidArgument,
    ),
];

/// The right code of a refusal of the transport; `None` for any other status.
fn right_code(code: Code, message: &str) -> Option<Code> {
    REFUSALS
        .iter()
        .find(|(wrong, begins, _)| *wrong == code && message.starts_with(begins))
        .map(|(_, _, right)| *right)
}

/// Puts the right code on a refusal that is still in the response's headers.
pub(crate) fn relabel<B>(mut response: Response<B>) -> Response<B> {
    let headers = response.headers_mut();
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let right = text("grpc-status")
        .zip(text("grpc-message"))
        .and_then(|(code, message)| {
            let code = Code::from_bytes(code.as_bytes());
            right_code(code, &message.replace("%20", " "))
        });
    if let Some(right) = right {
        headers.insert("grpc-status", HeaderValue::from(right as i32));
    }
    response
}

/// The same for a status in the middle of a stream.
pub(crate) fn relabel_status(status: Status) -> Status {
    match right_code(status.code(), status.message()) {
        Some(right) => Status::new(right, status.message()),
        None => status,
    }
}
