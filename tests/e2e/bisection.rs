//! Batches that are halved because a worker fell silent over them.

use weir_proto::v1;
use weir_tests::{
    embedder::{Rude, expected_vector},
    session::{Session, Told, texts},
};

use crate::{
    clients::{Weir, embedded, until, upsert},
    world::World,
};

const TEXTS: [&str; 9] = ["1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// Has the first five of the nine chunks of the one job suspected.
async fn suspect(weir: &Weir) {
    sqlx::query("UPDATE weir.jobs SET suspects = 5")
        .execute(weir.database.pool())
        .await
        .unwrap();
}

/// The next part, when it follows an ack with none before it.
async fn acked(session: &mut Session) -> v1::BatchPart {
    match session.next().await {
        Told::Ack(_) => session.part().await,
        other => panic!("more than one part was outstanding: {other:?}"),
    }
}

#[tokio::test]
async fn suspected_chunks_come_by_halves_one_part_at_a_time_and_then_all_is_as_before() {
    let weir = Weir::start().await;
    let job_id = weir.put("source", &TEXTS).await.jobs[0].job_id;
    suspect(&weir).await;
    let mut session = Session::open(&weir, 4).await;
    session.grant(20);
    let mut handed_out = session.part().await;
    for half in [&["1", "2", "3"][..], &["4"], &["5"]] {
        assert_eq!(texts(&handed_out), half);
        session.embed(&handed_out);
        handed_out = acked(&mut session).await;
    }
    // All suspects are cleared: whole batches.
    assert_eq!(texts(&handed_out), ["6", "7", "8", "9"]);
    session.embed(&handed_out);
    assert!(matches!(session.next().await, Told::Ack(_)));
    assert_eq!(session.finished(job_id).await.chunks_done, 9);
}

#[tokio::test]
async fn a_suspected_text_is_in_a_batch_with_nobody_elses() {
    let weir = Weir::start().await;
    let suspected = weir.put("source", &TEXTS).await.jobs[0].job_id;
    suspect(&weir).await;
    weir.put("other", &["a", "b", "c"]).await;
    let mut session = Session::open(&weir, 4).await;
    session.grant(20);
    let mut left = 12;
    while left > 0 {
        let parts = session.batch().await.parts;
        let has_suspects = |part: &v1::BatchPart| {
            part.job_id == suspected && texts(part).iter().any(|text| *text <= "5")
        };
        if parts.iter().any(has_suspects) {
            assert_eq!(parts.len(), 1, "{parts:?}");
        }
        for part in &parts {
            left -= part.chunks.len();
            session.embed_and_wait(part).await;
        }
    }
    session.finished(suspected).await;
}

#[tokio::test]
async fn without_suspicion_whole_batches_come_one_after_the_other() {
    let weir = Weir::start().await;
    weir.put("source", &TEXTS).await;
    let mut session = Session::open(&weir, 4).await;
    session.grant(8);
    assert_eq!(texts(&session.part().await), ["1", "2", "3", "4"]);
    assert_eq!(texts(&session.part().await), ["5", "6", "7", "8"]);
}

#[tokio::test]
async fn unary_workers_get_halves_as_well() {
    let weir = Weir::start().await;
    weir.put("source", &TEXTS).await;
    let lease = weir.claim().await;
    suspect(&weir).await;
    let chunks = weir.batch(&lease).await;
    assert_eq!(chunks.len(), 3);
    let vector = |chunk| embedded(chunk, &expected_vector(&chunk.text));
    let request = upsert(&lease, chunks.iter().map(vector).collect());
    weir.worker().upsert_batch(request).await.unwrap();
    assert_eq!(weir.batch(&lease).await.len(), 1);
}

/// Settings under which a search takes moments.
const QUICK: [(&str, &str); 5] = [
    ("WEIR_ORPHAN_GRACE", "1s"),
    ("WEIR_POLL_INTERVAL", "50ms"),
    ("WEIR_BACKOFF_BASE", "10ms"),
    ("WEIR_BACKOFF_CAP", "10ms"),
    ("WEIR_MAX_ATTEMPTS", "2"),
];

#[tokio::test]
async fn a_text_that_kills_every_worker_is_rejected_and_its_neighbours_are_embedded() {
    let world = World::start(&QUICK).await;
    let poisoned = |texts: &[String]| texts.iter().any(|text| text == "poison");
    // The worker never gets past it: the test kills it there.
    world
        .embedder
        .rule(move |texts| poisoned(texts).then_some(Rude::Hang));
    let texts = ["one", "two", "three", "poison", "eleven", "fourteen"];
    let items = texts.map(|text| (text.to_owned(), text.to_owned()));
    let job_id = world.put_items("source", items).await.jobs[0].job_id;

    let mut kills = 0;
    loop {
        let mut worker = world.worker("4");
        let seen = world.embedder.calls().len();
        let killing = async || {
            let calls = world.embedder.calls();
            calls[seen..].iter().any(|call| poisoned(&call.texts))
        };
        let ended = "SELECT finished_at IS NOT NULL FROM weir.jobs";
        let ended = async || {
            sqlx::query_scalar(ended)
                .fetch_one(world.database.pool())
                .await
        };
        let ended = async || ended().await.is_ok_and(|ended: bool| ended);
        until(async || killing().await || ended().await).await;
        if ended().await {
            break;
        }
        worker.process.sigkill().await;
        kills += 1;
        assert!(kills < 12, "the search does not end");
    }
    // Four, two, one, and one again before the attempts are used up.
    assert!(kills >= 3, "{kills}");
    let job = world.succeeded(job_id).await;
    assert_eq!((job.chunks_done, job.chunks_rejected), (5, 1), "{job:?}");
    let chunks = world.chunks("source").await;
    for chunk in &chunks {
        assert_eq!(chunk.current.is_some(), chunk.text != "poison", "{chunk:?}");
    }
    let reason: String = sqlx::query_scalar("SELECT reason FROM weir.rejections")
        .fetch_one(world.database.pool())
        .await
        .unwrap();
    assert!(reason.contains("this text alone"), "{reason}");
}
