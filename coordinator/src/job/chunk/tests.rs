use proptest::prelude::*;

use super::*;

const KINDS: [TextKind; 2] = [TextKind::Plain, TextKind::Markdown];

fn chunker(chunk_size: usize, chunk_overlap: usize) -> Chunker {
    Chunker::new(chunk_size, chunk_overlap).unwrap()
}

fn texts(chunks: &[Chunk]) -> Vec<&str> {
    chunks.iter().map(|chunk| chunk.text.as_str()).collect()
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    let error = Chunker::new(63, 0).unwrap_err().to_string();
    assert_eq!(error, "chunk_size must be at least 64 characters, not 63");
    let error = Chunker::new(100, 51).unwrap_err().to_string();
    assert_eq!(
        error,
        "chunk_overlap must be at most half of chunk_size (50 of 100 characters), not 51"
    );
    assert!(Chunker::new(64, 32).is_ok());
    assert!(Chunker::new(usize::MAX, 0).is_ok());
}

#[test]
fn a_text_that_fits_is_one_trimmed_chunk_with_its_hash() {
    for kind in KINDS {
        let chunks = chunker(64, 0).chunk("\n  a short text \t\n", kind);
        assert_eq!(texts(&chunks), ["a short text"]);
        let hash: [u8; 32] = Sha256::digest("a short text").into();
        assert_eq!(chunks[0].text_hash, hash);
    }
}

#[test]
fn size_is_in_characters_not_bytes() {
    let text = "é".repeat(64);
    assert_eq!(chunker(64, 0).chunk(&text, TextKind::Plain).len(), 1);
    let longer = "é".repeat(65);
    assert_eq!(chunker(64, 0).chunk(&longer, TextKind::Plain).len(), 2);
}

#[test]
fn chunks_after_the_first_begin_with_the_heading() {
    let chunker = chunker(100, 20);
    let text = "A sentence that says a little. ".repeat(20);
    let chunks = chunker.chunk_under("Book a parcel (POST /parcels)", &text, TextKind::Plain);
    assert!(chunks.len() > 5);
    assert!(chunks[0].text.starts_with("A sentence"));
    for chunk in &chunks {
        assert!(chunk.text.chars().count() <= 100, "{:?}", chunk.text);
        assert_eq!(*chunk, Chunk::new(chunk.text.clone()));
    }
    // A quarter of a chunk at most: 25 characters.
    assert!(
        chunks[1..]
            .iter()
            .all(|chunk| chunk.text.starts_with("Book a parcel (POST /parc\nA"))
    );
    // A text that fits needs none, and an empty one adds none.
    assert_eq!(
        chunker.chunk_under("Book", "A short text.", TextKind::Plain),
        chunker.chunk("A short text.", TextKind::Plain)
    );
    assert_eq!(
        chunker.chunk_under("", &text, TextKind::Plain),
        chunker.chunk(&text, TextKind::Plain)
    );
}

#[test]
fn a_blank_text_has_no_chunk() {
    for kind in KINDS {
        assert_eq!(chunker(64, 0).chunk("", kind), []);
        assert_eq!(chunker(64, 0).chunk(&" \n\t".repeat(100), kind), []);
    }
}

#[test]
fn plain_text_is_split_between_paragraphs() {
    let first = "The first paragraph has a few words in it. ".repeat(2);
    let second = "The second paragraph is about something else. ".repeat(2);
    let chunks = chunker(100, 0).chunk(&format!("{first}\n\n{second}"), TextKind::Plain);
    assert_eq!(texts(&chunks), [first.trim(), second.trim()]);
}

#[test]
fn markdown_is_split_at_headings() {
    let body = "Some words of the section.\n\nMore words of the section.";
    let text = format!("# One\n\n{body}\n\n# Two\n\n{body}\n");
    let chunks = chunker(100, 0).chunk(&text, TextKind::Markdown);
    assert_eq!(
        texts(&chunks),
        [format!("# One\n\n{body}"), format!("# Two\n\n{body}")]
    );
}

#[test]
fn neighbours_share_up_to_the_overlap() {
    let words: Vec<String> = (0..400).map(|n| format!("word{n:03}")).collect();
    let chunks = chunker(100, 30).chunk(&words.join(" "), TextKind::Plain);
    for pair in chunks.windows(2) {
        let shared = (0..=pair[0].text.len())
            .rev()
            .find(|&len| {
                pair[1]
                    .text
                    .starts_with(&pair[0].text[pair[0].text.len() - len..])
            })
            .unwrap();
        // Three words and the spaces between them; never more than asked for.
        assert_eq!(shared, 23, "{pair:?}");
    }
}

#[test]
fn a_long_run_without_a_boundary_overlaps_too() {
    let text: String = ('a'..='z').cycle().take(500).collect();
    let chunks = chunker(100, 30).chunk(&text, TextKind::Plain);
    assert_eq!(chunks[0].text, text[..100]);
    assert_eq!(chunks[1].text, text[70..170]);
    assert!(text.ends_with(&chunks.last().unwrap().text));
}

#[test]
fn a_window_leaves_no_trace_in_the_chunks() {
    let words: Vec<String> = (0..2_000).map(|n| format!("word{n}")).collect();
    let text = words.join(" ");
    let whole: Vec<&str> = TextSplitter::new(100).chunks(&text).collect();
    assert_eq!(texts(&chunker(100, 0).chunk(&text, TextKind::Plain)), whole);
}

// Each of these takes the splitter alone minutes to years.
#[test]
fn ten_megabytes_without_a_boundary_come_through() {
    let text = "漢字".repeat((10 << 20) / 6);
    let chunks = chunker(2_000, 0).chunk(&text, TextKind::Plain);
    assert_eq!(chunks.len(), text.chars().count().div_ceil(2_000));
}

#[test]
fn ten_megabytes_of_blank_lines_come_through() {
    let text = format!("a{}b", "\n".repeat(10 << 20));
    for kind in KINDS {
        let chunks = chunker(2_000, 0).chunk(&text, kind);
        assert_eq!(chunks.len(), 1);
    }
}

#[test]
fn megabytes_of_prose_come_through() {
    let text = "It rained, as it did in June. Nobody minded; the river rose.\n".repeat(1 << 14);
    for kind in KINDS {
        let chunks = chunker(2_000, 200).chunk(&text, kind);
        assert!(chunks.len() > text.len() / 2_000);
    }
}

/// Texts with what splitters trip over: runs of blanks, Markdown syntax,
/// grapheme clusters, scripts without spaces, long words.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z]{1,12} ",
        "[a-z]{60,200}",
        "\\PC{0,20}",
        "[ \n\t]{1,100}",
        "(# |## |- |> |```\n|\\| a \\| b \\|\n|\\*\\*|\\[x\\]\\(y\\)|<b>|---\n)",
        "[漢字仮名。、]{1,90}",
        "(👨‍👩‍👧‍👦|e\u{301}|\r\n|\u{200b}|\u{3000}|\u{feff}){1,30}",
        Just("\n\n".to_owned()),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn chunks_obey_the_rules(text in any_text(), size in 64usize..200, overlap in 0usize..=32) {
        let chunker = chunker(size, overlap);
        for kind in KINDS {
            let chunks = chunker.chunk(&text, kind);
            for chunk in &chunks {
                prop_assert!(chunk.text.chars().count() <= size);
                prop_assert!(!chunk.text.trim().is_empty());
                let hash: [u8; 32] = Sha256::digest(&chunk.text).into();
                prop_assert_eq!(chunk.text_hash, hash);
            }
            prop_assert_eq!(&chunks, &chunker.chunk(&text, kind));
            if text.trim().chars().count() <= size && !text.trim().is_empty() {
                prop_assert_eq!(chunks.len(), 1);
            }
        }
    }

    #[test]
    fn nothing_but_blanks_is_lost_and_order_is_kept(
        text in any_text(),
        size in 64usize..200,
        overlap in 0usize..=32,
    ) {
        let chunker = chunker(size, overlap);
        for kind in KINDS {
            let mut covered = 0;
            let mut last_start = None;
            for range in chunker.ranges(&text, kind) {
                prop_assert!(last_start.is_none_or(|last| range.start > last));
                prop_assert!(range.end > covered);
                // What lies between two chunks is blank; what both have is overlap.
                if range.start > covered {
                    prop_assert!(text[covered..range.start].trim().is_empty());
                }
                last_start = Some(range.start);
                covered = range.end;
            }
            prop_assert!(text[covered..].trim().is_empty());
        }
    }

    #[test]
    fn shortening_blanks_touches_nothing_else(text in any_text()) {
        let short = shorten_blanks(&text);
        prop_assert!(short.split_whitespace().eq(text.split_whitespace()));
        let mut run = 0;
        for c in short.chars() {
            run = if c.is_whitespace() { run + 1 } else { 0 };
            prop_assert!(run <= MAX_BLANK_RUN);
        }
    }
}
