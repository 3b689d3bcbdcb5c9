//! What a file is, as far as its name and its beginning tell.

use std::path::Path;

use weir_proto::{limits::MAX_NAME_CHARS, v1::DocumentFormat};

/// Guesses the format from the file's name, and where that leaves room, from
/// its first bytes.
pub(crate) fn guess_format(path: &Path, head: &[u8]) -> DocumentFormat {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    let text = String::from_utf8_lossy(head);
    match extension.to_ascii_lowercase().as_str() {
        "jsonl" | "ndjson" => DocumentFormat::JsonLines,
        "yaml" | "yml" => DocumentFormat::Openapi,
        "md" | "markdown" => DocumentFormat::Markdown,
        "txt" | "text" => DocumentFormat::Text,
        _ if is_json_lines(&text) => DocumentFormat::JsonLines,
        "json" => DocumentFormat::Openapi,
        _ if is_openapi(&text) => DocumentFormat::Openapi,
        _ if text.lines().any(is_heading) => DocumentFormat::Markdown,
        _ => DocumentFormat::Text,
    }
}

/// A whole JSON object on the first line, and it is an item.
fn is_json_lines(text: &str) -> bool {
    let first = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    serde_json::from_str::<serde_json::Value>(first)
        .is_ok_and(|value| value.get("item_id").is_some())
}

/// The version that every OpenAPI document states at its top level.
fn is_openapi(text: &str) -> bool {
    let json = text.trim_start().starts_with('{');
    text.lines().any(|line| {
        ["openapi", "swagger"].iter().any(|word| {
            let in_yaml = line
                .trim_start_matches(['"', '\''])
                .strip_prefix(word)
                .is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'));
            in_yaml || (json && line.contains(&format!("\"{word}\"")))
        })
    })
}

fn is_heading(line: &str) -> bool {
    let text = line.trim_start_matches('#');
    (1..=6).contains(&(line.len() - text.len())) && text.starts_with(' ')
}

/// Makes a source's name of a file's: its stem, with every run of characters
/// that a name may not have replaced by one '-'. Nothing when nothing is left.
pub(crate) fn guess_name(path: &Path) -> Option<String> {
    let stem = path.file_stem()?.to_string_lossy();
    let mut name = String::new();
    for c in stem.chars() {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
            name.push(c);
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    let name: String = name
        .trim_start_matches(|c: char| !c.is_ascii_alphanumeric())
        .trim_end_matches('-')
        .chars()
        .take(MAX_NAME_CHARS)
        .collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_guessed_by_name_then_content() {
        use DocumentFormat as F;
        let item = r#"{"item_id": "a", "text": "b"}"#;
        for (file, head, format) in [
            ("shop.yaml", "", F::Openapi),
            ("shop.YML", "", F::Openapi),
            ("shop.json", "{\n  \"openapi\": \"3.1.0\"", F::Openapi),
            ("items.json", item, F::JsonLines),
            ("items.jsonl", "", F::JsonLines),
            ("items.ndjson", "", F::JsonLines),
            ("README.md", "", F::Markdown),
            ("notes.txt", "# not a heading here", F::Text),
            ("items", item, F::JsonLines),
            ("spec", "# a comment\nopenapi: 3.0.0\n", F::Openapi),
            ("spec", "\"swagger\" : '2.0'", F::Openapi),
            ("spec", "{\"info\":{},\"openapi\":\"3.1.0\"}", F::Openapi),
            ("README", "Title\n\n## Part\n", F::Markdown),
            ("notes", "#hashtag\nopenapis are fun\n", F::Text),
            ("blob", "\u{0}\u{1}", F::Text),
            ("", "", F::Text),
        ] {
            assert_eq!(
                guess_format(Path::new(file), head.as_bytes()),
                format,
                "{file}: {head}"
            );
        }
    }

    #[test]
    fn names_come_from_the_stem() {
        for (path, name) in [
            ("examples/logistics.openapi.yaml", Some("logistics.openapi")),
            ("/tmp/Preise & Lager (neu).md", Some("Preise-Lager-neu")),
            ("_über.txt", Some("ber")),
            (".hidden", Some("hidden")),
            ("日本.md", None),
            ("/", None),
        ] {
            assert_eq!(guess_name(Path::new(path)).as_deref(), name, "{path}");
        }
        let long = format!("{}.md", "x".repeat(300));
        assert_eq!(
            guess_name(Path::new(&long)).map(|name| name.len()),
            Some(200)
        );
    }
}
