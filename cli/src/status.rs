//! `weir status`: how a namespace, or all of it, stands.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use clap::Args;
use console::Term;
use tokio_stream::StreamExt as _;
use weir_proto::v1::{
    GetStatusRequest, GetStatusResponse, NamespaceStatus, Verdict, WatchStatusRequest,
};

use crate::{
    badge,
    connect::Session,
    failure::Failure,
    output::{self, brief},
    printable::printable,
    stream::{Event, keep_open},
    table::{Cell, table},
    view,
};

/// Figures of jobs that are older are told to be: the queue is large, or the
/// database slow.
const OLD: Duration = Duration::from_secs(3);

/// What `weir status` understands.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Every namespace.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Go on: show every change.
    #[arg(long)]
    watch: bool,
}

/// Shows the verdict and the figures behind it. Fails when something is
/// degraded; with `--watch` it goes on for as long as it can.
pub(crate) async fn status(session: &Session, args: StatusArgs) -> Result<(), Failure> {
    let namespace = session.namespace_or_all(args.all_namespaces);
    if args.watch {
        return watch(session, namespace).await;
    }
    let request = GetStatusRequest { namespace };
    let status = session.jobs().get_status(request).await?.into_inner();
    if session.json {
        output::json(&view::Status::from(&status))?;
    } else {
        output::fitting(&text(&status))?;
        if let Some(age) = old(&status) {
            output::line(format!("The jobs are told as of {age} ago."))?;
        }
    }
    match total(&status).verdict() {
        Verdict::Degraded => Err(Failure::Degraded),
        _ => Ok(()),
    }
}

async fn watch(session: &Session, namespace: String) -> Result<(), Failure> {
    let client = session.jobs();
    let open = move |_| {
        let mut client = client.clone();
        let namespace = namespace.clone();
        async move { client.watch_status(WatchStatusRequest { namespace }).await }
    };
    let mut changes = keep_open(open, true);
    let mut screen = Screen::new(session.json);
    while let Some(event) = changes.next().await {
        match event {
            Event::Message(message) => screen.show(&message.status.unwrap_or_default())?,
            Event::Lost(reason) => screen.lost(&reason)?,
            Event::Ended => {}
            Event::Failed(status) => return Err(status.into()),
        }
    }
    Ok(())
}

/// Where changes are shown.
enum Screen {
    /// Redrawn in place.
    Terminal {
        /// So many lines are there.
        lines: usize,
        /// What was last known.
        known: String,
    },
    /// A line when the verdict, or a reason, changed.
    Lines(Option<String>),
    /// A line of JSON a change.
    Json,
}

impl Screen {
    fn new(json: bool) -> Self {
        if json {
            Self::Json
        } else if io::stdout().is_terminal() {
            Self::Terminal {
                lines: 0,
                known: String::new(),
            }
        } else {
            Self::Lines(None)
        }
    }

    fn show(&mut self, status: &GetStatusResponse) -> io::Result<()> {
        match self {
            Self::Json => output::json(&view::Status::from(status)),
            Self::Terminal { lines, known } => {
                *known = text(status);
                redraw(lines, known)
            }
            Self::Lines(told) => {
                let now = headline(&total(status));
                if told.as_ref() == Some(&now) {
                    return Ok(());
                }
                output::line(&now)?;
                *told = Some(now);
                Ok(())
            }
        }
    }

    fn lost(&mut self, reason: &str) -> io::Result<()> {
        let text = format!("lost the coordinator, reconnecting: {reason}");
        match self {
            Self::Json => {
                tracing::warn!(reason, "The stream broke; it is opened again.");
                Ok(())
            }
            // What was known stays in sight.
            Self::Terminal { lines, known } => redraw(lines, &format!("{text}\n{known}")),
            Self::Lines(told) => {
                // Once, and the next state after it in any case.
                if told.as_deref().is_none_or(str::is_empty) {
                    return Ok(());
                }
                *told = Some(String::new());
                output::line(text)
            }
        }
    }
}

/// Draws over the lines that were drawn last.
fn redraw(lines: &mut usize, text: &str) -> io::Result<()> {
    let terminal = Term::stdout();
    // What has scrolled out of sight cannot be drawn over.
    let (rows, _) = terminal.size();
    let shown = text.lines().take(usize::from(rows).saturating_sub(1));
    let shown: Vec<&str> = shown.collect();
    terminal.clear_last_lines(*lines)?;
    *lines = shown.len();
    output::fitting(&shown.join("\n"))
}

/// How old the figures of jobs are, where that is worth telling.
fn old(status: &GetStatusResponse) -> Option<String> {
    let age = Duration::try_from_secs_f64(status.jobs_age_seconds).ok()?;
    (age >= OLD).then(|| brief(age))
}

fn total(status: &GetStatusResponse) -> NamespaceStatus {
    status.total.clone().unwrap_or_default()
}

/// The verdict with its reasons.
fn headline(status: &NamespaceStatus) -> String {
    let (verdict, tone) = badge::verdict(status.verdict());
    let reasons = printable(&status.reasons.join(", "));
    let colon = if reasons.is_empty() { "" } else { ": " };
    format!("{}{colon}{reasons}", tone.paint(verdict))
}

/// The verdict and a table of the namespaces.
fn text(status: &GetStatusResponse) -> String {
    let headline = headline(&total(status));
    if status.namespaces.is_empty() {
        return format!("{headline}\nNo sources. Put one: weir put FILE");
    }
    let row = |status: &NamespaceStatus| -> [Cell; 9] {
        let (verdict, tone) = badge::verdict(status.verdict());
        let reasons = printable(&status.reasons.join(", "));
        let colon = if reasons.is_empty() { "" } else { ": " };
        let age = Duration::try_from_secs_f64(status.oldest_ready_age_seconds);
        let oldest = match age {
            Ok(age) if status.jobs_ready > 0 => brief(age),
            _ => "-".to_owned(),
        };
        // A narrow terminal cuts what is on the right.
        [
            status.namespace.as_str().into(),
            Cell::toned(format!("{verdict}{colon}{reasons}"), tone),
            status.chunks_pending.into(),
            (status.jobs_ready + status.jobs_delayed).into(),
            status.jobs_running.into(),
            oldest.into(),
            status.sources.into(),
            status.chunks.into(),
            status.chunks_rejected.into(),
        ]
    };
    let rows: Vec<_> = status.namespaces.iter().map(row).collect();
    let titles = [
        "NAMESPACE",
        "VERDICT",
        ">PENDING",
        ">QUEUED",
        ">RUNNING",
        ">OLDEST",
        ">SOURCES",
        ">CHUNKS",
        ">REJECTED",
    ];
    format!("{headline}\n\n{}", table(titles, &rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::printable::{HOSTILE, assert_harmless};

    #[test]
    fn that_figures_are_old_is_told_of_a_large_queue_alone() {
        let of = |jobs_age_seconds| GetStatusResponse {
            jobs_age_seconds,
            ..GetStatusResponse::default()
        };
        assert_eq!(old(&of(14.2)).as_deref(), Some("14 s"));
        assert_eq!(old(&of(0.2)), None);
        assert_eq!(old(&of(f64::NAN)), None);
    }

    #[test]
    fn the_verdict_comes_first_with_its_reasons() {
        let mut shop = NamespaceStatus {
            namespace: "shop".into(),
            reasons: vec!["2 jobs failed".into(), "1 job is retried".into()],
            sources: 3,
            chunks: 40,
            jobs_ready: 1,
            jobs_delayed: 2,
            oldest_ready_age_seconds: 61.5,
            ..NamespaceStatus::default()
        };
        shop.set_verdict(Verdict::Degraded);
        let status = GetStatusResponse {
            total: Some(shop.clone()),
            namespaces: vec![shop],
            ..GetStatusResponse::default()
        };
        let text = text(&status);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "degraded: 2 jobs failed, 1 job is retried");
        let cells: Vec<&str> = lines[3]
            .split("  ")
            .filter(|cell| !cell.is_empty())
            .collect();
        let cells: Vec<&str> = cells.iter().map(|cell| cell.trim()).collect();
        assert_eq!(
            cells,
            [
                "shop",
                "degraded: 2 jobs failed, 1 job is retried",
                "0",
                "3",
                "0",
                "1 min 01 s",
                "3",
                "40",
                "0"
            ]
        );
    }

    #[test]
    fn a_hostile_name_is_harmless() {
        let status = NamespaceStatus {
            namespace: HOSTILE.into(),
            reasons: vec![HOSTILE.into(), HOSTILE.into()],
            ..NamespaceStatus::default()
        };
        let status = GetStatusResponse {
            total: Some(status.clone()),
            namespaces: vec![status],
            ..GetStatusResponse::default()
        };
        assert_harmless(&text(&status));
    }
}
