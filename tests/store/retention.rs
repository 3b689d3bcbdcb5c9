//! How long the history of jobs is kept.

use std::time::Duration;

use weir_coordinator::{job::state::JobState, store::Scope};

use crate::fixture::{Weir, many, write};

const FORTNIGHT: Duration = Duration::from_hours(14 * 24);

async fn left(weir: &Weir) -> i64 {
    weir.number("SELECT count(*) FROM weir.jobs").await
}

#[tokio::test]
async fn old_jobs_go_in_steps_and_young_ones_stay() {
    let weir = Weir::new().await;
    let mut write = write("api");
    write.max_chunks_per_job = 1;
    weir.store.put_source(&write, &many(7)).await.unwrap();
    weir.embed_all().await;
    weir.meddle("UPDATE weir.jobs SET finished_at = now() - interval '13 days 23 hours'")
        .await;
    assert_eq!(weir.store.drop_old_jobs(FORTNIGHT, 10).await.unwrap(), 0);
    weir.meddle("UPDATE weir.jobs SET finished_at = now() - interval '14 days' WHERE id > 2")
        .await;
    for dropped in [3, 2, 0] {
        assert_eq!(
            weir.store.drop_old_jobs(FORTNIGHT, 3).await.unwrap(),
            dropped
        );
    }
    assert_eq!(left(&weir).await, 2);
    weir.check().await;
}

#[tokio::test]
async fn what_is_open_or_left_chunks_pending_stays_however_old() {
    let weir = Weir::new().await;
    for name in ["failed", "cancelled", "superseded", "queued"] {
        weir.put(name, &many(1)).await;
    }
    let failed = weir.claim().await;
    weir.fail_for_good(&failed).await;
    let cancelled = weir.claim().await;
    weir.store
        .cancel_job(&Scope::All, cancelled.id)
        .await
        .unwrap();
    let superseded = weir.claim().await;
    let other_model = weir_coordinator::store::content::SourceWrite {
        model: Some("other".to_owned()),
        ..write("superseded")
    };
    weir.store.put_source(&other_model, &[]).await.unwrap();
    weir.meddle(
        "UPDATE weir.jobs SET created_at = now() - interval '1 year',
                finished_at = CASE WHEN finished_at IS NOT NULL THEN now() - interval '1 year' END",
    )
    .await;
    assert_eq!(weir.store.drop_old_jobs(FORTNIGHT, 10).await.unwrap(), 1);
    weir.store
        .job(&Scope::All, superseded.id)
        .await
        .unwrap_err();
    assert_eq!(weir.job(failed.id).await.state, JobState::Failed);
    assert_eq!(weir.job(cancelled.id).await.state, JobState::Cancelled);
    assert_eq!(left(&weir).await, 3);
    weir.check().await;
}

#[tokio::test]
async fn replicas_share_the_work_without_waiting_for_each_other() {
    let weir = Weir::new().await;
    for name in ["a", "b"] {
        weir.put(name, &many(1)).await;
    }
    weir.embed_all().await;
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.jobs WHERE source = 'a' FOR UPDATE")
        .execute(&mut *other)
        .await
        .unwrap();
    let dropped = weir.store.drop_old_jobs(Duration::ZERO, 10);
    let dropped = tokio::time::timeout(weir_tests::PATIENCE, dropped)
        .await
        .expect("it does not wait");
    assert_eq!(dropped.unwrap(), 1);
    other.rollback().await.unwrap();
    assert_eq!(
        weir.store.drop_old_jobs(Duration::ZERO, 10).await.unwrap(),
        1
    );
}
