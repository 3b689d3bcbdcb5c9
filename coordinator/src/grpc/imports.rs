//! Imports: content that comes in many messages.

use tonic::{Status, Streaming};
use weir_proto::v1::{self, import_source_request::Message as Part};

use super::{Services, content, error::invalid_field, sources::Sources, spans};
use crate::store::content::{SourceWrite, Written};

/// Largest document that an import may bring in parts.
const MAX_DOCUMENT_BYTES: usize = 256 << 20;

impl Sources {
    /// Takes in an import whose items wait in a table until all are there.
    pub(super) async fn import_items(
        &self,
        write: &SourceWrite,
        first: v1::ItemList,
        stream: &mut Streaming<v1::ImportSourceRequest>,
    ) -> Result<Written, Status> {
        let import_id: i64 = rand::random();
        let mut staged = Staged {
            services: self.0.clone(),
            import_id,
            cleared: false,
        };
        let outcome = async {
            let mut count = 0;
            let mut next = Some(first);
            while let Some(list) = next {
                let items = content::check_items("items", list.items)?;
                self.0.store.add_import_items(import_id, &items).await?;
                count += items.len();
                next = match message(stream).await? {
                    None => None,
                    Some(Part::Items(items)) => Some(items),
                    Some(_) => {
                        return Err(invalid_field(
                            "message",
                            "an import of items carries items alone after its opening",
                        ));
                    }
                };
            }
            let plan = spans::plan(&self.0.tracer, write);
            let written = self
                .0
                .store
                .finish_import(write, import_id, count, &self.0.chunker)
                .await?;
            spans::planned(&plan, &written);
            Ok(written)
        }
        .await;
        // How the import went is not for this to hide; what is left is cleared later.
        staged.cleared = self.0.store.drop_import(import_id).await.is_ok();
        outcome
    }

    /// Gathers the parts of a document.
    pub(super) async fn import_document(
        stream: &mut Streaming<v1::ImportSourceRequest>,
    ) -> Result<Vec<u8>, Status> {
        let mut document = Vec::new();
        while let Some(part) = message(stream).await? {
            let Part::DocumentPart(part) = part else {
                return Err(invalid_field(
                    "message",
                    "an import of a document carries parts of it alone after its opening",
                ));
            };
            if document.len() + part.len() > MAX_DOCUMENT_BYTES {
                return Err(Status::resource_exhausted(format!(
                    "the document is larger than {MAX_DOCUMENT_BYTES} bytes; import its items instead"
                )));
            }
            document.extend_from_slice(&part);
        }
        Ok(document)
    }
}

/// The items that an import has stored so far. A call is dropped when its
/// client goes away, and fails when the database does; they are cleared all the
/// same.
struct Staged {
    services: Services,
    import_id: i64,
    cleared: bool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.cleared {
            return;
        }
        let (store, import_id) = (self.services.store.clone(), self.import_id);
        self.services.tasks.spawn(async move {
            if let Err(error) = store.drop_import(import_id).await {
                tracing::warn!(%error, "The items of an import that was broken off are left to the sweeper.");
            }
        });
    }
}

/// The next message of an import, after its opening. A client that goes away
/// looks like one that has sent all; but then the call is dropped when it next
/// waits, so nothing may be committed before it has waited once.
pub(super) async fn message(
    stream: &mut Streaming<v1::ImportSourceRequest>,
) -> Result<Option<Part>, Status> {
    match stream.message().await? {
        None => Ok(None),
        Some(v1::ImportSourceRequest {
            message: Some(Part::Open(_)),
        }) => Err(invalid_field(
            "open",
            "an import is opened once, by its first message",
        )),
        Some(v1::ImportSourceRequest {
            message: Some(part),
        }) => Ok(Some(part)),
        Some(v1::ImportSourceRequest { message: None }) => Err(invalid_field(
            "message",
            "is empty; it must carry items or a part of a document",
        )),
    }
}
