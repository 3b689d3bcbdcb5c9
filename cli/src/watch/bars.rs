//! Bars on a terminal.

use std::{
    io::{self, IsTerminal as _},
    time::{Instant, SystemTime},
};

use console::{Term, measure_text_width, truncate_str};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::progress::Progress;

/// Widest name beside a bar, in columns; a third of a narrow terminal.
const MAX_NAME: usize = 40;

/// Bars under each other, drawn on stderr.
pub(super) struct Bars {
    all: MultiProgress,
    style: ProgressStyle,
    width: usize,
}

/// Whether there is a terminal to draw on, and nobody reads the output
/// elsewhere.
pub(super) fn are_possible() -> bool {
    io::stderr().is_terminal() && io::stdout().is_terminal()
}

/// How many bars a terminal has room for beside the line with all together.
pub(super) fn room() -> usize {
    let (rows, _) = Term::stderr().size();
    usize::from(rows).saturating_sub(3).clamp(1, 20)
}

impl Bars {
    /// Bars for names of up to `longest` columns.
    pub(super) fn new(longest: usize) -> Self {
        let (_, columns) = Term::stderr().size();
        let columns = usize::from(columns);
        let bar = if columns < 80 { 10 } else { 28 };
        let template = format!("{{prefix}}  {{bar:{bar}}}  {{wide_msg}}");
        let style = ProgressStyle::with_template(&template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("█▉▊▋▌▍▎▏ ");
        Self {
            all: MultiProgress::new(),
            style,
            width: longest.min(MAX_NAME).min(columns / 3),
        }
    }

    /// Adds a bar below the others.
    pub(super) fn add(&self, name: &str) -> ProgressBar {
        let bar = self.all.add(self.bar());
        self.rename(&bar, name);
        bar
    }

    /// Adds a bar above another.
    pub(super) fn add_above(&self, below: &ProgressBar) -> ProgressBar {
        self.all.insert_before(below, self.bar())
    }

    /// Takes a bar away.
    pub(super) fn remove(&self, bar: &ProgressBar) {
        bar.finish_and_clear();
        self.all.remove(bar);
    }

    /// Gives a bar another name.
    pub(super) fn rename(&self, bar: &ProgressBar, name: &str) {
        let cut = truncate_str(name, self.width, "…");
        let gap = self.width.saturating_sub(measure_text_width(&cut));
        bar.set_prefix(format!("{cut}{}", " ".repeat(gap)));
    }

    fn bar(&self) -> ProgressBar {
        ProgressBar::new(0).with_style(self.style.clone())
    }
}

/// Shows a source on a bar.
pub(super) fn draw(bar: &ProgressBar, progress: &Progress) {
    let (done, chunks) = progress.position();
    bar.set_length(chunks);
    bar.set_position(done);
    bar.set_message(message(progress));
}

/// What stands beside the bar of a source.
pub(super) fn message(progress: &Progress) -> String {
    let (text, tone, more) = progress.words(Instant::now(), SystemTime::now());
    format!("{}  {more}", tone.paint_stderr(&text))
}
