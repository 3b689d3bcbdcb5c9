//! Postgres is the only state: any replica serves any call, and a worker holds
//! nothing that matters.

use weir_proto::v1::{self, JobState, worker_service_client::WorkerServiceClient};
use weir_tests::{
    clients::{Weir, claim_request, upsert},
    cluster::Coordinator,
};

use crate::words::vectors;

#[tokio::test]
async fn law_01_postgres_is_the_only_state() {
    let mut weir = Weir::start().await;
    let url = weir.database.url().to_owned();
    let mut other = Coordinator::spawn(&url, &[]).await;
    let mut there = WorkerServiceClient::new(other.connect().await);
    let put = weir.put("source", &["a", "bb", "ccc", "dddd"]).await;
    let job_id = put.jobs[0].job_id;

    // Put on one replica, claimed on the other, and worked on at both.
    let claimed = there.claim_job(claim_request()).await.unwrap();
    let lease = claimed.into_inner().leases.remove(0);
    assert_eq!(lease.job_id, job_id);
    let chunks = weir.batch(&lease).await;
    let first = upsert(&lease, vectors(&chunks[..1]));
    weir.worker().upsert_batch(first).await.unwrap();
    let second = upsert(&lease, vectors(&chunks[1..2]));
    let answer = there.upsert_batch(second).await.unwrap().into_inner();
    assert_eq!((answer.done, answer.total), (2, 4));

    // Nobody who ever saw the lease is left. It holds all the same.
    weir.coordinator.process.sigkill().await;
    other.process.sigkill().await;
    weir.coordinator = Coordinator::spawn(&url, &[]).await;
    weir.channel = weir.coordinator.connect().await;
    assert_eq!(weir.batch(&lease).await, chunks[2..]);
    let rest = upsert(&lease, vectors(&chunks[2..]));
    weir.worker().upsert_batch(rest).await.unwrap();
    let complete = v1::CompleteJobRequest {
        job_id,
        epoch: lease.epoch,
    };
    let answer = weir.worker().complete_job(complete).await.unwrap();
    assert_eq!(answer.into_inner().chunks_done, 4);
    let job = weir.job(job_id).await;
    assert_eq!(job.state(), JobState::Succeeded);
    assert_eq!((job.epoch, job.attempt), (1, 0), "{job:?}");
}
