//! What a page can have a browser send, sent by a client that is as obedient:
//! the coordinator takes none of it. What a real browser sends is in
//! `tests/browser/pages.rs`.

use prost::Message;
use reqwest::{Client, StatusCode, header::HeaderMap};
use sqlx::PgPool;
use tonic::{Code, Status, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use weir_proto::{
    externalscaler::{ScaledObjectRef, external_scaler_client::ExternalScalerClient},
    v1::{
        self, job_service_client::JobServiceClient, source_service_client::SourceServiceClient,
        worker_service_client::WorkerServiceClient,
    },
};
use weir_tests::{
    certificates::{Authority, text_of},
    clients::{Weir, claim_request, http, put_texts, until},
    cluster::{Coordinator, MODEL, Process},
    postgres::TestDatabase,
    tokens::Tokens,
};

const CLAIM: &str = "/weir.v1.WorkerService/ClaimJob";
const FAIL: &str = "/weir.v1.WorkerService/FailJob";
const DELETE: &str = "/weir.v1.SourceService/DeleteSource";
const EVIL: &str = "https://evil.example";

/// A message as gRPC frames it.
fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &message].concat()
}

/// A client of HTTP/2 where TLS does not offer it.
fn http2() -> Client {
    drop(http());
    Client::builder().http2_prior_knowledge().build().unwrap()
}

/// Where the one job there is stands.
async fn job(pool: &PgPool) -> (String, i64, i64) {
    sqlx::query_as("SELECT state::text, epoch::bigint, attempt::bigint FROM weir.jobs")
        .fetch_one(pool)
        .await
        .unwrap()
}

fn delete() -> v1::DeleteSourceRequest {
    v1::DeleteSourceRequest {
        name: "pages".to_owned(),
        ..v1::DeleteSourceRequest::default()
    }
}

fn failure(lease: &v1::Lease) -> v1::FailJobRequest {
    v1::FailJobRequest {
        job_id: lease.job_id,
        epoch: lease.epoch,
        reason: "a page says so".to_owned(),
    }
}

#[tokio::test]
async fn a_body_of_a_type_that_needs_no_leave_takes_fails_and_deletes_nothing() {
    let weir = Weir::start().await;
    let pool = weir.database.pool();
    weir.put("pages", &["one"]).await;
    let kinds = [
        None,
        Some("text/plain;charset=UTF-8"),
        Some("application/x-www-form-urlencoded"),
        Some("multipart/form-data; boundary=x"),
    ];
    let send = async |path: &str, body: Vec<u8>| {
        for client in [http(), http2()] {
            for kind in kinds {
                let mut post = client
                    .post(weir.coordinator.url() + path)
                    .body(body.clone());
                if let Some(kind) = kind {
                    post = post.header("content-type", kind);
                }
                let answer = post.send().await.unwrap();
                assert_eq!(
                    answer.status(),
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "{path} {kind:?}"
                );
                assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
                let said = answer.text().await.unwrap();
                assert!(said.contains("application/grpc"), "{said}");
            }
        }
    };
    send(CLAIM, framed(&claim_request())).await;
    assert_eq!(job(pool).await.0, "queued");
    let lease = weir.claim().await;
    let claimed = job(pool).await;
    send(FAIL, framed(&failure(&lease))).await;
    send(DELETE, framed(&delete())).await;
    for path in [
        "/externalscaler.ExternalScaler/IsActive",
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ] {
        send(path, framed(&HealthCheckRequest::default())).await;
    }
    assert_eq!(job(pool).await, claimed);
    assert_eq!(weir.rows("sources").await, 1);
}

#[tokio::test]
async fn a_certificate_that_the_browser_brings_opens_nothing_to_a_page() {
    let (authority, database) = (Authority::new(), TestDatabase::create().await);
    let (own, ca) = (authority.issue("coordinator"), authority.ca());
    let environment = [
        ("WEIR_TLS_CERT", text_of(&own.cert)),
        ("WEIR_TLS_KEY", text_of(&own.key)),
        ("WEIR_TLS_CLIENT_CA", text_of(&ca)),
    ];
    let coordinator = Coordinator::spawn(database.url(), &environment).await;
    let mine = authority.issue("person");
    let endpoint = Endpoint::from_shared(coordinator.tls_url()).unwrap();
    let endpoint = endpoint.tls_config(authority.client(Some(&mine))).unwrap();
    let mut sources = SourceServiceClient::new(endpoint.connect().await.unwrap());
    sources
        .put_source(put_texts("pages", &["one"]))
        .await
        .unwrap();

    drop(http());
    let pem = [&mine.cert, &mine.key].map(|path| std::fs::read(path).unwrap());
    let trusted = reqwest::Certificate::from_pem(&std::fs::read(&ca).unwrap()).unwrap();
    let browser = Client::builder()
        .tls_certs_only([trusted])
        .identity(reqwest::Identity::from_pem(&pem.concat()).unwrap())
        .build()
        .unwrap();
    let post = |path: &str, kind: &str, body: Vec<u8>| {
        let post = browser.post(coordinator.tls_url() + path);
        post.header("content-type", kind).body(body)
    };
    for (path, body) in [
        (CLAIM, framed(&claim_request())),
        (DELETE, framed(&delete())),
    ] {
        let answer = post(path, "text/plain", body.clone()).send().await.unwrap();
        assert_eq!(answer.version(), reqwest::Version::HTTP_2);
        assert_eq!(
            answer.status(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "{path}"
        );
        let foreign = post(path, "application/grpc", body.clone()).header("origin", EVIL);
        assert_eq!(
            status_of(foreign.send().await.unwrap().headers()).code(),
            Code::PermissionDenied
        );
        let foreign = post(path, "text/plain", body).header("sec-fetch-site", "cross-site");
        assert_eq!(
            foreign.send().await.unwrap().status(),
            StatusCode::FORBIDDEN
        );
    }
    assert_eq!(job(database.pool()).await.0, "queued");
    // The same certificate is good for its owner's own calls, in JSON too.
    let list = post(
        "/api/JobService/ListJobs",
        "application/json",
        b"{}".to_vec(),
    );
    let own = list
        .try_clone()
        .unwrap()
        .header("origin", coordinator.tls_url());
    assert_eq!(own.send().await.unwrap().status(), StatusCode::OK);
    let foreign = list.header("origin", EVIL);
    assert_eq!(
        foreign.send().await.unwrap().status(),
        StatusCode::FORBIDDEN
    );
}

fn status_of(headers: &HeaderMap) -> Status {
    Status::from_header_map(headers).expect("a refusal of gRPC is in the headers")
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_and_a_link_on_it_leads_to_the_dashboard() {
    let weir = Weir::start().await;
    weir.put("pages", &["one"]).await;
    let url = weir.coordinator.url();
    let number = weir.coordinator.address().port();
    let foreign = [
        ("origin", EVIL.to_owned()),
        ("origin", "null".to_owned()),
        ("origin", format!("http://localhost:{number}")),
        ("origin", "http://127.0.0.1:1".to_owned()),
        ("sec-fetch-site", "cross-site".to_owned()),
        ("sec-fetch-site", "same-site".to_owned()),
    ];
    let json = |call: &str, body: &str| {
        let post = http()
            .post(format!("{url}/api/{call}"))
            .body(body.to_owned());
        post.header("content-type", "application/json")
    };
    let web = || {
        let post = http().post(url.clone() + DELETE).body(framed(&delete()));
        post.header("content-type", "application/grpc-web+proto")
    };
    let watch = || {
        http().get(format!(
            "{url}/api/JobService/WatchSource?request={{\"name\":\"pages\"}}"
        ))
    };
    for (name, value) in &foreign {
        for call in [
            json("SourceService/DeleteSource", r#"{"name":"pages"}"#),
            watch(),
        ] {
            let answer = call.header(*name, value).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{name}: {value}");
            assert_eq!(answer.headers()["cache-control"], "no-store");
            let said = answer.text().await.unwrap();
            assert!(
                said.contains("PERMISSION_DENIED") && said.contains("another origin"),
                "{said}"
            );
        }
        let answer = web().header(*name, value).send().await.unwrap();
        assert_eq!(
            answer.headers()["content-type"],
            "application/grpc-web+proto"
        );
        assert_eq!(
            status_of(answer.headers()).code(),
            Code::PermissionDenied,
            "{name}: {value}"
        );
        for page in ["/", "/dashboard/page.js", "/livez", "/readyz"] {
            let link = http().get(url.clone() + page).header(*name, value);
            let answer = link.send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK, "{page}");
            assert_eq!(
                answer.headers()["x-content-type-options"],
                "nosniff",
                "{page}"
            );
        }
    }
    assert_eq!(weir.rows("sources").await, 1);
    let own = |call: reqwest::RequestBuilder| {
        let call = call.header("origin", &url);
        call.header("sec-fetch-site", "same-origin").send()
    };
    assert_eq!(own(watch()).await.unwrap().status(), StatusCode::OK);
    let listed = own(json("JobService/ListJobs", "{}")).await.unwrap();
    assert_eq!(listed.status(), StatusCode::OK);
    assert_eq!(listed.headers()["cache-control"], "no-store");
    assert_eq!(listed.headers()["x-content-type-options"], "nosniff");
    assert_eq!(own(web()).await.unwrap().status(), StatusCode::OK);
    assert_eq!(weir.rows("sources").await, 0);
}

/// A client that was told by its DNS that this name is the coordinator's.
fn rebound(client: reqwest::ClientBuilder, name: &str, coordinator: &Coordinator) -> Client {
    client.resolve(name, coordinator.address()).build().unwrap()
}

#[tokio::test]
async fn a_name_that_is_led_here_is_not_answered_unless_it_is_allowed() {
    let weir = Weir::with(&[("WEIR_ALLOWED_HOSTS", "weir.example,[::1]")]).await;
    weir.put("pages", &["one"]).await;
    let number = weir.coordinator.address().port();
    drop(http());
    for builder in [Client::builder, || {
        Client::builder().http2_prior_knowledge()
    }] {
        let ask = async |name: &str, path: &str| {
            let client = rebound(builder(), name, &weir.coordinator);
            let url = format!("http://{name}:{number}{path}");
            if !path.starts_with("/api") {
                return client.get(url).send().await.unwrap();
            }
            let post = client
                .post(url)
                .header("origin", format!("http://{name}:{number}"));
            let post = post.header("content-type", "application/json");
            post.body(r#"{"name":"pages"}"#).send().await.unwrap()
        };
        for path in [
            "/",
            "/metrics",
            "/api/SourceService/DeleteSource",
            "/api/JobService/ListJobs",
        ] {
            let answer = ask("rebind.example", path).await;
            assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST, "{path}");
            let said = answer.text().await.unwrap();
            assert!(
                said.contains("--allowed-hosts (WEIR_ALLOWED_HOSTS)"),
                "{said}"
            );
        }
        for path in ["/livez", "/readyz"] {
            assert_eq!(
                ask("rebind.example", path).await.status(),
                StatusCode::OK,
                "{path}"
            );
        }
        for name in ["localhost", "LOCALHOST", "weir.example"] {
            assert_eq!(ask(name, "/").await.status(), StatusCode::OK, "{name}");
            let got = ask(name, "/api/SourceService/GetSource").await;
            assert_eq!(got.status(), StatusCode::OK, "{name}");
        }
    }
    assert_eq!(weir.rows("sources").await, 1);
}

#[tokio::test]
async fn the_authority_of_a_grpc_call_is_its_host() {
    let weir = Weir::with(&[("WEIR_ALLOWED_HOSTS", "weir-coordinator.weir.svc")]).await;
    weir.put("pages", &["one"]).await;
    let called = async |authority: &str| {
        let endpoint = Endpoint::from_shared(weir.coordinator.url()).unwrap();
        let origin = format!("http://{authority}").parse().unwrap();
        endpoint.origin(origin).connect().await.unwrap()
    };
    let refused = |status: &Status| {
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        assert!(
            status.message().contains("WEIR_ALLOWED_HOSTS"),
            "{status:?}"
        );
    };
    let rebind = called("rebind.example:7400").await;
    refused(
        &WorkerServiceClient::new(rebind.clone())
            .claim_job(claim_request())
            .await
            .unwrap_err(),
    );
    let list = v1::ListJobsRequest::default();
    refused(
        &JobServiceClient::new(rebind.clone())
            .list_jobs(list)
            .await
            .unwrap_err(),
    );
    let about = ScaledObjectRef {
        scaler_metadata: [("models".to_owned(), MODEL.to_owned())].into(),
        ..ScaledObjectRef::default()
    };
    refused(
        &ExternalScalerClient::new(rebind.clone())
            .is_active(about.clone())
            .await
            .unwrap_err(),
    );
    assert_eq!(job(weir.database.pool()).await.0, "queued");
    // A kubelet asks for health by the address of the pod.
    let health = HealthClient::new(rebind)
        .check(HealthCheckRequest::default())
        .await;
    assert!(health.is_ok(), "{health:?}");

    let service = called("weir-coordinator.weir.svc:7400").await;
    until(async || {
        let mut scaler = ExternalScalerClient::new(service.clone());
        let active = scaler.is_active(about.clone()).await;
        active.unwrap().into_inner().result
    })
    .await;
    let claimed = WorkerServiceClient::new(service)
        .claim_job(claim_request())
        .await;
    assert_eq!(claimed.unwrap().into_inner().leases.len(), 1);
}

#[tokio::test]
async fn a_port_that_asks_for_tokens_goes_by_any_name_until_it_is_told_which() {
    let (database, tokens) = (TestDatabase::create().await, Tokens::new());
    let (token, file) = (tokens.add("shop", "client", &["*"]), tokens.path());
    let tokens = ("WEIR_TOKENS_FILE", text_of(&file));
    for (environment, status) in [
        (vec![tokens], StatusCode::OK),
        (
            vec![tokens, ("WEIR_ALLOWED_HOSTS", "weir.example")],
            StatusCode::MISDIRECTED_REQUEST,
        ),
    ] {
        let coordinator = Coordinator::spawn(database.url(), &environment).await;
        drop(http());
        let client = rebound(Client::builder(), "any.example", &coordinator);
        let url = format!(
            "http://any.example:{}/api/JobService/ListJobs",
            coordinator.address().port()
        );
        let post = client.post(url).bearer_auth(&token).body("{}");
        let answer = post
            .header("content-type", "application/json")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), status);
    }
}

#[tokio::test]
async fn a_host_that_is_none_is_refused_at_the_start() {
    for (hosts, told) in [
        ("*", "patterns"),
        ("weir.example,http://a", "URL"),
        ("weir:0", "port"),
        ("", "no host"),
    ] {
        let environment = [
            ("WEIR_DATABASE_URL", "postgres://127.0.0.1:1/none"),
            ("WEIR_MODELS", MODEL),
            ("WEIR_ALLOWED_HOSTS", hosts),
        ];
        let mut refused = Process::spawn("weir-coordinator", &[], &environment);
        assert!(!refused.wait().await.success(), "{hosts}");
        let said = refused.log().join("\n");
        assert!(
            said.contains("--allowed-hosts") && said.contains(told),
            "{hosts}: {said}"
        );
    }
}
