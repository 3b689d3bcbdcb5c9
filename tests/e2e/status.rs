//! The status API over the wire: what operators and other services ask.

use prost_types::FieldMask;
use tonic::Code;
use weir_proto::v1::{self, AttemptOutcome, BadgeState, ChunkState, JobState, Verdict};
use weir_tests::clients::{Weir, assert_invalid};

/// Fails the next job with this reason.
async fn fail(weir: &Weir, reason: &str) -> i64 {
    let lease = weir.claim().await;
    let request = v1::FailJobRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        reason: reason.to_owned(),
    };
    weir.worker().fail_job(request).await.unwrap();
    lease.job_id
}

async fn status(weir: &Weir) -> v1::GetStatusResponse {
    let answer = weir
        .jobs()
        .get_status(v1::GetStatusRequest::default())
        .await;
    answer.unwrap().into_inner()
}

async fn failures(weir: &Weir) -> Vec<v1::Failure> {
    let answer = weir
        .jobs()
        .list_failures(v1::ListFailuresRequest::default())
        .await;
    answer.unwrap().into_inner().failures
}

#[tokio::test]
async fn a_failure_is_seen_everywhere_and_in_the_same_words() {
    let trace_url = "http://127.0.0.1:16686/trace/{trace_id}";
    let weir = Weir::with(&[("WEIR_BACKOFF_BASE", "15m"), ("WEIR_TRACE_URL", trace_url)]).await;
    assert_eq!(
        status(&weir).await.total.unwrap().verdict(),
        Verdict::Healthy
    );
    weir.put("shop", &["one"]).await;
    let job_id = fail(&weir, "batch 7 broke").await;

    let source = weir.source("shop").await.unwrap();
    let badge = source.badge.unwrap();
    assert_eq!(
        (badge.state(), badge.text.as_str()),
        (BadgeState::Retrying, "retrying (1 try)")
    );
    assert_eq!(
        (badge.last_error.as_str(), badge.attempt, badge.degraded),
        ("batch 7 broke", 1, true)
    );
    assert!(badge.next_run_time.is_some());

    let now = status(&weir).await;
    let total = now.total.unwrap();
    assert_eq!(
        (total.verdict(), total.reasons.as_slice()),
        (Verdict::Degraded, &["1 job is retried".to_owned()][..])
    );
    assert_eq!(
        (
            total.sources,
            total.chunks,
            total.jobs_delayed,
            total.jobs_retrying
        ),
        (1, 1, 1, 1)
    );
    assert_eq!(now.namespaces.len(), 1);
    assert_eq!(now.namespaces[0].namespace, "default");
    assert_eq!(now.trace_url_template, trace_url);
    assert!(!now.version.is_empty());

    let [failure] = failures(&weir).await.try_into().unwrap();
    assert_eq!(
        (failure.cause.as_str(), failure.last_error.as_str()),
        ("batch … broke", "batch 7 broke")
    );
    assert_eq!(
        (
            failure.occurrences,
            failure.jobs_affected,
            failure.last_job_id
        ),
        (1, 1, job_id)
    );
    let job = weir
        .jobs()
        .get_job(v1::GetJobRequest { job_id })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(job.job.unwrap().failure_id, failure.failure_id);
    let [attempt] = job.attempts.try_into().unwrap();
    assert_eq!(
        (attempt.outcome(), attempt.worker_id.as_str()),
        (AttemptOutcome::Failed, "by-hand")
    );
    assert!(attempt.charged);

    let dismiss = v1::DismissFailureRequest {
        failure_id: failure.failure_id,
    };
    let dismissed = weir
        .jobs()
        .dismiss_failure(dismiss)
        .await
        .unwrap()
        .into_inner();
    assert!(dismissed.failure.unwrap().dismiss_time.is_some());
    assert!(failures(&weir).await.is_empty());
    let unknown = v1::DismissFailureRequest { failure_id: 999 };
    let unknown = weir.jobs().dismiss_failure(unknown).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let activity = weir
        .jobs()
        .get_activity(v1::GetActivityRequest { minutes: 5 })
        .await;
    assert_eq!(activity.unwrap().into_inner().interval_seconds, 10);
}

#[tokio::test]
async fn an_embedder_that_is_down_degrades_the_verdict_and_a_drain_does_not() {
    let weir = Weir::start().await;
    weir.put("shop", &["one"]).await;
    for (cause, verdict, error) in [
        (v1::ReleaseCause::Drain, Verdict::Indexing, ""),
        (v1::ReleaseCause::EmbedderDown, Verdict::Degraded, "503"),
    ] {
        let lease = weir.claim().await;
        let release = v1::ReleaseJobRequest {
            job_id: lease.job_id,
            epoch: lease.epoch,
            reason: "503".to_owned(),
            cause: cause.into(),
        };
        weir.worker().release_job(release).await.unwrap();
        assert_eq!(status(&weir).await.total.unwrap().verdict(), verdict);
        let badge = weir.source("shop").await.unwrap().badge.unwrap();
        assert_eq!(
            (badge.text.as_str(), badge.last_error.as_str()),
            ("queued", error)
        );
    }
    assert_eq!(failures(&weir).await.len(), 1);
}

#[tokio::test]
async fn lists_give_what_is_asked_for_and_page_both_ways() {
    let weir = Weir::start().await;
    for name in ["shop-a", "shop-b", "depot"] {
        weir.put(name, &["one", "two"]).await;
    }
    let failed = fail(&weir, "broke").await;
    let jobs = async |request: v1::ListJobsRequest| {
        let page = weir.jobs().list_jobs(request).await.unwrap().into_inner();
        let sources = page.jobs.iter().map(|job| job.source.clone());
        (sources.collect::<Vec<_>>().join(" "), page)
    };
    let request = |source_prefix: &str, page_token: &str| v1::ListJobsRequest {
        source_prefix: source_prefix.to_owned(),
        page_token: page_token.to_owned(),
        page_size: 2,
        ..v1::ListJobsRequest::default()
    };
    let (newest, page) = jobs(request("", "")).await;
    assert_eq!(
        (newest.as_str(), page.previous_page_token.as_str()),
        ("depot shop-b", "")
    );
    let (oldest, page) = jobs(request("", &page.next_page_token)).await;
    assert_eq!(
        (oldest.as_str(), page.next_page_token.as_str()),
        ("shop-a", "")
    );
    let (back, _) = jobs(request("", &page.previous_page_token)).await;
    assert_eq!(back, newest);
    assert_eq!(jobs(request("shop", "")).await.0, "shop-b shop-a");
    let of_failure = v1::ListJobsRequest {
        failure_id: failures(&weir).await[0].failure_id,
        read_mask: Some(FieldMask {
            paths: vec!["job_id".to_owned(), "state".to_owned()],
        }),
        ..v1::ListJobsRequest::default()
    };
    let (_, page) = jobs(of_failure).await;
    let wanted = v1::Job {
        job_id: failed,
        state: JobState::Queued.into(),
        ..v1::Job::default()
    };
    assert_eq!(page.jobs, [wanted]);

    let sources = v1::ListSourcesRequest {
        name_prefix: "shop".to_owned(),
        unsettled_only: true,
        read_mask: Some(FieldMask {
            paths: vec!["source.name".to_owned()],
        }),
        ..v1::ListSourcesRequest::default()
    };
    let page = weir
        .sources()
        .list_sources(sources)
        .await
        .unwrap()
        .into_inner();
    let names: Vec<_> = page
        .sources
        .iter()
        .map(|it| it.source.as_ref().unwrap())
        .collect();
    assert!(
        names
            .iter()
            .all(|source| source.chunks == 0 && source.badge.is_none())
    );
    let names: Vec<_> = names.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["shop-a", "shop-b"]);
}

#[tokio::test]
async fn chunks_are_listed_a_page_at_a_time() {
    let weir = Weir::start().await;
    weir.put("depot", &["one", "two"]).await;
    let chunks = v1::ListChunksRequest {
        name: "depot".to_owned(),
        state: ChunkState::Pending.into(),
        page_size: 1,
        ..v1::ListChunksRequest::default()
    };
    let page = weir
        .sources()
        .list_chunks(chunks.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (page.chunks[0].item_id.as_str(), page.chunks[0].chars),
        ("0", 3)
    );
    let rest = v1::ListChunksRequest {
        page_token: page.next_page_token,
        page_size: 5,
        ..chunks
    };
    let page = weir.sources().list_chunks(rest).await.unwrap().into_inner();
    assert_eq!(
        (page.chunks.len(), page.chunks[0].item_id.as_str()),
        (1, "1")
    );
}

#[tokio::test]
async fn nonsense_is_refused_by_field() {
    let weir = Weir::start().await;
    weir.put("shop", &["one"]).await;
    let none = v1::ListJobsRequest::default;
    for (request, field) in [
        (
            v1::ListJobsRequest {
                source: "a".to_owned(),
                source_prefix: "a".to_owned(),
                ..none()
            },
            "source_prefix",
        ),
        (
            v1::ListJobsRequest {
                triggers: vec![9],
                ..none()
            },
            "triggers[0]",
        ),
        (
            v1::ListJobsRequest {
                failure_id: -1,
                ..none()
            },
            "failure_id",
        ),
        (
            v1::ListJobsRequest {
                read_mask: Some(FieldMask {
                    paths: vec!["secret".to_owned()],
                }),
                ..none()
            },
            "read_mask",
        ),
    ] {
        let status = weir.jobs().list_jobs(request).await.unwrap_err();
        assert_invalid(&status, field, "");
    }
    let chunks = v1::ListChunksRequest {
        name: "shop".to_owned(),
        ..v1::ListChunksRequest::default()
    };
    let status = weir.sources().list_chunks(chunks).await.unwrap_err();
    assert_invalid(&status, "state", "must be PENDING");
    let activity = v1::GetActivityRequest { minutes: 61 };
    let status = weir.jobs().get_activity(activity).await.unwrap_err();
    assert_invalid(&status, "minutes", "1 to 60");
    let release = v1::ReleaseJobRequest {
        job_id: 1,
        epoch: 1,
        reason: "x".to_owned(),
        cause: 7,
    };
    let status = weir.worker().release_job(release).await.unwrap_err();
    assert_invalid(&status, "cause", "not a cause");
}
