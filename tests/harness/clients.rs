//! A coordinator with a database of its own, and clients that are driven by
//! hand.

use crate::{
    cluster::{Coordinator, MODEL},
    postgres::TestDatabase,
};
use prost_types::Duration;
use sqlx::AssertSqlSafe;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;
use weir_proto::v1::{
    self, job_service_client::JobServiceClient, put_source_request::Content,
    search_service_client::SearchServiceClient, source_service_client::SourceServiceClient,
    worker_service_client::WorkerServiceClient,
};

/// One coordinator, the database it has to itself, and a connection to it.
#[derive(Debug)]
pub struct Weir {
    /// The coordinator.
    pub coordinator: Coordinator,
    /// A connection to it.
    pub channel: Channel,
    /// Its database.
    pub database: TestDatabase,
}

impl Weir {
    /// Starts a coordinator with the defaults.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts the coordinator with some more variables.
    pub async fn with(environment: &[(&str, &str)]) -> Self {
        let database = TestDatabase::create().await;
        let coordinator = Coordinator::spawn(database.url(), environment).await;
        let channel = coordinator.connect().await;
        Self {
            coordinator,
            channel,
            database,
        }
    }

    /// A client for sources.
    pub fn sources(&self) -> SourceServiceClient<Channel> {
        SourceServiceClient::new(self.channel.clone())
    }

    /// A client for jobs.
    pub fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone())
    }

    /// A client that works.
    pub fn worker(&self) -> WorkerServiceClient<Channel> {
        WorkerServiceClient::new(self.channel.clone())
    }

    /// A client that searches.
    pub fn searches(&self) -> SearchServiceClient<Channel> {
        SearchServiceClient::new(self.channel.clone())
    }

    /// How many rows a table of the schema has.
    pub async fn rows(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM weir.{table}");
        sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(self.database.pool())
            .await
            .unwrap()
    }

    /// Asserts that nothing of any source was written.
    pub async fn assert_empty(&self) {
        for table in ["sources", "items", "chunks", "jobs", "import_items"] {
            assert_eq!(self.rows(table).await, 0, "weir.{table} was written");
        }
    }

    /// Puts texts as items "0", "1", … of a source.
    pub async fn put(&self, name: &str, texts: &[&str]) -> v1::PutSourceResponse {
        let request = put_texts(name, texts);
        self.sources()
            .put_source(request)
            .await
            .unwrap()
            .into_inner()
    }

    /// Claims one job that must be there.
    pub async fn claim(&self) -> v1::Lease {
        let answer = self.worker().claim_job(claim_request()).await.unwrap();
        let mut leases = answer.into_inner().leases;
        assert_eq!(leases.len(), 1, "a job should be there to be claimed");
        leases.remove(0)
    }

    /// The pending chunks of a lease.
    pub async fn batch(&self, lease: &v1::Lease) -> Vec<v1::Chunk> {
        let request = v1::GetBatchRequest {
            job_id: lease.job_id,
            epoch: lease.epoch,
            batch_size: 0,
        };
        let answer = self.worker().get_batch(request).await.unwrap();
        answer.into_inner().chunks
    }

    /// A job that must be there.
    pub async fn job(&self, job_id: i64) -> v1::Job {
        let request = v1::GetJobRequest { job_id };
        let answer = self.jobs().get_job(request).await.unwrap();
        answer.into_inner().job.unwrap()
    }

    /// A source, if it is there.
    pub async fn source(&self, name: &str) -> Result<v1::Source, Status> {
        let request = v1::GetSourceRequest {
            name: name.to_owned(),
            ..v1::GetSourceRequest::default()
        };
        let answer = self.sources().get_source(request).await?;
        Ok(answer.into_inner().source.unwrap())
    }
}

/// An item without metadata.
pub fn item(item_id: &str, text: &str) -> v1::Item {
    v1::Item {
        item_id: item_id.to_owned(),
        text: text.to_owned(),
        metadata: None,
    }
}

/// Puts these items as the whole source.
pub fn put_items(name: &str, items: Vec<v1::Item>) -> v1::PutSourceRequest {
    v1::PutSourceRequest {
        name: name.to_owned(),
        content: Some(Content::Items(v1::ItemList { items })),
        ..v1::PutSourceRequest::default()
    }
}

/// Puts texts as items "0", "1", … of a source.
pub fn put_texts(name: &str, texts: &[&str]) -> v1::PutSourceRequest {
    let items = texts
        .iter()
        .enumerate()
        .map(|(index, text)| item(&index.to_string(), text));
    put_items(name, items.collect())
}

/// Puts a document as the whole source.
pub fn put_document(
    name: &str,
    format: v1::DocumentFormat,
    content: impl Into<Vec<u8>>,
) -> v1::PutSourceRequest {
    v1::PutSourceRequest {
        name: name.to_owned(),
        content: Some(Content::Document(v1::Document {
            format: format.into(),
            content: content.into(),
            item_id: String::new(),
        })),
        ..v1::PutSourceRequest::default()
    }
}

/// Claims one job and does not wait for it.
pub fn claim_request() -> v1::ClaimJobRequest {
    v1::ClaimJobRequest {
        worker_id: "by-hand".to_owned(),
        models: vec![MODEL.to_owned()],
        max_jobs: 1,
        max_chunks: 0,
        busy_with: Vec::new(),
        wait: None,
    }
}

/// A client for pages.
pub fn http() -> reqwest::Client {
    // An error means that there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// So many seconds, as the wire has them.
pub fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

/// A vector as the wire has it.
pub fn vector_bytes(vector: &[f32]) -> Vec<u8> {
    vector
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// A chunk with a vector.
pub fn embedded(chunk: &v1::Chunk, vector: &[f32]) -> v1::EmbeddedChunk {
    v1::EmbeddedChunk {
        item_id: chunk.item_id.clone(),
        chunk_index: chunk.chunk_index,
        text_hash: chunk.text_hash.clone(),
        vector: vector_bytes(vector).into(),
        truncated_to: 0,
    }
}

/// A result of some chunks.
pub fn upsert(lease: &v1::Lease, embedded: Vec<v1::EmbeddedChunk>) -> v1::UpsertBatchRequest {
    v1::UpsertBatchRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        embedded,
        rejected: Vec::new(),
    }
}

/// Asserts an `INVALID_ARGUMENT` whose field violations name `field`, and whose
/// message and violation both say `what`.
#[track_caller]
pub fn assert_invalid(status: &Status, field: &str, what: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(
        status.message().contains(field) && status.message().contains(what),
        "{field:?} and {what:?} should be in {:?}",
        status.message()
    );
    let details = status
        .get_details_bad_request()
        .unwrap_or_else(|| panic!("no BadRequest in {status:?}"));
    let named = details
        .field_violations
        .iter()
        .any(|violation| violation.field == field && violation.description.contains(what));
    assert!(named, "{field}: {what} is not in {details:?}");
}

/// Asserts a status code and a part of the message.
#[track_caller]
pub fn assert_status(status: &Status, code: Code, what: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    assert!(
        status.message().contains(what),
        "{what:?} should be in {:?}",
        status.message()
    );
}

/// Asks until it is so. Each question is a round trip; nothing depends on its
/// time.
pub async fn until(mut so: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !so().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::PATIENCE, asking)
        .await
        .unwrap_or_else(|_| panic!("it never came to be"));
}
