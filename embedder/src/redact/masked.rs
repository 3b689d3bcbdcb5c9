//! Secrets that a server has made unreadable in part, as in
//! `sk-ab***************wxyz`.

use std::ops::Range;

/// Letters of the end of a secret that are told as a word of their own ("the
/// key that ends in wxyz") and withheld.
const SHORTEST_END: usize = 4;

/// Letters beside a mask that are compared with the secret.
const SHORTEST_SHOWN: usize = 2;

/// Calls `hide` with the place of each word that shows a part of the secret.
pub(super) fn find(message: &str, secret: &str, mut hide: impl FnMut(Range<usize>)) {
    let secret = secret.to_lowercase();
    for word in message.split(|c: char| c.is_whitespace() || "\"'`()[]{}<>,;:=".contains(c)) {
        let lower = word.to_lowercase();
        if shows_beside_mask(&lower, &secret) || is_an_end(&lower, &secret) {
            let start = word.as_ptr().addr() - message.as_ptr().addr();
            hide(start..start + word.len());
        }
    }
}

/// Whether what is left of the word beside a mask is of the secret.
fn shows_beside_mask(word: &str, secret: &str) -> bool {
    let parts = unmasked(word);
    parts.len() > 1
        && parts.iter().any(|part| {
            let part = part.trim_matches(|c: char| !c.is_alphanumeric());
            part.chars().count() >= SHORTEST_SHOWN && secret.contains(part)
        })
}

/// What a word shows before, between and after masks; itself where it has none.
fn unmasked(word: &str) -> Vec<&str> {
    const SIGNS: [char; 9] = ['*', '•', '●', '∙', '…', '⋯', '█', '■', '▒'];
    // A single one of these is none.
    const RUNS: [&str; 4] = ["xxx", "...", "___", ".."];
    let mut parts: Vec<&str> = word.split(SIGNS).collect();
    for run in RUNS {
        parts = parts.into_iter().flat_map(|part| part.split(run)).collect();
    }
    parts
}

/// Whether the word is the beginning or the end of the secret.
fn is_an_end(word: &str, secret: &str) -> bool {
    let word = word.trim_matches(|c: char| !c.is_alphanumeric());
    word.chars().count() >= SHORTEST_END && (secret.starts_with(word) || secret.ends_with(word))
}
