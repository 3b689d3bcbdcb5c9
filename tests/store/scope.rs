//! Queries keep to the namespaces that they are asked for.

use weir_coordinator::store::{
    Scope, StoreError, sources::SourceFilter, status::JobFilter, steer::Retry,
};

use crate::fixture::{LEASE, Weir, many};

/// Of rows in `shop`: scopes that they are in, and that they are not in.
fn scopes() -> ([Scope; 3], [Scope; 2]) {
    let these = |names: &[&str]| Scope::These(names.iter().map(|it| (*it).to_owned()).collect());
    (
        [
            Scope::All,
            Scope::One("shop".to_owned()),
            these(&["depot", "shop"]),
        ],
        [Scope::One("depot".to_owned()), these(&["depot", "attic"])],
    )
}

fn is_missing<T>(answer: &Result<T, StoreError>) -> bool {
    matches!(answer, Err(StoreError::NotFound(_)))
}

#[tokio::test]
async fn what_is_beyond_the_scope_is_not_there() {
    let weir = Weir::new().await;
    weir.put("a", &many(1)).await;
    weir.put("b", &many(1)).await;
    let failed = weir.claim_many(1, LEASE).await.remove(0);
    weir.fail_for_good(&failed).await;
    let failed = weir.job(failed.id).await;
    let of_failure = JobFilter {
        failure_id: failed.failure_id,
        ..JobFilter::default()
    };
    let store = &weir.store;
    let (within, beyond) = scopes();
    // How many there are of each: jobs, those of the failure, sources, failures, tries,
    // queues, sources counted, chunks pending.
    let seen = async |scope: &Scope| {
        let all = JobFilter::default();
        let sources = SourceFilter::default();
        [
            store.jobs(scope, &all, None, 9).await.unwrap().rows.len(),
            store
                .jobs(scope, &of_failure, None, 9)
                .await
                .unwrap()
                .rows
                .len(),
            store
                .sources(scope, &sources, None, 9)
                .await
                .unwrap()
                .rows
                .len(),
            store.failures(scope, true, None, 9).await.unwrap().len(),
            store.attempts(scope, failed.id, 9).await.unwrap().len(),
            weir.queue()
                .await
                .iter()
                .filter(|it| scope.has(&it.namespace))
                .count(),
            weir.overview(scope, &[]).await[0].sources as usize,
            weir.overview(scope, &[]).await[0].chunks_pending as usize,
        ]
    };
    let id = failed.failure_id.unwrap();
    let retry = |scope: &Scope| Retry {
        scope: scope.clone(),
        job_id: failed.id,
        force: true,
        max_chunks_per_job: 1_000,
        traceparent: None,
    };
    for scope in &beyond {
        assert_eq!(seen(scope).await, [0; 8], "{scope:?}");
        assert!(is_missing(&store.job(scope, failed.id).await), "{scope:?}");
        assert!(
            is_missing(&store.dismiss_failure(scope, id).await),
            "{scope:?}"
        );
        assert!(
            is_missing(&store.cancel_job(scope, failed.id).await),
            "{scope:?}"
        );
        assert!(
            is_missing(&store.retry_job(&retry(scope)).await),
            "{scope:?}"
        );
    }
    assert_eq!(weir.job(failed.id).await, failed, "nothing was changed");
    for scope in &within {
        assert_eq!(seen(scope).await, [2, 1, 2, 1, 1, 1, 2, 2], "{scope:?}");
        store.job(scope, failed.id).await.unwrap();
        store.dismiss_failure(scope, id).await.unwrap();
    }
    for scope in &within {
        assert!(
            !is_missing(&store.cancel_job(scope, failed.id).await),
            "{scope:?}"
        );
        assert!(
            !is_missing(&store.retry_job(&retry(scope)).await),
            "{scope:?}"
        );
    }
    weir.check().await;
}

#[tokio::test]
async fn the_jobs_of_a_failure_are_read_by_its_index_and_those_of_others_not_at_all() {
    let weir = Weir::new().await;
    // A long history of the namespace, and a failure that befell a few of many.
    sqlx::raw_sql(
        "INSERT INTO weir.failures (namespace, model, cause, last_error, last_job_id, last_source, occurrences)
         SELECT 'shop', 'fake', n::text, 'e', 1, 's', 1 FROM generate_series(1, 100) n;
         INSERT INTO weir.jobs (source_id, epoch, revision, finished_at, chunks_total, chunks_done, settled, state,
                                trigger, namespace, source, model, first_item_id, last_item_id, failure_id)
         SELECT 0, 1, 1, now(), 1, 0, n % 4 > 0, 'failed', 'write', 'shop', 'filler', 'fake', 'a', 'z',
                (SELECT min(id) FROM weir.failures) + n % 100
         FROM generate_series(1, 20000) n;
         ANALYZE weir.jobs; ANALYZE weir.failures",
    )
    .execute(weir.pool())
    .await
    .unwrap();
    let id = weir.number("SELECT min(id) FROM weir.failures").await;
    let filter = JobFilter {
        failure_id: Some(id),
        ..JobFilter::default()
    };
    let read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relid = 'weir.jobs'::regclass";
    let counted = weir.counted().await;
    let (within, beyond) = scopes();
    for (scopes, found, most) in [(&within[..], 10, 50), (&beyond[..], 0, 0)] {
        for scope in scopes {
            let before = counted.told(read).await;
            let page = counted.store.jobs(scope, &filter, None, 10).await.unwrap();
            assert_eq!(page.rows.len(), found, "{scope:?}");
            let rows = counted.told(read).await - before;
            assert!(rows <= most, "{rows} rows read in {scope:?}");
        }
    }
}
