//! Text as it was meant: without escapes, in lower case, with one space
//! between words.

use std::ops::Range;

/// A character, and where it stands in the text.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) char: char,
    pub(super) at: Range<usize>,
    /// Whether it belongs to one word with the character before it.
    pub(super) joined: bool,
}

impl Letter {
    /// Whether it is a letter or a digit.
    pub(super) fn is_word(&self) -> bool {
        self.char.is_alphanumeric()
    }
}

/// Whether a letter of this kind makes a word with its neighbours. Ideographs,
/// kana and hangul, which begin here, are written without spaces.
pub(super) fn is_joining(char: char) -> bool {
    char < '\u{2e80}'
}

/// The letters of a text.
pub(super) fn letters(text: &str) -> impl Iterator<Item = Letter> {
    let mut at = 0;
    let mut before = ' ';
    let decoded = std::iter::from_fn(move || {
        let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
        let (char, len) = decode(rest);
        let from = at;
        at += len;
        Some((char, from..at))
    });
    decoded
        .flat_map(|(char, at)| {
            let char = if char.is_whitespace() || char.is_control() {
                ' '
            } else {
                char
            };
            let lower = char.to_lowercase();
            lower.map(move |char| (char, at.clone()))
        })
        .filter_map(move |(char, at)| {
            let again = char == ' ' && before == ' ';
            let joined = char.is_alphanumeric()
                && before.is_alphanumeric()
                && is_joining(char)
                && is_joining(before);
            before = char;
            (!again).then_some(Letter { char, at, joined })
        })
}

/// The first character of a text that is not empty, and the bytes that it
/// takes: one that JSON, Rust, Python, HTML or a URL escapes may take many, also
/// where it was escaped twice.
fn decode(text: &str) -> (char, usize) {
    let plain = text.chars().next().unwrap_or('\u{fffd}');
    let decoded = match plain {
        '\\' => backslash(text),
        '%' => bytes(text, "%"),
        '&' => entity(text),
        _ => None,
    };
    decoded.unwrap_or((plain, plain.len_utf8()))
}

/// `\n`, `\"`, `\u00e9`, `\ud83d\ude00`, `\u{e9}`, `\U000000e9`, `\xc3\xa9`,
/// after any number of backslashes.
fn backslash(text: &str) -> Option<(char, usize)> {
    let rest = text.trim_start_matches('\\');
    let slashes = text.len() - rest.len();
    let whole = |(char, len)| (char, slashes + len);
    match rest.chars().next() {
        Some('n' | 'r' | 't' | 'b' | 'f' | 'v' | '0') => Some((' ', slashes + 1)),
        Some('u') => braced(rest).or_else(|| utf16(rest)).map(whole),
        Some('U') => {
            let char = char::from_u32(hex(rest.get(1..9)?)?)?;
            Some((char, slashes + 9))
        }
        Some('x') => bytes(text, &text[..=slashes]).or_else(|| {
            let latin1 = hex(rest.get(1..3)?)?;
            Some((char::from_u32(latin1)?, slashes + 3))
        }),
        Some(char) if !char.is_alphanumeric() => Some((char, slashes + char.len_utf8())),
        // A backslash of its own.
        _ => Some(('\\', slashes)),
    }
}

/// `u{1f600}`.
fn braced(text: &str) -> Option<(char, usize)> {
    let (digits, _) = text.strip_prefix("u{")?.split_once('}')?;
    Some((char::from_u32(hex(digits)?)?, digits.len() + 3))
}

/// `u00e9`, or a pair of surrogates.
fn utf16(text: &str) -> Option<(char, usize)> {
    let first = hex(text.get(1..5)?)?;
    if let Some(char) = char::from_u32(first) {
        return Some((char, 5));
    }
    let rest = &text[5..];
    let digits = rest.trim_start_matches('\\');
    let slashes = rest.len() - digits.len();
    let second = hex(digits.strip_prefix('u')?.get(..4)?)?;
    let pair = [u16::try_from(first).ok()?, u16::try_from(second).ok()?];
    let char = char::decode_utf16(pair).next()?.ok()?;
    Some((char, 5 + slashes + 5))
}

/// Bytes of UTF-8, each after `mark`: `\xc3\xa9`, `%C3%A9`.
fn bytes(text: &str, mark: &str) -> Option<(char, usize)> {
    let step = mark.len() + 2;
    let byte = |number: usize| {
        let digits = text.get(number * step..)?.strip_prefix(mark)?.get(..2)?;
        u8::try_from(hex(digits)?).ok()
    };
    let count = match byte(0)? {
        0x00..=0x7f => 1,
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let found: Option<Vec<u8>> = (0..count).map(byte).collect();
    let char = str::from_utf8(&found?).ok()?.chars().next()?;
    Some((char, count * step))
}

/// `&quot;`, `&#39;`, `&#x27;`.
fn entity(text: &str) -> Option<(char, usize)> {
    const LONGEST: usize = 10;
    let end = text.bytes().take(LONGEST).position(|byte| byte == b';')?;
    let name = text.get(1..end)?;
    let char = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => ' ',
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(digits) => hex(digits)?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)?
        }
    };
    Some((char, end + 1))
}

fn hex(digits: &str) -> Option<u32> {
    let are_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    are_digits
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        letters(text).map(|letter| letter.char).collect()
    }

    #[test]
    fn escapes_of_every_kind_are_undone() {
        for escaped in [
            r"a\n\u00e9\ud83d\ude00B",
            r"a\\n\\u00E9\\ud83d\\ude00B",
            r"A \u{e9}\U0001F600b",
            r"a \xe9\xf0\x9f\x98\x80b",
            "a%20%C3%A9%f0%9f%98%80b",
            "a &#233;&#x1f600;b",
            "a\r\n\t é😀b",
        ] {
            assert_eq!(read(escaped), "a é😀b", "{escaped}");
        }
        assert_eq!(read(r#"say \"no\" \\\"now\\\""#), r#"say "no" "now""#);
        assert_eq!(read("&lt;b&gt; &amp; &quot;"), "<b> & \"");
    }

    #[test]
    fn what_only_looks_like_an_escape_stays() {
        for text in [
            "100% of it",
            "%zz %e",
            "a & b; c",
            "&;",
            "&#xffffffff;",
            "%",
            "&",
            r"\",
            r"c:\documents",
            r"\ud83d",
            r"\u{}",
            r"\x",
            r"\u12",
            "%ff%fe",
        ] {
            assert_eq!(read(text), text, "{text}");
        }
    }

    #[test]
    fn places_are_those_of_the_text() {
        let text = r"x\u00e9 y";
        let places: Vec<&str> = letters(text).map(|letter| &text[letter.at]).collect();
        assert_eq!(places, ["x", r"\u00e9", " ", "y"]);
    }
}
