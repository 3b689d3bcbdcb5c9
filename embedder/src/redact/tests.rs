use proptest::prelude::*;

use super::*;

/// What servers say, with a `{}` where they quote.
const QUOTING: [&str; 4] = [
    "Invalid 'input[3]': cannot embed <{}> with this model.",
    "{\"object\":\"error\",\"message\":\"bad input: \\\"{}\\\"\"}",
    "could not tokenize ({})",
    "{}",
];

/// What servers say without quoting.
const PLAIN: [&str; 12] = [
    "Invalid 'input[0]': maximum input length is 8192 tokens.",
    "This model's maximum context length is 8192 tokens, however you requested 9001 tokens (9001 in your prompt; 0 for the completion). Please reduce your prompt; or completion length.",
    "the input length exceeds the context length",
    "Input validation error: `inputs` must have less than 512 tokens. Given: 700",
    "Incorrect API key provided. You can find your API key at https://platform.openai.com/account/api-keys.",
    "Rate limit reached for text-embedding-3-small in organization org-1 on tokens per min (TPM): Limit 1000000, Used 999000.",
    "input is too long",
    "model \"nomic-embed-text\" not found, try pulling it first",
    "server busy, please try again. maximum pending requests exceeded",
    "CUDA out of memory. Tried to allocate 2.00 GiB...",
    "请求过多，请稍后再试",
    "Überlast: später noch einmal versuchen — 5 % frei & 3 < 4",
];

/// Texts that share words with what servers say.
const TEXTS: [&str; 6] = [
    "GET /orders Lists orders. An input is too long when it has more than 512 characters.",
    "The maximum number of tokens is told by the model; try again later with a new API key.",
    "The patient's name is Jane Doe, and her number is 0049 30 1234567.",
    "您可以在十四天内申请退款，我们会把钱退到原来的账户。",
    "GET",
    "",
];

/// How a quote may be written.
const SHAPES: [fn(&str) -> String; 9] = [
    str::to_owned,
    |text| json(text),
    |text| json(&json(text)),
    ascii_json,
    |text| text.escape_default().to_string(),
    |text| text.to_uppercase(),
    |text| text.replace(' ', "\n    "),
    |text| {
        let escape = |c: char| format!("&#{};", u32::from(c));
        let parts = text.chars().map(|c| match c {
            '<' | '>' | '"' | '\'' => escape(c),
            c => c.to_string(),
        });
        parts.collect()
    },
    |text| {
        let parts = text.bytes().map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        });
        parts.collect()
    },
];

fn json(text: &str) -> String {
    let quoted = serde_json::to_string(text).unwrap();
    quoted[1..quoted.len() - 1].to_owned()
}

/// As Python's `json.dumps` writes it.
fn ascii_json(text: &str) -> String {
    let mut escaped = String::new();
    for unit in json(text).encode_utf16() {
        match u8::try_from(unit).ok().filter(u8::is_ascii) {
            Some(byte) => escaped.push(char::from(byte)),
            None => escaped.extend([r"\u", &format!("{unit:04x}")]),
        }
    }
    escaped
}

/// Checks that of the quote in a message no letter is left, and of the rest
/// all but a word that runs into it.
fn assert_withheld(frame: &str, quote: &str, texts: &[&str], secrets: &[&str]) {
    const WORD: usize = 10;
    let (before, after) = frame.split_once("{}").unwrap();
    let said = redact(&format!("{before}{quote}{after}"), texts, secrets);
    assert!(said.contains(WITHHELD), "{quote} in {said}");
    let left = said.replace(WITHHELD, "");
    let same = |(a, b): &(char, char)| a == b;
    let start = before.chars().zip(left.chars()).take_while(same).count();
    let end = after.chars().rev().zip(left.chars().rev());
    let end = end.take_while(same).count();
    let middle: Vec<char> = left.chars().skip(start).collect();
    let middle: String = middle[..middle.len().saturating_sub(end)].iter().collect();
    assert!(
        start + WORD >= before.len() && end + WORD >= after.len(),
        "{said}"
    );
    assert!(
        !letters(&middle).any(|letter| letter.is_word()),
        "{quote} in {said}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_piece_of_a_text_is_left_however_it_is_written(
        words in proptest::collection::vec(r#"[a-z]{1,12}|[A-Z][a-z]{2,9}[.,'"]|[0-9]{1,6}|[äöüéñ]{1,4}|[一-俿]{1,5}|😀|[а-я]{1,9}|[\\<>/(]"#, 30..80),
        space in prop::sample::select(vec![" ", "\n", "\t", "  "]),
        ends in (0.0_f64..0.4, 0.6_f64..1.0),
        shape in prop::sample::select(SHAPES.to_vec()),
        frame in prop::sample::select(QUOTING.to_vec()),
    ) {
        let text = words.join(space);
        let at = |part: f64| text.floor_char_boundary((part * text.len() as f64) as usize);
        let quote = shape(&text[at(ends.0)..at(ends.1)]);
        prop_assume!(quote.len() + frame.len() < MAX_MESSAGE_BYTES);
        assert_withheld(frame, &quote, &["another", &text], &["sk-0"]);
    }

    #[test]
    fn no_piece_of_six_characters_of_a_key_is_left(
        key in "[a-zA-Z0-9_-]{8,60}",
        ends in (0.0_f64..1.0, 0.0_f64..1.0),
        shape in prop::sample::select(SHAPES.to_vec()),
        frame in prop::sample::select(QUOTING.to_vec()),
    ) {
        let at = |part: f64| (part * key.len() as f64) as usize;
        let (from, to) = (at(f64::min(ends.0, ends.1)), at(f64::max(ends.0, ends.1)));
        let piece = &key[from..to];
        prop_assume!(piece.chars().filter(|c| c.is_alphanumeric()).count() >= 6);
        assert_withheld(frame, &shape(piece), &[], &[&key]);
    }

    #[test]
    fn what_a_masked_key_shows_is_left_out(
        key in "[a-zA-Z0-9]{20,60}",
        shown in (0_usize..8, 0_usize..5),
        mask in prop::sample::select(vec!["*", "***", "************", "...", "…", "••••", "xxxx"]),
        frame in prop::sample::select(QUOTING[..3].to_vec()),
    ) {
        prop_assume!(shown.0.max(shown.1) >= 2);
        let key = format!("sk-{key}");
        let masked = format!("{}{mask}{}", &key[..shown.0 + 3], &key[key.len() - shown.1..]);
        assert_withheld(frame, &masked, &[], &[&key]);
    }

    #[test]
    fn nothing_is_dropped_from_what_quotes_nothing(
        text in "[a-z ]{0,200}",
        key in "[A-Z0-9]{20,60}",
        message in "[а-я ,.*'\\\\%&;…-]{0,200}",
    ) {
        prop_assert_eq!(redact(&message, &[&text], &[&key]), message);
    }

    #[test]
    fn no_message_makes_it_panic(
        message in r"(\PC|\\|%|&|u|x|[0-9a-f]|;|#|\*){0,200}",
        text in r"(\PC|\\|%|&|u|x|[0-9a-f]|;|#|\*){0,200}",
        key in "(\\PC|\\*){0,30}",
    ) {
        redact(&message, &[&text], &[&key]);
        redact(&format!("{text}{message}"), &[&text], &[&key, &message]);
    }
}

#[test]
fn what_servers_say_stays_readable() {
    for message in PLAIN {
        for key in [
            "sk-proj-4f8aQz1LkPx0T9bVnRw2",
            "hf_QmZpLkXoWbTrYv",
            "s3cr3t",
        ] {
            assert_eq!(redact(message, &TEXTS, &[key]), message);
        }
    }
}

#[test]
fn a_short_text_is_left_out_where_it_stands_whole() {
    let texts = ["Jane Doe", "text", "東京都", "no"];
    for (said, left) in [
        (
            "cannot embed 'jane  doe'.",
            "cannot embed '[quote withheld]'.",
        ),
        (
            "input \"text\" is refused",
            "input \"[quote withheld]\" is refused",
        ),
        ("the context is refused", "the context is refused"),
        ("no texts are refused", "no texts are refused"),
    ] {
        assert_eq!(redact(said, &texts, &[]), left);
    }
}

#[test]
fn digits_and_ideographs_say_more_than_letters() {
    let texts = [TEXTS[2], TEXTS[3]];
    for quote in ["30 1234567", "四天内申请退款", "0049 30 1234567"] {
        assert_withheld(QUOTING[0], quote, &texts, &[]);
    }
}

#[test]
fn keys_as_their_servers_write_them() {
    let key = "sk-proj-4f8aQz1LkPx0T9bVnRw2abcd";
    let said = "Incorrect API key provided: sk-proj-********************abcd. You can find your API key at https://platform.openai.com/account/api-keys.";
    assert_eq!(
        redact(said, &[], &[key]),
        "Incorrect API key provided: [quote withheld] You can find your API key at https://platform.openai.com/account/api-keys."
    );
    for quote in [
        key,
        "Bearer%20sk-proj-4f8aQz",
        "4F8AQZ",
        "sk-...abcd",
        "the key that ends in abcd",
        "sk-proj-4f8a Qz1L kPx0",
    ] {
        let said = redact(&format!("no access: {quote}"), &[], &[key]);
        assert!(said.contains(WITHHELD), "{said}");
        assert!(!said.contains("4f8a") && !said.contains("abcd"), "{said}");
    }
}

#[test]
fn two_keys_and_many_texts_are_all_looked_for() {
    let texts: Vec<String> = (0..2_000)
        .map(|n| format!("{n} {}", "lorem ".repeat(n % 7)))
        .collect();
    let mut texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    texts.push(TEXTS[2]);
    let keys = ["first-key-AbCdEf", "second-key-GhIjKl"];
    let said = "refused: patient's name is Jane Doe; keys AbCdEf, GhIjKl";
    assert_eq!(
        redact(said, &texts, &keys),
        format!("refused: {WITHHELD}; keys {WITHHELD}")
    );
}

#[test]
fn a_huge_message_is_cut_between_characters() {
    let message = "é".repeat(MAX_MESSAGE_BYTES);
    assert_eq!(redact(&message, &[], &[]).len(), MAX_MESSAGE_BYTES);
    assert_eq!(
        redact(&format!("a{message}"), &[], &[]).len(),
        MAX_MESSAGE_BYTES - 1
    );
}
