//! Law 15: no single loss costs more than seconds, however long leases are.

use weir_proto::v1::JobState;
use weir_tests::{cluster::Coordinator, session::Session};

use super::{finish, holding, put};
use crate::clients::{Weir, until};

const SETTINGS: [(&str, &str); 3] = [
    ("WEIR_ORPHAN_GRACE", "2s"),
    ("WEIR_POLL_INTERVAL", "50ms"),
    ("WEIR_LEASE_DURATION", "10m"),
];

/// The leases of a coordinator that dies with its workers are taken back by another,
/// and those of that one's own workers are not.
#[tokio::test]
async fn a_node_that_takes_coordinator_and_worker_with_it_costs_a_grace_and_no_lease() {
    let mut weir = Weir::with(&SETTINGS).await;
    let other = Coordinator::spawn(weir.database.url(), &SETTINGS).await;
    let channel = other.connect().await;
    let lost = put(&weir, "lost", &["a", "bb"]).await;
    let (session, parts) = holding(&weir, &[lost]).await;
    let mut live = Session::open_as(&channel, None, weir_tests::session::opening(1)).await;
    weir.coordinator.process.sigkill().await;
    drop(session);
    live.grant(1);
    let part = live.part().await;
    assert_eq!(part.job_id, lost);
    assert!(part.epoch > parts[0].epoch);
    live.embed(&part);
    finish(&mut live, lost).await;
}

#[tokio::test]
async fn a_worker_that_lives_keeps_its_leases_however_long_it_embeds() {
    let weir = Weir::with(&SETTINGS).await;
    let other = Coordinator::spawn(weir.database.url(), &SETTINGS).await;
    let slow = put(&weir, "slow", &["a"]).await;
    let (mut session, parts) = holding(&weir, &[slow]).await;
    // Two of another replica that fall silent one after the other: more than a grace of its own
    // each, by the events that the coordinators see.
    for name in ["first", "second"] {
        let job_id = put(&weir, name, &["b"]).await;
        let mut silent = Session::open_as(
            &other.connect().await,
            None,
            weir_tests::session::opening(1),
        )
        .await;
        silent.grant(1);
        let part = silent.part().await;
        silent.fall_silent();
        until(async || weir.job(job_id).await.epoch > part.epoch).await;
        // It is nobody's, or the next one gets it in its place.
        let cancel = weir_proto::v1::CancelJobRequest { job_id };
        weir.jobs().cancel_job(cancel).await.unwrap();
    }
    let job = weir.job(slow).await;
    assert_eq!((job.state(), job.epoch), (JobState::Running, 1), "{job:?}");
    session.embed(&parts[0]);
    session.finished(slow).await;
}
