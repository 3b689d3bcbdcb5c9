//! The independent check: it asks the database in plain SQL, and knows nothing
//! of Weir but its tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    time::Duration,
};

use pgvector::Vector;
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use tokio::time::{self, Instant};
use weir_tests::{cluster::MODEL, embedder::expected_vector, invariants::broken_invariants};

use crate::{
    clients::NAMESPACE,
    journal::Journal,
    ledger::{Content, Ledger},
    pen::POISON,
};

/// How long all work may take to end once nothing hinders it any more.
const DUST: Duration = Duration::from_secs(90);

/// The texts of the chunks of a source, by item.
pub(crate) type Stored = BTreeMap<String, Vec<String>>;

/// What the database holds of a source; `None` when there is no such source.
pub(crate) async fn stored(pool: &PgPool, name: &str) -> sqlx::Result<Option<Stored>> {
    let rows: Vec<(Option<String>, Option<String>)> = sqlx::query_as(
        "SELECT c.item_id, c.text FROM weir.sources s LEFT JOIN weir.chunks c ON c.source_id = s.id
         WHERE s.namespace = $1 AND s.name = $2 ORDER BY c.item_id, c.chunk_index",
    )
    .bind(NAMESPACE)
    .bind(name)
    .fetch_all(pool)
    .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut stored = Stored::new();
    for (item_id, text) in rows {
        if let (Some(item_id), Some(text)) = (item_id, text) {
            stored.entry(item_id).or_default().push(text);
        }
    }
    Ok(Some(stored))
}

/// Whether what is stored is that content: each text whole, in pieces that
/// follow each other or overlap.
pub(crate) fn is_content(content: Option<&Content>, stored: Option<&Stored>) -> bool {
    match (content, stored) {
        (None, None) => true,
        (Some(content), Some(stored)) => {
            content.len() == stored.len()
                && content.iter().all(|(item_id, text)| {
                    stored
                        .get(item_id)
                        .is_some_and(|chunks| covers(text, chunks))
                })
        }
        _ => false,
    }
}

fn covers(text: &str, chunks: &[String]) -> bool {
    let mut end = 0;
    let mut start = 0;
    for chunk in chunks {
        let Some(at) = text[start..].find(chunk.as_str()) else {
            return false;
        };
        let at = start + at;
        if at > end && !text[end..at].trim().is_empty() {
            return false;
        }
        start = at;
        end = at + chunk.len();
    }
    text[end..].trim().is_empty()
}

/// Waits until no job is open.
pub(crate) async fn dust_settles(pool: &PgPool, journal: &Journal) {
    let deadline = Instant::now() + DUST;
    loop {
        let open: sqlx::Result<Vec<(String,)>> = sqlx::query_as(
            "SELECT format('job %s of %s is %s (epoch %s, attempt %s, %s of %s done, run_at in %s, lease ends in %s): %s',
                           id, source, state, epoch, attempt, chunks_done + chunks_rejected, chunks_total,
                           run_at - now(), lease_expires_at - now(), last_error)
             FROM weir.jobs WHERE state IN ('queued', 'running') ORDER BY id",
        )
        .fetch_all(pool)
        .await;
        match open {
            Ok(open) if open.is_empty() => return,
            Ok(open) if Instant::now() > deadline => {
                let first: Vec<_> = open.iter().take(5).map(|(job,)| job.as_str()).collect();
                let (count, first) = (open.len(), first.join("\n  "));
                return journal.find(format!("{count} jobs are still open:\n  {first}"));
            }
            Err(error) if Instant::now() > deadline => {
                return journal.find(format!("the database does not answer: {error}"));
            }
            _ => time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Checks, now and then, what must hold at any moment. Never returns.
pub(crate) async fn watch(pool: &PgPool, journal: &Journal) {
    loop {
        time::sleep(Duration::from_millis(700)).await;
        // The database is away now and then.
        let mut broken = broken_invariants(pool).await.unwrap_or_default();
        broken.extend(stuck(pool).await.unwrap_or_default());
        if !broken.is_empty() {
            journal.find(format!("broken in mid-run: {broken:?}"));
            return pending().await;
        }
    }
}

/// Jobs that are held and do not move, for longer than a silent embedder, a
/// silent network and a stopped process together can account for.
async fn stuck(pool: &PgPool) -> sqlx::Result<Vec<(String, i64)>> {
    sqlx::query_as(
        "SELECT format('a job is held by %s and does not move', worker_id), id FROM weir.jobs
         WHERE state = 'running' AND coalesce(progressed_at, claimed_at) < now() - interval '30 s'",
    )
    .fetch_all(pool)
    .await
}

/// A chunk with all that was made of it.
#[derive(Debug, sqlx::FromRow)]
struct Row {
    name: String,
    item_id: String,
    text: String,
    text_hash: Vec<u8>,
    embedding: Option<Vector>,
    embedded_hash: Option<Vec<u8>>,
    embedded_model: Option<String>,
    reason: Option<String>,
    /// Whether a job that a client cancelled has left it pending.
    cancelled: bool,
}

/// Checks everything, when nothing is open any more. Returns how many chunks
/// there are.
pub(crate) async fn check(
    pool: &PgPool,
    ledgers: &BTreeMap<String, Ledger>,
    journal: &Journal,
) -> sqlx::Result<usize> {
    for (name, ledger) in ledgers {
        let stored = stored(pool, name).await?;
        if !ledger.is_known() {
            journal.find(format!("nobody knows what {name} should hold"));
        } else if !is_content(ledger.content(), stored.as_ref()) {
            journal.find(format!(
                "{name} holds {:?} items, and not what its client put last, {:?}",
                stored.map(|stored| stored.len()),
                ledger.content().map(Content::len)
            ));
        }
    }
    let named: Vec<(String,)> = sqlx::query_as("SELECT name FROM weir.sources")
        .fetch_all(pool)
        .await?;
    let unknown = |(name,): &&(String,)| !ledgers.contains_key(name);
    for (name,) in named.iter().filter(unknown) {
        journal.find(format!("nobody put the source {name}"));
    }
    let chunks = check_chunks(pool, journal).await?;
    check_leftovers(pool, journal).await?;
    Ok(chunks)
}

async fn check_chunks(pool: &PgPool, journal: &Journal) -> sqlx::Result<usize> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT s.name, c.item_id, c.text, c.text_hash, e.embedding, e.text_hash AS embedded_hash,
                e.model AS embedded_model, r.reason,
                EXISTS (SELECT FROM weir.jobs j WHERE j.source_id = s.id AND NOT j.settled AND j.state = 'cancelled'
                        AND c.item_id BETWEEN j.first_item_id AND j.last_item_id) AS cancelled
         FROM weir.sources s JOIN weir.chunks c ON c.source_id = s.id
         LEFT JOIN weir.embeddings e USING (source_id, item_id, chunk_index)
         LEFT JOIN weir.rejections r USING (source_id, item_id, chunk_index)",
    )
    .fetch_all(pool)
    .await?;
    let mut wrong = BTreeSet::new();
    for row in &rows {
        if let Err(what) = check_chunk(row) {
            wrong.insert(format!("{}/{}: {what}", row.name, row.item_id));
        }
    }
    if let Some(first) = wrong.first() {
        journal.find(format!("{} chunks are wrong, such as {first}", wrong.len()));
    }
    Ok(rows.len())
}

fn check_chunk(row: &Row) -> Result<(), String> {
    if row.text_hash != Sha256::digest(&row.text).as_slice() {
        return Err("its hash is another's".to_owned());
    }
    match (&row.embedding, &row.reason) {
        (None, None) if row.cancelled => Ok(()),
        (None, None) => Err("it has neither vector nor rejection".to_owned()),
        (Some(_), Some(_)) => Err("it has a vector and a rejection".to_owned()),
        (None, Some(_)) if row.text.contains(POISON) => Ok(()),
        (None, Some(reason)) => Err(format!("it was rejected, though innocent: {reason}")),
        (Some(vector), None) => {
            if row.embedded_hash.as_ref() != Some(&row.text_hash) {
                return Err("its vector is of another text, says the hash".to_owned());
            }
            if row.embedded_model.as_deref() != Some(MODEL) {
                return Err("its vector is of another model".to_owned());
            }
            if vector.as_slice() != expected_vector(&row.text) {
                return Err("its vector is of another text".to_owned());
            }
            Ok(())
        }
    }
}

async fn check_leftovers(pool: &PgPool, journal: &Journal) -> sqlx::Result<()> {
    for (what, rows) in broken_invariants(pool).await? {
        journal.find(format!("broken in {rows} rows: {what}"));
    }
    let left: Vec<(String, i64)> = sqlx::query_as(
        "SELECT t.name, count(*) FROM (
             SELECT 'items' AS name, source_id FROM weir.items
             UNION ALL SELECT 'chunks', source_id FROM weir.chunks
             UNION ALL SELECT 'embeddings', source_id FROM weir.embeddings
             UNION ALL SELECT 'rejections', source_id FROM weir.rejections) t
         WHERE NOT EXISTS (SELECT FROM weir.sources s WHERE s.id = t.source_id) GROUP BY t.name",
    )
    .fetch_all(pool)
    .await?;
    for (table, rows) in left {
        journal.find(format!("{rows} {table} of deleted sources are left"));
    }
    let (superseded,): (i64,) =
        sqlx::query_as("SELECT count(*) FROM weir.jobs WHERE revoke_reason = 'superseded'")
            .fetch_one(pool)
            .await?;
    if superseded > 0 {
        journal.find(format!("writes ended {superseded} jobs"));
    }
    let stuck: Vec<(String,)> = sqlx::query_as(
        "SELECT format('job %s of %s is %s after %s attempts: %s', id, source, state, attempt, last_error)
         FROM weir.jobs WHERE state = 'failed' OR NOT settled AND state <> 'cancelled'
            -- Nobody but a client made anything to do.
            OR trigger = 'reconcile'
         ORDER BY id LIMIT 5",
    )
    .fetch_all(pool)
    .await?;
    for (job,) in stuck {
        journal.find(job);
    }
    Ok(())
}

#[test]
fn pieces_cover_a_text_only_together() {
    let pieces = |pieces: &[&str]| {
        pieces
            .iter()
            .map(|piece| (*piece).to_owned())
            .collect::<Vec<_>>()
    };
    let text = "one two three";
    assert!(covers(text, &pieces(&["one two three"])));
    assert!(covers(text, &pieces(&["one two", "two three"])));
    assert!(covers(text, &pieces(&["one", "two three"])));
    assert!(!covers(text, &pieces(&["one", "three"])));
    assert!(!covers(text, &pieces(&["one two"])));
    assert!(!covers(text, &pieces(&["two three"])));
    assert!(!covers(text, &pieces(&["one two four"])));
}
