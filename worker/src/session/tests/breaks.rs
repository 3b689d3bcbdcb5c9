//! Streams that break, are refused, or carry what the contract rules out.

use super::*;

/// Cuts a session and takes the one that replaces it.
async fn cut(scene: &mut Scene, session: FakeSession) -> FakeSession {
    drop(session);
    scene.coordinator.session().await
}

#[tokio::test]
async fn a_broken_stream_goes_on_where_it_was() {
    let settings = ["--batch-size=2"];
    let (mut scene, mut session) = Scene::start_fit(&settings).await;
    session.batch(1, &["a", "A"]).await;
    session.batch(2, &["b", "B"]).await;
    // One result without an ack, one part in the embedder, one waiting.
    scene.embedder().next().await.succeed();
    assert_eq!(session.result().await, result_of(1, &["a", "A"]));
    let in_flight = scene.embedder().next().await;
    session.batch_of(MODEL, vec![part(3, 5, &["c"])]).await;
    session.ack(&[]).await;
    // It is taken in.
    session.until(|it| it.credit_of(MODEL) == 1).await;
    while scene.worker.models[0].endpoint.room() != 1 {
        tokio::task::yield_now().await;
    }
    let mut session = cut(&mut scene, session).await;
    let of_five = held_lease(5, vec![held(3, &["c"])]);
    let both = held_lease(42, vec![held(1, &["a", "A"]), held(2, &["b", "B"])]);
    assert_eq!(session.open.held, [of_five.clone(), both]);
    // What has no ack comes again, and is not embedded again.
    assert_eq!(session.result().await, result_of(1, &["a", "A"]));
    session.until_state(EmbedderState::Fit).await;
    session.until(|it| it.credit_of(MODEL) == 1).await;
    session.ack(&[1]).await;
    in_flight.succeed();
    assert_eq!(session.result().await, result_of(2, &["b", "B"]));
    let last = scene.embedder().next().await;
    // Broken by a status this time, while the last is in the embedder; what was
    // acknowledged is not held any more.
    session.end_with(Status::unavailable("restarting")).await;
    let mut session = scene.coordinator.session().await;
    let one = held_lease(42, vec![held(2, &["b", "B"])]);
    assert_eq!(session.open.held, [of_five, one]);
    assert_eq!(session.result().await, result_of(2, &["b", "B"]));
    last.succeed();
    assert_eq!(session.result().await, result_of(3, &["c"]));
    session.ack(&[2, 3]).await;
    session.finish(42).await;
    scene.until_ended("finished").await;
    assert!(scene.embedder().none());
    assert_eq!(scene.shown("weir_worker_stream_failures_total"), 2);
}

#[tokio::test]
async fn a_result_that_is_ready_during_an_outage_is_sent_after_it() {
    let (mut scene, mut session) = Scene::start_fit(&[]).await;
    session.batch(1, &["a"]).await;
    session.batch(2, &["b"]).await;
    let first = scene.embedder().next().await;
    session.end_with(Status::internal("h2")).await;
    let opening = scene.coordinator.opening().await;
    first.succeed();
    // The next call begins: the outage does not stop the embedder.
    let second = scene.embedder().next().await;
    opening.refuse(Status::unavailable("not yet"));
    let mut session = scene.coordinator.session().await;
    let both = held_lease(42, vec![held(1, &["a"]), held(2, &["b"])]);
    assert_eq!(session.open.held, [both]);
    assert_eq!(session.result().await, result_of(1, &["a"]));
    second.succeed();
    assert_eq!(session.result().await, result_of(2, &["b"]));
}

#[tokio::test]
async fn a_lease_of_which_nothing_is_held_ends_with_the_stream() {
    let (mut scene, mut session) = Scene::start_fit(&[]).await;
    session.batch(1, &["a"]).await;
    scene.embedder().next().await.succeed();
    session.result().await;
    session.ack(&[1]).await;
    session.batch_of(MODEL, vec![part(2, 5, &["b"])]).await;
    // The ack came before it.
    scene.embedder().next().await;
    let session = cut(&mut scene, session).await;
    assert_eq!(session.open.held, [held_lease(5, vec![held(2, &["b"])])]);
    scene.until_ended("lost").await;
    assert_eq!(scene.ended("lost"), 1);
    assert_eq!(scene.shown("weir_worker_leases_open{model=\"model\"}"), 1);
}

#[tokio::test]
async fn a_coordinator_that_stays_away_for_longer_than_a_lease_is_given_up() {
    let mut scene = Scene::start(&[]).await;
    scene.embedder().probe().await.succeed();
    let opening = scene.coordinator.opening().await;
    let lease = Duration::from_secs(1);
    let mut session = opening.accept(lease, LEASE_DURATION).await;
    session.batch(1, &["a"]).await;
    session.batch(2, &["b"]).await;
    let call = scene.embedder().next().await;
    drop(session);
    let mut is_known = false;
    let open = loop {
        let opening = scene.coordinator.opening().await;
        if opening.open.held.is_empty() {
            break opening;
        }
        is_known = true;
        opening.refuse(Status::unavailable("gone"));
    };
    assert!(is_known, "it was held at first");
    call.cancelled().await;
    assert_eq!(scene.ended("unreachable"), 1);
    assert!(scene.embedder().none());
    // It goes on with other work.
    let mut session = open.accept(lease, LEASE_DURATION).await;
    session.batch(1, &["c"]).await;
    scene.embedder().next().await.succeed();
    assert_eq!(session.result().await, result_of(1, &["c"]));
}

#[tokio::test]
async fn what_is_given_up_while_a_session_is_opened_is_not_promised_to_it() {
    let mut scene = Scene::start(&[]).await;
    scene.embedder().probe().await.succeed();
    let opening = scene.coordinator.opening().await;
    let lease = Duration::from_secs(1);
    let mut session = opening.accept(lease, LEASE_DURATION).await;
    session.batch(1, &["a"]).await;
    let call = scene.embedder().next().await;
    drop(session);
    // Answered when that is not true any more.
    let late = scene.coordinator.opening().await;
    assert!(!late.open.held.is_empty());
    call.cancelled().await;
    let late = late.accept(lease, LEASE_DURATION).await;
    late.closed().await;
    let session = scene.coordinator.session().await;
    assert_eq!(session.open.held, []);
}

#[tokio::test]
async fn a_refusal_is_said_once_shown_and_tried_again() {
    let logs = Logs::capture();
    let mut scene = Scene::start(&[]).await;
    scene.embedder().probe().await.succeed();
    let refusals: [fn(&'static str) -> Status; 4] = [
        Status::invalid_argument,
        Status::unauthenticated,
        Status::permission_denied,
        Status::failed_precondition,
    ];
    let model = &scene.worker.models[0];
    model.endpoint.health.fit().await;
    let before = scene.worker.obstacle(model);
    let reason = "no session with the coordinator: none was opened yet";
    assert_eq!(before.as_deref(), Some(reason));
    for refuse in refusals {
        for _ in 0..2 {
            let opening = scene.coordinator.opening().await;
            opening.refuse(refuse("worker_id: taken"));
        }
    }
    let opening = scene.coordinator.opening().await;
    let obstacle = scene.worker.obstacle(&scene.worker.models[0]);
    let reason = "no session with the coordinator: worker_id: taken (FailedPrecondition)";
    assert_eq!(obstacle.as_deref(), Some(reason));
    assert_eq!(scene.shown("weir_worker_stream_failures_total"), 8);
    let mut session = opening.accept(LEASE_DURATION, LEASE_DURATION).await;
    session.until_state(EmbedderState::Fit).await;
    assert_eq!(scene.worker.obstacle(&scene.worker.models[0]), None);
    drop(session);
    let mut session = scene.coordinator.session().await;
    session.until_state(EmbedderState::Fit).await;
    let logs = logs.text();
    for (words, times) in [
        ("worker_id: taken", 4),
        ("(Unauthenticated)", 1),
        ("The session is open.", 1),
        ("The session broke; opening it again.", 1),
        ("The session is open again.", 1),
    ] {
        assert_eq!(logs.matches(words).count(), times, "{words} in {logs}");
    }
}

#[tokio::test]
async fn what_breaks_the_contract_ends_the_session_and_is_named() {
    let logs = Logs::capture();
    let (mut scene, mut session) = Scene::start_fit(&[]).await;
    session.batch(1, &["a"]).await;
    let call = scene.embedder().next().await;
    let unknown = vec![part(2, 42, &["b"])];
    for (model, parts, named) in [
        (
            MODEL,
            vec![part(2, 42, &["b"]), part(3, 42, &["c"; 20])],
            "sent 21 chunks of \"model\" for a credit of 1",
        ),
        (
            MODEL,
            vec![part(1, 42, &["b"])],
            "sent part 1, which is here",
        ),
        (MODEL, vec![part(2, 42, &[])], "sent part 2 without chunks"),
        ("other", unknown, "sent a batch of \"other\", which"),
    ] {
        session.until(|it| it.credit_of(MODEL) == 1).await;
        session.rude_batch(model, parts).await;
        session.closed().await;
        session = scene.coordinator.session().await;
        let all_else = held_lease(42, vec![held(1, &["a"])]);
        assert_eq!(session.open.held, [all_else], "{named}");
        let logs = logs.text();
        assert!(
            logs.contains(named) || logs.contains(&named.replace('"', "\\\"")),
            "{logs}"
        );
    }
    call.succeed();
    assert_eq!(session.result().await, result_of(1, &["a"]));
    assert!(scene.embedder().none());
}

#[tokio::test]
async fn a_coordinator_that_does_not_open_as_it_should_is_not_believed() {
    let mut scene = Scene::start(&[]).await;
    scene.embedder().probe().await.succeed();
    let none = Duration::ZERO;
    let opening = scene.coordinator.opening().await;
    opening.accept(none, LEASE_DURATION).await.closed().await;
    let opening = scene.coordinator.opening().await;
    opening.accept(LEASE_DURATION, none).await.closed().await;
    let session = scene.coordinator.opening().await.accept_silently();
    session.finish(42).await;
    session.closed().await;
    // Silent, and gone.
    drop(scene.coordinator.opening().await.accept_silently());
    let session = scene.coordinator.session().await;
    let twice = v1::SessionOpened::default();
    let opened = v1::stream_batches_response::Message::Opened(twice);
    session.say(opened).await;
    session.closed().await;
    scene.coordinator.session().await;
    assert_eq!(scene.shown("weir_worker_stream_failures_total"), 5);
}
