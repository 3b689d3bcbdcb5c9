//! JSON or YAML → one tree of values, in bounded memory.

mod value;

use std::{cell::Cell, fmt, panic::resume_unwind, thread};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

use self::value::ObjectBuilder;
pub(super) use self::value::{Object, Value};
use super::{IngestError, cut};

/// Most values a document may hold, aliases written out. The largest public API
/// descriptions stay under half of it.
const MAX_NODES: usize = 2_000_000;

/// Most memory that the values of a document may take, aliases written out.
const MAX_BYTES: usize = 160 << 20;

/// What a document may take in any case, however short it is.
const MIN_BYTES: usize = 1 << 20;

/// What the values of a document take at most for each byte that begins or ends
/// one: the most in `- k: v` of YAML, which has two.
const NODE_BYTES: usize = 112;

/// What the parts of a value take: its place in a list that grows, a key, a
/// text of its own, an object.
const PLACE_BYTES: usize = 32;
const KEY_BYTES: usize = 48;
const TEXT_BYTES: usize = 24;
const OBJECT_BYTES: usize = 64;

/// How many times its own values a document with aliases may write out.
const ALIAS_FACTOR: usize = 4;

/// What the parser of YAML keeps for each event of a part that an alias may
/// repeat.
const EVENT_BYTES: usize = 200;

/// Deepest nesting; what `serde_json` allows by itself.
const MAX_DEPTH: usize = 128;

/// Stack for the parsers at [`MAX_DEPTH`], with room to spare.
const STACK_BYTES: usize = 16 << 20;

/// How much memory the values of a document may take: what its bytes can make,
/// and some more where it has aliases.
pub(super) fn allowance(content: &[u8]) -> usize {
    let bytes = estimate(content);
    let is_json = content.trim_ascii_start().starts_with(b"{");
    let bytes = if !is_json && content.contains(&b'*') && content.contains(&b'&') {
        bytes.saturating_mul(ALIAS_FACTOR)
    } else {
        bytes
    };
    bytes.clamp(MIN_BYTES, MAX_BYTES)
}

/// How much memory the values of a document take at most that has no aliases.
pub(super) fn estimate(content: &[u8]) -> usize {
    let parts = |byte: &u8| matches!(byte, b',' | b':' | b'{' | b'[' | b'\n');
    let values = content.iter().filter(|byte| parts(byte)).count() + 1;
    values * NODE_BYTES + content.len()
}

/// Parses JSON when the text begins as a JSON object does, else YAML.
pub(super) fn parse(text: &str) -> Result<Value, IngestError> {
    if text.trim().is_empty() {
        return Err(IngestError::Blank);
    }
    let allowance = allowance(text.as_bytes());
    let bounds = Bounds {
        nodes: Cell::new(MAX_NODES),
        allowance,
        bytes: Cell::new(allowance),
    };
    let parse = move || {
        if text.trim_start().starts_with('{') {
            parse_json(text, &bounds)
        } else {
            parse_yaml(text, &bounds)
        }
    };
    // The parsers recurse, some 30 KB a level in a debug build: too much for
    // the stack of a thread that was made for something else.
    thread::scope(|scope| {
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, parse)
            .map_err(|_| IngestError::NoThread)?
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn parse_json(text: &str, bounds: &Bounds) -> Result<Value, IngestError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Node(bounds)
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| {
            let what = json_message(&error);
            IngestError::Syntax {
                language: "JSON",
                message: format!("{what} (line {}, column {})", error.line(), error.column()),
            }
        })
}

fn parse_yaml(text: &str, bounds: &Bounds) -> Result<Value, IngestError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            // One anchor with many aliases is how shared parts are written;
            // what they unfold to is bounded by `Bounds` and by the number of
            // replayed events.
            enforce_alias_anchor_ratio: false,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_total_scalar_bytes: bounds.allowance,
            max_recorded_anchor_events: bounds.allowance / EVENT_BYTES,
            max_recorded_anchor_bytes: bounds.allowance,
            max_documents: 1,
        },
        // YAML 1.2: `on`, `no` and `y` are strings.
        strict_booleans: true,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
        // Snippets would echo the document.
        with_snippet: false,
    };
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        Node(bounds).deserialize(deserializer)
    })
    .map_err(|error| IngestError::Syntax {
        language: "YAML",
        message: yaml_message(&error),
    })
}

/// How much memory the values of a document were taken to need.
#[cfg(test)]
pub(super) fn taken(text: &str) -> usize {
    let bounds = Bounds {
        nodes: Cell::new(MAX_NODES),
        allowance: MAX_BYTES,
        bytes: Cell::new(MAX_BYTES),
    };
    let parsed = if text.starts_with('{') {
        parse_json(text, &bounds)
    } else {
        parse_yaml(text, &bounds)
    };
    parsed.map_or(usize::MAX, |_| MAX_BYTES - bounds.bytes.get())
}

/// What `serde_json` found wrong, without the place, for that is told in the
/// terms of the document.
pub(super) fn json_message(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    excerpt(message.strip_suffix(&place).unwrap_or(&message))
}

/// What the YAML parser found wrong, with the place.
fn yaml_message(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::{Error, budget::BudgetBreach};

    let mut cause = error;
    while let Error::AliasError { error, .. } = cause {
        cause = error;
    }
    let bound = match cause {
        Error::Budget {
            breach: BudgetBreach::Depth { .. },
            ..
        } => format!("it is nested deeper than {MAX_DEPTH} levels"),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "it holds too much, or its aliases (*name) write out to too much".to_owned()
        }
        _ => return excerpt(&error.to_string()),
    };
    let place = error.location().map_or_else(String::new, |location| {
        format!(" (line {}, column {})", location.line(), location.column())
    });
    bound + &place
}

/// A parser's message on one line, cut where it quotes the document at length.
fn excerpt(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    cut(&words.join(" "), 300)
}

/// What may still be built.
struct Bounds {
    nodes: Cell<usize>,
    /// What it began with.
    allowance: usize,
    bytes: Cell<usize>,
}

impl Bounds {
    fn take_node<E: Error>(&self) -> Result<(), E> {
        take(&self.nodes, 1)
            .ok_or_else(|| E::custom(format!("the document holds more than {MAX_NODES} values")))?;
        self.take_bytes(PLACE_BYTES)
    }

    fn take_bytes<E: Error>(&self, bytes: usize) -> Result<(), E> {
        take(&self.bytes, bytes).ok_or_else(|| {
            E::custom(format!(
                "the document unfolds to more than {} bytes of memory; split it, or write fewer aliases",
                self.allowance
            ))
        })
    }
}

fn take(left: &Cell<usize>, amount: usize) -> Option<()> {
    left.set(left.get().checked_sub(amount)?);
    Some(())
}

/// Builds one value within the bounds.
#[derive(Clone, Copy)]
struct Node<'a>(&'a Bounds);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.take_node()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.0.take_bytes(TEXT_BYTES + value.len())?;
        Ok(Value::String(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.0.take_bytes(OBJECT_BYTES)?;
        let mut entries = ObjectBuilder::default();
        while let Some(key) = access.next_key::<String>()? {
            self.0.take_bytes(KEY_BYTES + key.len())?;
            if entries.has(&key) {
                // Which of the two was meant is not ours to guess.
                return Err(A::Error::custom(format!(
                    "the key {:?} occurs twice in one object",
                    cut(&key, 80)
                )));
            }
            entries.push(key.into(), access.next_value_seed(self)?);
        }
        Ok(entries.finish())
    }
}
