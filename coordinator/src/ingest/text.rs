//! Markdown, plain text and JSON Lines.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use weir_proto::limits::MAX_METADATA_BYTES;

use super::{IngestError, Ingested, Item, TextKind, check_item, cut, tree::json_message};

/// A whole document as one item.
pub(super) fn one_item(text: &str, kind: TextKind, item_id: &str) -> Result<Ingested, IngestError> {
    if text.trim().is_empty() {
        return Err(IngestError::Blank);
    }
    check_item(item_id, text, None).map_err(|fault| IngestError::Item {
        place: "the document".to_owned(),
        fault,
    })?;
    Ok(Ingested {
        items: vec![Item {
            item_id: item_id.to_owned(),
            text: text.to_owned(),
            kind,
            heading: String::new(),
            metadata: None,
        }],
        warnings: Vec::new(),
    })
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
pub(super) fn json_lines(text: &str) -> Result<Ingested, IngestError> {
    let mut items = Vec::new();
    let mut first_lines = HashMap::new();
    for (index, content) in text.lines().enumerate() {
        if content.trim().is_empty() {
            continue;
        }
        let line = index + 1;
        let item = read_line(content).map_err(|message| IngestError::Line { line, message })?;
        if let Some(first) = first_lines.insert(item.item_id.clone(), line) {
            let message = format!(
                "item_id {:?} is already on line {first}; each may occur once",
                cut(&item.item_id, 80)
            );
            return Err(IngestError::Line { line, message });
        }
        items.push(item);
    }
    if items.is_empty() {
        return Err(IngestError::Blank);
    }
    Ok(Ingested {
        items,
        warnings: Vec::new(),
    })
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
    if json.len() > MAX_METADATA_BYTES {
        return Err(format!(
            "metadata is {} bytes of JSON; at most {MAX_METADATA_BYTES} are allowed",
            json.len()
        ));
    }
    if !json.starts_with('{') {
        return Err(format!(
            "metadata must be an object, not {:?}",
            cut(json, 40)
        ));
    }
    serde_json::from_str(json).map_err(|error| format!("metadata: {}", json_message(&error)))
}
