//! What errors have in common: an error without what differs from one to the
//! next, so that a thousand of them are one line for an operator.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Longest cause, in characters.
const MAX_CHARS: usize = 200;

/// What differs: quoted texts, among them what an embedder said of a text;
/// addresses of IPv4 and IPv6; ids; numbers.
#[expect(
    clippy::expect_used,
    reason = "a constant pattern, which a test has compiled"
)]
static VARIABLE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r#""(?:[^"\\]|\\.)*"|'[^']*'|`[^`]*`"#,
        r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b",
        r"|\[[0-9a-fA-F]*:[0-9a-fA-F:]*\](?::\d+)?",
        r"|\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b",
        r"|\b[0-9a-fA-F]{16,}\b",
        r"|\d+(?:[.,]\d+)*",
    ))
    .expect("the pattern is sound")
});

/// The cause of an error: its first line with all that differs left out, of at
/// most 200 characters.
pub fn cause(error: &str) -> String {
    let line = error.trim().lines().next().unwrap_or_default();
    let common = VARIABLE.replace_all(line, |found: &Captures<'_>| {
        let found = &found[0];
        // The status of an HTTP answer says what happened.
        let is_status = found.len() == 3 && matches!(found.as_bytes()[0], b'4' | b'5');
        if is_status && found.bytes().all(|byte| byte.is_ascii_digit()) {
            found.to_owned()
        } else {
            "…".to_owned()
        }
    });
    match common.trim() {
        "" => "no reason was given".to_owned(),
        common => common.chars().take(MAX_CHARS).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn errors_that_differ_in_details_have_one_cause() {
        for (errors, common) in [
            (
                &[
                    "the embedder at http://127.0.0.1:11434 answered 503 Service Unavailable: \"overloaded\"",
                    "the embedder at http://10.2.0.7:80 answered 503 Service Unavailable: \"try \\\"later\\\"\"",
                ][..],
                "the embedder at http://… answered 503 Service Unavailable: …",
            ),
            (
                &[
                    "the embedder took longer than embed_timeout (300ms)",
                    "the embedder took longer than embed_timeout (5000ms)",
                ],
                "the embedder took longer than embed_timeout (…ms)",
            ),
            (
                &[
                    "batch 7 of job 12 failed at 2,048.5 bytes",
                    "batch 8 of job 9 failed at 12 bytes",
                ],
                "batch … of job … failed at … bytes",
            ),
            (
                &[
                    "request 3f2a51c0-0000-4000-8000-00805f9b34fb at [::1]:80\nmore",
                    "request 00000000000000ab at [fe80::2]",
                ],
                "request … at …",
            ),
            (&["", " \n "], "no reason was given"),
        ] {
            for error in errors {
                assert_eq!(cause(error), common);
            }
        }
        assert_ne!(
            cause("answered 404 Not Found"),
            cause("answered 401 Unauthorized")
        );
    }

    proptest! {
        #[test]
        fn a_cause_is_short_and_of_one_line(error in "(?s).{0,500}") {
            let cause = cause(&error);
            prop_assert!((1..=MAX_CHARS).contains(&cause.chars().count()));
            prop_assert!(!cause.contains('\n'));
        }
    }
}
