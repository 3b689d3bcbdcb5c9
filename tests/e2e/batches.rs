//! Batches on their way from the store to the embedder and back.

use std::sync::atomic::{AtomicBool, Ordering};

use tonic::Code;
use weir_proto::v1::{CompleteJobRequest, DeleteSourceRequest, JobState};
use weir_tests::{
    clients::{Weir, assert_status, embedded, until, upsert},
    cluster::Worker,
    embedder::Rude,
};

use crate::world::World;

const QUICK: (&str, &str) = ("WEIR_BACKOFF_BASE", "50ms");

fn items(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|id| (format!("{id:03}"), format!("the text of item {id:03}")))
}

/// Calls come one after the other.
const ONE_CALL: (&str, &str) = ("WEIR_EMBEDDER_CONCURRENCY", "1");

fn worker(world: &World, settings: &[(&str, &str)]) -> Worker {
    Worker::spawn(&world.coordinator.url(), &world.embedder.url(), settings)
}

/// How many texts each call of the embedder had, without the probe.
fn sizes(world: &World) -> Vec<usize> {
    let calls = world.embedder.calls();
    let work = calls.iter().filter(|call| call.texts != ["probe"]);
    work.map(|call| call.texts.len()).collect()
}

#[tokio::test]
async fn the_batch_size_flows_from_the_setting_to_the_call() {
    let world = World::start(&[]).await;
    let put = world.put_items("source", items(10)).await;
    let _worker = worker(&world, &[("WEIR_BATCH_SIZE", "4")]);
    world.succeeded(put.jobs[0].job_id).await;
    // Calls are made side by side.
    let mut sizes = sizes(&world);
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 4, 4]);
}

#[tokio::test]
async fn the_default_batch_size_applies_when_none_is_set() {
    let world = World::start(&[]).await;
    let put = world.put_items("source", items(70)).await;
    let _worker = worker(&world, &[]);
    world.succeeded(put.jobs[0].job_id).await;
    // Calls are made side by side.
    let mut sizes = sizes(&world);
    sizes.sort_unstable();
    assert_eq!(sizes, [6, 32, 32]);
}

#[tokio::test]
async fn each_batch_reaches_the_store_while_the_next_is_embedded() {
    let world = World::start(&[]).await;
    let worker = worker(&world, &[("WEIR_BATCH_SIZE", "2"), ONE_CALL]);
    worker.process.wait_for_event("The embedder answers.").await;
    world.embedder.close_gate();
    let put = world.put_items("source", items(6)).await;
    for batch in 0..3 {
        // The probe was the first call.
        world.embedder.calls_started(2 + batch).await;
        until(async || world.rows("embeddings").await == 2 * batch as i64).await;
        world.embedder.let_through(2 + batch);
    }
    world.succeeded(put.jobs[0].job_id).await;
    world.assert_exact("source").await;
}

#[tokio::test]
async fn a_batch_that_the_store_refuses_is_charged_and_tried_again() {
    let world = World::start(&[QUICK]).await;
    let pool = world.database.pool();
    // Somebody else's vectors made the model another one.
    sqlx::raw_sql(
        "INSERT INTO weir.models (name, dimension) VALUES ('fake', 3);
         INSERT INTO weir.sources (namespace, name, model, revision) VALUES ('default', 'theirs', 'fake', 1);
         INSERT INTO weir.embeddings (source_id, item_id, chunk_index, model, text_hash, embedding)
         SELECT id, 'a', 0, 'fake', sha256('a'), '[1,2,3]' FROM weir.sources",
    )
    .execute(pool)
    .await
    .unwrap();
    let put = world.put_items("source", items(6)).await;
    let job_id = put.jobs[0].job_id;
    let _worker = worker(&world, &[("WEIR_BATCH_SIZE", "2")]);
    until(async || world.job(job_id).await.attempt >= 1).await;
    let job = world.job(job_id).await;
    assert!(
        job.last_error.contains("16") && job.last_error.contains('3'),
        "{job:?}"
    );
    assert_eq!(world.rows("embeddings").await, 1);

    // It is forgotten with them.
    sqlx::raw_sql("DELETE FROM weir.embeddings")
        .execute(pool)
        .await
        .unwrap();
    let job = world.succeeded(job_id).await;
    assert!(job.epoch >= 2, "{job:?}");
    world.assert_exact("source").await;
}

#[tokio::test]
async fn a_batch_that_the_database_cannot_write_is_sent_again() {
    let world = World::start(&[]).await;
    let pool = world.database.pool();
    let fault = "CREATE SEQUENCE public.faults;
        CREATE FUNCTION public.fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('public.faults') <= 2 THEN RAISE EXCEPTION 'the disk is on fire'; END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER fault BEFORE INSERT ON weir.embeddings
            FOR EACH STATEMENT EXECUTE FUNCTION public.fault()";
    sqlx::raw_sql(fault).execute(pool).await.unwrap();
    let put = world.put_items("source", items(6)).await;
    let _worker = worker(&world, &[("WEIR_BATCH_SIZE", "2")]);
    let job = world.succeeded(put.jobs[0].job_id).await;
    // The embedder's work is not lost by a fault of the database, nor is the lease.
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
    let chunks = world.assert_exact("source").await;
    assert_eq!(world.repeated(&chunks), [].into());
    let faults: i64 = sqlx::query_scalar("SELECT last_value FROM public.faults")
        .fetch_one(pool)
        .await
        .unwrap();
    assert!(faults > 2, "{faults}");
}

#[tokio::test]
async fn an_outage_after_the_first_batch_keeps_it_and_the_second_lease_does_the_rest() {
    let world = World::start(&[QUICK]).await;
    let (began, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    world.embedder.rule(move |texts| {
        let second = texts.iter().any(|text| text.contains("item 002"));
        // That call, and the probe that follows.
        let is_on = if texts == ["probe"] {
            began.load(Ordering::Relaxed) && !ended.swap(true, Ordering::Relaxed)
        } else {
            second && !began.swap(true, Ordering::Relaxed)
        };
        is_on.then(|| Rude::Status(401, None, "who are you".to_owned()))
    });
    let put = world.put_items("source", items(6)).await;
    let job_id = put.jobs[0].job_id;
    // The first batch is embedded when the second fails.
    let _worker = worker(&world, &[("WEIR_BATCH_SIZE", "2"), ONE_CALL]);
    let job = world.succeeded(job_id).await;
    assert!(job.epoch >= 2 && job.attempt == 0, "{job:?}");
    let history = world.history(job_id).await;
    let back = history.iter().rfind(|was| was.state == "queued").unwrap();
    assert_eq!((back.attempt, back.chunks_done), (0, 2), "{back:?}");
    assert_eq!(world.assert_exact("source").await.len(), 6);
    let answered = world.embedder.answered();
    for id in 0..6 {
        assert_eq!(answered[&format!("the text of item {id:03}")], 1);
    }
}

#[tokio::test]
async fn upserts_add_up_and_an_empty_one_changes_nothing() {
    let weir = Weir::start().await;
    weir.put("source", &["a", "bb", "ccc"]).await;
    let lease = weir.claim().await;
    let chunks = weir.batch(&lease).await;
    let write = async |chunks: Vec<_>| {
        let answer = weir.worker().upsert_batch(upsert(&lease, chunks)).await;
        answer.unwrap().into_inner().done
    };
    assert_eq!(write(Vec::new()).await, 0);
    assert_eq!(weir.rows("embeddings").await, 0);
    assert_eq!(write(vec![embedded(&chunks[0], &[1.0])]).await, 1);
    let both = vec![embedded(&chunks[0], &[1.0]), embedded(&chunks[1], &[2.0])];
    assert_eq!(write(both).await, 2);
    assert_eq!(write(Vec::new()).await, 2);
    assert_eq!(weir.rows("embeddings").await, 2);
}

#[tokio::test]
async fn the_vector_of_a_changed_text_replaces_the_old_one() {
    let weir = Weir::start().await;
    let vectors = async || -> Vec<pgvector::Vector> {
        let query = sqlx::query_scalar("SELECT embedding FROM weir.embeddings");
        query.fetch_all(weir.database.pool()).await.unwrap()
    };
    for (text, vector) in [("old", [1.0, 0.0]), ("new", [0.0, 1.0])] {
        weir.put("source", &[text]).await;
        let lease = weir.claim().await;
        let chunks = weir.batch(&lease).await;
        let request = upsert(&lease, vec![embedded(&chunks[0], &vector)]);
        weir.worker().upsert_batch(request).await.unwrap();
        assert_eq!(vectors().await, [vector.to_vec().into()]);
        let request = CompleteJobRequest {
            job_id: lease.job_id,
            epoch: lease.epoch,
        };
        weir.worker().complete_job(request).await.unwrap();
    }
}

#[tokio::test]
async fn a_deleted_source_ends_its_job_at_once_and_for_good() {
    let world = World::start(&[QUICK]).await;
    let worker = worker(&world, &[("WEIR_BATCH_SIZE", "2")]);
    worker.process.wait_for_event("The embedder answers.").await;
    world.embedder.close_gate();
    let put = world.put_items("source", items(6)).await;
    let job_id = put.jobs[0].job_id;
    world.embedder.calls_started(2).await;
    let request = DeleteSourceRequest {
        name: "source".into(),
        ..DeleteSourceRequest::default()
    };
    world.sources().await.delete_source(request).await.unwrap();
    let job = world.job(job_id).await;
    assert_eq!(job.state(), JobState::Cancelled);
    assert!(job.last_error.contains("deleted"), "{job:?}");
    // The call in the embedder is given up, not waited for.
    let dropped = worker
        .process
        .wait_for_event("The lease ended; job dropped.")
        .await;
    assert!(dropped.to_string().contains("deleted"), "{dropped}");
    world.embedder.open_gate();
    let next = world.put_items("next", items(1)).await;
    world.succeeded(next.jobs[0].job_id).await;
    let history = world.history(job_id).await;
    let states: Vec<_> = history.iter().map(|was| was.state.as_str()).collect();
    assert_eq!(
        states.iter().filter(|state| **state == "queued").count(),
        1,
        "{states:?}"
    );
    assert!(history.iter().all(|was| was.attempt == 0), "{history:?}");
    assert_eq!(world.embedder.received()["the text of item 001"], 1);
}

#[tokio::test]
async fn a_write_for_a_deleted_source_is_refused_for_good() {
    let weir = Weir::start().await;
    weir.put("source", &["a"]).await;
    let lease = weir.claim().await;
    let chunks = weir.batch(&lease).await;
    let request = DeleteSourceRequest {
        name: "source".into(),
        ..DeleteSourceRequest::default()
    };
    weir.sources().delete_source(request).await.unwrap();
    let request = upsert(&lease, vec![embedded(&chunks[0], &[1.0])]);
    let status = weir.worker().upsert_batch(request).await.unwrap_err();
    assert_status(&status, Code::Aborted, "lease lost");
    assert_eq!(weir.job(lease.job_id).await.state(), JobState::Cancelled);
    for table in ["embeddings", "chunks", "items", "sources"] {
        assert_eq!(weir.rows(table).await, 0, "{table}");
    }
}
