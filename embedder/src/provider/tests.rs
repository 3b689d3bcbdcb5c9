use std::{io::Write as _, mem};

use clap::Parser;
use serde_json::{Value, json};

use super::rude_server::{Answer, RudeServer};
use super::*;
use crate::*;
use weir_proto::limits::MAX_DIMENSION;

#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    config: EmbedderConfig,
}

fn config(flags: &[&str]) -> EmbedderConfig {
    Flags::try_parse_from(["weir-worker"].iter().chain(flags))
        .unwrap()
        .config
}

/// An embedder that talks to a server giving this answer.
async fn embedder(kind: &str, answer: Answer) -> (Arc<dyn Embedder>, RudeServer) {
    let server = RudeServer::start(answer).await;
    let flags = [
        "--embedder",
        kind,
        "--embedder-url",
        &server.url,
        "--embed-timeout",
        "20s",
    ];
    let config = config(&flags);
    (
        build(&config.profile("minilm"), Role::Document)
            .await
            .unwrap(),
        server,
    )
}

async fn embed(kind: &str, answer: Answer, texts: &[&str]) -> Result<Vec<Embedding>, EmbedError> {
    let (embedder, _server) = embedder(kind, answer).await;
    embedder.embed(texts).await
}

/// The vectors, all of which can be used.
fn usable(vectors: Vec<Embedding>) -> Vec<Vec<f32>> {
    vectors.into_iter().collect::<Result<_, _>>().unwrap()
}

const KINDS: [&str; 3] = ["ollama", "openai", "tei"];

/// How a refusal of this status and body is sorted, by every server's client.
async fn sorted(head: &str, body: &str) -> EmbedError {
    let mut found: Option<EmbedError> = None;
    for kind in KINDS {
        let answer = embed(kind, Answer::whole(head, body), &["a cat"]).await;
        let error = answer.unwrap_err();
        if let Some(found) = &found {
            assert_eq!(
                mem::discriminant(found),
                mem::discriminant(&error),
                "{kind}"
            );
        }
        found = Some(error);
    }
    found.unwrap()
}

fn reason_of_too_long(error: EmbedError) -> String {
    match error {
        EmbedError::TooLong { reason, .. } => reason,
        other => panic!("not a text that is too long: {other:?}"),
    }
}

fn reason_of_timeout(error: EmbedError) -> String {
    match error {
        EmbedError::Timeout { reason } => reason,
        other => panic!("not a timeout: {other:?}"),
    }
}

fn reason_of_embedder(error: EmbedError) -> String {
    match error {
        EmbedError::Embedder { reason, .. } => reason,
        other => panic!("not an embedder error: {other:?}"),
    }
}

fn reason_of_transient(error: EmbedError) -> String {
    match error {
        EmbedError::Transient { reason } | EmbedError::Broken { reason } => reason,
        other => panic!("not a transient error: {other:?}"),
    }
}

fn ok(body: &Value) -> Answer {
    Answer::whole("200 OK", &body.to_string())
}

#[tokio::test]
async fn openai_vectors_are_sorted_by_index() {
    let answer = ok(&json!({"data": [
        {"index": 2, "embedding": [3.0]},
        {"index": 0, "embedding": [1.0]},
        {"index": 1, "embedding": [2.0]},
    ]}));
    let vectors = embed("openai", answer, &["a", "b", "c"]).await.unwrap();
    assert_eq!(usable(vectors), [[1.0], [2.0], [3.0]]);
}

#[tokio::test]
async fn no_texts_need_no_call() {
    for kind in KINDS {
        let (embedder, mut server) = embedder(kind, Answer::whole("500 Oops", "")).await;
        assert!(embedder.embed(&[]).await.unwrap().is_empty());
        server.requests.try_recv().unwrap_err();
    }
}

#[tokio::test]
async fn the_probe_returns_the_dimension() {
    let (embedder, _server) = embedder("ollama", ok(&json!({"embeddings": [[1, 2, 3]]}))).await;
    assert_eq!(embedder.probe(0).await.unwrap().dimension, 3);
    let (embedder, _server) = self::embedder("ollama", Answer::whole("503 Busy", "")).await;
    reason_of_embedder(embedder.probe(0).await.unwrap_err());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_to_blame() {
    let port = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{port}");
    for kind in KINDS {
        let embedder = build(
            &config(&["--embedder", kind, "--embedder-url", &url]).profile("m"),
            Role::Document,
        )
        .await
        .unwrap();
        let reason = reason_of_embedder(embedder.embed(&["a cat"]).await.unwrap_err());
        assert!(reason.contains(&port.to_string()), "{reason}");
        assert!(
            reason.to_lowercase().contains("connection refused"),
            "{reason}"
        );
        assert!(reason.contains("WEIR_EMBEDDER_URL"), "{reason}");
    }
}

#[tokio::test]
async fn a_server_without_tls_or_name_is_to_blame() {
    let server = RudeServer::start(Answer::whole("200 OK", "{}")).await;
    for url in [
        server.url.replace("http://", "https://"),
        "http://no-such-host.invalid".to_owned(),
    ] {
        // The plain server waits for the rest of the greeting: only the time
        // to connect ends this.
        let flags = ["--embedder-url", &url, "--embed-timeout", "400ms"];
        let embedder = build(&config(&flags).profile("m"), Role::Document)
            .await
            .unwrap();
        reason_of_embedder(embedder.embed(&["a cat"]).await.unwrap_err());
    }
}

#[tokio::test]
async fn messages_of_the_server_are_short_and_quote_nothing_that_was_sent() {
    let long = "x".repeat(10_000);
    let reason = reason_of_transient(sorted("500 Oops", &long).await);
    assert!(reason.len() < 500, "{} bytes", reason.len());
    assert!(reason.contains(&"x".repeat(300)), "{reason}");
    let reason = reason_of_transient(sorted("500 Oops", "<html>an error page</html>").await);
    assert!(!reason.contains("html"), "{reason}");

    let secret = "The patient's name is Jane Doe and her number is 12345.";
    for body in [
        json!({"error": format!("cannot embed {secret:.30}")}),
        json!({"error": {"message": format!("context length: {secret}")}}),
        json!({"detail": [{"msg": "too long", "input": secret}]}),
    ] {
        let answer = Answer::whole("400 Bad Request", &body.to_string());
        let reason = embed("openai", answer, &["a", secret])
            .await
            .unwrap_err()
            .to_string();
        assert!(!reason.contains("patient"), "{reason}");
    }
}

#[tokio::test]
async fn the_key_is_never_shown() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "sk-secret").unwrap();
    let answer = Answer::whole("401 Unauthorized", r#"{"error": "sk-secret is not a key"}"#);
    let server = RudeServer::start(answer).await;
    let key_file = file.path().to_str().unwrap();
    let flags = [
        "--embedder",
        "openai",
        "--embedder-url",
        &server.url,
        "--embedder-api-key-file",
        key_file,
    ];
    let config = config(&flags);
    assert!(!format!("{config:?}").contains("sk-secret"));
    let credentials = secrets::Credentials::open(&config.profile("minilm")).unwrap();
    let headers = credentials.headers();
    assert_eq!(headers["authorization"], "Bearer sk-secret");
    assert!(!format!("{headers:?}").contains("sk-secret"));
    let error = build(&config.profile("minilm"), Role::Document)
        .await
        .unwrap()
        .embed(&["a"])
        .await
        .unwrap_err();
    assert!(!reason_of_embedder(error).contains("sk-secret"));
}

#[tokio::test]
async fn a_broken_answer_may_be_better_next_time() {
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{\"embeddings\": [[1.0, 2".to_vec();
    for (answer, expected) in [
        (Answer::Raw(cut.clone()), "broke the connection"),
        (Answer::Raw(Vec::new()), "broke the connection"),
        (Answer::HalfClose(Vec::new()), "broke the connection"),
        (Answer::HalfClose(cut), "broke the connection"),
        (
            Answer::Raw(b"220 smtp.example.com ESMTP\r\n".to_vec()),
            "broke the connection",
        ),
        (
            Answer::whole("200 OK", "{\"embeddings\": [[1.0, 2"),
            "ends early",
        ),
        (
            Answer::whole("200 OK", "{\"embeddings\": [[nope]]}"),
            "not JSON",
        ),
        (
            Answer::whole("200 OK", "{\"vectors\": []}"),
            "a field is missing",
        ),
    ] {
        let reason = reason_of_transient(embed("ollama", answer, &["a cat"]).await.unwrap_err());
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
}

/// An answer with these vectors, written as each server does.
fn vectors(kind: &str, vectors: &str) -> Answer {
    let body = match kind {
        "ollama" => format!("{{\"embeddings\": [{vectors}]}}"),
        "tei" => format!("[{vectors}]"),
        _ => {
            let entries = vectors.split(", ").enumerate();
            let entries = entries
                .map(|(index, vector)| format!("{{\"index\": {index}, \"embedding\": {vector}}}"));
            format!("{{\"data\": [{}]}}", entries.collect::<Vec<_>>().join(","))
        }
    };
    Answer::whole("200 OK", &body)
}

#[tokio::test]
async fn a_vector_that_cannot_be_used_takes_no_other_with_it() {
    let huge = format!("[{}]", vec!["0.5"; MAX_DIMENSION + 1].join(","));
    for (bad, flaw) in [
        ("[0,0]", "is all zero"),
        ("[-0.0,0]", "is all zero"),
        ("[1,null]", "holds NaN"),
        ("[1,NaN]", "holds NaN"),
        ("[-Infinity,1]", "holds NaN"),
        ("[1,1e39]", "holds NaN"),
        ("[]", "holds no numbers"),
        ("null", "holds no numbers"),
        ("[1]", "holds 1 numbers, where others hold 2"),
        (&huge, "holds 16001 numbers; 1 to 16000 are possible"),
    ] {
        for kind in KINDS {
            let answer = vectors(kind, &format!("[1,2], {bad}"));
            let both = embed(kind, answer, &["a", "b"]).await.unwrap();
            let [Ok(good), Err(said)] = both.as_slice() else {
                panic!("{bad}: {both:?}");
            };
            assert_eq!(*good, [1.0, 2.0]);
            assert!(said.contains(flaw), "{said}");
        }
    }
}

#[tokio::test]
async fn a_probe_without_a_usable_vector_blames_the_embedder() {
    for bad in ["[0,0]", "[NaN]"] {
        let (embedder, _server) = embedder("ollama", vectors("ollama", bad)).await;
        let reason = reason_of_embedder(embedder.probe(0).await.unwrap_err());
        assert!(reason.contains("for the probe"), "{reason}");
    }
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    // More than one vector of the largest dimension could take, and then
    // silence: who waits for the end waits for ever.
    let mut answer = b"HTTP/1.1 200 OK\r\ncontent-length: 900000000\r\n\r\n".to_vec();
    answer.resize(2 << 20, b' ');
    let error = embed("ollama", Answer::Stall(answer), &["a cat"])
        .await
        .unwrap_err();
    let reason = reason_of_transient(error);
    assert!(reason.contains("more than 577536 bytes"), "{reason}");
}

#[tokio::test]
async fn an_answer_that_unpacks_without_end_is_cut_off() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&vec![b' '; 64 << 20]).unwrap();
    let packed = packed.finish().unwrap();
    for status in ["200 OK", "500 Oops"] {
        let length = packed.len();
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-encoding: gzip\r\ncontent-length: {length}");
        let answer = [format!("{head}\r\n\r\n").as_bytes(), &packed].concat();
        let error = embed("tei", Answer::Raw(answer), &["a cat"])
            .await
            .unwrap_err();
        let reason = reason_of_transient(error);
        let cut = reason.contains("more than 577536 bytes");
        assert!(
            cut || status.starts_with("500") && reason.len() < 200,
            "{reason}"
        );
    }
    for (packing, said) in [("br", "asked not to"), ("gzip", "gzip cannot be read")] {
        let answer = Answer::whole(&format!("200 OK\r\ncontent-encoding: {packing}"), "[[1]]");
        let reason = reason_of_transient(embed("tei", answer, &["a"]).await.unwrap_err());
        assert!(reason.contains(said), "{reason}");
    }
}

#[tokio::test]
async fn contradictions_are_refused_by_name() {
    for (flags, setting) in [
        (&["--embedder", "openai"][..], "WEIR_EMBEDDER_URL"),
        (
            &[
                "--embedder",
                "local",
                "--local-model-dir",
                "/",
                "--embedder-url",
                "http://a",
            ],
            "WEIR_EMBEDDER_URL",
        ),
        (
            &["--embedder-api-key-file", "/dev/null"],
            "WEIR_EMBEDDER_API_KEY_FILE",
        ),
        (
            &[
                "--embedder",
                "local",
                "--local-model-dir",
                "/",
                "--embedder-api-key-file",
                "/k",
            ],
            "WEIR_EMBEDDER_API_KEY_FILE",
        ),
        (
            &[
                "--embedder",
                "openai",
                "--embedder-url",
                "https://a",
                "--embedder-api-key-file",
                "/dev/null",
            ],
            "/dev/null of --embedder-api-key-file (WEIR_EMBEDDER_API_KEY_FILE) is empty",
        ),
        (
            &[
                "--embedder",
                "openai",
                "--embedder-url",
                "https://a",
                "--embedder-api-key-file",
                "/no/key",
            ],
            "/no/key of --embedder-api-key-file (WEIR_EMBEDDER_API_KEY_FILE)",
        ),
        (&["--embedder", "tei"], "WEIR_EMBEDDER_URL"),
        (&["--dimensions", "256"], "WEIR_DIMENSIONS"),
        (
            &[
                "--embedder",
                "tei",
                "--embedder-url",
                "http://a",
                "--dimensions",
                "256",
            ],
            "WEIR_DIMENSIONS",
        ),
    ] {
        let message = match build(&config(flags).profile("m"), Role::Document).await {
            Ok(_) => panic!("{flags:?} was accepted"),
            Err(error) => format!("{error:#}"),
        };
        assert!(message.contains(setting), "{message}");
    }
}

#[test]
fn unusable_values_are_refused_by_name() {
    for (flag, value) in [
        ("--embedder", "tea-leaves"),
        ("--embedder-url", "not a url"),
        ("--embedder-url", "ftp://host"),
        ("--embedder-url", "mailto:someone"),
        ("--embedder-url", "http://host/#part"),
        ("--embedder-url", "http://user:hunter2@host"),
        ("--embedder-api-key-header", "content-type"),
        ("--embedder-api-key-header", "a b"),
        ("--dimensions", "0"),
        ("--dimensions", "16001"),
        ("--embed-timeout", "0s"),
        ("--embed-timeout", "soon"),
    ] {
        let message = Flags::try_parse_from(["weir-worker", flag, value])
            .unwrap_err()
            .to_string();
        assert!(message.contains(flag), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    assert_eq!(
        config(&["--embed-timeout", "90s"]).profile("m").timeout,
        Duration::from_secs(90)
    );
}

#[cfg(feature = "local-model")]
mod local {
    use std::path::{Path, PathBuf};

    use super::*;

    fn folder() -> PathBuf {
        let folder = std::env::var_os("WEIR_LOCAL_MODEL_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.runtime/model"),
            PathBuf::from,
        );
        assert!(
            folder.join("config.json").exists(),
            "no model in {}: run `make runtime`, or set WEIR_LOCAL_MODEL_DIR",
            folder.display()
        );
        folder
    }

    fn local(folder: &Path, timeout: &str) -> EmbedderConfig {
        let folder = folder.to_str().unwrap();
        config(&[
            "--embedder",
            "local",
            "--local-model-dir",
            folder,
            "--embed-timeout",
            timeout,
        ])
    }

    #[tokio::test]
    async fn embeds_for_many_callers_without_blocking_the_runtime() {
        let embedder = build(&local(&folder(), "5m").profile("any name"), Role::Document)
            .await
            .unwrap();
        let probe = embedder.probe(0).await.unwrap();
        assert_eq!(
            (probe.dimension, probe.limits.text_tokens),
            (384, Some(256))
        );
        let texts: Vec<String> = (0..40)
            .map(|index| format!("parcel number {index}"))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let expected = usable(embedder.embed(&texts).await.unwrap()).concat();
        // On this test's one thread the calls can only overlap, and the ticker
        // only tick, if none of them blocks it.
        let calls = futures::future::join_all((0..4).map(|_| embedder.embed(&texts)));
        let mut ticks = 0;
        let ticker = async {
            loop {
                tokio::task::yield_now().await;
                ticks += 1;
            }
        };
        let results = tokio::select! { results = calls => results, () = ticker => unreachable!() };
        assert!(ticks > 1);
        for result in results {
            let apart = usable(result.unwrap()).concat().into_iter().zip(&expected);
            assert!(apart.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 1e-4);
        }
    }

    #[tokio::test]
    async fn a_slow_model_ends_at_the_timeout() {
        let embedder = build(&local(&folder(), "1ms").profile("m"), Role::Document)
            .await
            .unwrap();
        let text = "parcel ".repeat(200);
        let texts = vec![text.as_str(); 100];
        let reason = reason_of_timeout(embedder.embed(&texts).await.unwrap_err());
        assert!(reason.contains("longer than 1ms"), "{reason}");
    }

    #[tokio::test]
    async fn a_text_that_is_too_long_is_counted_not_cut() {
        let embedder = build(&local(&folder(), "5m").profile("m"), Role::Document)
            .await
            .unwrap();
        let (fits, over) = ("parcel ".repeat(254), "parcel ".repeat(255));
        embedder.embed(&[&fits]).await.unwrap();
        let error = embedder.embed(&["short", &over]).await.unwrap_err();
        let reason = reason_of_too_long(error);
        assert!(
            reason.contains("257 tokens") && reason.contains("256"),
            "{reason}"
        );
    }

    #[tokio::test]
    async fn a_missing_folder_is_named() {
        for (config, expected) in [
            (
                local(Path::new("/no/model"), "5m"),
                "/no/model of --local-model-dir (WEIR_LOCAL_MODEL_DIR)",
            ),
            (local(Path::new("/no/model"), "5m"), "/no/model/config.json"),
            (
                EmbedderConfig {
                    local_model_dir: None,
                    ..local(Path::new("/"), "5m")
                },
                "WEIR_LOCAL_MODEL_DIR",
            ),
        ] {
            let error = build(&config.profile("m"), Role::Document)
                .await
                .err()
                .unwrap();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}

#[tokio::test]
async fn a_key_is_not_sent_for_all_to_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "weir_secret").unwrap();
    let made = async |kind, url, flags: &[&str]| {
        let path = file.path().to_str().unwrap();
        let all = ["--embedder", kind, "--embedder-url", url];
        let all = [&all[..], &["--embedder-api-key-file", path], flags].concat();
        build(&config(&all).profile("minilm"), Role::Document)
            .await
            .map(drop)
    };
    let elsewhere = "http://192.0.2.1:8080/v1";
    for kind in KINDS {
        for (url, flags) in [
            ("https://embedder.example", &[][..]),
            ("http://127.0.0.1:8080", &[]),
            ("http://[::1]:8080", &[]),
            (elsewhere, &["--insecure-embedder-api-key"]),
        ] {
            made(kind, url, flags).await.unwrap();
        }
        let refused = made(kind, elsewhere, &[]).await.unwrap_err().to_string();
        let flag = "--insecure-embedder-api-key (WEIR_INSECURE_EMBEDDER_API_KEY)";
        assert!(refused.contains(flag), "{refused}");
        assert!(!refused.contains("weir_secret"), "{refused}");
    }
}
