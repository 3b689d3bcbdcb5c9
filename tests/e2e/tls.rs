//! TLS on the port: who is connected, and what those are told who are not.

use std::{fs, sync::Arc};

use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Status,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use weir_proto::v1::{self, job_service_client::JobServiceClient};
use weir_tests::{
    certificates::{Authority, Issued, text_of},
    clients::{http, put_texts},
    cluster::{Coordinator, Worker, weir_in},
    embedder::FakeEmbedder,
    postgres::TestDatabase,
    tokens::Tokens,
};

use crate::security::{last_of, soon, with_token};

/// A coordinator that serves in TLS, with certificates of `authority`.
struct Scene {
    authority: Authority,
    own: Issued,
    coordinator: Coordinator,
    database: TestDatabase,
}

impl Scene {
    async fn start(mutual: bool, environment: &[(&str, &str)]) -> Self {
        let (authority, database) = (Authority::new(), TestDatabase::create().await);
        let own = authority.issue("coordinator");
        let ca = authority.ca();
        let mut all = vec![
            ("WEIR_TLS_CERT", text_of(&own.cert)),
            ("WEIR_TLS_KEY", text_of(&own.key)),
        ];
        if mutual {
            all.push(("WEIR_TLS_CLIENT_CA", text_of(&ca)));
        }
        all.extend_from_slice(environment);
        let coordinator = Coordinator::spawn(database.url(), &all).await;
        Self {
            authority,
            own,
            coordinator,
            database,
        }
    }

    async fn connect(&self, tls: ClientTlsConfig) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(self.coordinator.tls_url()).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await
    }

    /// What a call is answered that is made on a connection of its own.
    async fn list(&self, tls: ClientTlsConfig) -> Result<(), String> {
        let channel = self.connect(tls).await.map_err(|error| all_of(&error))?;
        let answer = list(channel).await;
        answer.map_err(|status| format!("{:?} {}", status.code(), all_of(&status)))
    }
}

/// An error with its causes.
fn all_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.extend([": ".to_owned(), error.to_string()]);
        cause = error.source();
    }
    text
}

async fn list(channel: Channel) -> Result<(), Status> {
    let request = v1::ListJobsRequest::default();
    JobServiceClient::new(channel).list_jobs(request).await?;
    Ok(())
}

#[tokio::test]
async fn a_client_is_let_in_by_a_certificate_of_the_right_authority_alone() {
    let scene = Scene::start(true, &[]).await;
    let (ours, theirs) = (&scene.authority, Authority::new());
    let good = ours.issue("client");
    scene.list(ours.client(Some(&good))).await.unwrap();
    let refused = scene.list(ours.client(None)).await.unwrap_err();
    assert!(
        refused.contains("needs a certificate of the client"),
        "{refused}"
    );
    let refused = scene.list(theirs.client(Some(&good))).await.unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    // A client has done its part of the handshake before it is refused, and may hear of it as an
    // alert or as an end. The coordinator knows why.
    for (certificate, why) in [
        (ours.issue_expired("expired"), "certificate expired"),
        (theirs.issue("stranger"), "UnknownIssuer"),
    ] {
        let answer = scene.list(ours.client(Some(&certificate))).await;
        assert!(answer.is_err(), "{why}");
        let told = |line: &str| line.contains(why).then_some(());
        scene.coordinator.process.wait_for_line(told).await;
    }
    // Probes have no certificate.
    let channel = scene.connect(ours.client(None)).await.unwrap();
    let status = list(channel.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let health = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await;
    assert!(health.is_ok(), "{health:?}");
}

#[tokio::test]
async fn a_certificate_of_another_name_is_refused_by_all_who_connect() {
    let scene = Scene::start(false, &[]).await;
    let elsewhere = scene.authority.issue_elsewhere("elsewhere");
    let environment = [
        ("WEIR_TLS_CERT", text_of(&elsewhere.cert)),
        ("WEIR_TLS_KEY", text_of(&elsewhere.key)),
    ];
    let other = Coordinator::spawn(scene.database.url(), &environment).await;
    let (ca, embedder) = (scene.authority.ca(), FakeEmbedder::start().await);
    let ls = async |url: &str| {
        let trusted = [("WEIR_COORDINATOR", url), ("WEIR_CA_FILE", text_of(&ca))];
        weir_in(&trusted, &["ls"]).await
    };
    assert!(ls(&scene.coordinator.tls_url()).await.status.success());
    let refused = ls(&other.tls_url()).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("not valid for name"), "{said}");
    let trusted = [("WEIR_CA_FILE", text_of(&ca))];
    let worker = Worker::spawn(&other.tls_url(), &embedder.url(), &trusted);
    let told = |line: &str| line.contains("not valid for name").then_some(());
    worker.process.wait_for_line(told).await;
}

/// How a client of this version trusts `authority`, with a certificate of its
/// own.
fn client_of(authority: &Authority, version: &'static SupportedProtocolVersion) -> TlsConnector {
    let own = authority.issue("client");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(authority.ca()).unwrap())
        .unwrap();
    let chain = vec![CertificateDer::from_pem_file(&own.cert).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&own.key).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    Arc::new(config).into()
}

/// How a connection began, that asked for something and had its answer.
async fn handshake(coordinator: &Coordinator, client: &TlsConnector) -> HandshakeKind {
    let tcp = TcpStream::connect(coordinator.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = client.connect(name, tcp).await.unwrap();
    let get = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(get).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stream.get_ref().1.handshake_kind().unwrap()
}

#[tokio::test]
async fn both_versions_are_spoken_and_no_session_with_a_certificate_is_resumed() {
    for mutual in [false, true] {
        let scene = Scene::start(mutual, &[]).await;
        for version in [&TLS12, &TLS13] {
            let client = client_of(&scene.authority, version);
            let first = handshake(&scene.coordinator, &client).await;
            let second = handshake(&scene.coordinator, &client).await;
            assert_eq!(first, HandshakeKind::Full);
            // Without certificates of clients they are, so that it can be seen that they might.
            let resumed = second == HandshakeKind::Resumed;
            assert_eq!(resumed, !mutual, "{version:?}");
        }
    }
}

#[tokio::test]
async fn plaintext_on_a_tls_port_is_told_so_at_once() {
    let scene = Scene::start(false, &[]).await;
    let plain = Endpoint::from_shared(scene.coordinator.url()).unwrap();
    let status = list(plain.connect_lazy()).await.unwrap_err();
    let told = all_of(&status);
    assert!(told.contains("this port speaks TLS"), "{told}");
    let answer = http()
        .get(format!("{}/livez", scene.coordinator.url()))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 400);
    assert_eq!(
        answer.text().await.unwrap(),
        "this port speaks TLS: use https://"
    );
}

#[tokio::test]
async fn tls_on_a_plaintext_port_ends_at_once() {
    let database = TestDatabase::create().await;
    let coordinator = Coordinator::spawn(database.url(), &[]).await;
    let tls = Authority::new().client(None);
    let endpoint = Endpoint::from_shared(coordinator.tls_url()).unwrap();
    let error = endpoint
        .tls_config(tls)
        .unwrap()
        .connect()
        .await
        .unwrap_err();
    assert!(
        all_of(&error).contains("corrupt message"),
        "{}",
        all_of(&error)
    );
    let embedder = FakeEmbedder::start().await;
    let worker = Worker::spawn(&coordinator.tls_url(), &embedder.url(), &[]);
    worker
        .process
        .wait_for_line(|line| {
            line.contains("does not speak TLS there: use http://")
                .then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_silent_peer_holds_up_no_other() {
    let scene = Scene::start(false, &[]).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(
            TcpStream::connect(scene.coordinator.address())
                .await
                .unwrap(),
        );
    }
    scene.list(scene.authority.client(None)).await.unwrap();
    // Nor does one that begins and breaks off.
    let mut rude = silent.pop().unwrap();
    rude.write_all(&[22, 3, 1, 255, 255]).await.unwrap();
    rude.shutdown().await.unwrap();
    rude.read_to_end(&mut Vec::new()).await.unwrap();
    scene.list(scene.authority.client(None)).await.unwrap();
}

#[tokio::test]
async fn new_certificates_hold_for_new_connections_and_break_no_stream() {
    let scene = Scene::start(true, &[]).await;
    let Scene {
        authority: old,
        own,
        coordinator,
        ..
    } = &scene;
    let client = old.issue("client");
    let channel = scene.connect(old.client(Some(&client))).await.unwrap();
    let mut sources = v1::source_service_client::SourceServiceClient::new(channel.clone());
    let put = sources
        .put_source(put_texts("kept", &["one"]))
        .await
        .unwrap()
        .into_inner();
    let job_id = put.jobs[0].job_id;
    let mut jobs = JobServiceClient::new(channel);
    let mut watch = jobs
        .watch_job(v1::WatchJobRequest {
            job_id,
            ..v1::WatchJobRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert!(watch.message().await.unwrap().is_some());

    // A broken key first: the old certificate goes on to serve.
    fs::write(&own.key, "no key").unwrap();
    let broken = |line: &str| line.contains("cannot be used").then_some(());
    coordinator.process.wait_for_line(broken).await;
    scene.list(old.client(Some(&client))).await.unwrap();

    let new = Authority::new();
    let (cert, other) = (new.issue("coordinator"), new.issue("client"));
    fs::copy(cert.key, &own.key).unwrap();
    fs::copy(cert.cert, &own.cert).unwrap();
    fs::copy(new.ca(), old.ca()).unwrap();
    // All three were read together once the new client is let in.
    while scene.list(new.client(Some(&other))).await.is_err() {
        coordinator
            .process
            .wait_for_event("Files were changed and read again.")
            .await;
        tokio::task::yield_now().await;
    }
    let refused = scene.list(new.client(Some(&client))).await;
    assert!(refused.is_err(), "the old authority is none any more");

    jobs.cancel_job(v1::CancelJobRequest { job_id })
        .await
        .unwrap();
    let last = soon(last_of(&mut watch)).await;
    assert_eq!(last.state(), v1::JobState::Cancelled);
}

#[tokio::test]
async fn coordinator_and_worker_work_with_certificates_and_tokens() {
    let tokens = Tokens::new();
    let worker_token = tokens.add("gpu", "worker", &["shop"]);
    let client_token = tokens.add("shop", "client", &["shop"]);
    let file = tokens.path();
    let settings = [
        ("WEIR_TOKENS_FILE", text_of(&file)),
        // A worker of one namespace does not say so for all.
        ("WEIR_MODELS", "fake=16"),
    ];
    let scene = Scene::start(true, &settings).await;
    let authority = &scene.authority;
    let (client, worker) = (authority.issue("client"), authority.issue("worker"));
    let (embedder, ca) = (FakeEmbedder::start().await, authority.ca());
    let token_file = tokens.write("gpu.token", &worker_token);
    let _worker = Worker::spawn(
        &scene.coordinator.tls_url(),
        &embedder.url(),
        &[
            ("WEIR_CA_FILE", text_of(&ca)),
            ("WEIR_CLIENT_CERT", text_of(&worker.cert)),
            ("WEIR_CLIENT_KEY", text_of(&worker.key)),
            ("WEIR_TOKEN_FILE", text_of(&token_file)),
        ],
    );
    let channel = scene
        .connect(authority.client(Some(&client)))
        .await
        .unwrap();
    let mut sources = v1::source_service_client::SourceServiceClient::with_interceptor(
        channel.clone(),
        with_token(&client_token),
    );
    let put = v1::PutSourceRequest {
        namespace: "shop".to_owned(),
        ..put_texts("tea", &["Steep for three minutes.", "Boil water."])
    };
    let put = sources.put_source(put).await.unwrap().into_inner();
    let job_id = put.jobs[0].job_id;
    let mut jobs = JobServiceClient::with_interceptor(channel, with_token(&client_token));
    let mut watch = jobs
        .watch_job(v1::WatchJobRequest {
            job_id,
            ..v1::WatchJobRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    let last = soon(last_of(&mut watch)).await;
    assert_eq!(last.state(), v1::JobState::Succeeded);
    let claimed_by: Option<String> = sqlx::query_scalar("SELECT claimed_by FROM weir.jobs")
        .fetch_one(scene.database.pool())
        .await
        .unwrap();
    assert_eq!(claimed_by.as_deref(), Some("gpu"));
}
