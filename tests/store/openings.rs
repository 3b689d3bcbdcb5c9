//! Opening the streams of several jobs together, with the texts of small ones.

use weir_coordinator::store::{lease::Opening, rows::Job};

use crate::fixture::{LEASE, Weir, many, opening_of, session};

/// What small means here.
const SMALL: i32 = 2;

fn opening(job: &Job) -> Opening {
    opening_of(&session('a'), job)
}

/// A database with a running job of so many chunks of each source.
async fn running(sources: [(&str, usize); 2]) -> (Weir, [Job; 2]) {
    let weir = Weir::new().await;
    for (name, chunks) in sources {
        weir.put(name, &many(chunks)).await;
    }
    let jobs = [weir.claim().await, weir.claim().await];
    (weir, jobs)
}

#[tokio::test]
async fn a_group_opens_what_is_held_and_passes_by_the_rest() {
    let (weir, [held, locked]) = running([("held", 1), ("locked", 1)]).await;
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.jobs WHERE id = $1 FOR UPDATE")
        .bind(locked.id)
        .execute(&mut *other)
        .await
        .unwrap();
    let mut late = opening(&held);
    late.fence.lease.epoch -= 1;
    let group = [opening(&held), opening(&locked)];
    let opened = weir.store.open_group(&group, LEASE).await.unwrap();
    let [opened] = &opened[..] else {
        panic!("{opened:?}")
    };
    assert_eq!(opened.id, held.id);
    assert!(opened.lease_expires_at > held.lease_expires_at);
    assert_eq!(weir.store.open_group(&[late], LEASE).await.unwrap(), []);
    other.rollback().await.unwrap();
    weir.check().await;
}

#[tokio::test]
async fn the_texts_of_small_jobs_are_read_together_and_those_of_others_not() {
    let (weir, [small, large]) = running([("small", 2), ("large", 3)]).await;
    let leases = [small.lease(), large.lease()];
    let texts = weir
        .store
        .texts_of_small(&leases, SMALL, i64::MAX)
        .await
        .unwrap();
    assert_eq!(texts.keys().collect::<Vec<_>>(), [&small.id]);
    assert_eq!(texts[&small.id], weir.texts(&small).await);
}

#[tokio::test]
async fn nothing_is_read_of_a_small_job_whose_lease_is_gone_or_that_has_its_vectors() {
    let (weir, [lost, done]) = running([("lost", 1), ("done", 1)]).await;
    weir.embed(&done).await;
    let mut late = lost.lease();
    late.epoch -= 1;
    let leases = [late, done.lease()];
    let texts = weir.store.texts_of_small(&leases, SMALL, i64::MAX);
    assert!(texts.await.unwrap().is_empty());
}
