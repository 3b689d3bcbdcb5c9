//! `SourceService`.

use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use weir_proto::v1::{
    self, import_source_request::Message as Part, put_source_request,
    source_service_server::SourceService,
};

use super::{
    Services, auth::Caller, content, content::Content, convert::wire_chunk, door::Door,
    error::invalid_field, imports::message, mask::Mask, page, traced,
};
use crate::{
    ingest::{self, Format, check_item_id},
    job::plan::PlannedItem,
    spans::{self, trace_id},
    store::{
        StoreError,
        chunks::ChunkState,
        content::{SourceWrite, Written},
        rows::{Job, Source, SourceKey},
        sources::SourceFilter,
        status::Paging,
    },
};

/// Most warnings in an answer.
const MAX_WARNINGS: usize = 1_000;

/// Puts, patches, reads and deletes sources.
#[derive(Debug, Clone)]
pub(crate) struct Sources(pub(crate) Services);

impl Sources {
    fn write(
        &self,
        key: SourceKey,
        model: Option<String>,
        priority: i16,
        expected_revision: Option<i64>,
        metadata: &MetadataMap,
    ) -> SourceWrite {
        SourceWrite {
            key,
            model,
            default_model: self.0.default_model().to_owned(),
            priority,
            expected_revision,
            max_chunks_per_job: self.0.max_chunks_per_job,
            traceparent: traced::caller(metadata.as_ref()).map(|trace| trace.to_string()),
        }
    }

    async fn put(&self, write: &SourceWrite, items: &[PlannedItem]) -> Result<Written, StoreError> {
        let plan = spans::plan(&self.0.tracer, write);
        let written = self.0.store.put_source(write, items).await?;
        spans::planned(&plan, &written);
        Ok(written)
    }

    fn jobs(&self, jobs: Vec<Job>) -> Vec<v1::Job> {
        jobs.into_iter().map(|job| self.0.wire_job(job)).collect()
    }

    /// Tells who waits for it of a write, and makes the parts of its answer, in
    /// the order of its fields.
    fn answer(
        &self,
        write: &SourceWrite,
        written: Written,
    ) -> (v1::WrittenSource, v1::SourceChange, Vec<v1::Job>) {
        let source = written.source;
        if written.changed {
            self.0.wakeup.report_queued();
            self.0.wakeup.report_change(source.id);
        }
        tracing::info!(
            namespace = source.namespace,
            source = source.name,
            revision = source.revision,
            items_added = written.change.items_added,
            items_changed = written.change.items_changed,
            items_deleted = written.change.items_deleted,
            chunks_pending = written.change.chunks_pending,
            trace_id = trace_id(spans::trace_of_write(write)),
            "A source was written."
        );
        let change = v1::SourceChange {
            items_added: written.change.items_added,
            items_changed: written.change.items_changed,
            items_deleted: written.change.items_deleted,
            items_unchanged: written.change.items_unchanged,
            chunks_pending: written.change.chunks_pending,
            jobs_superseded: written.change.jobs_superseded,
        };
        (source.into(), change, self.jobs(written.jobs))
    }
}

/// A source in a list.
pub(super) fn summary(
    services: &Services,
    (source, job): (Source, Option<Job>),
) -> v1::SourceSummary {
    v1::SourceSummary {
        source: Some(services.wire_source(source)),
        job: job.map(|job| services.wire_job(job)),
    }
}

#[tonic::async_trait]
impl SourceService for Sources {
    async fn put_source(
        &self,
        request: Request<v1::PutSourceRequest>,
    ) -> Result<Response<v1::PutSourceResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (metadata, _, request) = request.into_parts();
        let mut door = Door::default();
        let key = door.source_key(request.namespace, request.name);
        let model = door.model(request.model, &self.0.models);
        let priority = door.priority(request.priority);
        let expected = door.expected_revision(request.expected_revision, 0);
        if request.content.is_none() {
            door.refuse("content", "is missing: send a document, or items");
        }
        door.close()?;
        let key = caller.admit(key)?;
        let content = match request.content {
            Some(put_source_request::Content::Document(document)) => {
                let format = content::format("document.format", document.format)?;
                let item_id = one_item_id(document.item_id, &key)?;
                self.0
                    .read_document(format, document.content, item_id)
                    .await?
            }
            Some(put_source_request::Content::Items(list)) => Content {
                items: self.0.read_items("items", list.items).await?,
                ..Content::default()
            },
            None => Content::default(),
        };
        let write = self.write(key, model, caller.priority(priority), expected, &metadata);
        let written = self.put(&write, &content.items).await?;
        let (source, change, jobs) = self.answer(&write, written);
        let mut warnings = content.warnings;
        warnings.truncate(MAX_WARNINGS);
        Ok(Response::new(v1::PutSourceResponse {
            source: Some(source),
            change: Some(change),
            jobs,
            warnings,
        }))
    }

    async fn import_source(
        &self,
        request: Request<Streaming<v1::ImportSourceRequest>>,
    ) -> Result<Response<v1::ImportSourceResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (metadata, _, mut stream) = request.into_parts();
        let Some(v1::ImportSourceRequest {
            message: Some(Part::Open(open)),
        }) = stream.message().await?
        else {
            return Err(invalid_field(
                "open",
                "must be the first message of an import",
            ));
        };
        let mut door = Door::default();
        let key = door.source_key(open.namespace, open.name);
        let model = door.model(open.model, &self.0.models);
        let priority = door.priority(open.priority);
        let expected = door.expected_revision(open.expected_revision, 0);
        door.close()?;
        let key = caller.admit(key)?;
        let item_id = one_item_id(open.item_id, &key)?;
        let write = self.write(key, model, caller.priority(priority), expected, &metadata);
        let mut warnings = Vec::new();
        let written = if open.format == i32::from(v1::DocumentFormat::Unspecified) {
            let first = match message(&mut stream).await? {
                None => v1::ItemList::default(),
                Some(Part::Items(items)) => items,
                Some(_) => {
                    return Err(invalid_field(
                        "open.format",
                        "must name the document's format when parts of a document follow",
                    ));
                }
            };
            self.import_items(&write, first, &mut stream).await?
        } else {
            let format = content::format("open.format", open.format)?;
            if format == Format::JsonLines {
                self.import_lines(&write, &mut stream).await?
            } else {
                let (document, received) = self.import_document(&mut stream).await?;
                let needed = 3 * document.len() + ingest::needed(format, &document);
                let _held = self.0.memory.to_work(needed).await?;
                let content = self.0.read_document(format, document, item_id).await?;
                drop(received);
                warnings = content.warnings;
                self.put(&write, &content.items).await?
            }
        };
        let (source, change, jobs) = self.answer(&write, written);
        warnings.truncate(MAX_WARNINGS);
        Ok(Response::new(v1::ImportSourceResponse {
            source: Some(source),
            change: Some(change),
            jobs,
            warnings,
        }))
    }

    async fn patch_source(
        &self,
        request: Request<v1::PatchSourceRequest>,
    ) -> Result<Response<v1::PatchSourceResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (metadata, _, request) = request.into_parts();
        let mut door = Door::default();
        let key = door.source_key(request.namespace, request.name);
        let priority = door.priority(request.priority);
        let expected = door.expected_revision(request.expected_revision, 1);
        for (index, item_id) in request.delete_item_ids.iter().enumerate() {
            if let Err(fault) = check_item_id(item_id) {
                door.refuse(format!("delete_item_ids[{index}]"), fault.message);
            }
        }
        let deleted: std::collections::HashSet<&String> = request.delete_item_ids.iter().collect();
        for (index, item) in request.upsert.iter().enumerate() {
            if deleted.contains(&item.item_id) {
                door.refuse(
                    format!("upsert[{index}].item_id"),
                    format!("{:?} is both upserted and deleted", item.item_id),
                );
            }
        }
        door.close()?;
        let key = caller.admit(key)?;
        let items = self.0.read_items("upsert", request.upsert).await?;
        let write = self.write(key, None, caller.priority(priority), expected, &metadata);
        let plan = spans::plan(&self.0.tracer, &write);
        let written = self
            .0
            .store
            .patch_source(&write, &items, &request.delete_item_ids)
            .await?;
        spans::planned(&plan, &written);
        let (source, change, jobs) = self.answer(&write, written);
        Ok(Response::new(v1::PatchSourceResponse {
            source: Some(source),
            change: Some(change),
            jobs,
        }))
    }

    async fn get_source(
        &self,
        request: Request<v1::GetSourceRequest>,
    ) -> Result<Response<v1::GetSourceResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let key = door.source_key(request.namespace, request.name);
        door.close()?;
        let key = caller.admit(key)?;
        let state = self.0.store.source(&key).await?;
        Ok(Response::new(v1::GetSourceResponse {
            source: Some(self.0.wire_source(state.source)),
            jobs: self.jobs(state.jobs),
        }))
    }

    async fn list_sources(
        &self,
        request: Request<v1::ListSourcesRequest>,
    ) -> Result<Response<v1::ListSourcesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let namespace = door.any_namespace(request.namespace);
        let filter = SourceFilter {
            name_prefix: door.prefix("name_prefix", request.name_prefix),
            model: door.any_model(request.model),
            unsettled_only: request.unsettled_only,
        };
        let mask = Mask::read(&mut door, request.read_mask, "weir.v1.SourceSummary");
        let limit = door.page_size(request.page_size);
        door.close()?;
        let scope = caller.narrow(namespace)?;
        let query = ("sources", &scope, &filter);
        let paging: Option<Paging<SourceKey>> = page::position(&query, &request.page_token)?;
        let found = self
            .0
            .store
            .sources(&scope, &filter, paging.as_ref(), limit)
            .await?;
        let (next_page_token, previous_page_token) = page::tokens(&query, &found)?;
        let mut sources: Vec<v1::SourceSummary> = found
            .rows
            .into_iter()
            .map(|found| summary(&self.0, found))
            .collect();
        if let Some(mask) = mask {
            sources = mask.apply_all(&sources)?;
        }
        Ok(Response::new(v1::ListSourcesResponse {
            sources,
            next_page_token,
            previous_page_token,
        }))
    }

    async fn list_chunks(
        &self,
        request: Request<v1::ListChunksRequest>,
    ) -> Result<Response<v1::ListChunksResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let state = match request.state() {
            v1::ChunkState::Pending => Some(ChunkState::Pending),
            v1::ChunkState::Embedded => Some(ChunkState::Embedded),
            v1::ChunkState::Truncated => Some(ChunkState::Truncated),
            v1::ChunkState::Rejected => Some(ChunkState::Rejected),
            v1::ChunkState::Unspecified => None,
        };
        if state.is_none() {
            door.refuse("state", "must be PENDING, EMBEDDED, TRUNCATED or REJECTED");
        }
        let wire_state = request.state();
        let key = door.source_key(request.namespace, request.name);
        let limit = door.page_size(request.page_size);
        door.close()?;
        let key = caller.admit(key)?;
        let state = state.unwrap_or(ChunkState::Pending);
        let query = ("chunks", &key, i32::from(wire_state));
        let after: Option<(String, i32)> = page::position(&query, &request.page_token)?;
        let after = after
            .as_ref()
            .map(|(item_id, index)| (item_id.as_str(), *index));
        let chunks = self.0.store.chunks(&key, state, after, limit).await?;
        let next_page_token = match chunks.last() {
            Some(last) if chunks.len() as i64 == limit => {
                page::token(&query, &(&last.item_id, last.chunk_index))?
            }
            _ => String::new(),
        };
        let chunks = chunks.into_iter();
        Ok(Response::new(v1::ListChunksResponse {
            chunks: chunks.map(|chunk| wire_chunk(chunk, wire_state)).collect(),
            next_page_token,
        }))
    }

    async fn delete_source(
        &self,
        request: Request<v1::DeleteSourceRequest>,
    ) -> Result<Response<v1::DeleteSourceResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let mut door = Door::default();
        let key = door.source_key(request.namespace, request.name);
        let expected = door.expected_revision(request.expected_revision, 1);
        door.close()?;
        let key = caller.admit(key)?;
        let deleted = self.0.store.delete_source(&key, expected).await?;
        tracing::info!(
            namespace = key.namespace,
            source = key.name,
            items = deleted.items,
            embeddings = deleted.embeddings,
            "A source was deleted."
        );
        Ok(Response::new(v1::DeleteSourceResponse {
            items_deleted: deleted.items,
            embeddings_deleted: deleted.embeddings,
            jobs_cancelled: deleted.jobs,
        }))
    }
}

/// The id of a document that is one item: the source's name unless it was given.
fn one_item_id(item_id: String, key: &SourceKey) -> Result<String, Status> {
    if item_id.is_empty() {
        return Ok(key.name.clone());
    }
    check_item_id(&item_id).map_err(|fault| invalid_field("document.item_id", fault.message))?;
    Ok(item_id)
}
