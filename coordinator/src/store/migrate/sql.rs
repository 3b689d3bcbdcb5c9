//! A file of SQL, statement by statement: Postgres takes what is sent together
//! as one transaction, in which it does nothing CONCURRENTLY.

/// Splits a file into its statements, without their comments and semicolons.
/// Bodies of functions have to be quoted, as `BEGIN ATOMIC` is not known here.
pub fn statements(file: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut statement = String::new();
    let mut rest = file;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '-' if rest.starts_with("--") => until(rest, 2, "\n"),
            '/' if rest.starts_with("/*") => comment(rest),
            '\'' => string(rest, is_escape(&statement)),
            '"' => until(rest, 1, "\""),
            '$' if !statement.ends_with(is_word) => dollars(rest),
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        match token {
            ";" => statements.push(std::mem::take(&mut statement)),
            _ if token.starts_with("--") || token.starts_with("/*") => statement.push('\n'),
            _ => statement.push_str(token),
        }
    }
    statements.push(statement);
    let trimmed = statements.iter().map(|it| it.trim().to_owned());
    trimmed.filter(|it| !it.is_empty()).collect()
}

/// The name of the index that a statement builds beside writes, if it does.
pub fn concurrent_index(statement: &str) -> Option<&str> {
    let mut words = statement.split_whitespace().peekable();
    let is = |word: &str, other: &str| word.eq_ignore_ascii_case(other);
    words.next_if(|word| is(word, "CREATE"))?;
    words.next_if(|word| is(word, "UNIQUE"));
    words.next_if(|word| is(word, "INDEX"))?;
    words.next_if(|word| is(word, "CONCURRENTLY"))?;
    let mut names = words.skip_while(|word| ["IF", "NOT", "EXISTS"].iter().any(|it| is(word, it)));
    names.next().map(|name| name.trim_matches('"'))
}

/// Whether a statement waits for whole transactions of others, and keeps none
/// of them waiting meanwhile.
pub fn is_concurrent(statement: &str) -> bool {
    let mut words = statement.split_whitespace().take(4);
    words.any(|word| word.eq_ignore_ascii_case("CONCURRENTLY"))
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_' || char == '$'
}

/// Whether backslashes mean something in the string that follows: `E'…'`.
fn is_escape(before: &str) -> bool {
    let mut before = before.chars().rev();
    matches!(before.next(), Some('e' | 'E')) && !before.next().is_some_and(is_word)
}

/// The length of what ends with `end`, sought after so many bytes, or else of
/// all there is.
fn until(text: &str, after: usize, end: &str) -> usize {
    let found = text.get(after..).and_then(|rest| rest.find(end));
    found.map_or(text.len(), |at| after + at + end.len())
}

/// The length of a string. A quote in it is two, which is one string after
/// another to whom does not look inside.
fn string(text: &str, escaped: bool) -> usize {
    let mut skip = true;
    for (at, char) in text.char_indices() {
        match char {
            _ if skip => skip = false,
            '\\' if escaped => skip = true,
            '\'' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a comment, which may hold others.
fn comment(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of what is quoted between dollars, or of a dollar that quotes
/// nothing.
fn dollars(text: &str) -> usize {
    let tag = until(text, 1, "$");
    let quotes = tag > 1 && text[1..tag - 1].chars().all(|it| is_word(it) && it != '$');
    if quotes {
        until(text, tag, &text[..tag])
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_semicolon_ends_a_statement_unless_it_is_quoted_or_in_a_comment() {
        let cases: [(&str, &[&str]); 12] = [
            ("", &[]),
            ("-- no-transaction\n;;\n", &[]),
            ("SELECT 1; SELECT 2", &["SELECT 1", "SELECT 2"]),
            ("-- a; b\nSELECT 1;", &["SELECT 1"]),
            ("SELECT 'a;''b;' -- c;\n;D", &["SELECT 'a;''b;'", "D"]),
            (r"SELECT E'a\';'; B", &[r"SELECT E'a\';'", "B"]),
            (r"SELECT 'a\'; B", &[r"SELECT 'a\'", "B"]),
            (r#"SELECT ";""--" ; B"#, &[r#"SELECT ";""--""#, "B"]),
            ("/* a; /* ü; */ b; */ SELECT 1; B", &["SELECT 1", "B"]),
            ("DO $$ a; $b$ $$; B", &["DO $$ a; $b$ $$", "B"]),
            ("DO $x$ a; $$; $x$; B", &["DO $x$ a; $$; $x$", "B"]),
            (
                "SELECT $1; SELECT a$b; c$",
                &["SELECT $1", "SELECT a$b", "c$"],
            ),
        ];
        for (file, expected) in cases {
            assert_eq!(statements(file), expected, "{file}");
        }
    }

    #[test]
    fn what_is_not_ended_is_taken_to_the_end() {
        for file in ["SELECT 'a;", "SELECT \"a;", "DO $$ a;", "SELECT E'\\"] {
            assert_eq!(statements(file), [file], "{file}");
        }
        assert_eq!(statements("A /* ; /* */ ;"), ["A"]);
    }

    #[test]
    fn an_index_that_is_built_beside_writes_is_known_by_name() {
        let cases = [
            ("CREATE INDEX CONCURRENTLY a ON b (c)", Some("a")),
            (
                "create unique index concurrently if not exists a on b (c)",
                Some("a"),
            ),
            ("CREATE INDEX a ON b (c)", None),
            ("DROP INDEX CONCURRENTLY a", None),
        ];
        for (statement, name) in cases {
            assert_eq!(concurrent_index(statement), name, "{statement}");
        }
    }
}
