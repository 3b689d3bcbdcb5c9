//! `weir failures` and `weir dismiss`: what went wrong, by cause.

use std::time::SystemTime;

use clap::Args;
use serde::Serialize;
use weir_proto::v1;

use crate::{
    connect::Session,
    failure::Failure,
    output::{self, ago, count},
    page,
    printable::printable,
    table::Tone,
    view,
};

/// What `weir failures` understands.
#[derive(Debug, Args)]
pub(crate) struct FailuresArgs {
    /// Those too that were dismissed and not seen since.
    #[arg(long)]
    dismissed: bool,
    /// The failures of every namespace.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Most failures to list.
    #[arg(long, default_value = "50", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

/// What `weir dismiss` understands.
#[derive(Debug, Args)]
pub(crate) struct DismissArgs {
    /// The failure, by the number that `weir failures` shows.
    #[arg(value_name = "ID")]
    failure_id: i64,
}

/// Lists failures, last seen first.
pub(crate) async fn failures(session: &Session, args: FailuresArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        failures: Vec<view::Failure>,
    }

    let mut client = session.jobs();
    let failures = page::gather(args.limit as usize, async |page_size, page_token| {
        let request = v1::ListFailuresRequest {
            namespace: session.namespace_or_all(args.all_namespaces),
            include_dismissed: args.dismissed,
            page_size,
            page_token,
        };
        let page = client.list_failures(request).await?.into_inner();
        Ok((page.failures, page.next_page_token))
    })
    .await?;
    if session.json {
        return Ok(output::json(&Answer {
            failures: view::all(&failures),
        })?);
    }
    if failures.is_empty() {
        return Ok(output::line("No failures.")?);
    }
    let now = SystemTime::now();
    let blocks: Vec<String> = failures
        .iter()
        .map(|failure| describe(failure, now))
        .collect();
    Ok(output::fitting(&blocks.join("\n\n"))?)
}

/// A failure: what, how often, since when, and what to press.
fn describe(failure: &v1::Failure, now: SystemTime) -> String {
    let id = failure.failure_id;
    let affected = match failure.jobs_affected {
        0 => "no job is affected any more".to_owned(),
        1 => "1 job affected".to_owned(),
        many => format!("{many} jobs affected"),
    };
    let success = match failure.last_success_time {
        None => "no job has succeeded".to_owned(),
        time => format!("a job last succeeded {}", ago(time, now)),
    };
    let mut lines = vec![
        format!("{id}  {}", Tone::Bad.paint(&printable(&failure.cause))),
        format!(
            "    seen {}, first {}, last {}, in job {} of {}/{} with {}",
            match failure.occurrences {
                1 => "once".to_owned(),
                _ => count(failure.occurrences, "time"),
            },
            ago(failure.first_seen_time, now),
            ago(failure.last_seen_time, now),
            failure.last_job_id,
            printable(&failure.namespace),
            printable(&failure.last_source),
            printable(&failure.model),
        ),
        format!("    {affected}; {success}"),
    ];
    if failure.last_error != failure.cause {
        lines.push(format!("    last: {}", printable(&failure.last_error)));
    }
    if failure.dismiss_time.is_some() {
        lines.push(format!("    dismissed {}", ago(failure.dismiss_time, now)));
    }
    let mut press = Vec::new();
    if failure.jobs_affected > 0 {
        press.push(format!("weir jobs --failure {id}"));
        press.push(format!("weir retry --failure {id}"));
    }
    if failure.dismiss_time.is_none() {
        press.push(format!("weir dismiss {id}"));
    }
    if !press.is_empty() {
        lines.push(format!("    → {}", press.join(" · ")));
    }
    lines.join("\n")
}

/// Takes a failure off the list.
pub(crate) async fn dismiss(session: &Session, args: DismissArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        failure: view::Failure,
    }

    let request = v1::DismissFailureRequest {
        failure_id: args.failure_id,
    };
    let answer = session.jobs().dismiss_failure(request).await?.into_inner();
    let failure = answer.failure.unwrap_or_default();
    if session.json {
        let failure = (&failure).into();
        return Ok(output::json(&Answer { failure })?);
    }
    Ok(output::line(format!(
        "Dismissed {} until it is seen again: {}",
        failure.failure_id,
        printable(&failure.cause)
    ))?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::printable::{HOSTILE, assert_harmless};

    #[test]
    fn a_failure_says_what_to_press() {
        let now = SystemTime::now();
        let mut failure = v1::Failure {
            failure_id: 12,
            namespace: "default".into(),
            model: "fake".into(),
            cause: "connection N refused".into(),
            last_error: "connection 7 refused".into(),
            last_job_id: 345,
            last_source: "shop".into(),
            first_seen_time: Some((now - Duration::from_hours(2)).into()),
            last_seen_time: Some((now - Duration::from_secs(12)).into()),
            occurrences: 17,
            jobs_affected: 3,
            ..v1::Failure::default()
        };
        assert_eq!(
            describe(&failure, now),
            "12  connection N refused\n\
             \x20   seen 17 times, first 2 h 00 min ago, last 12 s ago, in job 345 of default/shop with fake\n\
             \x20   3 jobs affected; no job has succeeded\n\
             \x20   last: connection 7 refused\n\
             \x20   → weir jobs --failure 12 · weir retry --failure 12 · weir dismiss 12"
        );
        failure.jobs_affected = 0;
        failure.last_error.clone_from(&failure.cause);
        failure.dismiss_time = Some(now.into());
        failure.last_success_time = Some((now - Duration::from_secs(5)).into());
        let text = describe(&failure, now);
        assert!(
            text.contains("no job is affected any more; a job last succeeded 5 s ago"),
            "{text}"
        );
        assert!(text.ends_with("dismissed 0 s ago"), "{text}");
    }

    #[test]
    fn a_hostile_name_is_harmless() {
        let failure = v1::Failure {
            namespace: HOSTILE.into(),
            model: HOSTILE.into(),
            cause: HOSTILE.into(),
            last_error: format!("{HOSTILE}!"),
            last_source: HOSTILE.into(),
            ..v1::Failure::default()
        };
        assert_harmless(&describe(&failure, SystemTime::now()));
    }
}
