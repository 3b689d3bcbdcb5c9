//! The gate of the port: who calls, whether they may call this service at all,
//! how often, and how many streams at a time. Decided once for each call, before
//! anything is decoded; what of it concerns a namespace is for the services to
//! ask of the [`Caller`].
//!
//! What is below `/weir.v1.` and `/api/` is closed. All else is open: health,
//! reflection and pages, which tell nothing of anybody's content. KEDA's
//! scaler is open and counted, for each of its calls asks the database.

mod caller;
mod guarded;
mod rate;
mod streams;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, header};
use tokio::sync::watch;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

pub(crate) use self::caller::{Asked, Caller};
use self::{
    guarded::{Guarded, Revoked},
    rate::{Key, Rate},
    streams::{Counted, Open, Streams},
};
use super::json;
use crate::{
    access::{Role, Tokens},
    config::{LimitsConfig, SecurityConfig},
    tls::Peer,
};

/// The service that a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// What anybody may have.
    Open,
    /// What anybody may have, and asks the database: not very often.
    Counted,
    /// What needs this role.
    Closed(Role),
}

impl Wanted {
    fn at(path: &str) -> Self {
        if path.starts_with("/externalscaler.") {
            return Self::Counted;
        }
        let path = path
            .strip_prefix("/weir.v1.")
            .or(path.strip_prefix("/api/"));
        match path.and_then(|path| path.split('/').next()) {
            None => Self::Open,
            Some("WorkerService") => Self::Closed(Role::Worker),
            Some(_) => Self::Closed(Role::Client),
        }
    }
}

/// What callers are asked for.
#[derive(Debug)]
pub(crate) struct Gate {
    tokens: Option<watch::Receiver<Arc<Tokens>>>,
    needs_certificate: bool,
    rate: Option<Rate>,
    streams: Arc<Streams>,
}

/// Who was let in, and until when.
struct Admitted {
    /// `None` where it was not asked who it is.
    caller: Option<Caller>,
    revoked: Option<Revoked>,
    /// Where it is a stream.
    stream: Option<Open>,
}

impl Gate {
    /// Asks for what the settings say; `tokens` are those of the tokens file.
    pub(crate) fn new(
        tokens: Option<watch::Receiver<Arc<Tokens>>>,
        security: &SecurityConfig,
        limits: &LimitsConfig,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            tokens,
            needs_certificate: security.tls_client_ca.is_some(),
            rate: limits.requests_per_second.map(Rate::new),
            streams: Arc::new(Streams::new(limits.max_streams_per_client)?),
        })
    }

    fn admit<B>(&self, request: &Request<B>, role: Role) -> Result<Admitted, Status> {
        let peer = request.extensions().get::<Peer>();
        if self.needs_certificate && !peer.is_some_and(|peer| peer.certified) {
            return Err(Status::unauthenticated(
                "this call needs a certificate of the client",
            ));
        }
        let Some(tokens) = &self.tokens else {
            return Ok(Admitted {
                stream: self.count_address(request)?,
                caller: Some(Caller { grant: None }),
                revoked: None,
            });
        };
        let token = bearer(request)
            .ok_or("this call needs a token: send authorization: Bearer …")
            .and_then(|token| {
                let found = tokens.borrow().find(token);
                found.ok_or("the token is not, or no longer, good")
            });
        let (digest, grant) = match token {
            Ok(found) => found,
            Err(refused) => {
                self.count_address(request)?;
                return Err(Status::unauthenticated(refused));
            }
        };
        if grant.role != role {
            return Err(Status::permission_denied(format!(
                "this is a token of a {}, and the call is one of a {}",
                grant.role.as_str(),
                role.as_str()
            )));
        }
        let key = Key::Token(grant.name.clone());
        Ok(Admitted {
            stream: self.count(request, Some(key))?,
            revoked: Some(guarded::revoked(tokens.clone(), digest, Arc::clone(&grant))),
            caller: Some(Caller { grant: Some(grant) }),
        })
    }

    /// Counts a call of whoever calls from this address.
    fn count_address<B>(&self, request: &Request<B>) -> Result<Option<Open>, Status> {
        let peer = request.extensions().get::<Peer>();
        let key = peer.map(|peer| Key::Address(peer.address.ip()));
        self.count(request, key)
    }

    /// Counts a call, for as long as it lasts where it is a stream.
    fn count<B>(&self, request: &Request<B>, key: Option<Key>) -> Result<Option<Open>, Status> {
        if let Some((rate, key)) = self.rate.as_ref().zip(key.as_ref()) {
            rate.count(key)?;
        }
        self.streams.open(request.uri().path(), key)
    }
}

/// The token in a request's headers.
/// <https://www.rfc-editor.org/rfc/rfc6750#section-2.1>
fn bearer<B>(request: &Request<B>) -> Option<&[u8]> {
    let value = request.headers().get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then_some(token.trim_ascii())
}

/// Puts the gate before all services.
#[derive(Debug, Clone)]
pub(crate) struct GateLayer(pub(crate) Arc<Gate>);

impl<S> Layer<S> for GateLayer {
    type Service = AtGate<S>;

    fn layer(&self, inner: S) -> AtGate<S> {
        AtGate {
            inner,
            gate: Arc::clone(&self.0),
        }
    }
}

/// All services, behind the gate.
#[derive(Debug, Clone)]
pub(crate) struct AtGate<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S> Service<Request<Body>> for AtGate<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let speaks = Speaks::of(&request);
        let admitted = match Wanted::at(request.uri().path()) {
            Wanted::Open => return Box::pin(self.inner.call(request)),
            Wanted::Counted => self.gate.count_address(&request).map(|stream| Admitted {
                caller: None,
                revoked: None,
                stream,
            }),
            Wanted::Closed(role) => self.gate.admit(&request, role),
        };
        let Admitted {
            caller,
            revoked,
            stream,
        } = match admitted {
            Ok(admitted) => admitted,
            Err(status) => return Box::pin(std::future::ready(Ok(speaks.refusal(status)))),
        };
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        if let Some(revoked) = revoked.clone() {
            // A call lasts no longer than the token it was made with: what still comes from the
            // client ends, what it waits for, and what is still sent to it.
            request = request.map(|body| Body::new(Guarded::request(body, revoked)));
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Some(revoked) = revoked else {
                return Ok(counted(answer.await?, stream));
            };
            tokio::select! {
                biased;
                answer = answer => {
                    let grpc = speaks == Speaks::Grpc;
                    let answer = answer?.map(|body| Body::new(Guarded::answer(body, revoked, grpc)));
                    Ok(counted(answer, stream))
                }
                () = revoked.clone() => Ok(speaks.refusal(guarded::ended())),
            }
        })
    }
}

/// An answer that counts as a stream until it ends, where it is one.
fn counted(answer: Response<Body>, stream: Option<Open>) -> Response<Body> {
    match stream {
        Some(open) => answer.map(|body| Body::new(Counted::new(body, open))),
        None => answer,
    }
}

/// What a client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    Grpc,
    GrpcWeb,
    Json,
}

impl Speaks {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.map_or(&b""[..], HeaderValue::as_bytes);
        if kind.starts_with(b"application/grpc-web") {
            Self::GrpcWeb
        } else if kind.starts_with(b"application/grpc") {
            Self::Grpc
        } else {
            Self::Json
        }
    }

    /// A refusal in the client's own terms.
    pub(super) fn refusal(self, status: Status) -> Response<Body> {
        if self == Self::Json {
            return json::refuse(status).map(Body::new);
        }
        let mut answer = status.into_http();
        if self == Self::GrpcWeb {
            let kind = HeaderValue::from_static("application/grpc-web+proto");
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        answer
    }
}

/// What a refusal adds to the headers of plain HTTP.
pub(super) fn http_headers(status: &Status) -> Option<(http::HeaderName, HeaderValue)> {
    match status.code() {
        Code::Unauthenticated => {
            let how = HeaderValue::from_static("Bearer");
            Some((header::WWW_AUTHENTICATE, how))
        }
        Code::ResourceExhausted | Code::Unavailable => Some((
            header::RETRY_AFTER,
            HeaderValue::from(rate::seconds(status)?),
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn only_what_tells_nothing_is_open() {
        for (path, wanted) in [
            ("/livez", Wanted::Open),
            ("/", Wanted::Open),
            ("/grpc.health.v1.Health/Check", Wanted::Open),
            ("/externalscaler.ExternalScaler/GetMetrics", Wanted::Counted),
            ("/weir.v1.JobService/GetJob", Wanted::Closed(Role::Client)),
            ("/weir.v1.NewService/Call", Wanted::Closed(Role::Client)),
            (
                "/weir.v1.WorkerService/ClaimJob",
                Wanted::Closed(Role::Worker),
            ),
            ("/api/SourceService/PutSource", Wanted::Closed(Role::Client)),
            ("/api/WorkerService/ClaimJob", Wanted::Closed(Role::Worker)),
        ] {
            assert_eq!(Wanted::at(path), wanted, "{path}");
        }
    }

    /// What a call from an address is answered at a gate that lets every caller
    /// through once a second.
    async fn answered(gate: &Arc<Gate>, path: &str, address: [u8; 4], token: &str) -> Code {
        let answers = tower::service_fn(|_: Request<Body>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
        });
        let peer = Peer {
            address: (address, 1).into(),
            called: ([127, 0, 0, 1], 1).into(),
            certified: false,
        };
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .extension(peer);
        let mut served = GateLayer(Arc::clone(gate)).layer(answers);
        let answer = served.call(request.body(Body::empty()).unwrap()).await;
        let status = Status::from_header_map(answer.unwrap().headers());
        status.map_or(Code::Ok, |status| status.code())
    }

    #[tokio::test]
    async fn guesses_of_tokens_are_counted_by_address() {
        let (_replaced, tokens) = watch::channel(Arc::new(
            Tokens::parse(
                format!(
                    "[shop]\nrole = 'client'\nnamespaces = '*'\nsha256 = '{}'",
                    hex::encode(Sha256::digest("weir_good"))
                )
                .as_bytes(),
            )
            .unwrap(),
        ));
        let gate = Arc::new(Gate {
            tokens: Some(tokens),
            needs_certificate: false,
            rate: Some(Rate::new(NonZeroU32::MIN)),
            streams: Arc::new(Streams::new(NonZeroU32::MIN).unwrap()),
        });
        let path = "/weir.v1.JobService/GetJob";
        let (one, other) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let call = async |address, token| answered(&gate, path, address, token).await;
        assert_eq!(call(one, "weir_guess").await, Code::Unauthenticated);
        assert_eq!(call(one, "weir_other").await, Code::ResourceExhausted);
        assert_eq!(call(other, "weir_guess").await, Code::Unauthenticated);
        // Guesses do not shut out the one who knows it.
        assert_eq!(call(one, "weir_good").await, Code::Ok);
    }

    #[tokio::test]
    async fn what_is_open_and_asks_the_database_is_counted_by_address() {
        let gate = Arc::new(Gate {
            tokens: None,
            needs_certificate: true,
            rate: Some(Rate::new(NonZeroU32::MIN)),
            streams: Arc::new(Streams::new(NonZeroU32::MIN).unwrap()),
        });
        let call = async |path, address| answered(&gate, path, address, "").await;
        let scaler = "/externalscaler.ExternalScaler/GetMetrics";
        let (one, other) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        assert_eq!(call(scaler, one).await, Code::Ok);
        assert_eq!(call(scaler, one).await, Code::ResourceExhausted);
        assert_eq!(call(scaler, other).await, Code::Ok);
        // A probe is never turned away, and what is closed is not opened by it.
        let health = "/grpc.health.v1.Health/Check";
        assert_eq!(call(health, one).await, Code::Ok);
        let closed = "/weir.v1.JobService/GetJob";
        assert_eq!(call(closed, other).await, Code::Unauthenticated);
    }

    #[test]
    fn a_token_is_read_in_any_spelling_of_its_scheme() {
        for (value, token) in [
            ("Bearer weir_a", Some(&b"weir_a"[..])),
            ("bearer  weir_a ", Some(b"weir_a")),
            ("Basic weir_a", None),
            ("weir_a", None),
            ("", None),
        ] {
            let request = Request::builder().header(header::AUTHORIZATION, value);
            assert_eq!(bearer(&request.body(()).unwrap()), token, "{value}");
        }
    }
}
