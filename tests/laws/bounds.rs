//! Reads are bounded.

use std::collections::BTreeSet;

use futures::future::join_all;
use weir_proto::v1::{
    self, Heartbeat, ListJobsRequest, ListSourcesRequest,
    stream_batches_request::Message as FromWorker,
};
use weir_tests::{
    clients::{Weir, item, put_items, until},
    session::Session,
};

use crate::words::{number, set_leases};

#[tokio::test]
async fn law_12_lists_page_by_key_while_others_write() {
    let weir = Weir::start().await;
    let put = async |name: String| {
        let request = put_items(&name, vec![item("a", "text")]);
        weir.sources().put_source(request).await.unwrap();
    };
    join_all((0..60).map(|id| put(format!("source-{id:02}")))).await;
    let mut sources: Vec<String> = Vec::new();
    let mut request = ListSourcesRequest {
        page_size: 25,
        ..ListSourcesRequest::default()
    };
    loop {
        let page = weir.sources().list_sources(request.clone()).await.unwrap();
        let page = page.into_inner();
        assert!(page.sources.len() <= 25);
        let names = page
            .sources
            .into_iter()
            .map(|listed| listed.source.unwrap().name);
        sources.extend(names);
        // What comes in on a page that was read already moves no other.
        put(format!("source-00-{}", sources.len())).await;
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert!(sources.is_sorted());
    assert_eq!(sources.len(), 60, "{sources:?}");

    let mut jobs = BTreeSet::new();
    let mut request = ListJobsRequest {
        page_size: 25,
        ..ListJobsRequest::default()
    };
    let all = weir.rows("jobs").await;
    loop {
        let page = weir.jobs().list_jobs(request.clone()).await.unwrap();
        let page = page.into_inner();
        assert!(page.jobs.len() <= 25);
        assert!(
            page.jobs.iter().all(|job| jobs.insert(job.job_id)),
            "a job came twice"
        );
        put(format!("late-{}", jobs.len())).await;
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(jobs.len() as i64, all);
}

#[tokio::test]
async fn law_12_a_worker_that_answers_nothing_is_sent_no_more_than_its_credit() {
    let settings = [("WEIR_MAX_BATCH_SIZE", "50"), ("WEIR_ORPHAN_GRACE", "1h")];
    let weir = Weir::with(&settings).await;
    let texts: Vec<String> = (0..300).map(|id| format!("text {id}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    weir.put("large", &texts).await;
    let lease = weir.claim().await;
    assert_eq!(lease.chunks_pending, 300);
    // Asked for all of it, it gives a batch.
    let request = v1::GetBatchRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        batch_size: 10_000,
    };
    let chunks = weir
        .worker()
        .get_batch(request)
        .await
        .unwrap()
        .into_inner()
        .chunks;
    assert_eq!(chunks.len(), 50);

    // On a session it is bounded as well, whatever the worker says.
    weir.put("larger", &texts).await;
    let mut session = Session::open(&weir, 10_000).await;
    session.grant(105);
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 105 {
        sizes.push(session.part().await.chunks.len());
    }
    assert!(sizes.iter().all(|size| *size <= 50), "{sizes:?}");
    for _ in 0..3 {
        // Once it has renewed the lease the coordinator has had its chance.
        set_leases(weir.database.pool(), "1 min").await;
        session.send(FromWorker::Heartbeat(Heartbeat {}));
        let renewed = "SELECT count(*) FROM weir.jobs
                       WHERE session IS NOT NULL AND lease_expires_at > now() + interval '5 min'";
        until(async || number(weir.database.pool(), renewed).await == 1).await;
        assert!(session.is_quiet(), "more came than there was credit for");
    }
}
