//! OpenAPI documents → one item per operation.
//!
//! Webhooks and callbacks are left out: they are calls that the API makes, not calls that
//! one can make to it.

use std::collections::HashSet;

use sha2::{Digest, Sha256};
use weir_proto::limits::MAX_ITEM_ID_BYTES;

use super::{
    IngestError, Item, TextKind, Warning, Warnings, check_item, cut,
    operation::{Operation, describe, metadata},
    schema::Refs,
    tree::{self, Object, Value},
};

/// The methods of OpenAPI, in the order of its specification.
const METHODS: [&str; 8] = [
    "get", "put", "post", "delete", "options", "head", "patch", "trace",
];

/// Most text that the operations of one document make, of any and for each of its
/// bytes, and of the largest. An honest document makes less than its own size;
/// references can multiply it.
const TEXT_BYTES: (usize, usize) = (1 << 20, 4);
const MAX_TEXT_BYTES: usize = 64 << 20;

/// Most operations of one document, several times what the largest public API
/// descriptions have.
const MAX_OPERATIONS: usize = 100_000;

/// Most text that the operations of a document of so many bytes may make.
fn text_allowance(bytes: usize) -> usize {
    let allowance = TEXT_BYTES
        .0
        .saturating_add(bytes.saturating_mul(TEXT_BYTES.1));
    allowance.min(MAX_TEXT_BYTES)
}

/// How much memory reading a document takes at most, beside the document.
pub(super) fn needed(content: &[u8]) -> usize {
    // Of each text there may be a second one, in chunks that overlap.
    tree::allowance(content) + 2 * text_allowance(content.len())
}

/// Reads a document, JSON or YAML.
pub(super) fn read(text: &str, take: &mut dyn FnMut(Item)) -> Result<Vec<Warning>, IngestError> {
    let root = tree::parse(text)?;
    check_version(&root)?;
    let mut refs = Refs::new(&root, text.len());
    let allowance = text_allowance(text.len());
    let operations = find_operations(&root, &mut refs)?;
    if operations.is_empty() {
        return Err(IngestError::NoOperations);
    }
    let ids = item_ids(&operations, &mut refs.warnings);
    let mut text_bytes = 0;
    for (operation, item_id) in operations.iter().zip(ids) {
        let text = describe(operation, &mut refs, &item_id);
        text_bytes += text.len();
        if text_bytes > allowance || !refs.charge(0) {
            return Err(too_much(operation));
        }
        let metadata = metadata(operation);
        check_item(&item_id, &text, Some(&metadata)).map_err(|fault| IngestError::Item {
            place: cut(&operation.name(), 200),
            fault,
        })?;
        take(Item {
            item_id,
            text,
            kind: TextKind::Plain,
            heading: operation.heading(),
            metadata: Some(metadata),
        });
    }
    Ok(refs.warnings.finish())
}

fn check_version(root: &Value) -> Result<(), IngestError> {
    if root.as_object().is_none() {
        return Err(IngestError::NotOpenApi("it is not an object"));
    }
    let Some(version) = root.get("openapi").or_else(|| root.get("swagger")) else {
        return Err(IngestError::NotOpenApi(
            "it has neither an \"openapi\" nor a \"swagger\" field at the top",
        ));
    };
    // `swagger: 2.0` without quotes is a number in YAML.
    let version = match version {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => "of no known kind".to_owned(),
    };
    let supported = ["2.0", "3.0", "3.1"].iter().any(|known| {
        version
            .strip_prefix(known)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
    });
    if supported {
        Ok(())
    } else {
        Err(IngestError::UnsupportedVersion {
            version: cut(&version, 40),
        })
    }
}

fn find_operations<'a>(
    root: &'a Value,
    refs: &mut Refs<'a>,
) -> Result<Vec<Operation<'a>>, IngestError> {
    let mut operations = Vec::new();
    let paths = root.get("paths").and_then(Value::as_object);
    for (path, entry) in paths.into_iter().flat_map(Object::iter) {
        if path.starts_with("x-") || *entry == Value::Null {
            continue;
        }
        let Some(path_item) = refs.resolve(entry, "") else {
            continue;
        };
        if path_item.as_object().is_none() {
            let message = format!("path {:?} is not an object; it was skipped", cut(path, 200));
            refs.warnings.push("", message);
            continue;
        }
        for method in METHODS {
            // A `$ref` may have operations beside it; the nearer one counts.
            let Some(found) = entry.get(method).or_else(|| path_item.get(method)) else {
                continue;
            };
            let Some(object) = found.as_object() else {
                let message = format!(
                    "{} {} is not an object; it was skipped",
                    method.to_uppercase(),
                    cut(path, 200)
                );
                refs.warnings.push("", message);
                continue;
            };
            let operation = Operation {
                method,
                path,
                path_item,
                object,
            };
            // Many paths may share one path item with long texts.
            let text_bytes: usize = ["operationId", "summary", "description"]
                .into_iter()
                .filter_map(|key| object.get(key)?.as_str())
                .map(str::len)
                .sum();
            if operations.len() >= MAX_OPERATIONS || !refs.charge(1 + text_bytes / 16) {
                return Err(too_much(&operation));
            }
            operations.push(operation);
        }
    }
    Ok(operations)
}

fn too_much(operation: &Operation<'_>) -> IngestError {
    IngestError::TooMuch {
        operation: cut(&operation.name(), 200),
    }
}

/// One id for each operation, each once. The first operation of an
/// `operationId` has it; the later ones, and those without, are named by method
/// and path, which are unique.
fn item_ids(operations: &[Operation<'_>], warnings: &mut Warnings) -> Vec<String> {
    let wanted: Vec<(String, Option<String>)> = operations.iter().map(wanted_id).collect();
    let mut taken: HashSet<String> = wanted.iter().map(|(id, _)| id.clone()).collect();
    let mut used: HashSet<&str> = HashSet::new();
    let mut ids = Vec::with_capacity(operations.len());
    for ((id, finding), operation) in wanted.iter().zip(operations) {
        let id = if used.insert(id) {
            id.clone()
        } else {
            let other = free_id(id, operation, &mut taken);
            let message = format!(
                "operationId {:?} is used by an operation before; {} is kept as {other:?}",
                cut(id, 200),
                cut(&operation.name(), 200)
            );
            warnings.push(&other, message);
            other
        };
        if let Some(finding) = finding {
            warnings.push(&id, finding.clone());
        }
        ids.push(id);
    }
    ids
}

/// The id an operation has by itself, and what had to be done to it.
fn wanted_id(operation: &Operation<'_>) -> (String, Option<String>) {
    let id = match operation.object.get("operationId") {
        Some(Value::String(id)) if !id.trim().is_empty() => id.trim().to_owned(),
        Some(Value::Number(id)) => id.to_string(),
        _ => operation.name(),
    };
    let lawful = lawful_id(&id);
    let finding = (lawful != id).then(|| {
        format!(
            "the id of {} is over {MAX_ITEM_ID_BYTES} bytes or has control characters; it was \
             changed",
            cut(&operation.name(), 200)
        )
    });
    (lawful, finding)
}

/// `id (METHOD path)`, numbered should the document have that as well.
fn free_id(id: &str, operation: &Operation<'_>, taken: &mut HashSet<String>) -> String {
    let base = format!("{id} ({})", operation.name());
    let mut candidate = lawful_id(&base);
    let mut number = 2;
    while !taken.insert(candidate.clone()) {
        candidate = lawful_id(&format!("{base} #{number}"));
        number += 1;
    }
    candidate
}

/// The id within the limits: control characters become spaces, and what is too
/// long ends in a hash of the whole, so that ids that differ late stay apart.
fn lawful_id(id: &str) -> String {
    let id: String = id
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if id.len() <= MAX_ITEM_ID_BYTES {
        return id;
    }
    let hash = Sha256::digest(&id)
        .iter()
        .take(8)
        .fold(0, |hash, byte| (hash << 8) | u64::from(*byte));
    // Room for the ellipsis and sixteen digits.
    let mut end = MAX_ITEM_ID_BYTES - 19;
    while !id.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…{hash:016x}", &id[..end])
}
