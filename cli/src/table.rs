//! Tables: aligned columns, in colours where the terminal shows them.

use console::{Style, measure_text_width, truncate_str};

use crate::printable::printable;

/// Longest cell of a table, in columns of the terminal.
const MAX_CELL: usize = 60;

/// How something is meant, and so its colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Neither good nor bad.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// On its way.
    Busy,
    /// Worth a look.
    Doubtful,
    /// Wrong.
    Bad,
}

impl Tone {
    /// Text for stdout, coloured where that is a terminal with colours and
    /// nobody objects (`NO_COLOR`).
    pub(crate) fn paint(self, text: &str) -> String {
        self.style().apply_to(text).to_string()
    }

    /// Text for stderr.
    pub(crate) fn paint_stderr(self, text: &str) -> String {
        self.style().for_stderr().apply_to(text).to_string()
    }

    fn style(self) -> Style {
        let plain = Style::new();
        match self {
            Self::Plain => plain,
            Self::Good => plain.green(),
            Self::Busy => plain.cyan(),
            Self::Doubtful => plain.yellow(),
            Self::Bad => plain.red(),
        }
    }
}

/// A cell of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell with a meaning.
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::from(number.to_string())
    }
}

/// Rows in aligned columns, two spaces apart, under their titles. Columns
/// whose title begins with `>` are aligned to the right. The last column is
/// not cut.
pub(crate) fn table<const N: usize>(titles: [&str; N], rows: &[[Cell; N]]) -> String {
    let clean = |row: &[Cell; N]| -> [Cell; N] {
        std::array::from_fn(|column| {
            let (text, tone) = (printable(&row[column].text), row[column].tone);
            if column + 1 == N {
                Cell { text, tone }
            } else {
                Cell::toned(truncate_str(&text, MAX_CELL, "…"), tone)
            }
        })
    };
    let head = titles.map(|title| Cell::from(title.trim_start_matches('>')));
    let rows: Vec<[Cell; N]> = std::iter::once(head)
        .chain(rows.iter().map(clean))
        .collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let widths = rows.iter().map(|row| measure_text_width(&row[column].text));
        widths.max().unwrap_or(0)
    });
    let line = |row: &[Cell; N]| {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let gap = " ".repeat(widths[column] - measure_text_width(&cell.text));
            let text = cell.tone.paint(&cell.text);
            let cells = if titles[column].starts_with('>') {
                [gap, text]
            } else {
                [text, gap]
            };
            line.extend(cells);
            line.push_str("  ");
        }
        line.trim_end().to_owned()
    };
    let lines: Vec<String> = rows.iter().map(line).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_in_terminal_columns() {
        let rows = [
            ["日本".into(), 7.into(), "a\nb".into()],
            ["x".into(), 1000.into(), "".into()],
        ];
        assert_eq!(
            table(["NAME", ">COUNT", "NOTE"], &rows),
            "NAME  COUNT  NOTE\n日本      7  a b\nx      1000"
        );
    }

    #[test]
    fn long_cells_are_cut_except_the_last() {
        let long = "x".repeat(100);
        let text = table(["A", "B"], &[[long.as_str().into(), long.as_str().into()]]);
        let expected = format!("{}…  {long}", "x".repeat(59));
        assert_eq!(text.lines().nth(1), Some(expected.as_str()));
    }

    #[test]
    fn nothing_is_coloured_where_no_terminal_reads_it() {
        let rows = [[Cell::toned("failed", Tone::Bad), "".into()]];
        assert_eq!(table(["STATUS", ""], &rows), "STATUS\nfailed");
    }
}
