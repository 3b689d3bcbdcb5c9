//! What is told of a source where no terminal shows bars: a line when its state
//! changes, and now and then while it moves.

use std::{
    io,
    time::{Duration, Instant, SystemTime},
};

use weir_proto::v1::BadgeState;

use super::progress::Progress;
use crate::output;

/// A source that moves is told this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What was last told of a source, and when.
#[derive(Debug, Default)]
pub(super) struct LastLine {
    time: Option<Instant>,
    state: BadgeState,
    error: String,
    rejected: i64,
    lost: bool,
}

impl LastLine {
    /// Tells a new state if it is worth a line.
    pub(super) fn state(&mut self, name: &str, progress: &Progress) -> io::Result<()> {
        let badge = progress.badge();
        let due = self.time.is_none_or(|time| time.elapsed() >= LINE_EVERY);
        // Of more and more rejections the first is news, and the others wait for their time.
        let counted = self.rejected > 0 && self.rejected != badge.rejected;
        let news = self.error != badge.last_error && !counted;
        let changed = self.state != badge.state() || news;
        if !due && !self.lost && !changed {
            return Ok(());
        }
        *self = Self {
            time: Some(Instant::now()),
            state: badge.state(),
            error: badge.last_error,
            rejected: badge.rejected,
            lost: false,
        };
        output::line(line(name, progress))
    }

    /// Tells once that the connection is gone.
    pub(super) fn lost(&mut self, name: &str, reason: &str) -> io::Result<()> {
        if self.lost {
            return Ok(());
        }
        self.lost = true;
        output::line(format!("{name}  {}", lost(reason)))
    }

    /// Tells how it ended, unless that is what was told last.
    pub(super) fn end(&mut self, name: &str, progress: &Progress) -> io::Result<()> {
        let told = self.time.is_some() && self.state == progress.badge().state() && !self.lost;
        let resting = matches!(self.state, BadgeState::Indexed | BadgeState::Empty);
        if told && resting {
            return Ok(());
        }
        output::line(line(name, progress))
    }
}

/// A source in a line.
pub(super) fn line(name: &str, progress: &Progress) -> String {
    let (text, tone, more) = progress.words(Instant::now(), SystemTime::now());
    let line = format!("{name}  {}  {more}", tone.paint(&text));
    line.trim_end().to_owned()
}

/// That the connection is gone.
pub(super) fn lost(reason: &str) -> String {
    format!("lost the coordinator, reconnecting: {reason}")
}
