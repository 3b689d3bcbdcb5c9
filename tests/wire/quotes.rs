//! What a server quotes of what it was sent goes no further.

use std::fs;

use serde_json::json;
use weir_tests::embedder::Rude;

use super::{DIALECTS, OpenAi, fails, start, start_as};

const TEXT: &str = "Dear Dr. Brown,\n\tthe biopsy of Jane \"Janie\" Döe (born 1961-04-23) shows \
                    that the tumour is malignant, 悪性腫瘍が見つかりました. Please call her at once.";

/// Every word of the text that a server might pass on.
const WORDS: [&str; 7] = [
    "biopsy",
    "Janie",
    "1961-04",
    "tumour",
    "malignant",
    "悪性",
    "Please",
];

const KEY: &str = "sk-proj-Zq8vWm3nTtR5yLx0KdHsGfBc";

/// The middle of the text, as servers write it.
fn quotes() -> [String; 6] {
    let from = TEXT.find("biopsy").unwrap();
    let middle = &TEXT[from..TEXT.find(" call her").unwrap()];
    [
        middle.to_owned(),
        middle.to_uppercase(),
        middle.escape_debug().to_string(),
        middle.escape_default().to_string(),
        middle.replace(' ', "\r\n    "),
        middle.chars().take(60).collect::<String>() + "...",
    ]
}

fn bodies(quote: &str) -> [(u16, String); 5] {
    let message = format!("bad input: <{quote}> is refused");
    [
        (400, json!({"error": message}).to_string()),
        (500, json!({"error": {"message": message}}).to_string()),
        (422, json!({"detail": [{"msg": message}]}).to_string()),
        (503, message.clone()),
        (
            429,
            json!({"message": message, "error_type": "overloaded"}).to_string(),
        ),
    ]
}

#[tokio::test]
async fn the_middle_of_a_text_is_not_passed_on() {
    for dialect in DIALECTS {
        let (fake, embedder) = start(dialect).await;
        for quote in quotes() {
            for (status, body) in bodies(&quote) {
                fake.next(Rude::Status(status, None, body));
                let (_, words) = fails(&*embedder, &[TEXT]).await;
                let lower = words.to_lowercase();
                let said = WORDS.map(str::to_lowercase);
                let said = said.iter().find(|word| lower.contains(*word));
                assert_eq!(said, None, "{dialect:?}, {quote}: {words}");
                assert!(words.contains("bad input"), "{dialect:?}: {words}");
                assert!(words.contains("is refused") || quote.len() > 150, "{words}");
            }
        }
    }
}

#[tokio::test]
async fn half_a_key_is_not_passed_on() {
    let key = tempfile::NamedTempFile::new().unwrap();
    fs::write(&key, KEY).unwrap();
    let path = key.path().to_str().unwrap();
    for dialect in DIALECTS {
        let (fake, embedder) = start_as(dialect, |it| it.key_file = Some(path.into())).await;
        for quote in [
            KEY.to_owned(),
            KEY[..20].to_owned(),
            KEY[12..].to_owned(),
            KEY[10..16].to_owned(),
            KEY.to_lowercase(),
            format!("{}***************{}", &KEY[..11], &KEY[28..]),
            format!("...{}", &KEY[28..]),
        ] {
            for (status, body) in bodies(&quote).into_iter().chain([(
                401,
                json!({"error": {"message": format!("wrong key {quote}")}}).to_string(),
            )]) {
                fake.next(Rude::Status(status, None, body));
                let (_, words) = fails(&*embedder, &["a"]).await;
                let shown = KEY
                    .as_bytes()
                    .windows(4)
                    .map(|piece| str::from_utf8(piece).unwrap());
                let lower = words.to_lowercase();
                let said = shown
                    .skip(7)
                    .find(|piece| lower.contains(&piece.to_lowercase()));
                assert_eq!(said, None, "{dialect:?}, {quote}: {words}");
                assert!(
                    words.contains("bad input") || words.contains("wrong key"),
                    "{words}"
                );
            }
        }
    }
}

#[tokio::test]
async fn neither_of_two_keys_is_passed_on_after_one_was_replaced() {
    let key = tempfile::NamedTempFile::new().unwrap();
    fs::write(&key, "old-Zq8vWm3nTtR5").unwrap();
    let path = key.path().to_str().unwrap();
    let (fake, embedder) = start_as(OpenAi, |it| it.key_file = Some(path.into())).await;
    // Of the same length and time, so that only the refusal has it read again.
    let modified = key.as_file().metadata().unwrap().modified().unwrap();
    fs::write(&key, "new-yLx0KdHsGfBc").unwrap();
    key.as_file().set_modified(modified).unwrap();
    let said = "neither Zq8vWm nor yLx0Kd will do";
    fake.next(Rude::Status(401, None, String::new()));
    fake.next(Rude::Status(401, None, said.to_owned()));
    let (_, words) = fails(&*embedder, &["a"]).await;
    assert_eq!(fake.calls().len(), 2);
    assert!(
        !words.contains("Zq8v") && !words.contains("yLx0"),
        "{words}"
    );
    assert!(words.contains("will do"), "{words}");
}
