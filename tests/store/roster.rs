//! The roster of a replica: what it tells the database of its sessions.

use std::time::Duration;

use weir_coordinator::{
    dispatch::roster::{Condition, EmbedderState, Newcomer, Place, Roster},
    store::{
        Scope,
        workers::{Worker, WorkerFilter},
    },
};
use weir_tests::PATIENCE;

use crate::fixture::{MODEL, Weir};

async fn enter(weir: &Weir, roster: &Roster, worker_id: &str) -> Place {
    let newcomer = Newcomer {
        worker_id: worker_id.to_owned(),
        version: "1.2.3".to_owned(),
        namespaces: Some(vec!["shop".to_owned(), "till".to_owned()]),
        models: vec![MODEL.to_owned(), "other".to_owned()],
    };
    let entered = roster.enter(&weir.store, newcomer).await;
    entered.expect("the session is entered")
}

async fn touch(weir: &Weir, roster: &Roster) {
    let touched = roster.touch(&weir.store, PATIENCE).await;
    touched.expect("the sessions are touched");
}

/// The workers that are in the database, however old.
async fn workers(weir: &Weir) -> Vec<Worker> {
    let filter = WorkerFilter {
        scope: &Scope::All,
        model: None,
        touched_within: Duration::from_hours(24),
    };
    weir.store.workers(&filter, None, 100).await.unwrap()
}

#[tokio::test]
async fn a_session_is_there_before_its_place_is_given_and_goes_when_it_is_left() {
    let weir = Weir::new().await;
    let roster = Roster::new("replica-1");
    let place = enter(&weir, &roster, "w").await;
    let [worker] = &workers(&weir).await[..] else {
        panic!("one worker");
    };
    assert_eq!(worker.session, *place.session());
    assert_eq!(
        [&worker.worker_id, &worker.version, &worker.replica],
        ["w", "1.2.3", "replica-1"]
    );
    let names: Vec<_> = worker.models.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, [MODEL, "other"]);
    assert_eq!(worker.models[0].condition.state, EmbedderState::Untried);
    // A worker that comes back has another session.
    let again = enter(&weir, &roster, "w").await;
    assert_ne!(again.session(), place.session());
    assert_eq!(roster.len(), 2);
    place.leave(&weir.store).await.unwrap();
    assert_eq!(roster.len(), 1);
    let left = workers(&weir).await;
    assert_eq!(
        (left.len(), &left[0].session),
        (1, &again.session().to_string())
    );
}

#[tokio::test]
async fn a_touch_tells_all_that_is_known_of_a_session() {
    let weir = Weir::new().await;
    let roster = Roster::new("replica-1");
    let place = enter(&weir, &roster, "w").await;
    let down = Condition {
        state: EmbedderState::Down,
        reason: "connection refused".to_owned(),
        dimension: Some(3),
        longest_input: Some(512),
    };
    place.condition(MODEL, down.clone());
    place.in_hand(MODEL, 7);
    place.embedded(MODEL, 5);
    place.embedded(MODEL, 6);
    // Of a model that it did not name there is nothing to tell.
    place.in_hand("nameless", 1);
    place.draining();
    touch(&weir, &roster).await;
    let worker = workers(&weir).await.remove(0);
    assert!(worker.draining);
    let [known, other] = &worker.models[..] else {
        panic!("two models");
    };
    assert_eq!(known.condition, down);
    assert_eq!((known.chunks_in_hand, known.chunks_embedded), (7, 11));
    assert!(known.chunks_per_second > 0.0);
    assert_eq!((other.chunks_in_hand, other.chunks_embedded), (0, 0));
}

#[tokio::test]
async fn a_session_whose_place_was_dropped_is_told_of_no_more() {
    let weir = Weir::new().await;
    let roster = Roster::new("replica-1");
    let lost = enter(&weir, &roster, "lost").await;
    let _kept = enter(&weir, &roster, "kept").await;
    drop(lost);
    weir.meddle("UPDATE weir.workers SET touched_at = now() - interval '1 h'")
        .await;
    touch(&weir, &roster).await;
    let old = workers(&weir).await.into_iter();
    let old: Vec<_> = old.filter(|it| it.age_seconds > 3_000.0).collect();
    assert_eq!((old.len(), old[0].worker_id.as_str()), (1, "lost"));
    // A row that the database lost comes back.
    weir.meddle("DELETE FROM weir.workers").await;
    touch(&weir, &roster).await;
    assert_eq!(workers(&weir).await[0].worker_id, "kept");
}

#[tokio::test]
async fn a_session_that_leaves_while_it_is_touched_is_gone_all_the_same() {
    let weir = Weir::new().await;
    let roster = Roster::new("replica-1");
    let mut places = vec![
        enter(&weir, &roster, "a").await,
        enter(&weir, &roster, "b").await,
    ];
    // The touch goes in the order of the ids: it waits for the first, and has the second before it.
    places.sort_by_key(Place::session);
    let [first, second] = places.try_into().unwrap();
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.workers WHERE session = $1 FOR UPDATE")
        .bind(&*first.session())
        .execute(&mut *other)
        .await
        .unwrap();
    let leaving = async {
        weir.blocked(1).await;
        second.leave(&weir.store).await.unwrap();
        other.rollback().await.unwrap();
    };
    tokio::join!(touch(&weir, &roster), leaving);
    let left = workers(&weir).await;
    assert_eq!(
        (left.len(), &left[0].session),
        (1, &first.session().to_string())
    );
}

#[tokio::test]
async fn a_touch_that_hangs_is_given_up_and_is_due_again_at_once() {
    let weir = Weir::new().await;
    let roster = Roster::new("replica-1");
    let place = enter(&weir, &roster, "a").await;
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.workers FOR UPDATE")
        .execute(&mut *other)
        .await
        .unwrap();
    let hung = roster.touch(&weir.store, Duration::from_millis(50)).await;
    hung.unwrap_err();
    let due = roster.due(weir_coordinator::dispatch::roster::Pace {
        every: Duration::from_hours(1),
        pause: Duration::ZERO,
    });
    tokio::time::timeout(PATIENCE, due)
        .await
        .expect("it is due at once");
    other.rollback().await.unwrap();
    touch(&weir, &roster).await;
    place.leave(&weir.store).await.unwrap();
}
