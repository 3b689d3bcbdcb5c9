//! One streamed message, one renewal: a result in the transaction of its vectors, a
//! heartbeat for all leases of its session.

use std::collections::BTreeSet;

use weir_proto::v1::{self, Heartbeat, stream_batches_request::Message as FromWorker};
use weir_tests::{
    clients::{Weir, until},
    session::{Session, embeds, opening, result},
};

use crate::words::{number, set_leases};

/// Leases that last for more than five minutes, and those that do not.
async fn renewed(weir: &Weir) -> (i64, i64) {
    let of = async |rest: &str| {
        let sql = format!(
            "SELECT count(*) FROM weir.jobs
             WHERE state = 'running' AND (lease_expires_at > now() + interval '5 min') = {rest}"
        );
        number(weir.database.pool(), &sql).await
    };
    (of("true").await, of("false").await)
}

#[tokio::test]
async fn law_04_every_message_of_a_session_renews_leases() {
    // So long that the only heartbeats are those that the test sends.
    let weir = Weir::with(&[("WEIR_ORPHAN_GRACE", "1h")]).await;
    let pool = weir.database.pool();
    weir.put("first", &["a", "bb"]).await;
    weir.put("second", &["c", "dd"]).await;

    let mut session = Session::open(&weir, 1).await;
    session.grant(4);
    let mut parts: Vec<v1::BatchPart> = Vec::new();
    while parts.len() < 4 {
        parts.push(session.part().await);
    }
    assert_eq!(renewed(&weir).await, (2, 0), "by being given them");

    set_leases(pool, "1 min").await;
    session.send(FromWorker::Heartbeat(Heartbeat {}));
    until(async || renewed(&weir).await == (2, 0)).await;

    set_leases(pool, "1 min").await;
    let first = parts.remove(0);
    session.embed_and_wait(&first).await;
    assert_eq!(renewed(&weir).await, (1, 1), "by a result, and its own");
    // One transaction wrote both.
    let together = "SELECT count(*) FROM weir.jobs j JOIN weir.embeddings e ON e.xmin = j.xmin";
    assert_eq!(number(pool, together).await, 1);

    set_leases(pool, "1 min").await;
    let held = session.break_off();
    assert_eq!(held.len(), 3);
    let mut again = Session::resume(&weir.channel, 1, &held).await;
    // By coming back.
    until(async || renewed(&weir).await == (2, 0)).await;
    again.send(result(held.iter().map(embeds)));
    for job_id in held.iter().map(|part| part.job_id).collect::<BTreeSet<_>>() {
        again.finished(job_id).await;
    }
}

#[tokio::test]
async fn law_04_a_heartbeat_renews_all_leases_in_one_statement() {
    const JOBS: usize = 40;
    let weir = Weir::with(&[("WEIR_ORPHAN_GRACE", "1h")]).await;
    let pool = weir.database.pool();
    for id in 0..JOBS {
        weir.put(&format!("source-{id}"), &["a"]).await;
    }
    let mut session = Session::open_as(&weir.channel, None, opening(8)).await;
    session.grant(JOBS as i32);
    let mut parts = 0;
    while parts < JOBS {
        parts += session.batch().await.parts.len();
    }
    set_leases(pool, "1 min").await;
    session.send(FromWorker::Heartbeat(Heartbeat {}));
    until(async || renewed(&weir).await == (JOBS as i64, 0)).await;
    let writers = "SELECT count(DISTINCT xmin::text) FROM weir.jobs WHERE state = 'running'";
    assert_eq!(number(pool, writers).await, 1);
}
