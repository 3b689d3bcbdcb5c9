//! Open jobs of one source never overlap; the same content again queues
//! nothing; a change ends no job, and touches what it changes.

use weir_proto::v1::{Chunk, JobState, PutSourceResponse};
use weir_tests::clients::{Weir, upsert};

use crate::words::{number, vectors};

/// Asserts that what is pending is what the open jobs cover, each chunk once.
async fn assert_covered(weir: &Weir) {
    let pool = weir.database.pool();
    let open = "(SELECT * FROM weir.jobs WHERE state IN ('queued', 'running'))";
    let overlaps = format!(
        "SELECT count(*) FROM {open} a JOIN {open} b ON a.source_id = b.source_id AND a.id < b.id
         WHERE a.first_item_id <= b.last_item_id AND b.first_item_id <= a.last_item_id"
    );
    assert_eq!(number(pool, &overlaps).await, 0);
    let bare = format!(
        "SELECT count(*) FROM weir.chunks c WHERE NOT EXISTS (
             SELECT FROM weir.embeddings e WHERE (e.source_id, e.item_id, e.text_hash)
                 = (c.source_id, c.item_id, c.text_hash))
         AND NOT EXISTS (
             SELECT FROM {open} j WHERE c.source_id = j.source_id
                 AND c.item_id BETWEEN j.first_item_id AND j.last_item_id)"
    );
    assert_eq!(number(pool, &bare).await, 0);
}

fn ids(put: &PutSourceResponse) -> Vec<i64> {
    put.jobs.iter().map(|job| job.job_id).collect()
}

#[tokio::test]
async fn law_10_open_jobs_never_overlap_and_a_change_ends_none() {
    let weir = Weir::with(&[("WEIR_MAX_CHUNKS_PER_JOB", "2")]).await;
    let mut texts: Vec<String> = (0..8).map(|id| format!("text {id}")).collect();
    let put = async |texts: &[String]| {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        weir.put("source", &texts).await
    };
    let first = put(&texts).await;
    assert_eq!(first.jobs.len(), 4);
    assert_covered(&weir).await;

    let mut known = ids(&first);
    for round in 0..4 {
        // One job is half done when the content comes again, and then changes.
        let lease = weir.claim().await;
        let chunks = weir.batch(&lease).await;
        let half = upsert(&lease, vectors(&chunks[..1]));
        weir.worker().upsert_batch(half).await.unwrap();
        let before = weir.rows("jobs").await;
        let again = put(&texts).await;
        assert_eq!(
            weir.rows("jobs").await,
            before,
            "the same content queues nothing"
        );
        assert_eq!(again.change.unwrap().items_changed, 0);
        assert_eq!(weir.job(lease.job_id).await.state(), JobState::Running);

        texts[round] = format!("changed {round}");
        let changed = put(&texts).await;
        let met = weir.job(lease.job_id).await;
        assert_eq!((met.state(), met.epoch), (JobState::Running, lease.epoch));
        assert_covered(&weir).await;
        // What was handed out before is stored, but for the text that is another now.
        let is_late = |chunk: &&Chunk| chunk.text.ends_with(&format!("text {round}"));
        let late = chunks[1..].iter().filter(is_late).count() as i64;
        let rest = upsert(&lease, vectors(&chunks[1..]));
        let answer = weir.worker().upsert_batch(rest).await.unwrap().into_inner();
        assert_eq!(answer.late, late);
        assert_covered(&weir).await;
        // One new job at most, for the one item, where none covers it.
        let new = ids(&changed).into_iter().filter(|id| !known.contains(id));
        let new: Vec<i64> = new.collect();
        assert!(new.len() <= 1, "{new:?}");
        known.extend(new);
    }
}
