//! The database clock is the only lease clock.

use std::time::Duration;

use weir_proto::v1::JobState;
use weir_tests::{
    clients::{Weir, until},
    world::World,
};

use crate::words::{BRISK, every_call, items, run, set_leases};

#[tokio::test]
async fn law_02_a_lease_ends_when_the_database_says_so() {
    // Of ten minutes, of which for every process next to nothing has passed.
    let weir = Weir::with(&BRISK).await;
    let job_id = weir.put("source", &["one"]).await.jobs[0].job_id;
    let lease = weir.claim().await;
    let chunks = weir.batch(&lease).await;
    set_leases(weir.database.pool(), "0 s").await;
    until(async || weir.job(job_id).await.state() != JobState::Running).await;
    for (call, answer) in every_call(weir.worker(), &lease, &chunks).await {
        assert_eq!(answer.unwrap_err().code(), tonic::Code::Aborted, "{call}");
    }
}

#[tokio::test]
async fn law_02_a_lease_holds_while_the_database_says_so() {
    // By everybody else's clock it is over again and again.
    let world = World::start(&[&BRISK[..], &[("WEIR_LEASE_DURATION", "200ms")]].concat()).await;
    let hours = "CREATE FUNCTION public.hours() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.state = 'running' THEN NEW.lease_expires_at = now() + interval '1 h'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER hours BEFORE UPDATE ON weir.jobs
            FOR EACH ROW EXECUTE FUNCTION public.hours()";
    run(world.database.pool(), hours).await;
    let worker = world.worker("2");
    worker.process.wait_for_event("The embedder answers.").await;
    world.embedder.close_gate();
    let put = world.put_items("slow", items(0..4, "text")).await;
    world.embedder.calls_started(2).await;
    worker.process.sigstop();
    // What passes is what this is about: ten leases.
    tokio::time::sleep(Duration::from_secs(2)).await;
    worker.process.sigcont();
    world.embedder.open_gate();
    let job = world.succeeded(put.jobs[0].job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    world.assert_exact("slow").await;
}
