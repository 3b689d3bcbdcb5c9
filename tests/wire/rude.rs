//! What servers do that they should not, in every dialect: nothing ends with a
//! panic or a wrong vector, what failed is sorted, and afterwards all is well.

use std::{sync::Arc, time::Duration};

use weir_embedder::Embedder;
use weir_tests::embedder::{FakeEmbedder, Rude};

use super::{DIALECTS, Dialect, OldOllama, OpenAi, assert_near, fails, start, start_as, told};

const HTML: &str = "<html><body>Please log in, or pay.</body></html>";

fn says(status: u16, body: &str) -> Rude {
    Rude::Refusal(status, "application/json", body.into())
}

fn shows(status: u16) -> Rude {
    Rude::Refusal(status, "text/html", HTML.into())
}

/// Each behaviour, how it is sorted, and words of what is said of it. "right":
/// the vectors are there all the same; "flawed": that of the first text is not.
fn behaviours() -> Vec<(Rude, &'static str, &'static str)> {
    let budget = r#"{"error":{"message":"Budget has been exceeded! Current cost: 1.2","type":"budget_exceeded","code":"400"}}"#;
    let nan = r#"{"error":"failed to encode response: json: unsupported value: NaN"}"#;
    let key = "WEIR_EMBEDDER_API_KEY_FILE";
    let retry = |status, after: &str| Rude::Status(status, Some(after.into()), "slowly".into());
    let mark = || "bad".to_owned();
    vec![
        (says(400, budget), "input", "Budget has been exceeded"),
        (says(400, ""), "input", "400 Bad Request"),
        (shows(401), "embedder", key),
        (
            says(403, r#"{"error":"who are you"}"#),
            "embedder",
            "who are you (check the key",
        ),
        (shows(403), "embedder", key),
        (says(402, ""), "embedder", "WEIR_EMBEDDER_URL"),
        (
            says(404, r#"{"error":"no such thing"}"#),
            "embedder",
            "no such thing",
        ),
        (shows(404), "embedder", "asked at /"),
        (says(405, ""), "embedder", "asked at /"),
        (shows(407), "embedder", "proxy"),
        (says(408, ""), "timeout", "408"),
        (says(413, ""), "too much", "413"),
        (
            says(422, r#"{"detail":[{"loc":["body"],"msg":"odd"}]}"#),
            "input",
            "odd",
        ),
        (
            says(424, r#"{"error":"it broke"}"#),
            "transient",
            "it broke",
        ),
        (says(429, ""), "overloaded", "429"),
        (retry(429, "3"), "overloaded", "slowly"),
        (retry(503, "3"), "overloaded", "slowly"),
        (says(500, nan), "transient", "unsupported value: NaN"),
        (says(501, ""), "embedder", "WEIR_EMBEDDER_URL"),
        (shows(502), "embedder", "502"),
        (shows(503), "embedder", "503"),
        (shows(504), "timeout", "504"),
        (says(529, ""), "embedder", "529"),
        (
            says(200, r#"{"error":"the model is loading"}"#),
            "transient",
            "200 OK: the model is",
        ),
        (
            says(200, r#"{"error":{"message":"above its context length"}}"#),
            "too long",
            "context",
        ),
        (says(200, "{}"), "transient", "a field is missing"),
        (says(204, ""), "broken", "ends early"),
        (says(200, "welcome"), "transient", "not JSON"),
        (Rude::Eof, "broken", "broke the connection"),
        (Rude::Reset, "broken", "broke the connection"),
        (Rude::CutOff, "broken", "broke the connection"),
        (Rude::Hang, "timeout", "longer than 6s"),
        (Rude::Stall, "timeout", "sent nothing for 600ms"),
        (
            Rude::Drip(Duration::from_millis(100)),
            "timeout",
            "longer than 6s",
        ),
        (Rude::Page, "embedder", "a web page"),
        (shows(200), "embedder", "a web page instead of JSON at /"),
        (
            Rude::Redirect("/elsewhere".into()),
            "embedder",
            "redirects are not followed",
        ),
        (Rude::WrongCount, "transient", "vectors for 5 texts"),
        (Rude::OneMore, "transient", "returned 6 vectors for 5 texts"),
        (Rude::Twice, "transient", "twice or with gaps"),
        (Rude::Dimension(2), "embedder", "of 2 numbers, and of 16"),
        (Rude::Zero(mark()), "flawed", "all zero"),
        (Rude::Null(mark()), "flawed", "NaN"),
        (Rude::Nan(mark()), "flawed", "NaN"),
        (Rude::Gzip, "right", ""),
        (Rude::Labelled("text/plain"), "right", ""),
        (Rude::Labelled("text/html"), "right", ""),
    ]
}

#[tokio::test]
async fn every_rudeness_is_sorted_in_every_dialect() {
    let is_slow = |rude: &Rude| matches!(rude, Rude::Hang | Rude::Drip(_) | Rude::Stall);
    let (slow, quick): (Vec<_>, Vec<_>) = behaviours()
        .into_iter()
        .partition(|(rude, ..)| is_slow(rude));
    let mut waits = Vec::new();
    for dialect in DIALECTS {
        // One after the other: each finds the embedder as the last one left it.
        let started = start(dialect).await;
        for row in quick.clone() {
            one(dialect, &started, row).await;
        }
        for row in slow.clone() {
            let started = start_as(dialect, |it| it.timeout = Duration::from_secs(6)).await;
            waits.push(async move { one(dialect, &started, row).await });
        }
    }
    futures::future::join_all(waits).await;
}

async fn one(
    dialect: Dialect,
    (fake, embedder): &(FakeEmbedder, Arc<dyn Embedder>),
    (rude, kind, words): (Rude, &str, &str),
) {
    let case = format!("{dialect:?}, {rude:?}");
    // Long enough to drip for more than the timeout. The old route takes one.
    let texts = ["bad", "good", "c", "d", "e"];
    let texts = &texts[..if dialect == OldOllama { 1 } else { 5 }];
    let kind = match (&rude, kind) {
        (Rude::Drip(_) | Rude::OneMore, _) if dialect == OldOllama => "right",
        (Rude::WrongCount, _) if dialect == OldOllama => "flawed",
        (Rude::Twice, _) if dialect != OpenAi => "right",
        (_, "too much") if dialect == OldOllama => "too long",
        (_, "too much") => "too many",
        _ => kind,
    };
    let again = rude.clone();
    fake.rule(move |_| Some(again.clone()));
    let found = match embedder.embed(texts).await {
        Err(error) => told(&error),
        Ok(vectors) if vectors.iter().all(Result::is_ok) => {
            assert_near(&vectors, texts);
            ("right", String::new())
        }
        Ok(vectors) => {
            // It is the first text's; the others have theirs.
            assert_near(&vectors[1..], &texts[1..]);
            ("flawed", vectors[0].clone().unwrap_err())
        }
    };
    assert_eq!(found.0, kind, "{case}: {}", found.1);
    let says = found.1.contains(words) || matches!(rude, Rude::WrongCount);
    assert!(says || kind == "right", "{case}: {}", found.1);
    assert!(!found.1.contains("<html>"), "{case}: {}", found.1);
    assert_eq!(fake.take_calls().len(), 1, "{case}");
    // No redirect was followed.
    assert!(fake.take_missed().is_empty(), "{case}");
    // A probe of it is as many calls as there are ways, and no more.
    if !matches!(rude, Rude::Hang | Rude::Drip(_) | Rude::Stall) {
        for _ in 0..2 {
            let _ = embedder.probe(0).await;
            let calls = fake.take_calls().len() + fake.take_missed().len();
            assert!(calls <= 3, "{case}: {calls}");
        }
    }
    fake.behave();
    fake.set_old_ollama(dialect == OldOllama);
    embedder.probe(0).await.unwrap();
    fake.take_missed();
    assert_near(&embedder.embed(texts).await.unwrap(), texts);
    fake.take_calls();
}

#[tokio::test]
async fn nothing_is_found_out_with_texts() {
    for dialect in DIALECTS {
        let (fake, embedder) = start(dialect).await;
        for status in [400, 401, 403, 404, 405, 422, 429, 500, 501, 503] {
            fake.rule(move |_| Some(says(status, r#"{"error":"no base64, no embeddings"}"#)));
            fails(&*embedder, &["a"]).await;
            assert_eq!(fake.take_calls().len(), 1, "{dialect:?}, {status}");
            assert!(fake.take_missed().is_empty());
        }
    }
}
