use std::convert::Infallible;

use clap::Parser as _;
use http::Version;
use proptest::{prelude::*, sample::select};
use tonic::Code;

use super::*;
use crate::config::Config;

const GRPC: &str = "application/grpc";

/// Where the port listens, and what else it goes by.
const CALLED: [u8; 4] = [10, 0, 0, 7];
const NAMED: [&str; 2] = ["weir.example", "other.example:7400"];

/// Everything that is served, and what it is.
const PATHS: [(&str, Place); 14] = [
    ("/", Place::Page),
    ("/dashboard/page.js", Place::Page),
    ("/metrics", Place::Page),
    ("/livez", Place::Probe),
    ("/readyz", Place::Probe),
    ("/grpc.health.v1.Health/Check", Place::OpenGrpc),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Place::OpenGrpc,
    ),
    ("/externalscaler.ExternalScaler/GetMetrics", Place::Grpc),
    ("/weir.v1.JobService/GetJob", Place::Grpc),
    ("/weir.v1.WorkerService/ClaimJob", Place::Grpc),
    ("/weir.v1.NewService/Call", Place::Grpc),
    ("/api/JobService/ListJobs", Place::Json),
    ("/api/JobService/WatchJob", Place::Json),
    ("/api/NewService/Call", Place::Json),
];

const HOSTS: [Option<&str>; 11] = [
    Some("127.0.0.1:7400"),
    Some("localhost:7400"),
    Some("[::1]:7400"),
    Some("10.0.0.7:7400"),
    Some("weir.example"),
    Some("other.example:7400"),
    Some("other.example:7401"),
    Some("rebind.example:7400"),
    Some("10.0.0.8:7400"),
    Some("not a host"),
    None,
];

/// Those of them that the port goes by.
const OURS: usize = 6;

const ORIGINS: [Option<&str>; 9] = [
    None,
    Some("http://127.0.0.1:7400"),
    Some("http://localhost:7400"),
    Some("https://weir.example"),
    Some("http://rebind.example:7400"),
    Some("http://127.0.0.1:8000"),
    Some("https://evil.example"),
    Some("null"),
    Some("capacitor://localhost:7400"),
];

const SITES: [Option<&str>; 6] = [
    None,
    Some("none"),
    Some("same-origin"),
    Some("same-site"),
    Some("cross-site"),
    Some("what comes next"),
];

const TYPES: [Option<&str>; 16] = [
    Some(GRPC),
    Some("application/grpc+proto"),
    Some("application/grpc;charset=utf-8"),
    Some("Application/gRPC ; a=b"),
    Some("application/grpc-web"),
    Some("application/grpc-web+proto"),
    Some("application/grpc-web-text+proto"),
    None,
    Some("text/plain"),
    Some("text/plain;application/grpc"),
    Some("application/x-www-form-urlencoded"),
    Some("multipart/form-data"),
    Some("application/json"),
    Some("application/grpcx"),
    Some("application/grpc-text"),
    Some("x application/grpc"),
];

/// Those of them that are gRPC.
const GRPC_TYPES: usize = 7;

/// A request of a browser, or of anybody else.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    path: &'a str,
    host: Option<&'a str>,
    origin: Option<&'a str>,
    site: Option<&'a str>,
    kind: Option<&'a str>,
}

impl Asked<'_> {
    /// As it comes over HTTP/1, or over HTTP/2 where the host is the authority.
    fn request(&self, version: Version) -> Request<Body> {
        let mut request = Request::post(self.path).version(version);
        match self.host {
            Some(host)
                if version == Version::HTTP_2 && host.parse::<http::uri::Authority>().is_ok() =>
            {
                request = request.uri(format!("http://{host}{}", self.path));
            }
            Some(host) => request = request.header(header::HOST, host),
            None => {}
        }
        for (name, value) in [
            ("origin", self.origin),
            (SEC_FETCH_SITE, self.site),
            ("content-type", self.kind),
        ] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let peer = Peer {
            address: ([10, 0, 0, 1], 1).into(),
            called: (CALLED, 7400).into(),
            certified: false,
        };
        request.extension(peer).body(Body::empty()).unwrap()
    }
}

fn named() -> Vec<Host> {
    NAMED.map(|host| host.parse().unwrap()).to_vec()
}

/// Says by the lists above what must become of a request.
fn right(place: Place, asked: &Asked<'_>, open: bool) -> Verdict {
    let at = HOSTS.iter().position(|host| *host == asked.host).unwrap();
    let probe = place == Place::Probe || asked.path.contains("health");
    if open && !probe && at >= OURS {
        return Verdict::OtherHost(asked.host.and_then(|host| host.parse().ok()));
    }
    let host_of = |origin: &str| {
        origin
            .strip_prefix("http://")
            .or(origin.strip_prefix("https://"))
            .map(str::to_owned)
    };
    let same = asked
        .origin
        .is_none_or(|origin| host_of(origin).is_some_and(|it| Some(&*it) == asked.host));
    let near = matches!(asked.site, None | Some("none" | "same-origin"));
    if matches!(place, Place::Grpc | Place::Json) && !(same && near) {
        return Verdict::OtherOrigin;
    }
    let grpc = TYPES.iter().position(|kind| *kind == asked.kind).unwrap() < GRPC_TYPES;
    if matches!(place, Place::Grpc | Place::OpenGrpc) && !grpc {
        return Verdict::OtherType;
    }
    Verdict::Serve
}

#[test]
fn every_request_that_a_browser_can_make_is_decided_by_what_no_page_chooses() {
    let hosts = named();
    let mut served = 0;
    for (path, place) in PATHS {
        assert_eq!(Place::at(path), place, "{path}");
        for host in HOSTS {
            for origin in ORIGINS {
                for site in SITES {
                    for kind in TYPES {
                        let asked = Asked {
                            path,
                            host,
                            origin,
                            site,
                            kind,
                        };
                        for version in [Version::HTTP_11, Version::HTTP_2] {
                            let request = asked.request(version);
                            for open in [true, false] {
                                let verdict = decide(&request, open.then_some(&hosts));
                                assert_eq!(
                                    verdict,
                                    right(place, &asked, open),
                                    "{asked:?} {version:?} {open}"
                                );
                                served += usize::from(verdict == Verdict::Serve);
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(served > 10_000, "{served}");
}

#[test]
fn a_request_that_names_two_hosts_names_none() {
    let hosts = named();
    let ask = |uri: &str, named: &[&str]| {
        let mut request = Request::get(uri);
        for host in named {
            request = request.header(header::HOST, *host);
        }
        decide(&request.body(()).unwrap(), Some(&hosts))
    };
    let other = Verdict::OtherHost(None);
    assert_eq!(ask("/", &["localhost"]), Verdict::Serve);
    assert_eq!(ask("http://localhost:1/", &["LOCALHOST:1"]), Verdict::Serve);
    assert_eq!(ask("/", &["localhost", "evil.example"]), other);
    assert_eq!(ask("http://evil.example/", &["localhost"]), other);
    assert_eq!(ask("http://localhost/", &["evil.example"]), other);
    assert_eq!(ask("http://me@localhost/", &[]), other);
    // Where it was called is not known: an address is none of ours.
    let address = "10.0.0.7".parse().unwrap();
    assert_eq!(ask("/", &["10.0.0.7"]), Verdict::OtherHost(Some(address)));
}

#[test]
fn the_address_to_listen_on_is_its_own() {
    let flags = ["weir-coordinator", "--allowed-hosts", "weir.example"];
    let security = Config::try_parse_from(flags).unwrap().serve.security;
    for (listen, host, served) in [
        ("0.0.0.0", "0.0.0.0:7400", true),
        ("::", "[::]:7400", true),
        ("::", "weir.example", true),
        ("127.0.0.1", "0.0.0.0:7400", false),
    ] {
        let layer = OriginLayer::new(&security, listen.parse().unwrap());
        let request = Request::get("/")
            .header(header::HOST, host)
            .body(())
            .unwrap();
        let verdict = decide(&request, layer.hosts.as_deref());
        assert_eq!(verdict == Verdict::Serve, served, "{listen} {host}");
    }
}

/// What is served behind the layer.
async fn answer(request: Request<Body>, kind: &'static str) -> Response<Body> {
    let inner = tower::service_fn(move |_: Request<Body>| {
        let answer = Response::builder().header(header::CONTENT_TYPE, kind);
        ready(Ok::<_, Infallible>(answer.body(Body::empty()).unwrap()))
    });
    let layer = OriginLayer {
        hosts: Some(named().into()),
    };
    layer.layer(inner).call(request).await.unwrap()
}

async fn text(answer: Response<Body>) -> String {
    let bytes = axum::body::to_bytes(axum::body::Body::new(answer.into_body()), 1 << 20).await;
    String::from_utf8(bytes.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn a_refusal_is_in_the_callers_own_terms() {
    let good = Asked {
        path: "/api/JobService/ListJobs",
        host: Some("localhost"),
        origin: None,
        site: None,
        kind: Some("application/json"),
    };
    let rebound = Asked {
        host: Some("rebind.example:7400"),
        ..good
    };
    let foreign = Asked {
        site: Some("same-site"),
        ..good
    };
    for (asked, http, told) in [
        (rebound, 421, "does not go by rebind.example:7400"),
        (Asked { host: None, ..good }, 421, "a call names one host"),
        (foreign, 403, "another origin"),
        (
            Asked {
                path: "/weir.v1.JobService/GetJob",
                ..good
            },
            415,
            "application/grpc",
        ),
        (
            Asked {
                path: "/weir.v1.JobService/GetJob",
                kind: Some("application/grpcx"),
                ..good
            },
            415,
            "is gRPC",
        ),
    ] {
        let refused = answer(asked.request(Version::HTTP_11), GRPC).await;
        assert_eq!(refused.status(), http, "{asked:?}");
        assert_eq!(refused.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(refused.headers()[header::CACHE_CONTROL], "no-store");
        let said = text(refused).await;
        assert!(said.contains(told), "{said}");
        assert!(http != 421 || said.contains("WEIR_ALLOWED_HOSTS"), "{said}");
    }
    for (kind, speaks) in [
        (GRPC, GRPC),
        ("application/grpc-web+proto", "application/grpc-web+proto"),
    ] {
        for asked in [rebound, foreign] {
            let asked = Asked {
                path: "/weir.v1.JobService/GetJob",
                kind: Some(kind),
                ..asked
            };
            let refused = answer(asked.request(Version::HTTP_2), GRPC).await;
            assert_eq!(refused.status(), 200);
            assert_eq!(refused.headers()[header::CONTENT_TYPE], speaks);
            let status = Status::from_header_map(refused.headers()).unwrap();
            assert_eq!(status.code(), Code::PermissionDenied);
        }
    }
    let page = answer(
        Asked {
            path: "/",
            ..rebound
        }
        .request(Version::HTTP_11),
        GRPC,
    )
    .await;
    assert_eq!(page.status(), 421);
    assert_eq!(
        page.headers()[header::CONTENT_TYPE],
        "text/plain; charset=utf-8"
    );
    assert!(text(page).await.starts_with("this port does not go by"));
}

#[tokio::test]
async fn answers_are_taken_for_what_they_are_and_json_is_not_kept() {
    let page = || {
        Asked {
            path: "/",
            host: Some("localhost"),
            origin: None,
            site: None,
            kind: None,
        }
        .request(Version::HTTP_11)
    };
    for (kind, kept) in [
        ("application/json", Some("no-store")),
        ("text/plain", None),
        ("text/event-stream", None),
    ] {
        let answer = answer(page(), kind).await;
        assert_eq!(
            answer.headers()[header::X_CONTENT_TYPE_OPTIONS],
            "nosniff",
            "{kind}"
        );
        let said = answer.headers().get(header::CACHE_CONTROL);
        assert_eq!(said.map(|it| it.to_str().unwrap()), kept, "{kind}");
    }
    let grpc = answer(page(), "application/grpc+proto").await;
    assert_eq!(grpc.headers().len(), 1);
}

proptest! {
    /// However an origin is spelt, it is ours only if it is this very host.
    #[test]
    fn no_other_origin_is_taken_for_ours(
        scheme in select(vec!["http://", "https://", "ws://", "file://", "", "HTTP://", "null"]),
        host in select(vec!["127.0.0.1", "localhost", "127.0.0.1.", "[::1]", "weir.example", "weir.example.", "a", "127.0.0.1@a", "a#127.0.0.1"]),
        port in select(vec!["", ":7400", ":80", ":443", ":7401", ":07400", ":"]),
        rest in select(vec!["", "", "", "/", "?", "\\", ",http://127.0.0.1:7400", " http://127.0.0.1:7400"]),
    ) {
        let origin = format!("{scheme}{host}{port}{rest}");
        let asked = Asked {
            path: "/weir.v1.JobService/GetJob",
            host: Some("127.0.0.1:7400"),
            origin: Some(&origin),
            site: None,
            kind: Some(GRPC),
        };
        let ours = ["http://127.0.0.1:7400", "https://127.0.0.1:7400", "http://127.0.0.1:07400", "https://127.0.0.1:07400"];
        // The same address, written with a final dot that no browser sends.
        let ours = ours.contains(&&*origin.replace("127.0.0.1.:", "127.0.0.1:"));
        let verdict = decide(&asked.request(Version::HTTP_11), None);
        prop_assert_eq!(verdict == Verdict::Serve, ours, "{}", origin);
    }
}
