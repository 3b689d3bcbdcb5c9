//! What takes most memory, or time, of each kind.

use std::fmt::Write as _;

use bytes::Bytes;
use prost::Message as _;
use prost_types::{ListValue, Struct, Value, value::Kind};
use tonic::Code;
use weir_proto::v1::{
    self, DocumentFormat as Format, import_source_request, put_source_request::Content,
    stream_batches_request,
};

use super::Body;

/// A name, what is sent, and what is answered where there is memory for it.
type Sent = (&'static str, Body, Code);

pub(super) fn bodies() -> Vec<Sent> {
    [json(), messages(), documents(), streams()].concat()
}

fn refused(name: &'static str, body: Body) -> Sent {
    (name, body, Code::InvalidArgument)
}

fn json() -> Vec<Sent> {
    let put = |items: &[String]| {
        let items = items.join(",");
        let request = format!(r#"{{"name":"much","items":{{"items":[{items}]}}}}"#);
        Body::Json("SourceService/PutSource", request.into())
    };
    let item = |metadata: &str| format!(r#"{{"itemId":"a","text":"b","metadata":{metadata}}}"#);
    let numbers = |count| item(&format!(r#"{{"a":[{}1]}}"#, "1,".repeat(count)));
    let keys: Vec<String> = (0..300_000).map(|n| format!(r#""{n}":{{}}"#)).collect();
    let list = Bytes::from_static(br#"{"pageSize":1000}"#);
    vec![
        refused("numbers in JSON", put(&[numbers(900_000)])),
        refused("nesting in JSON", put(&[item(&nested())])),
        refused(
            "keys in JSON",
            put(&[item(&format!("{{{}}}", keys.join(",")))]),
        ),
        refused("metadata in JSON", put(&vec![numbers(900); 1_000])),
        ("a list", Body::Json("JobService/ListJobs", list), Code::Ok),
    ]
}

fn messages() -> Vec<Sent> {
    let items = (0..300_000).map(|n| item(n, "a", None)).collect();
    let long = "word ".repeat(50);
    let texts = (0..200_000).map(|n| item(n, &long, None)).collect();
    let metadata = (0..900).map(|n| item(n, "a", Some(numbers(900)))).collect();
    let patch = v1::PatchSourceRequest {
        name: "much".to_owned(),
        delete_item_ids: (0..900_000).map(|n| n.to_string()).collect(),
        upsert: vec![item(0, "both deleted and written", None)],
        ..v1::PatchSourceRequest::default()
    };
    let patch = vec![patch.encode_to_vec().into()];
    vec![
        refused("items", put_items(items)),
        refused("texts", put_items(texts)),
        refused("metadata", put_items(metadata)),
        refused(
            "numbers",
            put_items(vec![item(0, "a", Some(numbers(900_000)))]),
        ),
        refused(
            "ids",
            Body::Grpc("/weir.v1.SourceService/PatchSource", patch),
        ),
    ]
}

fn documents() -> Vec<Sent> {
    let values = format!("a: [{}1]", "1,".repeat(500_000));
    let objects = format!("{{\"a\":[{}1]}}", r#"{"a":1},"#.repeat(600_000));
    let lines = (0..100_000).map(|n| format!("{{\"item_id\":\"{n}\",\"text\":\"a\"}}\n"));
    let lines = lines.chain(["{}".to_owned()]).collect::<String>();
    vec![
        refused("aliases", put_document(Format::Openapi, bomb())),
        refused("values in YAML", put_document(Format::Openapi, values)),
        refused("objects in JSON", put_document(Format::Openapi, objects)),
        refused("lines", put_document(Format::JsonLines, lines)),
        (
            "references",
            put_document(Format::Openapi, fan_out()),
            Code::Ok,
        ),
    ]
}

fn streams() -> Vec<Sent> {
    let text = "x".repeat(200_000);
    let items = (0..300).map(|n| item(n, &text, None));
    let items = items.chain([item(0, "", None)]).collect();
    let items = import_source_request::Message::Items(v1::ItemList { items });
    let part = import_source_request::Message::DocumentPart(vec![b' '; 1 << 20]);
    let vectors = v1::EmbeddedChunk {
        vector: vec![0; 64_000].into(),
        ..v1::EmbeddedChunk::default()
    };
    let vectors = v1::PartResult {
        embedded: vec![vectors; 500],
        ..v1::PartResult::default()
    };
    let result = v1::StreamBatchesRequest {
        message: Some(stream_batches_request::Message::Result(v1::BatchResult {
            parts: vec![vectors],
        })),
    };
    let result = vec![result.encode_to_vec().into()];
    vec![
        refused(
            "an import of items",
            import(Format::Unspecified, vec![items]),
        ),
        refused(
            "an import of a document",
            import(Format::Text, vec![part; 60]),
        ),
        refused(
            "results",
            Body::Grpc("/weir.v1.WorkerService/StreamBatches", result),
        ),
    ]
}

pub(super) fn item(number: usize, text: &str, metadata: Option<Struct>) -> v1::Item {
    v1::Item {
        item_id: number.to_string(),
        text: text.to_owned(),
        metadata,
    }
}

fn put(content: Content) -> Body {
    let put = v1::PutSourceRequest {
        name: "much".to_owned(),
        content: Some(content),
        ..v1::PutSourceRequest::default()
    };
    let put = put.encode_to_vec().into();
    Body::Grpc("/weir.v1.SourceService/PutSource", vec![put])
}

/// Items of which the last is not good, so that all of them are taken in and
/// none is stored.
pub(super) fn put_items(mut items: Vec<v1::Item>) -> Body {
    items.push(item(items.len(), "", None));
    put(Content::Items(v1::ItemList { items }))
}

fn put_document(format: Format, content: String) -> Body {
    put(Content::Document(v1::Document {
        format: format.into(),
        content: content.into(),
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

/// A document in which many operations share one large schema.
fn fan_out() -> String {
    let paths: Vec<String> = (0..500)
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
}

/// Anchors that write out to a billion values.
fn bomb() -> String {
    let mut document = "openapi: 3.1.0\na0: &a0 [l, l, l, l, l, l, l, l, l, l]\n".to_owned();
    for n in 1..10 {
        let alias = format!("*a{}", n - 1);
        let aliases = [alias.as_str(); 10].join(", ");
        writeln!(document, "a{n}: &a{n} [{aliases}]").unwrap();
    }
    document
}

fn import(open_format: Format, parts: Vec<import_source_request::Message>) -> Body {
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
