//! The worker's embedders against one rude server that speaks every dialect.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod profile;
mod quotes;
mod rude;
mod ways;

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::Parser;
use weir_embedder::{EmbedError, Embedder, EmbedderConfig, Embedding, Profile, Role};
use weir_tests::embedder::{DIMENSION, FakeEmbedder, Limits, RetryAfter, Rude, expected_vector};

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: EmbedderConfig,
}

/// What the fake is taken for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Dialect {
    Ollama,
    OldOllama,
    OpenAi,
    Tei,
}

use Dialect::{OldOllama, Ollama, OpenAi, Tei};

const DIALECTS: [Dialect; 4] = [Ollama, OldOllama, OpenAi, Tei];

/// The profile of a server at this address.
fn profile(dialect: Dialect, url: &str) -> Profile {
    let kind = match dialect {
        Ollama | OldOllama => "ollama",
        OpenAi => "openai",
        Tei => "tei",
    };
    let flags = ["worker", "--embedder", kind, "--embedder-url", url];
    Flags::parse_from(flags).config.profile("fake")
}

async fn build(profile: &Profile) -> Arc<dyn Embedder> {
    weir_embedder::build(profile, Role::Document).await.unwrap()
}

/// A server and an embedder that has probed it, of a profile with this change.
async fn start_as(
    dialect: Dialect,
    change: impl FnOnce(&mut Profile),
) -> (FakeEmbedder, Arc<dyn Embedder>) {
    let fake = FakeEmbedder::start().await;
    fake.set_old_ollama(dialect == OldOllama);
    let mut profile = profile(dialect, &fake.url());
    change(&mut profile);
    let embedder = build(&profile).await;
    embedder.probe(0).await.unwrap();
    fake.take_calls();
    fake.take_missed();
    (fake, embedder)
}

async fn start(dialect: Dialect) -> (FakeEmbedder, Arc<dyn Embedder>) {
    start_as(dialect, |_| ()).await
}

/// The error's kind, and its words.
fn told(error: &EmbedError) -> (&'static str, String) {
    let kind = match error {
        EmbedError::TooLong { .. } => "too long",
        EmbedError::TooMany { .. } => "too many",
        EmbedError::Input { .. } => "input",
        EmbedError::Overloaded { .. } => "overloaded",
        EmbedError::Embedder { .. } => "embedder",
        EmbedError::Timeout { .. } => "timeout",
        EmbedError::Broken { .. } => "broken",
        EmbedError::Transient { .. } => "transient",
    };
    (kind, error.to_string())
}

async fn fails(embedder: &dyn Embedder, texts: &[&str]) -> (&'static str, String) {
    told(&embedder.embed(texts).await.unwrap_err())
}

fn assert_near(vectors: &[Embedding], texts: &[&str]) {
    assert_eq!(vectors.len(), texts.len());
    for (vector, text) in vectors.iter().zip(texts) {
        let apart = vector.as_ref().unwrap().iter().zip(expected_vector(text));
        assert!(apart.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 1e-6);
    }
}

#[tokio::test]
async fn every_dialect_gives_the_vectors_in_order() {
    const TEXTS: [&str; 3] = ["one", "two", "\"three\"\n"];
    for dialect in DIALECTS {
        let (fake, embedder) = start(dialect).await;
        let probe = embedder.probe(0).await.unwrap();
        assert_eq!(probe.dimension, DIMENSION);
        assert_near(&embedder.embed(&TEXTS).await.unwrap(), &TEXTS);
        let calls = if dialect == OldOllama { 4 } else { 2 };
        assert_eq!(fake.calls().len(), calls, "{dialect:?}");
        assert!(fake.calls().iter().all(|call| call.answered));
    }
}

#[tokio::test]
async fn a_missing_model_is_not_a_missing_route() {
    let (fake, embedder) = start(Ollama).await;
    let body = r#"{"error":"model 'fake' not found"}"#;
    fake.next(Rude::Status(404, None, body.into()));
    let (kind, words) = fails(&*embedder, &["a"]).await;
    assert_eq!(kind, "embedder");
    assert!(words.contains("ollama pull fake"), "{words}");
    assert_eq!(fake.calls().len(), 1);
}

#[tokio::test]
async fn tei_tells_its_limits() {
    let (fake, embedder) = start(Tei).await;
    fake.set_limits(Limits {
        texts_per_call: Some(8),
        chars_per_text: Some(256),
        chars_per_call: Some(1024),
    });
    let limits = embedder.probe(0).await.unwrap().limits;
    assert_eq!(limits.batch_size, Some(8));
    assert_eq!(limits.text_tokens, Some(256));
    assert_eq!(limits.batch_tokens, Some(1024));
    assert_eq!(limits.concurrent_calls, Some(512));
}

#[tokio::test]
async fn a_tei_whose_limits_nobody_may_ask_for_embeds_all_the_same() {
    for (status, kind, body) in [
        (404, "application/json", ""),
        (403, "text/html", "<html>no</html>"),
        (200, "text/html", "<html>welcome</html>"),
        (200, "application/json", "[]"),
        (500, "application/json", ""),
    ] {
        let fake = FakeEmbedder::start().await;
        fake.hide_info();
        fake.set_missing(status, kind, body);
        let embedder = build(&profile(Tei, &fake.url())).await;
        let probe = embedder.probe(0).await.unwrap();
        assert_eq!(probe.limits, weir_embedder::Limits::default());
        assert_eq!(fake.take_missed(), ["/info"]);
    }
}

#[tokio::test]
async fn what_is_too_much_is_told_apart() {
    for dialect in DIALECTS {
        let (fake, embedder) = start(dialect).await;
        fake.set_limits(Limits {
            texts_per_call: Some(2),
            chars_per_text: Some(10),
            chars_per_call: Some(12),
        });
        let long = fails(&*embedder, &["as long as this"]).await;
        assert_eq!(long.0, "too long", "{dialect:?}: {}", long.1);
        let long = fails(&*embedder, &["short", "as long as this"]).await;
        assert_eq!(long.0, "too long", "{dialect:?}: {}", long.1);
        if dialect == OldOllama {
            continue;
        }
        for texts in [&["a", "b", "c"][..], &["seven__", "eight___"]] {
            let many = fails(&*embedder, texts).await;
            assert_eq!(many.0, "too many", "{dialect:?}: {}", many.1);
        }
    }
}

#[tokio::test]
async fn whoever_is_told_to_wait_hears_how_long() {
    for dialect in DIALECTS {
        for (said, expected) in [
            (RetryAfter::Seconds, Some(1..=1)),
            (RetryAfter::Date, Some(0..=2)),
            (RetryAfter::Silent, None),
        ] {
            let (fake, embedder) = start(dialect).await;
            fake.set_quota(0, said);
            match embedder.embed(&["a"]).await.unwrap_err() {
                EmbedError::Overloaded { retry_after, .. } => {
                    let seconds = retry_after.map(|wait| wait.as_secs());
                    let as_expected = match (&expected, seconds) {
                        (Some(range), Some(seconds)) => range.contains(&seconds),
                        (None, None) => true,
                        _ => false,
                    };
                    assert!(as_expected, "{dialect:?}, {said:?}: {retry_after:?}");
                }
                other => panic!("{dialect:?}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_slow_drip_that_comes_in_time_is_an_answer() {
    let (fake, embedder) = start(Ollama).await;
    fake.next(Rude::Drip(Duration::from_millis(1)));
    assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
}

#[tokio::test]
async fn a_model_of_another_dimension_is_not_used() {
    for dialect in DIALECTS {
        let (fake, embedder) = start(dialect).await;
        embedder.probe(0).await.unwrap();
        let body = match dialect {
            Ollama => r#"{"embeddings": [[1, 2]]}"#,
            OldOllama => r#"{"embedding": [1, 2]}"#,
            OpenAi => r#"{"data": [{"index": 0, "embedding": [1, 2]}]}"#,
            Tei => "[[1, 2]]",
        };
        fake.next(Rude::Body(body.into()));
        let (kind, words) = fails(&*embedder, &["a"]).await;
        assert_eq!(kind, "embedder");
        assert!(words.contains("of 2 numbers, and of 16"), "{words}");
        // Nor does a probe make it the model.
        fake.next(Rude::Body(body.into()));
        let (kind, words) = told(&embedder.probe(0).await.unwrap_err());
        assert_eq!(kind, "embedder");
        assert!(words.contains("restart the worker"), "{words}");
        assert_eq!(embedder.probe(0).await.unwrap().dimension, DIMENSION);
    }
}

#[tokio::test]
async fn openai_vectors_need_no_numbers_but_all_or_none() {
    let fake = FakeEmbedder::start().await;
    let embedder = build(&profile(OpenAi, &fake.url())).await;
    fake.next(Rude::Body(
        r#"{"data": [{"embedding": [1]}, {"embedding": [2]}]}"#.into(),
    ));
    let vectors = embedder.embed(&["a", "b"]).await.unwrap();
    assert_eq!(vectors, [Ok(vec![1.0]), Ok(vec![2.0])]);
    fake.next(Rude::Body(
        r#"{"data": [{"embedding": [1]}, {"index": 1, "embedding": [2]}]}"#.into(),
    ));
    assert_eq!(fails(&*embedder, &["a", "b"]).await.0, "transient");
}

#[tokio::test]
async fn a_new_key_is_used_from_the_next_call_on() {
    let key = tempfile::NamedTempFile::new().unwrap();
    fs::write(&key, "old").unwrap();
    let path = key.path().to_str().unwrap();
    for dialect in DIALECTS {
        fs::write(&key, "old").unwrap();
        let (fake, embedder) = start_as(dialect, |it| it.key_file = Some(path.into())).await;
        embedder.embed(&["a"]).await.unwrap();
        fs::write(&key, "new key").unwrap();
        embedder.embed(&["a"]).await.unwrap();
        // The same key again is not worth a second call.
        let refusal = || Rude::Status(401, None, "who are you".into());
        fake.next(refusal());
        assert_eq!(fails(&*embedder, &["a"]).await.0, "embedder");
        // A file that is gone leaves the last key.
        fs::rename(key.path(), key.path().with_extension("away")).unwrap();
        embedder.embed(&["a"]).await.unwrap();
        fs::rename(key.path().with_extension("away"), key.path()).unwrap();
        let keys: Vec<_> = fake
            .calls()
            .into_iter()
            .map(|call| call.authorization)
            .collect();
        let expected = ["old", "new key", "new key", "new key"];
        let expected = expected.map(|key| Some(format!("Bearer {key}")));
        assert_eq!(keys, expected, "{dialect:?}");
    }
}

#[tokio::test]
async fn a_refused_key_is_read_again() {
    let key = tempfile::NamedTempFile::new().unwrap();
    let write = |text: &str| {
        fs::write(&key, text).unwrap();
        // Nothing shows that the file is another.
        key.as_file().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    };
    write("one");
    let path = key.path().to_str().unwrap();
    for (dialect, status) in DIALECTS.into_iter().zip([401, 403, 403, 401]) {
        write("one");
        let (fake, embedder) = start_as(dialect, |it| it.key_file = Some(path.into())).await;
        embedder.embed(&["a"]).await.unwrap();
        write("two");
        embedder.embed(&["a"]).await.unwrap();
        fake.next(Rude::Status(status, None, String::new()));
        embedder.embed(&["a"]).await.unwrap();
        let calls = fake.calls().into_iter();
        let keys: Vec<_> = calls.filter_map(|call| call.authorization).collect();
        let expected = ["Bearer one", "Bearer one", "Bearer one", "Bearer two"];
        assert_eq!(keys, expected, "{dialect:?}");
    }
}
