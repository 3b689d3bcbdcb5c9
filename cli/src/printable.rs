//! Text from elsewhere, made safe for a terminal: nothing in it moves the
//! cursor, changes colours, turns the direction of writing round or cannot be
//! seen.

use std::borrow::Cow;

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};

/// What is shown for a character that is not.
const INSTEAD: char = '\u{fffd}';

/// The text on one line: breaks and spaces of any kind become one space each,
/// what a terminal obeys or nobody sees becomes `�`. `--json` has the exact
/// text.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut before = None;
    let mut rest = text.trim().chars();
    while let Some(char) = rest.next() {
        let after = rest.clone().next();
        shown.push(safe(before, char, after));
        before = Some(char);
    }
    shown
}

/// Lines of our own making, in which text from elsewhere is printable already:
/// whatever was forgotten is made safe; line ends and our colours stay.
pub(crate) fn harmless(lines: &str) -> Cow<'_, str> {
    if lines
        .bytes()
        .all(|byte| matches!(byte, b'\n' | b' '..=b'~'))
    {
        return Cow::Borrowed(lines);
    }
    let mut shown = String::with_capacity(lines.len());
    let (mut before, mut rest) = (None, lines);
    while let Some(char) = rest.chars().next() {
        let colour = colour(rest);
        if colour > 0 {
            shown.push_str(&rest[..colour]);
            rest = &rest[colour..];
            continue;
        }
        rest = &rest[char.len_utf8()..];
        shown.push(match char {
            '\n' => '\n',
            _ => safe(before, char, rest.chars().next()),
        });
        before = Some(char);
    }
    Cow::Owned(shown)
}

/// The bytes of a colour at the beginning of the text: `ESC [ 31 m`.
fn colour(text: &str) -> usize {
    let Some(after) = text.strip_prefix("\u{1b}[") else {
        return 0;
    };
    let digits = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
    match digits.strip_prefix('m') {
        Some(rest) => text.len() - rest.len(),
        None => 0,
    }
}

/// What is shown for a character between these two.
fn safe(before: Option<char>, char: char, after: Option<char>) -> char {
    match char {
        ' '..='~' => char,
        _ if char.is_whitespace() => ' ',
        '\u{200c}' | '\u{200d}' if joins(before, after) => char,
        '\u{fe0e}' | '\u{fe0f}' if is_drawn(before, after) => char,
        _ if is_visible(char) => char,
        _ => INSTEAD,
    }
}

/// Whether a joiner between these two is part of how they are written: in
/// scripts whose letters change their shape, and in emoji of several parts.
fn joins(before: Option<char>, after: Option<char>) -> bool {
    let both = |what: fn(char) -> bool| before.is_some_and(what) && after.is_some_and(what);
    // Arabic to Khmer and Mongolian.
    let is_shaped = |char: char| matches!(char, '\u{620}'..='\u{1cff}') && is_visible(char);
    both(is_shaped) || both(is_emoji)
}

/// Whether a selector of the drawing belongs to the character before it.
fn is_drawn(before: Option<char>, after: Option<char>) -> bool {
    const KEYCAP: Option<char> = Some('\u{20e3}');
    match before {
        Some('0'..='9' | '#' | '*') => after == KEYCAP,
        Some('\u{fe0e}' | '\u{fe0f}') | None => false,
        Some(char) => is_emoji(char) || matches!(char, '©' | '®' | '‼' | '⁉' | '™' | 'ℹ'),
    }
}

fn is_emoji(char: char) -> bool {
    matches!(char, '\u{2190}'..='\u{27bf}' | '\u{2900}'..='\u{2bff}' | '\u{fe0f}' | '\u{1f000}'..='\u{1faff}')
}

fn is_visible(char: char) -> bool {
    match char.general_category() {
        GeneralCategory::Control
        | GeneralCategory::LineSeparator
        | GeneralCategory::ParagraphSeparator
        | GeneralCategory::Surrogate
        | GeneralCategory::PrivateUse
        | GeneralCategory::Unassigned => false,
        // Those of Arabic and Kaithi that stand under or above a number.
        GeneralCategory::Format => matches!(
            char,
            '\u{600}'
                ..='\u{605}'
                    | '\u{6dd}'
                    | '\u{70f}'
                    | '\u{890}'
                    | '\u{891}'
                    | '\u{8e2}'
                    | '\u{110bd}'
                    | '\u{110cd}'
        ),
        // Letters and marks of other kinds that nobody sees.
        _ => !matches!(
            char,
            '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
                | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}'
                | '\u{e0100}'..='\u{e01ef}'
        ),
    }
}

/// A name for tests that commands a terminal in every way.
#[cfg(test)]
pub(crate) const HOSTILE: &str = "a\u{1b}[2J\u{1b}[31m\u{9b}1m\r\nb\u{202e}c\u{2066}d\u{200b}e\u{feff}f\u{2028}g\u{e0041}h\u{7f}";

/// Checks that what a command shows of [`HOSTILE`] commands nothing.
#[cfg(test)]
pub(crate) fn assert_harmless(shown: &str) {
    let free = console::strip_ansi_codes(shown);
    assert_eq!(shown, free, "it has colours of its own, or a foreign one");
    assert_eq!(
        shown,
        harmless(shown),
        "not all of it went through printable"
    );
    assert!(
        shown.contains("a\u{fffd}[2J"),
        "it does not show it: {shown}"
    );
}

#[cfg(test)]
mod tests;
