//! Requests made of descriptors, and made over gRPC and as JSON.

use std::{collections::HashMap, time::Duration};

use prost::{Message as _, bytes::Buf as _};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    Value,
};
use reqwest::header;
use tokio::time::timeout;
use tokio_stream::iter;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};
use weir_proto::v1::FILE_DESCRIPTOR_SET;
use weir_tests::{
    PATIENCE,
    clients::{Weir, http},
};

/// Where a value goes: the fields from the request down to it.
type Path = Vec<FieldDescriptor>;

/// Values by the name of their field, of whatever message.
pub(super) type Values = HashMap<&'static str, Vec<Value>>;

/// All methods of these services.
pub(super) fn methods(services: &[&str]) -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let named = services.iter().map(|service| format!("weir.v1.{service}"));
    let found = named.map(|name| pool.get_service_by_name(&name).unwrap());
    found
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect()
}

/// Whether a method changes nothing.
pub(super) fn is_reading(method: &MethodDescriptor) -> bool {
    let reading = ["Get", "List", "Watch", "Search"];
    // What opens a lease is no look at it.
    method.name() != "GetBatch" && reading.iter().any(|verb| method.name().starts_with(verb))
}

/// Every place of a request that takes a value.
fn leaves(message: &MessageDescriptor, above: &Path, found: &mut Vec<Path>) {
    for field in message.fields() {
        let path: Path = above.iter().cloned().chain([field.clone()]).collect();
        match field.kind() {
            Kind::Message(inner) if inner.full_name().starts_with("weir.") => {
                assert!(path.len() < 6, "{} holds itself", inner.full_name());
                if inner.fields().len() == 0 {
                    found.push(path.clone());
                }
                leaves(&inner, &path, found);
            }
            _ => found.push(path),
        }
    }
}

/// What may stand at a leaf. Panics where nobody has thought of the field.
fn values_of(leaf: &FieldDescriptor, method: &MethodDescriptor, values: &Values) -> Vec<Value> {
    let name = match leaf.full_name() {
        "weir.v1.SessionModel.name" => "model",
        _ => leaf.name(),
    };
    let by_name = values.get(name).cloned().unwrap_or_default();
    let found = match leaf.kind() {
        Kind::Bool => vec![Value::Bool(true)],
        Kind::Enum(kind) => {
            let numbers = kind.values().map(|value| value.number());
            numbers
                .filter(|number| *number != 0)
                .map(Value::EnumNumber)
                .collect()
        }
        Kind::Message(kind) if kind.full_name() == "google.protobuf.FieldMask" => {
            let mut mask = DynamicMessage::new(kind);
            let listed = method
                .output()
                .fields()
                .find(FieldDescriptor::is_list)
                .unwrap();
            let Kind::Message(listed) = listed.kind() else {
                panic!("{} lists no messages", method.full_name());
            };
            let paths = listed
                .fields()
                .map(|field| Value::String(field.name().to_owned()));
            mask.set_field_by_name("paths", Value::List(paths.collect()));
            vec![Value::Message(mask)]
        }
        // No time at all, no metadata, and messages without fields.
        Kind::Message(kind)
            if [
                "google.protobuf.Duration",
                "google.protobuf.Struct",
                "weir.v1.Heartbeat",
                "weir.v1.Drain",
            ]
            .contains(&kind.full_name()) =>
        {
            vec![Value::Message(DynamicMessage::new(kind))]
        }
        _ => by_name,
    };
    assert!(
        !found.is_empty(),
        "{} of {}: what would reach into another namespace by it? Give tests/e2e/foreign.rs a value",
        leaf.full_name(),
        method.full_name(),
    );
    found
}

/// Puts a value where its path says.
fn put(message: &mut DynamicMessage, path: &[FieldDescriptor], value: Value) {
    let (field, below) = path.split_first().unwrap();
    if below.is_empty() {
        let value = if field.is_list() {
            Value::List(vec![value])
        } else {
            value
        };
        message.set_field(field, value);
        return;
    }
    let Kind::Message(kind) = field.kind() else {
        panic!("{} has nothing below it", field.full_name());
    };
    let inner = if field.is_list() {
        let list = message.get_field_mut(field).as_list_mut().unwrap();
        if list.is_empty() {
            list.push(Value::Message(DynamicMessage::new(kind)));
        }
        &mut list[0]
    } else {
        message.get_field_mut(field)
    };
    put(inner.as_message_mut().unwrap(), below, value);
}

/// Requests of a method in which each place is filled, one at a time, in pairs,
/// and with all others: of each base, what it has, and each place otherwise.
pub(super) fn requests(method: &MethodDescriptor, values: &Values) -> Vec<DynamicMessage> {
    let mut paths = Vec::new();
    leaves(&method.input(), &Vec::new(), &mut paths);
    let filled: Vec<(Path, Vec<Value>)> = paths
        .into_iter()
        .map(|path| {
            let values = values_of(path.last().unwrap(), method, values);
            (path, values)
        })
        .collect();
    let empty = DynamicMessage::new(method.input());
    let with = |base: &DynamicMessage, path: &Path, value: &Value| {
        let mut message = base.clone();
        put(&mut message, path, value.clone());
        message
    };
    let mut made = vec![empty.clone()];
    for (index, (path, values)) in filled.iter().enumerate() {
        for value in values {
            let single = with(&empty, path, value);
            for (other, others) in &filled[index + 1..] {
                made.extend(
                    others
                        .iter()
                        .map(|other_value| with(&single, other, other_value)),
                );
            }
            made.push(single);
        }
    }
    // What needs three fields or more is told by them all, and by each otherwise.
    let input = method.input();
    let chosen = input
        .oneofs()
        .flat_map(|oneof| oneof.fields().map(Some).collect::<Vec<_>>());
    for choice in chosen.chain([None]) {
        let fits = |path: &Path| {
            let of_another =
                path[0].containing_oneof().is_some() && Some(&path[0]) != choice.as_ref();
            // A page is turned by a token of this very request alone.
            !of_another && path[path.len() - 1].name() != "page_token"
        };
        let mut whole = empty.clone();
        for (path, values) in filled.iter().filter(|(path, _)| fits(path)) {
            put(&mut whole, path, values[0].clone());
        }
        made.push(whole.clone());
        for (path, values) in &filled {
            made.extend(values.iter().map(|value| with(&whole, path, value)));
        }
    }
    let mut seen = std::collections::HashSet::new();
    made.retain(|message| seen.insert(message.encode_to_vec()));
    made
}

/// What came back, in words: of an answer its JSON, of a refusal all it says.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) ok: bool,
    pub(super) text: String,
}

impl Told {
    fn refused(status: &Status) -> Self {
        let details = String::from_utf8_lossy(status.details()).into_owned();
        let text = format!("{:?} {} {details}", status.code(), status.message());
        Self { ok: false, text }
    }
}

/// A message as JSON.
pub(super) fn words(message: &DynamicMessage) -> String {
    serde_json::to_string(message).unwrap()
}

/// Makes calls with a token.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    channel: Channel,
    http: reqwest::Client,
    url: String,
    token: String,
    /// How long a stream is listened to that says nothing.
    patience: Duration,
}

impl Asker {
    pub(super) fn new(weir: &Weir, token: &str, patience: Duration) -> Self {
        Self {
            channel: weir.channel.clone(),
            http: http(),
            url: weir.coordinator.url(),
            token: token.to_owned(),
            patience,
        }
    }

    fn patience(&self, method: &MethodDescriptor) -> Duration {
        if method.is_server_streaming() {
            self.patience
        } else {
            PATIENCE
        }
    }

    /// Makes a call over gRPC, and listens for one answer.
    pub(super) async fn grpc(&self, method: &MethodDescriptor, message: &DynamicMessage) -> Told {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let mut request = Request::new(iter([message.clone()]));
        let bearer = format!("Bearer {}", self.token).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let called = client.streaming(request, path.parse().unwrap(), Dynamic(method.output()));
        let called = timeout(PATIENCE, called).await.unwrap();
        let mut answers: Streaming<DynamicMessage> = match called {
            Ok(answers) => answers.into_inner(),
            Err(status) => return Told::refused(&status),
        };
        match timeout(self.patience(method), answers.message()).await {
            Ok(Ok(Some(answer))) => Told {
                ok: true,
                text: words(&answer),
            },
            Ok(Err(status)) => Told::refused(&status),
            Ok(Ok(None)) | Err(_) => Told {
                ok: true,
                text: String::new(),
            },
        }
    }

    /// Makes the same call as JSON.
    pub(super) async fn json(&self, method: &MethodDescriptor, message: &DynamicMessage) -> Told {
        let service = method.parent_service();
        let url = format!("{}/api/{}/{}", self.url, service.name(), method.name());
        let asked = if method.is_server_streaming() {
            self.http.get(url).query(&[("request", words(message))])
        } else {
            let post = self.http.post(url);
            let post = post.header(header::CONTENT_TYPE, "application/json");
            post.body(words(message))
        };
        let mut answer = asked.bearer_auth(&self.token).send().await.unwrap();
        let ok = answer.status().is_success();
        let mut text = String::new();
        while let Ok(Ok(Some(piece))) = timeout(self.patience(method), answer.chunk()).await {
            text.push_str(&String::from_utf8_lossy(&piece));
            // An event ends so.
            if text.ends_with("\n\n") {
                break;
            }
        }
        Told { ok, text }
    }
}

struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(to).unwrap();
        Ok(())
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Ok(Some(DynamicMessage::decode(self.0.clone(), bytes).unwrap()))
    }
}
