//! `weir retry` and `weir cancel`: one job, or all of a failure or a source.

use std::future::Future;

use clap::Args;
use serde::Serialize;
use tonic::{Code, Status};
use weir_proto::v1::{self, JobState};

use crate::{
    connect::Session,
    failure::{self, Failure},
    jobs,
    output::{self, count},
    printable::printable,
    view,
};

/// Most jobs of a failure that one command steers.
const MAX_JOBS: usize = 100_000;

/// Most jobs that are told by their numbers.
const JOBS_NAMED: usize = 10;

/// What `weir retry` understands.
#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    /// Which jobs.
    #[command(flatten)]
    which: SteerArgs,
    /// Embed all of the job's range anew, whatever its state: for a model that was swapped behind
    /// the same name. The range cannot be searched until that is done.
    #[arg(long, conflicts_with_all = ["failure", "source"])]
    force: bool,
}

/// What `weir cancel` understands.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Which jobs.
    #[command(flatten)]
    which: SteerArgs,
}

/// Which jobs to steer.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SteerArgs {
    /// The jobs, by the numbers that `weir jobs` shows.
    #[arg(value_name = "JOB")]
    jobs: Vec<i64>,
    /// The jobs that this failure last befell, by the number that `weir failures` shows.
    #[arg(long, value_name = "ID")]
    failure: Option<i64>,
    /// The jobs of this source; `weir retry` takes back what was rejected of it, too.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
}

/// What is said besides of a range that is embedded anew in steps.
const GOES_ON: &str = " More of its range follows, step by step.";

/// What became of a wish.
#[derive(Debug, Serialize)]
struct Report {
    /// The jobs that follow from it.
    jobs: Vec<view::Job>,
    /// Those of whose range more is queued in a moment.
    goes_on: Vec<i64>,
    /// Those that it could not be done for.
    refused: Vec<Refusal>,
}

#[derive(Debug, Serialize)]
struct Refusal {
    job_id: i64,
    reason: String,
}

/// Has jobs run again, and tells for each what is queued for it.
pub(crate) async fn retry(session: &Session, args: RetryArgs) -> Result<(), Failure> {
    if let Some(name) = args.which.source {
        return retry_source(session, name).await;
    }
    // A running job, or one that waits for its first try, needs no retry.
    let worth = |job: &v1::Job| match job.state() {
        JobState::Queued => !job.last_error.is_empty(),
        state => matches!(state, JobState::Failed | JobState::Cancelled),
    };
    let chosen = args.which.choose(session, worth).await?;
    let force = args.force;
    let retry = async |job_id| {
        let request = v1::RetryJobRequest { job_id, force };
        let answer = session.jobs().retry_job(request).await?;
        Ok(answer.into_inner())
    };
    steer(session, &chosen, "retry", retry, queued).await
}

/// Has all of a source run again that came to a stop, and tells what is queued.
async fn retry_source(session: &Session, name: String) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        chunks_taken_back: i64,
        jobs: Vec<view::Job>,
    }

    let source = format!("{}/{}", printable(&session.namespace), printable(&name));
    let request = v1::RetrySourceRequest {
        namespace: session.namespace.clone(),
        name,
    };
    let answer = session.jobs().retry_source(request).await?.into_inner();
    if session.json {
        return Ok(output::json(&Answer {
            chunks_taken_back: answer.chunks_taken_back,
            jobs: view::all(&answer.jobs),
        })?);
    }
    Ok(output::line(resumed(&source, &answer))?)
}

/// Cancels jobs, and tells for each what it left.
pub(crate) async fn cancel(session: &Session, args: CancelArgs) -> Result<(), Failure> {
    let worth = |job: &v1::Job| matches!(job.state(), JobState::Queued | JobState::Running);
    let chosen = args.which.choose(session, worth).await?;
    let cancel = async |job_id| {
        let request = v1::CancelJobRequest { job_id };
        let answer = session.jobs().cancel_job(request).await?;
        Ok(v1::RetryJobResponse {
            jobs: answer.into_inner().job.into_iter().collect(),
            goes_on: false,
        })
    };
    let told = |_, jobs: &[v1::Job]| jobs.first().map(cancelled).unwrap_or_default();
    steer(session, &chosen, "cancel", cancel, told).await
}

impl SteerArgs {
    /// The ids of the jobs; of a failure's or a source's, those that there is a
    /// point in.
    async fn choose(
        self,
        session: &Session,
        worth: impl Fn(&v1::Job) -> bool,
    ) -> Result<Vec<i64>, Failure> {
        let jobs = match (self.failure, self.source) {
            (Some(failure_id), _) => {
                let request = v1::ListJobsRequest {
                    failure_id,
                    ..v1::ListJobsRequest::default()
                };
                jobs::list(session, request, MAX_JOBS).await?
            }
            (None, Some(name)) => {
                let request = v1::GetSourceRequest {
                    namespace: session.namespace.clone(),
                    name,
                };
                session
                    .sources()
                    .get_source(request)
                    .await?
                    .into_inner()
                    .jobs
            }
            (None, None) => return Ok(self.jobs),
        };
        Ok(jobs
            .iter()
            .filter(|job| worth(job))
            .map(|job| job.job_id)
            .collect())
    }
}

/// Does the same to each job, and tells what came of it. Fails at the end when
/// one refuses; at once when the coordinator cannot be asked any more.
async fn steer<F>(
    session: &Session,
    chosen: &[i64],
    what: &str,
    one: impl Fn(i64) -> F,
    told: impl Fn(i64, &[v1::Job]) -> String,
) -> Result<(), Failure>
where
    F: Future<Output = Result<v1::RetryJobResponse, Status>>,
{
    let mut report = Report {
        jobs: Vec::new(),
        goes_on: Vec::new(),
        refused: Vec::new(),
    };
    let mut stopped = None;
    for &job_id in chosen {
        let line = match one(job_id).await {
            Ok(v1::RetryJobResponse { jobs, goes_on }) => {
                report.jobs.extend(view::all(&jobs));
                report.goes_on.extend(goes_on.then_some(job_id));
                let more = if goes_on { GOES_ON } else { "" };
                told(job_id, &jobs) + more
            }
            Err(status) if is_refusal(&status) => {
                let reason = failure::describe(&status);
                let line = format!("Job {job_id}: {reason}");
                report.refused.push(Refusal { job_id, reason });
                line
            }
            Err(status) => {
                stopped = Some(status);
                break;
            }
        };
        if !session.json {
            output::line(line)?;
        }
    }
    if session.json {
        output::json(&report)?;
    } else if chosen.is_empty() {
        output::line(format!("There is nothing to {what}."))?;
    }
    match (stopped, report.refused.len()) {
        (Some(status), _) => Err(status.into()),
        (None, 0) => Ok(()),
        (None, refused) => Err(Failure::Partly(format!(
            "{refused} of {} refused to {what}",
            count(chosen.len() as i64, "job")
        ))),
    }
}

/// Whether the answer is about this job, so that the next one may pass.
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument | Code::PermissionDenied
    )
}

/// What the retry of a source came to, in a sentence.
fn resumed(source: &str, answer: &v1::RetrySourceResponse) -> String {
    let jobs = &answer.jobs;
    if jobs.is_empty() {
        return "There is nothing to retry.".to_owned();
    }
    let taken_back = match answer.chunks_taken_back {
        0 => String::new(),
        chunks => format!("{} queued again, ", count(chunks, "rejected chunk")),
    };
    let pending = jobs
        .iter()
        .map(|job| job.chunks_total - job.chunks_done - job.chunks_rejected)
        .sum();
    let first: Vec<String> = jobs
        .iter()
        .take(JOBS_NAMED)
        .map(|job| job.job_id.to_string())
        .collect();
    let more = if jobs.len() > JOBS_NAMED { ", …" } else { "" };
    format!(
        "{source}: {taken_back}{} pending in {} {}{more}.",
        count(pending, "chunk"),
        if jobs.len() == 1 { "job" } else { "jobs" },
        first.join(", ")
    )
}

/// What a retry queued, in a sentence.
fn queued(job_id: i64, jobs: &[v1::Job]) -> String {
    let ids: Vec<String> = jobs.iter().map(|job| job.job_id.to_string()).collect();
    let chunks = jobs
        .iter()
        .map(|job| job.chunks_total - job.chunks_done - job.chunks_rejected)
        .sum();
    match jobs {
        [] => format!("Nothing of job {job_id} was pending."),
        [same] if same.job_id == job_id => {
            format!("Job {job_id} runs as soon as a worker is free.")
        }
        _ => format!(
            "Job {job_id}: {} queued again in {} {}.",
            count(chunks, "chunk"),
            if jobs.len() == 1 { "job" } else { "jobs" },
            ids.join(", ")
        ),
    }
}

/// A cancelled job in a sentence.
fn cancelled(job: &v1::Job) -> String {
    let pending = job.chunks_total - job.chunks_done - job.chunks_rejected;
    format!(
        "Job {} of {}/{} is cancelled; {} not embedded.",
        job.job_id,
        printable(&job.namespace),
        printable(&job.source),
        count(pending, "chunk"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printable::{HOSTILE, assert_harmless};

    fn job(job_id: i64) -> v1::Job {
        v1::Job {
            job_id,
            namespace: "default".into(),
            source: "shop".into(),
            chunks_total: 10,
            chunks_done: 3,
            chunks_rejected: 1,
            ..v1::Job::default()
        }
    }

    #[test]
    fn a_cancelled_job_says_what_is_left() {
        assert_eq!(
            cancelled(&job(7)),
            "Job 7 of default/shop is cancelled; 6 chunks not embedded."
        );
    }

    #[test]
    fn a_retry_says_what_is_queued() {
        assert_eq!(queued(7, &[]), "Nothing of job 7 was pending.");
        assert_eq!(
            queued(7, &[job(7)]),
            "Job 7 runs as soon as a worker is free."
        );
        assert_eq!(
            queued(7, &[job(9), job(8)]),
            "Job 7: 12 chunks queued again in jobs 9, 8."
        );
    }

    #[test]
    fn a_retry_of_a_source_says_what_was_taken_back() {
        let mut answer = v1::RetrySourceResponse::default();
        assert_eq!(
            resumed("default/shop", &answer),
            "There is nothing to retry."
        );
        answer.jobs = vec![job(9), job(8)];
        assert_eq!(
            resumed("default/shop", &answer),
            "default/shop: 12 chunks pending in jobs 9, 8."
        );
        answer.chunks_taken_back = 1;
        answer.jobs = (0..11).rev().map(job).collect();
        assert_eq!(
            resumed("default/shop", &answer),
            "default/shop: 1 rejected chunk queued again, 66 chunks pending in jobs 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, …."
        );
    }

    #[test]
    fn only_what_is_about_the_job_is_a_refusal() {
        assert!(is_refusal(&Status::failed_precondition("running")));
        assert!(!is_refusal(&Status::unavailable("away")));
        assert!(!is_refusal(&Status::unauthenticated("who?")));
    }

    #[test]
    fn a_hostile_name_is_harmless() {
        let mut job = job(7);
        job.namespace = HOSTILE.into();
        job.source = HOSTILE.into();
        assert_harmless(&cancelled(&job));
    }
}
