//! How a watch of many sources looks: as many bars as there is room for, lines
//! elsewhere, JSON for scripts; and all together in one line.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use serde::Serialize;
use weir_proto::v1::{self, NamespaceStatus, Verdict, WatchSourcesResponse};

use super::{
    bars::{self, Bars, draw},
    crowd::{Crowd, Key},
    lines::{LastLine, line, lost},
    progress::Progress,
    rate::Rate,
};
use crate::{
    badge, connect::Session, failure::Failure, output, printable::printable, table::Tone, view,
};

/// Without a terminal, all together is told this often while it moves.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Columns for names, which come and go.
const NAME_COLUMNS: usize = 24;

/// What is shown, and where.
pub(super) struct Board {
    session: Session,
    everywhere: bool,
    crowd: Crowd,
    rate: Rate,
    kind: Kind,
}

enum Kind {
    Bars {
        bars: Bars,
        slots: Vec<ProgressBar>,
        total: ProgressBar,
    },
    Lines {
        sources: BTreeMap<Key, LastLine>,
        total: Option<(Instant, Verdict, Vec<String>)>,
        lost: bool,
    },
    Json,
}

#[derive(Serialize)]
struct Sources {
    sources: Vec<view::Summary>,
    gone: Vec<view::Key>,
}

#[derive(Serialize)]
struct Status {
    status: view::Status,
}

impl Board {
    pub(super) fn new(session: &Session, everywhere: bool) -> Self {
        let kind = if session.json {
            Kind::Json
        } else if bars::are_possible() {
            let bars = Bars::new(NAME_COLUMNS);
            let total = bars.add("all");
            Kind::Bars {
                bars,
                slots: Vec::new(),
                total,
            }
        } else {
            Kind::Lines {
                sources: BTreeMap::new(),
                total: None,
                lost: false,
            }
        };
        Self {
            session: session.clone(),
            everywhere,
            crowd: Crowd::default(),
            rate: Rate::default(),
            kind,
        }
    }

    fn name(&self, (namespace, name): &Key) -> String {
        name_of(namespace, name, self.everywhere)
    }

    /// Takes and shows what changed of the sources.
    pub(super) async fn sources(&mut self, message: WatchSourcesResponse) -> Result<(), Failure> {
        if let Kind::Json = self.kind {
            if !message.sources.is_empty() || !message.gone.is_empty() {
                output::json(&Sources {
                    sources: view::all(&message.sources),
                    gone: view::all(&message.gone),
                })?;
            }
            return Ok(());
        }
        let (changed, gone) = self.crowd.update(message, Instant::now());
        if let Kind::Bars { .. } = self.kind {
            self.draw();
            return Ok(());
        }
        for key in changed {
            let name = self.name(&key);
            if let (Kind::Lines { sources, .. }, Some(progress)) =
                (&mut self.kind, self.crowd.get(&key))
            {
                sources.entry(key).or_default().state(&name, progress)?;
            }
        }
        for key in gone {
            let name = self.name(&key);
            if let Kind::Lines { sources, .. } = &mut self.kind {
                sources.remove(&key);
            }
            output::line(self.farewell(&name, key).await)?;
        }
        Ok(())
    }

    /// A source that has nothing open any more, in a line.
    async fn farewell(&self, name: &str, (namespace, source): Key) -> String {
        let request = v1::GetSourceRequest {
            namespace,
            name: source,
        };
        match self.session.sources().get_source(request).await {
            Ok(answer) => {
                let mut progress = Progress::default();
                let source = answer.into_inner().source.unwrap_or_default();
                progress.update(source, Instant::now());
                line(name, &progress)
            }
            Err(status) if status.code() == tonic::Code::NotFound => format!("{name}  deleted"),
            // The watch goes on, whatever becomes of this question.
            Err(_) => format!("{name}  nothing is open any more"),
        }
    }

    /// Shows how the whole stands.
    pub(super) fn status(
        &mut self,
        status: &v1::GetStatusResponse,
        now: &NamespaceStatus,
    ) -> io::Result<()> {
        let (words, tone) = self.words(now);
        match &mut self.kind {
            Kind::Json => output::json(&Status {
                status: status.into(),
            }),
            Kind::Bars { total, .. } => {
                total.set_length(now.chunks.max(0) as u64);
                total.set_position((now.chunks - now.chunks_pending).max(0) as u64);
                total.set_message(tone.paint_stderr(&words));
                Ok(())
            }
            Kind::Lines { total, lost, .. } => {
                let told = total.as_ref().is_some_and(|(time, verdict, reasons)| {
                    time.elapsed() < LINE_EVERY
                        && *verdict == now.verdict()
                        && *reasons == now.reasons
                });
                if told && !*lost {
                    return Ok(());
                }
                *lost = false;
                *total = Some((Instant::now(), now.verdict(), now.reasons.clone()));
                output::line(format!("all  {}", tone.paint(&words)))
            }
        }
    }

    /// The whole in words: how far, how fast, and the verdict.
    fn words(&mut self, now: &NamespaceStatus) -> (String, Tone) {
        let done = (now.chunks - now.chunks_pending).max(0) as u64;
        let instant = Instant::now();
        self.rate.sample(done, instant);
        let mut parts = vec![format!("{done}/{}", now.chunks)];
        if now.chunks_pending > 0 {
            let left = now.chunks_pending.max(0) as u64;
            parts.extend(self.rate.figures(left, instant));
        }
        let (verdict, tone) = badge::verdict(now.verdict());
        parts.push(if now.reasons.is_empty() {
            verdict.to_owned()
        } else {
            format!("{verdict}: {}", printable(&now.reasons.join(", ")))
        });
        let shown = bars::room();
        if matches!(self.kind, Kind::Bars { .. }) && self.crowd.len() > shown {
            let hidden = self.crowd.len() - shown;
            let at_least = if self.crowd.more { "at least " } else { "" };
            parts.push(format!("{at_least}{hidden} more open"));
        }
        (parts.join("  "), tone)
    }

    pub(super) fn lost(&mut self, reason: &str) -> io::Result<()> {
        self.crowd.begin_anew();
        match &mut self.kind {
            Kind::Json => tracing::warn!(reason, "The stream broke; it is opened again."),
            Kind::Bars { total, .. } => total.set_message(lost(reason)),
            Kind::Lines { lost: told, .. } if !*told => {
                *told = true;
                output::line(format!("all  {}", lost(reason)))?;
            }
            Kind::Lines { .. } => {}
        }
        Ok(())
    }

    /// Gives the busiest sources the bars that there is room for.
    fn draw(&mut self) {
        let Self {
            crowd,
            kind,
            everywhere,
            ..
        } = self;
        let Kind::Bars { bars, slots, total } = kind else {
            return;
        };
        let busiest = crowd.busiest(bars::room());
        while slots.len() < busiest.len() {
            slots.push(bars.add_above(total));
        }
        for bar in slots.drain(busiest.len()..) {
            bars.remove(&bar);
        }
        for (bar, ((namespace, name), progress)) in slots.iter().zip(busiest) {
            bars.rename(bar, &name_of(namespace, name, *everywhere));
            draw(bar, progress);
        }
    }

    /// Leaves the last word where it can be read.
    pub(super) fn end(
        &mut self,
        status: &v1::GetStatusResponse,
        now: &NamespaceStatus,
    ) -> io::Result<()> {
        let (words, tone) = self.words(now);
        match &mut self.kind {
            Kind::Json => output::json(&Status {
                status: status.into(),
            })?,
            Kind::Bars { slots, total, .. } => {
                for bar in slots {
                    bar.abandon();
                }
                total.abandon_with_message(tone.paint_stderr(&words));
            }
            Kind::Lines { .. } => output::line(format!("all  {}", tone.paint(&words)))?,
        }
        Ok(())
    }
}

/// A source as it is shown; with its namespace where there are several.
fn name_of(namespace: &str, name: &str, everywhere: bool) -> String {
    if everywhere {
        printable(&format!("{namespace}/{name}"))
    } else {
        printable(name)
    }
}
