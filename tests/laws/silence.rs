//! Nothing stays silent: what waits after a failure says how many tries, why,
//! and when it runs next.

use weir_proto::v1::{FailJobRequest, Job, JobState};
use weir_tests::{
    clients::{Weir, until},
    cluster::weir as command,
};

use crate::words::{run, set_leases};

/// Asserts that a job says all of it: to programs, and to people.
async fn assert_told(weir: &Weir, job: &Job, why: &str) {
    assert_eq!((job.state(), job.attempt), (JobState::Queued, 1), "{job:?}");
    assert_eq!(job.max_attempts, 5);
    assert!(job.last_error.contains(why), "{job:?}");
    let (next, began) = (job.run_time.unwrap(), job.start_time.unwrap());
    assert!(next.seconds > began.seconds, "{job:?}");
    let output = command(&weir.coordinator.url(), &["jobs"]).await;
    let output = String::from_utf8(output.stdout).unwrap();
    let told = output
        .lines()
        .find(|line| line.contains(&job.job_id.to_string()));
    let told = told.unwrap_or_else(|| panic!("job {} is not in {output}", job.job_id));
    for part in ["retrying (1 try)", why, "next run in"] {
        assert!(told.contains(part), "{part:?} should be in {told:?}");
    }
}

#[tokio::test]
async fn law_11_what_waits_after_a_failure_says_so() {
    let settings = [
        ("WEIR_BACKOFF_BASE", "100h"),
        ("WEIR_BACKOFF_CAP", "100h"),
        ("WEIR_POLL_INTERVAL", "50ms"),
    ];
    let weir = Weir::with(&settings).await;
    let pool = weir.database.pool();

    weir.put("failed", &["one"]).await;
    let lease = weir.claim().await;
    let request = FailJobRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        reason: "the embedder spoke in tongues".to_owned(),
    };
    weir.worker().fail_job(request).await.unwrap();
    let job = weir.job(lease.job_id).await;
    assert_told(&weir, &job, "the embedder spoke in tongues").await;

    let silent = async |source: &str| {
        weir.put(source, &["one"]).await;
        let lease = weir.claim().await;
        // It is heard of once.
        weir.batch(&lease).await;
        lease.job_id
    };
    let waits = async |job_id| {
        until(async || weir.job(job_id).await.state() == JobState::Queued).await;
        weir.job(job_id).await
    };
    let job_id = silent("expired").await;
    set_leases(pool, "0 s").await;
    assert_told(&weir, &waits(job_id).await, "lease expired").await;

    let job_id = silent("stalled").await;
    run(
        pool,
        "UPDATE weir.jobs SET claimed_at = now() - interval '2 h' WHERE state = 'running'",
    )
    .await;
    assert_told(&weir, &waits(job_id).await, "progress deadline").await;
}
