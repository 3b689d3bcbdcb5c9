//! Schemas of an OpenAPI document → lines that name and describe their fields.

use std::{
    collections::{HashSet, VecDeque},
    ptr,
};

use percent_encoding::percent_decode_str;

use super::{
    Warnings, cut,
    tree::{Object, Value},
};

/// Deepest field that is described: `a.b.c`. What lies deeper says little
/// about the operation.
const MAX_FIELD_DEPTH: usize = 3;

/// Most fields that one body describes.
const MAX_FIELDS: usize = 80;

/// Most schemas looked at for one body, described or not.
const MAX_VISITS: usize = 1_000;

/// Longest description of a field, in characters.
const MAX_DESCRIPTION_CHARS: usize = 300;

/// Longest name of a field, in characters, with the fields it lies in.
const MAX_FIELD_NAME_CHARS: usize = 200;

/// Most values of an enumeration that are named.
const MAX_ENUM_VALUES: usize = 12;

/// Most references that lead from one to the next.
const MAX_REF_HOPS: usize = 32;

/// Longest reference that is followed, in bytes.
const MAX_REF_BYTES: usize = 1_000;

/// Most work that one document makes: schemas, fields and references looked at,
/// however many operations share them. The largest public API descriptions make
/// a tenth of it.
const MAX_WORK: usize = 20_000_000;

/// The work that any document may make, and for each of its bytes. Honest ones
/// make less than one for each.
const WORK: (usize, usize) = (1_000_000, 16);

/// Bytes of a reference whose reading counts as one more look.
const REF_BYTES_A_LOOK: usize = 64;

/// Resolves the references of one document and bounds the work they make.
pub(super) struct Refs<'a> {
    root: &'a Value,
    warned: HashSet<&'a str>,
    work_left: usize,
    /// Findings so far.
    pub(super) warnings: Warnings,
}

impl<'a> Refs<'a> {
    /// Those of a document of so many bytes.
    pub(super) fn new(root: &'a Value, bytes: usize) -> Self {
        Self {
            root,
            warned: HashSet::new(),
            work_left: WORK
                .0
                .saturating_add(bytes.saturating_mul(WORK.1))
                .min(MAX_WORK),
            warnings: Warnings::default(),
        }
    }

    /// Takes some of the work the document may make; false when none is left.
    pub(super) fn charge(&mut self, work: usize) -> bool {
        self.work_left = self.work_left.saturating_sub(work);
        self.work_left > 0
    }

    /// What the value stands for: itself, or what its `$ref` leads to. A
    /// reference that leads nowhere is skipped, with one warning for however
    /// many places use it; `item_id` is the first item that does.
    pub(super) fn resolve(&mut self, value: &'a Value, item_id: &str) -> Option<&'a Value> {
        let mut value = value;
        for _ in 0..MAX_REF_HOPS {
            let Some(reference) = value.get("$ref").and_then(Value::as_str) else {
                return Some(value);
            };
            // The document is refused once there is no more work to be had.
            if !self.charge(1 + reference.len() / REF_BYTES_A_LOOK) {
                return None;
            }
            match self.target(reference) {
                Ok(target) => value = target,
                Err(why) => {
                    self.warn(reference, why, item_id);
                    return None;
                }
            }
        }
        let reference = value.get("$ref").and_then(Value::as_str)?;
        self.warn(reference, "leads in a circle", item_id);
        None
    }

    fn warn(&mut self, reference: &'a str, why: &str, item_id: &str) {
        if self.warned.insert(reference) {
            let message = format!("$ref {:?} {why}; it was skipped", cut(reference, 200));
            self.warnings.push(item_id, message);
        }
    }

    fn target(&self, reference: &str) -> Result<&'a Value, &'static str> {
        if reference.len() > MAX_REF_BYTES {
            return Err("is too long");
        }
        let Some(fragment) = reference.strip_prefix('#') else {
            return Err("points outside the document");
        };
        let pointer = percent_decode_str(fragment).decode_utf8_lossy();
        self.root
            .pointer(&pointer)
            .ok_or("points to nothing in the document")
    }
}

/// Gathers the fields of the schemas of one body.
pub(super) struct Fields<'a> {
    lines: Vec<String>,
    names: HashSet<String>,
    // Each schema is spelled out once, under the first name it has; that also
    // ends cycles.
    seen: HashSet<*const Value>,
    visits: usize,
    queue: VecDeque<Place<'a>>,
}

/// A schema to look at, and the name of the field it belongs to.
struct Place<'a> {
    schema: &'a Value,
    name: String,
    depth: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new() -> Self {
        Self {
            lines: Vec::new(),
            names: HashSet::new(),
            seen: HashSet::new(),
            visits: 0,
            queue: VecDeque::new(),
        }
    }

    /// Adds the fields of a schema, outer ones first, so that what a bound cuts
    /// off is the inner ones.
    pub(super) fn add(&mut self, schema: &'a Value, refs: &mut Refs<'a>, item_id: &str) {
        self.queue.push_back(Place {
            schema,
            name: String::new(),
            depth: 0,
        });
        while let Some(place) = self.queue.pop_front() {
            if self.visits >= MAX_VISITS || self.lines.len() >= MAX_FIELDS || !refs.charge(1) {
                self.queue.clear();
                return;
            }
            self.visits += 1;
            if let Some(schema) = refs.resolve(place.schema, item_id)
                && self.seen.insert(ptr::from_ref(schema))
            {
                self.visit(schema, &place, refs, item_id);
            }
        }
    }

    /// The lines, one field each.
    pub(super) fn into_lines(self) -> Vec<String> {
        self.lines
    }

    fn visit(&mut self, schema: &'a Value, place: &Place<'a>, refs: &mut Refs<'a>, item_id: &str) {
        for keyword in ["allOf", "oneOf", "anyOf", "prefixItems"] {
            for part in schema
                .get(keyword)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .take(MAX_VISITS)
            {
                self.enqueue(part, place.name.clone(), place.depth);
            }
        }
        for keyword in ["items", "additionalProperties"] {
            if let Some(part) = schema
                .get(keyword)
                .filter(|part| part.as_object().is_some())
            {
                self.enqueue(part, place.name.clone(), place.depth);
            }
        }
        if place.depth >= MAX_FIELD_DEPTH {
            return;
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        for (key, field) in properties.into_iter().flat_map(Object::iter) {
            if self.lines.len() >= MAX_FIELDS || !refs.charge(1) {
                return;
            }
            let name = if place.name.is_empty() {
                cut(key, MAX_FIELD_NAME_CHARS)
            } else {
                cut(&format!("{}.{key}", place.name), MAX_FIELD_NAME_CHARS)
            };
            if self.names.insert(name.clone()) {
                self.lines.push(line(&name, field, refs, item_id));
            }
            self.enqueue(field, name, place.depth + 1);
        }
    }

    fn enqueue(&mut self, schema: &'a Value, name: String, depth: usize) {
        // The bound on visits would leave the rest unread anyway.
        if self.queue.len() < MAX_VISITS {
            self.queue.push_back(Place {
                schema,
                name,
                depth,
            });
        }
    }
}

/// `name: description (one of a, b)`, as far as there is any.
pub(super) fn line<'a>(
    name: &str,
    schema: &'a Value,
    refs: &mut Refs<'a>,
    item_id: &str,
) -> String {
    let description = describe(schema, refs, item_id);
    let values = refs
        .resolve(schema, item_id)
        .and_then(Value::as_object)
        .map(enum_values)
        .unwrap_or_default();
    match (description, values.is_empty()) {
        (Some(text), true) => format!("{name}: {text}"),
        (Some(text), false) => format!("{name}: {text} (one of {values})"),
        (None, true) => name.to_owned(),
        (None, false) => format!("{name}: one of {values}"),
    }
}

/// What a schema says of itself; else what the one it wraps says.
fn describe<'a>(schema: &'a Value, refs: &mut Refs<'a>, item_id: &str) -> Option<String> {
    // In OpenAPI 3.1 a description may stand beside a `$ref`, and wins.
    if let Some(text) = own_description(schema) {
        return Some(text);
    }
    let target = refs.resolve(schema, item_id)?;
    if let Some(text) = own_description(target) {
        return Some(text);
    }
    ["allOf", "oneOf", "anyOf"].into_iter().find_map(|keyword| {
        let first = target.get(keyword)?.as_array()?.first()?;
        own_description(refs.resolve(first, item_id)?)
    })
}

fn own_description(schema: &Value) -> Option<String> {
    ["description", "title"]
        .into_iter()
        .find_map(|key| one_line(schema.get(key)?.as_str()?))
}

/// A description on one line, cut; nothing when it is blank.
pub(super) fn one_line(text: &str) -> Option<String> {
    // Cut first: a description may be megabytes.
    let head = cut(text, 2 * MAX_DESCRIPTION_CHARS);
    let words: Vec<&str> = head.split_whitespace().collect();
    (!words.is_empty()).then(|| cut(&words.join(" "), MAX_DESCRIPTION_CHARS))
}

fn enum_values(schema: &Object) -> String {
    let values: Vec<String> = schema
        .get("enum")
        .or_else(|| schema.get("items").and_then(|items| items.get("enum")))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .take(MAX_ENUM_VALUES)
        .filter_map(Value::as_str)
        .map(|value| cut(value, 60))
        .collect();
    values.join(", ")
}
