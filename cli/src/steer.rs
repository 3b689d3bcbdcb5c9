//! `weir retry` and `weir cancel`.

use std::time::SystemTime;

use clap::Args;
use serde::Serialize;
use weir_proto::v1;

use crate::{
    connect::Session,
    failure::Failure,
    jobs::job_table,
    output::{self, count},
    view,
};

/// What `weir retry` understands.
#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    /// The job, by the number that `weir jobs` shows.
    #[arg(value_name = "JOB")]
    job_id: i64,
    /// Embed all of the job's range anew, whatever its state: for a model that was swapped behind
    /// the same name. The range cannot be searched until that is done.
    #[arg(long)]
    force: bool,
}

/// What `weir cancel` understands.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// The job, by the number that `weir jobs` shows.
    #[arg(value_name = "JOB")]
    job_id: i64,
}

/// Has a job run again, and shows the jobs that are queued for it.
pub(crate) async fn retry(session: &Session, args: RetryArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        jobs: Vec<view::Job>,
    }

    let request = v1::RetryJobRequest {
        job_id: args.job_id,
        force: args.force,
    };
    let jobs = session.jobs().retry_job(request).await?.into_inner().jobs;
    if session.json {
        return Ok(output::json(&Answer {
            jobs: view::all(&jobs),
        })?);
    }
    if jobs.is_empty() {
        let text = format!("Nothing of job {} was pending.", args.job_id);
        return Ok(output::line(text)?);
    }
    Ok(output::line(job_table(&jobs, SystemTime::now(), true))?)
}

/// Cancels a job.
pub(crate) async fn cancel(session: &Session, args: CancelArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        job: view::Job,
    }

    let request = v1::CancelJobRequest {
        job_id: args.job_id,
    };
    let answer = session.jobs().cancel_job(request).await?.into_inner();
    let job = answer.job.unwrap_or_default();
    if session.json {
        let job = (&job).into();
        return Ok(output::json(&Answer { job })?);
    }
    Ok(output::line(told(&job))?)
}

/// A cancelled job in a sentence.
fn told(job: &v1::Job) -> String {
    let pending = job.chunks_total - job.chunks_done - job.chunks_rejected;
    format!(
        "Job {} of {}/{} is cancelled; {} not embedded.",
        job.job_id,
        job.namespace,
        job.source,
        count(pending, "chunk"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_job_says_what_is_left() {
        let job = v1::Job {
            job_id: 7,
            namespace: "default".into(),
            source: "shop".into(),
            chunks_total: 10,
            chunks_done: 3,
            chunks_rejected: 1,
            ..v1::Job::default()
        };
        assert_eq!(
            told(&job),
            "Job 7 of default/shop is cancelled; 6 chunks not embedded."
        );
    }
}
