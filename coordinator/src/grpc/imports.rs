//! Imports: content that comes in many messages.

use std::time::Duration;

use tonic::{Status, Streaming};
use weir_proto::{
    limits::{MAX_CLIENT_MESSAGE_BYTES, MAX_ITEM_TEXT_BYTES},
    v1::{self, import_source_request::Message as Part},
};

use super::{
    Services,
    admission::in_time,
    content::{self, in_background},
    error::{invalid_field, unreadable},
    memory::Hold,
    sources::Sources,
};
use crate::{
    ingest::{Item, Lines},
    spans,
    store::{
        content::{SourceWrite, Written},
        imports::{ImportItem, PAGE_BYTES},
    },
};

/// Largest document that an import may bring in parts, and has to be read as a
/// whole.
const MAX_DOCUMENT_BYTES: usize = MAX_CLIENT_MESSAGE_BYTES;

/// Memory for a document on its way is taken by doubling, as its buffer grows:
/// the first of it, and up to so much.
const FIRST_BYTES: usize = 8 << 10;
const DOUBLED_BYTES: usize = 2 << 20;

/// And from there in steps of so many bytes, which are those of large calls. The
/// largest document is four of them.
const STEP_BYTES: usize = (MAX_DOCUMENT_BYTES - DOUBLED_BYTES) / 4;

/// Longest line of JSON Lines: the longest text, each of its bytes escaped, is
/// longer still, but nobody writes one so.
const MAX_LINE_BYTES: usize = 2 * MAX_ITEM_TEXT_BYTES;

/// Items of JSON Lines that are stored at a time.
const LINES_AT_A_TIME: usize = 10_000;

impl Sources {
    /// Takes in an import whose items wait in a table until all are there.
    pub(super) async fn import_items(
        &self,
        write: &SourceWrite,
        first: v1::ItemList,
        stream: &mut Streaming<v1::ImportSourceRequest>,
    ) -> Result<Written, Status> {
        self.staged(write, async |staged| {
            let mut next = Some(first);
            while let Some(list) = next {
                let items = in_background(|| content::check_items("items", list.items)).await?;
                staged.add(items).await?;
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
            Ok(())
        })
        .await
    }

    /// Takes in JSON Lines as they come: what is read of them waits in the same
    /// table, and no more of them is in memory than a message and a line.
    pub(super) async fn import_lines(
        &self,
        write: &SourceWrite,
        stream: &mut Streaming<v1::ImportSourceRequest>,
    ) -> Result<Written, Status> {
        self.staged(write, async |staged| {
            let (mut lines, mut rest) = (Lines::default(), Gathered::new(self, MAX_LINE_BYTES));
            loop {
                let part = rest.next(stream).await?;
                let is_last = part.is_none();
                let ends_line = part.as_ref().is_none_or(|part| part.contains(&b'\n'));
                rest.push(part.unwrap_or_default(), "the line")?;
                if ends_line {
                    // Held until what was gathered is stored.
                    let (mut text, _held) = rest.take();
                    let end = text.iter().rposition(|byte| *byte == b'\n');
                    let begun = if is_last {
                        Vec::new()
                    } else {
                        text.split_off(end.map_or(0, |end| end + 1))
                    };
                    lines = staged.add_lines(lines, text).await?;
                    rest.push(begun, "the line")?;
                }
                if is_last {
                    break;
                }
            }
            if lines.items == 0 {
                return Err(unreadable(
                    "document.content",
                    &crate::ingest::IngestError::Blank,
                ));
            }
            Ok(())
        })
        .await
    }

    /// Runs an import that stages its items with `bring`, and makes them the
    /// content of the source.
    async fn staged(
        &self,
        write: &SourceWrite,
        bring: impl AsyncFnOnce(&mut Staged) -> Result<(), Status>,
    ) -> Result<Written, Status> {
        let mut staged = Staged {
            services: self.0.clone(),
            import_id: rand::random(),
            count: 0,
            longest: 0,
            cleared: false,
        };
        let outcome = async {
            bring(&mut staged).await?;
            let plan = spans::plan(&self.0.tracer, write);
            // A page of them is read, split and written at a time.
            let page = 3 * (PAGE_BYTES as usize + staged.longest);
            let _held = self.0.memory.to_work(page).await?;
            let (import_id, count) = (staged.import_id, staged.count);
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
        staged.cleared = self.0.store.drop_import(staged.import_id).await.is_ok();
        outcome
    }

    /// Gathers the parts of a document, and takes the memory that it is received
    /// in.
    pub(super) async fn import_document(
        &self,
        stream: &mut Streaming<v1::ImportSourceRequest>,
    ) -> Result<(Vec<u8>, Vec<Hold>), Status> {
        let mut document = Gathered::new(self, MAX_DOCUMENT_BYTES);
        while let Some(part) = document.next(stream).await? {
            document.push(part, "the document")?;
        }
        Ok(document.take())
    }
}

/// The next part of a document.
async fn document_part(
    stream: &mut Streaming<v1::ImportSourceRequest>,
) -> Result<Option<Vec<u8>>, Status> {
    match message(stream).await? {
        None => Ok(None),
        Some(Part::DocumentPart(part)) => Ok(Some(part)),
        Some(_) => Err(invalid_field(
            "message",
            "an import of a document carries parts of it alone after its opening",
        )),
    }
}

/// Bytes that are gathered over several messages.
struct Gathered<'a> {
    services: &'a Services,
    most: usize,
    bytes: Vec<u8>,
    held: Vec<Hold>,
    /// For how many bytes memory is held.
    room: usize,
    /// For how long more of them was waited for.
    waited: Duration,
}

impl<'a> Gathered<'a> {
    fn new(sources: &'a Sources, most: usize) -> Self {
        Self {
            services: &sources.0,
            most,
            bytes: Vec::new(),
            held: Vec::new(),
            room: 0,
            waited: Duration::ZERO,
        }
    }

    /// The next part of a document. Until it comes the bytes before it are in
    /// memory that is taken here, for that of the message which brought them is
    /// given back. Who gathers them holds the memory of a message, and so waits
    /// for no more.
    async fn next(
        &mut self,
        stream: &mut Streaming<v1::ImportSourceRequest>,
    ) -> Result<Option<Vec<u8>>, Status> {
        while self.room < self.bytes.len() {
            let step = if self.room < DOUBLED_BYTES {
                self.room.max(FIRST_BYTES)
            } else {
                STEP_BYTES
            };
            self.held.push(self.services.memory.to_receive_more(step)?);
            self.room += step;
        }
        let part = document_part(stream);
        in_time(part, self.bytes.len(), &mut self.waited, &self.held).await?
    }

    /// Adds some bytes.
    fn push(&mut self, bytes: Vec<u8>, what: &str) -> Result<(), Status> {
        if self.bytes.len() + bytes.len() > self.most {
            return Err(Status::resource_exhausted(format!(
                "{what} is larger than {} bytes; import its items instead",
                self.most
            )));
        }
        if self.bytes.is_empty() {
            self.bytes = bytes;
        } else {
            self.bytes.extend_from_slice(&bytes);
        }
        Ok(())
    }

    /// What was gathered, and the memory that it is in. Nothing is gathered
    /// afterwards.
    fn take(&mut self) -> (Vec<u8>, Vec<Hold>) {
        (self.room, self.waited) = (0, Duration::ZERO);
        (
            std::mem::take(&mut self.bytes),
            std::mem::take(&mut self.held),
        )
    }
}

/// The items that an import has stored so far. A call is dropped when its
/// client goes away, and fails when the database does; they are cleared all the
/// same.
struct Staged {
    services: Services,
    import_id: i64,
    count: usize,
    /// Bytes of the longest text.
    longest: usize,
    cleared: bool,
}

impl Staged {
    async fn add(&mut self, items: Vec<ImportItem>) -> Result<(), Status> {
        let store = &self.services.store;
        store.add_import_items(self.import_id, &items).await?;
        self.count += items.len();
        let longest = items.iter().map(|item| item.text.len()).max();
        self.longest = self.longest.max(longest.unwrap_or(0));
        Ok(())
    }

    /// Adds the items of whole lines.
    async fn add_lines(&mut self, mut lines: Lines, mut text: Vec<u8>) -> Result<Lines, Status> {
        let mut from = 0;
        loop {
            let items;
            (lines, text, from, items) = in_background(move || {
                let mut items = Vec::new();
                for line in text[from..].split_inclusive(|byte| *byte == b'\n') {
                    let item = lines
                        .read_bytes(line)
                        .map_err(|error| unreadable("document.content", &error))?;
                    items.extend(item.map(staged_item));
                    from += line.len();
                    if items.len() == LINES_AT_A_TIME {
                        break;
                    }
                }
                Ok((lines, text, from, items))
            })
            .await?;
            if !items.is_empty() {
                self.add(items).await?;
            }
            if from == text.len() {
                return Ok(lines);
            }
        }
    }
}

fn staged_item(item: Item) -> ImportItem {
    ImportItem {
        item_id: item.item_id,
        text: item.text,
        metadata: item
            .metadata
            .map(|map| serde_json::Value::Object(map).to_string()),
    }
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
