//! The memory of a coordinator to which very much is sent at once.

use std::{
    fs,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{BufMut as _, Bytes};
use futures::{future::join_all, stream};

use prost::Message as _;
use prost_types::{ListValue, Struct, Value, value::Kind};
use reqwest::StatusCode;
use tokio::sync::Barrier;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use weir_proto::{
    limits::MAX_CLIENT_MESSAGE_BYTES,
    v1::{self, import_source_request, put_source_request::Content, stream_batches_request},
};
use weir_tests::clients::{Weir, http};

/// What the coordinator may take at most, whatever is sent to it: 256 MiB and
/// four times the largest message.
const MOST_BYTES: usize = (256 << 20) + 4 * MAX_CLIENT_MESSAGE_BYTES;

/// Clients that send at once.
const CLIENTS: usize = 64;

/// Messages that are encoded already, so that very many of them share their
/// bytes.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        bytes::Buf::advance(from, bytes::Buf::remaining(from));
        Ok(Some(()))
    }
}

/// What a client sends.
#[derive(Clone)]
enum Body {
    /// To a call in JSON.
    Json(&'static str, Bytes),
    /// To a call in gRPC: one message, or several.
    Grpc(&'static str, Vec<Bytes>),
}

/// Sends it, and returns the code of the answer.
async fn send(weir: &Weir, body: Body) -> Code {
    match body {
        Body::Json(call, request) => {
            let url = format!("{}/api/{call}", weir.coordinator.url());
            let post = http().post(url).header("content-type", "application/json");
            match post.body(request).send().await.unwrap().status() {
                StatusCode::OK => Code::Ok,
                StatusCode::BAD_REQUEST => Code::InvalidArgument,
                StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
                StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
                other => panic!("{call}: {other}"),
            }
        }
        Body::Grpc(call, messages) => {
            let channel: Channel = weir.coordinator.connect().await;
            let mut client = Grpc::new(channel);
            client.ready().await.unwrap();
            let path = PathAndQuery::from_static(call);
            let messages = Request::new(stream::iter(messages));
            let answers = client.streaming(messages, path, Raw).await;
            let last = match answers {
                Ok(answers) => answers.into_inner().message().await.map(drop),
                Err(status) => Err(status),
            };
            last.map_or_else(|status| status.code(), |()| Code::Ok)
        }
    }
}

fn item(number: usize, text: &str, metadata: Option<Struct>) -> v1::Item {
    v1::Item {
        item_id: number.to_string(),
        text: text.to_owned(),
        metadata,
    }
}

fn put(content: Content) -> Bytes {
    let put = v1::PutSourceRequest {
        name: "much".to_owned(),
        content: Some(content),
        ..v1::PutSourceRequest::default()
    };
    put.encode_to_vec().into()
}

/// Items of which the last is not good, so that all of them are taken in and
/// none is stored.
fn put_items(mut items: Vec<v1::Item>) -> Bytes {
    items.push(item(items.len(), "", None));
    put(Content::Items(v1::ItemList { items }))
}

fn put_document(format: v1::DocumentFormat, content: Vec<u8>) -> Bytes {
    put(Content::Document(v1::Document {
        format: format.into(),
        content,
        item_id: String::new(),
    }))
}

fn numbers(count: usize) -> Struct {
    let one = Value {
        kind: Some(Kind::NumberValue(1.0)),
    };
    let values = vec![one; count];
    let list = Kind::ListValue(ListValue { values });
    let entry = ("a".to_owned(), Value { kind: Some(list) });
    Struct {
        fields: [entry].into(),
    }
}

/// An object in an object, and so on, with many values in the innermost.
fn nested() -> String {
    let (open, close) = (r#"{"a":"#.repeat(30), "}".repeat(30));
    format!("{open}[{}1]{close}", "1,".repeat(15_000))
}

fn json_items(items: &[String]) -> Bytes {
    let items = items.join(",");
    format!(r#"{{"name":"much","items":{{"items":[{items}]}}}}"#).into()
}

fn json_item(metadata: &str) -> String {
    format!(r#"{{"itemId":"a","text":"b","metadata":{metadata}}}"#)
}

/// A document in which many operations share one large schema.
fn fan_out() -> Vec<u8> {
    let paths: Vec<String> = (0..3_000)
        .map(|n| {
            format!(
                r##""/{n}":{{"post":{{"requestBody":{{"content":{{"a/b":{{"schema":{{"$ref":"#/components/schemas/S0"}}}}}}}}}}}}"##
            )
        })
        .collect();
    let schemas: Vec<String> = (0..200)
        .map(|n| {
            let all: Vec<String> = (0..200)
                .map(|m| format!(r##"{{"$ref":"#/components/schemas/S{m}"}}"##))
                .collect();
            format!(r#""S{n}":{{"allOf":[{}]}}"#, all.join(","))
        })
        .collect();
    format!(
        r#"{{"openapi":"3.1.0","paths":{{{}}},"components":{{"schemas":{{{}}}}}}}"#,
        paths.join(","),
        schemas.join(",")
    )
    .into()
}

/// Anchors that write out to a billion values.
fn bomb() -> Vec<u8> {
    let mut document = "openapi: 3.1.0\na0: &a0 [l, l, l, l, l, l, l, l, l, l]\n".to_owned();
    for n in 1..10 {
        let alias = format!("*a{}", n - 1);
        let aliases = [alias.as_str(); 10].join(", ");
        document.push_str(&format!("a{n}: &a{n} [{aliases}]\n"));
    }
    document.into()
}

fn import(open_format: v1::DocumentFormat, parts: Vec<import_source_request::Message>) -> Body {
    let open = v1::ImportOpen {
        name: "much".to_owned(),
        format: open_format.into(),
        ..v1::ImportOpen::default()
    };
    let open = import_source_request::Message::Open(open);
    let messages = [open].into_iter().chain(parts).map(|part| {
        let message = v1::ImportSourceRequest {
            message: Some(part),
        };
        message.encode_to_vec().into()
    });
    Body::Grpc("/weir.v1.SourceService/ImportSource", messages.collect())
}

/// What takes most, of each kind, and what is answered where there is memory
/// for it.
fn bodies() -> Vec<(&'static str, Body, Code)> {
    use v1::DocumentFormat as Format;

    const PUT: &str = "/weir.v1.SourceService/PutSource";
    const PUT_JSON: &str = "SourceService/PutSource";
    let grpc = |message| Body::Grpc(PUT, vec![message]);
    let keys: Vec<String> = (0..300_000).map(|n| format!(r#""{n}":{{}}"#)).collect();
    let lines: Vec<String> = (0..200_000)
        .map(|n| format!(r#"{{"item_id":"{n}","text":"a"}}"#))
        .collect();
    let long = "word ".repeat(50);
    let texts = (0..200_000).map(|n| item(n, &long, None)).collect();
    let vectors = v1::EmbeddedChunk {
        vector: vec![0; 64_000].into(),
        ..v1::EmbeddedChunk::default()
    };
    let result = v1::StreamBatchesRequest {
        message: Some(stream_batches_request::Message::Result(v1::BatchResult {
            embedded: vec![vectors; 500],
            ..v1::BatchResult::default()
        })),
    };
    let patch = v1::PatchSourceRequest {
        name: "much".to_owned(),
        delete_item_ids: (0..900_000).map(|n| n.to_string()).collect(),
        upsert: vec![item(0, "both deleted and written", None)],
        ..v1::PatchSourceRequest::default()
    };
    let part = |bytes: usize| import_source_request::Message::DocumentPart(vec![b' '; bytes]);
    vec![
        (
            "numbers in JSON",
            Body::Json(
                PUT_JSON,
                json_items(&[json_item(&format!(
                    r#"{{"a":[{}1]}}"#,
                    "1,".repeat(900_000)
                ))]),
            ),
            Code::InvalidArgument,
        ),
        (
            "nesting in JSON",
            Body::Json(PUT_JSON, json_items(&[json_item(&nested())])),
            Code::InvalidArgument,
        ),
        (
            "keys in JSON",
            Body::Json(
                PUT_JSON,
                json_items(&[json_item(&format!("{{{}}}", keys.join(",")))]),
            ),
            Code::InvalidArgument,
        ),
        (
            "metadata in JSON",
            Body::Json(
                PUT_JSON,
                json_items(&vec![
                    json_item(&format!(
                        r#"{{"a":[{}1]}}"#,
                        "1,".repeat(900)
                    ));
                    1_000
                ]),
            ),
            Code::InvalidArgument,
        ),
        (
            "items",
            grpc(put_items(
                (0..300_000).map(|n| item(n, "a", None)).collect(),
            )),
            Code::InvalidArgument,
        ),
        ("texts", grpc(put_items(texts)), Code::InvalidArgument),
        (
            "metadata",
            grpc(put_items(
                (0..900).map(|n| item(n, "a", Some(numbers(900)))).collect(),
            )),
            Code::InvalidArgument,
        ),
        (
            "numbers",
            grpc(put_items(vec![item(0, "a", Some(numbers(900_000)))])),
            Code::InvalidArgument,
        ),
        (
            "aliases",
            grpc(put_document(Format::Openapi, bomb())),
            Code::InvalidArgument,
        ),
        (
            "values in YAML",
            grpc(put_document(
                Format::Openapi,
                format!("a: [{}1]", "1,".repeat(500_000)).into(),
            )),
            Code::InvalidArgument,
        ),
        (
            "objects in JSON",
            grpc(put_document(
                Format::Openapi,
                format!("{{\"a\":[{}1]}}", r#"{"a":1},"#.repeat(600_000)).into(),
            )),
            Code::InvalidArgument,
        ),
        (
            "lines",
            grpc(put_document(
                Format::JsonLines,
                format!("{}\n{{}}", lines.join("\n")).into(),
            )),
            Code::InvalidArgument,
        ),
        (
            "references",
            grpc(put_document(Format::Openapi, fan_out())),
            Code::Ok,
        ),
        (
            "an import of items",
            import(
                Format::Unspecified,
                vec![import_source_request::Message::Items(v1::ItemList {
                    items: (0..300)
                        .map(|n| item(n, &"x".repeat(200_000), None))
                        .chain([item(0, "", None)])
                        .collect(),
                })],
            ),
            Code::InvalidArgument,
        ),
        (
            "an import of a document",
            import(Format::Text, (0..60).map(|_| part(1 << 20)).collect()),
            Code::InvalidArgument,
        ),
        (
            "results",
            Body::Grpc(
                "/weir.v1.WorkerService/StreamBatches",
                vec![result.encode_to_vec().into()],
            ),
            Code::InvalidArgument,
        ),
        (
            "ids",
            Body::Grpc(
                "/weir.v1.SourceService/PatchSource",
                vec![patch.encode_to_vec().into()],
            ),
            Code::InvalidArgument,
        ),
        (
            "a list",
            Body::Json(
                "JobService/ListJobs",
                Bytes::from_static(br#"{"pageSize":1000}"#),
            ),
            Code::Ok,
        ),
    ]
}

/// The most memory that a process had so far, in bytes.
fn peak(weir: &Weir) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", weir.coordinator.process.pid()));
    let status = status.unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.unwrap().trim().parse::<usize>().unwrap() << 10
}

/// Asks whether the coordinator lives and puts a small source, over and over,
/// and counts the answers.
async fn go_on(weir: &Weir, lives: &AtomicUsize, puts: &AtomicUsize) {
    let live = async {
        loop {
            let url = format!("{}/livez", weir.coordinator.url());
            let answer = http().get(url).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            lives.fetch_add(1, Ordering::Relaxed);
        }
    };
    let put = async {
        loop {
            weir.put("small", &["one"]).await;
            puts.fetch_add(1, Ordering::Relaxed);
        }
    };
    let ((), ()) = tokio::join!(live, put);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_large_calls_at_once_stay_within_the_memory_there_is_for_them() {
    let weir = Weir::start().await;
    let bodies = bodies();
    let barrier = Arc::new(Barrier::new(CLIENTS));
    let answered = AtomicUsize::new(0);
    let counted = &answered;
    let clients = (0..CLIENTS).map(|client| {
        let (weir, barrier) = (&weir, barrier.clone());
        let (what, body, code) = bodies[client % bodies.len()].clone();
        let call: Pin<Box<dyn Future<Output = ()> + Send + '_>> = Box::pin(async move {
            barrier.wait().await;
            let answered = send(weir, body).await;
            counted.fetch_add(usize::from(answered == code), Ordering::Relaxed);
            assert!(
                answered == code || answered == Code::Unavailable,
                "{what}: {answered:?}"
            );
        });
        call
    });
    let (lives, puts) = (AtomicUsize::new(0), AtomicUsize::new(0));
    tokio::select! {
        _ = join_all(clients) => {}
        () = go_on(&weir, &lives, &puts) => {}
    }
    let (lives, puts) = (lives.into_inner(), puts.into_inner());
    let answered = answered.into_inner();
    eprintln!(
        "{answered} answered, {lives} lives, {puts} puts, {} MiB",
        peak(&weir) >> 20
    );
    assert!(
        answered >= 5,
        "of {CLIENTS} large calls {answered} were answered"
    );
    assert!(lives >= CLIENTS, "it said {lives} times that it lives");
    assert!(puts >= 10, "{puts} small sources were put");
    assert!(peak(&weir) <= MOST_BYTES, "{} bytes", peak(&weir));
    // Nothing is held any more: what would not fit beside anything is taken in.
    let text = "x".repeat(MAX_CLIENT_MESSAGE_BYTES - 1_000);
    let largest = put_items(vec![item(0, &text, None)]);
    let largest = Body::Grpc("/weir.v1.SourceService/PutSource", vec![largest]);
    assert_eq!(send(&weir, largest).await, Code::InvalidArgument);
}
