//! Heartbeats: as long as the embedder computes, and no longer.

use weir_proto::v1::JobState;
use weir_tests::clients::until;

use crate::world::World;

/// Notes each time that a lease was extended while nothing was persisted.
const RENEWALS: &str = "
    CREATE TABLE public.renewals (at timestamptz, epoch bigint);
    CREATE FUNCTION public.renewed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.renewals VALUES (now(), NEW.epoch);
        RETURN NULL;
    END $$;
    CREATE TRIGGER renewed AFTER UPDATE ON weir.jobs FOR EACH ROW
        WHEN (OLD.lease_expires_at < NEW.lease_expires_at AND OLD.chunks_done = NEW.chunks_done)
        EXECUTE FUNCTION public.renewed()";

async fn renewals(world: &World) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM public.renewals")
        .fetch_one(world.database.pool())
        .await
        .unwrap()
}

#[tokio::test]
async fn heartbeats_renew_the_lease_while_the_embedder_computes_and_then_stop() {
    let world = World::start(&[("WEIR_LEASE_DURATION", "1500ms")]).await;
    sqlx::raw_sql(RENEWALS)
        .execute(world.database.pool())
        .await
        .unwrap();
    let worker = world.worker("1");
    worker.process.wait_for_event("The embedder answers.").await;
    world.embedder.close_gate();
    let put = world.put_items("slow", [("a".into(), "text".into())]).await;
    let job_id = put.jobs[0].job_id;
    world.embedder.calls_started(2).await;
    // Opening the stream is one; six more are two leases of one long call.
    until(async || renewals(&world).await >= 7).await;
    assert_eq!(world.job(job_id).await.state(), JobState::Running);

    world.embedder.open_gate();
    let job = world.succeeded(job_id).await;
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    // The next job, for which the same worker sends heartbeats of its own, shows that the first
    // has none any more.
    let row = "SELECT xmin::text FROM weir.jobs WHERE id = $1";
    let row = async || -> String {
        let query = sqlx::query_scalar(row).bind(job_id);
        query.fetch_one(world.database.pool()).await.unwrap()
    };
    let (before, renewed) = (row().await, renewals(&world).await);
    world.embedder.close_gate();
    world.put_items("next", [("a".into(), "next".into())]).await;
    until(async || renewals(&world).await >= renewed + 4).await;
    world.embedder.open_gate();
    assert_eq!(row().await, before);
    assert!(
        world
            .coordinator
            .process
            .log()
            .iter()
            .all(|line| !line.contains("lost its lease"))
    );
}
