//! How many parts an encoded message has, seen before it is decoded.
//!
//! An empty item takes two bytes on the wire and a hundred in memory, so that a
//! message within the limit of bytes may take gigabytes once it is decoded. The
//! walk here needs no memory: it follows the lengths in the bytes, and knows
//! from the descriptors which of them hold messages of their own.

use std::{collections::HashMap, sync::OnceLock};

use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

use crate::v1::FILE_DESCRIPTOR_SET;

/// Messages within messages that are followed; as many as are decoded.
const MAX_DEPTH: usize = 100;

/// Why a message is not to be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It has more parts than it may.
    TooMany,
    /// It is no message, or none that ends where it should.
    Malformed,
}

/// Walks through the bytes of a message whose type has this full name, and
/// fails where it has more than `most` parts. A name that is not of this
/// contract has no parts within its parts.
pub fn check(name: &str, bytes: &[u8], most: usize) -> Result<(), Fault> {
    let shapes = shapes();
    let mut walk = Walk { shapes, left: most };
    walk.message(shapes.by_name.get(name).copied(), bytes, MAX_DEPTH)
}

/// Which fields of which messages are messages.
struct Shapes {
    by_name: HashMap<String, usize>,
    /// For each message, by number of field: the message that it holds.
    fields: Vec<HashMap<u64, usize>>,
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
        let held = |message: &MessageDescriptor| {
            let fields = message.fields();
            let held = fields.filter_map(|field| match field.kind() {
                Kind::Message(inner) => {
                    Some((field.number().into(), *by_name.get(inner.full_name())?))
                }
                _ => None,
            });
            held.collect()
        };
        let fields = messages.iter().map(held).collect();
        Shapes { by_name, fields }
    })
}

struct Walk<'a> {
    shapes: &'a Shapes,
    left: usize,
}

impl Walk<'_> {
    fn message(
        &mut self,
        shape: Option<usize>,
        mut bytes: &[u8],
        depth: usize,
    ) -> Result<(), Fault> {
        let deeper = depth.checked_sub(1).ok_or(Fault::Malformed)?;
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
                    let inner = shape.and_then(|at| self.shapes.fields[at].get(&(key >> 3)));
                    if let Some(inner) = inner {
                        self.message(Some(*inner), part, deeper)?;
                    }
                }
                // Groups, which proto3 does not have.
                _ => return Err(Fault::Malformed),
            }
        }
        Ok(())
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
    use crate::v1::{Item, ItemList, PutSourceRequest, put_source_request::Content};

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
}
