use super::*;

/// Characters that nobody sees, or that turn the direction of writing round:
/// Unicode's `Default_Ignorable_Code_Point`, `Bidi_Control`, controls and
/// separators.
const UNSEEN: [(u32, u32); 24] = [
    (0x00, 0x1f),
    (0x7f, 0x9f),
    (0xad, 0xad),
    (0x34f, 0x34f),
    (0x61c, 0x61c),
    (0x115f, 0x1160),
    (0x17b4, 0x17b5),
    (0x180b, 0x180f),
    (0x200b, 0x200f),
    (0x2028, 0x202e),
    (0x2060, 0x206f),
    (0x3164, 0x3164),
    (0xfe00, 0xfe0f),
    (0xfeff, 0xfeff),
    (0xffa0, 0xffa0),
    (0xfff0, 0xfffb),
    (0xfffe, 0xffff),
    (0x1bca0, 0x1bca3),
    (0x1d173, 0x1d17a),
    (0xe0000, 0xe0fff),
    (0xe000, 0xf8ff),
    (0xf0000, 0xffffd),
    (0x10_0000, 0x10_fffd),
    (0x1fffe, 0x1ffff),
];

fn is_unseen(char: char) -> bool {
    let code = u32::from(char);
    UNSEEN
        .iter()
        .any(|(from, to)| (*from..=*to).contains(&code))
}

#[test]
fn of_all_characters_only_those_that_are_seen_are_shown() {
    for char in '\0'..=char::MAX {
        let text = format!("a{char}b");
        let (shown, line) = (printable(&text), harmless(&text).into_owned());
        let middle = shown.chars().nth(1).unwrap();
        assert_eq!(shown.chars().count(), 3, "{char:?}");
        assert!(!is_unseen(middle), "{char:?}");
        assert!(
            middle == char || middle == ' ' || middle == INSTEAD,
            "{char:?}"
        );
        if char != '\n' {
            assert_eq!(line, shown, "{char:?}");
        }
        if char.is_alphanumeric()
            && !is_unseen(char)
            && char.general_category() != GeneralCategory::Unassigned
        {
            assert_eq!(middle, char);
        }
        // Neither where it begins nor where it ends a text.
        for text in [format!("{char}b"), format!("a{char}")] {
            assert!(!printable(&text).contains(is_unseen), "{char:?}");
        }
    }
}

#[test]
fn terminals_are_not_commanded_by_content() {
    assert_eq!(printable(" a\u{1b}[2J\nb\u{7} "), "a\u{fffd}[2J b\u{fffd}");
    assert_eq!(
        printable("invoice\u{202e}fdp.exe"),
        "invoice\u{fffd}fdp.exe"
    );
    assert_eq!(printable("a\u{2028}b\u{85}c\u{a0}d"), "a b c d");
    assert_eq!(printable("x\u{e0041}\u{e0042}"), "x\u{fffd}\u{fffd}");
    assert_harmless(&printable(HOSTILE));
}

#[test]
fn what_people_write_stays() {
    for text in [
        "naïve café, Ωmega, 日本語　の名前"
            .replace('\u{3000}', " ")
            .as_str(),
        "e\u{301} decomposed",
        "שלום עולם",
        "می‌خواهم",
        "क्‍ष और क्‌ष",
        "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 ❤️ 1️⃣ ©️ ☺︎",
        "→ • … “quoted” – done ✓",
    ] {
        assert_eq!(printable(text), text);
        assert_eq!(harmless(text), text);
    }
}

#[test]
fn joiners_hide_in_no_latin_word() {
    for text in [
        "a\u{200d}b",
        "ab\u{200c}",
        "1\u{fe0f}2",
        "\u{fe0f}a",
        "❤\u{fe0f}\u{fe0f}",
    ] {
        assert!(printable(text).contains(INSTEAD), "{text:?}");
    }
}

#[test]
fn lines_keep_their_ends_and_our_colours_alone() {
    let ours = "one\n  \u{1b}[31mtwo\u{1b}[0m\n\u{1b}[38;5;9mthree";
    assert_eq!(harmless(ours), ours);
    assert_eq!(
        harmless("\u{1b}[2J\u{1b}]0;title\u{7}\u{1b}[1;1H\r\t\u{202e}"),
        "\u{fffd}[2J\u{fffd}]0;title\u{fffd}\u{fffd}[1;1H  \u{fffd}"
    );
}
