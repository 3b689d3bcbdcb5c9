//! Ingest: documents → items. Pure: bytes in, items and warnings out.

mod openapi;
mod operation;
mod schema;
mod text;
mod tree;

use serde_json::{Map, Value};
use weir_proto::limits::{
    MAX_ITEM_ID_BYTES, MAX_ITEM_TEXT_BYTES, MAX_METADATA_BYTES, MAX_METADATA_DEPTH,
    MAX_METADATA_VALUES, metadata_too_deep, metadata_too_many,
};

pub use crate::job::chunk::TextKind;
pub(crate) use text::Lines;

/// Most warnings that one document gives; the last one then counts the rest.
pub const MAX_WARNINGS: usize = 1_000;

/// How a document is read into items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenAPI 2.0, 3.0 or 3.1, as JSON or YAML, told apart by the content: one
    /// item per operation.
    OpenApi,
    /// Markdown: one item.
    Markdown,
    /// Plain text: one item.
    Text,
    /// One JSON object a line: `{"item_id": …, "text": …, "metadata": {…}}`.
    JsonLines,
}

/// One embeddable thing, within the limits of the contract.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The stable identity within the source.
    pub item_id: String,
    /// What is embedded.
    pub text: String,
    /// How the text is to be split.
    pub kind: TextKind,
    /// What the text is about, in a line, to stand before each part of it but
    /// the first; empty where the parts speak for themselves.
    pub heading: String,
    /// What comes back with a search hit.
    pub metadata: Option<Map<String, Value>>,
}

/// Something that was accepted but deserves a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The item it concerns; empty when what it concerns gave no item.
    pub item_id: String,
    /// What was found and what was done about it.
    pub message: String,
}

/// What a document was read into.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ingested {
    /// The items, each `item_id` once, in the order of the document.
    pub items: Vec<Item>,
    /// At most [`MAX_WARNINGS`] findings.
    pub warnings: Vec<Warning>,
}

/// Why a document is refused. Messages quote at most a short excerpt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    /// Not text as we know it.
    #[error("the content is not UTF-8: the byte at offset {offset} is wrong; save it as UTF-8")]
    NotUtf8 {
        /// The first wrong byte, from 0.
        offset: usize,
    },
    /// Postgres holds no NUL in a text.
    #[error("the content has a NUL byte at offset {offset}; remove it")]
    Nul {
        /// The byte, from 0.
        offset: usize,
    },
    /// Nothing to embed.
    #[error("the content is blank: there is nothing to embed")]
    Blank,
    /// Not parsable, or not within the bounds of what is parsed.
    #[error("the content cannot be read as {language}: {message}")]
    Syntax {
        /// "JSON" or "YAML".
        language: &'static str,
        /// What is wrong and where.
        message: String,
    },
    /// The machine is out of threads, through no fault of the document.
    #[error("no thread could be started to read the content; try again")]
    NoThread,
    /// Parsable, but something else.
    #[error("the content is not an OpenAPI document: {0}")]
    NotOpenApi(&'static str),
    /// An OpenAPI version we do not know.
    #[error("OpenAPI version {version:?} is not supported; 2.0, 3.0 and 3.1 are")]
    UnsupportedVersion {
        /// What the document calls itself, cut.
        version: String,
    },
    /// Nothing to embed.
    #[error("the OpenAPI document has no operations: \"paths\" is missing or holds none")]
    NoOperations,
    /// The document unfolds to more than a document may.
    #[error(
        "the document has too many operations or they share too much (at {operation}); split it"
    )]
    TooMuch {
        /// Method and path of the operation that was one too many.
        operation: String,
    },
    /// A wrong line of JSON Lines.
    #[error("line {line}: {message}")]
    Line {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// An item that breaks a limit of the contract.
    #[error("{place}: {fault}")]
    Item {
        /// Where the item comes from, or its id.
        place: String,
        /// What is wrong with it.
        fault: ItemFault,
    },
}

/// What is wrong with an item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {message}")]
pub struct ItemFault {
    /// `item_id`, `text` or `metadata`.
    pub field: &'static str,
    /// What is wrong, to be read after the name of the field.
    pub message: String,
}

/// Reads a document into items. `item_id` is the id of the one item of a
/// Markdown or plain text document; the other formats ignore it.
pub fn read(format: Format, content: &[u8], item_id: &str) -> Result<Ingested, IngestError> {
    let mut items = Vec::new();
    let warnings = read_each(format, content, item_id, &mut |item| items.push(item))?;
    Ok(Ingested { items, warnings })
}

/// As [`read`], with each item handed over as it is read; what comes before an
/// error is handed over as well.
pub fn read_each(
    format: Format,
    content: &[u8],
    item_id: &str,
    take: &mut dyn FnMut(Item),
) -> Result<Vec<Warning>, IngestError> {
    let text = decode(content)?;
    match format {
        Format::OpenApi => openapi::read(text, take),
        Format::Markdown => text::one_item(text, TextKind::Markdown, item_id, take),
        Format::Text => text::one_item(text, TextKind::Plain, item_id, take),
        Format::JsonLines => text::json_lines(text, take),
    }
}

/// How much memory reading a document takes at most, beside its bytes and the
/// texts of its items.
pub(crate) fn needed(format: Format, content: &[u8]) -> usize {
    match format {
        Format::OpenApi => openapi::needed(content),
        Format::JsonLines => text::needed(content),
        Format::Markdown | Format::Text => 0,
    }
}

/// Checks an item against the limits of the contract.
pub fn check_item(
    item_id: &str,
    text: &str,
    metadata: Option<&Map<String, Value>>,
) -> Result<(), ItemFault> {
    check_item_id(item_id)?;
    let fault = |message: String| {
        Err(ItemFault {
            field: "text",
            message,
        })
    };
    if text.len() > MAX_ITEM_TEXT_BYTES {
        return fault(format!(
            "is {} bytes long; at most {MAX_ITEM_TEXT_BYTES} are allowed",
            text.len()
        ));
    }
    if text.trim().is_empty() {
        return fault("is blank: there is nothing to embed".to_owned());
    }
    if let Some(offset) = text.find('\0') {
        return fault(format!("has a NUL character at byte {offset}; remove it"));
    }
    metadata.map_or(Ok(()), check_metadata)
}

/// Checks an id alone, as of an item to be deleted.
pub fn check_item_id(item_id: &str) -> Result<(), ItemFault> {
    let fault = |message: String| {
        Err(ItemFault {
            field: "item_id",
            message,
        })
    };
    if item_id.is_empty() {
        return fault("is empty".to_owned());
    }
    if item_id.len() > MAX_ITEM_ID_BYTES {
        return fault(format!(
            "is {} bytes long; at most {MAX_ITEM_ID_BYTES} are allowed",
            item_id.len()
        ));
    }
    if let Some((offset, c)) = item_id.char_indices().find(|(_, c)| c.is_control()) {
        return fault(format!(
            "has the control character U+{:04X} at byte {offset}; remove it",
            u32::from(c)
        ));
    }
    Ok(())
}

fn check_metadata(metadata: &Map<String, Value>) -> Result<(), ItemFault> {
    let fault = |message: String| {
        Err(ItemFault {
            field: "metadata",
            message,
        })
    };
    let mut values = 0;
    for value in metadata.values() {
        if let Err(message) = count(value, 1, &mut values) {
            return fault(message);
        }
    }
    if metadata.iter().any(|(key, value)| holds_nul(key, value)) {
        return fault("has a NUL character in a key or string; remove it".to_owned());
    }
    // A map with string keys always has a JSON form; one without counts as too
    // large rather than as nothing.
    let bytes = serde_json::to_vec(metadata).map_or(usize::MAX, |json| json.len());
    if bytes > MAX_METADATA_BYTES {
        return fault(format!(
            "is {bytes} bytes of JSON; at most {MAX_METADATA_BYTES} are allowed"
        ));
    }
    Ok(())
}

/// Counts the values of a metadata, this one on level `depth`.
fn count(value: &Value, depth: usize, values: &mut usize) -> Result<(), String> {
    *values += 1;
    if *values > MAX_METADATA_VALUES {
        return Err(metadata_too_many());
    }
    if depth > MAX_METADATA_DEPTH {
        return Err(metadata_too_deep());
    }
    match value {
        Value::Array(inner) => inner
            .iter()
            .try_for_each(|value| count(value, depth + 1, values)),
        Value::Object(inner) => inner
            .values()
            .try_for_each(|value| count(value, depth + 1, values)),
        _ => Ok(()),
    }
}

/// Checks a metadata, an object in JSON, before it is parsed: parsed it may take
/// many times the memory. Fails with what is wrong, to be read after the name of
/// the field.
pub(crate) fn check_raw_metadata(json: &str) -> Result<(), String> {
    if json.len() > MAX_METADATA_BYTES {
        return Err(format!(
            "is {} bytes of JSON; at most {MAX_METADATA_BYTES} are allowed",
            json.len()
        ));
    }
    let (mut values, mut depth, mut in_string, mut escaped) = (0, 0_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        // A comma stands before each value but the first of each list or object.
        if values >= MAX_METADATA_VALUES {
            return Err(metadata_too_many());
        }
        // The object itself is around its first level.
        if depth > MAX_METADATA_DEPTH + 1 {
            return Err(metadata_too_deep());
        }
    }
    Ok(())
}

/// Whether Postgres would refuse this entry as part of a `jsonb`.
fn holds_nul(key: &str, value: &Value) -> bool {
    key.contains('\0')
        || match value {
            Value::String(text) => text.contains('\0'),
            Value::Array(values) => values.iter().any(|value| holds_nul("", value)),
            Value::Object(map) => map.iter().any(|(key, value)| holds_nul(key, value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
}

/// The content as text, without a byte order mark and without NUL.
fn decode(content: &[u8]) -> Result<&str, IngestError> {
    let text = std::str::from_utf8(content).map_err(|error| IngestError::NotUtf8 {
        offset: error.valid_up_to(),
    })?;
    if let Some(offset) = text.find('\0') {
        return Err(IngestError::Nul { offset });
    }
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// The first `chars` characters, with an ellipsis when there are more.
fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
    }
}

/// Gathers warnings up to [`MAX_WARNINGS`].
#[derive(Debug, Default)]
struct Warnings {
    kept: Vec<Warning>,
    dropped: usize,
}

impl Warnings {
    fn push(&mut self, item_id: &str, message: String) {
        // One place is left for the count of the others.
        if self.kept.len() < MAX_WARNINGS - 1 {
            self.kept.push(Warning {
                item_id: item_id.to_owned(),
                message,
            });
        } else {
            self.dropped += 1;
        }
    }

    fn finish(mut self) -> Vec<Warning> {
        if self.dropped > 0 {
            self.kept.push(Warning {
                item_id: String::new(),
                message: format!("{} more findings were left out", self.dropped),
            });
        }
        self.kept
    }
}

#[cfg(test)]
mod tests;
