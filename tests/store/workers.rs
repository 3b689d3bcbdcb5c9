//! Sessions of workers: who is connected, and what becomes of the leases of a
//! session that nobody serves any more.

use std::{sync::Arc, time::Duration};

use weir_coordinator::{
    job::{
        retry::RetryPolicy,
        state::{JobState, RevokeReason},
    },
    store::{
        Scope, StoreError,
        rescue::{Patience, Rescued},
        rows::Job,
        workers::{
            Condition, EmbedderState, SessionModel, SessionRow, Worker, WorkerFilter,
            WorkerPosition,
        },
    },
};

use crate::fixture::{
    LEASE, Weir, lease_of, many, opening, opening_of, outcome, session, session_row,
};

/// How long a session may be untouched.
const GRACE: Duration = Duration::from_secs(10);

/// Sessions as they are after they were untouched for longer than the grace.
const UNTOUCHED: &str = "UPDATE weir.workers SET touched_at = touched_at - interval '11 s'";

async fn rescue(weir: &Weir) -> Rescued {
    let patience = Patience {
        orphan_grace: GRACE,
        progress_deadline: LEASE,
    };
    let policy = RetryPolicy::default();
    let rescued = weir.store.rescue(10, &patience, &policy, || 0.0);
    rescued.await.unwrap()
}

/// A job for each of these sessions, which are there, and work on it.
async fn worked_on<const N: usize>(sessions: [char; N]) -> (Weir, [Job; N]) {
    let weir = Weir::new().await;
    for digit in sessions {
        weir.enter(&session_row(&session(digit))).await;
        weir.put(&digit.to_string(), &many(2)).await;
    }
    let mut jobs = weir.claim_many(N as i64, LEASE).await;
    jobs.sort_by(|a, b| a.source.cmp(&b.source));
    let openings: Vec<_> = sessions
        .iter()
        .zip(&jobs)
        .map(|(digit, job)| opening_of(&session(*digit), job))
        .collect();
    let opened = weir.store.open_group(&openings, LEASE).await.unwrap();
    assert_eq!(opened.len(), N);
    (weir, jobs.try_into().unwrap())
}

async fn list(weir: &Weir, scope: &Scope, model: Option<&str>) -> Vec<Worker> {
    page(weir, scope, model, None, 100).await
}

async fn page(
    weir: &Weir,
    scope: &Scope,
    model: Option<&str>,
    after: Option<&WorkerPosition>,
    limit: i64,
) -> Vec<Worker> {
    let filter = WorkerFilter {
        scope,
        model,
        touched_within: GRACE,
    };
    weir.store.workers(&filter, after, limit).await.unwrap()
}

/// The names of all that are listed for a scope, and a model.
async fn names(weir: &Weir, scope: &Scope, model: Option<&str>) -> Vec<String> {
    let listed = list(weir, scope, model).await.into_iter();
    listed.map(|worker| worker.worker_id).collect()
}

#[tokio::test]
async fn an_untouched_session_loses_its_leases_however_long_and_a_touched_one_keeps_them() {
    let (weir, [lost, kept]) = worked_on(['a', 'b']).await;
    assert_eq!(rescue(&weir).await, Rescued::default());
    weir.meddle(UNTOUCHED).await;
    let rows = [session_row(&session('b'))];
    weir.store.touch_sessions(&rows, GRACE).await.unwrap();
    let rescued = rescue(&weir).await;
    assert_eq!(
        (rescued.retried, rescued.silent, rescued.stalled),
        (1, 1, 0)
    );
    assert_eq!(rescued.leases[0].lease, lease_of(&lost));
    let queued = weir.job(lost.id).await;
    // As when a lease runs out: a worker that was heard of is charged.
    assert_eq!(
        (queued.state, queued.attempt, queued.epoch),
        (JobState::Queued, 1, lost.epoch + 1)
    );
    match weir.store.renew(lease_of(&lost), LEASE).await {
        Err(StoreError::LeaseLost { reason, .. }) => assert_eq!(reason, RevokeReason::LeaseLost),
        other => panic!("{other:?}"),
    }
    assert_eq!(weir.job(kept.id).await.state, JobState::Running);
    assert_eq!(rescue(&weir).await, Rescued::default());
    weir.check().await;
}

#[tokio::test]
async fn a_try_of_a_lost_session_that_moved_forward_is_not_charged() {
    let (weir, [job]) = worked_on(['a']).await;
    let texts = weir.texts(&job).await;
    weir.upsert(outcome(&job, &texts[..1])).await.unwrap();
    weir.meddle(UNTOUCHED).await;
    assert_eq!(rescue(&weir).await.silent, 1);
    assert_eq!(weir.job(job.id).await.attempt, 0);
    weir.check().await;
}

#[tokio::test]
async fn a_session_that_was_opened_again_elsewhere_keeps_its_leases() {
    let (weir, [job]) = worked_on(['a']).await;
    weir.meddle(UNTOUCHED).await;
    weir.enter(&session_row(&session('b'))).await;
    let opening = opening_of(&session('b'), &job);
    weir.store.open(&opening, LEASE).await.unwrap();
    assert_eq!(rescue(&weir).await, Rescued::default());
    assert!(weir.embed(&job).await.finished);
    weir.check().await;
}

#[tokio::test]
async fn a_session_of_which_nobody_knows_is_gone_and_unary_calls_have_none() {
    let (weir, [of_a, of_b]) = worked_on(['a', 'b']).await;
    weir.store.leave_session(&session('a')).await.unwrap();
    // What the worker of b held goes on by unary calls.
    let unary = opening(lease_of(&of_b), 8);
    weir.store.open(&unary, LEASE).await.unwrap();
    weir.store.leave_session(&session('b')).await.unwrap();
    assert_eq!(rescue(&weir).await.silent, 1);
    assert_eq!(weir.job(of_a.id).await.state, JobState::Queued);
    assert_eq!(weir.job(of_b.id).await.state, JobState::Running);
}

#[tokio::test]
async fn a_claim_is_of_no_session_whatever_the_last_lease_was_of() {
    let (weir, [job]) = worked_on(['a']).await;
    weir.store
        .release(lease_of(&job), "draining")
        .await
        .unwrap();
    weir.store.leave_session(&session('a')).await.unwrap();
    let next = weir.claim().await;
    assert_eq!(rescue(&weir).await, Rescued::default());
    assert_eq!(weir.job(next.id).await.state, JobState::Running);
}

#[tokio::test]
async fn a_row_that_was_lost_comes_back_whole_and_with_its_age() {
    let weir = Weir::new().await;
    let mut row = session_row(&session('a'));
    weir.enter(&row).await;
    let entered = list(&weir, &Scope::All, None).await;
    weir.meddle("DELETE FROM weir.workers").await;
    row.open_for = Duration::from_hours(1);
    weir.store.touch_sessions(&[row], GRACE).await.unwrap();
    let [back] = &list(&weir, &Scope::All, None).await[..] else {
        panic!("one worker");
    };
    let age = back.touched_at - back.connected_at;
    assert_eq!(age, chrono::TimeDelta::hours(1));
    let same = Worker {
        connected_at: back.connected_at,
        touched_at: back.touched_at,
        age_seconds: back.age_seconds,
        ..entered[0].clone()
    };
    assert_eq!(*back, same);
}

#[tokio::test]
async fn a_touch_tells_what_has_changed_and_not_when_it_began() {
    let weir = Weir::new().await;
    let row = session_row(&session('a'));
    weir.enter(&row).await;
    let before = list(&weir, &Scope::All, None).await.remove(0);
    let condition = Condition {
        state: EmbedderState::Down,
        reason: "connection refused".to_owned(),
        dimension: Some(3),
        longest_input: None,
    };
    let models = vec![SessionModel {
        name: "fake".to_owned(),
        condition,
        in_state_ms: 1_500,
        chunks_in_hand: 7,
        chunks_embedded: 11,
        chunks_per_second: 2.5,
    }];
    let changed = SessionRow {
        draining: true,
        models: models.clone(),
        open_for: LEASE,
        ..row
    };
    weir.store.touch_sessions(&[changed], GRACE).await.unwrap();
    let after = list(&weir, &Scope::All, None).await.remove(0);
    assert_eq!(after.models.0, models);
    assert!(after.draining && after.touched_at > before.touched_at);
    assert_eq!(after.connected_at, before.connected_at);
}

#[tokio::test]
async fn what_a_replica_of_another_version_tells_is_read_as_far_as_it_goes() {
    let weir = Weir::new().await;
    let row = session_row(&session('a'));
    weir.enter(&row).await;
    weir.meddle(
        r#"UPDATE weir.workers SET models = '[{"name": "fake", "state": "asleep", "dreams": 3}, {"name": "m"}]'"#,
    )
    .await;
    let read = list(&weir, &Scope::All, None).await.remove(0);
    let states = read.models.iter().map(|it| it.condition.state);
    assert_eq!(states.collect::<Vec<_>>(), [EmbedderState::Untried; 2]);
}

#[tokio::test]
async fn many_sessions_are_touched_in_one_statement_that_touches_no_index() {
    let weir = Weir::new().await;
    let rows: Vec<_> = (0..40).map(|n| session_row(&format!("{n:032x}"))).collect();
    let counted = weir.counted().await;
    counted.store.touch_sessions(&rows, GRACE).await.unwrap();
    let updates = async |which: &str| {
        let table = "pg_stat_user_tables WHERE relid = 'weir.workers'::regclass";
        counted.told(&format!("SELECT {which} FROM {table}")).await
    };
    counted.store.touch_sessions(&rows, GRACE).await.unwrap();
    let (all, hot) = (updates("n_tup_upd").await, updates("n_tup_hot_upd").await);
    assert_eq!((updates("n_tup_ins").await, all, hot), (40, 40, 40));
    // Nobody to tell of: nothing is asked of the database.
    counted.store.touch_sessions(&[], GRACE).await.unwrap();
}

#[tokio::test]
async fn workers_are_listed_in_pages_and_those_that_nobody_touches_are_not() {
    let weir = Weir::new().await;
    for (digit, name) in [
        ('d', "a"),
        ('c', "b"),
        ('b', "b"),
        ('a', "c"),
        ('e', "gone"),
    ] {
        let row = SessionRow {
            worker_id: name.into(),
            ..session_row(&session(digit))
        };
        weir.enter(&row).await;
    }
    weir.meddle("UPDATE weir.workers SET touched_at = touched_at - interval '11 s' WHERE worker_id = 'gone'")
        .await;
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = page(&weir, &Scope::All, None, after.as_ref(), 2).await;
        let Some(last) = page.last() else { break };
        after = Some((last.worker_id.clone(), last.session.clone()));
        found.push(page.iter().map(|it| it.session.clone()).collect::<Vec<_>>());
    }
    let wanted = [
        [session('d'), session('b')].to_vec(),
        [session('c'), session('a')].to_vec(),
    ];
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn a_scope_sees_the_workers_of_all_namespaces_and_of_its_own() {
    let weir = Weir::new().await;
    let some = |these: &[&str]| -> Option<Arc<[String]>> {
        Some(these.iter().map(ToString::to_string).collect())
    };
    let workers = [
        ('a', "all", None, "fake"),
        ('b', "shop", some(&["shop", "till"]), "fake"),
        ('c', "other", some(&["other"]), "large"),
        ('d', "none", some(&[]), "large"),
    ];
    for (digit, name, namespaces, model) in workers {
        let mut row = SessionRow {
            worker_id: name.into(),
            namespaces,
            ..session_row(&session(digit))
        };
        model.clone_into(&mut row.models[0].name);
        weir.enter(&row).await;
    }
    let one = |name: &str| Scope::One(name.to_owned());
    assert_eq!(
        names(&weir, &Scope::All, None).await,
        ["all", "none", "other", "shop"]
    );
    assert_eq!(names(&weir, &one("till"), None).await, ["all", "shop"]);
    let these = Scope::These(vec!["shop".to_owned(), "other".to_owned()]);
    assert_eq!(names(&weir, &these, None).await, ["all", "other", "shop"]);
    assert_eq!(names(&weir, &these, Some("large")).await, ["other"]);
    assert_eq!(names(&weir, &Scope::All, Some("lar")).await, [""; 0]);
}

#[tokio::test]
async fn sessions_that_nobody_has_touched_for_long_are_forgotten_in_steps() {
    let weir = Weir::new().await;
    let day = Duration::from_hours(24);
    for digit in ['a', 'b', 'c', 'd'] {
        weir.enter(&session_row(&session(digit))).await;
    }
    weir.meddle(
        "UPDATE weir.workers SET touched_at = now() - interval '24 h' + CASE
             WHEN session LIKE 'a%' THEN interval '1 min' ELSE interval '0' END",
    )
    .await;
    for forgotten in [2, 1, 0] {
        let forgot = weir.store.forget_sessions(day, 2).await.unwrap();
        assert_eq!(forgot, forgotten);
    }
    assert_eq!(weir.number("SELECT count(*) FROM weir.workers").await, 1);
}

#[tokio::test]
async fn the_leases_of_a_session_are_renewed_together() {
    let (weir, [held, locked, late]) = worked_on(['a', 'b', 'c']).await;
    let cut = "UPDATE weir.jobs SET lease_expires_at = now() + interval '1 s', heard = false";
    weir.meddle(cut).await;
    let mut other = weir.pool().begin().await.unwrap();
    sqlx::query("SELECT FROM weir.jobs WHERE id = $1 FOR UPDATE")
        .bind(locked.id)
        .execute(&mut *other)
        .await
        .unwrap();
    let mut lost = lease_of(&late);
    lost.epoch -= 1;
    let fences = [
        lease_of(&held).into(),
        lease_of(&locked).into(),
        lost.into(),
    ];
    let renewed = weir.store.renew_group(&fences, LEASE).await.unwrap();
    assert_eq!(renewed, [held.id]);
    other.rollback().await.unwrap();
    let long = "SELECT count(*) FROM weir.jobs WHERE lease_expires_at > now() + interval '1 min' AND heard";
    assert_eq!(weir.number(long).await, 1);
    assert_eq!(weir.store.renew_group(&[], LEASE).await.unwrap(), [0; 0]);
}
