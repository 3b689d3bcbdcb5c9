//! One streamed message, one renewal, a result in the transaction of its
//! vectors.

use weir_proto::v1::{
    Heartbeat, stream_batches_request::Message as FromWorker,
    stream_batches_response::Message as ToWorker,
};
use weir_tests::clients::{Weir, batch, next, open, result, send, stream, until};

use crate::words::{number, seconds_left, set_leases, vectors};

#[tokio::test]
async fn law_04_every_message_of_a_stream_renews_the_lease() {
    let weir = Weir::start().await;
    let pool = weir.database.pool();
    weir.put("source", &["a", "bb", "ccc"]).await;
    let lease = weir.claim().await;
    let is_renewed = async || seconds_left(pool).await > 300;

    set_leases(pool, "1 min").await;
    let (to, mut from) = stream(&weir, open(&lease)).await;
    let first = batch(&mut from).await;
    assert!(is_renewed().await, "by opening it");

    set_leases(pool, "1 min").await;
    send(&to, FromWorker::Heartbeat(Heartbeat {})).await;
    until(is_renewed).await;

    set_leases(pool, "1 min").await;
    send(&to, result(first.seq, vectors(&first.chunks))).await;
    let second = batch(&mut from).await;
    let ToWorker::Ack(ack) = next(&mut from).await else {
        panic!("an acknowledgement was due");
    };
    assert_eq!((ack.seq, ack.done), (first.seq, 2));
    assert!(is_renewed().await, "by a result");
    // One transaction wrote both.
    let together = "SELECT count(*) FROM weir.jobs j JOIN weir.embeddings e ON e.xmin = j.xmin";
    assert_eq!(number(pool, together).await, 2);
    assert_eq!(second.chunks.len(), 1);
}
