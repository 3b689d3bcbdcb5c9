//! How many calls more it takes where one text in a hundred is bad.

use sha2::{Digest as _, Sha256};
use weir_tests::embedder::Rude;

use crate::{
    Table,
    run::{OLLAMA, OPENAI, Outcome, TEI, embed, with_sources},
};

/// A text in so many is bad.
const ONE_IN: usize = 100;
/// What a bad text holds.
const MARK: &str = "poison";
/// Characters of a text, and of one that is too long.
const CHARS: usize = 100;
const LONG: usize = 400;

/// How a server refuses a call with a bad text.
struct Style {
    dialect: &'static str,
    name: &'static str,
    /// A bad text is too long; otherwise it can never be embedded.
    long: bool,
    /// Whether it tells which text is bad: by its place, its length or its vector.
    named: bool,
    /// Given the place of the first bad one.
    refuse: fn(usize) -> Rude,
}

fn status(code: u16, body: String) -> Rude {
    Rude::Status(code, None, body)
}

const STYLES: [Style; 7] = [
    Style {
        dialect: OLLAMA,
        name: "ollama, names nothing",
        long: false,
        named: false,
        refuse: |_| status(400, r#"{"error":"unsupported value"}"#.to_owned()),
    },
    Style {
        dialect: OLLAMA,
        name: "ollama, too long",
        long: true,
        named: true,
        refuse: |_| {
            let error = r#"{"error":"the input length exceeds the context length"}"#;
            status(400, error.to_owned())
        },
    },
    Style {
        dialect: TEI,
        name: "tei, too long",
        long: true,
        named: true,
        refuse: |_| {
            let error =
                "Input validation error: `inputs` must have less than 64 tokens. Given: 100";
            status(
                413,
                format!(r#"{{"error":"{error}","error_type":"Validation"}}"#),
            )
        },
    },
    Style {
        dialect: OPENAI,
        name: "openai, names the text",
        long: false,
        named: true,
        refuse: |place| {
            let message = format!("Invalid 'input[{place}]': input cannot be an empty string.");
            status(400, format!(r#"{{"error":{{"message":"{message}"}}}}"#))
        },
    },
    Style {
        dialect: OPENAI,
        name: "openai, too long, named",
        long: true,
        named: true,
        refuse: |place| {
            let message = format!("Invalid 'input[{place}]': maximum input length is 64 tokens.");
            status(400, format!(r#"{{"error":{{"message":"{message}"}}}}"#))
        },
    },
    Style {
        dialect: OLLAMA,
        name: "ollama, 500 for a NaN",
        long: false,
        named: false,
        refuse: |_| {
            let error = "failed to encode response: json: unsupported value: NaN";
            status(500, format!(r#"{{"error":"{error}"}}"#))
        },
    },
    Style {
        dialect: OLLAMA,
        name: "any, no usable vector",
        long: false,
        named: true,
        refuse: |_| Rude::Null(MARK.to_owned()),
    },
];

/// How many of so many texts are bad.
fn bad(texts: usize) -> usize {
    texts / ONE_IN
}

/// Texts of the same length, some of them bad, in an order that is always the
/// same and means nothing.
fn texts(count: usize, bad: usize, long: bool) -> Vec<String> {
    let mut texts: Vec<String> = (0..count)
        .map(|number| {
            let (word, chars) = if number >= bad {
                ("parcel", CHARS)
            } else {
                (MARK, if long { LONG } else { CHARS })
            };
            format!("{word} {number:06} {}", "x".repeat(chars))
        })
        .collect();
    texts.sort_by_cached_key(|text| Sha256::digest(text));
    texts
}

async fn run(style: &Style, batch_size: usize, count: usize, bad: usize) -> Outcome {
    let world = with_sources(vec![texts(count, bad, style.long)]).await;
    let refuse = style.refuse;
    let long = style.long;
    let is_bad = move |text: &String| text.starts_with(MARK) && (!long || text.len() > LONG);
    world
        .embedder
        .rule(move |texts| texts.iter().position(is_bad).map(refuse));
    let batch_size = batch_size.to_string();
    embed(&world, style.dialect, &[("WEIR_BATCH_SIZE", &batch_size)]).await
}

/// The least that any search needs, as a multiple of the calls of a clean run.
/// Each answer is yes or no: it takes as many calls as there are bits in which
/// texts are bad. A call that is refused and names a text tells of that one.
fn bound(batch_size: usize, named: bool) -> f64 {
    let p = 1.0 / ONE_IN as f64;
    let of_proof = 1.0 - p + p * batch_size as f64;
    if named {
        return of_proof;
    }
    let bits = -p * p.log2() - (1.0 - p) * (1.0 - p).log2();
    of_proof.max(bits * batch_size as f64)
}

/// A line for each style and batch size.
pub(crate) async fn compare(count: usize) -> Table {
    let bad = bad(count);
    let mut table = Table::new(&format!("{count} texts, of which {bad} are bad"));
    println!(
        "{:<26} {:>5} {:>6} {:>8} {:>6} {:>6} {:>8} {:>7}",
        "refusal", "batch", "clean", "with bad", "ratio", "bound", "rejected", "charged"
    );
    for style in &STYLES {
        for batch_size in [8, 32] {
            let clean = run(style, batch_size, count, 0).await;
            let with_bad = run(style, batch_size, count, bad).await;
            // One that is too long is embedded by its beginning.
            let rejected = if style.long { 0 } else { bad as i64 };
            println!(
                "{:<26} {batch_size:>5} {:>6} {:>8} {:>6.2} {:>6.2} {:>8} {:>7}",
                style.name,
                clean.calls.len(),
                with_bad.calls.len(),
                with_bad.calls.len() as f64 / clean.calls.len() as f64,
                bound(batch_size, style.named),
                with_bad.rejected,
                with_bad.charged,
            );
            table.expect(style.name, &clean, count as i64, 0);
            table.expect(style.name, &with_bad, count as i64, rejected);
        }
    }
    table
}
