//! `weir jobs`, and how a job is told in words.

use std::time::SystemTime;

use clap::{Args, ValueEnum};
use serde::Serialize;
use weir_proto::v1::{self, JobState, JobTrigger};

use crate::{
    connect::Session,
    failure::Failure,
    output::{self, ago, brief, until},
    page,
    printable::printable,
    table::{Cell, Tone, table},
    view,
};

/// What `weir jobs` understands.
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Only the jobs of this source.
    #[arg(conflicts_with_all = ["all_namespaces", "prefix"])]
    name: Option<String>,
    /// Only the jobs of sources whose name begins with this.
    #[arg(long, conflicts_with = "all_namespaces")]
    prefix: Option<String>,
    /// Only jobs in these states, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "STATE")]
    state: Vec<State>,
    /// Only jobs that were queued by these, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "TRIGGER")]
    trigger: Vec<Trigger>,
    /// Only jobs of this model.
    #[arg(long)]
    model: Option<String>,
    /// Only the unsettled jobs that this failure last befell, in whichever namespace.
    #[arg(long, value_name = "ID", conflicts_with = "all_namespaces")]
    failure: Option<i64>,
    /// Most jobs to list.
    #[arg(long, default_value = "50", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// The jobs of every namespace.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
}

/// A job's state, as an argument.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl From<State> for JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Running => Self::Running,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
        }
    }
}

/// Why a job was queued, as an argument.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Trigger {
    Write,
    Retry,
    Reconcile,
}

impl From<Trigger> for JobTrigger {
    fn from(trigger: Trigger) -> Self {
        match trigger {
            Trigger::Write => Self::Write,
            Trigger::Retry => Self::Retry,
            Trigger::Reconcile => Self::Reconcile,
        }
    }
}

/// Lists jobs, newest first.
pub(crate) async fn jobs(session: &Session, args: JobsArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        jobs: Vec<view::Job>,
    }

    // A failure is of one namespace, and of one that nobody has to name.
    let everywhere = args.all_namespaces || (args.failure.is_some() && args.name.is_none());
    let request = v1::ListJobsRequest {
        namespace: session.namespace_or_all(everywhere),
        source: args.name.unwrap_or_default(),
        states: args
            .state
            .iter()
            .map(|state| JobState::from(*state).into())
            .collect(),
        source_prefix: args.prefix.unwrap_or_default(),
        triggers: args
            .trigger
            .iter()
            .map(|trigger| JobTrigger::from(*trigger).into())
            .collect(),
        model: args.model.unwrap_or_default(),
        failure_id: args.failure.unwrap_or_default(),
        ..v1::ListJobsRequest::default()
    };
    let jobs = list(session, request, args.limit as usize).await?;
    if session.json {
        return Ok(output::json(&Answer {
            jobs: view::all(&jobs),
        })?);
    }
    if jobs.is_empty() {
        return Ok(output::line("No jobs.")?);
    }
    Ok(output::fitting(&job_table(
        &jobs,
        SystemTime::now(),
        everywhere,
    ))?)
}

/// Returns the jobs that pass the request's filters, newest first, at most
/// `most` of them.
pub(crate) async fn list(
    session: &Session,
    request: v1::ListJobsRequest,
    most: usize,
) -> Result<Vec<v1::Job>, Failure> {
    let mut client = session.jobs();
    let jobs = page::gather(most, async |page_size, page_token| {
        let request = v1::ListJobsRequest {
            page_size,
            page_token,
            ..request.clone()
        };
        let page = client.list_jobs(request).await?.into_inner();
        Ok((page.jobs, page.next_page_token))
    });
    Ok(jobs.await?)
}

/// Jobs as a table; with their namespace before the source where they have
/// several.
pub(crate) fn job_table(jobs: &[v1::Job], now: SystemTime, with_namespace: bool) -> String {
    let row = |job: &v1::Job| -> [Cell; 7] {
        let source = if with_namespace {
            format!("{}/{}", job.namespace, job.source)
        } else {
            job.source.clone()
        };
        [
            job.job_id.into(),
            source.into(),
            Cell::toned(view::state(job.state()), state_tone(job.state())),
            format!(
                "{}/{}",
                job.chunks_done + job.chunks_rejected,
                job.chunks_total
            )
            .into(),
            format!("{}/{}", job.attempt, job.max_attempts).into(),
            ago(job.create_time, now).into(),
            note(job, now).into(),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    table(
        [
            ">JOB", "SOURCE", "STATE", ">CHUNKS", ">TRIES", "QUEUED", "NOTE",
        ],
        &rows,
    )
}

/// How a job's state is meant.
pub(crate) fn state_tone(state: JobState) -> Tone {
    match state {
        JobState::Running => Tone::Busy,
        JobState::Succeeded => Tone::Good,
        JobState::Failed => Tone::Bad,
        JobState::Queued | JobState::Cancelled | JobState::Unspecified => Tone::Plain,
    }
}

/// What there is to say about a job beyond its state: who has it, or what went
/// wrong and when it goes on; and which of its chunks went another way.
fn note(job: &v1::Job, now: SystemTime) -> String {
    let standing = match job.state() {
        JobState::Running if job.last_error.is_empty() => Some(format!("by {}", job.worker_id)),
        JobState::Running => Some(format!("by {}, after: {}", job.worker_id, job.last_error)),
        _ => trouble(job, now),
    };
    let exceptions = view::exceptions(job.chunks_rejected, job.chunks_truncated);
    let parts: Vec<String> = exceptions.into_iter().chain(standing).collect();
    parts.join("; ")
}

/// What went wrong with a job and when it goes on; nothing when all is well.
pub(crate) fn trouble(job: &v1::Job, now: SystemTime) -> Option<String> {
    let error = printable(&job.last_error);
    let tries = match job.attempt {
        1 => "1 try".to_owned(),
        many => format!("{many} tries"),
    };
    match job.state() {
        JobState::Failed => {
            let wait = until(job.run_time, now);
            let next = if wait.is_zero() {
                String::new()
            } else {
                format!(", queued again in {}", brief(wait))
            };
            Some(format!("failed after {tries}: {error}{next}"))
        }
        JobState::Cancelled if error.is_empty() => Some("cancelled".to_owned()),
        JobState::Cancelled => Some(format!("cancelled: {error}")),
        JobState::Queued if !error.is_empty() => {
            let wait = until(job.run_time, now);
            let next = if wait.is_zero() {
                "next run as soon as a worker is free".to_owned()
            } else {
                format!("next run in {}", brief(wait))
            };
            // A released job was handed back without blame.
            let what = if job.attempt == 0 {
                "waiting".to_owned()
            } else {
                format!("retrying ({tries})")
            };
            Some(format!("{what}: {error}, {next}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn job(state: JobState, attempt: i32, last_error: &str) -> v1::Job {
        let mut job = v1::Job {
            job_id: 7,
            namespace: "default".into(),
            source: "shop".into(),
            worker_id: "w1".into(),
            attempt,
            max_attempts: 5,
            chunks_total: 10,
            chunks_done: 3,
            chunks_rejected: 1,
            last_error: last_error.into(),
            ..v1::Job::default()
        };
        job.set_state(state);
        job
    }

    #[test]
    fn a_waiting_job_says_how_often_why_and_when() {
        let now = SystemTime::now();
        let mut waiting = job(JobState::Queued, 3, "503\nfrom the embedder");
        waiting.run_time = Some((now + Duration::from_secs(12)).into());
        let text = trouble(&waiting, now).unwrap();
        assert_eq!(
            text,
            "retrying (3 tries): 503 from the embedder, next run in 12 s"
        );

        waiting.attempt = 1;
        waiting.run_time = None;
        let text = trouble(&waiting, now).unwrap();
        assert!(text.starts_with("retrying (1 try): "), "{text}");
        assert!(
            text.ends_with("next run as soon as a worker is free"),
            "{text}"
        );

        let released = job(JobState::Queued, 0, "the worker stops");
        assert!(
            trouble(&released, now)
                .unwrap()
                .starts_with("waiting: the worker stops")
        );
    }

    #[test]
    fn only_trouble_is_told() {
        let now = SystemTime::now();
        for state in [JobState::Queued, JobState::Running, JobState::Succeeded] {
            assert_eq!(trouble(&job(state, 0, ""), now), None);
        }
        let failed = trouble(&job(JobState::Failed, 5, "bad"), now);
        assert_eq!(failed.as_deref(), Some("failed after 5 tries: bad"));
        let mut parked = job(JobState::Failed, 5, "bad");
        parked.run_time = Some((now + Duration::from_mins(30)).into());
        let parked = trouble(&parked, now).unwrap();
        assert!(
            parked.ends_with("bad, queued again in 30 min 00 s"),
            "{parked}"
        );
        let cancelled = trouble(&job(JobState::Cancelled, 0, ""), now);
        assert_eq!(cancelled.as_deref(), Some("cancelled"));
    }

    #[test]
    fn a_job_says_how_many_chunks_were_truncated() {
        let now = SystemTime::now();
        let mut done = job(JobState::Succeeded, 0, "");
        assert_eq!(note(&done, now), "1 rejected");
        done.chunks_truncated = 2;
        assert_eq!(note(&done, now), "2 truncated, 1 rejected");
        done.chunks_rejected = 0;
        assert_eq!(note(&done, now), "2 truncated");
    }

    #[test]
    fn the_table_has_one_line_a_job() {
        let jobs = [
            job(JobState::Running, 0, ""),
            job(JobState::Failed, 5, "bad\nnews"),
        ];
        let text = job_table(&jobs, SystemTime::now(), true);
        assert_eq!(text.lines().count(), 3);
        assert!(
            text.contains("default/shop  running    4/10    0/5  -       1 rejected; by w1"),
            "{text}"
        );
    }
}
