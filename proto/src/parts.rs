//! What an encoded message would take, seen before it is decoded.
//!
//! An empty item takes two bytes on the wire and a hundred in memory, so that a
//! message within the limit of bytes may take gigabytes once it is decoded. The
//! walk here needs no memory: it follows the lengths in the bytes, and knows
//! from the descriptors which of them hold messages of their own.

use std::{collections::HashMap, fmt, sync::OnceLock};

use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

use crate::{
    limits::{
        MAX_METADATA_DEPTH, MAX_METADATA_VALUES, MAX_METADATA_WIRE_BYTES, metadata_too_deep,
        metadata_too_long, metadata_too_many,
    },
    v1::FILE_DESCRIPTOR_SET,
};

/// Messages within messages that are followed; as many as are decoded.
const MAX_DEPTH: usize = 100;

/// What a part takes in memory beside its bytes: a `String` or a message with
/// its place in a list that grew by doubling, and what the allocator adds.
const TEXT_BYTES: usize = 64;
const MESSAGE_BYTES: usize = 192;

/// What the first field of a `google.protobuf.Struct` takes: a node of a
/// B-tree has room for eleven.
const STRUCT_BYTES: usize = 768;

const STRUCT: &str = "google.protobuf.Struct";
const VALUE: &str = "google.protobuf.Value";

/// Why a message is not to be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It has more parts than it may.
    TooMany,
    /// It is no message, or none that ends where it should.
    Malformed,
    /// A metadata in it breaks a limit.
    Metadata {
        /// Where it is: `upsert[3].metadata`.
        field: String,
        /// What is wrong with it, to be read after the name of the field.
        message: String,
    },
}

/// Walks through the bytes of a message whose type has this full name, and
/// fails where it has more than `most` parts. A name that is not of this
/// contract has no parts within its parts.
pub fn check(name: &str, bytes: &[u8], most: usize) -> Result<(), Fault> {
    walk(name, bytes, most, false).map(drop)
}

/// As [`check`], of a request: the limits of metadata hold as well. Returns how
/// many bytes of memory the message takes at most when it is decoded.
pub fn measure(name: &str, bytes: &[u8], most: usize) -> Result<usize, Fault> {
    walk(name, bytes, most, true)
}

/// How many bytes of memory an answer takes at most when it is decoded; one
/// that is malformed takes none.
pub fn memory(name: &str, bytes: &[u8]) -> usize {
    walk(name, bytes, usize::MAX, false).unwrap_or(0)
}

/// The fields of this number that are texts, bytes or messages, as far as the
/// message is well formed.
pub fn fields(mut bytes: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while !bytes.is_empty() {
            let key = varint(&mut bytes).ok()?;
            match key & 7 {
                0 => drop(varint(&mut bytes).ok()?),
                1 => drop(take(&mut bytes, 8).ok()?),
                5 => drop(take(&mut bytes, 4).ok()?),
                2 => {
                    let len = varint(&mut bytes).ok()?;
                    let part = take(&mut bytes, len).ok()?;
                    if key >> 3 == number {
                        return Some(part);
                    }
                }
                _ => return None,
            }
        }
        None
    })
}

fn walk(name: &str, bytes: &[u8], most: usize, request: bool) -> Result<usize, Fault> {
    let shapes = shapes();
    let mut walk = Walk {
        shapes,
        left: most,
        memory: MESSAGE_BYTES,
        request,
        metadata: None,
    };
    walk.message(shapes.by_name.get(name).copied(), bytes, MAX_DEPTH)
        .map_err(|fault| match fault {
            Fault::Metadata { field, message } => Fault::Metadata {
                field: field.trim_start_matches('.').to_owned(),
                message,
            },
            other => other,
        })?;
    Ok(walk.memory)
}

/// Which fields of which messages are messages.
struct Shapes {
    by_name: HashMap<String, usize>,
    messages: Vec<Shape>,
}

/// What a message is made of.
struct Shape {
    /// The messages that it holds, by number of field.
    fields: HashMap<u64, Field>,
    /// What one takes in memory.
    memory: usize,
    role: Role,
}

/// What a message is in somebody's metadata.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Struct,
    Value,
    Other,
}

struct Field {
    shape: usize,
    name: String,
    is_list: bool,
}

impl Shape {
    fn new(message: &MessageDescriptor, by_name: &HashMap<String, usize>) -> Self {
        let fields = message.fields().filter_map(|field| match field.kind() {
            Kind::Message(inner) => {
                let held = Field {
                    shape: *by_name.get(inner.full_name())?,
                    name: field.name().to_owned(),
                    is_list: field.is_list(),
                };
                Some((field.number().into(), held))
            }
            _ => None,
        });
        let (memory, role) = match message.full_name() {
            STRUCT => (STRUCT_BYTES, Role::Struct),
            VALUE => (TEXT_BYTES, Role::Value),
            _ if message.is_map_entry() => (TEXT_BYTES, Role::Other),
            _ => (MESSAGE_BYTES, Role::Other),
        };
        Self {
            fields: fields.collect(),
            memory,
            role,
        }
    }
}

fn shapes() -> &'static Shapes {
    static SHAPES: OnceLock<Shapes> = OnceLock::new();
    SHAPES.get_or_init(|| {
        // They are made by the build; without them nothing is followed, and bytes are bounded.
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
        let messages: Vec<MessageDescriptor> = pool.all_messages().collect();
        let by_name: HashMap<String, usize> = messages
            .iter()
            .enumerate()
            .map(|(at, message)| (message.full_name().to_owned(), at))
            .collect();
        let messages = messages
            .iter()
            .map(|message| Shape::new(message, &by_name))
            .collect();
        Shapes { by_name, messages }
    })
}

/// What one metadata has so far.
#[derive(Clone, Copy)]
struct Metadata {
    values: usize,
    depth: usize,
}

struct Walk<'a> {
    shapes: &'a Shapes,
    left: usize,
    memory: usize,
    /// Whether the limits of metadata hold.
    request: bool,
    /// The metadata that the walk is in.
    metadata: Option<Metadata>,
}

impl Walk<'_> {
    fn message(
        &mut self,
        shape: Option<usize>,
        mut bytes: &[u8],
        depth: usize,
    ) -> Result<(), Fault> {
        let deeper = depth.checked_sub(1).ok_or(Fault::Malformed)?;
        let shape = shape.map(|at| &self.shapes.messages[at]);
        // Of the same field, one after the other.
        let (mut last, mut index) = (0, 0_usize);
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            match key & 7 {
                0 => drop(varint(&mut bytes)?),
                1 => drop(take(&mut bytes, 8)?),
                5 => drop(take(&mut bytes, 4)?),
                2 => {
                    let len = varint(&mut bytes)?;
                    let part = take(&mut bytes, len)?;
                    self.left = self.left.checked_sub(1).ok_or(Fault::TooMany)?;
                    index = if last == key { index + 1 } else { 0 };
                    last = key;
                    match shape.and_then(|shape| shape.fields.get(&(key >> 3))) {
                        Some(field) => self
                            .field(field, part, deeper)
                            .map_err(|fault| within(fault, field, index))?,
                        None => self.memory += TEXT_BYTES + part.len(),
                    }
                }
                // Groups, which proto3 does not have.
                _ => return Err(Fault::Malformed),
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, bytes: &[u8], depth: usize) -> Result<(), Fault> {
        let shape = &self.shapes.messages[field.shape];
        self.memory += shape.memory;
        let outside = self.metadata;
        if self.request {
            self.metadata = match (outside, shape.role) {
                (None, Role::Struct) if bytes.len() > MAX_METADATA_WIRE_BYTES => {
                    return Err(refused(metadata_too_long(
                        bytes.len(),
                        MAX_METADATA_WIRE_BYTES,
                    )));
                }
                (None, Role::Struct) => Some(Metadata {
                    values: 0,
                    depth: 0,
                }),
                (Some(_), Role::Value) => outside.map(|metadata| Metadata {
                    values: metadata.values + 1,
                    depth: metadata.depth + 1,
                }),
                (metadata, _) => metadata,
            };
            if let Some(Metadata { values, depth }) = self.metadata {
                if values > MAX_METADATA_VALUES {
                    return Err(refused(metadata_too_many()));
                }
                if depth > MAX_METADATA_DEPTH {
                    return Err(refused(metadata_too_deep()));
                }
            }
        }
        self.message(Some(field.shape), bytes, depth)?;
        // Its values count on, its depth does not.
        self.metadata = self.metadata.zip(outside).map(|(now, before)| Metadata {
            depth: before.depth,
            ..now
        });
        Ok(())
    }
}

fn refused(message: impl fmt::Display) -> Fault {
    Fault::Metadata {
        field: String::new(),
        message: message.to_string(),
    }
}

/// The same fault, seen from one level further out.
fn within(fault: Fault, outer: &Field, index: usize) -> Fault {
    match fault {
        // What is within a metadata is not told: it may go deep.
        Fault::Metadata { field, message } => {
            let place = if outer.is_list {
                format!(".{}[{index}]", outer.name)
            } else {
                format!(".{}", outer.name)
            };
            let inside = ["fields", "value", "struct_value", "list_value", "values"];
            let field = if inside.contains(&outer.name.as_str()) {
                field
            } else {
                place + &field
            };
            Fault::Metadata { field, message }
        }
        other => other,
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: u64) -> Result<&'a [u8], Fault> {
    let len = usize::try_from(len).map_err(|_| Fault::Malformed)?;
    let (part, rest) = bytes.split_at_checked(len).ok_or(Fault::Malformed)?;
    *bytes = rest;
    Ok(part)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Fault> {
    prost::encoding::decode_varint(bytes).map_err(|_| Fault::Malformed)
}

#[cfg(test)]
mod tests {
    use prost::{Message as _, Name as _};

    use super::*;
    use crate::v1::{
        Item, ItemList, PatchSourceRequest, PutSourceRequest, put_source_request::Content,
    };
    use prost_types::{ListValue, Struct, Value, value::Kind};

    fn put(items: usize) -> Vec<u8> {
        let items = vec![Item::default(); items];
        PutSourceRequest {
            content: Some(Content::Items(ItemList { items })),
            ..PutSourceRequest::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn empty_items_are_counted_on_their_level() {
        let name = PutSourceRequest::full_name();
        let bytes = put(1_000);
        assert!(bytes.len() < 2_100, "an empty item takes two bytes");
        // The list and its items.
        assert_eq!(check(&name, &bytes, 1_001), Ok(()));
        assert_eq!(check(&name, &bytes, 1_000), Err(Fault::TooMany));
    }

    #[test]
    fn what_is_cut_or_nested_without_end_is_malformed() {
        let name = PutSourceRequest::full_name();
        let bytes = put(10);
        assert_eq!(
            check(&name, &bytes[..bytes.len() - 1], 100),
            Err(Fault::Malformed)
        );
        assert_eq!(check(&name, &[0x0b], 100), Err(Fault::Malformed), "a group");
        // google.protobuf.Value: a list of a list of a list …
        let mut nested = Vec::new();
        for _ in 0..60 {
            for field in [0x0a, 0x32] {
                let len = nested.len();
                let mut outer = vec![field];
                prost::encoding::encode_varint(len as u64, &mut outer);
                outer.append(&mut nested);
                nested = outer;
            }
        }
        assert_eq!(
            check("google.protobuf.Value", &nested, 1_000),
            Err(Fault::Malformed)
        );
    }

    fn metadata(kind: Kind) -> Struct {
        Struct {
            fields: [("a".to_owned(), Value { kind: Some(kind) })].into(),
        }
    }

    fn list(values: Vec<Kind>) -> Kind {
        let values = values.into_iter().map(|kind| Value { kind: Some(kind) });
        Kind::ListValue(ListValue {
            values: values.collect(),
        })
    }

    fn patch(metadata: Struct) -> Vec<u8> {
        let item = Item {
            metadata: Some(metadata),
            ..Item::default()
        };
        let upsert = vec![Item::default(), item];
        PatchSourceRequest {
            upsert,
            ..PatchSourceRequest::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn metadata_is_bounded_where_it_is_encoded() {
        let name = PatchSourceRequest::full_name();
        let one = Kind::NumberValue(1.0);
        // The list is a value, too, and so are its own.
        let most = patch(metadata(list(vec![one.clone(); MAX_METADATA_VALUES - 1])));
        assert!(measure(&name, &most, 10_000).is_ok());
        let deepest = (1..MAX_METADATA_DEPTH).fold(one.clone(), |inner, _| list(vec![inner]));
        assert!(measure(&name, &patch(metadata(deepest.clone())), 10_000).is_ok());
        for (kind, told) in [
            (
                list(vec![one; MAX_METADATA_VALUES]),
                "more than 1000 values",
            ),
            (list(vec![deepest]), "more than 16 levels"),
            (
                Kind::StringValue("x".repeat(MAX_METADATA_WIRE_BYTES)),
                "at most 65536",
            ),
        ] {
            let bytes = patch(metadata(kind));
            let Err(Fault::Metadata { field, message }) = measure(&name, &bytes, 10_000) else {
                panic!("{told}: should be refused");
            };
            assert_eq!(field, "upsert[1].metadata");
            assert!(message.contains(told), "{message}");
            // An answer tells what was stored once.
            assert_eq!(check(&name, &bytes, 10_000), Ok(()));
        }
    }

    #[test]
    fn what_a_message_unfolds_to_is_more_than_it_takes() {
        let name = PutSourceRequest::full_name();
        let items = measure(&name, &put(1_000), 10_000).unwrap();
        assert!(items >= 1_000 * size_of::<Item>(), "{items}");
        let nested = (0..10).fold(Kind::NullValue(0), |inner, _| {
            Kind::StructValue(metadata(inner))
        });
        let name = PatchSourceRequest::full_name();
        let bytes = measure(&name, &patch(metadata(nested)), 10_000).unwrap();
        // A node of a B-tree each.
        assert!(
            bytes >= 11 * 11 * (size_of::<String>() + size_of::<Value>()),
            "{bytes}"
        );
    }

    #[test]
    fn fields_are_found_by_their_number() {
        let bytes = patch(Struct::default());
        assert_eq!(fields(&bytes, 3).count() + fields(&bytes, 4).count(), 2);
        assert_eq!(fields(&bytes[..bytes.len() - 1], 99).count(), 0);
    }
}
