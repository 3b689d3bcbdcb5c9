//! How a watch of named sources looks: bars on a terminal, lines elsewhere,
//! JSON for scripts.

use std::{
    io,
    time::{Instant, SystemTime},
};

use console::measure_text_width;
use indicatif::ProgressBar;
use serde::Serialize;
use weir_proto::v1::WatchSourceResponse;

use super::{
    bars::{self, Bars, draw, message},
    lines::{LastLine, lost},
    progress::{End, Progress},
    rate::Rate,
};
use crate::{badge, output, printable::printable, view};

/// Where a watch is shown.
#[derive(Debug)]
pub(super) struct Screen {
    names: Vec<String>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// One bar a source, and one for all of them together where there are
    /// several.
    Bars(Vec<ProgressBar>, Option<Total>),
    /// A line now and then.
    Lines(Vec<LastLine>),
    /// A line of JSON a state.
    Json,
}

/// All sources together.
#[derive(Debug)]
struct Total {
    bar: ProgressBar,
    rate: Rate,
}

/// One state, as JSON.
#[derive(Serialize)]
struct State {
    source: Option<view::Source>,
    jobs: Vec<view::Job>,
    ended: Vec<view::Job>,
}

impl Screen {
    /// Chooses by where the output goes.
    pub(super) fn new(names: &[String], json: bool) -> Self {
        let names: Vec<String> = names.iter().map(|name| printable(name)).collect();
        let kind = if json {
            Kind::Json
        } else if bars::are_possible() {
            let widths = names.iter().map(|name| measure_text_width(name));
            let bars = Bars::new(widths.max().unwrap_or(0));
            let each = names.iter().map(|name| bars.add(name)).collect();
            let total = (names.len() > 1).then(|| Total {
                bar: bars.add("all"),
                rate: Rate::default(),
            });
            Kind::Bars(each, total)
        } else {
            Kind::Lines(names.iter().map(|_| LastLine::default()).collect())
        };
        Self { names, kind }
    }

    /// Shows a new state of the source at this place.
    pub(super) fn state(
        &mut self,
        place: usize,
        state: &WatchSourceResponse,
        progress: &[Progress],
    ) -> io::Result<()> {
        match &mut self.kind {
            Kind::Json => output::json(&State {
                source: state.source.as_ref().map(Into::into),
                jobs: view::all(&state.jobs),
                ended: view::all(&state.ended),
            }),
            Kind::Bars(bars, total) => {
                draw(&bars[place], &progress[place]);
                if let Some(total) = total {
                    total.draw(progress);
                }
                Ok(())
            }
            Kind::Lines(lines) => lines[place].state(&self.names[place], &progress[place]),
        }
    }

    /// Shows that a source's stream broke and is opened again.
    pub(super) fn lost(&mut self, place: usize, reason: &str) -> io::Result<()> {
        let source = &self.names[place];
        match &mut self.kind {
            Kind::Json => {
                tracing::warn!(source, reason, "The stream broke; it is opened again.");
            }
            Kind::Bars(bars, _) => bars[place].set_message(lost(reason)),
            Kind::Lines(lines) => lines[place].lost(source, reason)?,
        }
        Ok(())
    }

    /// Shows how a source ended.
    pub(super) fn end(&mut self, place: usize, progress: &Progress) -> io::Result<()> {
        match &mut self.kind {
            Kind::Json => {}
            Kind::Bars(bars, _) => bars[place].abandon_with_message(message(progress)),
            Kind::Lines(lines) => lines[place].end(&self.names[place], progress)?,
        }
        Ok(())
    }

    /// Shows why a source cannot be watched.
    pub(super) fn fail(&mut self, place: usize, fate: &str) -> io::Result<()> {
        match &mut self.kind {
            Kind::Json => Ok(()),
            Kind::Bars(bars, _) => {
                bars[place].abandon_with_message(fate.to_owned());
                Ok(())
            }
            Kind::Lines(_) => output::line(format!("{}  {fate}", self.names[place])),
        }
    }

    /// Brings what depends on the time up to date: the seconds until a retry.
    pub(super) fn tick(&self, progress: &[Progress]) {
        if let Kind::Bars(bars, _) = &self.kind {
            for (bar, progress) in bars.iter().zip(progress) {
                let waits = badge::trouble(&progress.badge(), SystemTime::now()).is_some();
                if !bar.is_finished() && waits {
                    draw(bar, progress);
                }
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Kind::Bars(_, Some(total)) = &self.kind {
            total.bar.abandon();
        }
    }
}

impl Total {
    fn draw(&mut self, progress: &[Progress]) {
        let positions = progress.iter().map(Progress::position);
        let (done, chunks) = positions.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let now = Instant::now();
        self.rate.sample(done, now);
        let complete = progress
            .iter()
            .filter(|one| one.end() == End::Complete)
            .count();
        let mut parts = vec![
            format!("{done}/{chunks}"),
            format!("{complete} of {} complete", progress.len()),
        ];
        if done < chunks {
            parts.extend(self.rate.figures(chunks - done, now));
        }
        self.bar.set_length(chunks);
        self.bar.set_position(done);
        self.bar.set_message(parts.join("  "));
    }
}
