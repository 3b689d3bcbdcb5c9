//! The harness itself: tests that lean on it must be able to trust it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

use std::{io::Read as _, time::Duration};

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener},
    time::{Instant, timeout},
};
use weir_tests::{
    PATIENCE,
    cluster::{Process, weir},
    embedder::{DIMENSION, FakeEmbedder, Rude, expected_vector},
    pgproxy::PgProxy,
    postgres::{OwnPostgres, TestDatabase},
    proxy::{Cut, FaultProxy, Silence, Target},
};

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

async fn embed(embedder: &FakeEmbedder, texts: &[&str]) -> reqwest::Result<Value> {
    let request = json!({ "model": "fake", "input": texts });
    let url = format!("{}/api/embed", embedder.url());
    let answer = client().post(url).json(&request).send().await?;
    answer.error_for_status()?.json().await
}

#[test]
fn vectors_are_a_pure_function_of_the_text() {
    let vector = expected_vector("a");
    assert_eq!(vector.len(), DIMENSION);
    assert_eq!(vector, expected_vector("a"));
    assert_ne!(vector, expected_vector("b"));
    let length: f32 = vector.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
}

#[tokio::test]
async fn both_protocols_give_the_same_vectors() {
    let embedder = FakeEmbedder::start().await;
    let answer = embed(&embedder, &["a", "b"]).await.unwrap();
    let vectors: Vec<Vec<f32>> = serde_json::from_value(answer["embeddings"].clone()).unwrap();
    assert_eq!(vectors, [expected_vector("a"), expected_vector("b")]);

    let request = json!({ "model": "fake", "input": "a" });
    let url = format!("{}/v1/embeddings", embedder.url());
    let answer = client().post(url).json(&request).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    let vector: Vec<f32> = serde_json::from_value(answer["data"][0]["embedding"].clone()).unwrap();
    assert_eq!(vector, expected_vector("a"));

    let url = format!("{}/worker-1/api/embed", embedder.url());
    client().post(url).json(&request).send().await.unwrap();

    assert_eq!(embedder.received()["a"], 3);
    assert_eq!(embedder.answered()["b"], 1);
    let calls = embedder.calls();
    let callers: Vec<_> = calls.iter().map(|call| call.caller.as_str()).collect();
    assert_eq!(callers, ["", "", "worker-1"]);
    assert!(calls.iter().all(|call| call.ended >= Some(call.came)));
}

#[tokio::test]
async fn it_is_as_rude_as_it_is_told() {
    let embedder = FakeEmbedder::start().await;
    embedder.next(Rude::Status(503, Some("7".into()), "busy".into()));
    let error = embed(&embedder, &["a"]).await.unwrap_err();
    assert_eq!(error.status().map(|status| status.as_u16()), Some(503));

    embedder.next(Rude::CutOff);
    let error = embed(&embedder, &["a"]).await.unwrap_err();
    assert!(error.is_decode() || error.is_body(), "{error:?}");

    embedder.next(Rude::WrongCount);
    let answer = embed(&embedder, &["a", "b"]).await.unwrap();
    assert_eq!(answer["embeddings"].as_array().map(Vec::len), Some(1));

    embedder.rule(|texts| {
        texts
            .iter()
            .any(|text| text == "poison")
            .then(|| Rude::Body("{}".into()))
    });
    assert_eq!(embed(&embedder, &["a", "poison"]).await.unwrap(), json!({}));
    assert!(embed(&embedder, &["a"]).await.unwrap()["embeddings"].is_array());
    embedder.behave();
    assert!(embed(&embedder, &["poison"]).await.unwrap()["embeddings"].is_array());

    assert_eq!(embedder.received()["a"], 5);
    assert_eq!(embedder.answered()["a"], 1);
}

#[tokio::test]
async fn the_gate_holds_calls_that_have_started() {
    let embedder = FakeEmbedder::start().await;
    embedder.close_gate();
    let mut call = Box::pin(embed(&embedder, &["a"]));
    tokio::select! {
        _ = &mut call => panic!("the call went through the closed gate"),
        () = embedder.calls_started(1) => {}
    }
    assert!(!embedder.calls()[0].answered);
    embedder.open_gate();
    call.await.unwrap();
    assert!(embedder.calls()[0].answered);
}

#[tokio::test]
async fn the_gate_lets_through_as_many_calls_as_it_is_told() {
    let embedder = FakeEmbedder::start().await;
    embedder.let_through(1);
    embed(&embedder, &["a"]).await.unwrap();
    let mut call = Box::pin(embed(&embedder, &["b"]));
    tokio::select! {
        _ = &mut call => panic!("the second call went through"),
        () = embedder.calls_started(2) => {}
    }
    embedder.let_through(2);
    call.await.unwrap();
    assert_eq!(embedder.answered().len(), 2);
}

#[tokio::test]
async fn databases_are_fresh_and_go_away() {
    let (one, two) = (TestDatabase::create().await, TestDatabase::create().await);
    for database in [&one, &two] {
        sqlx::query("CREATE TABLE same ()")
            .execute(database.pool())
            .await
            .unwrap();
    }
    let left = "SELECT count(*) FROM pg_database WHERE datname = $1";
    let name: String = sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(one.pool())
        .await
        .unwrap();
    assert!(one.url().contains(&name));
    drop(one);
    let left: i64 = sqlx::query_scalar(left)
        .bind(name)
        .fetch_one(two.pool())
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_crashed_server_comes_back_with_what_was_committed() {
    let mut server = OwnPostgres::start(&[]).await;
    let url = server.url();
    let mut before = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(
        "CREATE TABLE kept AS SELECT 1 AS n; CREATE UNLOGGED TABLE lost AS SELECT 1 AS n",
    )
    .execute(&mut before)
    .await
    .unwrap();
    server.kill().await;
    assert!(
        sqlx::raw_sql("SELECT 1")
            .execute(&mut before)
            .await
            .is_err()
    );
    assert!(PgConnection::connect(&url).await.is_err());
    assert!(server.socket().exists(), "a crash cleans nothing up");

    server.start_again().await;
    assert_eq!(server.url(), url);
    let mut after = PgConnection::connect(&url).await.unwrap();
    let counts = "SELECT (SELECT count(*) FROM kept), (SELECT count(*) FROM lost)";
    let counts: (i64, i64) = sqlx::query_as(counts).fetch_one(&mut after).await.unwrap();
    assert_eq!(counts, (1, 0), "a table that is not logged is emptied");
}

#[tokio::test]
async fn a_silent_server_keeps_its_connections() {
    let mut server = OwnPostgres::start(&[]).await;
    let mut connection = PgConnection::connect(&server.url()).await.unwrap();
    server.sigstop().await;
    let mut query = Box::pin(sqlx::raw_sql("SELECT 1").execute(&mut connection));
    assert!(futures::poll!(&mut query).is_pending());
    server.sigcont();
    query.await.unwrap();
    // Nor does one that is silent at the end keep the test.
    server.sigstop().await;
}

#[tokio::test]
async fn a_commit_is_done_and_its_answer_lost() {
    let database = TestDatabase::create().await;
    sqlx::raw_sql("CREATE TABLE notes (n int)")
        .execute(database.pool())
        .await
        .unwrap();
    let proxy = PgProxy::start(database.url());
    let pool = sqlx::PgPool::connect_lazy_with(proxy.options());
    let insert = "INSERT INTO notes VALUES (1) RETURNING n";
    sqlx::query(insert).execute(&pool).await.unwrap();

    proxy.arm();
    // Neither of these is a commit.
    sqlx::query("SELECT n FROM notes")
        .fetch_all(&pool)
        .await
        .unwrap();
    let mut tx = pool.begin().await.unwrap();
    sqlx::query(insert).execute(&mut *tx).await.unwrap();
    assert_eq!(proxy.cuts(), 0);
    let error = tx.commit().await.unwrap_err();
    assert!(matches!(error, sqlx::Error::Io(_)), "{error:?}");
    proxy.arm();
    sqlx::query(insert).execute(&pool).await.unwrap_err();
    assert_eq!(proxy.cuts(), 2);

    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(count, 3, "all of them are there");
}

#[tokio::test]
async fn processes_are_heard_and_waited_for() {
    // A port that nothing listens on any more.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut process = Process::spawn("weir", &["ls"], &[("WEIR_COORDINATOR", &url)]);
    // It waits for an answer; nobody gives one but the end of the connection.
    let (mut connection, _) = listener.accept().unwrap();
    let _ = connection.read(&mut [0; 16]).unwrap();
    process.sigstop();
    process.sigcont();
    process.sigkill().await;
    drop(listener);

    let output = weir(&url, &["ls"]).await;
    assert_eq!(output.status.code(), Some(3));
    let process = Process::spawn("weir", &["ls"], &[("WEIR_COORDINATOR", &url)]);
    let line = process.wait_for_line(|line| line.contains("cannot reach").then(|| line.to_owned()));
    assert!(line.await.contains(&url));
}

/// A proxy before a listener, and both ends of a connection through it.
async fn through_proxy() -> (FaultProxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let proxy = FaultProxy::start([target]).await;
    let client = TcpStream::connect(proxy.address()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (proxy, client, server)
}

/// Reads exactly as much as is expected, and compares.
async fn expect(stream: &mut TcpStream, text: &[u8]) {
    let mut read = vec![0; text.len()];
    let reading = timeout(PATIENCE, stream.read_exact(&mut read)).await;
    reading.expect("something arrives").unwrap();
    assert_eq!(read, text);
}

#[tokio::test]
async fn a_proxy_passes_things_on_and_ends_orderly() {
    let (proxy, mut client, mut server) = through_proxy().await;
    client.write_all(b"question").await.unwrap();
    expect(&mut server, b"question").await;
    server.write_all(b"answer").await.unwrap();
    expect(&mut client, b"answer").await;
    assert_eq!(proxy.connections(), 1);
    // One end says that it is done; the other may still speak.
    client.shutdown().await.unwrap();
    let read = timeout(PATIENCE, server.read(&mut [0; 1])).await;
    assert_eq!(read.unwrap().unwrap(), 0);
    server.write_all(b"last words").await.unwrap();
    expect(&mut client, b"last words").await;
    drop(server);
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_proxy_leads_to_unix_sockets_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let proxy = FaultProxy::start([Target::Unix(path)]).await;
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.write_all(b"answer").await.unwrap();
    expect(&mut client, b"answer").await;
    proxy.cut(Cut::Close);
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_cut_ends_the_connections_there_are() {
    for how in [Cut::Reset, Cut::Close] {
        let (proxy, mut client, mut server) = through_proxy().await;
        // Both ends know that the proxy carries them.
        client.write_all(b"hello").await.unwrap();
        expect(&mut server, b"hello").await;
        proxy.cut(how);
        for end in [&mut client, &mut server] {
            let read = timeout(PATIENCE, end.read(&mut [0; 1])).await.unwrap();
            match how {
                Cut::Reset => {
                    let kind = read.unwrap_err().kind();
                    assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
                }
                Cut::Close => assert_eq!(read.unwrap(), 0),
            }
        }
    }
}

#[tokio::test]
async fn a_cut_spares_later_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = FaultProxy::start([Target::Tcp(listener.local_addr().unwrap())]).await;
    proxy.cut(Cut::Reset);
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"hello").await.unwrap();
    expect(&mut server, b"hello").await;
}

#[tokio::test]
async fn a_proxy_that_refuses_or_leads_nowhere_resets() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = Target::Tcp(listener.local_addr().unwrap());
    let proxy = FaultProxy::start([here.clone()]).await;
    let mut before = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let is_refused = async || {
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let read = timeout(PATIENCE, client.read(&mut [0; 1])).await.unwrap();
        read.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset
    };
    proxy.refuse();
    assert!(is_refused().await);
    proxy.resume();
    proxy.set_targets([]);
    assert!(is_refused().await);
    // A target that is not there is passed over for one that is.
    let gone = Target::Unix("/nowhere".into());
    proxy.set_targets([gone.clone(), here, gone]);
    for _ in 0..3 {
        let _client = TcpStream::connect(proxy.address()).await.unwrap();
        timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    }
    // The connection of before was never touched.
    before.write_all(b"hello").await.unwrap();
    expect(&mut server, b"hello").await;
}

#[tokio::test]
async fn what_a_silent_proxy_held_arrives_when_it_speaks_again() {
    // Long enough for what is passed on to arrive.
    const MOMENT: Duration = Duration::from_millis(50);
    for silence in [Silence::ToTarget, Silence::ToClient, Silence::Both] {
        let (proxy, mut client, mut server) = through_proxy().await;
        client.write_all(b"hello").await.unwrap();
        expect(&mut server, b"hello").await;
        proxy.silence(silence);
        client.write_all(b"question").await.unwrap();
        server.write_all(b"answer").await.unwrap();
        let held = [
            (silence != Silence::ToClient, &mut server, &b"question"[..]),
            (silence != Silence::ToTarget, &mut client, &b"answer"[..]),
        ];
        for (held, end, text) in held {
            if held {
                let read = timeout(MOMENT, end.peek(&mut [0; 1])).await;
                assert!(read.is_err(), "{silence:?} let {text:?} through");
            } else {
                expect(end, text).await;
            }
        }
        proxy.resume();
        if silence != Silence::ToClient {
            expect(&mut server, b"question").await;
        }
        if silence != Silence::ToTarget {
            expect(&mut client, b"answer").await;
        }
    }
}

#[tokio::test]
async fn a_delay_holds_things_up() {
    const DELAY: Duration = Duration::from_millis(50);
    let (proxy, mut client, mut server) = through_proxy().await;
    proxy.delay(DELAY);
    let sent = Instant::now();
    client.write_all(b"question").await.unwrap();
    expect(&mut server, b"question").await;
    assert!(sent.elapsed() >= DELAY);
}

#[tokio::test]
async fn connections_end_with_their_proxy() {
    let (proxy, mut client, mut server) = through_proxy().await;
    client.write_all(b"hello").await.unwrap();
    expect(&mut server, b"hello").await;
    drop(proxy);
    for end in [&mut client, &mut server] {
        let read = timeout(PATIENCE, end.read(&mut [0; 1])).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
}

#[tokio::test]
async fn all_that_a_process_wrote_is_there_when_it_was_waited_for() {
    // The shell ends at once; what it left behind has the last word.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "echo first >&2; (sleep 0.2; echo last >&2) &"]);
    let mut process = Process::start("sh", shell);
    assert!(process.wait().await.success());
    assert_eq!(process.log(), ["first", "last"]);
}
