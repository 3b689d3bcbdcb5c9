//! A migrated database, short words for what the tests do with it, and what
//! must hold of it whatever was done.

use std::{collections::BTreeMap, time::Duration};

use sha2::{Digest as _, Sha256};
use sqlx::{
    AssertSqlSafe, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio_util::sync::CancellationToken;
use weir_coordinator::{
    dispatch::claimer::Claimer,
    job::{
        chunk::Chunk,
        fair_share::Weights,
        plan::{PendingChunk, PlannedItem},
    },
    store::{
        Scope, Store, StoreError,
        batches::{Outcome, Progress},
        claim::Claim,
        content::{SourceWrite, Written},
        fence::Fence,
        lease::Opening,
        lease_settings, migrate,
        overview::NamespaceFigures,
        queue::QueueStats,
        reconcile::{Check, Checked, Findings, Repaired},
        rows::{ChunkText, Embedded, Job, LeaseKey, Rejected, Source, SourceKey},
        steer::{Retried, Retry},
        workers::{SessionModel, SessionRow},
    },
    wakeup::Wakeup,
};
use weir_tests::{
    PATIENCE, embedder::expected_vector, invariants::broken_invariants, postgres::TestDatabase,
};

/// The model of every source that no test says otherwise of.
pub(crate) const MODEL: &str = "fake";

/// A lease that outlives any test.
pub(crate) const LEASE: Duration = Duration::from_hours(1);

/// More pending chunks than any test has.
pub(crate) const ALL: i64 = 10_000;

/// A store on a database of its own.
#[derive(Debug)]
pub(crate) struct Weir {
    pub(crate) store: Store,
    database: TestDatabase,
}

/// A source's counts: items, chunks, and of these pending, embedded, rejected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) items: i64,
    pub(crate) chunks: i64,
    pub(crate) pending: i64,
    pub(crate) embedded: i64,
    pub(crate) rejected: i64,
}

/// `items, chunks, pending, embedded, rejected`.
pub(crate) fn counts(numbers: [i64; 5]) -> Counts {
    let [items, chunks, pending, embedded, rejected] = numbers;
    Counts {
        items,
        chunks,
        pending,
        embedded,
        rejected,
    }
}

pub(crate) fn counts_of(source: &Source) -> Counts {
    counts([
        source.items_total,
        source.chunks_total,
        source.chunks_pending,
        source.chunks_embedded(),
        source.chunks_rejected,
    ])
}

pub(crate) fn key(name: &str) -> SourceKey {
    SourceKey {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

/// Claims what there is, as one who knows nothing of the queue.
pub(crate) async fn claim_at_once(
    store: &Store,
    claim: &Claim<'_>,
) -> Result<Vec<Job>, StoreError> {
    let (wakeup, stop) = (Wakeup::default(), CancellationToken::new());
    let claimer = Claimer::new(store.clone(), wakeup, Weights::default());
    let (jobs, _) = claimer.claim(claim, Duration::ZERO, &stop).await?;
    Ok(jobs)
}

/// A write of a source of the namespace `shop` that keeps to the defaults.
pub(crate) fn write(name: &str) -> SourceWrite {
    SourceWrite {
        key: key(name),
        model: None,
        default_model: MODEL.to_owned(),
        priority: 0,
        max_chunks_per_job: 1_000,
        traceparent: None,
        expected_revision: None,
    }
}

/// An item whose chunks are these texts.
pub(crate) fn item(item_id: &str, texts: &[&str]) -> PlannedItem {
    let chunks = texts.iter().map(|text| Chunk {
        text: (*text).to_owned(),
        text_hash: Sha256::digest(text).into(),
    });
    PlannedItem {
        item_id: item_id.to_owned(),
        metadata: None,
        chunks: chunks.collect(),
    }
}

/// Items of one chunk each.
pub(crate) fn items(texts: &[(&str, &str)]) -> Vec<PlannedItem> {
    texts
        .iter()
        .map(|(item_id, text)| item(item_id, &[text]))
        .collect()
}

/// `count` items `i0000`, `i0001` … of one chunk each, with texts of their own.
pub(crate) fn many(count: usize) -> Vec<PlannedItem> {
    (0..count)
        .map(|n| item(&format!("i{n:04}"), &[&format!("text {n}")]))
        .collect()
}

pub(crate) fn lease_of(job: &Job) -> LeaseKey {
    LeaseKey {
        job_id: job.id,
        epoch: job.epoch,
    }
}

/// Batches of up to so many chunks of a lease, for unary calls.
pub(crate) fn opening(fence: impl Into<Fence>, batch_size: i32) -> Opening {
    Opening {
        fence: fence.into(),
        batch_size,
        session: None,
    }
}

/// The same, for a session.
pub(crate) fn opening_of(session: &str, job: &Job) -> Opening {
    Opening {
        session: Some(session.into()),
        ..opening(job.lease(), 8)
    }
}

/// The id of a session, made of one digit.
pub(crate) fn session(digit: char) -> String {
    digit.to_string().repeat(32)
}

/// What the replica of a session tells of it.
pub(crate) fn session_row(session: &str) -> SessionRow {
    SessionRow {
        session: session.into(),
        worker_id: "worker-1".into(),
        version: "1.2.3".into(),
        replica: "replica".into(),
        namespaces: None,
        models: vec![SessionModel {
            name: MODEL.to_owned(),
            ..SessionModel::default()
        }],
        open_for: Duration::ZERO,
        draining: false,
    }
}

/// The chunk with its right vector.
pub(crate) fn embedded(chunk: &ChunkText) -> Embedded {
    Embedded {
        item_id: chunk.item_id.clone(),
        chunk_index: chunk.chunk_index,
        text_hash: chunk.text_hash.as_slice().try_into().unwrap(),
        vector: expected_vector(&chunk.text),
        truncated_to: None,
    }
}

pub(crate) fn rejected(chunk: &ChunkText, reason: &str) -> Rejected {
    Rejected {
        item_id: chunk.item_id.clone(),
        chunk_index: chunk.chunk_index,
        text_hash: chunk.text_hash.as_slice().try_into().unwrap(),
        reason: reason.to_owned(),
    }
}

/// These chunks, embedded under the job's lease.
pub(crate) fn outcome(job: &Job, chunks: &[ChunkText]) -> Outcome {
    Outcome {
        fence: lease_of(job).into(),
        embedded: chunks.iter().map(embedded).collect(),
        rejected: Vec::new(),
        complete: true,
        may_be_first: true,
    }
}

/// A store with one connection, as those of leases are, so that what it did is
/// told when it is asked.
pub(crate) struct Counted {
    pub(crate) store: Store,
    pool: PgPool,
}

impl Counted {
    /// A number of the statistics of Postgres.
    pub(crate) async fn told(&self, sql: &str) -> i64 {
        sqlx::query("SELECT pg_stat_force_next_flush()")
            .execute(&self.pool)
            .await
            .unwrap();
        let told = sqlx::query_scalar(AssertSqlSafe(sql));
        told.fetch_one(&self.pool).await.unwrap()
    }
}

/// A wish to have a job run again.
pub(crate) fn wish(job_id: i64, force: bool) -> Retry {
    Retry {
        scope: Scope::All,
        job_id,
        force,
        max_chunks_per_job: 1_000,
        traceparent: Some("the caller's".to_owned()),
    }
}

impl Weir {
    pub(crate) async fn new() -> Self {
        let database = TestDatabase::create().await;
        migrate(database.pool(), true)
            .await
            .expect("the database is migrated");
        Self::of(database)
    }

    /// A store on a database as it is.
    pub(crate) fn of(database: TestDatabase) -> Self {
        Self {
            store: Store::new(database.pool().clone(), PATIENCE),
            database,
        }
    }

    /// The same, with steps of so many chunks.
    pub(crate) async fn in_steps_of(chunks: i64) -> Self {
        let mut weir = Self::new().await;
        weir.store = weir.store.with_steps_of(chunks);
        weir
    }

    pub(crate) fn url(&self) -> &str {
        self.database.url()
    }

    pub(crate) fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    pub(crate) async fn put(&self, name: &str, items: &[PlannedItem]) -> Written {
        self.store
            .put_source(&write(name), items)
            .await
            .expect("the source is put")
    }

    /// The queue, as a look sees it.
    pub(crate) async fn queue(&self) -> Vec<QueueStats> {
        let stats = self.store.queue_stats().await;
        stats.expect("the jobs are summed up")
    }

    /// How the namespaces of a scope stand, by a look of this moment.
    pub(crate) async fn overview(&self, scope: &Scope, served: &[String]) -> Vec<NamespaceFigures> {
        let overview = self
            .store
            .overview(scope, served, &self.queue().await)
            .await;
        overview.expect("the namespaces are summed up")
    }

    pub(crate) async fn counts(&self, name: &str) -> Counts {
        counts_of(
            &self
                .store
                .source(&key(name))
                .await
                .expect("the source is there")
                .source,
        )
    }

    pub(crate) async fn job(&self, job_id: i64) -> Job {
        self.store
            .job(&Scope::All, job_id)
            .await
            .expect("the job is there")
    }

    /// Enters a session of which its replica tells this.
    pub(crate) async fn enter(&self, row: &SessionRow) {
        let entered = self.store.enter_session(row).await;
        entered.expect("the session is entered");
    }

    /// Claims up to `max_jobs` jobs of [`MODEL`].
    pub(crate) async fn claim_many(&self, max_jobs: i64, lease_duration: Duration) -> Vec<Job> {
        self.claim_up_to(max_jobs, 0, lease_duration).await
    }

    /// The same, until they have `max_chunks` pending chunks together.
    pub(crate) async fn claim_up_to(
        &self,
        max_jobs: i64,
        max_chunks: i64,
        lease_duration: Duration,
    ) -> Vec<Job> {
        let claim = Claim {
            worker_id: "worker-1",
            models: &[MODEL.to_owned()],
            max_jobs,
            max_chunks,
            lease_duration,
            namespaces: None,
            busy_with: &[],
            claimed_by: None,
        };
        let claimed = claim_at_once(&self.store, &claim).await;
        claimed.expect("a claim is answered")
    }

    /// Claims a job of another model, if one is due.
    pub(crate) async fn claim_if(&self, model: &str, lease_duration: Duration) -> Option<Job> {
        let models = [model.to_owned()];
        let claim = Claim {
            worker_id: "worker-1",
            models: &models,
            max_jobs: 1,
            max_chunks: 0,
            lease_duration,
            namespaces: None,
            busy_with: &[],
            claimed_by: None,
        };
        claim_at_once(&self.store, &claim)
            .await
            .expect("a claim is answered")
            .pop()
    }

    /// Claims the one job of another model.
    pub(crate) async fn claim_of(&self, model: &str) -> Job {
        self.claim_if(model, LEASE).await.expect("a job is due")
    }

    /// Waits until no queued job is locked. A call that was refused gives its locks
    /// back a moment after it has answered, and a claim passes by what is locked.
    async fn unlocked(&self) {
        self.number(
            "SELECT count(*) FROM (SELECT FROM weir.jobs WHERE state = 'queued' FOR SHARE) queued",
        )
        .await;
    }

    /// Claims the one job that comes next.
    pub(crate) async fn claim(&self) -> Job {
        let mut jobs = self.claim_many(1, LEASE).await;
        if jobs.is_empty() {
            self.unlocked().await;
            jobs = self.claim_many(1, LEASE).await;
        }
        jobs.pop().expect("a job is due")
    }

    /// Claims the one job that comes next with the token of this name.
    pub(crate) async fn claim_as(&self, token: &str) -> Job {
        let claim = Claim {
            worker_id: "worker-1",
            models: &[MODEL.to_owned()],
            max_jobs: 1,
            max_chunks: 0,
            lease_duration: LEASE,
            namespaces: None,
            busy_with: &[],
            claimed_by: Some(token),
        };
        let claimed = claim_at_once(&self.store, &claim).await;
        let mut jobs = claimed.expect("a claim is answered");
        jobs.pop().expect("a job is due")
    }

    /// Claims the one job that comes next, for a worker that is heard of and
    /// then silent until its lease is over.
    pub(crate) async fn claim_expired(&self) -> Job {
        let job = self.claim().await;
        let renewed = self.store.renew(lease_of(&job), Duration::ZERO).await;
        renewed.expect("the lease is held");
        job
    }

    /// The texts that a job has still to embed, shortest first.
    pub(crate) async fn texts(&self, job: &Job) -> Vec<ChunkText> {
        let pending: Vec<PendingChunk> = self.store.pending(lease_of(job), ALL).await.unwrap();
        self.store.texts(job.source_id, &pending).await.unwrap()
    }

    pub(crate) async fn upsert(&self, outcome: Outcome) -> Result<Progress, StoreError> {
        self.store.upsert(&outcome, LEASE).await
    }

    /// Embeds all that a job has pending, which ends it.
    pub(crate) async fn embed(&self, job: &Job) -> Progress {
        let texts = self.texts(job).await;
        self.upsert(outcome(job, &texts))
            .await
            .expect("the vectors are stored")
    }

    /// Claims and embeds until nothing is due; returns the texts embedded.
    pub(crate) async fn embed_all(&self) -> Vec<String> {
        let mut texts = Vec::new();
        self.unlocked().await;
        while let Some(job) = self.claim_many(1, LEASE).await.pop() {
            texts.extend(self.texts(&job).await.into_iter().map(|chunk| chunk.text));
            assert!(self.embed(&job).await.finished);
        }
        texts.sort();
        texts
    }

    /// Charges the job until it fails for good.
    pub(crate) async fn fail_for_good(&self, job: &Job) {
        let policy = weir_coordinator::job::retry::RetryPolicy {
            max_attempts: 1,
            ..Default::default()
        };
        self.store
            .fail(lease_of(job), "it broke", &policy, 0.5)
            .await
            .expect("the job fails");
    }

    /// Asks for a job to be run again, with a trace context of its own.
    pub(crate) async fn retry(&self, job_id: i64, force: bool) -> Result<Vec<Job>, StoreError> {
        Ok(self.retry_whole(job_id, force).await?.jobs)
    }

    /// The same, with all of the answer.
    pub(crate) async fn retry_whole(
        &self,
        job_id: i64,
        force: bool,
    ) -> Result<Retried, StoreError> {
        self.store.retry_job(&wish(job_id, force)).await
    }

    /// Queues jobs of ten chunks that no source has.
    pub(crate) async fn queue_without_source(&self, how_many: i32) {
        sqlx::query(
            "INSERT INTO weir.jobs (source_id, revision, chunks_total, trigger, namespace, source, model, first_item_id,
                                    last_item_id)
             SELECT 0, 1, 10, 'write', 'shop', 'many', 'fake', 'a', 'b' FROM generate_series(1, $1)",
        )
        .bind(how_many)
        .execute(self.pool())
        .await
        .unwrap();
        self.meddle("ANALYZE weir.jobs").await;
    }

    /// A store of which Postgres counts what it does.
    pub(crate) async fn counted(&self) -> Counted {
        self.counted_with(lease_settings()).await
    }

    /// The same, with settings of the connection.
    pub(crate) async fn counted_with(&self, settings: impl Into<String>) -> Counted {
        let options = self.url().parse::<PgConnectOptions>().unwrap();
        let pool = PgPoolOptions::new().max_connections(1);
        let pool = pool.connect_with(options).await.unwrap();
        let settings = AssertSqlSafe(settings.into());
        sqlx::raw_sql(settings).execute(&pool).await.unwrap();
        Counted {
            store: Store::new(pool.clone(), PATIENCE),
            pool,
        }
    }

    /// Does something to the database behind the store's back.
    pub(crate) async fn meddle(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(self.pool()).await.unwrap();
    }

    /// The vectors of a source, by item and chunk, with their models.
    pub(crate) async fn vectors(&self, name: &str) -> BTreeMap<(String, i32), (String, Vec<f32>)> {
        let rows: Vec<(String, i32, String, pgvector::Vector)> = sqlx::query_as(
            "SELECT item_id, chunk_index, e.model, embedding FROM weir.embeddings e
             JOIN weir.sources s ON s.id = e.source_id WHERE s.name = $1",
        )
        .bind(name)
        .fetch_all(self.pool())
        .await
        .unwrap();
        rows.into_iter()
            .map(|(item_id, index, model, vector)| ((item_id, index), (model, vector.to_vec())))
            .collect()
    }

    /// The ids of the items of a source that have vectors.
    pub(crate) async fn embedded_items(&self, name: &str) -> Vec<String> {
        self.vectors(name)
            .await
            .into_keys()
            .map(|(item_id, _)| item_id)
            .collect()
    }

    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    /// Waits until `count` connections to this database wait for locks.
    pub(crate) async fn blocked(&self, count: i64) {
        let waiting = async {
            while self
                .number(
                    "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'",
                )
                .await
                != count
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .expect("somebody waits for a lock");
    }

    /// What the reconciler would find, if it looked at all of a source at once.
    pub(crate) async fn findings(&self, source_id: i64) -> Findings {
        let store = self.store.clone().with_steps_of(i64::MAX);
        let check = Check {
            source_id,
            ..Check::default()
        };
        let checked = store.check(&check).await.unwrap();
        checked.map(|it| it.found).unwrap_or_default()
    }

    /// Begins a check of a source, and takes its first step.
    pub(crate) async fn begin_check(&self, source_id: i64) -> Checked {
        self.meddle("UPDATE weir.checks SET due_at = now()").await;
        let every = self.store.take_checks(Duration::ZERO, ALL).await.unwrap();
        let check = every.iter().find(|check| check.source_id == source_id);
        let checked = self.store.check(check.expect("it is due")).await;
        checked.unwrap().expect("the source is there")
    }

    /// Takes the first step of a check, and puts right what is found.
    pub(crate) async fn put_right(&self, source_id: i64) -> Option<Repaired> {
        let checked = self.begin_check(source_id).await;
        self.store.repair(&checked, 1_000, None).await.unwrap()
    }

    /// Checks what must hold whatever was done.
    pub(crate) async fn check(&self) {
        let broken = broken_invariants(self.pool()).await.unwrap();
        assert!(broken.is_empty(), "broken: {broken:?}");
        let sources: Vec<i64> = sqlx::query_scalar("SELECT id FROM weir.sources")
            .fetch_all(self.pool())
            .await
            .unwrap();
        for source_id in sources {
            let found = self.findings(source_id).await;
            assert!(!found.any(), "the reconciler would find {found:?}");
        }
        // With one of the prompts that its model has had, if any.
        let vectors: Vec<(String, pgvector::Vector)> = sqlx::query_as(
            "SELECT p.prompt || c.text, e.embedding FROM weir.chunks c
             JOIN weir.embeddings e USING (source_id, item_id, chunk_index)
             CROSS JOIN LATERAL (
                 SELECT '' AS prompt UNION SELECT prompt FROM weir.prompts WHERE model = e.model) p
             WHERE e.text_hash = sha256(convert_to(p.prompt || c.text, 'UTF8'))",
        )
        .fetch_all(self.pool())
        .await
        .unwrap();
        for (text, vector) in vectors {
            assert_eq!(
                vector.as_slice(),
                expected_vector(&text),
                "the vector of {text:?}"
            );
        }
    }
}
