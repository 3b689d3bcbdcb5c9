//! One operation of an OpenAPI document → its text and metadata.
//!
//! What an operation does comes first in its text, for that is what people
//! search for; the parts of the request and the responses follow.

use std::collections::HashSet;

use serde_json::{Map, json};

use super::{
    cut,
    schema::{Fields, Refs, line, one_line},
    tree::{Object, Value},
};

/// Longest path, summary and tag in the metadata, in characters, and most tags:
/// at six bytes of JSON a character these stay within the limit on metadata.
const MAX_META_PATH: usize = 1_000;
const MAX_META_SUMMARY: usize = 500;
const MAX_META_TAG: usize = 50;
const MAX_META_TAGS: usize = 20;

/// Most parameters of an operation that are read, and most responses.
const MAX_PARAMETERS: usize = 150;

/// Most media types of a body that are read.
const MAX_MEDIA_TYPES: usize = 20;

/// An operation as found in the document.
pub(super) struct Operation<'a> {
    pub(super) method: &'static str,
    pub(super) path: &'a str,
    pub(super) path_item: &'a Value,
    pub(super) object: &'a Object,
}

impl Operation<'_> {
    /// `METHOD path`.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.method.to_uppercase(), self.path)
    }

    /// `Summary (METHOD path)`.
    pub(super) fn heading(&self) -> String {
        match text_of(self.object, "summary").and_then(one_line) {
            Some(summary) => format!("{summary} ({})", self.name()),
            None => self.name(),
        }
    }
}

/// What comes back with a search hit.
pub(super) fn metadata(operation: &Operation<'_>) -> Map<String, serde_json::Value> {
    let mut map = Map::new();
    map.insert("method".to_owned(), operation.method.to_uppercase().into());
    map.insert("path".to_owned(), cut(operation.path, MAX_META_PATH).into());
    if let Some(summary) = text_of(operation.object, "summary") {
        map.insert("summary".to_owned(), cut(summary, MAX_META_SUMMARY).into());
    }
    let tags = tags(operation);
    if !tags.is_empty() {
        map.insert("tags".to_owned(), json!(tags));
    }
    if operation.object.get("deprecated") == Some(&Value::Bool(true)) {
        map.insert("deprecated".to_owned(), true.into());
    }
    map
}

/// The text of an operation: what it does, then what it takes and gives.
pub(super) fn describe<'a>(
    operation: &Operation<'a>,
    refs: &mut Refs<'a>,
    item_id: &str,
) -> String {
    let mut lines: Vec<String> = Vec::new();
    for key in ["summary", "description"] {
        let text = text_of(operation.object, key).or_else(|| {
            let path_item = operation.path_item.as_object()?;
            text_of(path_item, key)
        });
        if let Some(text) = text
            && lines.last().is_none_or(|summary| summary != text)
        {
            lines.push(text.to_owned());
        }
    }
    lines.push(operation.name());
    let tags = tags(operation);
    if !tags.is_empty() {
        lines.push(format!("Tags: {}", tags.join(", ")));
    }
    let mut request = Request::default();
    request.read(operation, refs, item_id);
    if !request.parameters.is_empty() {
        lines.push("Parameters:".to_owned());
        lines.append(&mut request.parameters);
    }
    if request.description.is_some() || !request.fields.is_empty() {
        let description = request.description.unwrap_or_default();
        lines.push(format!("Request body: {description}").trim_end().to_owned());
        lines.append(&mut request.fields);
    }
    describe_responses(operation, refs, item_id, &mut lines);
    lines.join("\n")
}

/// What an operation takes.
#[derive(Default)]
struct Request {
    parameters: Vec<String>,
    description: Option<String>,
    fields: Vec<String>,
}

impl Request {
    fn read<'a>(&mut self, operation: &Operation<'a>, refs: &mut Refs<'a>, item_id: &str) {
        let mut fields = Fields::new();
        let mut seen = HashSet::new();
        // The operation's own parameters come first, for they override those of
        // the path.
        let own = operation.object.get("parameters");
        let shared = operation.path_item.get("parameters");
        for entry in [own, shared]
            .into_iter()
            .flatten()
            .filter_map(Value::as_array)
            .flatten()
            .take(MAX_PARAMETERS)
        {
            let Some(parameter) = refs.resolve(entry, item_id) else {
                continue;
            };
            let name = parameter.get("name").and_then(Value::as_str).unwrap_or("");
            let place = parameter.get("in").and_then(Value::as_str).unwrap_or("");
            if name.is_empty() || !seen.insert((name, place)) {
                continue;
            }
            if place == "body" {
                // OpenAPI 2.0 has the body among the parameters.
                self.description = parameter
                    .get("description")
                    .and_then(Value::as_str)
                    .and_then(one_line);
                if let Some(schema) = parameter.get("schema") {
                    fields.add(schema, refs, item_id);
                }
            } else {
                self.parameters
                    .push(describe_parameter(name, place, parameter, refs, item_id));
            }
        }
        if let Some(entry) = operation.object.get("requestBody")
            && let Some(body) = refs.resolve(entry, item_id)
        {
            self.description = body
                .get("description")
                .and_then(Value::as_str)
                .and_then(one_line);
            add_content(body, &mut fields, refs, item_id);
        }
        self.fields = fields.into_lines();
    }
}

/// `name (query): description`.
fn describe_parameter<'a>(
    name: &str,
    place: &str,
    parameter: &'a Value,
    refs: &mut Refs<'a>,
    item_id: &str,
) -> String {
    let place = if place == "formData" { "form" } else { place };
    let label = format!("{} ({})", cut(name, 100), cut(place, 20));
    let own = parameter
        .get("description")
        .and_then(Value::as_str)
        .and_then(one_line);
    match own {
        Some(text) => format!("{label}: {text}"),
        // Without words of its own, those of its schema.
        None => line(
            &label,
            parameter.get("schema").unwrap_or(parameter),
            refs,
            item_id,
        ),
    }
}

/// The description and the fields of the successful responses: errors are the
/// same for most operations of an API, and would make them all alike.
fn describe_responses<'a>(
    operation: &Operation<'a>,
    refs: &mut Refs<'a>,
    item_id: &str,
    lines: &mut Vec<String>,
) {
    let Some(responses) = operation.object.get("responses").and_then(Value::as_object) else {
        return;
    };
    let mut fields = Fields::new();
    let mut descriptions = Vec::new();
    let has_success = responses
        .iter()
        .take(MAX_PARAMETERS)
        .any(|(code, _)| code.starts_with('2'));
    for (code, entry) in responses.iter().take(MAX_PARAMETERS) {
        if !code.starts_with('2') && (code != "default" || has_success) {
            continue;
        }
        let Some(response) = refs.resolve(entry, item_id) else {
            continue;
        };
        let description = response
            .get("description")
            .and_then(Value::as_str)
            .and_then(one_line);
        if let Some(description) = description {
            descriptions.push(format!("{}: {description}", cut(code, 20)));
        }
        add_content(response, &mut fields, refs, item_id);
        // OpenAPI 2.0.
        if let Some(schema) = response.get("schema") {
            fields.add(schema, refs, item_id);
        }
    }
    if !descriptions.is_empty() {
        lines.push("Responses:".to_owned());
        lines.append(&mut descriptions);
    }
    let mut fields = fields.into_lines();
    if !fields.is_empty() {
        lines.push("Response fields:".to_owned());
        lines.append(&mut fields);
    }
}

/// Adds the fields of every media type of a request body or response.
fn add_content<'a>(body: &'a Value, fields: &mut Fields<'a>, refs: &mut Refs<'a>, item_id: &str) {
    let content = body.get("content").and_then(Value::as_object);
    for media in content
        .into_iter()
        .flat_map(Object::iter)
        .map(|(_, media)| media)
        .take(MAX_MEDIA_TYPES)
    {
        if let Some(schema) = media.get("schema") {
            fields.add(schema, refs, item_id);
        }
    }
}

fn tags(operation: &Operation<'_>) -> Vec<String> {
    operation
        .object
        .get("tags")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .take(MAX_META_TAGS)
        .filter_map(Value::as_str)
        .map(|tag| cut(tag, MAX_META_TAG))
        .collect()
}

/// A text of an object, trimmed; nothing when it is blank.
fn text_of<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object
        .get(key)
        .and_then(Value::as_str)
        .map(str::trim)
        .filter(|text| !text.is_empty())
}
