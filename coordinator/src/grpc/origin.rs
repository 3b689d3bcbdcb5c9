//! What pages in a browser may not do: stands before the gate, and decides by
//! the headers that a page cannot choose.
//!
//! A browser sends what it is bidden to, to any address that it reaches, with
//! its certificate of the client. So a call names a host that the port goes by,
//! or a name of somebody else's that leads here would make his page one of ours;
//! it does not come from a page of another origin; and gRPC is of a type that
//! no page sends to another origin without asking first.

use std::{
    future::{Ready, ready},
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{
    TryFutureExt as _,
    future::{Either, MapOk},
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::auth::Speaks;
use crate::{access::Host, config::SecurityConfig, tls::Peer};

/// How a browser says whose page makes a request.
/// <https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header>
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Whether this process serves: asked by address, and tells nothing else.
    Probe,
    /// A page that a link on any site may lead to.
    Page,
    /// A service that tells what anybody may know.
    OpenGrpc,
    /// A service that reads, writes or asks the database.
    Grpc,
    /// The same in JSON.
    Json,
}

impl Place {
    fn at(path: &str) -> Self {
        let below = |prefix| path.starts_with(prefix);
        match path {
            "/livez" | "/readyz" => Self::Probe,
            _ if below("/weir.v1.") || below("/externalscaler.") => Self::Grpc,
            _ if below("/grpc.") => Self::OpenGrpc,
            _ if below("/api/") => Self::Json,
            _ => Self::Page,
        }
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Serve,
    /// It names a host that the port does not go by; `None` where it names none,
    /// or several.
    OtherHost(Option<Host>),
    /// A page of another origin makes it.
    OtherOrigin,
    /// It is none of gRPC, where there is nothing else.
    OtherType,
}

/// Decides what becomes of a call at a port that goes by `hosts`, besides its
/// own, or by any.
fn decide<B>(request: &Request<B>, hosts: Option<&[Host]>) -> Verdict {
    let (path, headers) = (request.uri().path(), request.headers());
    let (place, host) = (Place::at(path), host_of(request));
    let named_by_anything = place == Place::Probe || path.starts_with("/grpc.health.");
    if let (Some(hosts), false) = (hosts, named_by_anything) {
        let called = request.extensions().get::<Peer>();
        let called = called.map(|peer| peer.called.ip());
        if !host.as_ref().is_some_and(|it| goes_by(it, hosts, called)) {
            return Verdict::OtherHost(host);
        }
    }
    if matches!(place, Place::Grpc | Place::Json) && is_of_other_origin(headers, host.as_ref()) {
        return Verdict::OtherOrigin;
    }
    if matches!(place, Place::Grpc | Place::OpenGrpc) && !is_grpc(headers) {
        return Verdict::OtherType;
    }
    Verdict::Serve
}

/// The one host that a request names.
fn host_of<B>(request: &Request<B>) -> Option<Host> {
    let authority = request.uri().authority().map(|it| it.as_str().as_bytes());
    let headers = request.headers().get_all(header::HOST);
    let headers = headers.iter().map(HeaderValue::as_bytes);
    let mut named = authority.into_iter().chain(headers).map(read);
    let first = named.next()??;
    named
        .all(|other| other.as_ref() == Some(&first))
        .then_some(first)
}

fn read(host: &[u8]) -> Option<Host> {
    std::str::from_utf8(host).ok()?.parse().ok()
}

/// Whether a port that was called at this address goes by this host. An address
/// is nobody's to lead elsewhere, as a name is.
fn goes_by(host: &Host, hosts: &[Host], called: Option<IpAddr>) -> bool {
    host.is_loopback()
        || called.is_some_and(|address| host.is_at(address))
        || hosts.iter().any(|one| one.covers(host))
}

/// Whether a page makes the request that is not of this very host. Another port
/// or another name of the same site is another origin: all that anybody serves
/// on this machine is of one site.
fn is_of_other_origin(headers: &HeaderMap, host: Option<&Host>) -> bool {
    let ours = |site: &HeaderValue| site == "same-origin" || site == "none";
    let same = |origin: &HeaderValue| {
        let found = origin_of(origin.as_bytes()).zip(host);
        found.is_some_and(|((origin, default), host)| origin.is(host, default))
    };
    !headers.get_all(SEC_FETCH_SITE).iter().all(ours)
        || !headers.get_all(header::ORIGIN).iter().all(same)
}

/// The host of an origin, and the port of its scheme. `null`, and what is no
/// site, has none.
fn origin_of(origin: &[u8]) -> Option<(Host, u16)> {
    let (host, port) = match origin.strip_prefix(b"http://") {
        Some(host) => (host, 80),
        None => (origin.strip_prefix(b"https://")?, 443),
    };
    Some((read(host)?, port))
}

/// Whether the body is said to be gRPC or gRPC-Web, in any encoding. A page may
/// send a body to another origin unasked if it names no type, or that of a form.
fn is_grpc(headers: &HeaderMap) -> bool {
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (kinds.next(), kinds.next()) else {
        return false;
    };
    let kind = kind.to_str().unwrap_or_default().to_ascii_lowercase();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let Some(rest) = kind.strip_prefix("application/grpc") else {
        return false;
    };
    let rest = match rest.strip_prefix("-web") {
        Some(rest) => rest.strip_prefix("-text").unwrap_or(rest),
        None => rest,
    };
    rest.is_empty() || rest.starts_with('+')
}

impl Verdict {
    /// The refusal, in the caller's own terms; `None` where it is to be served.
    fn refusal<B>(self, request: &Request<B>) -> Option<Response<Body>> {
        let (speaks, http, status) = match self {
            Self::Serve => return None,
            Self::OtherHost(host) => (
                Speaks::of(request),
                StatusCode::MISDIRECTED_REQUEST,
                other_host(host),
            ),
            Self::OtherOrigin => (
                Speaks::of(request),
                StatusCode::FORBIDDEN,
                Status::permission_denied(
                    "pages of another origin may not call this port; a proxy before it has to pass on the Host that \
                     the browser named",
                ),
            ),
            Self::OtherType => (
                Speaks::Json,
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Status::invalid_argument(
                    "this is gRPC: the content-type must be application/grpc or application/grpc-web",
                ),
            ),
        };
        if speaks != Speaks::Json {
            return Some(speaks.refusal(status));
        }
        if Place::at(request.uri().path()) == Place::Page {
            let mut answer = Response::new(Body::new(status.message().to_owned()));
            let kind = HeaderValue::from_static("text/plain; charset=utf-8");
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
            *answer.status_mut() = http;
            return Some(answer);
        }
        let mut answer = speaks.refusal(status);
        *answer.status_mut() = http;
        Some(answer)
    }
}

fn other_host(host: Option<Host>) -> Status {
    let who = host.map_or_else(
        || "a call names one host".to_owned(),
        |host| format!("this port does not go by {host}"),
    );
    Status::permission_denied(format!(
        "{who}: name those that it goes by in --allowed-hosts (WEIR_ALLOWED_HOSTS), or ask callers who they are with \
         --tokens-file or --tls-client-ca"
    ))
}

/// Has no browser take an answer for something else than it is, or keep what was
/// read.
fn seal(mut answer: Response<Body>) -> Response<Body> {
    let headers = answer.headers_mut();
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.map_or(&b""[..], HeaderValue::as_bytes);
    if kind.starts_with(b"application/grpc") {
        return answer;
    }
    if kind.starts_with(b"application/json") {
        let never = HeaderValue::from_static("no-store");
        headers.entry(header::CACHE_CONTROL).or_insert(never);
    }
    let nosniff = HeaderValue::from_static("nosniff");
    headers
        .entry(header::X_CONTENT_TYPE_OPTIONS)
        .or_insert(nosniff);
    answer
}

/// Puts the decision before all services.
#[derive(Debug, Clone)]
pub(crate) struct OriginLayer {
    hosts: Option<Arc<[Host]>>,
}

impl OriginLayer {
    /// Goes by the hosts of the settings, and by the address to listen on.
    pub(crate) fn new(security: &SecurityConfig, listen: IpAddr) -> Self {
        let own = Host::at(listen);
        let hosts = security.hosts();
        let hosts = hosts.map(|named| named.iter().cloned().chain([own]).collect());
        Self { hosts }
    }
}

impl<S> Layer<S> for OriginLayer {
    type Service = BehindOrigin<S>;

    fn layer(&self, inner: S) -> BehindOrigin<S> {
        BehindOrigin {
            inner,
            hosts: self.hosts.clone(),
        }
    }
}

/// All services, for whoever may call them from where they are.
#[derive(Debug, Clone)]
pub(crate) struct BehindOrigin<S> {
    inner: S,
    hosts: Option<Arc<[Host]>>,
}

type Seal = fn(Response<Body>) -> Response<Body>;

impl<S> Service<Request<Body>> for BehindOrigin<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, MapOk<S::Future, Seal>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let verdict = decide(&request, self.hosts.as_deref());
        match verdict.refusal(&request) {
            Some(refused) => Either::Left(ready(Ok(seal(refused)))),
            None => Either::Right(self.inner.call(request).map_ok(seal as Seal)),
        }
    }
}

#[cfg(test)]
mod tests;
