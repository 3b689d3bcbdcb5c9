//! What stands before each text when it is embedded is part of what the text is.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use weir_coordinator::{
    job::{plan::PlannedItem, state::JobState},
    maintenance::prompts,
    store::{
        StoreError,
        chunks::ChunkState,
        content::SourceWrite,
        migrate,
        rows::{ChunkText, Job},
        search::{Hit, Search},
    },
};
use weir_tests::embedder::expected_vector;

use crate::fixture::{
    ALL, LEASE, MODEL, Weir, counts, embedded, item, items, key, lease_of, many, outcome, rejected,
    write,
};

/// Hashes of the text "hello world", and of it behind the prompt `search_document: `.
const BARE: &str = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
const PROMPTED: &str = "2d31be3b731ca0237a2fd3e0df79560f934573c9c203f51f177907272ddb8925";

/// A coordinator starts that has these prompts.
async fn start_with(weir: &Weir, prompts: &[(&str, &str)]) {
    weir.store.set_prompts(prompts).await.unwrap();
}

/// The same, with one for [`MODEL`].
async fn start(weir: &Weir, prompt: &str) {
    start_with(weir, &[(MODEL, prompt)]).await;
}

/// Takes steps until no source has another prompt than that in force.
async fn settle(weir: &Weir) {
    while prompts::tick(&weir.store, 1_000).await.unwrap() {}
}

async fn hashes(weir: &Weir) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT encode(text_hash, 'hex') FROM weir.chunks ORDER BY source_id, item_id, chunk_index",
    )
    .fetch_all(weir.pool())
    .await
    .unwrap()
}

/// The texts of the chunks whose vectors are nearest to that of this one.
async fn search(weir: &Weir, text: &str) -> Vec<Hit> {
    let search = Search {
        namespace: "shop",
        source: None,
        model: None,
        default_model: MODEL,
        vector: expected_vector(text),
        limit: 100,
    };
    weir.store.search(&search).await.unwrap()
}

/// Puts the source `patched` in order, item by item.
async fn patch(weir: &Weir, content: &[PlannedItem]) {
    let gone = ["b".to_owned()];
    let patched = weir
        .store
        .patch_source(&write("patched"), content, &gone)
        .await;
    patched.unwrap();
}

async fn row(weir: &Weir, name: &str) -> i64 {
    weir.store.source_id(&key(name)).await.unwrap()
}

#[tokio::test]
async fn without_a_prompt_the_hash_is_that_of_the_text() {
    let weir = Weir::new().await;
    let content = items(&[("a", "hello world")]);
    weir.put("small", &content).await;
    // What is not small, or is there already, is written step by step.
    weir.put("large", &many(101)).await;
    weir.put("large", &content).await;
    weir.put("patched", &items(&[("b", "another")])).await;
    patch(&weir, &content).await;
    assert_eq!(hashes(&weir).await, [BARE; 3]);
    start(&weir, "").await;
    assert_eq!(weir.number("SELECT count(*) FROM weir.prompts").await, 0);
    weir.check().await;
}

#[tokio::test]
async fn a_prompt_is_embedded_and_hashed_with_the_text_and_shown_nowhere() {
    let weir = Weir::new().await;
    start(&weir, "search_document: ").await;
    let content = items(&[("a", "hello world")]);
    weir.put("small", &content).await;
    weir.put("large", &many(101)).await;
    weir.put("large", &content).await;
    let other = items(&[("b", "another")]);
    weir.put("patched", &other).await;
    patch(&weir, &content).await;
    assert_eq!(hashes(&weir).await, [PROMPTED; 3]);

    let opened = weir.claim_many(3, LEASE).await;
    let leases: Vec<_> = opened.iter().map(lease_of).collect();
    let small = weir
        .store
        .texts_of_small(&leases, 10, i64::MAX)
        .await
        .unwrap();
    for job in &opened {
        let pending = weir.store.pending(lease_of(job), ALL).await.unwrap();
        assert_eq!(pending[0].text_bytes, "search_document: hello world".len());
        let texts = weir.texts(job).await;
        assert_eq!(texts, small[&job.id]);
        assert_eq!(texts[0].text, "search_document: hello world");
        let hash: [u8; 32] = Sha256::digest(&texts[0].text).into();
        assert_eq!(texts[0].text_hash, hash);
        weir.embed(job).await;
    }
    let name = key("small");
    let chunks = weir.store.chunks(&name, ChunkState::Embedded, None, 10);
    assert_eq!(chunks.await.unwrap()[0].chars, 11);
    let hits = search(&weir, "search_document: hello world").await;
    assert_eq!(hits.len(), 3);
    for hit in hits {
        assert_eq!(hit.text, "hello world");
        assert!(hit.distance < 1e-6, "{hit:?}");
    }
    weir.check().await;
    assert!(!weir.put("large", &content).await.changed);
}

#[tokio::test]
async fn a_database_of_before_stays_embedded() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    weir.embed_all().await;
    weir.put("open", &many(1)).await;
    let before = hashes(&weir).await;
    weir.meddle(
        "DROP TABLE weir.prompts;
         ALTER TABLE weir.sources DROP COLUMN prompt_id, DROP COLUMN next_prompt_id, DROP COLUMN prompted_to;
         DELETE FROM weir.migrations WHERE description = 'prompts'",
    )
    .await;
    migrate(weir.pool(), true).await.unwrap();
    assert_eq!(hashes(&weir).await, before);
    start(&weir, "").await;
    settle(&weir).await;
    assert_eq!(weir.counts("api").await, counts([3, 3, 0, 3, 0]));
    assert!(!weir.put("api", &many(3)).await.changed);
    assert_eq!(weir.embed_all().await, ["text 0"]);
    weir.check().await;
}

#[tokio::test]
async fn another_prompt_embeds_all_again_once_and_searches_go_on() {
    let weir = Weir::new().await;
    weir.put("api", &many(4)).await;
    weir.put("of another", &many(1)).await;
    let of_another = SourceWrite {
        model: Some("other".to_owned()),
        ..write("of another")
    };
    weir.store.put_source(&of_another, &many(1)).await.unwrap();
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let mut first = outcome(&job, &texts[1..]);
    first.rejected.push(rejected(&texts[0], "too rude"));
    weir.upsert(first).await.unwrap();
    let job = weir.claim_of("other").await;
    weir.embed(&job).await;
    assert_eq!(weir.counts("api").await, counts([4, 4, 0, 3, 1]));
    let before = weir.vectors("api").await;
    let revision = weir
        .store
        .source(&key("api"))
        .await
        .unwrap()
        .source
        .revision;

    start(&weir, "search_document: ").await;
    settle(&weir).await;
    // What was rejected is tried again, and the vectors stay until others come.
    assert_eq!(weir.counts("api").await, counts([4, 4, 4, 0, 0]));
    assert_eq!(weir.counts("of another").await, counts([1, 1, 0, 1, 0]));
    assert_eq!(weir.vectors("api").await, before);
    assert_eq!(search(&weir, "text 2").await.len(), 3);
    for (state, chunks) in [(ChunkState::Embedded, 0), (ChunkState::Pending, 4)] {
        let listed = weir
            .store
            .chunks(&key("api"), state, None, 10)
            .await
            .unwrap();
        assert_eq!(listed.len(), chunks, "{state:?}");
    }
    weir.check().await;
    let prompted: Vec<_> = (0..4)
        .map(|n| format!("search_document: text {n}"))
        .collect();
    assert_eq!(weir.embed_all().await, prompted);
    assert_eq!(weir.counts("api").await, counts([4, 4, 0, 4, 0]));
    assert!(search(&weir, "search_document: text 2").await[0].distance < 1e-6);
    weir.check().await;

    start(&weir, "search_document: ").await;
    settle(&weir).await;
    assert!(!weir.put("api", &many(4)).await.changed);
    assert_eq!(weir.embed_all().await, [""; 0], "nothing changed");
    let state = weir.store.source(&key("api")).await.unwrap();
    assert_eq!(state.source.revision, revision, "the content is the same");
}

/// A prompt that is taken back before vectors were made with it costs nothing.
#[tokio::test]
async fn what_has_its_vector_already_is_not_embedded_again() {
    let weir = Weir::new().await;
    weir.put("api", &many(3)).await;
    weir.embed_all().await;
    start(&weir, "one: ").await;
    settle(&weir).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let mut part = outcome(&job, &texts[..1]);
    part.complete = false;
    weir.upsert(part).await.unwrap();
    start(&weir, "").await;
    settle(&weir).await;
    assert_eq!(weir.counts("api").await, counts([3, 3, 1, 2, 0]));
    let left = weir.texts(&job).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].text, "text 0");
    assert!(weir.embed(&job).await.finished);
    assert_eq!(weir.number("SELECT count(*) FROM weir.prompts").await, 2);
    weir.check().await;
}

#[tokio::test]
async fn a_large_source_changes_its_prompt_in_steps() {
    let weir = Weir::new().await;
    let small = SourceWrite {
        max_chunks_per_job: 2,
        ..write("api")
    };
    let mut content = many(7);
    content[3] = item("i0003", &["three", "thirty-three", "three hundred"]);
    weir.store.put_source(&small, &content).await.unwrap();
    // One embedded, one running, one failed, one cancelled.
    let [done, running, failed, cancelled] = &weir.claim_many(4, LEASE).await[..] else {
        panic!("there are four jobs");
    };
    weir.embed(done).await;
    weir.fail_for_good(failed).await;
    let all = weir_coordinator::store::Scope::All;
    weir.store.cancel_job(&all, cancelled.id).await.unwrap();
    let source_id = row(&weir, "api").await;
    start(&weir, "one: ").await;

    let mut steps = 0;
    loop {
        let step = weir.store.reprompt(source_id, 2, 2).await.unwrap();
        let Some(step) = step else {
            panic!("it is not done");
        };
        steps += 1;
        weir.check().await;
        // In the midst of it the content is what it is.
        let again = weir.store.put_source(&small, &content).await.unwrap();
        assert_eq!(again.change.items_unchanged, 7, "step {steps}");
        weir.check().await;
        // A text that changes has the prompt of its place.
        content[1] = item("i0001", &[&format!("{steps}")]);
        content[6] = item("i0006", &[&format!("{steps}")]);
        weir.store.put_source(&small, &content).await.unwrap();
        weir.check().await;
        if step.finished {
            break;
        }
    }
    assert_eq!(
        steps, 5,
        "two items, one, one with three chunks, and the rest"
    );
    assert_eq!(weir.store.reprompt(source_id, 2, 2).await.unwrap(), None);
    let reached = weir.texts(running).await;
    assert!(reached.iter().all(|it| it.text.starts_with("one: ")));
    assert!(weir.embed(running).await.finished);
    let texts = weir.embed_all().await;
    assert_eq!(reached.len() + texts.len(), 9);
    assert!(
        texts.iter().all(|text| text.starts_with("one: ")),
        "{texts:?}"
    );
    assert_eq!(weir.counts("api").await, counts([7, 9, 0, 9, 0]));
    weir.check().await;
}

/// The step ends the jobs of the texts that it changes, and no others.
#[tokio::test]
async fn work_that_is_not_reached_yet_goes_on() {
    let weir = Weir::new().await;
    let small = SourceWrite {
        max_chunks_per_job: 2,
        ..write("api")
    };
    weir.store.put_source(&small, &many(6)).await.unwrap();
    let jobs = weir.claim_many(3, LEASE).await;
    start(&weir, "one: ").await;
    let step = weir
        .store
        .reprompt(row(&weir, "api").await, 2, 2)
        .await
        .unwrap();
    assert_eq!(step.unwrap().queued, 0, "the job that covers them has them");
    let reached = weir.texts(&jobs[0]).await;
    assert_eq!(reached[0].text, "one: text 0");
    let texts = weir.texts(&jobs[1]).await;
    assert_eq!(texts[0].text, "text 2");
    weir.embed(&jobs[1]).await;
    weir.check().await;
    settle(&weir).await;
    for job in [&jobs[0], &jobs[2]] {
        assert!(weir.embed(job).await.finished);
    }
    assert_eq!(weir.embed_all().await, ["one: text 2", "one: text 3"]);
    weir.check().await;
}

/// What a failed job left is queued with the step that meets it, around what newer
/// jobs have of its range behind the step.
#[tokio::test]
async fn a_failed_job_that_reaches_over_the_step_is_queued_around_others() {
    let weir = Weir::new().await;
    weir.put("api", &many(12)).await;
    let failed = weir.claim().await;
    weir.fail_for_good(&failed).await;
    let changed = [item("i0008", &["new"])];
    let api = write("api");
    let patched = weir.store.patch_source(&api, &changed, &[]);
    patched.await.unwrap();
    start(&weir, "one: ").await;
    let id = row(&weir, "api").await;
    weir.store.reprompt(id, 4, 1_000).await.unwrap();
    weir.check().await;
    settle(&weir).await;
    let texts = weir.embed_all().await;
    assert_eq!(texts.len(), 12);
    assert!(texts.contains(&"one: new".to_owned()), "{texts:?}");
    weir.check().await;
}

#[tokio::test]
async fn what_was_computed_with_the_old_prompt_is_not_stored() {
    let weir = Weir::new().await;
    weir.put("api", &many(2)).await;
    let job = weir.claim().await;
    let old = weir.texts(&job).await;
    start(&weir, "one: ").await;
    settle(&weir).await;
    // As a vector or as a refusal.
    let mut refused = outcome(&job, &[]);
    refused.rejected.push(rejected(&old[0], "too rude"));
    for (late, chunks) in [(outcome(&job, &old), 2), (refused.clone(), 1)] {
        assert_eq!(weir.upsert(late).await.unwrap().late.chunks(), chunks);
    }
    // Nor under a lease that was taken when it had changed already.
    weir.store.release(lease_of(&job), "drained").await.unwrap();
    let job = weir.claim().await;
    refused.fence = lease_of(&job).into();
    for strange in [outcome(&job, &old), refused] {
        let answer = weir.upsert(strange).await;
        assert!(matches!(answer, Err(StoreError::Invalid(_))), "{answer:?}");
    }
    assert_eq!(weir.counts("api").await, counts([2, 2, 2, 0, 0]));
    weir.embed(&job).await;
    weir.check().await;
}

/// The prompt is set between a worker's reading and its writing, at every point
/// of its call: the write waits for the step's locks and then stores nothing.
#[tokio::test]
async fn a_result_that_waits_for_the_step_is_not_stored() {
    let weir = Weir::new().await;
    weir.put("api", &many(2)).await;
    let job = weir.claim().await;
    let old = weir.texts(&job).await;
    start(&weir, "one: ").await;
    let source_id = row(&weir, "api").await;
    // Whoever holds the job's row lets the step wait, and the result behind it.
    let mut holder = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.jobs WHERE id = $1 FOR UPDATE")
        .bind(job.id)
        .execute(&mut *holder)
        .await
        .unwrap();
    let step = weir.store.reprompt(source_id, ALL, 1_000);
    let result = async {
        weir.blocked(1).await;
        let result = weir.upsert(outcome(&job, &old));
        let release = async {
            weir.blocked(2).await;
            holder.rollback().await.unwrap();
        };
        tokio::join!(result, release).0
    };
    let (step, result) = tokio::join!(step, result);
    assert!(step.unwrap().unwrap().finished);
    assert_eq!(result.unwrap().late.embedded, 2);
    assert_eq!(weir.vectors("api").await.len(), 0);
    weir.check().await;
}

#[tokio::test]
async fn another_model_comes_with_its_prompt() {
    let weir = Weir::new().await;
    let store = &weir.store;
    start_with(&weir, &[(MODEL, "one: "), ("other", "two: ")]).await;
    weir.put("api", &many(3)).await;
    weir.embed_all().await;
    let of = |model: &str| SourceWrite {
        model: Some(model.to_owned()),
        ..write("api")
    };
    let changed = store.put_source(&of("other"), &many(3)).await.unwrap();
    assert_eq!(changed.change.items_unchanged, 3);
    assert_eq!(
        weir.vectors("api").await.len(),
        3,
        "those of the old model stay"
    );
    weir.check().await;
    let job = weir.claim_of("other").await;
    assert_eq!(weir.texts(&job).await[0].text, "two: text 0");
    weir.embed(&job).await;
    assert!(
        !store
            .put_source(&of("other"), &many(3))
            .await
            .unwrap()
            .changed
    );
    weir.check().await;
    // By a patch, and to a model that has none, in the midst of a change.
    start_with(&weir, &[("other", "three: ")]).await;
    let step = weir
        .store
        .reprompt(row(&weir, "api").await, 1, 1_000)
        .await
        .unwrap();
    assert!(!step.unwrap().finished);
    let patched = store
        .patch_source(&of("third"), &items(&[("i0001", "new")]), &[])
        .await
        .unwrap();
    assert_eq!(patched.change.items_changed, 1);
    weir.check().await;
    let job = weir.claim_of("third").await;
    let texts: Vec<_> = weir
        .texts(&job)
        .await
        .into_iter()
        .map(|it| it.text)
        .collect();
    assert_eq!(texts, ["new", "text 0", "text 2"]);
    weir.embed(&job).await;
    settle(&weir).await;
    assert_eq!(weir.counts("api").await, counts([3, 3, 0, 3, 0]));
    weir.check().await;
    // A write that comes too late for its revision changes nothing.
    let late = SourceWrite {
        expected_revision: Some(1),
        ..of("other")
    };
    let refused = store.put_source(&late, &many(3)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Aborted(_)), "{refused:?}");
    weir.check().await;
}

/// Two versions of a file at a time, as while a new version goes out: the one
/// that started last has its way, and nobody goes back and forth.
#[tokio::test]
async fn the_start_that_comes_last_decides_and_replicas_do_not_take_turns() {
    let weir = Weir::new().await;
    start(&weir, "old: ").await;
    weir.put("first", &many(2)).await;
    assert_eq!(weir.embed_all().await, ["old: text 0", "old: text 1"]);
    start(&weir, "new: ").await;
    settle(&weir).await;
    weir.put("first", &many(2)).await;
    assert_eq!(weir.embed_all().await, ["new: text 0", "new: text 1"]);
    // Whichever replica takes it.
    weir.put("second", &many(1)).await;
    assert_eq!(weir.embed_all().await, ["new: text 0"]);
    assert!(!prompts::tick(&weir.store, 1_000).await.unwrap());
    // Starts at the same moment agree on one of them.
    let (a, b) = tokio::join!(
        weir.store.set_prompts(&[(MODEL, "a: ")]),
        weir.store.set_prompts(&[(MODEL, "b: ")])
    );
    assert_eq!((a.unwrap(), b.unwrap()), (vec![MODEL], vec![MODEL]));
    settle(&weir).await;
    let texts = weir.embed_all().await;
    assert_eq!(texts.len(), 3);
    assert!(
        texts.iter().all(|text| text[..3] == texts[0][..3]),
        "{texts:?}"
    );
    // What was in force once is so again under its old number.
    start(&weir, "old: ").await;
    assert_eq!(weir.number("SELECT count(*) FROM weir.prompts").await, 4);
    weir.check().await;
}

#[tokio::test]
async fn a_source_that_others_hold_is_passed_by() {
    let weir = Weir::new().await;
    weir.put("held", &many(1)).await;
    weir.put("free", &many(1)).await;
    weir.embed_all().await;
    start(&weir, "one: ").await;
    let mut holder = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.sources WHERE name = 'held' FOR UPDATE")
        .execute(&mut *holder)
        .await
        .unwrap();
    settle(&weir).await;
    assert_eq!(weir.counts("free").await, counts([1, 1, 1, 0, 0]));
    holder.rollback().await.unwrap();
    assert_eq!(weir.counts("held").await, counts([1, 1, 0, 1, 0]));
    settle(&weir).await;
    assert_eq!(weir.counts("held").await, counts([1, 1, 1, 0, 0]));
    weir.check().await;
}

/// A worker counts the characters of what it was given.
#[tokio::test]
async fn the_prompt_is_no_part_of_what_is_truncated() {
    let prompt = "prömpt: ";
    for (truncated_to, stored) in [
        (4, Some(1)),
        (9, Some(1)),
        (11, Some(3)),
        (12, None),
        (13, None),
    ] {
        let weir = Weir::new().await;
        start(&weir, prompt).await;
        let content = items(&[("a", "äöü€")]);
        weir.put("api", &content).await;
        let job = weir.claim().await;
        let mut part = outcome(&job, &weir.texts(&job).await);
        part.embedded[0].truncated_to = Some(truncated_to);
        let counted = weir.upsert(part).await.unwrap().truncated;
        assert_eq!(counted, i64::from(stored.is_some()), "{truncated_to}");
        let found: Option<i32> = sqlx::query_scalar("SELECT truncated_to FROM weir.embeddings")
            .fetch_one(weir.pool())
            .await
            .unwrap();
        assert_eq!(found, stored, "{truncated_to}");
        weir.check().await;
    }
}

/// A look for sources that have another prompt costs what these are, not what
/// all are.
#[tokio::test]
async fn looking_for_sources_reads_none_that_has_its_prompt() {
    let weir = Weir::new().await;
    start(&weir, "one: ").await;
    sqlx::query(
        "INSERT INTO weir.sources (namespace, name, model, prompt_id)
         SELECT 'shop', n::text, $1, (SELECT id FROM weir.prompts) FROM generate_series(1, 5000) n",
    )
    .bind(MODEL)
    .execute(weir.pool())
    .await
    .unwrap();
    weir.meddle("VACUUM ANALYZE weir.sources").await;
    let counted = weir.counted().await;
    let read = "SELECT seq_tup_read + (SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes i
                                       WHERE i.relid = t.relid)
                FROM pg_stat_user_tables t WHERE relid = 'weir.sources'::regclass";
    let before = counted.told(read).await;
    assert_eq!(counted.store.sources_to_prompt(100).await.unwrap(), [0; 0]);
    let rows = counted.told(read).await - before;
    assert!(rows < 10, "{rows} rows");
}

/// One thing that is done.
#[derive(Debug, Clone)]
enum Step {
    /// The whole content: each item's text, by the number of the item.
    Put(BTreeMap<u8, u8>),
    /// A coordinator starts with this prompt.
    Start(u8),
    /// So many chunks get the prompt in force.
    Reprompt(i64),
    /// A worker claims a job and reads its texts.
    Claim,
    /// A worker brings so many of the vectors that it has made of what it read,
    /// under the lease that it read them under or under its latest.
    Bring(usize, usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::btree_map(0..8_u8, 0..4_u8, 1..8).prop_map(Step::Put),
        2 => (0..3_u8).prop_map(Step::Start),
        4 => (1..6_i64).prop_map(Step::Reprompt),
        4 => Just(Step::Claim),
        6 => (0..4_usize, 1..6_usize, any::<bool>())
            .prop_map(|(lease, chunks, latest)| Step::Bring(lease, chunks, latest)),
    ]
}

/// What must be there, and what was handed out.
#[derive(Default)]
struct Known {
    content: BTreeMap<u8, u8>,
    prompt: &'static str,
    /// What each vector was made of, by item.
    vectors: BTreeMap<String, String>,
    leases: Vec<Lease>,
}

/// A lease, and what was read under it.
struct Lease {
    job: Job,
    read: Vec<ChunkText>,
    /// Whether the job succeeded under it.
    ended: bool,
}

impl Known {
    fn put(&mut self, content: &BTreeMap<u8, u8>) {
        let old = std::mem::replace(&mut self.content, content.clone());
        for (number, text) in old {
            if content.get(&number) != Some(&text) {
                self.vectors.remove(&format!("i{number}"));
            }
        }
    }

    fn text(&self, item_id: &str) -> String {
        let number: u8 = item_id[1..].parse().unwrap();
        format!("text {}", self.content[&number])
    }

    async fn claim(&mut self, weir: &Weir) {
        let Some(job) = weir.claim_many(1, LEASE).await.pop() else {
            return;
        };
        let texts = weir.texts(&job).await;
        for chunk in &texts {
            let made_of = self.vectors.get(&chunk.item_id);
            assert_ne!(made_of, Some(&chunk.text), "it is embedded");
            assert!(chunk.text.ends_with(&self.text(&chunk.item_id)));
        }
        self.leases.push(Lease {
            job,
            read: texts,
            ended: false,
        });
    }

    async fn bring(&mut self, weir: &Weir, place: usize, chunks: usize, latest: bool) {
        let Some(from) = self.leases.len().checked_sub(1 + place) else {
            return;
        };
        let under = if latest { self.leases.len() - 1 } else { from };
        let mut part = outcome(&self.leases[under].job, &[]);
        let read: Vec<_> = self.leases[from]
            .read
            .iter()
            .take(chunks)
            .cloned()
            .collect();
        part.embedded = read.iter().map(embedded).collect();
        // What is of another job's range is as late as what is gone.
        let present: Vec<(String, Vec<u8>)> = sqlx::query_as(
            "SELECT c.item_id, c.text_hash FROM weir.jobs j
             JOIN weir.chunks c ON c.source_id = j.source_id
                 AND c.item_id BETWEEN j.first_item_id AND j.last_item_id
             WHERE j.id = $1",
        )
        .bind(part.fence.lease.job_id)
        .fetch_all(weir.pool())
        .await
        .unwrap();
        // A write may have taken away all that was left of it.
        self.leases[under].ended |=
            weir.job(part.fence.lease.job_id).await.state == JobState::Succeeded;
        match weir.upsert(part).await {
            // What comes after the end is answered as before, and written no more.
            Ok(_) if self.leases[under].ended => {}
            Ok(progress) => {
                self.leases[under].ended = progress.finished;
                let is_present = |chunk: &ChunkText| {
                    present.contains(&(chunk.item_id.clone(), chunk.text_hash.clone()))
                };
                let (stored, late): (Vec<_>, Vec<_>) = read.into_iter().partition(is_present);
                assert_eq!(progress.late.embedded, late.len() as i64);
                for chunk in stored {
                    self.vectors.insert(chunk.item_id, chunk.text);
                }
            }
            Err(StoreError::LeaseLost { .. } | StoreError::Invalid(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }

    /// No vector is there but those that must be, and none of them went.
    async fn agrees(&self, weir: &Weir) {
        weir.check().await;
        let stored: Vec<(String, Vec<u8>)> =
            sqlx::query_as("SELECT item_id, text_hash FROM weir.embeddings ORDER BY item_id")
                .fetch_all(weir.pool())
                .await
                .unwrap();
        let wanted: Vec<(String, Vec<u8>)> = self
            .vectors
            .iter()
            .map(|(item_id, text)| (item_id.clone(), Sha256::digest(text).to_vec()))
            .collect();
        assert_eq!(stored, wanted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn vectors_are_of_prompt_and_text_and_made_once(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let weir = Weir::new().await;
            let small = SourceWrite { max_chunks_per_job: 3, ..write("api") };
            let mut known = Known::default();
            for step in &steps {
                match step {
                    Step::Put(content) => {
                        let planned: Vec<_> = content
                            .iter()
                            .map(|(number, text)| item(&format!("i{number}"), &[&format!("text {text}")]))
                            .collect();
                        weir.store.put_source(&small, &planned).await.unwrap();
                        known.put(content);
                    }
                    Step::Start(number) => {
                        known.prompt = ["", "one: ", "two: "][usize::from(*number)];
                        start(&weir, known.prompt).await;
                    }
                    Step::Reprompt(chunks) => {
                        for source_id in weir.store.sources_to_prompt(10).await.unwrap() {
                            weir.store.reprompt(source_id, *chunks, 3).await.unwrap();
                        }
                    }
                    Step::Claim => known.claim(&weir).await,
                    Step::Bring(place, chunks, latest) => known.bring(&weir, *place, *chunks, *latest).await,
                }
                known.agrees(&weir).await;
            }
            // What is left is done, and no more than that.
            settle(&weir).await;
            weir.meddle("UPDATE weir.jobs SET lease_expires_at = now() WHERE state = 'running'").await;
            let patience = weir_coordinator::store::rescue::Patience {
                orphan_grace: std::time::Duration::ZERO,
                progress_deadline: LEASE,
            };
            let policy = weir_coordinator::job::retry::RetryPolicy {
                backoff_base: std::time::Duration::ZERO,
                backoff_cap: std::time::Duration::ZERO,
                ..Default::default()
            };
            weir.store.rescue(100, &patience, &policy, || 0.0).await.unwrap();
            let mut wanted: Vec<String> = Vec::new();
            for number in known.content.keys() {
                let item_id = format!("i{number}");
                let text = format!("{}{}", known.prompt, known.text(&item_id));
                if known.vectors.insert(item_id, text.clone()).as_ref() != Some(&text) {
                    wanted.push(text);
                }
            }
            wanted.sort();
            assert_eq!(weir.embed_all().await, wanted);
            known.agrees(&weir).await;
        });
    }
}
