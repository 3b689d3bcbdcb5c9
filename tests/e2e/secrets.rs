//! Whatever holds a secret in its URL, no program shows it: in no error, no log,
//! no help, no finding.

use std::fs;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tonic::Request;
use weir_proto::v1::{
    PutSourceRequest, WatchJobRequest, job_service_client::JobServiceClient,
    source_service_client::SourceServiceClient,
};
use weir_tests::{
    certificates::text_of,
    clients::{Weir, item, put_items},
    cluster::{Process, Worker},
    embedder::FakeEmbedder,
    tokens::Tokens,
};

use crate::security::{last_of, soon, with_token};

const SECRET: &str = "hunter2";

/// What a program says, all of it logged, until it ends.
async fn said(name: &'static str, args: &[&str], environment: &[(&str, &str)]) -> String {
    let all = [environment, &[("WEIR_LOG", "trace")]].concat();
    let mut process = Process::spawn(name, args, &all);
    process.wait().await;
    process.log().join("\n")
}

/// Checks what a program says where these variables are set: it names what is
/// `named`, and shows no secret.
async fn assert_kept(name: &'static str, args: &[&str], environment: &[(&str, &str)], named: &str) {
    let said = said(name, args, environment).await;
    let what = format!("{name} {args:?} {environment:?}");
    assert!(
        said.contains(named),
        "{what} says nothing of {named}: {said}"
    );
    assert!(!said.contains(SECRET), "{what} shows the secret: {said}");
}

/// URLs that hold the secret and cannot be used, some of which are none.
const BAD: [&str; 4] = [
    "http://user:hunter2@127.0.0.1:1",
    "https://hunter2@127.0.0.1:1",
    "http://user:hunter2@127.0.0.1:port",
    "http://user:hunt?hunter2@ho st",
];

#[tokio::test]
async fn no_program_shows_the_secret_of_a_url_that_it_refuses() {
    for url in BAD {
        for (name, args, setting) in [
            ("weir-worker", &["--model", "m"][..], "WEIR_EMBEDDER_URL"),
            ("weir-worker", &["--model", "m"], "WEIR_COORDINATOR"),
            ("weir-worker", &["--model", "m"], "WEIR_OTLP_ENDPOINT"),
            ("weir-coordinator", &["--models", "m"], "WEIR_OTLP_ENDPOINT"),
            ("weir-coordinator", &["--models", "m"], "WEIR_DATABASE_URL"),
            ("weir", &["ls"], "WEIR_COORDINATOR"),
            ("weir", &["doctor"], "WEIR_COORDINATOR"),
            ("weir", &["doctor", "--model", "m"], "WEIR_EMBEDDER_URL"),
            ("weir", &["up"], "WEIR_EMBEDDER_URL"),
            ("weir", &["up"], "WEIR_OTLP_ENDPOINT"),
        ] {
            let flag = setting.trim_start_matches("WEIR_").to_lowercase();
            assert_kept(name, args, &[(setting, url)], &flag.replace('_', "-")).await;
        }
        let traces = format!("{url}/{{trace_id}}");
        let set = [("WEIR_TRACE_URL", &*traces)];
        assert_kept("weir-coordinator", &[], &set, "trace-url").await;
    }
}

#[tokio::test]
async fn no_program_shows_the_secret_of_a_database_that_is_away() {
    for url in [
        "postgres://user:hunter2@127.0.0.1:1/weir",
        "postgres://127.0.0.1:1/weir?user=user&password=hunter2",
        "postgres://127.0.0.1:1/weir?sslpassword=hunter2",
        "postgres://user:hunter2@127.0.0.1:port/weir",
        "postgres://user:hunter2@127.0.0.1/weir?sslmode=hunter2",
    ] {
        let set = [("WEIR_DATABASE_URL", url), ("WEIR_DATABASE_TIMEOUT", "1s")];
        let models = [&set[..], &[("WEIR_MODELS", "m")]].concat();
        assert_kept("weir-coordinator", &["migrate"], &set, "WEIR_DATABASE_URL").await;
        assert_kept("weir-coordinator", &[], &models, "WEIR_DATABASE_URL").await;
        assert_kept("weir", &["doctor"], &set, "database").await;
    }
}

#[tokio::test]
async fn no_help_shows_what_is_set() {
    let set = [
        "WEIR_EMBEDDER_URL",
        "WEIR_COORDINATOR",
        "WEIR_OTLP_ENDPOINT",
        "WEIR_DATABASE_URL",
        "WEIR_TRACE_URL",
    ];
    let set = set.map(|name| (name, BAD[0]));
    for (name, args) in [
        ("weir-worker", &["--help"][..]),
        ("weir-coordinator", &["--help"]),
        ("weir", &["doctor", "--help"]),
        ("weir", &["up", "--help"]),
    ] {
        assert_kept(name, args, &set, "WEIR_").await;
    }
}

/// A proxy that lets nobody through, and says why.
async fn proxy() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let body = format!("the password {SECRET} is none of ours");
            let head = format!("HTTP/1.1 407 No\r\ncontent-length: {}", body.len());
            let _ = stream
                .write_all(format!("{head}\r\n\r\n{body}").as_bytes())
                .await;
        }
    });
    address
}

#[tokio::test]
async fn no_secret_on_the_way_to_an_embedder_is_shown() {
    let proxy = proxy().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("models.toml");
    for (table, named) in [
        ("url = 'http://user:hunter2@embedder.invalid'", "url: "),
        ("proxy = 'http://user:hunter2@proxy.invalid'", "proxy: "),
        ("url = 'http://embedder.invalid/embed?key=hunter2'", "407"),
        ("url = 'http://embedder.invalid'", "407"),
        ("url = 'https://embedder.invalid'", "cannot connect"),
    ] {
        fs::write(
            &file,
            format!("[m]\n{table}\nbody = {{ pass = 'hunter2' }}"),
        )
        .unwrap();
        let through = format!("http://user:{SECRET}@{proxy}");
        let environment = [
            ("WEIR_MODELS_FILE", file.to_str().unwrap()),
            ("http_proxy", &through),
            ("https_proxy", &through),
        ];
        assert_kept("weir", &["doctor"], &environment, named).await;
    }
}

/// What was embedded, and with which tokens, is in no log, however much is
/// logged of our own.
#[tokio::test]
async fn no_log_tells_a_text_a_metadata_or_a_token() {
    let tokens = Tokens::new();
    let client = tokens.add("shop", "client", &["*"]);
    let gpu = tokens.add("gpu", "worker", &["*"]);
    let (file, gpu_file) = (tokens.path(), tokens.write("gpu.token", &gpu));
    let log = ("WEIR_LOG", "debug");
    let weir = Weir::with(&[("WEIR_TOKENS_FILE", text_of(&file)), log]).await;
    let embedder = FakeEmbedder::start().await;
    let settings = [("WEIR_TOKEN_FILE", text_of(&gpu_file)), log];
    let worker = Worker::spawn(&weir.coordinator.url(), &embedder.url(), &settings);
    let mut told = item("a", "textmark of a page");
    let metadata = [("k".to_owned(), "metamark".to_owned().into())];
    told.metadata = Some(prost_types::Struct {
        fields: metadata.into(),
    });
    let put = PutSourceRequest {
        namespace: "shop".to_owned(),
        ..put_items("tea", vec![told])
    };
    let channel = weir.channel.clone();
    let mut sources = SourceServiceClient::with_interceptor(channel.clone(), with_token(&client));
    let job_id = sources.put_source(put).await.unwrap().into_inner().jobs[0].job_id;
    let mut jobs = JobServiceClient::with_interceptor(channel, with_token(&client));
    let watch = WatchJobRequest {
        job_id,
        ..WatchJobRequest::default()
    };
    let watch = jobs.watch_job(Request::new(watch)).await.unwrap();
    soon(last_of(&mut watch.into_inner())).await;
    for process in [&weir.coordinator.process, &worker.process] {
        let said = process.log().join("\n");
        assert!(said.contains("shop"), "the job was told of: {said}");
        for mark in ["textmark", "metamark", &client, &gpu] {
            assert!(!said.contains(mark), "{mark}: {said}");
        }
    }
}
