use tokio::task::JoinHandle;
use weir_proto::v1::EmbedderState;

use super::*;
use crate::{
    coordinator::fake::{FakeCoordinator, MODEL},
    testing::{EmbedCalls, FakeEmbedder, Logs, config, soon},
};

/// A whole worker, with the coordinator and the embedder in the test's hands.
struct Scene {
    coordinator: FakeCoordinator,
    embedder: EmbedCalls,
    shutdown: CancellationToken,
    worker: JoinHandle<anyhow::Result<()>>,
}

impl Scene {
    async fn start(settings: &[&str]) -> Self {
        let coordinator = FakeCoordinator::start().await;
        let (fake, embedder) = FakeEmbedder::new();
        let shutdown = CancellationToken::new();
        let (config, mut models) = config(&coordinator.uri, settings);
        let served = vec![Served::by(models.remove(0), Arc::new(fake))];
        let worker = tokio::spawn(run(config, served, shutdown.clone()));
        Self {
            coordinator,
            embedder,
            shutdown,
            worker,
        }
    }
}

#[tokio::test]
async fn a_worker_runs_until_it_is_to_stop_and_its_session_has_ended() {
    let logs = Logs::capture();
    let mut scene = Scene::start(&["--batch-size=2"]).await;
    scene.embedder.probe().await.succeed();
    let mut session = scene.coordinator.session().await;
    session.batch(1, &["a", "b"]).await;
    let call = scene.embedder.next().await;
    scene.shutdown.cancel();
    session.until(|it| it.drains == 1).await;
    call.succeed();
    assert_eq!(session.result().await.embedded.len(), 2);
    session.ack(&[1]).await;
    session.release(42).await;
    assert!(!scene.worker.is_finished());
    drop(session);
    soon(scene.worker).await.unwrap().unwrap();
    let logs = logs.text();
    for words in [
        "The worker started.",
        "The session is open.",
        "The job started.",
        "The job was released.",
        "the worker is draining",
        "The worker has drained.",
    ] {
        assert!(logs.contains(words), "{words} in {logs}");
    }
}

#[tokio::test]
async fn a_worker_that_never_found_its_embedder_stops_as_any_other() {
    let mut scene = Scene::start(&[]).await;
    let mut session = scene.coordinator.session().await;
    scene.embedder.probe().await.break_down("no such model");
    session.until_state(EmbedderState::Down).await;
    assert_eq!(session.credit_of(MODEL), 0);
    scene.shutdown.cancel();
    session.until(|it| it.drains == 1).await;
    drop(session);
    soon(scene.worker).await.unwrap().unwrap();
}
