//! Law 14 where Postgres guesses wrongly: of a source that came after its statistics
//! it knows nothing, and takes all that is read of it for one row.

use weir_coordinator::{
    job::chunk::Chunker,
    store::{imports::ImportItem, reconcile::Check},
};

use crate::fixture::{Counted, MODEL, Weir, many, wish, write};

/// Chunks of the source, which are one step.
const CHUNKS: usize = 3_000;

/// Rows that are read through indexes or without.
const READ: &str =
    "SELECT (sum(t.seq_tup_read) + sum((SELECT sum(i.idx_tup_read) FROM pg_stat_user_indexes i
                                                       WHERE i.relid = t.relid)))::bigint
                    FROM pg_stat_user_tables t WHERE schemaname = 'weir'";

/// A Weir whose tables are never analyzed again, with statistics of small sources.
async fn weir() -> Weir {
    let weir = Weir::new().await;
    for name in ["one", "two"] {
        weir.put(name, &many(500)).await;
    }
    embed(&weir).await;
    let import: Vec<_> = (0..500).map(staged).collect();
    weir.store.add_import_items(1, &import).await.unwrap();
    weir.meddle(
        "ALTER TABLE weir.items SET (autovacuum_enabled = off);
         ALTER TABLE weir.chunks SET (autovacuum_enabled = off);
         ALTER TABLE weir.embeddings SET (autovacuum_enabled = off);
         ALTER TABLE weir.import_items SET (autovacuum_enabled = off);
         ALTER TABLE weir.jobs SET (autovacuum_enabled = off);
         ANALYZE",
    )
    .await;
    weir
}

/// The same with a source `api` since then, in one job that has ended, and embedded.
async fn with_source() -> Weir {
    let weir = weir().await;
    let mut whole = write("api");
    whole.max_chunks_per_job = i32::MAX;
    let put = weir.store.put_source(&whole, &many(CHUNKS)).await.unwrap();
    assert_eq!(put.jobs.len(), 1);
    embed(&weir).await;
    weir
}

/// Embeds everything behind the store's back.
async fn embed(weir: &Weir) {
    weir.meddle(
        "INSERT INTO weir.embeddings (source_id, item_id, chunk_index, model, text_hash, embedding)
         SELECT c.source_id, c.item_id, c.chunk_index, s.model, c.text_hash, '[1]'
         FROM weir.chunks c JOIN weir.sources s ON s.id = c.source_id
         ON CONFLICT DO NOTHING;
         UPDATE weir.jobs SET state = 'succeeded', settled = true, finished_at = now(), chunks_done = chunks_total",
    )
    .await;
}

fn staged(n: usize) -> ImportItem {
    ImportItem {
        item_id: format!("i{n:04}"),
        text: format!("text {n}"),
        metadata: None,
    }
}

/// Does something, which must read each chunk a few times only.
async fn reads_little<T>(counted: &Counted, what: &str, work: impl Future<Output = T>) -> T {
    let before = counted.told(READ).await;
    let done = work.await;
    let rows = counted.told(READ).await - before;
    assert!(rows <= 40 * CHUNKS as i64, "{rows} rows for {what}");
    done
}

#[tokio::test]
async fn an_import_reads_what_it_brings() {
    let weir = weir().await;
    let (api, chunker) = (write("api"), Chunker::new(64, 0).unwrap());
    let mut items: Vec<_> = (0..CHUNKS).map(staged).collect();
    // New, the same again, and all of it changed.
    for (import_id, what) in [(2, "new"), (3, "the same"), (4, "others")] {
        if what == "others" {
            embed(&weir).await;
            for item in &mut items {
                item.text.push('!');
            }
        }
        weir.store
            .add_import_items(import_id, &items)
            .await
            .unwrap();
        let counted = weir.counted_with("SELECT").await;
        let import = counted
            .store
            .finish_import(&api, import_id, CHUNKS, &chunker);
        let change = reads_little(&counted, what, import).await.unwrap().change;
        let of_all = change.items_added + change.items_changed + change.items_unchanged;
        assert_eq!(of_all, CHUNKS as i64);
    }
}

#[tokio::test]
async fn what_a_failed_job_left_is_looked_up() {
    let weir = with_source().await;
    weir.meddle(
        "DELETE FROM weir.embeddings WHERE item_id = 'i2999';
         UPDATE weir.jobs SET state = 'failed', settled = false, last_error = 'no', chunks_done = chunks_total - 1
         WHERE source = 'api'",
    )
    .await;
    let failed = weir.number("SELECT max(id) FROM weir.jobs").await;
    let counted = weir.counted_with("SELECT").await;
    let retry = wish(failed, false);
    let retried = reads_little(&counted, "a retry", counted.store.retry_job(&retry)).await;
    let jobs = retried.unwrap().jobs;
    assert_eq!((jobs.len(), jobs[0].chunks_total), (1, 1));
}

#[tokio::test]
async fn what_is_pending_of_open_jobs_is_looked_up() {
    let weir = with_source().await;
    // One vector is left to make; the prompt that comes is the same in other words.
    weir.meddle(
        "DELETE FROM weir.embeddings WHERE item_id = 'i2999';
         UPDATE weir.jobs SET state = 'queued', settled = false, finished_at = NULL, chunks_done = chunks_total - 1
         WHERE source = 'api'",
    )
    .await;
    weir.store.set_prompts(&[(MODEL, "one: ")]).await.unwrap();
    weir.meddle(
        "UPDATE weir.embeddings e SET text_hash = sha256(convert_to('one: ' || c.text, 'UTF8')) FROM weir.chunks c
         WHERE (c.source_id, c.item_id, c.chunk_index) = (e.source_id, e.item_id, e.chunk_index)",
    )
    .await;
    let counted = weir.counted_with("SELECT").await;
    let api = weir.source_row("api").await.id;
    let step = counted.store.reprompt(api, CHUNKS as i64, 1_000);
    let done = reads_little(&counted, "a change of prompt", step).await;
    assert!(done.unwrap().unwrap().finished);
    let left = "SELECT sum(chunks_total - chunks_done) FROM weir.jobs WHERE NOT settled";
    assert_eq!(weir.number(left).await, 1);
}

#[tokio::test]
async fn vectors_of_no_present_text_are_looked_up() {
    let weir = with_source().await;
    weir.meddle("UPDATE weir.embeddings SET text_hash = sha256('x') WHERE item_id = 'i2999'")
        .await;
    let api = weir.source_row("api").await.id;
    let counted = weir.counted_with("SELECT").await;
    let check = Check {
        source_id: api,
        ..Check::default()
    };
    weir.meddle(
        "INSERT INTO weir.checks (source_id, due_at) SELECT max(id), now() FROM weir.sources",
    )
    .await;
    let checked = reads_little(&counted, "a check", counted.store.check(&check)).await;
    let checked = checked.unwrap().unwrap();
    let repair = counted.store.repair(&checked, 1_000, None);
    let repaired = reads_little(&counted, "a repair", repair).await;
    let repaired = repaired.unwrap().unwrap();
    assert_eq!((repaired.stale_deleted, repaired.queued), (1, 1));
}
