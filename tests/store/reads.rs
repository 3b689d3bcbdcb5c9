//! Listing jobs and summing up the queue.

use weir_coordinator::{
    job::state::JobState,
    store::{
        Scope,
        queue::QueueStats,
        status::{JobFilter, Paging},
    },
};

use crate::fixture::{LEASE, Weir, lease_of, many, outcome, write};

async fn ids(weir: &Weir, filter: &JobFilter, before: Option<i64>, limit: i64) -> Vec<i64> {
    ids_in(&Scope::All, weir, filter, before, limit).await
}

async fn ids_in(
    scope: &Scope,
    weir: &Weir,
    filter: &JobFilter,
    before: Option<i64>,
    limit: i64,
) -> Vec<i64> {
    let paging = before.map(Paging::After);
    let page = weir
        .store
        .jobs(scope, filter, paging.as_ref(), limit)
        .await
        .unwrap();
    page.rows.into_iter().map(|job| job.id).collect()
}

#[tokio::test]
async fn jobs_page_newest_first_and_filter() {
    let weir = Weir::new().await;
    let mut small = write("a");
    small.max_chunks_per_job = 1;
    weir.store.put_source(&small, &many(5)).await.unwrap();
    small.key.name = "b".to_owned();
    weir.store.put_source(&small, &many(3)).await.unwrap();
    small.key.namespace = "depot".to_owned();
    weir.store.put_source(&small, &many(2)).await.unwrap();

    let everything = JobFilter::default();
    let all = ids(&weir, &everything, None, 100).await;
    assert_eq!(all.len(), 10);
    assert!(all.is_sorted_by(|a, b| a > b));
    let mut paged = Vec::new();
    loop {
        let page = ids(&weir, &everything, paged.last().copied(), 3).await;
        assert!(page.len() <= 3);
        if page.is_empty() {
            break;
        }
        paged.extend(page);
        // What comes in between does not shift the pages.
        if paged.len() == 3 {
            weir.put("later", &many(1)).await;
        }
    }
    assert_eq!(paged, all);

    let shop = Scope::One("shop".to_owned());
    assert_eq!(ids_in(&shop, &weir, &everything, None, 100).await.len(), 9);
    let of_b = JobFilter {
        source: Some("b".to_owned()),
        ..JobFilter::default()
    };
    assert_eq!(ids_in(&shop, &weir, &of_b, None, 100).await, all[2..5]);
    assert_eq!(
        ids_in(&shop, &weir, &of_b, Some(all[2]), 1).await,
        all[3..4]
    );
    let nowhere = Scope::One("nowhere".to_owned());
    assert!(
        ids_in(&nowhere, &weir, &everything, None, 100)
            .await
            .is_empty()
    );

    let job = weir.claim().await;
    for states in [
        vec![JobState::Running],
        vec![JobState::Running, JobState::Failed],
    ] {
        let running = JobFilter {
            states,
            ..JobFilter::default()
        };
        assert_eq!(ids(&weir, &running, None, 100).await, [job.id]);
    }
    let queued = JobFilter {
        states: vec![JobState::Queued],
        ..JobFilter::default()
    };
    assert_eq!(ids_in(&shop, &weir, &queued, None, 100).await.len(), 8);
}

#[tokio::test]
async fn the_queue_is_summed_up_by_namespace_and_model() {
    let weir = Weir::new().await;
    assert!(weir.queue().await.is_empty());
    let mut small = write("a");
    small.max_chunks_per_job = 2;
    weir.store.put_source(&small, &many(8)).await.unwrap();
    small.key.namespace = "depot".to_owned();
    small.model = Some("other".to_owned());
    weir.store.put_source(&small, &many(1)).await.unwrap();
    let jobs = weir.claim_many(2, LEASE).await;
    let texts = weir.texts(&jobs[0]).await;
    weir.upsert(outcome(&jobs[0], &texts[..1])).await.unwrap();
    weir.store
        .release(lease_of(&jobs[1]), "draining")
        .await
        .unwrap();
    sqlx::query("UPDATE weir.jobs SET run_at = now() + interval '1 hour' WHERE id = $1")
        .bind(jobs[1].id)
        .execute(weir.pool())
        .await
        .unwrap();
    sqlx::query(
        "UPDATE weir.jobs SET run_at = now() - interval '1 hour' WHERE namespace = 'depot'",
    )
    .execute(weir.pool())
    .await
    .unwrap();
    let whole = weir.queue().await;
    let numbers: Vec<_> = whole
        .iter()
        .map(|s: &QueueStats| {
            (
                s.namespace.as_str(),
                s.model.as_str(),
                s.jobs_ready,
                s.jobs_delayed,
                s.jobs_running,
                s.chunks_pending,
            )
        })
        .collect();
    assert_eq!(
        numbers,
        [("depot", "other", 1, 0, 0, 1), ("shop", "fake", 2, 1, 1, 7)]
    );
    assert!(
        (3_600.0..3_700.0).contains(&whole[0].oldest_ready_age_seconds),
        "{whole:?}"
    );
    // What ended, well or not, does not wait.
    weir.embed_all().await;
    weir.embed(&jobs[0]).await;
    let of_shop = async || {
        let mut queue = weir.queue().await;
        queue.retain(|it| it.namespace == "shop");
        queue
    };
    let left = of_shop().await;
    assert_eq!(
        (
            left[0].jobs_ready,
            left[0].jobs_delayed,
            left[0].jobs_running
        ),
        (0, 1, 0)
    );
    assert!(left[0].oldest_ready_age_seconds.abs() < f64::EPSILON);
    // What it leaves pending does not wait either, and is told.
    weir.store
        .cancel_job(&Scope::All, jobs[1].id)
        .await
        .unwrap();
    let left = of_shop().await;
    assert_eq!(
        (
            left[0].jobs_open(),
            left[0].jobs_cancelled,
            left[0].chunks_pending,
            left[0].chunks_left
        ),
        (0, 1, 0, 2)
    );
}
