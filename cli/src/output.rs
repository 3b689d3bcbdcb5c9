//! Writing to stdout: lines, tables and JSON.

use std::{
    io::{self, Write as _},
    time::{Duration, SystemTime},
};

use console::{measure_text_width, truncate_str};
use serde::Serialize;

/// Longest cell of a table, in columns of the terminal.
const MAX_CELL: usize = 60;

/// Writes a line to stdout.
pub(crate) fn line(text: impl AsRef<str>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", text.as_ref())?;
    stdout.flush()
}

/// Writes a JSON document to stdout, on one line.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string(value).map_err(io::Error::other)?)
}

/// Text from elsewhere that is safe to show: on one line, and without the
/// control characters that a terminal obeys.
pub(crate) fn printable(text: &str) -> String {
    let safe = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.trim().chars().map(safe).collect()
}

/// Rows in aligned columns, two spaces apart, under their titles. Columns
/// whose title begins with `>` are aligned to the right. The last column is
/// not cut.
pub(crate) fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let clean = |row: &[String; N]| -> [String; N] {
        std::array::from_fn(|column| {
            let cell = printable(&row[column]);
            if column + 1 == N {
                cell
            } else {
                truncate_str(&cell, MAX_CELL, "…").into_owned()
            }
        })
    };
    let head = titles.map(|title| title.trim_start_matches('>').to_owned());
    let rows: Vec<[String; N]> = std::iter::once(head)
        .chain(rows.iter().map(clean))
        .collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter()
            .map(|row| measure_text_width(&row[column]))
            .max()
            .unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let mut written = String::new();
        for (column, cell) in row.iter().enumerate() {
            let gap = " ".repeat(widths[column] - measure_text_width(cell));
            let cells = if titles[column].starts_with('>') {
                [&gap, cell]
            } else {
                [cell, &gap]
            };
            written.extend(cells.map(String::as_str));
            written.push_str("  ");
        }
        text.push_str(written.trim_end());
        text.push('\n');
    }
    text.pop();
    text
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
    fn tables_align_by_width_on_screen() {
        let rows = [
            ["日本".to_owned(), "7".to_owned(), "a\nb".to_owned()],
            ["x".to_owned(), "1000".to_owned(), String::new()],
        ];
        assert_eq!(
            table(["NAME", ">COUNT", "NOTE"], &rows),
            "NAME  COUNT  NOTE\n日本      7  a b\nx      1000"
        );
    }

    #[test]
    fn long_cells_are_cut_except_the_last() {
        let long = "x".repeat(100);
        let text = table(["A", "B"], &[[long.clone(), long.clone()]]);
        let expected = format!("{}…  {long}", "x".repeat(59));
        assert_eq!(text.lines().nth(1), Some(expected.as_str()));
    }

    #[test]
    fn terminals_are_not_commanded_by_content() {
        assert_eq!(printable(" a\u{1b}[2J\nb\u{7} "), "a\u{fffd}[2J b\u{fffd}");
    }

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
