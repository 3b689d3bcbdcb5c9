//! Leases that end, and the worker's own end.

use super::*;

#[tokio::test]
async fn a_revoked_lease_cancels_its_call_at_once_and_no_other() {
    let settings = ["--embedder-concurrency=2"];
    let (mut scene, mut session) = Scene::start_fit(&settings).await;
    session.batch_of(MODEL, vec![part(1, 1, &["a"])]).await;
    let revoked = scene.embedder().next().await;
    session.batch_of(MODEL, vec![part(2, 2, &["b"])]).await;
    let other = scene.embedder().next().await;
    session.revoke(1, RevokeReason::Superseded).await;
    revoked.cancelled().await;
    scene.until_ended("lost").await;
    other.succeed();
    assert_eq!(session.result().await, result_of(2, &["b"]));
    assert!(session.no_result());
    // The other call may still be one of two.
    session.until(|it| it.credit_of(MODEL) == 3).await;
}

#[tokio::test]
async fn a_lease_that_ends_takes_its_results_with_it_and_the_call_goes_on() {
    let (mut scene, mut session) = Scene::start_fit(&["--batch-size=2"]).await;
    session
        .batch_of(MODEL, vec![part(1, 1, &["a"]), part(2, 2, &["b"])])
        .await;
    let shared = scene.embedder().next().await;
    assert_eq!(shared.texts, ["a", "b"]);
    session.revoke(1, RevokeReason::Cancelled).await;
    scene.until_ended("lost").await;
    shared.succeed();
    assert_eq!(session.result().await, result_of(2, &["b"]));
    // Nor is it sent on another stream.
    drop(session);
    let mut session = scene.coordinator.session().await;
    assert_eq!(session.open.held, [held_lease(2, vec![held(2, &["b"])])]);
    assert_eq!(session.result().await, result_of(2, &["b"]));
    session.until(|it| it.credit_of(MODEL) == 4).await;
    assert!(session.no_result());
}

#[tokio::test]
async fn each_end_of_a_lease_is_said_and_counted() {
    let logs = Logs::capture();
    let (mut scene, mut session) = Scene::start_fit(&[]).await;
    let reason = "the model has dimension 3, not 2; set WEIR_DIMENSIONS";
    let ends = [
        (How::Finished(v1::JobFinished::default()), "finished"),
        (How::Refused(reason.to_owned()), "refused"),
        (How::Released(v1::LeaseReleased {}), "released"),
        (How::Revoked(v1::LeaseRevoked::default()), "lost"),
    ];
    for ((how, name), job_id) in ends.into_iter().zip(1..) {
        let next = part(job_id, job_id, &["a"]);
        session.batch_of(MODEL, vec![next]).await;
        scene.embedder().next().await.succeed();
        session.result().await;
        session.end(job_id, how).await;
        scene.until_ended(name).await;
        assert_eq!(scene.ended(name), 1);
    }
    // One of which nothing ever came is none of them.
    session.finish(99).await;
    session.batch(9, &["b"]).await;
    scene.embedder().next().await;
    assert_eq!(scene.ended("finished"), 1);
    let logs = logs.text();
    for words in [
        "The job finished.",
        "The coordinator refused a result; the job went back.",
        reason,
        "The job was released.",
        "The lease ended; job dropped.",
        "the coordinator gave no reason",
        "job_id=4 epoch=7 source=\"namespace/source\" trace_id=",
    ] {
        assert!(logs.contains(words), "{words} in {logs}");
    }
    assert_eq!(logs.matches("The job started.").count(), 5, "{logs}");
}

#[tokio::test]
async fn a_draining_worker_finishes_what_it_has_and_takes_nothing_more() {
    let (mut scene, mut session) = Scene::start_fit(&["--batch-size=2"]).await;
    session
        .batch_of(MODEL, vec![part(1, 1, &["a", "b"]), part(2, 2, &["c"])])
        .await;
    let first = scene.embedder().next().await;
    scene.worker.shutdown.cancel();
    session.until(|it| it.drains == 1).await;
    let credit = session.credit_of(MODEL);
    first.succeed();
    assert_eq!(session.result().await, result_of(1, &["a", "b"]));
    // What was on its way is embedded, too.
    let on_its_way = vec![part(3, 2, &["d"])];
    session.rude_batch(MODEL, on_its_way).await;
    scene.embedders.remove(0).answer_all();
    assert_eq!(session.result().await, result_of(2, &["c"]));
    assert_eq!(session.result().await, result_of(3, &["d"]));
    session.ack(&[1, 2, 3]).await;
    session.release(1).await;
    session.release(2).await;
    scene.until_ended("released").await;
    assert!(
        !scene.running.is_finished(),
        "the coordinator has the last word"
    );
    assert_eq!(session.credit_of(MODEL), credit, "nothing was granted");
    let model = &scene.worker.models[0];
    assert_eq!(scene.worker.obstacle(model).as_deref(), Some("stopping"));
    drop(session);
    soon(&mut scene.running).await.unwrap();
    assert!(scene.coordinator.no_opening());
    assert_eq!(scene.ended("released"), 2);
}

#[tokio::test]
async fn a_drain_outlives_a_break_of_the_stream() {
    let (mut scene, mut session) = Scene::start_fit(&[]).await;
    session.batch(1, &["a"]).await;
    let call = scene.embedder().next().await;
    scene.worker.shutdown.cancel();
    session.until(|it| it.drains == 1).await;
    session.end_with(Status::unavailable("restarting")).await;
    let mut session = scene.coordinator.session().await;
    assert_eq!(session.open.held.len(), 1);
    session.until(|it| it.drains == 1).await;
    call.succeed();
    assert_eq!(session.result().await, result_of(1, &["a"]));
    // The ack is lost, and so is wanted from another.
    drop(session);
    let mut session = scene.coordinator.session().await;
    assert_eq!(session.result().await, result_of(1, &["a"]));
    session.ack(&[1]).await;
    session.release(42).await;
    drop(session);
    soon(&mut scene.running).await.unwrap();
    assert!(scene.coordinator.no_opening());
}

#[tokio::test]
async fn a_drain_that_takes_too_long_gives_back_what_is_left_with_what_there_is_of_it() {
    let settings = ["--drain-timeout=50ms", "--batch-size=2"];
    let (mut scene, mut session) = Scene::start_fit(&settings).await;
    let parts = vec![part(1, 1, &["a"]), part(2, 2, &["b", "c"])];
    session.batch_of(MODEL, parts).await;
    scene.embedder().next().await.succeed();
    assert_eq!(session.result().await, result_of(1, &["a"]));
    let call = scene.embedder().next().await;
    scene.worker.shutdown.cancel();
    call.cancelled().await;
    assert_eq!(session.result().await, result_of(2, &["b"]));
    session.rude_batch(MODEL, vec![part(3, 2, &["d"])]).await;
    assert_eq!(session.result().await, nothing_of(3));
    assert!(scene.embedder().none());
}

#[tokio::test]
async fn a_worker_that_has_answered_everything_does_not_wait_for_ever() {
    let (mut scene, mut session) = Scene::start_fit(&[]).await;
    session.batch(1, &["a"]).await;
    scene.embedder().next().await.succeed();
    session.result().await;
    scene.worker.shutdown.cancel();
    // No ack comes.
    soon(&mut scene.running).await.unwrap();
    assert_eq!(scene.ended("unreachable"), 1);
}

#[tokio::test]
async fn a_worker_that_never_had_a_session_stops_at_once() {
    let mut scene = Scene::start(&[]).await;
    let opening = scene.coordinator.opening().await;
    scene.worker.shutdown.cancel();
    soon(&mut scene.running).await.unwrap();
    drop(opening);
}

#[tokio::test]
async fn a_call_that_hangs_while_the_embedder_is_down_is_not_waited_for_for_long() {
    let settings = ["--embedder-concurrency=2"];
    let (mut scene, mut session) = Scene::start_fit(&settings).await;
    session.batch(1, &["a"]).await;
    let hangs = scene.embedder().next().await;
    session.batch(2, &["b"]).await;
    scene.break_down("503").await;
    assert_eq!(session.result().await, nothing_of(2));
    assert_eq!(session.result().await, nothing_of(1));
    hangs.cancelled().await;
}
