//! Large sources, built with SQL.

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use sqlx::{AssertSqlSafe, Executor as _, PgPool};
use tonic::transport::Channel;
use weir_proto::v1::{self, source_service_client::SourceServiceClient};
use weir_tests::{bench::stage::Stage, clients, cluster::MODEL};

/// Numbers in a vector: what vectors cost is not measured here.
pub(crate) const DIMENSION: usize = 8;

/// Pending chunks in a job, as the coordinator cuts them.
const CHUNKS_PER_JOB: i64 = 1_000;

/// A source that was built.
#[derive(Debug, Clone)]
pub(crate) struct Big {
    pub(crate) id: i64,
    namespace: &'static str,
    name: String,
    chunks: i64,
}

/// Builds a source of so many items of one chunk each, all of them embedded.
pub(crate) async fn embedded(
    stage: &Stage,
    namespace: &'static str,
    name: &str,
    chunks: i64,
) -> anyhow::Result<Big> {
    let big = without_results(stage.pool(), namespace, name, chunks).await?;
    let vector = ["0.5"; DIMENSION].join(",");
    for sql in [
        format!(
            "INSERT INTO weir.models (name, dimension) VALUES ('{MODEL}', {DIMENSION}) ON CONFLICT DO NOTHING"
        ),
        format!(
            "INSERT INTO weir.embeddings (source_id, item_id, chunk_index, model, text_hash, embedding)
             SELECT source_id, item_id, chunk_index, '{MODEL}', text_hash, '[{vector}]'
             FROM weir.chunks WHERE source_id = {}",
            big.id
        ),
    ] {
        stage.pool().execute(AssertSqlSafe(sql)).await?;
    }
    Ok(big)
}

/// Builds a source of so many items of one chunk each, all of them pending.
pub(crate) async fn pending(
    stage: &Stage,
    namespace: &'static str,
    name: &str,
    chunks: i64,
) -> anyhow::Result<Big> {
    let big = without_results(stage.pool(), namespace, name, chunks).await?;
    queue(stage.pool(), &big).await?;
    Ok(big)
}

/// Has all of an embedded source pending.
pub(crate) async fn forget_vectors(stage: &Stage, big: &Big) -> anyhow::Result<()> {
    for sql in [
        "TRUNCATE weir.embeddings".to_owned(),
        format!("DELETE FROM weir.jobs WHERE source_id = {}", big.id),
    ] {
        stage.pool().execute(AssertSqlSafe(sql)).await?;
    }
    queue(stage.pool(), big).await
}

/// Item `n` of any of these, from 1, as it was built.
pub(crate) fn item(n: i64) -> v1::Item {
    clients::item(&format!("item-{n:09}"), &format!("The text of item {n}."))
}

async fn without_results(
    pool: &PgPool,
    namespace: &'static str,
    name: &str,
    chunks: i64,
) -> anyhow::Result<Big> {
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO weir.sources (namespace, name, model, revision, items_total, chunks_total)
         VALUES ($1, $2, $3, 1, $4, $4) RETURNING id",
    )
    .bind(namespace)
    .bind(name)
    .bind(MODEL)
    .bind(chunks)
    .fetch_one(pool)
    .await?;
    for sql in [
        "INSERT INTO weir.items (source_id, item_id)
         SELECT $1, 'item-' || lpad(n::text, 9, '0') FROM generate_series(1, $2) n",
        "INSERT INTO weir.chunks (source_id, item_id, chunk_index, text_hash, text)
         SELECT $1, 'item-' || lpad(n::text, 9, '0'), 0, sha256(convert_to(text, 'UTF8')), text
         FROM generate_series(1, $2) n, LATERAL (SELECT format('The text of item %s.', n) AS text) t",
    ] {
        sqlx::query(sql).bind(id).bind(chunks).execute(pool).await?;
    }
    Ok(Big {
        id,
        namespace,
        name: name.to_owned(),
        chunks,
    })
}

/// Queues all chunks of a source.
async fn queue(pool: &PgPool, big: &Big) -> anyhow::Result<()> {
    sqlx::query(
        "INSERT INTO weir.jobs (source_id, namespace, source, model, revision, trigger, first_item_id, last_item_id,
                                chunks_total)
         SELECT $1, $2, $3, $4, 1, 'write', 'item-' || lpad(n::text, 9, '0'),
                'item-' || lpad(least(n + $6 - 1, $5)::text, 9, '0'), least($6, $5 - n + 1)
         FROM generate_series(1, $5, $6) n",
    )
    .bind(big.id)
    .bind(big.namespace)
    .bind(&big.name)
    .bind(MODEL)
    .bind(big.chunks)
    .bind(CHUNKS_PER_JOB)
    .execute(pool)
    .await?;
    Ok(())
}

/// Has the server know its tables once they are built, as it does after a while.
pub(crate) async fn settle_down(pool: &PgPool) -> anyhow::Result<()> {
    for table in ["sources", "items", "chunks", "embeddings", "jobs"] {
        let sql = format!("VACUUM ANALYZE weir.{table}");
        pool.execute(AssertSqlSafe(sql)).await?;
    }
    pool.execute("CHECKPOINT").await?;
    Ok(())
}

/// Items of a source, at random and each once, beginning anew with each seed.
pub(crate) struct Items {
    random: SmallRng,
    taken: std::collections::HashSet<i64>,
    of: i64,
}

impl Items {
    pub(crate) fn of(big: &Big, seed: u64) -> Self {
        Self {
            random: SmallRng::seed_from_u64(seed),
            taken: std::collections::HashSet::new(),
            of: big.chunks,
        }
    }
}

impl Iterator for Items {
    type Item = String;

    /// One more; from the beginning where all were taken.
    fn next(&mut self) -> Option<String> {
        if self.taken.len() as i64 >= self.of {
            self.taken.clear();
        }
        let n = loop {
            let n = self.random.random_range(1..=self.of);
            if self.taken.insert(n) {
                break n;
            }
        };
        Some(format!("item-{n:09}"))
    }
}

/// Changes one item of a source.
pub(crate) async fn patch(
    client: &mut SourceServiceClient<Channel>,
    big: &Big,
    item_id: &str,
    text: &str,
) -> Result<(), tonic::Status> {
    let request = v1::PatchSourceRequest {
        namespace: big.namespace.to_owned(),
        name: big.name.clone(),
        upsert: vec![clients::item(item_id, text)],
        ..v1::PatchSourceRequest::default()
    };
    client.patch_source(request).await?;
    Ok(())
}
