//! Content on its way in: documents and items, checked and split into chunks.

use prost::Name as _;
use tonic::Status;
use weir_proto::{parts, v1};

use super::{
    Inner,
    convert::metadata,
    door::Door,
    error::{invalid_field, unreadable},
};
use crate::{
    ingest::{self, Format, check_item},
    job::{
        chunk::TextKind,
        plan::{PlannedItem, sort_items},
    },
    store::imports::ImportItem,
};

/// Numbers of the fields that lead to a document's bytes.
const PUT_DOCUMENT: u64 = 4;
const DOCUMENT_CONTENT: u64 = 2;

/// Content ready to be written.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// In order of id.
    pub(crate) items: Vec<PlannedItem>,
    /// What deserves a look.
    pub(crate) warnings: Vec<v1::ContentWarning>,
}

/// The format a request names.
pub(crate) fn format(field: &str, format: i32) -> Result<Format, Status> {
    match v1::DocumentFormat::try_from(format) {
        Ok(v1::DocumentFormat::Openapi) => Ok(Format::OpenApi),
        Ok(v1::DocumentFormat::Markdown) => Ok(Format::Markdown),
        Ok(v1::DocumentFormat::Text) => Ok(Format::Text),
        Ok(v1::DocumentFormat::JsonLines) => Ok(Format::JsonLines),
        Ok(v1::DocumentFormat::Unspecified) | Err(_) => Err(invalid_field(
            field,
            "must name the document's format: OPENAPI, MARKDOWN, TEXT or JSON_LINES",
        )),
    }
}

impl Inner {
    /// Reads a document into items and splits them. `item_id` names the item of
    /// a document that is one. The memory for it is the caller's.
    pub(crate) async fn read_document(
        &self,
        format: Format,
        content: Vec<u8>,
        item_id: String,
    ) -> Result<Content, Status> {
        let chunker = self.chunker.clone();
        in_background(move || {
            let mut items = Vec::new();
            let read = ingest::read_each(format, &content, &item_id, &mut |item| {
                items.push(PlannedItem {
                    chunks: chunker.chunk_under(&item.heading, &item.text, item.kind),
                    metadata: item
                        .metadata
                        .map(|map| serde_json::Value::Object(map).to_string()),
                    item_id: item.item_id,
                });
            });
            let warnings = read.map_err(|error| unreadable("document.content", &error))?;
            sort_items(&mut items).map_err(|item_id| twice("document.content", &item_id))?;
            let warnings = warnings
                .into_iter()
                .map(|warning| v1::ContentWarning {
                    item_id: warning.item_id,
                    message: warning.message,
                })
                .collect();
            Ok(Content { items, warnings })
        })
        .await
    }

    /// Splits items that a client made itself. `field` is where they stand in
    /// the request.
    pub(crate) async fn read_items(
        &self,
        field: &'static str,
        items: Vec<v1::Item>,
    ) -> Result<Vec<PlannedItem>, Status> {
        let chunker = self.chunker.clone();
        in_background(move || {
            let mut items: Vec<PlannedItem> = check_items(field, items)?
                .into_iter()
                .map(|item| PlannedItem {
                    chunks: chunker.chunk(&item.text, TextKind::Plain),
                    item_id: item.item_id,
                    metadata: item.metadata,
                })
                .collect();
            sort_items(&mut items).map_err(|item_id| twice(field, &item_id))?;
            Ok(items)
        })
        .await
    }
}

/// How much memory the documents of an encoded request take at most while they
/// are read, beside their bytes. Looks for them where `PutSourceRequest` has
/// them; what comes twice there counts twice.
pub(super) fn needed_for_documents(input: &str, message: &[u8]) -> usize {
    if input != v1::PutSourceRequest::full_name() {
        return 0;
    }
    parts::fields(message, PUT_DOCUMENT)
        .flat_map(|document| parts::fields(document, DOCUMENT_CONTENT))
        .map(|content| {
            let formats = [Format::OpenApi, Format::JsonLines];
            // Which it is may be said before or after it.
            formats.map(|format| ingest::needed(format, content))
        })
        .map(|[one, other]| one.max(other))
        .sum()
}

/// Checks items that a client made itself.
pub(crate) fn check_items(
    field: &'static str,
    items: Vec<v1::Item>,
) -> Result<Vec<ImportItem>, Status> {
    let mut door = Door::default();
    let mut checked = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let map = match item.metadata.map(metadata).transpose() {
            Ok(map) => map,
            Err(fault) => {
                door.refuse(format!("{field}[{index}].metadata"), fault);
                continue;
            }
        };
        if let Err(fault) = check_item(&item.item_id, &item.text, map.as_ref()) {
            door.refuse(format!("{field}[{index}].{}", fault.field), fault.message);
        }
        checked.push(ImportItem {
            item_id: item.item_id,
            text: item.text,
            metadata: map.map(|map| serde_json::Value::Object(map).to_string()),
        });
    }
    door.close()?;
    Ok(checked)
}

fn twice(field: &str, item_id: &str) -> Status {
    invalid_field(
        field,
        format!("item_id {item_id:?} occurs twice; give each item an id of its own"),
    )
}

/// Runs what takes the processor for a while, where it holds up no other call.
pub(super) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "Reading content ended in a panic.");
        Status::internal("internal error; the coordinator's log has the cause")
    })?
}
