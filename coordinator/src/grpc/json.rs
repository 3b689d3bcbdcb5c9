//! The client services once more as JSON over plain HTTP, for pages and for
//! `curl`: `POST /api/JobService/ListJobs` with the request as JSON, and
//! `GET /api/JobService/WatchSource?request={…}` as server-sent events.
//!
//! Each call is translated by its descriptor (proto3's own mapping to JSON) and
//! made on the gRPC service itself, in this process: whatever holds for that
//! call holds for this one.

mod codec;
mod refusal;

use std::{convert::Infallible, sync::Arc};

use anyhow::Context as _;
use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Query, State},
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use futures::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderName, Uri, header, uri::PathAndQuery};
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, SerializeOptions, Value};
use serde::Deserialize;
use tonic::{Code, Request, Status, Streaming, client::Grpc, metadata::MetadataMap};
use weir_proto::{
    limits::{MAX_CLIENT_MESSAGE_BYTES, MAX_MESSAGE_PARTS},
    v1::FILE_DESCRIPTOR_SET,
};

use self::{codec::DynamicCodec, refusal::Refusal};
use super::auth::Caller;

/// The services that are served this way.
const SERVICES: [&str; 3] = ["JobService", "SearchService", "SourceService"];

/// What of a caller's headers goes on with the call.
const PASSED_ON: [HeaderName; 2] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// Where a stream that broke goes on, in a request and in each answer.
const CURSOR: &str = "cursor";

#[derive(Clone)]
struct Gateway {
    pool: DescriptorPool,
    services: Router,
}

/// A request in a URL, for what can send no body.
#[derive(Deserialize)]
struct InUrl {
    #[serde(default)]
    request: String,
}

/// The routes below `/api`, which call `services`.
pub(crate) fn router(services: Router) -> anyhow::Result<Router> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).context("our own descriptors")?;
    Ok(Router::new()
        .route("/api/{service}/{method}", get(watch).post(call))
        .layer(DefaultBodyLimit::max(MAX_CLIENT_MESSAGE_BYTES))
        .with_state(Arc::new(Gateway { pool, services })))
}

/// A call with one answer.
async fn call(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    // What a form of another site can send without asking is none of this type.
    let kind = headers
        .get(header::CONTENT_TYPE)
        .map(http::HeaderValue::as_bytes);
    if !kind.is_some_and(|kind| kind.starts_with(b"application/json")) {
        return Err(Refusal::unsupported_type());
    }
    let method = gateway.method(uri.path(), false)?;
    let message = parse(&method, &body)?;
    let mut client = Grpc::new(gateway.services.clone());
    ready(&mut client).await?;
    let answer = client
        .unary(
            request(message, &headers, caller),
            path(&method)?,
            codec(&method),
        )
        .await?;
    Ok(Json(json(answer.get_ref())?).into_response())
}

/// A call with many answers.
async fn watch(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
    Query(InUrl { request: text }): Query<InUrl>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let method = gateway.method(uri.path(), true)?;
    let text = if text.is_empty() { "{}" } else { &text };
    let mut message = parse(&method, text.as_bytes())?;
    // A browser that was cut off says what it had last.
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    if let (Some(id), Some(cursor)) = (last, method.input().get_field_by_name(CURSOR)) {
        message.set_field(&cursor, Value::String(id.to_owned()));
    }
    let mut client = Grpc::new(gateway.services.clone());
    ready(&mut client).await?;
    let answers = client
        .server_streaming(
            request(message, &headers, caller),
            path(&method)?,
            codec(&method),
        )
        .await?;
    let events = events(answers.into_inner());
    let events = Sse::new(events).keep_alive(KeepAlive::default());
    Ok(events.into_response())
}

impl Gateway {
    /// The method that a path names. It is taken as it was sent, as the gate
    /// takes it: decoded, what the gate knows by one name would have many.
    fn method(&self, path: &str, streaming: bool) -> Result<MethodDescriptor, Refusal> {
        let names = path.strip_prefix("/api/");
        let names = names.and_then(|names| names.split_once('/'));
        let (service, method) = names.unwrap_or_default();
        let unknown = || Status::unimplemented(format!("there is no call {service}/{method}"));
        if !SERVICES.contains(&service) {
            return Err(unknown().into());
        }
        let found = self.pool.get_service_by_name(&format!("weir.v1.{service}"));
        let found = found.and_then(|it| it.methods().find(|it| it.name() == method));
        let found = found.ok_or_else(unknown)?;
        if found.is_client_streaming() {
            let reason = format!("{service}/{method} takes a stream, which is gRPC only");
            return Err(Status::unimplemented(reason).into());
        }
        if found.is_server_streaming() != streaming {
            return Err(Refusal::wrong_method(found.is_server_streaming()));
        }
        Ok(found)
    }
}

/// A call that was refused before it came here.
pub(super) fn refuse(status: Status) -> Response {
    Refusal::from(status).into_response()
}

pub(super) fn parse(method: &MethodDescriptor, text: &[u8]) -> Result<DynamicMessage, Status> {
    if parts_of(text) > MAX_MESSAGE_PARTS {
        return Err(Status::resource_exhausted(format!(
            "the request has more than {MAX_MESSAGE_PARTS} values; send its items in several"
        )));
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    let message = DynamicMessage::deserialize(method.input(), &mut json);
    let message = message.and_then(|message| json.end().map(|()| message));
    message.map_err(|error| {
        Status::invalid_argument(format!(
            "the request is no {} in JSON: {error}",
            method.input().name()
        ))
    })
}

/// The same call within: of the same caller, who is not asked twice.
fn request(
    message: DynamicMessage,
    headers: &HeaderMap,
    caller: Option<Extension<Caller>>,
) -> Request<DynamicMessage> {
    let mut request = Request::new(message);
    if let Some(Extension(caller)) = caller {
        request.extensions_mut().insert(caller);
    }
    let passed_on = PASSED_ON.into_iter().filter_map(|name| {
        let value = headers.get(&name)?.clone();
        Some((name, value))
    });
    *request.metadata_mut() = MetadataMap::from_headers(passed_on.collect());
    request
}

/// How many values a text in JSON has at most: what opens or separates one,
/// outside of strings. As with messages in bytes, two characters may become a
/// hundred bytes.
fn parts_of(text: &[u8]) -> usize {
    let (mut parts, mut in_string, mut escaped) = (0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b',' | b'{' | b'[' if !in_string => parts += 1,
            _ => {}
        }
    }
    parts
}

async fn ready(client: &mut Grpc<Router>) -> Result<(), Status> {
    let ready = client.ready().await;
    ready.map_err(|never: Infallible| match never {})
}

fn path(method: &MethodDescriptor) -> Result<PathAndQuery, Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    path.parse()
        .map_err(|_| Status::internal("a method's name is no path"))
}

fn codec(method: &MethodDescriptor) -> DynamicCodec {
    DynamicCodec(method.output())
}

/// An event for each answer, and `end` after the last. When this replica stops,
/// or the database is away, nothing is said: a browser then asks again.
fn events(answers: Streaming<DynamicMessage>) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some(answers), async |answers| {
        let mut answers = answers?;
        let answer = match answers.message().await {
            Ok(Some(answer)) => event(&answer),
            Ok(None) => return Some((Event::default().event("end").data("{}"), None)),
            Err(status) => Err(status),
        };
        match answer {
            Ok(event) => Some((event, Some(answers))),
            Err(status) if status.code() == Code::Unavailable => None,
            Err(status) => {
                let said = Refusal::from(status).to_json().to_string();
                Some((Event::default().event("failed").data(said), None))
            }
        }
    })
    .map(Ok)
}

fn event(answer: &DynamicMessage) -> Result<Event, Status> {
    let mut event = Event::default().data(json(answer)?.to_string());
    let cursor = answer.get_field_by_name(CURSOR);
    if let Some(cursor) = cursor.as_deref().and_then(Value::as_str) {
        event = event.id(cursor);
    }
    Ok(event)
}

/// Every field is there, so that who reads it need not know what it is when it
/// is missing; 64-bit numbers are strings, as proto3 has it.
pub(super) fn json(message: &DynamicMessage) -> Result<serde_json::Value, Status> {
    let options = SerializeOptions::new().skip_default_fields(false);
    let json = message.serialize_with_options(serde_json::value::Serializer, &options);
    json.map_err(|error| Status::internal(format!("the answer has no JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_and_what_is_in_strings_is_not() {
        for (text, parts) in [
            (r"{}", 1),
            (r#"{"items":[{},{},{}]}"#, 7),
            (r#"{"a":"[{,\",{"}"#, 1),
            (r#"{"a":"x\\","b":1}"#, 2),
        ] {
            assert_eq!(parts_of(text.as_bytes()), parts, "{text}");
        }
    }
}
