//! A request in JSON → its encoded message.
//!
//! `prost-reflect` knows all of proto3's mapping to JSON, but takes a kilobyte
//! for each message, and the time of all its levels for each value. So it gets
//! messages without those they hold: lists are encoded entry by entry as they
//! are read, and metadata is bounded before it is built.

use std::{collections::HashSet, fmt, marker::PhantomData};

use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint, message},
};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde::{
    Deserialize as _,
    de::{
        DeserializeSeed, Deserializer, Error, IntoDeserializer as _, MapAccess, SeqAccess, Visitor,
    },
    forward_to_deserialize_any,
};
use serde_json::value::RawValue;
use weir_proto::limits::MAX_CLIENT_MESSAGE_BYTES;

use crate::{grpc::convert::wire_struct, ingest::check_raw_metadata};

const STRUCT: &str = "google.protobuf.Struct";

/// Encodes a request; fails with what is wrong and where.
pub(in crate::grpc) fn encode(
    input: &MessageDescriptor,
    text: &[u8],
) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(text);
    let message = Message {
        descriptor: input,
        out: &mut out,
    };
    message.deserialize(&mut json)?;
    json.end()?;
    Ok(out)
}

/// A message, appended to what is encoded so far.
struct Message<'a> {
    descriptor: &'a MessageDescriptor,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Message<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let own = DynamicMessage::deserialize(
            self.descriptor.clone(),
            Own {
                deserializer,
                message: Message {
                    descriptor: self.descriptor,
                    out: self.out,
                },
            },
        )?;
        own.encode(self.out).map_err(D::Error::custom)?;
        check_size(self.out)
    }
}

/// A message without those that it holds, which are encoded on the way.
struct Own<'a, D> {
    deserializer: D,
    message: Message<'a>,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Own<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserializer.deserialize_map(OwnVisitor {
            visitor,
            message: self.message,
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct OwnVisitor<'a, V> {
    visitor: V,
    message: Message<'a>,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for OwnVisitor<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(OwnEntries {
            map,
            message: self.message,
            seen: HashSet::new(),
            entry: PhantomData,
        })
    }
}

struct OwnEntries<'a, 'de, A> {
    map: A,
    message: Message<'a>,
    /// Fields, and oneofs, whose message was there.
    seen: HashSet<String>,
    entry: PhantomData<&'de ()>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for OwnEntries<'_, 'de, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.map.next_key::<String>()? {
            let Some(field) = held_message(self.message.descriptor, &key) else {
                return seed.deserialize(key.into_deserializer()).map(Some);
            };
            let there = self.map.next_value_seed(Field {
                field: &field,
                out: self.message.out,
            })?;
            let oneof = field.containing_oneof();
            let place = oneof.map_or_else(
                || field.full_name().to_owned(),
                |it| it.full_name().to_owned(),
            );
            if there && !self.seen.insert(place) {
                return Err(A::Error::custom(format!(
                    "{key:?} is there twice, or beside another of which only one may be there"
                )));
            }
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// The field of this name, where it holds messages that are encoded on the way.
fn held_message(message: &MessageDescriptor, key: &str) -> Option<FieldDescriptor> {
    let field = message
        .get_field_by_json_name(key)
        .or_else(|| message.get_field_by_name(key))?;
    let Kind::Message(held) = field.kind() else {
        return None;
    };
    let is_ours =
        held.parent_file().package_name() != "google.protobuf" || held.full_name() == STRUCT;
    (is_ours && !field.is_map()).then_some(field)
}

/// One message, a list of them, or nothing where there is `null`. Whether there
/// was any.
struct Field<'a> {
    field: &'a FieldDescriptor,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the value of {}", self.field.name())
    }

    fn visit_none<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        if self.field.is_list() {
            deserializer.deserialize_seq(Entries(self))?;
        } else {
            Entry {
                field: self.field,
                out: self.out,
            }
            .deserialize(deserializer)?;
        }
        Ok(true)
    }
}

struct Entries<'a>(Field<'a>);

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.0.field.name())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Field { field, out } = self.0;
        while entries.next_element_seed(Entry { field, out })?.is_some() {}
        Ok(())
    }
}

/// One message in its field, with its length before it.
struct Entry<'a> {
    field: &'a FieldDescriptor,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Kind::Message(descriptor) = self.field.kind() else {
            return Err(D::Error::custom("a field that was taken for a message"));
        };
        let number = self.field.number();
        if descriptor.full_name() == STRUCT {
            let json = <&RawValue>::deserialize(deserializer)?.get();
            let name = self.field.json_name();
            check_raw_metadata(json)
                .map_err(|message| D::Error::custom(format!("{name} {message}")))?;
            let value = serde_json::from_str(json).map_err(D::Error::custom)?;
            let fields = wire_struct(value)
                .ok_or_else(|| D::Error::custom(format!("{name} must be an object")))?;
            message::encode(number, &fields, self.out);
            return check_size(self.out);
        }
        encode_key(number, WireType::LengthDelimited, self.out);
        let begin = self.out.len();
        Message {
            descriptor: &descriptor,
            out: self.out,
        }
        .deserialize(deserializer)?;
        let mut len = Vec::new();
        encode_varint((self.out.len() - begin) as u64, &mut len);
        self.out.splice(begin..begin, len);
        Ok(())
    }
}

fn check_size<E: Error>(out: &[u8]) -> Result<(), E> {
    if out.len() > MAX_CLIENT_MESSAGE_BYTES {
        return Err(E::custom(format!(
            "as a message it has more than {MAX_CLIENT_MESSAGE_BYTES} bytes; send its content in several"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;
    use serde_json::{Value, json};
    use weir_proto::v1::{self, FILE_DESCRIPTOR_SET, put_source_request::Content};

    use super::*;

    fn input(name: &str) -> MessageDescriptor {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
        pool.get_message_by_name(&format!("weir.v1.{name}"))
            .unwrap()
    }

    fn refusal(name: &str, request: &str) -> String {
        let refused = encode(&input(name), request.as_bytes());
        refused.unwrap_err().to_string()
    }

    fn put(metadata: &Value) -> String {
        json!({"name": "n", "items": {"items": [{"itemId": "a", "text": "t", "metadata": metadata}]}})
            .to_string()
    }

    /// Whatever way it is encoded, it is the same message.
    #[test]
    fn it_is_what_the_mapping_of_proto3_says() {
        for (name, request) in [
            ("GetJobRequest", json!({"jobId": "7"})),
            (
                "ListJobsRequest",
                json!({"states": ["JOB_STATE_QUEUED", 2], "readMask": "jobId,state"}),
            ),
            ("SearchRequest", json!({"vector": "AACAPw==", "limit": 3})),
            (
                "PutSourceRequest",
                json!({"document": {"format": "DOCUMENT_FORMAT_TEXT", "content": "YQ=="}}),
            ),
            (
                "PutSourceRequest",
                json!({"name": "n", "items": {}, "document": null}),
            ),
            (
                "PatchSourceRequest",
                json!({"upsert": [{"item_id": "a", "text": "\u{1}é"}, {}], "deleteItemIds": ["b"]}),
            ),
        ] {
            let input = input(name);
            let Ok(ours) = encode(&input, request.to_string().as_bytes()) else {
                panic!("{request} is refused");
            };
            let ours = DynamicMessage::decode(input.clone(), &*ours).unwrap();
            assert_eq!(ours, DynamicMessage::deserialize(input, request).unwrap());
        }
    }

    #[test]
    fn metadata_is_encoded_as_it_is() {
        let metadata = json!({"a": [1, 2.5, null, true, "x"], "b": {"c": {}}});
        let bytes = encode(&input("PutSourceRequest"), put(&metadata).as_bytes()).unwrap();
        let request = v1::PutSourceRequest::decode(&*bytes).unwrap();
        let Some(Content::Items(list)) = request.content else {
            panic!("items were put");
        };
        assert_eq!(list.items[0].metadata, wire_struct(metadata));
    }

    #[test]
    fn metadata_is_bounded_before_it_is_built() {
        let deep = (0..30).fold(json!(1), |inner, _| json!([inner]));
        for (metadata, told) in [
            (json!({"a": vec![1; 1_001]}), "more than 1000 values"),
            (json!({"a": deep}), "more than 16 levels"),
            (json!({"a": "x".repeat(16 << 10)}), "at most 16384"),
            (json!([]), "must be an object"),
        ] {
            let refused = refusal("PutSourceRequest", &put(&metadata));
            assert!(
                refused.contains("metadata ") && refused.contains(told),
                "{refused}"
            );
        }
    }

    #[test]
    fn what_may_be_there_once_is_not_there_twice() {
        for request in [
            r#"{"items": {}, "document": {}}"#,
            r#"{"items": {}, "items": {}}"#,
        ] {
            assert!(refusal("PutSourceRequest", request).contains("twice"));
        }
        assert!(refusal("PutSourceRequest", r#"{"items": []}"#).contains("expected"));
    }
}
