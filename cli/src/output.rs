//! Writing to stdout: lines and JSON; and what times and numbers read like.

use std::{
    io::{self, Write as _},
    time::{Duration, SystemTime},
};

use console::{Term, truncate_str};
use serde::Serialize;

use crate::printable::harmless;

/// Writes a line to stdout, or several. What commands a terminal, other than
/// our colours, is not among them.
pub(crate) fn line(text: impl AsRef<str>) -> io::Result<()> {
    write(&harmless(text.as_ref()))
}

/// Writes a JSON document to stdout, on one line, exactly as it is.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    write(&serde_json::to_string(value).map_err(io::Error::other)?)
}

fn write(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Writes lines to stdout, each cut to the width of the terminal if it is one.
pub(crate) fn fitting(text: &str) -> io::Result<()> {
    let Some((_, columns)) = Term::stdout().size_checked() else {
        return line(text);
    };
    let cut: Vec<_> = text
        .lines()
        .map(|line| truncate_str(line, columns.into(), "…"))
        .collect();
    line(cut.join("\n"))
}

/// A count with its noun: "1 job", "2 jobs".
pub(crate) fn count(number: i64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A duration for people, in its largest unit or two.
pub(crate) fn brief(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {:02} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// How long from `now` until a moment; zero when it has passed or is not set.
pub(crate) fn until(moment: Option<prost_types::Timestamp>, now: SystemTime) -> Duration {
    moment
        .and_then(|moment| SystemTime::try_from(moment).ok())
        .and_then(|moment| moment.duration_since(now).ok())
        .unwrap_or_default()
}

/// How long ago a moment was, for people; "-" when it is not set.
pub(crate) fn ago(moment: Option<prost_types::Timestamp>, now: SystemTime) -> String {
    moment
        .and_then(|moment| SystemTime::try_from(moment).ok())
        .map_or_else(
            || "-".to_owned(),
            |moment| {
                format!(
                    "{} ago",
                    brief(now.duration_since(moment).unwrap_or_default())
                )
            },
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let brief = |seconds| brief(Duration::from_secs(seconds));
        assert_eq!(brief(0), "0 s");
        assert_eq!(brief(61), "1 min 01 s");
        assert_eq!(brief(3_600), "1 h 00 min");
        assert_eq!(brief(90_000), "1 d 01 h");
    }

    #[test]
    fn moments_that_passed_are_zero_away() {
        let now = SystemTime::now();
        let moment = |time: SystemTime| Some(prost_types::Timestamp::from(time));
        let later = until(moment(now + Duration::from_secs(12)), now);
        assert_eq!(later.as_secs(), 12);
        assert_eq!(
            until(moment(now - Duration::from_secs(12)), now),
            Duration::ZERO
        );
        assert_eq!(until(None, now), Duration::ZERO);
        assert_eq!(ago(moment(now - Duration::from_secs(12)), now), "12 s ago");
        assert_eq!(ago(None, now), "-");
    }
}
