//! Rejections: counted, told, and taken back.

use weir_coordinator::{
    job::{
        badge::{BadgeState, Verdict},
        plan::PlannedItem,
        state::{JobState, Trigger},
    },
    store::{
        Scope, StoreError,
        batches::{Outcome, Written},
        overview::NamespaceFigures,
        rows::{Job, Source},
        sources::SourceFilter,
        steer::{SourceRetried, SourceRetry},
    },
};

use crate::fixture::{
    LEASE, Weir, counts, item, items, key, lease_of, many, outcome, rejected, write,
};

impl Weir {
    /// Puts a source in jobs of two chunks.
    pub(crate) async fn put_in_twos(&self, name: &str, items: &[PlannedItem]) {
        let mut write = write(name);
        write.max_chunks_per_job = 2;
        self.store.put_source(&write, items).await.unwrap();
    }

    /// Embeds what a job has pending but the texts with this word, which are
    /// rejected.
    pub(crate) async fn embed_but(&self, job: &Job, word: &str) {
        let texts = self.texts(job).await;
        let (odd, sound): (Vec<_>, Vec<_>) =
            texts.into_iter().partition(|it| it.text.contains(word));
        let outcome = Outcome {
            rejected: odd.iter().map(|it| rejected(it, "500: NaN")).collect(),
            ..outcome(job, &sound)
        };
        assert!(self.upsert(outcome).await.unwrap().finished);
    }

    /// The same, of all that is due.
    pub(crate) async fn embed_all_but(&self, word: &str) {
        for job in self.claim_many(100, LEASE).await {
            self.embed_but(&job, word).await;
        }
    }

    async fn retry_source(&self, name: &str) -> SourceRetried {
        let retry = SourceRetry {
            key: key(name),
            max_chunks_per_job: 2,
            traceparent: None,
        };
        self.store.retry_source(&retry).await.unwrap()
    }

    pub(crate) async fn source_row(&self, name: &str) -> Source {
        self.store.source(&key(name)).await.unwrap().source
    }

    async fn all(&self) -> NamespaceFigures {
        let served = ["fake".to_owned()];
        self.overview(&Scope::All, &served).await.remove(0)
    }
}

fn ranges(jobs: &[Job]) -> Vec<(&str, &str, i32)> {
    jobs.iter()
        .rev()
        .map(|it| {
            (
                &*it.first_item_id,
                &*it.last_item_id,
                it.chunks_total - it.chunks_done - it.chunks_rejected,
            )
        })
        .collect()
}

/// Seven items, of which `b`, `c` and `f` are odd, all done.
async fn three_of_seven_rejected() -> Weir {
    let weir = Weir::new().await;
    let content = items(&[
        ("a", "1"),
        ("b", "odd 2"),
        ("c", "odd 3"),
        ("d", "4"),
        ("e", "5"),
        ("f", "odd 6"),
        ("g", "7"),
    ]);
    weir.put_in_twos("api", &content).await;
    weir.embed_all_but("odd").await;
    weir
}

#[tokio::test]
async fn what_was_rejected_is_queued_again_and_nothing_else_is() {
    let weir = three_of_seven_rejected().await;
    assert_eq!(weir.counts("api").await, counts([7, 7, 0, 4, 3]));
    weir.check().await;
    let vectors = weir.vectors("api").await;

    let retried = weir.retry_source("api").await;
    assert_eq!(retried.taken_back, 3);
    assert_eq!(ranges(&retried.jobs), [("b", "c", 2), ("f", "f", 1)]);
    assert!(retried.jobs.iter().all(|it| it.trigger == Trigger::Retry));
    assert_eq!(weir.vectors("api").await, vectors);
    assert_eq!(weir.counts("api").await, counts([7, 7, 3, 4, 0]));
    weir.check().await;
    // Asked again, it is done already.
    let again = weir.retry_source("api").await;
    assert_eq!((again.taken_back, &again.jobs), (0, &retried.jobs));
    weir.check().await;

    assert_eq!(weir.embed_all().await, ["odd 2", "odd 3", "odd 6"]);
    assert_eq!(weir.counts("api").await, counts([7, 7, 0, 7, 0]));
    assert_eq!(weir.all().await.tally().verdict(), Verdict::Healthy);
    let nothing = weir.retry_source("api").await;
    assert_eq!((nothing.taken_back, nothing.jobs), (0, Vec::new()));
    weir.check().await;
}

#[tokio::test]
async fn what_is_rejected_again_is_counted_once() {
    let weir = three_of_seven_rejected().await;
    for _ in 0..3 {
        assert_eq!(weir.retry_source("api").await.taken_back, 3);
        weir.embed_all_but("odd").await;
        assert_eq!(weir.counts("api").await, counts([7, 7, 0, 4, 3]));
        weir.check().await;
    }
}

#[tokio::test]
async fn an_open_job_takes_what_it_covers_and_a_stopped_one_goes_on() {
    let weir = three_of_seven_rejected().await;
    // A job from b to f, which rejected nothing of what lies between.
    weir.meddle(
        "DELETE FROM weir.embeddings WHERE item_id IN ('d', 'e');
         INSERT INTO weir.jobs (source_id, namespace, source, model, revision, trigger, first_item_id, last_item_id,
                                chunks_total)
         SELECT id, namespace, name, model, revision, 'reconcile', 'c', 'e', 2 FROM weir.sources",
    )
    .await;
    weir.check().await;
    let wide = weir.claim().await;
    let texts = weir.texts(&wide).await;
    let odd = Outcome {
        rejected: vec![rejected(&texts[0], "odd today")],
        ..outcome(&wide, &[])
    };
    weir.upsert(odd).await.unwrap();
    assert_eq!(weir.counts("api").await, counts([7, 7, 1, 2, 4]));
    weir.check().await;

    let retried = weir.retry_source("api").await;
    assert_eq!(retried.taken_back, 4);
    // What it rejected itself it has not done, and what was rejected before is more than it was planned with.
    let running = weir.job(wide.id).await;
    assert_eq!(
        (running.state, running.epoch),
        (JobState::Running, wide.epoch)
    );
    assert_eq!((running.chunks_total, running.chunks_rejected), (3, 0));
    assert_eq!(
        ranges(&retried.jobs),
        [("c", "e", 3), ("b", "b", 1), ("f", "f", 1)]
    );
    weir.check().await;
    assert!(weir.embed(&wide).await.finished);

    let [cancelled, failed] = weir.claim_many(2, LEASE).await.try_into().unwrap();
    weir.fail_for_good(&failed).await;
    weir.store
        .cancel_job(&Scope::All, cancelled.id)
        .await
        .unwrap();
    let again = weir.retry_source("api").await;
    assert_eq!((again.taken_back, again.jobs.len()), (0, 2));
    weir.check().await;
    assert_eq!(weir.embed_all().await, ["odd 2", "odd 6"]);
    assert_eq!(weir.counts("api").await, counts([7, 7, 0, 7, 0]));
    weir.check().await;
}

#[tokio::test]
async fn a_retry_of_a_source_lets_what_waits_run_at_once() {
    let weir = Weir::new().await;
    weir.put("api", &many(1)).await;
    let job = weir.claim().await;
    let later = weir_coordinator::job::retry::RetryPolicy::default();
    let charged = weir.store.fail(lease_of(&job), "it broke", &later, 1.0);
    charged.await.unwrap();
    assert!(weir.claim_many(1, LEASE).await.is_empty());
    let retried = weir.retry_source("api").await;
    assert_eq!((retried.jobs[0].id, retried.jobs[0].attempt), (job.id, 0));
    assert_eq!(weir.claim().await.id, job.id);
    let nowhere = SourceRetry {
        key: key("nowhere"),
        max_chunks_per_job: 2,
        traceparent: None,
    };
    let nowhere = weir.store.retry_source(&nowhere).await;
    assert!(matches!(nowhere, Err(StoreError::NotFound(_))));
    weir.check().await;
}

#[tokio::test]
async fn a_job_takes_back_what_was_rejected_of_its_range_and_no_more() {
    let weir = three_of_seven_rejected().await;
    let first = weir.number("SELECT min(id) FROM weir.jobs").await;
    let [anew] = weir.retry(first, false).await.unwrap().try_into().unwrap();
    assert_eq!(
        (&*anew.first_item_id, &*anew.last_item_id, anew.chunks_total),
        ("b", "b", 1)
    );
    assert_eq!(weir.counts("api").await, counts([7, 7, 1, 4, 2]));
    weir.check().await;
    // Nothing of it is rejected any more.
    assert!(matches!(
        weir.retry(first, false).await,
        Err(StoreError::Precondition(_))
    ));
    assert_eq!(weir.embed_all().await, ["odd 2"]);
    weir.check().await;
}

#[tokio::test]
async fn a_running_job_takes_back_its_rejections_and_goes_on() {
    let weir = Weir::new().await;
    weir.put("api", &items(&[("a", "odd"), ("b", "bbbb")]))
        .await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let part = Outcome {
        rejected: vec![rejected(&texts[0], "no")],
        ..outcome(&job, &[])
    };
    weir.upsert(part).await.unwrap();
    let [same] = weir.retry(job.id, false).await.unwrap().try_into().unwrap();
    assert_eq!(
        (same.id, same.state, same.epoch),
        (job.id, JobState::Running, job.epoch)
    );
    assert_eq!(weir.counts("api").await, counts([2, 2, 2, 0, 0]));
    weir.check().await;
    assert!(weir.embed(&job).await.finished);
    weir.check().await;
}

#[tokio::test]
async fn a_maintenance_round_takes_back_what_was_rejected_alone() {
    let weir = three_of_seven_rejected().await;
    weir.put("other", &many(1)).await;
    let job = weir.claim().await;
    weir.store.cancel_job(&Scope::All, job.id).await.unwrap();
    for (name, taken) in [("api", 3), ("api", 0), ("other", 0)] {
        let id = weir.source_row(name).await.id;
        let back = weir.store.retry_rejected(id, 2, None).await.unwrap();
        assert_eq!(back, taken, "{name}");
    }
    assert_eq!(weir.store.retry_rejected(4_711, 2, None).await.unwrap(), 0);
    assert_eq!(weir.job(job.id).await.state, JobState::Cancelled);
    assert_eq!(weir.embed_all().await, ["odd 2", "odd 3", "odd 6"]);
    weir.check().await;
}

#[tokio::test]
async fn a_source_with_rejections_is_degraded_and_says_since_when_and_why() {
    let weir = three_of_seven_rejected().await;
    let source = weir.source_row("api").await;
    let standing = source.standing(true);
    assert_eq!(
        (standing.state(), standing.is_degraded()),
        (BadgeState::Indexed, true)
    );
    assert_eq!(source.last_rejection.as_deref(), Some("500: NaN"));
    let first = source.rejected_since.unwrap();

    weir.put("later", &items(&[("a", "odd as well")])).await;
    let job = weir.claim().await;
    let texts = weir.texts(&job).await;
    let odd = Outcome {
        rejected: vec![rejected(&texts[0], "400: too odd")],
        ..outcome(&job, &[])
    };
    weir.upsert(odd).await.unwrap();
    let all = weir.all().await;
    assert_eq!((all.chunks_rejected, all.rejected_since), (4, Some(first)));
    assert_eq!(all.last_rejection.as_deref(), Some("400: too odd"));
    assert_eq!(all.tally().verdict(), Verdict::Degraded);
    let [reason] = all.tally().reasons().try_into().unwrap();
    assert!(
        reason.starts_with("4 of 8 chunks rejected, since 2"),
        "{reason}"
    );
    assert!(reason.ends_with("UTC, \"400: too odd\""), "{reason}");
    // Nobody else is told.
    let scope = Scope::One("theirs".to_owned());
    let theirs = weir.overview(&scope, &[]).await.remove(0);
    assert_eq!(theirs.tally().verdict(), Verdict::Healthy);
    assert_eq!((theirs.chunks_rejected, theirs.last_rejection), (0, None));

    // The first and the last that stand, not those that ever were.
    weir.store.delete_source(&key("later"), None).await.unwrap();
    weir.retry_source("api").await;
    let source = weir.source_row("api").await;
    assert_eq!((source.rejected_since, source.last_rejection), (None, None));
    assert_eq!(weir.all().await.rejected_since, None);
    weir.check().await;
}

#[tokio::test]
async fn what_changes_takes_its_rejections_out_of_the_count() {
    let weir = Weir::new().await;
    let content = [
        item("a", &["odd 1", "odd 2", "odd 3"]),
        item("b", &["odd 4"]),
        item("c", &["odd 5"]),
        item("d", &["odd 6"]),
    ];
    weir.put("api", &content).await;
    weir.embed_all_but("odd").await;
    assert_eq!(weir.counts("api").await, counts([4, 6, 0, 0, 6]));
    weir.check().await;
    // An item is shorter, one is changed, and one is gone.
    let content = [
        item("a", &["odd 1"]),
        item("b", &["4"]),
        item("d", &["odd 6"]),
    ];
    weir.put("api", &content).await;
    assert_eq!(weir.counts("api").await.rejected, 2);
    weir.check().await;
    weir.embed_all().await;
    let (patch, gone) = (write("api"), ["a".to_owned()]);
    weir.store.patch_source(&patch, &[], &gone).await.unwrap();
    assert_eq!(weir.counts("api").await.rejected, 1);
    weir.check().await;
    // What one model refused another may take.
    let mut other = write("api");
    other.model = Some("other".to_owned());
    weir.store.put_source(&other, &content[1..]).await.unwrap();
    assert_eq!(weir.counts("api").await.rejected, 0);
    weir.check().await;
    weir.store.delete_source(&key("api"), None).await.unwrap();
    let left = "SELECT count(*) FROM weir.rejection_counts";
    assert_eq!(weir.number(left).await, 0);
}

#[tokio::test]
async fn force_forgets_what_was_rejected_of_its_range() {
    let weir = three_of_seven_rejected().await;
    let first = weir.number("SELECT min(id) FROM weir.jobs").await;
    weir.retry(first, true).await.unwrap();
    assert_eq!(weir.counts("api").await, counts([7, 7, 2, 3, 2]));
    weir.check().await;
}

#[tokio::test]
async fn a_wrong_count_is_found_and_put_right_and_many_are_summed_up() {
    let weir = three_of_seven_rejected().await;
    let id = weir.source_row("api").await.id;
    let repair = async || weir.put_right(id).await;
    weir.meddle("DELETE FROM weir.rejections WHERE item_id = 'b'")
        .await;
    assert!(weir.findings(id).await.miscounted);
    assert!(repair().await.unwrap().recounted);
    assert_eq!(weir.counts("api").await.rejected, 2);
    weir.check().await;
    weir.meddle("DELETE FROM weir.rejection_counts").await;
    assert!(weir.findings(id).await.miscounted);
    assert!(repair().await.unwrap().recounted);
    weir.check().await;

    let content: Vec<_> = (0..202)
        .map(|n| item(&format!("i{n:03}"), &["odd"]))
        .collect();
    weir.put_in_twos("many", &content).await;
    weir.embed_all_but("odd").await;
    weir.embed_all_but("odd").await;
    let id = weir.source_row("many").await.id;
    assert!(weir.findings(id).await.miscounted);
    let repaired = weir.put_right(id).await;
    assert!(!repaired.unwrap().recounted, "the sum was right");
    assert_eq!(weir.counts("many").await.rejected, 202);
    weir.check().await;
}

#[tokio::test]
async fn who_rejects_waits_for_nobody_else_who_does() {
    let weir = Weir::new().await;
    weir.put_in_twos("api", &many(4)).await;
    let [one, two] = weir.claim_many(2, LEASE).await.try_into().unwrap();
    // As a result of the first job and a sum, which are not committed yet.
    let mut tx = weir.pool().begin().await.unwrap();
    sqlx::query(
        "INSERT INTO weir.rejection_counts SELECT source_id, unnest(ARRAY[id, 0]), 1 FROM weir.jobs WHERE id = $1",
    )
    .bind(one.id)
    .execute(&mut *tx)
    .await
    .unwrap();
    // And a write of the source.
    sqlx::query("SELECT FROM weir.sources FOR UPDATE")
        .execute(&mut *tx)
        .await
        .unwrap();
    let texts = weir.texts(&two).await;
    let odd = [Outcome {
        rejected: texts.iter().map(|it| rejected(it, "no")).collect(),
        ..outcome(&two, &[])
    }];
    let group = weir.store.upsert_group(&odd, LEASE);
    let group = tokio::time::timeout(weir_tests::PATIENCE, group).await;
    let [written] = group.expect("it waits").unwrap().try_into().unwrap();
    assert!(matches!(written, Written::Settled(Ok(progress)) if progress.finished));
    tx.rollback().await.unwrap();
    assert_eq!(weir.counts("api").await.rejected, 2);
    weir.check().await;
}

#[tokio::test]
async fn a_status_reads_no_more_where_more_was_rejected() {
    let weir = Weir::new().await;
    let read = "SELECT sum(seq_tup_read + idx_tup_fetch)::bigint FROM pg_stat_user_tables
                WHERE relname IN ('rejections', 'rejection_counts')";
    let mut costs = Vec::new();
    for (name, chunks) in [("few", 5), ("more", 3_000)] {
        let content: Vec<_> = (0..chunks)
            .map(|n| item(&format!("i{n:05}"), &["odd"]))
            .collect();
        weir.put(name, &content).await;
        while !weir.claim_due_and_reject().await {}
        weir.meddle("ANALYZE").await;
        let counted = weir.counted().await;
        let before = counted.told(read).await;
        let source = counted.store.source(&key(name)).await.unwrap().source;
        assert_eq!(source.chunks_rejected, chunks);
        let filter = SourceFilter::default();
        let page = counted.store.sources(&Scope::All, &filter, None, 100);
        page.await.unwrap();
        counted.store.overview(&Scope::All, &[], &[]).await.unwrap();
        costs.push(counted.told(read).await - before);
    }
    assert!(costs[0] > 0 && costs[1] < costs[0] + 50, "{costs:?}");
}

impl Weir {
    /// Rejects all of a job that is due; whether none was.
    async fn claim_due_and_reject(&self) -> bool {
        match self.claim_many(1, LEASE).await.pop() {
            Some(job) => {
                self.embed_but(&job, "odd").await;
                false
            }
            None => true,
        }
    }
}
