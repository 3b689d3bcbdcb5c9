//! Messages over the limit: the transport refuses them before a service sees
//! them, with `OUT_OF_RANGE`; clients are to get `RESOURCE_EXHAUSTED`.

use http::{HeaderValue, Response};
use tonic::Status;

/// How the transport begins its refusal.
const REFUSAL: &str = "Error, decoded message length too large";

/// Puts the right code on a refusal that is still in the response's headers.
pub(crate) fn relabel<B>(mut response: Response<B>) -> Response<B> {
    let headers = response.headers_mut();
    let refused = headers.get("grpc-status").is_some_and(|code| code == "11")
        && headers
            .get("grpc-message")
            .and_then(|message| message.to_str().ok())
            .is_some_and(|message| message.replace("%20", " ").starts_with(REFUSAL));
    if refused {
        // 8 is RESOURCE_EXHAUSTED.
        headers.insert("grpc-status", HeaderValue::from_static("8"));
    }
    response
}

/// The same for a status in the middle of a stream.
pub(crate) fn relabel_status(status: Status) -> Status {
    if status.code() == tonic::Code::OutOfRange && status.message().starts_with(REFUSAL) {
        return Status::resource_exhausted(status.message());
    }
    status
}
