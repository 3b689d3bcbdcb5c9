//! The client services once more as JSON over plain HTTP, for pages and for
//! `curl`: `POST /api/JobService/ListJobs` with the request as JSON, and
//! `GET /api/JobService/WatchSource?request={…}` as server-sent events.
//!
//! Each call is translated by its descriptor (proto3's own mapping to JSON) and
//! made on the gRPC service itself, in this process: whatever holds for that
//! call holds for this one.

mod codec;
mod refusal;
mod request;

use std::{convert::Infallible, sync::Arc};

use anyhow::Context as _;
use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use futures::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderName, Uri, header, uri::PathAndQuery};
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions,
};
use serde::Deserialize;
use tonic::{Code, Request, Status, Streaming, client::Grpc, metadata::MetadataMap};
use weir_proto::{
    gathered::Token,
    limits::{MAX_CLIENT_MESSAGE_BYTES, MAX_MESSAGE_PARTS},
    parts,
    v1::FILE_DESCRIPTOR_SET,
};

use self::{codec::RawCodec, refusal::Refusal};
use super::{
    admission::{self, Reader},
    auth::Caller,
    content::in_background,
    memory::{Hold, Memory},
};

/// The services that are served this way.
const SERVICES: [&str; 3] = ["JobService", "SearchService", "SourceService"];

/// What of a caller's headers goes on with the call.
const PASSED_ON: [HeaderName; 2] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// Where a stream that broke goes on, in a request and in each answer.
const CURSOR: &str = "cursor";

/// What a value of a request takes at most when it is encoded: a number in a
/// metadata.
const PART_BYTES: usize = 24;

/// How many times the memory of an answer it takes while it becomes JSON: a
/// kilobyte for each message.
const ANSWER_FACTOR: usize = 6;

/// Most memory that an answer may take then.
const MAX_ANSWER_BYTES: usize = 200 << 20;

/// An answer that takes less is made in a moment.
const SMALL_BYTES: usize = 256 << 10;

#[derive(Clone)]
struct Gateway {
    pool: DescriptorPool,
    services: Router,
    memory: Memory,
}

/// A request in a URL, for what can send no body.
#[derive(Deserialize)]
struct InUrl {
    #[serde(default)]
    request: String,
}

/// The routes below `/api`, which call `services`.
pub(crate) fn router(services: Router, memory: Memory) -> anyhow::Result<Router> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).context("our own descriptors")?;
    Ok(Router::new()
        .route("/api/{service}/{method}", get(watch).post(call))
        .with_state(Arc::new(Gateway {
            pool,
            services,
            memory,
        })))
}

/// A call with one answer.
async fn call(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    // What a form of another site can send without asking is none of this type.
    let kind = headers
        .get(header::CONTENT_TYPE)
        .map(http::HeaderValue::as_bytes);
    if !kind.is_some_and(|kind| kind.starts_with(b"application/json")) {
        return Err(Refusal::unsupported_type());
    }
    let method = gateway.method(uri.path(), false)?;
    let (token, held) = gateway.take_in(&method, &headers, body).await?;
    let mut client = Grpc::new(gateway.services.clone());
    ready(&mut client).await?;
    let message = Bytes::copy_from_slice(token.as_bytes());
    let answer = client
        .unary(request(message, &headers, caller), path(&method)?, RawCodec)
        .await?;
    drop(held);
    let answer = gateway.answer(&method, answer.into_inner()).await?;
    let kind = (header::CONTENT_TYPE, "application/json");
    Ok(([kind], answer).into_response())
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
    let mut message = encode(&method, text.as_bytes())?;
    // A browser that was cut off says what it had last; of a field that is there twice the last holds.
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    if let (Some(id), Some(cursor)) = (last, method.input().get_field_by_name(CURSOR)) {
        prost::encoding::string::encode(cursor.number(), &id.to_owned(), &mut message);
    }
    let mut client = Grpc::new(gateway.services.clone());
    ready(&mut client).await?;
    let answers = client
        .server_streaming(
            request(message.into(), &headers, caller),
            path(&method)?,
            RawCodec,
        )
        .await?;
    let events = events(gateway, method, answers.into_inner());
    let events = Sse::new(events).keep_alive(KeepAlive::default());
    Ok(events.into_response())
}

impl Gateway {
    /// Receives a request, encodes it and leaves it for the codec, each in memory
    /// that was taken for it. Held is what the call takes until its answer.
    async fn take_in(
        &self,
        method: &MethodDescriptor,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(Token, Hold), Status> {
        let len = headers.get(header::CONTENT_LENGTH);
        let len = len.and_then(|len| len.to_str().ok()?.parse().ok());
        if len.is_some_and(|len: usize| len > MAX_CLIENT_MESSAGE_BYTES) {
            return Err(too_long());
        }
        // A body that does not say how long it is may be the longest.
        let most = len.unwrap_or(MAX_CLIENT_MESSAGE_BYTES);
        let received = self.memory.to_receive(most).await?;
        let mut text = Vec::with_capacity(len.unwrap_or(0));
        let mut reader = Reader::new(tonic::body::Body::new(body));
        reader.read(&mut text, most, Some(&received)).await?;
        if !reader.is_at_end(&received).await? {
            return Err(too_long());
        }
        let (bytes, parts) = (text.len(), parts_of(&text));
        let encoding = self.memory.to_work(2 * bytes + PART_BYTES * parts).await?;
        let method = method.clone();
        let (message, needed) = in_background(move || {
            let message = encode(&method, &text)?;
            drop(text);
            let needed = admission::needed(method.input().full_name(), &message)?;
            Ok((message, needed))
        })
        .await?;
        drop(encoding);
        // It is in the memory that the text was in.
        let more = self
            .memory
            .to_receive_more(message.len().saturating_sub(bytes))?;
        let held = self.memory.to_work(needed).await?;
        let token = admission::leave(message.into(), (received, more));
        Ok((token, held))
    }

    /// An answer in JSON.
    async fn answer(&self, method: &MethodDescriptor, answer: Bytes) -> Result<Vec<u8>, Status> {
        let output = method.output();
        let needed = ANSWER_FACTOR * parts::memory(output.full_name(), &answer);
        if needed > MAX_ANSWER_BYTES {
            return Err(Status::resource_exhausted(
                "the answer is too large for JSON; ask for fewer entries, or call in gRPC",
            ));
        }
        let _held = self.memory.to_work(needed).await?;
        if needed < SMALL_BYTES {
            return json(&output, &answer);
        }
        in_background(move || json(&output, &answer)).await
    }

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

/// The encoded message of a request in JSON.
pub(super) fn encode(method: &MethodDescriptor, text: &[u8]) -> Result<Vec<u8>, Status> {
    if parts_of(text) > MAX_MESSAGE_PARTS {
        return Err(Status::resource_exhausted(format!(
            "the request has more than {MAX_MESSAGE_PARTS} values; send its items in several"
        )));
    }
    request::encode(&method.input(), text).map_err(|error| {
        Status::invalid_argument(format!(
            "the request is no {} in JSON: {error}",
            method.input().name()
        ))
    })
}

fn too_long() -> Status {
    Status::resource_exhausted(format!(
        "the request is longer than {MAX_CLIENT_MESSAGE_BYTES} bytes; send its content in several"
    ))
}

/// The same call within: of the same caller, who is not asked twice.
fn request(
    message: Bytes,
    headers: &HeaderMap,
    caller: Option<Extension<Caller>>,
) -> Request<Bytes> {
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

/// An event for each answer, and `end` after the last. When this replica stops,
/// or the database is away, nothing is said: a browser then asks again.
fn events(
    gateway: Arc<Gateway>,
    method: MethodDescriptor,
    answers: Streaming<Bytes>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some((gateway, method, answers)), async |it| {
        let (gateway, method, mut answers) = it?;
        let answer = match answers.message().await {
            Ok(Some(answer)) => event(&gateway, &method, answer).await,
            Ok(None) => return Some((Event::default().event("end").data("{}"), None)),
            Err(status) => Err(status),
        };
        match answer {
            Ok(event) => Some((event, Some((gateway, method, answers)))),
            Err(status) if status.code() == Code::Unavailable => None,
            Err(status) => {
                let said = Refusal::from(status).to_json().to_string();
                Some((Event::default().event("failed").data(said), None))
            }
        }
    })
    .map(Ok)
}

async fn event(
    gateway: &Gateway,
    method: &MethodDescriptor,
    answer: Bytes,
) -> Result<Event, Status> {
    let cursor = method.output().get_field_by_name(CURSOR);
    let cursor = cursor.and_then(|cursor| {
        let last = parts::fields(&answer, cursor.number().into()).last()?;
        Some(String::from_utf8_lossy(last).into_owned())
    });
    let data = gateway.answer(method, answer).await?;
    let event = Event::default().data(String::from_utf8_lossy(&data));
    Ok(match cursor {
        Some(cursor) => event.id(cursor),
        None => event,
    })
}

/// Every field is there, so that who reads it need not know what it is when it
/// is missing; 64-bit numbers are strings, as proto3 has it.
pub(super) fn json(output: &MessageDescriptor, message: &[u8]) -> Result<Vec<u8>, Status> {
    let no_json = |error: &dyn std::fmt::Display| {
        Status::internal(format!("the answer has no JSON: {error}"))
    };
    let message =
        DynamicMessage::decode(output.clone(), message).map_err(|error| no_json(&error))?;
    let options = SerializeOptions::new().skip_default_fields(false);
    let mut json = Vec::new();
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut json), &options)
        .map_err(|error| no_json(&error))?;
    Ok(json)
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
