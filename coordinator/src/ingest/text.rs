//! Markdown, plain text and JSON Lines.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use weir_proto::limits::MAX_DOCUMENT_ITEMS;

use super::{
    IngestError, Item, TextKind, Warning, check_item, check_raw_metadata, cut, tree::json_message,
};

/// What an item of one line takes in memory beside its bytes: id, text and place,
/// each by itself.
const ITEM_BYTES: usize = 320;

/// How much memory the items of JSON Lines take at most, beside their bytes.
pub(super) fn needed(content: &[u8]) -> usize {
    let lines = content.split(|byte| *byte == b'\n').count();
    lines.min(MAX_DOCUMENT_ITEMS) * ITEM_BYTES
}

/// A whole document as one item.
pub(super) fn one_item(
    text: &str,
    kind: TextKind,
    item_id: &str,
    take: &mut dyn FnMut(Item),
) -> Result<Vec<Warning>, IngestError> {
    if text.trim().is_empty() {
        return Err(IngestError::Blank);
    }
    check_item(item_id, text, None).map_err(|fault| IngestError::Item {
        place: "the document".to_owned(),
        fault,
    })?;
    take(Item {
        item_id: item_id.to_owned(),
        text: text.to_owned(),
        kind,
        heading: String::new(),
        metadata: None,
    });
    Ok(Vec::new())
}

/// One line. The metadata stays unparsed until its length is known: parsed, it
/// may take many times the memory.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    item_id: String,
    text: String,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

/// One item a line; blank lines are skipped.
pub(super) fn json_lines(
    text: &str,
    take: &mut dyn FnMut(Item),
) -> Result<Vec<Warning>, IngestError> {
    let mut lines = Lines::default();
    // Hashes take a fifth of what the ids would.
    let mut first_lines: HashMap<u64, u32> = HashMap::new();
    let hasher = RandomState::new();
    for content in text.lines() {
        let Some(item) = lines.read(content)? else {
            continue;
        };
        let line = lines.read;
        let first = first_lines.insert(hasher.hash_one(&item.item_id), line as u32);
        if let Some(first) = first
            && has_id(text, first, &item.item_id)
        {
            return Err(IngestError::Line {
                line,
                message: format!(
                    "item_id {:?} is already on line {first}; each may occur once",
                    cut(&item.item_id, 80)
                ),
            });
        }
        take(item);
    }
    if lines.items == 0 {
        return Err(IngestError::Blank);
    }
    Ok(Vec::new())
}

/// Reads JSON Lines, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// Lines so far.
    read: usize,
    /// Items so far.
    pub(crate) items: usize,
}

impl Lines {
    /// As [`Self::read`], of a line that may not be text.
    pub(crate) fn read_bytes(&mut self, line: &[u8]) -> Result<Option<Item>, IngestError> {
        let place = self.read + 1;
        let refused = |message| IngestError::Line {
            line: place,
            message,
        };
        let text = std::str::from_utf8(line).map_err(|error| {
            let column = error.valid_up_to() + 1;
            refused(format!("is not UTF-8 at column {column}; save it as UTF-8"))
        })?;
        let mark = if self.read == 0 { "\u{feff}" } else { "" };
        self.read(text.strip_prefix(mark).unwrap_or(text))
    }

    /// The item of the next line; `None` where that is blank.
    pub(crate) fn read(&mut self, content: &str) -> Result<Option<Item>, IngestError> {
        self.read += 1;
        if content.trim().is_empty() {
            return Ok(None);
        }
        let line = self.read;
        let refused = |message| IngestError::Line { line, message };
        if self.items == MAX_DOCUMENT_ITEMS {
            return Err(refused(format!(
                "the document has more than {MAX_DOCUMENT_ITEMS} items; make several sources of it, or import its \
                 items instead"
            )));
        }
        self.items += 1;
        read_line(content).map(Some).map_err(refused)
    }
}

/// Whether the item of this line, from 1, has this id.
fn has_id(text: &str, line: u32, item_id: &str) -> bool {
    let content = text.lines().nth(line as usize - 1);
    let item = content.and_then(|content| read_line(content).ok());
    item.is_some_and(|item| item.item_id == item_id)
}

fn read_line(content: &str) -> Result<Item, String> {
    let line: Line<'_> = serde_json::from_str(content)
        .map_err(|error| format!("{} (column {})", json_message(&error), error.column()))?;
    let metadata = line.metadata.map(read_metadata).transpose()?;
    check_item(&line.item_id, &line.text, metadata.as_ref()).map_err(|fault| fault.to_string())?;
    Ok(Item {
        item_id: line.item_id,
        text: line.text,
        kind: TextKind::Plain,
        heading: String::new(),
        metadata,
    })
}

fn read_metadata(raw: &RawValue) -> Result<Map<String, Value>, String> {
    let json = raw.get();
    if !json.starts_with('{') {
        return Err(format!(
            "metadata must be an object, not {:?}",
            cut(json, 40)
        ));
    }
    check_raw_metadata(json).map_err(|message| format!("metadata {message}"))?;
    serde_json::from_str(json).map_err(|error| format!("metadata: {}", json_message(&error)))
}
