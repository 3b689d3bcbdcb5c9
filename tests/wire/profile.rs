//! What a profile puts into requests, and whom it trusts.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};
use weir_embedder::{Fields, HeaderSource, Profile, Role};
use weir_tests::{
    certificates::Authority,
    embedder::{DIMENSION, FakeEmbedder, ForwardProxy, Rude},
};

use super::{
    DIALECTS, OldOllama, Ollama, OpenAi, Tei, assert_near, build, fails, profile, start_as, told,
};

fn fields(value: Value) -> Fields {
    let fields: Map<String, Value> = serde_json::from_value(value).unwrap();
    fields.into()
}

/// A file that holds a secret.
fn secret(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, text).unwrap();
    file
}

#[tokio::test]
async fn a_key_goes_into_the_header_that_the_profile_names() {
    let file = secret(" yLx0KdHsGfBc\n");
    for dialect in DIALECTS {
        for (header, expected) in [
            ("authorization", "Bearer yLx0KdHsGfBc"),
            ("Authorization", "Bearer yLx0KdHsGfBc"),
            ("api-key", "yLx0KdHsGfBc"),
            ("X-Api-Key", "yLx0KdHsGfBc"),
        ] {
            let change = |it: &mut Profile| {
                it.key_file = Some(file.path().to_owned());
                it.key_header = header.to_owned();
            };
            let (fake, embedder) = start_as(dialect, change).await;
            embedder.embed(&["a"]).await.unwrap();
            let [call] = &fake.take_calls()[..] else {
                panic!("one call")
            };
            assert_eq!(call.headers[header], expected, "{dialect:?}");
            let count = call.headers.get_all(header).iter().count();
            assert_eq!(count, 1, "{dialect:?}");
        }
    }
}

#[tokio::test]
async fn an_ollama_behind_a_bearer_proxy_is_reached_with_a_key() {
    let fake = FakeEmbedder::start().await;
    fake.rule_of_calls(|call| {
        let known = call.authorization.as_deref() == Some("Bearer let-me-in");
        let page = "<html><head><title>401 Authorization Required</title></head></html>";
        (!known).then(|| Rude::Refusal(401, "text/html", page.into()))
    });
    let mut profile = profile(Ollama, &fake.url());
    let (kind, words) = told(&build(&profile).await.probe(0).await.unwrap_err());
    assert_eq!(kind, "embedder");
    assert!(words.contains("WEIR_EMBEDDER_API_KEY_FILE"), "{words}");
    assert!(!words.contains('<'), "{words}");
    let file = secret("let-me-in");
    profile.key_file = Some(file.path().to_owned());
    let embedder = build(&profile).await;
    assert_eq!(embedder.probe(0).await.unwrap().dimension, DIMENSION);
    assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
}

#[tokio::test]
async fn headers_are_sent_and_those_in_files_are_secrets() {
    for dialect in DIALECTS {
        let file = secret("Zq8vWm3nTtR5");
        let change = |it: &mut Profile| {
            it.headers = [
                ("x-tenant", HeaderSource::Value("acme-corporation".into())),
                ("x-token", HeaderSource::Value("hunter2hunter2".into())),
                ("x-pass", HeaderSource::File(file.path().to_owned())),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
        };
        let (fake, embedder) = start_as(dialect, change).await;
        let quoted = "Zq8vWm3nTtR5 and hunter2hunter2 of acme-corporation will not do";
        fake.next(Rude::Status(500, None, quoted.into()));
        let (_, words) = fails(&*embedder, &["a"]).await;
        assert!(
            !words.contains("Zq8v") && !words.contains("hunter2"),
            "{words}"
        );
        assert!(words.contains("acme-corporation will not do"), "{words}");
        // Another value is used from the next call on; and where nothing shows
        // that the file is another, once it is refused.
        fs::write(&file, "new value").unwrap();
        embedder.embed(&["a"]).await.unwrap();
        let modified = file.as_file().metadata().unwrap().modified().unwrap();
        fs::write(&file, "wen value").unwrap();
        file.as_file().set_modified(modified).unwrap();
        fake.next(Rude::Status(403, None, String::new()));
        embedder.embed(&["a"]).await.unwrap();
        let calls = fake.take_calls();
        let passes: Vec<_> = calls.iter().map(|call| &call.headers["x-pass"]).collect();
        let expected = ["Zq8vWm3nTtR5", "new value", "new value", "wen value"];
        assert_eq!(passes, expected, "{dialect:?}");
        assert!(
            calls
                .iter()
                .all(|call| call.headers["x-tenant"] == "acme-corporation")
        );
    }
}

#[tokio::test]
async fn a_header_that_is_a_secret_is_not_sent_for_all_to_read() {
    let file = secret("Zq8vWm3nTtR5");
    let of_file = || HeaderSource::File(file.path().to_owned());
    let of_profile = || HeaderSource::Value("Zq8vWm3nTtR5".into());
    for dialect in DIALECTS {
        let built = async |url: &str, insecure: bool, name: &str, value: HeaderSource| {
            let mut profile = profile(dialect, url);
            profile.headers = [(name.to_owned(), value)].into();
            profile.insecure_key = insecure;
            let built = weir_embedder::build(&profile, Role::Document).await;
            built.map(drop).map_err(|error| format!("{error:#}"))
        };
        let elsewhere = "http://192.0.2.1:8080/v1?sig=hunter2";
        for (name, value) in [("x-pass", of_file()), ("x-api-key", of_profile())] {
            let refused = built(elsewhere, false, name, value.clone())
                .await
                .unwrap_err();
            assert!(refused.contains(&format!("headers.{name} of the profile of fake")));
            assert!(
                refused.contains("WEIR_INSECURE_EMBEDDER_API_KEY"),
                "{refused}"
            );
            assert!(
                !refused.contains("Zq8v") && !refused.contains("hunter2"),
                "{refused}"
            );
            built(elsewhere, true, name, value.clone()).await.unwrap();
            built("https://embedder.example", false, name, value.clone())
                .await
                .unwrap();
            built("http://127.0.0.1:1", false, name, value)
                .await
                .unwrap();
        }
        built(elsewhere, false, "x-tenant", of_profile())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_body_is_merged_in_depth_and_the_roles_over_it() {
    for dialect in DIALECTS {
        let fake = FakeEmbedder::start().await;
        fake.set_old_ollama(dialect == OldOllama);
        let mut profile = profile(dialect, &fake.url());
        profile.body = fields(json!({
            "keep_alive": "1h", "options": {"num_ctx": 8192, "a": {"b": 1}}, "truncate": true,
            "input_type": "passage", "normalize": false,
            "model": "another", "input": "stolen", "inputs": "stolen", "prompt": "stolen",
        }));
        profile.query.body = fields(json!({
            "input_type": "query", "options": {"a": {"c": 2}}, "model": "a third",
        }));
        for role in [Role::Document, Role::Query] {
            let embedder = weir_embedder::build(&profile, role).await.unwrap();
            embedder.probe(0).await.unwrap();
            fake.take_calls();
            assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
            let [call] = &fake.take_calls()[..] else {
                panic!("one call")
            };
            let is_query = role == Role::Query;
            let a = if is_query {
                json!({"b": 1, "c": 2})
            } else {
                json!({"b": 1})
            };
            assert_eq!(call.body["options"], json!({"num_ctx": 8192, "a": a}));
            assert_eq!(
                call.body["input_type"],
                if is_query { "query" } else { "passage" }
            );
            assert_eq!(call.body["keep_alive"], "1h");
            assert_eq!(call.body["truncate"], true);
            assert_eq!(call.body["normalize"], false);
            assert_eq!(call.texts, ["a"]);
            if dialect != Tei {
                assert_eq!(call.model, "fake");
            }
        }
    }
}

#[tokio::test]
async fn what_a_provider_asks_for_by_itself() {
    for (dialect, expected) in [
        (
            Ollama,
            json!({"model": "fake", "input": ["a"], "truncate": false}),
        ),
        (
            OldOllama,
            json!({"model": "fake", "prompt": "a", "truncate": false}),
        ),
        (
            OpenAi,
            json!({"model": "fake", "input": ["a"], "encoding_format": "base64"}),
        ),
        (
            Tei,
            json!({"inputs": ["a"], "normalize": true, "truncate": false}),
        ),
    ] {
        let (fake, embedder) = start_as(dialect, |_| ()).await;
        embedder.embed(&["a"]).await.unwrap();
        assert_eq!(fake.take_calls()[0].body, expected);
    }
}

#[tokio::test]
async fn a_form_in_the_body_is_the_users() {
    let change = |it: &mut Profile| it.body = fields(json!({"encoding_format": "float"}));
    let (fake, embedder) = start_as(OpenAi, change).await;
    assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
    assert_eq!(fake.take_calls()[0].body["encoding_format"], "float");
    // It is no experiment, and is not sent beside another.
    fake.rule(|_| Some(Rude::Status(400, None, String::new())));
    embedder.probe(0).await.unwrap_err();
    embedder.probe(0).await.unwrap_err();
    assert_eq!(fake.take_calls().len(), 2);
}

#[tokio::test]
async fn the_prompt_of_queries_comes_before_each_and_that_of_documents_does_not() {
    for dialect in DIALECTS {
        let fake = FakeEmbedder::start().await;
        fake.set_old_ollama(dialect == OldOllama);
        let mut profile = profile(dialect, &fake.url());
        profile.query.prompt = "search_query: ".to_owned();
        profile.document.prompt = "search_document: ".to_owned();
        for (role, expected) in [
            (Role::Document, ["a", "b"]),
            (Role::Query, ["search_query: a", "search_query: b"]),
        ] {
            let embedder = weir_embedder::build(&profile, role).await.unwrap();
            embedder.probe(0).await.unwrap();
            fake.take_calls();
            assert_near(&embedder.embed(&["a", "b"]).await.unwrap(), &expected);
            let calls = fake.take_calls().into_iter();
            let sent: Vec<String> = calls.flat_map(|call| call.texts).collect();
            assert_eq!(sent, expected, "{dialect:?}");
        }
    }
}

#[tokio::test]
async fn vectors_of_another_dimension_than_the_profiles_are_refused() {
    for dialect in DIALECTS {
        let fake = FakeEmbedder::start().await;
        fake.set_old_ollama(dialect == OldOllama);
        let mut profile = profile(dialect, &fake.url());
        profile.dimension = Some(8);
        let embedder = build(&profile).await;
        for _ in 0..2 {
            for error in [
                embedder.probe(0).await.unwrap_err(),
                embedder.embed(&["a"]).await.unwrap_err(),
            ] {
                let (kind, words) = told(&error);
                // Where the way to it is not known, a text does not get there.
                if words.contains("404") {
                    assert_eq!(dialect, OldOllama);
                    continue;
                }
                assert_eq!(kind, "embedder");
                assert!(
                    words.contains("16 numbers, where dimension is 8"),
                    "{words}"
                );
                assert!(words.contains("set dimension to 16"), "{words}");
            }
        }
        profile.dimension = Some(16);
        let embedder = build(&profile).await;
        assert_eq!(embedder.probe(0).await.unwrap().dimension, DIMENSION);
    }
    for (send, expected) in [(true, json!(16)), (false, Value::Null)] {
        let change = |it: &mut Profile| {
            it.dimension = Some(16);
            it.send_dimension = send;
        };
        let (fake, embedder) = start_as(OpenAi, change).await;
        embedder.embed(&["a"]).await.unwrap();
        assert_eq!(fake.take_calls()[0].body["dimensions"], expected);
    }
}

#[tokio::test]
async fn the_longest_input_is_the_least_that_is_said() {
    for dialect in DIALECTS {
        // What text-embeddings-inference says of itself.
        let server = (dialect == Tei).then_some(512);
        for (profiles, expected) in [
            (None, server),
            (Some(256), Some(256)),
            (Some(2048), server.or(Some(2048))),
        ] {
            let (_fake, embedder) = start_as(dialect, |it| it.longest_input = profiles).await;
            let limits = embedder.probe(0).await.unwrap().limits;
            assert_eq!(limits.text_tokens, expected, "{dialect:?}");
        }
    }
}

#[tokio::test]
async fn a_server_is_trusted_by_an_authority_of_ones_own() {
    let authority = Authority::new();
    let other = Authority::new();
    for dialect in DIALECTS {
        let fake = FakeEmbedder::start_tls(&authority.issue("embedder")).await;
        fake.set_old_ollama(dialect == OldOllama);
        let mut profile = profile(dialect, &fake.url());
        for (ca, said) in [
            (None, "needs ca-file"),
            (Some(other.ca()), "the profile's ca-file"),
        ] {
            profile.ca_file = ca;
            let (kind, words) = told(&build(&profile).await.probe(0).await.unwrap_err());
            assert_eq!(kind, "embedder");
            assert!(words.contains(said), "{words}");
            assert!(words.to_lowercase().contains("certificate"), "{words}");
        }
        assert!(fake.take_calls().is_empty());
        profile.ca_file = Some(authority.ca());
        let embedder = build(&profile).await;
        embedder.probe(0).await.unwrap();
        assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
    }
}

#[tokio::test]
async fn an_authority_that_is_none_is_refused_at_once() {
    let empty = secret("no certificate");
    for (path, said) in [
        (
            Path::new("/no/ca.pem"),
            "cannot read /no/ca.pem of ca-file of the profile of fake",
        ),
        (empty.path(), "holds no certificate in PEM"),
    ] {
        let mut profile = profile(OpenAi, "https://embedder.example");
        profile.ca_file = Some(path.to_owned());
        let refused = weir_embedder::build(&profile, Role::Document).await;
        let refused = format!("{:#}", refused.err().unwrap());
        assert!(refused.contains(said), "{refused}");
    }
}

#[tokio::test]
async fn a_proxy_is_asked_for_the_address_of_the_server() {
    for dialect in DIALECTS {
        let fake = FakeEmbedder::start().await;
        fake.set_old_ollama(dialect == OldOllama);
        let proxy = ForwardProxy::start(fake.address()).await;
        let mut profile = profile(dialect, "http://embedder.example:8080");
        profile.proxy = Some(proxy.url().parse().unwrap());
        let embedder = build(&profile).await;
        embedder.probe(0).await.unwrap();
        assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
        let asked = proxy.asked();
        let first = asked[0].to_lowercase();
        assert!(first.contains(" http://embedder.example:8080/"), "{first}");
        fake.next(Rude::Status(407, None, "who are you?".into()));
        let (kind, words) = fails(&*embedder, &["a"]).await;
        assert_eq!(kind, "embedder");
        assert!(words.contains("of the proxy"), "{words}");
    }
    // With TLS through a tunnel, of which the proxy reads nothing.
    let authority = Authority::new();
    let fake = FakeEmbedder::start_tls(&authority.issue("embedder")).await;
    let proxy = ForwardProxy::start(fake.address()).await;
    // The certificate has this name, which the proxy looks up as it likes.
    let mut profile = profile(OpenAi, "https://localhost.:9443/v1");
    profile.ca_file = Some(authority.ca());
    profile.proxy = Some(proxy.url().parse().unwrap());
    let embedder = build(&profile).await;
    embedder.probe(0).await.unwrap();
    assert_near(&embedder.embed(&["a"]).await.unwrap(), &["a"]);
    let asked = proxy.asked();
    assert!(
        asked[0].starts_with("CONNECT localhost.:9443 "),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_proxy_that_cannot_be_one_is_refused_at_once() {
    for url in ["http://127.0.0.1:8080", "http://localhost:8080"] {
        let mut profile = profile(OpenAi, url);
        profile.proxy = Some("http://proxy:3128".parse().unwrap());
        let refused = weir_embedder::build(&profile, Role::Document).await;
        let refused = format!("{:#}", refused.err().unwrap());
        for said in ["proxy of the profile of fake", "no proxy can reach"] {
            assert!(refused.contains(said), "{refused}");
        }
    }
}
