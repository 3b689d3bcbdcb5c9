//! Bad input: each is refused with the right status, in words that say what and
//! where, and leaves nothing behind.

#![expect(
    clippy::unwrap_used,
    reason = "what is not as it should be fails the test"
)]

use std::fmt::Write as _;

use prost_types::{Struct, Value, value::Kind};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use weir_proto::v1::{
    self, DocumentFormat, import_source_request::Message as Part, lease_ended::How,
    stream_batches_request::Message as FromWorker,
};

use weir_tests::{
    cluster::MODEL,
    session::{Session, condition, credit, held, model, opening, result},
};

use crate::clients::{
    Weir, assert_invalid, assert_status, claim_request, embedded, item, put_document, put_items,
    put_texts, seconds, until, upsert, vector_bytes,
};

const OPENAPI: &str = r#"{"openapi": "3.1.0", "paths": {"/a": {"get": {"summary": "Gets a."}}}}"#;

/// Puts a document that must be refused for `what`.
async fn refuses(weir: &Weir, format: DocumentFormat, content: impl Into<Vec<u8>>, what: &str) {
    let request = put_document("bad", format, content);
    let status = weir.sources().put_source(request).await.unwrap_err();
    assert_invalid(&status, "document.content", what);
}

/// Asserts that the coordinator still takes a good put, and nothing else is
/// there.
async fn still_serves(weir: &Weir) {
    weir.assert_empty().await;
    let put = weir.put("good", &["fine"]).await;
    assert_eq!(put.change.unwrap().items_added, 1);
    assert_eq!(weir.rows("items").await, 1);
}

#[tokio::test]
async fn broken_documents_are_refused_with_the_place() {
    let weir = Weir::start().await;
    let openapi = DocumentFormat::Openapi;
    let truncated = &OPENAPI[..OPENAPI.len() - 20];
    refuses(&weir, openapi, truncated, "line 1, column").await;
    refuses(&weir, openapi, "{\"openapi\": }", "as JSON").await;
    refuses(
        &weir,
        openapi,
        "openapi: 3.1.0\npaths: [unclosed\n",
        "as YAML",
    )
    .await;
    refuses(
        &weir,
        openapi,
        "openapi: 3.1.0\n\tpaths: x",
        "a tab at line 1",
    )
    .await;
    refuses(&weir, openapi, "", "blank").await;
    refuses(
        &weir,
        openapi,
        "{\"openapi\": \"3.1.0\"}",
        "has no operations",
    )
    .await;
    refuses(
        &weir,
        openapi,
        "title: Poem",
        "not an OpenAPI document: it has neither",
    )
    .await;
    refuses(&weir, openapi, "openapi: 9.9.9\npaths: {}", "\"9.9.9\"").await;
    still_serves(&weir).await;
}

#[tokio::test]
async fn an_alias_bomb_is_refused() {
    let weir = Weir::start().await;
    let mut bomb = "openapi: 3.1.0\na0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for n in 1..12 {
        let alias = format!("*a{}", n - 1);
        writeln!(bomb, "a{n}: &a{n} [{}]", [alias.as_str(); 9].join(", ")).unwrap();
    }
    refuses(&weir, DocumentFormat::Openapi, bomb, "aliases").await;
    still_serves(&weir).await;
}

#[tokio::test]
async fn operations_that_share_an_id_are_kept_apart_and_reported() {
    let weir = Weir::start().await;
    let content = r#"{"openapi": "3.0.0", "paths": {
        "/a": {"get": {"operationId": "twin", "summary": "One."}},
        "/b": {"get": {"operationId": "twin", "summary": "Two."}}}}"#;
    let request = put_document("twins", DocumentFormat::Openapi, content);
    let answer = weir.sources().put_source(request).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!(answer.source.unwrap().items, 2);
    assert_eq!(answer.warnings.len(), 1, "{:?}", answer.warnings);
    assert_eq!(answer.warnings[0].item_id, "twin (GET /b)");
    assert!(answer.warnings[0].message.contains("\"twin\" is used"));
    let ids: Vec<String> = sqlx::query_scalar("SELECT item_id FROM weir.items ORDER BY 1")
        .fetch_all(weir.database.pool())
        .await
        .unwrap();
    assert_eq!(ids, ["twin", "twin (GET /b)"]);
}

#[tokio::test]
async fn blank_texts_are_refused() {
    let weir = Weir::start().await;
    for text in ["", " \n\t", "\u{3000}"] {
        let request = put_texts("bad", &["fine", text]);
        let status = weir.sources().put_source(request).await.unwrap_err();
        assert_invalid(&status, "items[1].text", "blank");
    }
    refuses(&weir, DocumentFormat::Markdown, " \n\n", "blank").await;
    refuses(&weir, DocumentFormat::Text, "", "blank").await;
    let lines = "{\"item_id\": \"a\", \"text\": \"x\"}\n{\"item_id\": \"b\", \"text\": \" \"}\n";
    refuses(&weir, DocumentFormat::JsonLines, lines, "line 2").await;
    let broken = "{\"item_id\": \"a\", \"text\": \"x\"}\n\n{\"item_id\": \n";
    refuses(&weir, DocumentFormat::JsonLines, broken, "line 3").await;
    still_serves(&weir).await;
}

#[tokio::test]
async fn nul_and_invalid_utf8_are_refused() {
    let weir = Weir::start().await;
    for format in [
        DocumentFormat::Openapi,
        DocumentFormat::Markdown,
        DocumentFormat::Text,
        DocumentFormat::JsonLines,
    ] {
        refuses(&weir, format, "ab\0c", "NUL byte at offset 2").await;
        refuses(&weir, format, b"abc\xffd".to_vec(), "offset 3").await;
    }
    let request = put_texts("bad", &["a\0b"]);
    let status = weir.sources().put_source(request).await.unwrap_err();
    assert_invalid(&status, "items[0].text", "NUL character at byte 1");
    let request = put_items("bad", vec![item("a\0", "fine")]);
    let status = weir.sources().put_source(request).await.unwrap_err();
    assert_invalid(&status, "items[0].item_id", "U+0000");
    let mut nul = item("a", "fine");
    let value = Value {
        kind: Some(Kind::StringValue("x\0".to_owned())),
    };
    nul.metadata = Some(Struct {
        fields: [("k".to_owned(), value)].into(),
    });
    let request = put_items("bad", vec![nul]);
    let status = weir.sources().put_source(request).await.unwrap_err();
    assert_invalid(&status, "items[0].metadata", "NUL");
    still_serves(&weir).await;
}

/// `PutSourceRequest` as a client writes it that checks no UTF-8.
mod raw {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Item {
        #[prost(bytes, tag = "1")]
        pub(super) item_id: Vec<u8>,
        #[prost(bytes, tag = "2")]
        pub(super) text: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ItemList {
        #[prost(message, repeated, tag = "1")]
        pub(super) items: Vec<Item>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Put {
        #[prost(string, tag = "2")]
        pub(super) name: String,
        #[prost(message, optional, tag = "5")]
        pub(super) items: Option<ItemList>,
    }
}

#[tokio::test]
async fn items_that_are_not_utf8_are_refused() {
    let weir = Weir::start().await;
    let request = raw::Put {
        name: "bad".to_owned(),
        items: Some(raw::ItemList {
            items: vec![raw::Item {
                item_id: b"a".to_vec(),
                text: b"abc\xff".to_vec(),
            }],
        }),
    };
    let mut client = tonic::client::Grpc::new(weir.channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<raw::Put, v1::PutSourceResponse>::default();
    let path = "/weir.v1.SourceService/PutSource".parse().unwrap();
    let call = client.unary(tonic::Request::new(request), path, codec);
    let status = call.await.unwrap_err();
    assert_status(&status, Code::InvalidArgument, "UTF-8");
    assert!(status.message().contains("text"), "{status:?}");
    still_serves(&weir).await;
}

#[tokio::test]
async fn faults_of_items_are_told_all_at_once() {
    let weir = Weir::start().await;
    let request = put_items("bad", vec![item("a", "x"), item("b", "y"), item("a", "z")]);
    let status = weir.sources().put_source(request).await.unwrap_err();
    assert_invalid(&status, "items", "\"a\" occurs twice");

    let mut request = put_texts("a/b", &["", ""]);
    request.priority = 10;
    request.namespace = "Upper".to_owned();
    request.model = "gpt".to_owned();
    let status = weir.sources().put_source(request).await.unwrap_err();
    assert_invalid(&status, "name", "letters, digits");
    assert_invalid(&status, "namespace", "lower-case");
    assert_invalid(&status, "model", "\"gpt\" is not a model");
    assert_invalid(&status, "priority", "0 to 9, not 10");

    // However many faults there are, the answer fits what clients take.
    let long_id = "é".repeat(300);
    let items = (0..5_000).map(|_| item(&long_id, "")).collect();
    let status = weir.sources().put_source(put_items("bad", items)).await;
    assert_invalid(&status.unwrap_err(), "items[0].item_id", "600 bytes");
    let request = put_texts("bad", &vec![""; 5_000]);
    let status = weir.sources().put_source(request).await.unwrap_err();
    assert_invalid(&status, "items[9].text", "blank");
    still_serves(&weir).await;
}

#[tokio::test]
async fn a_text_of_ten_megabytes_comes_through() {
    let weir = Weir::start().await;
    let text = "All work and no play makes a dull text. ".repeat(10 << 20 >> 5);
    assert!(text.len() > 10 << 20);
    let put = weir.put("long", &[&text]).await;
    let source = put.source.unwrap();
    assert_eq!(source.items, 1);
    assert!(source.chunks > 10_000, "{}", source.chunks);
    assert_eq!(weir.rows("chunks").await, source.chunks);
    let status = format!("/proc/{}/status", weir.coordinator.process.pid());
    let status = std::fs::read_to_string(status).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_kb: u64 = peak
        .and_then(|peak| peak.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap();
    assert!(peak_kb < 512 << 10, "the coordinator took {peak_kb} kB");
}

#[tokio::test]
async fn names_are_refused_that_break_the_rules() {
    let weir = Weir::start().await;
    let long = "n".repeat(10_000);
    for name in ["", "a/b", "../a", ".a", "a b", "ä", "a\0", long.as_str()] {
        let status = weir.sources().put_source(put_texts(name, &["x"])).await;
        assert_invalid(&status.unwrap_err(), "name", "1 to 200 letters");
        assert_invalid(
            &weir.source(name).await.unwrap_err(),
            "name",
            "1 to 200 letters",
        );
        let request = v1::DeleteSourceRequest {
            name: name.to_owned(),
            ..v1::DeleteSourceRequest::default()
        };
        let status = weir.sources().delete_source(request).await.unwrap_err();
        assert_invalid(&status, "name", "1 to 200 letters");
    }
    for namespace in ["A", "a/b", "-a", "\0", long.as_str()] {
        let mut request = put_texts("good", &["x"]);
        request.namespace = namespace.to_owned();
        let status = weir.sources().put_source(request).await.unwrap_err();
        assert_invalid(&status, "namespace", "1 to 63 lower-case");
    }
    still_serves(&weir).await;
}

#[tokio::test]
async fn requests_that_ask_for_what_is_not_there_are_refused() {
    let weir = Weir::start().await;
    let request = v1::PutSourceRequest {
        name: "bad".to_owned(),
        ..v1::PutSourceRequest::default()
    };
    let status = weir.sources().put_source(request).await.unwrap_err();
    assert_invalid(&status, "content", "is missing");
    let request = put_document("bad", DocumentFormat::Unspecified, OPENAPI);
    let status = weir.sources().put_source(request).await.unwrap_err();
    assert_invalid(&status, "document.format", "OPENAPI");

    let mut claim = claim_request();
    claim.models = vec!["fake".to_owned(), "gpt".to_owned()];
    let status = weir.worker().claim_job(claim).await.unwrap_err();
    assert_invalid(&status, "models[1]", "it has fake");
    let request = v1::SearchRequest {
        model: "gpt".to_owned(),
        vector: vector_bytes(&[1.0]),
        ..v1::SearchRequest::default()
    };
    let status = weir.searches().search(request).await.unwrap_err();
    assert_invalid(&status, "model", "\"gpt\" is not a model");

    for priority in [-1, 10, i32::MAX] {
        let mut request = put_texts("bad", &["x"]);
        request.priority = priority;
        let status = weir.sources().put_source(request).await.unwrap_err();
        assert_invalid(&status, "priority", "0 to 9");
    }
    for page_size in [-1, 1_001, i32::MIN] {
        let request = v1::ListSourcesRequest {
            page_size,
            ..v1::ListSourcesRequest::default()
        };
        let status = weir.sources().list_sources(request).await.unwrap_err();
        assert_invalid(&status, "page_size", "1 to 1000");
        let request = v1::ListJobsRequest {
            page_size,
            ..v1::ListJobsRequest::default()
        };
        let status = weir.jobs().list_jobs(request).await.unwrap_err();
        assert_invalid(&status, "page_size", "1 to 1000");
    }
    for states in [vec![0], vec![3, 99]] {
        let last = states.len() - 1;
        let request = v1::ListJobsRequest {
            states,
            ..v1::ListJobsRequest::default()
        };
        let status = weir.jobs().list_jobs(request).await.unwrap_err();
        assert_invalid(&status, &format!("states[{last}]"), "not a job state");
    }
    still_serves(&weir).await;
}

#[tokio::test]
async fn page_tokens_of_other_queries_are_refused() {
    let weir = Weir::start().await;
    weir.put("a", &["x"]).await;
    weir.put("b", &["x"]).await;
    let request = |namespace: &str, page_token: String| v1::ListSourcesRequest {
        namespace: namespace.to_owned(),
        page_size: 1,
        page_token,
        ..v1::ListSourcesRequest::default()
    };
    let first = request("", String::new());
    let page = weir.sources().list_sources(first).await.unwrap();
    let token = page.into_inner().next_page_token;
    assert!(!token.is_empty());
    for (namespace, token) in [
        ("default", token.clone()),
        ("", "garbage".to_owned()),
        ("", "%%\0".to_owned()),
        ("", format!("{token}AAAA")),
        ("", token[..token.len() - 2].to_owned()),
    ] {
        let status = weir.sources().list_sources(request(namespace, token)).await;
        assert_invalid(&status.unwrap_err(), "page_token", "not a token of this");
    }
    let jobs = v1::ListJobsRequest {
        page_token: token.clone(),
        ..v1::ListJobsRequest::default()
    };
    let status = weir.jobs().list_jobs(jobs).await.unwrap_err();
    assert_invalid(&status, "page_token", "not a token of this");
    let page = weir.sources().list_sources(request("", token)).await;
    let page = page.unwrap().into_inner();
    assert_eq!(page.sources[0].source.as_ref().unwrap().name, "b");
}

#[tokio::test]
async fn messages_over_the_limit_are_refused() {
    let weir = Weir::start().await;
    let what = "are allowed: send its content in several";
    let big = "x".repeat(64 << 20);
    let status = weir.sources().put_source(put_texts("bad", &[&big])).await;
    assert_status(&status.unwrap_err(), Code::ResourceExhausted, what);
    let parts = vec![open_items(), items_part(vec![item("a", &big)])];
    let status = import(&weir, parts).await.unwrap_err();
    assert_status(&status, Code::ResourceExhausted, what);
    drop(big);
    weir.assert_empty().await;

    weir.put("good", &["fine"]).await;
    let lease = weir.claim().await;
    let chunk = weir.batch(&lease).await.remove(0);
    let mut large = embedded(&chunk, &[1.0]);
    large.vector = vec![0; 32 << 20].into();
    let request = upsert(&lease, vec![large.clone()]);
    let status = weir.worker().upsert_batch(request).await.unwrap_err();
    assert_status(&status, Code::ResourceExhausted, what);

    release(&weir, &lease).await;
    let mut session = Session::open(&weir, 1).await;
    session.grant(1);
    let part = session.part().await;
    session.send(result([v1::PartResult {
        seq: part.seq,
        embedded: vec![large],
        ..v1::PartResult::default()
    }]));
    let status = session.over().await.unwrap_err();
    assert_status(&status, Code::ResourceExhausted, what);
    assert_eq!(weir.rows("embeddings").await, 0);

    // Nothing is lost: the worker comes back with what it holds.
    let mut session = Session::resume(&weir.channel, 1, &[part]).await;
    let part = session.held().remove(0);
    session.embed(&part);
    session.finished(part.job_id).await;
    assert_eq!(weir.rows("embeddings").await, 1);
}

/// Has a job queued again.
async fn release(weir: &Weir, lease: &v1::Lease) {
    let release = v1::ReleaseJobRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        reason: "it is done otherwise".to_owned(),
        ..v1::ReleaseJobRequest::default()
    };
    weir.worker().release_job(release).await.unwrap();
}

// Imports.

fn part(message: Part) -> v1::ImportSourceRequest {
    v1::ImportSourceRequest {
        message: Some(message),
    }
}

fn open_items() -> v1::ImportSourceRequest {
    part(Part::Open(v1::ImportOpen {
        name: "import".to_owned(),
        ..v1::ImportOpen::default()
    }))
}

fn items_part(items: Vec<v1::Item>) -> v1::ImportSourceRequest {
    part(Part::Items(v1::ItemList { items }))
}

async fn import(
    weir: &Weir,
    parts: Vec<v1::ImportSourceRequest>,
) -> Result<v1::ImportSourceResponse, Status> {
    let parts = tokio_stream::iter(parts);
    let answer = weir.sources().import_source(parts).await?;
    Ok(answer.into_inner())
}

#[tokio::test]
async fn malformed_imports_leave_nothing() {
    let weir = Weir::start().await;
    let a = || items_part(vec![item("a", "x")]);
    let document = |format: DocumentFormat| {
        part(Part::Open(v1::ImportOpen {
            name: "import".to_owned(),
            format: format.into(),
            ..v1::ImportOpen::default()
        }))
    };
    let bytes = || part(Part::DocumentPart(b"text".to_vec()));
    let lines = |lines: &str| part(Part::DocumentPart(lines.into()));
    let line = || lines("{\"item_id\":\"a\",\"text\":\"b\"}\n");
    let nothing = v1::ImportSourceRequest { message: None };
    let cases = [
        (vec![], "open", "first message"),
        (vec![a()], "open", "first message"),
        (vec![nothing.clone()], "open", "first message"),
        (vec![open_items(), open_items()], "open", "once"),
        (vec![open_items(), a(), open_items()], "open", "once"),
        (vec![open_items(), a(), bytes()], "message", "items alone"),
        (vec![open_items(), bytes()], "open.format", "must name"),
        (vec![open_items(), nothing], "message", "is empty"),
        (vec![open_items(), a(), a()], "items", "twice"),
        (
            vec![open_items(), items_part(vec![item("a", " ")])],
            "items[0].text",
            "blank",
        ),
        (
            vec![document(DocumentFormat::Text), bytes(), a()],
            "message",
            "parts of it alone",
        ),
        (
            vec![document(DocumentFormat::Openapi), bytes()],
            "document.content",
            "not an OpenAPI",
        ),
        (
            vec![document(DocumentFormat::JsonLines), lines("\n"), bytes()],
            "document.content",
            "line 2",
        ),
        (
            vec![document(DocumentFormat::JsonLines), lines(" \n")],
            "document.content",
            "blank",
        ),
        (
            vec![document(DocumentFormat::JsonLines), line(), line()],
            "items",
            "twice",
        ),
    ];
    for (parts, field, what) in cases {
        let status = import(&weir, parts).await.unwrap_err();
        assert_invalid(&status, field, what);
        weir.assert_empty().await;
    }
    let answer = import(&weir, vec![open_items(), a()]).await.unwrap();
    assert_eq!(answer.source.unwrap().items, 1);
}

#[tokio::test]
async fn an_import_that_its_client_cancels_leaves_nothing() {
    let weir = Weir::start().await;
    weir.put("import", &["before"]).await;
    let before = weir.source("import").await.unwrap();
    let (to, parts) = tokio::sync::mpsc::channel(1);
    let mut sources = weir.sources();
    let call = tokio::spawn(async move { sources.import_source(ReceiverStream::new(parts)).await });
    to.send(open_items()).await.unwrap();
    let items = items_part(vec![item("a", "half of it")]);
    to.send(items).await.unwrap();
    // The staged half is there before the client goes away.
    until(async || weir.rows("import_items").await == 1).await;
    call.abort();
    until(async || weir.rows("import_items").await == 0).await;
    assert_eq!(weir.source("import").await.unwrap(), before);
    assert_eq!(weir.rows("items").await, 1);
}

// Workers.

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn bad_results_are_refused_and_nothing_of_them_is_written() {
    // What a session refuses is charged.
    let settings = [
        ("WEIR_MAX_ATTEMPTS", "1000"),
        ("WEIR_BACKOFF_BASE", "1ms"),
        ("WEIR_BACKOFF_CAP", "1ms"),
        ("WEIR_POLL_INTERVAL", "50ms"),
    ];
    let weir = Weir::with(&settings).await;
    weir.put("source", &["one", "two", "three"]).await;
    let lease = weir.claim().await;
    let chunks = weir.batch(&lease).await;
    let good = [0.6, 0.8];
    let first = embedded(&chunks[0], &good);
    let with = |change: &dyn Fn(&mut v1::EmbeddedChunk)| {
        let mut chunk = embedded(&chunks[1], &good);
        change(&mut chunk);
        vec![first.clone(), chunk]
    };
    let vector = |vector: &'static [f32]| with(&|c| c.vector = vector_bytes(vector).into());
    let cases = [
        (
            with(&|c| c.vector = vec![0; 7].into()),
            "embedded[1].vector",
            "7 bytes",
        ),
        (vector(&[]), "embedded[1].vector", "1 to 16000 numbers"),
        (
            with(&|c| c.vector = vec![0; 4 * 16_001].into()),
            "embedded[1].vector",
            "not 16001",
        ),
        (
            vector(&[1.0, 0.0, 0.0]),
            "embedded[1].vector",
            "has 3 numbers",
        ),
        (
            vector(&[1.0, f32::NAN]),
            "embedded[1].vector",
            "number 1 is NaN",
        ),
        (
            vector(&[f32::INFINITY, 0.0]),
            "embedded[1].vector",
            "number 0 is inf",
        ),
        (
            vector(&[f32::NEG_INFINITY, 0.0]),
            "embedded[1].vector",
            "number 0 is -inf",
        ),
        (
            with(&|c| c.item_id = "nobody".to_owned()),
            "embedded[1]",
            "nobody",
        ),
        (with(&|c| c.chunk_index = 7), "embedded[1]", "7"),
        (with(&|c| c.chunk_index = -1), "embedded[1]", "-1"),
        (with(&|c| c.item_id = "a\0".to_owned()), "embedded", "NUL"),
        (with(&|c| c.text_hash = vec![0; 32]), "embedded[1]", "text"),
        (
            with(&|c| c.text_hash = vec![0; 31]),
            "embedded[1].text_hash",
            "not 31",
        ),
        (
            with(&|c| c.truncated_to = -1),
            "embedded[1].truncated_to",
            "not -1",
        ),
        (with(&|c| *c = first.clone()), "embedded", "named twice"),
    ];
    let nothing = async |what: &str| {
        for table in ["embeddings", "rejections", "models"] {
            assert_eq!(weir.rows(table).await, 0, "{what}: weir.{table}");
        }
    };
    for (outcome, field, what) in &cases {
        let request = upsert(&lease, outcome.clone());
        let status = weir.worker().upsert_batch(request).await.unwrap_err();
        assert_invalid(&status, field, what);
        nothing(what).await;
    }
    assert_eq!(weir.job(lease.job_id).await.attempt, 0);
    // A session says the same, and goes on.
    release(&weir, &lease).await;
    let mut session = Session::open(&weir, 3).await;
    for (outcome, field, what) in &cases {
        session.grant(3);
        let part = session.part().await;
        session.send(result([v1::PartResult {
            seq: part.seq,
            embedded: outcome.clone(),
            ..v1::PartResult::default()
        }]));
        let How::Refused(refused) = session.ended(part.job_id).await else {
            panic!("{what} should be refused");
        };
        assert!(
            refused.contains(field) && refused.contains(what),
            "{field} and {what} should be in {refused:?}"
        );
        nothing(what).await;
    }
    drop(session);
    let mut claim = claim_request();
    claim.wait = Some(seconds(60));
    let claimed = weir.worker().claim_job(claim).await.unwrap();
    let lease = claimed.into_inner().leases.remove(0);

    let mut request = upsert(&lease, vec![first.clone()]);
    request.rejected = vec![v1::RejectedChunk {
        item_id: first.item_id.clone(),
        chunk_index: first.chunk_index,
        text_hash: first.text_hash.clone(),
        reason: "too odd".to_owned(),
    }];
    let status = weir.worker().upsert_batch(request.clone()).await;
    assert_invalid(&status.unwrap_err(), "rejected", "named twice");
    request.embedded.clear();
    request.rejected[0].reason = " ".to_owned();
    let status = weir.worker().upsert_batch(request).await.unwrap_err();
    assert_invalid(&status, "rejected[0].reason", "must say why");

    // The first vectors that are good fix the dimension.
    let request = upsert(&lease, vec![first]);
    let answer = weir.worker().upsert_batch(request).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!((answer.done, answer.total), (1, 3));
    let request = upsert(&lease, vec![embedded(&chunks[1], &[1.0, 0.0, 0.0])]);
    let status = weir.worker().upsert_batch(request).await.unwrap_err();
    assert_invalid(
        &status,
        "embedded[0].vector",
        "of the model \"fake\" have 2",
    );
    let rest = chunks[1..].iter().map(|chunk| embedded(chunk, &good));
    let request = upsert(&lease, rest.collect());
    weir.worker().upsert_batch(request).await.unwrap();
    assert_eq!(weir.rows("embeddings").await, 3);
}

#[tokio::test]
async fn results_of_leases_that_nobody_holds_are_refused() {
    let weir = Weir::start().await;
    let job_id = weir.put("source", &["one"]).await.jobs[0].job_id;
    let lost = |epoch| v1::Lease {
        job_id,
        epoch,
        ..v1::Lease::default()
    };
    // Queued: nobody holds it.
    let hand_in = async |lease: &v1::Lease| {
        let request = upsert(lease, Vec::new());
        weir.worker().upsert_batch(request).await.unwrap_err()
    };
    assert_status(&hand_in(&lost(1)).await, Code::Aborted, "lease lost");
    let lease = weir.claim().await;
    let chunk = weir.batch(&lease).await.remove(0);
    let outcome = vec![embedded(&chunk, &[1.0])];
    for epoch in [lease.epoch + 1, i64::MAX] {
        let request = upsert(&lost(epoch), outcome.clone());
        let status = weir.worker().upsert_batch(request).await.unwrap_err();
        assert_status(&status, Code::Aborted, "lease lost");
    }
    let status = hand_in(&lost(0)).await;
    assert_invalid(&status, "epoch", "at least 1");

    let mut nobody = lease.clone();
    nobody.job_id += 1_000;
    let not_found = |status: &Status| assert_status(status, Code::NotFound, "job");
    not_found(&hand_in(&nobody).await);
    let (job_id, epoch, reason) = (nobody.job_id, nobody.epoch, "why".to_owned());
    let mut worker = weir.worker();
    let request = v1::RenewLeaseRequest {
        job_id,
        epoch,
        lease_duration: None,
    };
    not_found(&worker.renew_lease(request).await.unwrap_err());
    let request = v1::GetBatchRequest {
        job_id,
        epoch,
        batch_size: 0,
    };
    not_found(&worker.get_batch(request).await.unwrap_err());
    let request = v1::CompleteJobRequest { job_id, epoch };
    not_found(&worker.complete_job(request).await.unwrap_err());
    let request = v1::FailJobRequest {
        job_id,
        epoch,
        reason: reason.clone(),
    };
    not_found(&worker.fail_job(request).await.unwrap_err());
    let request = v1::ReleaseJobRequest {
        job_id,
        epoch,
        reason,
        ..v1::ReleaseJobRequest::default()
    };
    not_found(&worker.release_job(request).await.unwrap_err());
    // Who says on a session that it holds such a lease is told that it is lost.
    for lease in [nobody, lost(lease.epoch + 1)] {
        let part = v1::BatchPart {
            seq: 1,
            job_id: lease.job_id,
            epoch: lease.epoch,
            chunks: vec![chunk.clone()],
            ..v1::BatchPart::default()
        };
        let open = v1::SessionOpen {
            held: held([&part]),
            ..opening(1)
        };
        let mut session = Session::open_as(&weir.channel, None, open).await;
        let how = session.ended(lease.job_id).await;
        assert!(matches!(how, How::Revoked(_)), "{how:?}");
    }
    assert_eq!(weir.rows("embeddings").await, 0);
    let request = upsert(&lease, outcome);
    weir.worker().upsert_batch(request).await.unwrap();
}

#[tokio::test]
async fn bad_claims_and_renewals_are_refused() {
    type Change = fn(&mut v1::ClaimJobRequest);
    let weir = Weir::start().await;
    weir.put("source", &["one"]).await;
    let cases: [(Change, &str, &str); 12] = [
        (|c| c.models.clear(), "models", "1 to 100"),
        (
            |c| c.models = vec!["fake".to_owned(); 101],
            "models",
            "1 to 100",
        ),
        (|c| c.worker_id.clear(), "worker_id", "visible ASCII"),
        (
            |c| c.worker_id = "a b".to_owned(),
            "worker_id",
            "visible ASCII",
        ),
        (
            |c| c.worker_id = "ü".to_owned(),
            "worker_id",
            "visible ASCII",
        ),
        (|c| c.wait = Some(seconds(61)), "wait", "0 to 60 s"),
        (|c| c.wait = Some(seconds(-1)), "wait", "0 to 60 s"),
        (|c| c.max_jobs = -1, "max_jobs", "1 to 1000"),
        (|c| c.max_jobs = 1_001, "max_jobs", "1 to 1000"),
        (|c| c.max_chunks = -1, "max_chunks", "must be 0"),
        (
            |c| c.busy_with = vec!["a".to_owned(); 1_001],
            "busy_with",
            "at most 1000 namespaces",
        ),
        (
            |c| c.busy_with = vec!["a".repeat(64)],
            "busy_with",
            "63 characters",
        ),
    ];
    for (change, field, what) in cases {
        let mut claim = claim_request();
        change(&mut claim);
        let status = weir.worker().claim_job(claim).await.unwrap_err();
        assert_invalid(&status, field, what);
    }
    let mut claim = claim_request();
    claim.worker_id = "w".repeat(201);
    let status = weir.worker().claim_job(claim).await.unwrap_err();
    assert_invalid(&status, "worker_id", "1 to 200");
    // The longest wait and a fraction is over it.
    let mut claim = claim_request();
    claim.wait = Some(prost_types::Duration {
        seconds: 60,
        nanos: 1,
    });
    let status = weir.worker().claim_job(claim).await.unwrap_err();
    assert_invalid(&status, "wait", "0 to 60 s");

    // The job is still there.
    let lease = weir.claim().await;
    let renew = |lease_duration| v1::RenewLeaseRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        lease_duration,
    };
    for duration in [seconds(0), seconds(-5), seconds(601), seconds(i64::MAX)] {
        let status = weir.worker().renew_lease(renew(Some(duration))).await;
        assert_invalid(&status.unwrap_err(), "lease_duration", "at most 600s");
    }
    let answer = weir.worker().renew_lease(renew(Some(seconds(60)))).await;
    let answer = answer.unwrap().into_inner();
    assert_eq!(answer.lease_duration, Some(seconds(60)));
}

/// The status that a session ends with that begins with this message.
async fn refusal(weir: &Weir, first: FromWorker) -> Status {
    let mut session = Session::begin(&weir.channel, None, first).await.unwrap();
    session.over().await.unwrap_err()
}

type Change = Box<dyn Fn(&mut v1::SessionOpen)>;

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn a_bad_opening_is_refused_by_field() {
    let weir = Weir::start().await;
    let part = |seq| v1::HeldPart {
        seq,
        chunks: vec![v1::ChunkKey {
            item_id: "a".to_owned(),
            chunk_index: 0,
            text_hash: vec![0; 32],
        }],
    };
    let lease = |job_id, parts| v1::HeldLease {
        job_id,
        epoch: 1,
        parts,
    };
    let cases: Vec<(Change, &str, &str)> = vec![
        (
            Box::new(|it| it.worker_id.clear()),
            "open.worker_id",
            "1 to 200",
        ),
        (
            Box::new(|it| it.worker_id = "w".repeat(201)),
            "open.worker_id",
            "1 to 200",
        ),
        (
            Box::new(|it| it.worker_id = "wörker".to_owned()),
            "open.worker_id",
            "visible ASCII",
        ),
        (
            Box::new(|it| it.version = "v".repeat(101)),
            "open.version",
            "at most 100",
        ),
        (
            Box::new(|it| it.version = "1 2".to_owned()),
            "open.version",
            "visible ASCII",
        ),
        (Box::new(|it| it.models.clear()), "open.models", "1 to 100"),
        (
            Box::new(|it| it.models = vec![model(MODEL, 1); 101]),
            "open.models",
            "1 to 100",
        ),
        (
            Box::new(|it| it.models = vec![model(MODEL, 1); 2]),
            "open.models[1].name",
            "twice",
        ),
        (
            Box::new(|it| it.models[0].name = "unknown".to_owned()),
            "open.models[0].name",
            "is not a model",
        ),
        (
            Box::new(|it| it.models[0].batch_size = 0),
            "open.models[0].batch_size",
            "1 to 10000, not 0",
        ),
        (
            Box::new(|it| it.models[0].batch_size = 10_001),
            "open.models[0].batch_size",
            "not 10001",
        ),
        (
            Box::new(move |it| it.held = vec![lease(1, Vec::new())]),
            "open.held",
            "job 1",
        ),
        (
            Box::new(move |it| it.held = vec![lease(1, vec![part(1)]), lease(1, vec![part(2)])]),
            "open.held",
            "job 1",
        ),
        (
            Box::new(move |it| it.held = vec![lease(1, vec![part(1)]), lease(2, vec![part(1)])]),
            "open.held",
            "seq 1",
        ),
        (
            Box::new(move |it| it.held = vec![lease(1, vec![part(0)])]),
            "open.held",
            "seq 0",
        ),
        (
            Box::new(move |it| it.held = vec![lease(1, vec![part(i64::MAX)])]),
            "open.held",
            "seq",
        ),
        (
            Box::new(move |it| {
                let chunks = vec![part(1).chunks.remove(0); 20_001];
                it.held = vec![lease(1, vec![v1::HeldPart { seq: 1, chunks }])];
            }),
            "open.held",
            "at most 20000",
        ),
    ];
    for (change, field, what) in cases {
        let mut open = opening(1);
        change(&mut open);
        let status = refusal(&weir, FromWorker::Open(open)).await;
        assert_invalid(&status, field, what);
    }
    for first in [
        FromWorker::Heartbeat(v1::Heartbeat {}),
        FromWorker::Drain(v1::Drain {}),
        credit(MODEL, 1),
        result([]),
    ] {
        let status = refusal(&weir, first).await;
        assert_invalid(&status, "message", "must open it");
    }
    // None of them was ever a worker, nor got anything.
    assert_eq!(weir.rows("workers").await, 0);
}

#[tokio::test]
async fn what_breaks_the_contract_ends_a_session_and_loses_nothing() {
    let weir = Weir::start().await;
    let unfit = |state: i32, dimension, longest_input, reason: &str| {
        FromWorker::Condition(v1::EmbedderCondition {
            model: MODEL.to_owned(),
            state,
            reason: reason.to_owned(),
            dimension,
            longest_input,
        })
    };
    let fit = v1::EmbedderState::Fit.into();
    let down = v1::EmbedderState::Down;
    for (message, field, what) in [
        (FromWorker::Open(opening(1)), "message", "opened once"),
        (credit(MODEL, 0), "credit.chunks", "1 to 20000, not 0"),
        (credit(MODEL, -1), "credit.chunks", "not -1"),
        (credit(MODEL, 20_001), "credit.chunks", "not 20001"),
        // One is granted already.
        (credit(MODEL, 20_000), "credit.chunks", "20001"),
        (credit("other", 1), "credit.model", "opened with"),
        (unfit(9, 0, 0, ""), "condition.state", "not a state"),
        (unfit(fit, -1, 0, ""), "condition.dimension", "not -1"),
        (unfit(fit, 0, -1, ""), "condition.longest_input", "not -1"),
        (
            unfit(down.into(), 0, 0, ""),
            "condition.reason",
            "must say why",
        ),
        (
            condition("other", down, "why"),
            "condition.model",
            "opened with",
        ),
    ] {
        let mut session = Session::open(&weir, 1).await;
        session.grant(1);
        session.send(message);
        let status = session.over().await.unwrap_err();
        assert_invalid(&status, field, what);
    }
    let mut session = Session::open(&weir, 1).await;
    session.send_nothing();
    let status = session.over().await.unwrap_err();
    assert_invalid(&status, "message", "must carry");

    let job_id = weir.put("source", &["one"]).await.jobs[0].job_id;
    let mut session = Session::open(&weir, 1).await;
    session.grant(1);
    let part = session.part().await;
    // Of what it does not have nothing is said, for the lease may have ended meanwhile.
    session.send(result([v1::PartResult {
        seq: part.seq + 99,
        ..v1::PartResult::default()
    }]));
    session.embed(&part);
    session.finished(job_id).await;
    assert_eq!(weir.job(job_id).await.attempt, 0);
}
