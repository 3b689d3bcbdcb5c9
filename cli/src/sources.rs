//! `weir get`, `weir ls` and `weir rm`.

use std::time::SystemTime;

use clap::Args;
use serde::Serialize;
use weir_proto::v1;

use crate::{
    connect::Session,
    failure::Failure,
    jobs::{job_table, trouble},
    output::{self, ago, count, printable, table},
    view,
};

/// What `weir get` understands.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The source's name.
    name: String,
}

/// What `weir ls` understands.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// The sources of every namespace.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
}

/// What `weir rm` understands.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The source's name.
    name: String,
}

/// Shows one source with its unsettled jobs.
pub(crate) async fn get(session: &Session, args: GetArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        source: view::Source,
        jobs: Vec<view::Job>,
    }

    let request = v1::GetSourceRequest {
        namespace: session.namespace.clone(),
        name: args.name,
    };
    let answer = session.sources().get_source(request).await?.into_inner();
    let source = answer.source.unwrap_or_default();
    if session.json {
        let answer = Answer {
            source: (&source).into(),
            jobs: view::all(&answer.jobs),
        };
        return Ok(output::json(&answer)?);
    }
    let now = SystemTime::now();
    output::line(describe(&source, now))?;
    if !answer.jobs.is_empty() {
        output::line("")?;
        output::line(job_table(&answer.jobs, now, false))?;
    }
    Ok(())
}

fn describe(source: &v1::Source, now: SystemTime) -> String {
    let pending = source.chunks - source.chunks_embedded - source.chunks_rejected;
    let truncated = match source.chunks_truncated {
        0 => String::new(),
        truncated => format!(" ({truncated} truncated)"),
    };
    format!(
        "{}/{}\n  model     {}\n  revision  {}, {}\n  items     {}\n  chunks    {}: {} embedded{truncated}, \
         {} rejected, {pending} pending",
        source.namespace,
        source.name,
        printable(&source.model),
        source.revision,
        ago(source.update_time, now),
        source.items,
        source.chunks,
        source.chunks_embedded,
        source.chunks_rejected,
    )
}

/// Lists the sources of the namespace, or of all.
pub(crate) async fn ls(session: &Session, args: LsArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Entry {
        source: view::Source,
        job: Option<view::Job>,
    }
    #[derive(Serialize)]
    struct Answer {
        sources: Vec<Entry>,
    }

    let namespace = if args.all_namespaces {
        String::new()
    } else {
        session.namespace.clone()
    };
    let sources = list(session, &namespace).await?;
    if session.json {
        let entry = |summary: &v1::SourceSummary| {
            Some(Entry {
                source: summary.source.as_ref()?.into(),
                job: summary.job.as_ref().map(Into::into),
            })
        };
        let sources = sources.iter().filter_map(entry).collect();
        return Ok(output::json(&Answer { sources })?);
    }
    if sources.is_empty() {
        return Ok(output::line("No sources. Put one: weir put FILE")?);
    }
    let now = SystemTime::now();
    let rows: Vec<_> = sources
        .iter()
        .map(|summary| row(summary, now, args.all_namespaces))
        .collect();
    let titles = [
        "SOURCE",
        "MODEL",
        ">REV",
        ">ITEMS",
        ">CHUNKS",
        ">EMBEDDED",
        ">REJECTED",
        "STATE",
    ];
    Ok(output::line(table(titles, &rows))?)
}

/// Returns every source of a namespace, of all when it is empty.
pub(crate) async fn list(
    session: &Session,
    namespace: &str,
) -> Result<Vec<v1::SourceSummary>, Failure> {
    let mut client = session.sources();
    let mut sources = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListSourcesRequest {
            namespace: namespace.to_owned(),
            page_size: 1_000,
            page_token,
            ..v1::ListSourcesRequest::default()
        };
        let page = client.list_sources(request).await?.into_inner();
        sources.extend(page.sources);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(sources);
        }
    }
}

fn row(summary: &v1::SourceSummary, now: SystemTime, with_namespace: bool) -> [String; 8] {
    let source = summary.source.clone().unwrap_or_default();
    let state = match &summary.job {
        None if source.chunks_embedded + source.chunks_rejected < source.chunks => {
            "incomplete".to_owned()
        }
        None => "complete".to_owned(),
        Some(job) => trouble(job, now).unwrap_or_else(|| view::state(job.state()).to_owned()),
    };
    [
        if with_namespace {
            format!("{}/{}", source.namespace, source.name)
        } else {
            source.name
        },
        source.model,
        source.revision.to_string(),
        source.items.to_string(),
        source.chunks.to_string(),
        source.chunks_embedded.to_string(),
        source.chunks_rejected.to_string(),
        state,
    ]
}

/// Deletes a source.
pub(crate) async fn rm(session: &Session, args: RmArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Answer {
        items_deleted: i64,
        embeddings_deleted: i64,
        jobs_cancelled: i64,
    }

    let request = v1::DeleteSourceRequest {
        namespace: session.namespace.clone(),
        name: args.name.clone(),
    };
    let gone = session.sources().delete_source(request).await?.into_inner();
    if session.json {
        return Ok(output::json(&Answer {
            items_deleted: gone.items_deleted,
            embeddings_deleted: gone.embeddings_deleted,
            jobs_cancelled: gone.jobs_cancelled,
        })?);
    }
    Ok(output::line(format!(
        "Deleted {}/{}: {}, {}; {} cancelled.",
        session.namespace,
        args.name,
        count(gone.items_deleted, "item"),
        count(gone.embeddings_deleted, "vector"),
        count(gone.jobs_cancelled, "job"),
    ))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(chunks: i64, embedded: i64, rejected: i64) -> v1::SourceSummary {
        let source = v1::Source {
            namespace: "default".into(),
            name: "shop".into(),
            chunks,
            chunks_embedded: embedded,
            chunks_rejected: rejected,
            ..v1::Source::default()
        };
        v1::SourceSummary {
            source: Some(source),
            job: None,
        }
    }

    #[test]
    fn a_source_without_jobs_is_complete_only_when_it_is() {
        let state = |summary: &v1::SourceSummary| row(summary, SystemTime::now(), false)[7].clone();
        assert_eq!(state(&summary(10, 9, 1)), "complete");
        assert_eq!(state(&summary(10, 9, 0)), "incomplete");
        let mut running = summary(10, 9, 0);
        let mut job = v1::Job::default();
        job.set_state(v1::JobState::Running);
        running.job = Some(job);
        assert_eq!(state(&running), "running");
    }

    #[test]
    fn pending_is_what_is_neither_embedded_nor_rejected() {
        let mut source = summary(10, 6, 1).source.unwrap();
        let text = describe(&source, SystemTime::now());
        assert!(
            text.contains("10: 6 embedded, 1 rejected, 3 pending"),
            "{text}"
        );
        source.chunks_truncated = 2;
        let text = describe(&source, SystemTime::now());
        assert!(
            text.contains("10: 6 embedded (2 truncated), 1 rejected, 3 pending"),
            "{text}"
        );
    }
}
