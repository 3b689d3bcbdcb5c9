//! How a server is asked, found out by probes: at which address and in which
//! form.

use weir_embedder::Encoding;
use weir_tests::embedder::{Call, FakeEmbedder, Rude};

use super::{OldOllama, Ollama, OpenAi, Tei, assert_near, build, fails, profile, start, told};

/// What servers answer where there is nothing.
const NOTHING: [(u16, &str, &str); 6] = [
    (404, "application/json", r#"{"detail":"Not Found"}"#),
    (404, "text/html", "<html>not here</html>"),
    (405, "text/plain", ""),
    (200, "text/html", "<html>welcome</html>"),
    (200, "application/octet-stream", "\n <!doctype html>"),
    (302, "text/html", ""),
];

#[tokio::test]
async fn a_server_is_found_behind_the_paths_that_people_write() {
    for (base, at) in [
        ("", "/v1/embeddings"),
        ("/", "/v1/embeddings"),
        ("/v1", "/v1/embeddings"),
        ("/v1/", "/v1/embeddings"),
        ("/v1/embeddings", "/v1/embeddings"),
        ("/v1beta/openai", "/v1beta/openai/embeddings"),
        ("/v1beta/openai/", "/v1beta/openai/embeddings"),
        ("/api/v3", "/api/v3/embeddings"),
        ("/compatible-mode/v1", "/compatible-mode/v1/embeddings"),
        ("/gateway/of/ours", "/gateway/of/ours/v1/embeddings"),
        ("/odd/embeddings", "/odd/embeddings"),
    ] {
        for (status, kind, body) in NOTHING {
            let fake = FakeEmbedder::start().await;
            fake.set_openai_at(at);
            fake.set_missing(status, kind, body);
            let url = format!("{}{base}", fake.url());
            let embedder = build(&profile(OpenAi, &url)).await;
            embedder.probe(0).await.unwrap();
            let missed = fake.take_missed();
            assert!(missed.len() <= 1, "{base}: {missed:?}");
            // What was found is kept.
            assert_near(&embedder.embed(&["a", "b"]).await.unwrap(), &["a", "b"]);
            embedder.probe(0).await.unwrap();
            assert_eq!(fake.take_missed(), [""; 0], "{base}");
            assert!(fake.calls().iter().all(|call| call.target == at));
        }
    }
}

#[tokio::test]
async fn an_address_with_a_query_is_taken_whole() {
    for (dialect, path) in [
        (OpenAi, "/openai/deployments/small/embeddings"),
        // What its path ends in does not count.
        (OpenAi, "/gateway/of/ours"),
        (Ollama, "/up/api/embed"),
        (Tei, "/up/embed"),
    ] {
        let fake = FakeEmbedder::start().await;
        if dialect == OpenAi {
            fake.set_openai_at(path);
        }
        let target = format!("{path}?api-version=2024-02-01&sig=Zq8vWm3nTtR5");
        let mut profile = profile(dialect, &format!("{}{target}", fake.url()));
        profile.key_header = "api-key".to_owned();
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&key, "yLx0KdHsGfBc\n").unwrap();
        profile.key_file = Some(key.path().to_owned());
        let embedder = build(&profile).await;
        embedder.probe(0).await.unwrap();
        assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
        for call in fake.calls() {
            assert_eq!(call.target, target);
            assert_eq!(call.headers["api-key"], "yLx0KdHsGfBc");
            assert_eq!(call.authorization, None);
        }
        // A message names the address and shows no value of it, nor the key.
        let quoted = "/x?sig=Zq8vWm3nTtR5 with yLx0KdHsGfBc is no such thing";
        fake.next(Rude::Status(404, None, quoted.into()));
        let (kind, words) = fails(&*embedder, &["a"]).await;
        assert_eq!(kind, "embedder");
        let shown = format!("{path}?api-version=…&sig=…");
        assert!(words.contains(&shown), "{words}");
        assert!(
            !words.contains("Zq8v") && !words.contains("yLx0"),
            "{words}"
        );
    }
}

#[tokio::test]
async fn whole_addresses_of_each_api_are_taken_as_they_are() {
    for (dialect, path, at) in [
        (Ollama, "/up/api/embed", "/up/api/embed"),
        (Ollama, "/api", "/api/embed"),
        (Ollama, "/v1", "/api/embed"),
        (Ollama, "/behind/a/proxy/", "/behind/a/proxy/api/embed"),
        (OldOllama, "/up/api/embeddings", "/up/api/embeddings"),
        (Tei, "/up/embed", "/up/embed"),
        (Tei, "/v1", "/embed"),
        (Tei, "/up/", "/up/embed"),
    ] {
        let fake = FakeEmbedder::start().await;
        let embedder = build(&profile(dialect, &format!("{}{path}", fake.url()))).await;
        embedder.probe(0).await.unwrap();
        assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
        let calls = fake.take_calls();
        assert!(calls.iter().all(|call| call.target == at), "{calls:?}");
        assert!(fake.take_missed().is_empty());
    }
}

#[tokio::test]
async fn an_address_that_is_gone_is_looked_for_again_by_probes_alone() {
    let fake = FakeEmbedder::start().await;
    fake.set_openai_at("/up/embeddings");
    let embedder = build(&profile(OpenAi, &format!("{}/up", fake.url()))).await;
    embedder.probe(0).await.unwrap();
    fake.set_openai_at("/up/v1/embeddings");
    for _ in 0..2 {
        assert_eq!(fails(&*embedder, &["a"]).await.0, "embedder");
    }
    assert_eq!(fake.take_missed(), ["/up/embeddings"; 2]);
    // The probe that finds the outage, and the first that follows.
    embedder.probe(0).await.unwrap_err();
    assert_eq!(fake.take_missed().len(), 1);
    embedder.probe(0).await.unwrap();
    assert_eq!(fake.take_missed().len(), 1);
    assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
    assert!(fake.take_missed().is_empty());
}

#[tokio::test]
async fn where_nothing_is_every_address_that_was_asked_is_named() {
    let fake = FakeEmbedder::start().await;
    fake.set_openai_at("/elsewhere");
    for (status, kind, body) in NOTHING {
        fake.set_missing(status, kind, body);
        let embedder = build(&profile(OpenAi, &format!("{}/up", fake.url()))).await;
        for _ in 0..3 {
            let (kind, words) = told(&embedder.probe(0).await.unwrap_err());
            assert_eq!(kind, "embedder");
            assert!(words.contains("/up/embeddings"), "{words}");
            let both = words.contains("/up/embeddings or /up/v1/embeddings");
            assert!(both || status < 400, "{words}");
            assert_eq!(fake.take_missed(), ["/up/embeddings", "/up/v1/embeddings"]);
        }
    }
}

#[tokio::test]
async fn the_way_to_an_old_ollama_is_forgotten_with_an_outage() {
    let (fake, embedder) = start(OldOllama).await;
    embedder.embed(&["a", "b"]).await.unwrap();
    assert_eq!(fake.take_calls().len(), 2);
    fake.set_old_ollama(false);
    fake.next(Rude::Eof);
    embedder.probe(0).await.unwrap_err();
    embedder.probe(0).await.unwrap();
    fake.take_calls();
    embedder.embed(&["a", "b"]).await.unwrap();
    assert_eq!(fake.take_calls().len(), 1);
}

/// The form that was asked for.
fn format(call: &Call) -> Option<&str> {
    let format = call.body.get("encoding_format")?;
    Some(format.as_str().unwrap_or("no text"))
}

fn formats(calls: &[Call]) -> Vec<Option<&str>> {
    calls.iter().map(format).collect()
}

const FORMATS: [Option<&str>; 3] = [Some("base64"), Some("float"), None];

/// How servers refuse a form, in no words that tell.
fn refusals() -> Vec<Rude> {
    let mut all: Vec<_> = [400, 402, 415, 422, 424, 500, 501, 502, 503]
        .map(|status| Rude::Status(status, None, "computer says no".into()))
        .to_vec();
    all.extend([
        Rude::Refusal(400, "text/html", "<html>no</html>".into()),
        Rude::Body(r#"{"data":[{"index":0,"embedding":"AAA"}]}"#.into()),
        Rude::Body(r#"{"data":[{"index":0,"embedding":{"b":1}}]}"#.into()),
        Rude::Body(r#"{"data":[]}"#.into()),
        Rude::Body(r#"{"error":"no"}"#.into()),
        Rude::Nan("probe".into()),
        Rude::Zero("probe".into()),
        Rude::Eof,
        Rude::Reset,
        Rude::CutOff,
    ]);
    all
}

#[tokio::test]
async fn the_form_that_a_server_takes_is_found_by_what_it_does() {
    for refusal in refusals() {
        for taken in 0..3 {
            let fake = FakeEmbedder::start().await;
            let no = refusal.clone();
            fake.rule_of_calls(move |call| {
                let refused = FORMATS[..taken].contains(&format(call));
                refused.then(|| no.clone())
            });
            let embedder = build(&profile(OpenAi, &fake.url())).await;
            embedder.probe(0).await.unwrap();
            let tried = fake.take_calls();
            assert_eq!(formats(&tried), FORMATS[..=taken], "{refusal:?}");
            // And kept, by texts and by probes.
            assert_near(&embedder.embed(&["a", "b"]).await.unwrap(), &["a", "b"]);
            embedder.probe(0).await.unwrap();
            let kept = fake.take_calls();
            assert_eq!(formats(&kept), [FORMATS[taken]; 2], "{refusal:?}");
        }
    }
}

#[tokio::test]
async fn forms_are_learnt_again_after_an_outage() {
    let (fake, embedder) = start(OpenAi).await;
    fake.rule_of_calls(|call| {
        let packed = format(call) == Some("base64");
        packed.then(|| Rude::Status(500, None, "boom".into()))
    });
    // Texts are no experiment, nor is the probe that finds out.
    assert_eq!(fails(&*embedder, &["a"]).await.0, "transient");
    embedder.probe(0).await.unwrap_err();
    assert_eq!(formats(&fake.take_calls()), [Some("base64"); 2]);
    embedder.probe(0).await.unwrap();
    assert_eq!(formats(&fake.take_calls()), FORMATS[..2]);
    assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
    // While nothing passes, each probe is three calls, and texts go the last way.
    fake.take_calls();
    fake.rule(|_| Some(Rude::Status(400, None, "budget".into())));
    embedder.probe(0).await.unwrap_err();
    assert_eq!(formats(&fake.take_calls()), [Some("float")]);
    for _ in 0..2 {
        embedder.probe(0).await.unwrap_err();
        assert_eq!(formats(&fake.take_calls()), FORMATS);
    }
    fails(&*embedder, &["a"]).await;
    assert_eq!(formats(&fake.take_calls()), [Some("float")]);
    // It is back, and packs.
    fake.behave();
    embedder.probe(0).await.unwrap();
    assert_eq!(formats(&fake.take_calls()), [Some("base64")]);
}

#[tokio::test]
async fn who_is_not_let_in_is_not_asked_again_at_once() {
    for status in [401, 403, 407, 429] {
        let fake = FakeEmbedder::start().await;
        fake.rule(move |_| Some(Rude::Status(status, None, String::new())));
        let embedder = build(&profile(OpenAi, &fake.url())).await;
        embedder.probe(0).await.unwrap_err();
        assert_eq!(fake.take_calls().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_form_that_is_set_is_no_experiment() {
    for (encoding, expected) in [
        (Encoding::Base64, Some("base64")),
        (Encoding::Float, Some("float")),
        (Encoding::Omit, None),
    ] {
        let fake = FakeEmbedder::start().await;
        fake.rule(|_| Some(Rude::Status(400, None, String::new())));
        let mut profile = profile(OpenAi, &fake.url());
        profile.encoding = encoding;
        let embedder = build(&profile).await;
        for _ in 0..2 {
            embedder.probe(0).await.unwrap_err();
            assert_eq!(formats(&fake.take_calls()), [expected]);
        }
    }
}

#[tokio::test]
async fn what_is_packed_as_doubles_is_asked_for_in_digits() {
    let fake = FakeEmbedder::start().await;
    fake.rule_of_calls(|call| {
        let packed = format(call) == Some("base64");
        packed.then_some(Rude::Dimension(32))
    });
    let mut profile = profile(OpenAi, &fake.url());
    profile.dimension = Some(16);
    let embedder = build(&profile).await;
    assert_eq!(embedder.probe(0).await.unwrap().dimension, 16);
    assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
}
