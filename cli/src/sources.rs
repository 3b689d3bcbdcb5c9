//! `weir get`, `weir ls` and `weir rm`.

use std::time::SystemTime;

use clap::Args;
use prost_types::FieldMask;
use serde::Serialize;
use tonic::Code;
use weir_proto::v1;

use crate::{
    badge,
    connect::Session,
    failure::Failure,
    jobs::job_table,
    output::{self, ago, count},
    printable::printable,
    resend,
    table::{Cell, table},
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
    /// Only sources with a job that is open, or that failed or was cancelled and left chunks
    /// pending.
    #[arg(long)]
    unsettled: bool,
    /// Only sources whose name begins with this.
    #[arg(long)]
    prefix: Option<String>,
    /// Only sources of this model.
    #[arg(long)]
    model: Option<String>,
}

/// Which sources to list, and what of them.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// Only those with an unsettled job.
    pub(crate) unsettled: bool,
    /// Only those whose name begins with this.
    pub(crate) prefix: String,
    /// Only those of this model; empty for any.
    pub(crate) model: String,
    /// Only these fields; none for all.
    pub(crate) fields: &'static [&'static str],
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
        output::fitting(&job_table(&answer.jobs, now, false))?;
    }
    Ok(())
}

fn describe(source: &v1::Source, now: SystemTime) -> String {
    let pending = source.chunks - source.chunks_embedded - source.chunks_rejected;
    let truncated = match source.chunks_truncated {
        0 => String::new(),
        truncated => format!(" ({truncated} truncated)"),
    };
    let badge = source.badge.clone().unwrap_or_default();
    let trouble = badge::trouble(&badge, now).map_or_else(String::new, |why| format!(": {why}"));
    format!(
        "{}/{}\n  status    {}{trouble}\n  model     {}\n  revision  {}, {}\n  items     {}\n  chunks    {}: {} \
         embedded{truncated}, {} rejected, {pending} pending",
        printable(&source.namespace),
        printable(&source.name),
        badge::tone(&badge).paint(&printable(&badge.text)),
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
    struct Answer {
        sources: Vec<view::Summary>,
    }

    let namespace = session.namespace_or_all(args.all_namespaces);
    let filtered = args.unsettled || args.prefix.is_some() || args.model.is_some();
    let filter = Filter {
        unsettled: args.unsettled,
        prefix: args.prefix.unwrap_or_default(),
        model: args.model.unwrap_or_default(),
        fields: &[],
    };
    let sources = list(session, &namespace, filter).await?;
    if session.json {
        return Ok(output::json(&Answer {
            sources: view::all(&sources),
        })?);
    }
    if sources.is_empty() {
        let text = if filtered {
            "No such sources."
        } else {
            "No sources. Put one: weir put FILE"
        };
        return Ok(output::line(text)?);
    }
    let now = SystemTime::now();
    let rows: Vec<_> = sources
        .iter()
        .map(|summary| row(summary, now, args.all_namespaces))
        .collect();
    let titles = [
        "SOURCE", "MODEL", ">REV", ">ITEMS", ">CHUNKS", "STATUS", "NOTE",
    ];
    Ok(output::fitting(&table(titles, &rows))?)
}

/// Returns every source of a namespace that passes the filter; of all
/// namespaces when it is empty.
pub(crate) async fn list(
    session: &Session,
    namespace: &str,
    filter: Filter,
) -> Result<Vec<v1::SourceSummary>, Failure> {
    let mut client = session.sources();
    let paths = filter.fields.iter().map(|path| (*path).to_owned());
    let read_mask = (!filter.fields.is_empty()).then(|| FieldMask {
        paths: paths.collect(),
    });
    let mut sources = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListSourcesRequest {
            namespace: namespace.to_owned(),
            page_size: 1_000,
            page_token,
            name_prefix: filter.prefix.clone(),
            model: filter.model.clone(),
            unsettled_only: filter.unsettled,
            read_mask: read_mask.clone(),
        };
        let page = client.list_sources(request).await?.into_inner();
        sources.extend(page.sources);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(sources);
        }
    }
}

fn row(summary: &v1::SourceSummary, now: SystemTime, with_namespace: bool) -> [Cell; 7] {
    let source = summary.source.clone().unwrap_or_default();
    let badge = source.badge.clone().unwrap_or_default();
    [
        if with_namespace {
            format!("{}/{}", source.namespace, source.name)
        } else {
            source.name
        }
        .into(),
        source.model.into(),
        source.revision.into(),
        source.items.into(),
        source.chunks.into(),
        Cell::toned(badge.text.as_str(), badge::tone(&badge)),
        badge::trouble(&badge, now).unwrap_or_default().into(),
    ]
}

/// Deletes a source.
pub(crate) async fn rm(session: &Session, args: RmArgs) -> Result<(), Failure> {
    #[derive(Default, Serialize)]
    struct Answer {
        items_deleted: i64,
        embeddings_deleted: i64,
        jobs_cancelled: i64,
    }

    let sent = std::cell::Cell::new(false);
    let gone = resend::until_answered(
        async || resend::revision(session, &args.name).await,
        async |revision| {
            let request = v1::DeleteSourceRequest {
                namespace: session.namespace.clone(),
                name: args.name.clone(),
                // Of none, the coordinator says so.
                expected_revision: (revision > 0).then_some(revision),
            };
            match session.sources().delete_source(request).await {
                Ok(answer) => Ok(Some(answer.into_inner())),
                Err(status) if sent.replace(true) && status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(status.into()),
            }
        },
    )
    .await?;
    let Some(gone) = gone else {
        // The sending that was not answered has done it, or somebody else.
        if session.json {
            return Ok(output::json(&Answer::default())?);
        }
        let gone = format!("{}/{} is gone.", session.namespace, args.name);
        return Ok(output::line(gone)?);
    };
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
    use crate::printable::{HOSTILE, assert_harmless};

    fn source(badge: &str) -> v1::Source {
        v1::Source {
            namespace: "default".into(),
            name: "shop".into(),
            chunks: 10,
            chunks_embedded: 6,
            chunks_rejected: 1,
            badge: Some(v1::Badge {
                text: badge.into(),
                last_error: "503".into(),
                ..v1::Badge::default()
            }),
            ..v1::Source::default()
        }
    }

    #[test]
    fn the_badge_is_shown_as_it_is() {
        let summary = v1::SourceSummary {
            source: Some(source("retrying (3 tries)")),
            job: None,
        };
        let row = row(&summary, SystemTime::now(), true);
        assert_eq!(row[0], "default/shop".into());
        assert_eq!(row[5], "retrying (3 tries)".into());
        assert_eq!(row[6], "503".into());
        let text = describe(&source("retrying (3 tries)"), SystemTime::now());
        assert!(
            text.contains("  status    retrying (3 tries): 503\n"),
            "{text}"
        );
    }

    #[test]
    fn pending_is_what_is_neither_embedded_nor_rejected() {
        let mut source = source("queued");
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

    #[test]
    fn a_hostile_name_is_harmless() {
        let mut hostile = source(HOSTILE);
        for field in [
            &mut hostile.namespace,
            &mut hostile.name,
            &mut hostile.model,
        ] {
            HOSTILE.clone_into(field);
        }
        hostile.badge.as_mut().unwrap().last_error = HOSTILE.into();
        let now = SystemTime::now();
        assert_harmless(&describe(&hostile, now));
        let summary = v1::SourceSummary {
            source: Some(hostile),
            job: None,
        };
        let titles = ["", "", "", "", "", "", ""];
        assert_harmless(&table(titles, &[row(&summary, now, true)]));
    }
}
