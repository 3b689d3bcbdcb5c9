//! A coordinator on a database of its own with an embedder to script, and what
//! the tests ask of them.

use std::{collections::HashMap, fs, hash::BuildHasher, path::PathBuf};

use crate::{
    PATIENCE,
    cluster::{Coordinator, MODEL, Worker},
    embedder::{FakeEmbedder, expected_vector},
    postgres::TestDatabase,
};
use pgvector::Vector;
use tokio::time;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use weir_proto::v1::{
    ClaimJobRequest, Document, DocumentFormat, FailJobRequest, GetJobRequest, GetSourceRequest,
    GetSourceResponse, Item, ItemList, Job, JobState, PutSourceRequest, PutSourceResponse,
    WatchJobRequest, WatchSourceRequest, WatchSourceResponse, job_service_client::JobServiceClient,
    put_source_request::Content, source_service_client::SourceServiceClient,
    worker_service_client::WorkerServiceClient,
};

/// The document of the story: 148 operations.
pub fn logistics() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/logistics.openapi.yaml"
    ))
}

/// Notes every state that a job goes through, in the transaction that brings
/// it about, so that a test sees those too that last a moment.
const HISTORY: &str = "
    CREATE TABLE public.history (
        seq bigint GENERATED ALWAYS AS IDENTITY, job_id bigint, state text, epoch bigint, attempt smallint,
        chunks_done integer, last_error text, delayed boolean);
    CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.history (job_id, state, epoch, attempt, chunks_done, last_error, delayed)
        VALUES (NEW.id, NEW.state, NEW.epoch, NEW.attempt, NEW.chunks_done, NEW.last_error, NEW.run_at > now());
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON weir.jobs FOR EACH ROW EXECUTE FUNCTION public.note()";

/// A state that a job was in.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Was {
    /// One of the states of a job.
    pub state: String,
    /// Its epoch then.
    pub epoch: i64,
    /// Tries charged then.
    pub attempt: i16,
    /// Chunks embedded by then.
    pub chunks_done: i32,
    /// Why it was handed back last.
    pub last_error: Option<String>,
    /// Whether the job had to wait before it could be claimed.
    pub delayed: bool,
}

/// A chunk as the database has it.
#[derive(Debug, sqlx::FromRow)]
pub struct Chunk {
    /// Its item.
    pub item_id: String,
    /// What is embedded: the prompt of its source, and then its text.
    pub text: String,
    /// The vector stored for this chunk.
    pub embedding: Option<Vector>,
    /// Whether that vector was made from this text by the source's model.
    pub current: Option<bool>,
}

/// A coordinator, an embedder, and the words for what tests do with them.
#[derive(Debug)]
pub struct World {
    /// The coordinator.
    pub coordinator: Coordinator,
    /// The embedder.
    pub embedder: FakeEmbedder,
    /// Dropped last: processes of the test are connected to it.
    pub database: TestDatabase,
}

impl World {
    /// Starts a coordinator with these settings, and an embedder.
    pub async fn start(environment: &[(&str, &str)]) -> Self {
        Self::start_on(TestDatabase::create().await, environment).await
    }

    /// The same on a database that the test has made.
    pub async fn start_on(database: TestDatabase, environment: &[(&str, &str)]) -> Self {
        let coordinator = Coordinator::spawn(database.url(), environment).await;
        sqlx::raw_sql(HISTORY)
            .execute(database.pool())
            .await
            .unwrap();
        Self {
            coordinator,
            embedder: FakeEmbedder::start().await,
            database,
        }
    }

    /// Starts a worker with batches of this size.
    pub fn worker(&self, batch_size: &str) -> Worker {
        Worker::spawn(
            &self.coordinator.url(),
            &self.embedder.url(),
            &[("WEIR_BATCH_SIZE", batch_size)],
        )
    }

    /// Starts a worker that fails every job that it claims, for this reason,
    /// until what is returned is dropped. An embedder charges none.
    pub async fn failing_worker(&self, reason: &'static str) -> AbortOnDropHandle<()> {
        let mut worker = WorkerServiceClient::new(self.coordinator.connect().await);
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let claim = ClaimJobRequest {
                    worker_id: "failing".to_owned(),
                    models: vec![MODEL.to_owned()],
                    wait: prost_types::Duration::try_from(PATIENCE / 2).ok(),
                    ..ClaimJobRequest::default()
                };
                let Ok(claimed) = worker.claim_job(claim).await else {
                    return;
                };
                for lease in claimed.into_inner().leases {
                    let failure = FailJobRequest {
                        job_id: lease.job_id,
                        epoch: lease.epoch,
                        reason: reason.to_owned(),
                    };
                    // The job may be gone by now.
                    worker.fail_job(failure).await.ok();
                }
            }
        }))
    }

    /// A client for sources.
    pub async fn sources(&self) -> SourceServiceClient<Channel> {
        SourceServiceClient::new(self.coordinator.connect().await)
    }

    /// A client for jobs.
    pub async fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.coordinator.connect().await)
    }

    async fn put(&self, name: &str, content: Content) -> PutSourceResponse {
        let request = PutSourceRequest {
            name: name.to_owned(),
            content: Some(content),
            ..PutSourceRequest::default()
        };
        let mut sources = self.sources().await;
        sources.put_source(request).await.unwrap().into_inner()
    }

    /// Puts the document of the story and returns its one job.
    pub async fn put_logistics(&self) -> i64 {
        let document = Document {
            format: DocumentFormat::Openapi.into(),
            content: fs::read(logistics()).unwrap(),
            ..Document::default()
        };
        let answer = self.put("logistics", Content::Document(document)).await;
        assert_eq!(answer.source.unwrap().items, 148);
        assert_eq!(answer.jobs.len(), 1);
        answer.jobs[0].job_id
    }

    /// Puts items, given as id and text.
    pub async fn put_items(
        &self,
        name: &str,
        items: impl IntoIterator<Item = (String, String)>,
    ) -> PutSourceResponse {
        let item = |(item_id, text)| Item {
            item_id,
            text,
            metadata: None,
        };
        let items = items.into_iter().map(item).collect();
        self.put(name, Content::Items(ItemList { items })).await
    }

    /// A source that must be there, with its unsettled jobs.
    pub async fn source(&self, name: &str) -> GetSourceResponse {
        let request = GetSourceRequest {
            name: name.to_owned(),
            ..GetSourceRequest::default()
        };
        let mut sources = self.sources().await;
        sources.get_source(request).await.unwrap().into_inner()
    }

    /// A job that must be there.
    pub async fn job(&self, job_id: i64) -> Job {
        let mut jobs = self.jobs().await;
        let answer = jobs.get_job(GetJobRequest { job_id }).await.unwrap();
        answer.into_inner().job.unwrap()
    }

    /// Watches a source until this holds of it.
    pub async fn watch_source(
        &self,
        name: &str,
        holds: impl Fn(&WatchSourceResponse) -> bool,
    ) -> WatchSourceResponse {
        let request = WatchSourceRequest {
            name: name.to_owned(),
            ..WatchSourceRequest::default()
        };
        let watch = async {
            let mut jobs = self.jobs().await;
            let mut states = jobs.watch_source(request).await.unwrap().into_inner();
            loop {
                let state = states.message().await.unwrap().expect("the watch goes on");
                if holds(&state) {
                    return state;
                }
            }
        };
        time::timeout(PATIENCE, watch)
            .await
            .expect("what the test waits for comes about")
    }

    /// Watches a source until this many of its chunks are embedded.
    pub async fn embedded(&self, name: &str, chunks: i64) {
        let enough =
            |state: &WatchSourceResponse| state.source.as_ref().unwrap().chunks_embedded >= chunks;
        self.watch_source(name, enough).await;
    }

    /// Watches a job until it has ended, and returns how.
    pub async fn ended(&self, job_id: i64) -> Job {
        let watch = async {
            let mut jobs = self.jobs().await;
            let request = WatchJobRequest {
                job_id,
                ..WatchJobRequest::default()
            };
            let mut states = jobs.watch_job(request).await.unwrap().into_inner();
            let mut last = None;
            while let Some(state) = states.message().await.unwrap() {
                last = state.job;
            }
            last.expect("a watch begins with the present state")
        };
        time::timeout(PATIENCE, watch)
            .await
            .expect("the job comes to an end")
    }

    /// Waits for a job's success.
    pub async fn succeeded(&self, job_id: i64) -> Job {
        let job = self.ended(job_id).await;
        assert_eq!(job.state(), JobState::Succeeded, "{job:?}");
        job
    }

    /// The same, asked again for as long as the database is away.
    pub async fn succeeded_after_outage(&self, job_id: i64) -> Job {
        let answers = async {
            let mut jobs = self.jobs().await;
            while let Err(error) = jobs.get_job(GetJobRequest { job_id }).await {
                assert_eq!(error.code(), tonic::Code::Unavailable, "{error:?}");
            }
        };
        time::timeout(PATIENCE, answers)
            .await
            .expect("the database is back");
        self.succeeded(job_id).await
    }

    /// Every state that the job was in, oldest first.
    pub async fn history(&self, job_id: i64) -> Vec<Was> {
        sqlx::query_as("SELECT * FROM public.history WHERE job_id = $1 ORDER BY seq")
            .bind(job_id)
            .fetch_all(self.database.pool())
            .await
            .unwrap()
    }

    /// Every chunk of a source.
    pub async fn chunks(&self, source: &str) -> Vec<Chunk> {
        sqlx::query_as(
            "SELECT c.item_id, concat(p.prompt, c.text) AS text, e.embedding,
                    e.text_hash = c.text_hash AND e.text_hash = sha256(convert_to(concat(p.prompt, c.text), 'UTF8'))
                        AND e.model = s.model AS current
             FROM weir.sources s JOIN weir.chunks c ON c.source_id = s.id
             LEFT JOIN weir.prompts p ON p.id = s.prompt_id
             LEFT JOIN weir.embeddings e USING (source_id, item_id, chunk_index)
             WHERE s.name = $1",
        )
        .bind(source)
        .fetch_all(self.database.pool())
        .await
        .unwrap()
    }

    /// The chunks of a source that have their vector.
    pub async fn persisted(&self, source: &str) -> Vec<Chunk> {
        let mut chunks = self.chunks(source).await;
        chunks.retain(|chunk| chunk.current == Some(true));
        chunks
    }

    /// Rows of a table of the schema `weir`.
    pub async fn rows(&self, table: &'static str) -> i64 {
        let sql = format!("SELECT count(*) FROM weir.{table}");
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(self.database.pool())
            .await
            .unwrap()
    }

    /// Asserts that every chunk of a source has the vector of its text and
    /// that no other vector is stored, and returns the chunks. Panics unless
    /// this is the only source.
    pub async fn assert_exact(&self, source: &str) -> Vec<Chunk> {
        let chunks = self.chunks(source).await;
        assert!(!chunks.is_empty());
        assert_eq!(self.rows("embeddings").await, chunks.len() as i64);
        for chunk in &chunks {
            assert_eq!(chunk.current, Some(true), "{chunk:?}");
            let stored = chunk.embedding.as_ref().unwrap().as_slice();
            assert_eq!(stored, expected_vector(&chunk.text), "{chunk:?}");
        }
        let source = self.source(source).await.source.unwrap();
        assert_eq!(source.chunks, chunks.len() as i64);
        assert_eq!(source.chunks_embedded, chunks.len() as i64);
        chunks
    }

    /// How much more often than these chunks need it their texts came to the
    /// embedder, where they did.
    pub fn repeated(&self, chunks: &[Chunk]) -> HashMap<String, usize> {
        let received = self.embedder.received();
        let excess = |(text, needed): (String, usize)| {
            let received = received.get(&text).copied().unwrap_or_default();
            let excess = received.saturating_sub(needed);
            (excess > 0).then_some((text, excess))
        };
        count(chunks).into_iter().filter_map(excess).collect()
    }
}

/// How many of the chunks have each text: several, where operations describe
/// the same thing.
pub fn count(chunks: &[Chunk]) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for chunk in chunks {
        *counts.entry(chunk.text.clone()).or_default() += 1;
    }
    counts
}

/// Asserts that at most `lost` texts were embedded again, and none for a chunk
/// that was `persisted` before the work was cut off. `chunks` are all of them.
pub fn assert_lost_at_most(
    lost: usize,
    repeated: &HashMap<String, usize, impl BuildHasher>,
    persisted: &[Chunk],
    chunks: &[Chunk],
) {
    assert!(persisted.len() < chunks.len(), "the cut came too late");
    assert!(repeated.values().sum::<usize>() <= lost, "{repeated:?}");
    let (persisted, all) = (count(persisted), count(chunks));
    for (text, again) in repeated {
        let persisted = persisted.get(text).copied().unwrap_or_default();
        assert!(again + persisted <= all[text], "embedded again: {text}");
    }
}
