//! A database that commits and then fails to say so, for each write there is:
//! the caller is told that it is unavailable, the write is there, and trying
//! again is harmless.

use std::{future::Future, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::LocalBoxFuture};
use sqlx::postgres::PgPoolOptions;
use tokio_util::task::TaskTracker;
use weir_coordinator::{
    dispatch::writer::Writer,
    job::{
        chunk::Chunker,
        retry::RetryPolicy,
        state::{JobState, RevokeReason},
    },
    metrics::Metrics,
    store::{
        Scope, Store, StoreError,
        batches::Outcome,
        claim::{Claim, Portion},
        content::Change,
        imports::ImportItem,
        lease::LeaseState,
        migrate,
        queue::Share,
        reconcile::Unparked,
        rescue::{Patience, Rescued},
        rows::{Job, LeaseKey},
        steer::Retry,
    },
};
use weir_telemetry::Tracer;
use weir_tests::{PATIENCE, pgproxy::PgProxy, postgres::TestDatabase};

use crate::fixture::{
    LEASE, MODEL, Weir, counts, item, items, key, lease_of, many, opening, opening_of, outcome,
    session, write,
};

/// Workers are waited for, and jobs are lost only when their lease has run out.
const PATIENT: Patience = Patience {
    orphan_grace: LEASE,
    progress_deadline: LEASE,
};

/// A store on its own database, and another on the same behind a proxy.
struct Faulty {
    weir: Weir,
    proxy: PgProxy,
    store: Store,
}

impl Faulty {
    /// With a source `api` of four items.
    async fn new() -> Self {
        let weir = Weir::new().await;
        weir.put("api", &many(4)).await;
        let proxy = PgProxy::start(weir.url());
        let pool = PgPoolOptions::new().connect_lazy_with(proxy.options());
        Self {
            store: Store::new(pool, PATIENCE),
            weir,
            proxy,
        }
    }

    /// Makes a call whose commit is not answered.
    fn cut<'a, T: std::fmt::Debug>(
        &'a self,
        call: impl Future<Output = Result<T, StoreError>> + 'a,
    ) -> LocalBoxFuture<'a, ()> {
        let cut = async move {
            let before = self.proxy.cuts();
            self.proxy.arm();
            let answer = call.await;
            assert!(
                matches!(answer, Err(StoreError::Unavailable(_))),
                "{answer:?}"
            );
            assert_eq!(self.proxy.cuts(), before + 1, "the commit was cut off");
        };
        cut.boxed_local()
    }

    async fn claim(&self) -> Result<Vec<Job>, StoreError> {
        let claim = Claim {
            worker_id: "worker-1",
            models: &[MODEL.to_owned()],
            max_jobs: 1,
            max_chunks: 0,
            lease_duration: LEASE,
            namespaces: None,
            busy_with: &[],
            claimed_by: None,
        };
        let share = Share {
            models: claim.models.to_vec(),
            namespaces: None,
        };
        let heads = self.weir.store.heads(&share).await?;
        let portion = Portion {
            heads: heads.iter().collect(),
            jobs: 1,
            chunks: i64::MAX,
            tier: 0,
            from: 0,
            step: 1,
        };
        self.store.claim(&claim, &[portion]).await
    }

    /// As [`Weir::upsert`], through the proxy.
    async fn upsert(&self, outcome: &Outcome) -> Result<(i64, bool), StoreError> {
        let progress = Box::pin(self.store.upsert(outcome, LEASE)).await?;
        Ok((progress.done, progress.finished))
    }

    /// Goes on until nothing is due, and checks that every item of the source
    /// has its vector.
    async fn finish(&self, items: usize) {
        self.weir.embed_all().await;
        assert_eq!(self.weir.embedded_items("api").await.len(), items);
        self.weir.check().await;
    }
}

fn lost<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> RevokeReason {
    match answer {
        Err(StoreError::LeaseLost { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_claim() {
    let faulty = Faulty::new().await;
    faulty.cut(faulty.claim()).await;
    assert_eq!(faulty.claim().await.unwrap(), [], "it was leased already");
    // Nobody has to know of a lease: whoever holds it has not been heard of.
    let patience = Patience {
        orphan_grace: Duration::ZERO,
        ..PATIENT
    };
    let policy = RetryPolicy::default();
    let rescued = faulty.store.rescue(10, &patience, &policy, || 0.0).await;
    assert_eq!(rescued.unwrap().retried, 1);
    let job = faulty.claim().await.unwrap().pop().unwrap();
    assert_eq!(job.attempt, 0, "the try is not charged");
    assert!(faulty.weir.embed(&job).await.finished);
    faulty.finish(4).await;
}

/// A renewal in one of its forms.
async fn renewed(renew: impl AsyncFn(&Store, LeaseKey) -> Result<LeaseState, StoreError>) {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim_expired().await;
    let lease = lease_of(&job);
    faulty.cut(renew(&faulty.store, lease)).await;
    let renewed = "SELECT count(*) FROM weir.jobs WHERE lease_expires_at > now()";
    assert_eq!(faulty.weir.number(renewed).await, 1);
    let again = renew(&faulty.store, lease).await.unwrap();
    assert!(matches!(again, LeaseState::Held(held) if held.epoch == job.epoch));
    assert!(faulty.weir.embed(&job).await.finished);
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_renewal() {
    renewed(async |store, lease| store.renew(lease, LEASE).await).await;
}

#[tokio::test]
async fn the_opening_of_a_stream() {
    renewed(async |store, lease| store.open(&opening(lease, 16), LEASE).await).await;
}

#[tokio::test]
async fn the_end_of_a_broken_streams_lease() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    let (session, ids) = (session('a'), [job.id]);
    let opening = opening_of(&session, &job);
    let opened = faulty.weir.store.open(&opening, LEASE).await.unwrap();
    let LeaseState::Held(held) = opened else {
        panic!("the lease is held");
    };
    let until = held.lease_expires_at.unwrap();
    let grace = Duration::from_mins(1);
    let orphan = || faulty.store.orphan_session(&session, &ids, grace);
    faulty.cut(orphan()).await;
    let cut_short = faulty.weir.job(job.id).await;
    assert!(cut_short.lease_expires_at.unwrap() < until);
    assert!(
        orphan().await.unwrap().is_empty(),
        "it is cut short already"
    );
    assert_eq!(faulty.weir.job(job.id).await, cut_short);
    // The worker that comes back undoes it.
    assert!(faulty.weir.embed(&job).await.finished);
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_batch_that_brings_the_first_vectors_of_its_model() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    let texts = faulty.weir.texts(&job).await;
    let batch = outcome(&job, &texts[..2]);
    faulty.cut(faulty.upsert(&batch)).await;
    assert_eq!(faulty.weir.embedded_items("api").await.len(), 2);
    assert_eq!(
        faulty.weir.number("SELECT count(*) FROM weir.models").await,
        1
    );
    assert_eq!(faulty.upsert(&batch).await.unwrap(), (2, false));
    let counted = faulty.weir.counts("api").await;
    assert_eq!(counted, counts([4, 4, 2, 2, 0]), "counted once");
    let rest = outcome(&job, &texts[2..]);
    assert_eq!(faulty.upsert(&rest).await.unwrap(), (4, true));
    faulty.finish(4).await;
}

#[tokio::test]
async fn the_batch_that_ends_the_job() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    let texts = faulty.weir.texts(&job).await;
    let batch = outcome(&job, &texts);
    faulty.cut(faulty.upsert(&batch)).await;
    let ended = faulty.weir.job(job.id).await;
    assert_eq!(ended.state, JobState::Succeeded);
    assert_eq!(faulty.upsert(&batch).await.unwrap(), (4, true));
    assert_eq!(faulty.weir.job(job.id).await, ended);
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_group_of_batches_of_the_writer() {
    let faulty = Faulty::new().await;
    faulty.weir.put("web", &items(&[("a", "other")])).await;
    let jobs = faulty.weir.claim_many(2, LEASE).await;
    let tasks = TaskTracker::new();
    let writer = Writer::start(
        &faulty.store,
        LEASE,
        &tasks,
        Arc::new(Metrics::new(&[])),
        &Tracer::OFF,
    );
    // Batches of a new model do not go in a group.
    faulty
        .weir
        .meddle("INSERT INTO weir.models VALUES ('fake', 16)")
        .await;
    faulty.proxy.arm();
    // The writer finds both waiting. A group that failed is written again, each result alone.
    let mut batches = Vec::new();
    for job in &jobs {
        batches.push(outcome(job, &faulty.weir.texts(job).await));
    }
    let written = batches.into_iter().map(|batch| writer.upsert(batch, None));
    for progress in futures::future::join_all(written).await {
        let progress = progress.unwrap();
        assert_eq!(progress.done, progress.total, "{progress:?}");
        assert!(progress.finished, "{progress:?}");
    }
    assert_eq!(faulty.proxy.cuts(), 1);
    assert_eq!(faulty.weir.embedded_items("web").await, ["a"]);
    faulty.finish(4).await;
    drop(writer);
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn a_completion() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    let texts = faulty.weir.texts(&job).await;
    let all = Outcome {
        complete: false,
        ..outcome(&job, &texts)
    };
    assert!(!faulty.weir.upsert(all).await.unwrap().finished);
    faulty.cut(faulty.store.complete(lease_of(&job))).await;
    let ended = faulty.weir.job(job.id).await;
    assert_eq!(ended.state, JobState::Succeeded);
    let again = faulty.store.complete(lease_of(&job)).await.unwrap();
    assert_eq!(again, ended);
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_failure() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    let policy = RetryPolicy::default();
    let fail = || faulty.store.fail(lease_of(&job), "it broke", &policy, 0.0);
    faulty.cut(fail()).await;
    let queued = faulty.weir.job(job.id).await;
    assert_eq!((queued.state, queued.attempt), (JobState::Queued, 1));
    assert_eq!(lost(fail().await), RevokeReason::LeaseLost);
    assert_eq!(faulty.weir.job(job.id).await, queued, "charged once");
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_release() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    let release = || faulty.store.release(lease_of(&job), "the worker drains");
    faulty.cut(release()).await;
    let queued = faulty.weir.job(job.id).await;
    assert_eq!((queued.state, queued.attempt), (JobState::Queued, 0));
    assert_eq!(lost(release().await), RevokeReason::LeaseLost);
    assert_eq!(faulty.weir.job(job.id).await, queued);
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_rescue() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim_expired().await;
    let policy = RetryPolicy::default();
    let rescue = || faulty.store.rescue(10, &PATIENT, &policy, || 0.0);
    faulty.cut(rescue()).await;
    let queued = faulty.weir.job(job.id).await;
    assert_eq!((queued.state, queued.attempt), (JobState::Queued, 1));
    assert_eq!(rescue().await.unwrap(), Rescued::default());
    assert_eq!(faulty.weir.job(job.id).await, queued, "charged once");
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_cancellation() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    faulty
        .cut(faulty.store.cancel_job(&Scope::All, job.id))
        .await;
    let cancelled = faulty.weir.job(job.id).await;
    assert_eq!(cancelled.state, JobState::Cancelled);
    assert_eq!(
        faulty.store.cancel_job(&Scope::All, job.id).await.unwrap(),
        cancelled
    );
    let reason = lost(faulty.store.renew(lease_of(&job), LEASE).await);
    assert_eq!(reason, RevokeReason::Cancelled);
    faulty.weir.put("api", &many(4)).await;
    faulty.finish(4).await;
}

fn retry(job: &Job, force: bool) -> Retry {
    Retry {
        scope: Scope::All,
        job_id: job.id,
        force,
        max_chunks_per_job: 1_000,
        traceparent: None,
    }
}

#[tokio::test]
async fn a_retry() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    faulty.weir.fail_for_good(&job).await;
    let retry = retry(&job, false);
    faulty.cut(faulty.store.retry_job(&retry)).await;
    let open = || async { faulty.weir.store.source(&key("api")).await.unwrap().jobs };
    let queued = open().await;
    assert_eq!(queued.len(), 1);
    assert_eq!(queued[0].state, JobState::Queued);
    // The job that failed is settled: there is nothing of it to run again.
    let again = faulty.store.retry_job(&retry).await;
    assert!(
        matches!(again, Err(StoreError::Precondition(_))),
        "{again:?}"
    );
    assert_eq!(open().await, queued, "queued once");
    // The transaction of the refused retry may still be rolled back: it is waited for here, where a claim passes by.
    sqlx::query("SELECT FROM weir.jobs FOR UPDATE")
        .execute(faulty.weir.pool())
        .await
        .unwrap();
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_forced_retry() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    assert!(faulty.weir.embed(&job).await.finished);
    let retry = retry(&job, true);
    faulty.cut(faulty.store.retry_job(&retry)).await;
    faulty.store.retry_job(&retry).await.unwrap();
    faulty.weir.check().await;
    assert_eq!(faulty.weir.embed_all().await.len(), 4, "each text once");
    faulty.finish(4).await;
}

#[tokio::test]
async fn the_end_of_a_parking() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    faulty.weir.fail_for_good(&job).await;
    sqlx::query("UPDATE weir.jobs SET run_at = finished_at")
        .execute(faulty.weir.pool())
        .await
        .unwrap();
    let unpark = || faulty.store.unpark(job.source_id, 1_000);
    faulty.cut(unpark()).await;
    assert_eq!(unpark().await.unwrap(), Unparked::default());
    let parkings = "SELECT sum(parkings)::bigint FROM weir.jobs WHERE NOT settled";
    assert_eq!(faulty.weir.number(parkings).await, 1, "queued once");
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_repair() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    assert!(faulty.weir.embed(&job).await.finished);
    sqlx::query("DELETE FROM weir.embeddings WHERE item_id = 'i0001'")
        .execute(faulty.weir.pool())
        .await
        .unwrap();
    let checked = faulty.weir.begin_check(job.source_id).await;
    let repair = || faulty.store.repair(&checked, 1_000, None);
    faulty.cut(repair()).await;
    assert_eq!(repair().await.unwrap(), None, "it was done");
    assert_eq!(faulty.weir.embed_all().await, ["text 1"]);
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_choice_of_sources_to_check() {
    let faulty = Faulty::new().await;
    let minute = Duration::from_mins(1);
    sqlx::query("UPDATE weir.sources SET checked_at = now() - interval '1 hour'")
        .execute(faulty.weir.pool())
        .await
        .unwrap();
    faulty.cut(faulty.store.take_checks(minute, 10)).await;
    // The step is left to whoever may have begun it, for a while.
    let taken = async || faulty.store.take_checks(minute, 10).await.unwrap().len();
    assert_eq!(taken().await, 0);
    sqlx::query("UPDATE weir.checks SET due_at = now()")
        .execute(faulty.weir.pool())
        .await
        .unwrap();
    assert_eq!(taken().await, 1);
    faulty.finish(4).await;
}

#[tokio::test]
async fn the_end_of_old_jobs() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    assert!(faulty.weir.embed(&job).await.finished);
    let drop_all = || faulty.store.drop_old_jobs(Duration::ZERO, 10);
    faulty.cut(drop_all()).await;
    assert_eq!(drop_all().await.unwrap(), 0);
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_put() {
    let faulty = Faulty::new().await;
    let old = faulty.weir.claim().await;
    let content = many(6);
    let write = write("api");
    let put = || faulty.store.put_source(&write, &content);
    faulty.cut(put()).await;
    let stored = faulty.weir.store.source(&key("api")).await.unwrap();
    assert_eq!((stored.source.revision, stored.jobs.len()), (2, 2));
    let again = put().await.unwrap();
    let unchanged = Change {
        items_unchanged: 6,
        ..Change::default()
    };
    assert_eq!(again.change, unchanged);
    assert_eq!(again.jobs, [], "queued once");
    let present = faulty.weir.store.source(&key("api")).await.unwrap();
    assert_eq!(present, stored);
    assert!(faulty.weir.embed(&old).await.finished, "it goes on");
    faulty.finish(6).await;
}

#[tokio::test]
async fn a_put_of_a_new_source() {
    let faulty = Faulty::new().await;
    let content = many(2);
    let write = write("new");
    let put = || faulty.store.put_source(&write, &content);
    faulty.cut(put()).await;
    let again = put().await.unwrap();
    assert_eq!(again.change.items_unchanged, 2);
    let source = &again.source;
    assert_eq!((source.revision, again.jobs.len()), (1, 0));
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_patch() {
    let faulty = Faulty::new().await;
    let upsert = [item("i0000", &["new text"]), item("z", &["added"])];
    let delete = ["i0003".to_owned()];
    let write = write("api");
    let patch = || faulty.store.patch_source(&write, &upsert, &delete);
    faulty.cut(patch()).await;
    let stored = faulty.weir.store.source(&key("api")).await.unwrap();
    assert_eq!(stored.source.revision, 2);
    let again = patch().await.unwrap();
    let unchanged = Change {
        items_unchanged: 2,
        ..Change::default()
    };
    assert_eq!(again.change, unchanged);
    assert_eq!(again.jobs, []);
    let present = faulty.weir.store.source(&key("api")).await.unwrap();
    assert_eq!(present, stored);
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_deletion() {
    let faulty = Faulty::new().await;
    let job = faulty.weir.claim().await;
    let key = key("api");
    faulty.cut(faulty.store.delete_source(&key, None)).await;
    let again = faulty.store.delete_source(&key, None).await;
    assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
    let reason = lost(faulty.store.renew(lease_of(&job), LEASE).await);
    assert_eq!(reason, RevokeReason::SourceDeleted);
    faulty.finish(0).await;
}

fn staged() -> Vec<ImportItem> {
    ["a", "b"]
        .map(|item_id| ImportItem {
            item_id: item_id.to_owned(),
            text: format!("text of {item_id}"),
            metadata: None,
        })
        .to_vec()
}

#[tokio::test]
async fn a_step_of_an_import() {
    let faulty = Faulty::new().await;
    let items = staged();
    let add = || faulty.store.add_import_items(1, &items);
    faulty.cut(add()).await;
    // The import as a whole fails, and what it brought is forgotten; the next has another id.
    let again = add().await;
    assert!(matches!(again, Err(StoreError::Invalid(_))), "{again:?}");
    faulty.cut(faulty.store.drop_import(1)).await;
    faulty.store.drop_import(1).await.unwrap();
    let left = "SELECT count(*) FROM weir.import_items";
    assert_eq!(faulty.weir.number(left).await, 0);
    faulty.finish(4).await;
}

#[tokio::test]
async fn the_end_of_an_import() {
    let faulty = Faulty::new().await;
    faulty.store.add_import_items(1, &staged()).await.unwrap();
    let chunker = Chunker::new(64, 0).unwrap();
    let write = write("api");
    let finish = || faulty.store.finish_import(&write, 1, 2, &chunker);
    faulty.cut(finish()).await;
    let again = finish().await.unwrap();
    let unchanged = Change {
        items_unchanged: 2,
        ..Change::default()
    };
    assert_eq!(again.change, unchanged);
    assert_eq!(again.source.revision, 2);
    faulty.finish(2).await;
}

#[tokio::test]
async fn a_sweep_of_old_imports() {
    let faulty = Faulty::new().await;
    faulty.store.add_import_items(1, &staged()).await.unwrap();
    sqlx::query("UPDATE weir.import_items SET created_at = now() - interval '25 hours'")
        .execute(faulty.weir.pool())
        .await
        .unwrap();
    faulty.cut(faulty.store.drop_stale_imports(10)).await;
    assert_eq!(faulty.store.drop_stale_imports(10).await.unwrap(), 0);
    faulty.finish(4).await;
}

#[tokio::test]
async fn a_migration() {
    let database = TestDatabase::create().await;
    let proxy = PgProxy::start(database.url());
    let pool = PgPoolOptions::new().connect_lazy_with(proxy.options());
    // The first commit of it is not answered, then the second of what is left, until no more are.
    for nth in 1.. {
        proxy.arm_nth(nth);
        if migrate(&pool, true).await.is_ok() {
            break;
        }
        assert_eq!(proxy.cuts(), nth, "only the cut fails it");
    }
    assert!(proxy.cuts() > 1);
    migrate(database.pool(), false).await.unwrap();
}
