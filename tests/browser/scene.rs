//! A coordinator with a source in every state, made by hand.

use weir_proto::v1::{
    CancelJobRequest, CompleteJobRequest, FailJobRequest, Lease, PutSourceResponse, RejectedChunk,
    UpsertBatchRequest,
};
use weir_tests::clients::{Weir, embedded, item, put_items, upsert};

/// A coordinator whose jobs fail at the third try, and wait for it as good as
/// forever: how long is drawn, from nothing up to this.
pub(crate) const PATIENT: [(&str, &str); 4] = [
    ("WEIR_MAX_ATTEMPTS", "3"),
    ("WEIR_BACKOFF_BASE", "360days"),
    ("WEIR_BACKOFF_CAP", "360days"),
    ("WEIR_TRACE_URL", "http://127.0.0.1:16686/trace/{trace_id}"),
];

/// Puts as many items in a source of a namespace.
pub(crate) async fn put(
    weir: &Weir,
    namespace: &str,
    name: &str,
    items: usize,
) -> PutSourceResponse {
    let items = (0..items).map(|at| {
        item(
            &format!("item-{at:03}"),
            &format!("{name}: the text of item {at}"),
        )
    });
    let mut request = put_items(name, items.collect());
    namespace.clone_into(&mut request.namespace);
    weir.sources()
        .put_source(request)
        .await
        .unwrap()
        .into_inner()
}

/// Has a worker embed the first chunks of a job that it holds, as many as asked
/// for.
pub(crate) async fn embed(weir: &Weir, lease: &Lease, chunks: usize) {
    let batch = weir.batch(lease).await;
    let done = batch
        .iter()
        .take(chunks)
        .map(|chunk| embedded(chunk, &[0.5; 4]));
    let request = upsert(lease, done.collect());
    weir.worker().upsert_batch(request).await.unwrap();
}

/// Has a worker say that nothing is left to do of a job.
pub(crate) async fn complete(weir: &Weir, lease: &Lease) {
    let request = CompleteJobRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
    };
    weir.worker().complete_job(request).await.unwrap();
}

/// Has a worker embed all chunks of a job but the last, which is
/// rejected, and end the job.
pub(crate) async fn reject_last(weir: &Weir, lease: &Lease, reason: &str) {
    let batch = weir.batch(lease).await;
    let (last, others) = batch.split_last().unwrap();
    let rejected = RejectedChunk {
        item_id: last.item_id.clone(),
        chunk_index: last.chunk_index,
        text_hash: last.text_hash.clone(),
        reason: reason.to_owned(),
    };
    let request = UpsertBatchRequest {
        rejected: vec![rejected],
        ..upsert(
            lease,
            others
                .iter()
                .map(|chunk| embedded(chunk, &[0.5; 4]))
                .collect(),
        )
    };
    weir.worker().upsert_batch(request).await.unwrap();
    complete(weir, lease).await;
}

/// Has a worker hand a job back with a failure.
pub(crate) async fn fail(weir: &Weir, lease: &Lease, reason: &str) {
    let request = FailJobRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        reason: reason.to_owned(),
    };
    weir.worker().fail_job(request).await.unwrap();
}

/// Has the time of a job come.
pub(crate) async fn due(weir: &Weir, job_id: i64) {
    sqlx::query("UPDATE weir.jobs SET run_at = now() WHERE id = $1")
        .bind(job_id)
        .execute(weir.database.pool())
        .await
        .unwrap();
}

pub(crate) async fn cancel(weir: &Weir, job_id: i64) {
    weir.jobs()
        .cancel_job(CancelJobRequest { job_id })
        .await
        .unwrap();
}

/// Has a source in each state, in three namespaces, and an hour of activity.
pub(crate) async fn every_state(weir: &Weir) {
    put(weir, "default", "blank", 0).await;
    put(weir, "default", "catalogue", 120).await;
    let lease = weir.claim().await;
    embed(weir, &lease, 120).await;
    complete(weir, &lease).await;
    put(weir, "default", "handbook", 84).await;
    let lease = weir.claim().await;
    reject_last(
        weir,
        &lease,
        "the embedder refuses it: the input is longer than the context",
    )
    .await;

    let down = "http://ollama:11434/api/embed: connection refused (os error 111)";
    put(weir, "shop", "products", 300).await;
    let lease = weir.claim().await;
    embed(weir, &lease, 130).await;
    fail(weir, &lease, down).await;
    due(weir, lease.job_id).await;
    let lease = weir.claim().await;
    fail(weir, &lease, down).await;
    put(weir, "shop", "reviews", 60).await;
    let stopped = "the embedder answered 500: model runner has unexpectedly stopped";
    for reason in [down, down, stopped] {
        let lease = weir.claim().await;
        fail(weir, &lease, reason).await;
        if reason == down {
            due(weir, lease.job_id).await;
        }
    }
    let put_wiki = put(weir, "wiki", "pages", 40).await;
    cancel(weir, put_wiki.jobs[0].job_id).await;
    put(weir, "default", "logistics", 201).await;
    let lease = weir.claim().await;
    embed(weir, &lease, 77).await;
    put(weir, "shop", "returns", 24).await;
}

/// Notes what an hour of work would have left, and has things happen as far
/// apart as they commonly do.
pub(crate) async fn an_hour(weir: &Weir) {
    for change in [
        "UPDATE weir.jobs SET run_at = now() + interval '4 minutes' WHERE state = 'queued' AND attempt > 0",
        "UPDATE weir.sources SET updated_at = updated_at - id * id * interval '97 seconds', created_at = created_at - id * interval '5 hours'",
        "UPDATE weir.failures SET first_seen_at = first_seen_at - id * interval '19 minutes', last_seen_at = last_seen_at - id * interval '41 seconds'",
    ] {
        sqlx::query(change)
            .execute(weir.database.pool())
            .await
            .unwrap();
    }
    sqlx::query(
        "INSERT INTO weir.samples
         SELECT to_timestamp(floor(extract(epoch FROM now()) / 10) * 10 - 10 * n), 'by-hand',
                CASE WHEN n BETWEEN 60 AND 95 THEN 0 ELSE 220 + 120 * sin(n / 23.0) + 40 * sin(n / 3.1) END,
                0, 418 + 450 * (1 - cos(n / 40.0)) + CASE WHEN n BETWEEN 20 AND 95 THEN 12 * (n - 20) ELSE 0 END,
                CASE WHEN n BETWEEN 60 AND 95 THEN (95 - n) * 10 ELSE 3 + 3 * sin(n / 7.0) END
         FROM generate_series(-1, 350) AS n ON CONFLICT DO NOTHING",
    )
    .execute(weir.database.pool())
    .await
    .unwrap();
}
