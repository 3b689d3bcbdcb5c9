//! `weir job`: one job with its tries.

use std::time::{Duration, SystemTime};

use clap::Args;
use prost_types::Timestamp;
use serde::Serialize;
use weir_proto::v1;

use crate::{
    badge,
    connect::Session,
    failure::Failure,
    jobs::{state_tone, trouble},
    output::{self, ago, brief},
    printable::printable,
    table::{Cell, table},
    view,
};

/// What `weir job` understands.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job, by the number that `weir jobs` shows.
    #[arg(value_name = "ID")]
    job_id: i64,
}

/// Shows one job with its tries, oldest first.
pub(crate) async fn job(session: &Session, args: JobArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        job: view::Job,
        attempts: Vec<view::Attempt>,
        trace_url: Option<String>,
    }

    let request = v1::GetJobRequest {
        job_id: args.job_id,
    };
    let answer = session.jobs().get_job(request).await?.into_inner();
    let job = answer.job.unwrap_or_default();
    let mut attempts = answer.attempts;
    attempts.reverse();
    let trace_url = trace_url(session, &job).await?;
    if session.json {
        return Ok(output::json(&Answer {
            job: (&job).into(),
            attempts: view::all(&attempts),
            trace_url,
        })?);
    }
    let now = SystemTime::now();
    output::line(describe(&job, trace_url.as_deref(), now))?;
    if attempts.is_empty() {
        return Ok(output::line("\nNo worker has claimed it yet.")?);
    }
    output::line("")?;
    Ok(output::fitting(&timeline(&attempts, now))?)
}

/// Where the job's trace can be looked at, if the coordinator was told.
async fn trace_url(session: &Session, job: &v1::Job) -> Result<Option<String>, Failure> {
    if job.trace_id.is_empty() {
        return Ok(None);
    }
    let request = v1::GetStatusRequest {
        namespace: job.namespace.clone(),
    };
    let status = session.jobs().get_status(request).await?.into_inner();
    let template = status.trace_url_template;
    Ok((!template.is_empty()).then(|| template.replace("{trace_id}", &job.trace_id)))
}

fn describe(job: &v1::Job, trace_url: Option<&str>, now: SystemTime) -> String {
    let state = state_tone(job.state()).paint(view::state(job.state()));
    let done = job.chunks_done + job.chunks_rejected;
    let exceptions = view::exceptions(job.chunks_rejected, job.chunks_truncated);
    let mut lines = vec![
        format!(
            "job {} of {}/{}",
            job.job_id,
            printable(&job.namespace),
            printable(&job.source)
        ),
        format!("  state     {state}"),
        format!("  model     {}", printable(&job.model)),
        format!(
            "  range     {} … {}, revision {}, queued by a {}, priority {}",
            printable(&job.first_item_id),
            printable(&job.last_item_id),
            job.revision,
            view::trigger(job.trigger()),
            job.priority,
        ),
        format!(
            "  chunks    {done}/{}{}",
            job.chunks_total,
            exceptions.map_or_else(String::new, |what| format!(", {what}"))
        ),
        format!("  tries     {}/{}", job.attempt, job.max_attempts),
        format!("  queued    {}", ago(job.create_time, now)),
    ];
    for (label, time) in [("started", job.start_time), ("finished", job.finish_time)] {
        if time.is_some() {
            lines.push(format!("  {label:8}  {}", ago(time, now)));
        }
    }
    if let Some(trouble) = trouble(job, now) {
        lines.push(format!("  trouble   {trouble}"));
    }
    if job.failure_id != 0 {
        lines.push(format!("  failure   {}", job.failure_id));
    }
    if !job.trace_id.is_empty() {
        let place = trace_url.map_or_else(String::new, |url| format!("  {}", printable(url)));
        lines.push(format!("  trace     {}{place}", printable(&job.trace_id)));
    }
    lines.join("\n")
}

/// Who tried when, for how long, how it ended and why.
fn timeline(attempts: &[v1::Attempt], now: SystemTime) -> String {
    let row = |attempt: &v1::Attempt| -> [Cell; 7] {
        let (outcome, tone) = badge::outcome(attempt.outcome());
        let charged = if attempt.charged { "yes" } else { "no" };
        [
            ago(attempt.start_time, now).into(),
            attempt.worker_id.as_str().into(),
            took(attempt, now).into(),
            Cell::toned(outcome, tone),
            attempt.chunks_done.into(),
            charged.into(),
            attempt.error.as_str().into(),
        ]
    };
    let rows: Vec<_> = attempts.iter().map(row).collect();
    table(
        [
            "WHEN", "WORKER", ">TOOK", "ENDED", ">CHUNKS", "CHARGED", "WHY",
        ],
        &rows,
    )
}

/// How long a try took, or has taken so far.
fn took(attempt: &v1::Attempt, now: SystemTime) -> String {
    let moment = |time: Option<Timestamp>| time.and_then(|time| SystemTime::try_from(time).ok());
    let Some(start) = moment(attempt.start_time) else {
        return "-".to_owned();
    };
    let end = moment(attempt.end_time).unwrap_or(now);
    let took = end.duration_since(start).unwrap_or_default();
    if took < Duration::from_secs(1) {
        return format!("{} ms", took.as_millis());
    }
    brief(took)
}

#[cfg(test)]
mod tests {
    use weir_proto::v1::AttemptOutcome;

    use super::*;
    use crate::jobs::job_table;
    use crate::printable::{HOSTILE, assert_harmless};

    #[test]
    fn the_timeline_says_who_when_how_long_and_why() {
        let now = SystemTime::now();
        let ago = |seconds| Some((now - Duration::from_secs(seconds)).into());
        let mut failed = v1::Attempt {
            worker_id: "w1".into(),
            start_time: ago(90),
            end_time: ago(20),
            error: "503".into(),
            chunks_done: 4,
            charged: true,
            ..v1::Attempt::default()
        };
        failed.set_outcome(AttemptOutcome::Failed);
        let mut running = v1::Attempt {
            worker_id: "w2".into(),
            start_time: ago(5),
            ..v1::Attempt::default()
        };
        running.set_outcome(AttemptOutcome::Running);
        assert_eq!(
            timeline(&[failed, running], now),
            "WHEN            WORKER        TOOK  ENDED    CHUNKS  CHARGED  WHY\n\
             1 min 30 s ago  w1      1 min 10 s  failed        4  yes      503\n\
             5 s ago         w2             5 s  running       0  no"
        );
    }

    #[test]
    fn a_job_says_where_its_trace_is() {
        let mut job = v1::Job {
            job_id: 7,
            trace_id: "0af7".into(),
            ..v1::Job::default()
        };
        let text = |job: &v1::Job, url| describe(job, url, SystemTime::now());
        assert!(text(&job, None).ends_with("trace     0af7"));
        let with_url = text(&job, Some("http://traces/0af7"));
        assert!(with_url.ends_with("0af7  http://traces/0af7"), "{with_url}");
        job.trace_id.clear();
        assert!(!text(&job, None).contains("trace"));
    }

    #[test]
    fn a_hostile_name_is_harmless() {
        let mut job = v1::Job {
            namespace: HOSTILE.into(),
            source: HOSTILE.into(),
            model: HOSTILE.into(),
            first_item_id: HOSTILE.into(),
            last_item_id: HOSTILE.into(),
            last_error: HOSTILE.into(),
            worker_id: HOSTILE.into(),
            trace_id: HOSTILE.into(),
            ..v1::Job::default()
        };
        job.set_state(v1::JobState::Failed);
        let now = SystemTime::now();
        assert_harmless(&describe(&job, Some(HOSTILE), now));
        let attempt = v1::Attempt {
            worker_id: HOSTILE.into(),
            error: HOSTILE.into(),
            ..v1::Attempt::default()
        };
        assert_harmless(&timeline(&[attempt], now));
        for state in [v1::JobState::Running, v1::JobState::Queued] {
            job.set_state(state);
            assert_harmless(&job_table(&[job.clone()], now, true));
        }
    }
}
