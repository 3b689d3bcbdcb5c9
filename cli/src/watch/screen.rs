//! How a watch looks: bars on a terminal, lines elsewhere, JSON for scripts.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant, SystemTime},
};

use console::measure_text_width;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use weir_proto::v1::WatchSourceResponse;

use super::progress::Progress;
use crate::{output, view};

/// Without a terminal, a source that moves is told this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Where a watch is shown.
#[derive(Debug)]
pub(super) enum Screen {
    /// One bar a source, drawn on stderr.
    Bars(Vec<ProgressBar>),
    /// A line now and then.
    Lines(Vec<LastLine>),
    /// A line of JSON a state.
    Json,
}

/// What was last told of a source, and when.
#[derive(Debug, Default)]
pub(super) struct LastLine {
    time: Option<Instant>,
    trouble: Option<String>,
    lost: bool,
}

/// One state, as JSON.
#[derive(Serialize)]
struct State {
    source: Option<view::Source>,
    jobs: Vec<view::Job>,
}

impl Screen {
    /// Chooses by where the output goes.
    pub(super) fn new(names: &[String], json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !io::stderr().is_terminal() || !io::stdout().is_terminal() {
            return Self::Lines(names.iter().map(|_| LastLine::default()).collect());
        }
        let width = names
            .iter()
            .map(|name| measure_text_width(name))
            .max()
            .unwrap_or(0);
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{prefix}  {bar:28}  {pos}/{len}  {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("█▉▊▋▌▍▎▏ ");
        let bar = |name: &String| {
            let bar = all.add(ProgressBar::new(0).with_style(style.clone()));
            bar.set_prefix(format!("{name:width$}"));
            bar
        };
        Self::Bars(names.iter().map(bar).collect())
    }

    /// Shows a new state.
    pub(super) fn state(
        &mut self,
        place: usize,
        name: &str,
        state: &WatchSourceResponse,
        progress: &Progress,
    ) -> io::Result<()> {
        match self {
            Self::Json => output::json(&State {
                source: state.source.as_ref().map(Into::into),
                jobs: view::all(&state.jobs),
            }),
            Self::Bars(bars) => {
                draw(&bars[place], progress);
                Ok(())
            }
            Self::Lines(lines) => lines[place].state(name, progress),
        }
    }

    /// Shows that a source's stream broke and is opened again.
    pub(super) fn lost(&mut self, place: usize, name: &str, reason: &str) -> io::Result<()> {
        match self {
            Self::Json => {
                tracing::warn!(
                    source = name,
                    reason,
                    "The stream broke; it is opened again."
                );
            }
            Self::Bars(bars) => {
                bars[place].set_message(format!("lost the coordinator, reconnecting: {reason}"));
            }
            Self::Lines(lines) if !lines[place].lost => {
                lines[place].lost = true;
                output::line(format!(
                    "{name}  lost the coordinator, reconnecting: {reason}"
                ))?;
            }
            Self::Lines(_) => {}
        }
        Ok(())
    }

    /// Shows how a source ended.
    pub(super) fn end(&mut self, place: usize, name: &str, verdict: &str) -> io::Result<()> {
        match self {
            Self::Json => Ok(()),
            Self::Bars(bars) => {
                bars[place].abandon_with_message(verdict.to_owned());
                Ok(())
            }
            Self::Lines(_) => output::line(format!("{name}  {verdict}")),
        }
    }

    /// Brings what depends on the time up to date: the seconds until a retry.
    pub(super) fn tick(&self, progress: &[Progress]) {
        if let Self::Bars(bars) = self {
            for (bar, progress) in bars.iter().zip(progress) {
                if !bar.is_finished() && progress.trouble(SystemTime::now()).is_some() {
                    draw(bar, progress);
                }
            }
        }
    }
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    let (done, chunks) = progress.position();
    bar.set_length(chunks);
    bar.set_position(done);
    bar.set_message(message(progress));
}

fn message(progress: &Progress) -> String {
    let figures = progress.figures(Instant::now());
    match progress.trouble(SystemTime::now()) {
        Some(trouble) if figures.is_empty() => trouble,
        Some(trouble) => format!("{figures}  {trouble}"),
        None => figures,
    }
}

impl LastLine {
    fn state(&mut self, name: &str, progress: &Progress) -> io::Result<()> {
        // The time until a retry changes all the time; its reason does not.
        let trouble = progress.trouble(SystemTime::UNIX_EPOCH);
        let due = self.time.is_none_or(|time| time.elapsed() >= LINE_EVERY);
        if !due && !self.lost && trouble == self.trouble {
            return Ok(());
        }
        *self = Self {
            time: Some(Instant::now()),
            trouble,
            lost: false,
        };
        let (done, chunks) = progress.position();
        output::line(format!("{name}  {done}/{chunks}  {}", message(progress)).trim_end())
    }
}
