//! The spans of calls.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::future::Either;
use http::{HeaderMap, HeaderValue, Request, Response};
use tonic::Code;
use tower::{Layer, Service};
use weir_proto::trace::TRACEPARENT;
use weir_telemetry::{KeyValue, Span, SpanKind, TraceContext, Tracer};

/// Gives each call a span, and the call its context as the header
/// `traceparent`, whatever header it came with.
///
/// Calls of workers have one only within a trace that is sampled, so that
/// polling makes none; a claim and a stream of batches have the spans of their
/// jobs.
#[derive(Debug, Clone)]
pub(crate) struct SpanLayer {
    tracer: Tracer,
}

impl SpanLayer {
    pub(crate) fn new(tracer: Tracer) -> Self {
        Self { tracer }
    }
}

impl<S> Layer<S> for SpanLayer {
    type Service = Spans<S>;

    fn layer(&self, inner: S) -> Spans<S> {
        Spans {
            inner,
            tracer: self.tracer.clone(),
        }
    }
}

/// What [`SpanLayer`] makes of a service.
#[derive(Debug, Clone)]
pub(crate) struct Spans<S> {
    inner: S,
    tracer: Tracer,
}

impl<S> Spans<S> {
    /// The span of a call, and the header for it unless it has that already.
    fn enter(&self, path: &str, headers: &HeaderMap) -> (Span, Option<HeaderValue>) {
        let method = path.strip_prefix("/weir.v1.").unwrap_or_default();
        let caller = caller(headers);
        let of_worker = method.strip_prefix("WorkerService/");
        let has_others = matches!(of_worker, Some("ClaimJob" | "StreamBatches"));
        if method.is_empty()
            || has_others
            || of_worker.is_some() && !self.tracer.records(caller.as_ref())
        {
            return (Span::NONE, None);
        }
        let name = path.trim_start_matches('/');
        let (span, context) = self
            .tracer
            .enter(caller, name.to_owned(), SpanKind::Server, || {
                [
                    KeyValue::new("rpc.system.name", "grpc"),
                    KeyValue::new("rpc.method", name.to_owned()),
                ]
            });
        let header = (caller != Some(context)).then(|| context.to_string());
        (
            span,
            header.and_then(|text| HeaderValue::try_from(text).ok()),
        )
    }
}

type Answering<F> = Either<F, Pin<Box<dyn Future<Output = <F as Future>::Output> + Send>>>;

impl<S, B, A> Service<Request<B>> for Spans<S>
where
    S: Service<Request<B>, Response = Response<A>, Future: Send + 'static, Error: Send>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let (span, header) = self.enter(request.uri().path(), request.headers());
        if let Some(header) = header {
            request.headers_mut().insert(TRACEPARENT, header);
        }
        let answer = self.inner.call(request);
        if !span.is_recorded() {
            return Either::Left(answer);
        }
        Either::Right(Box::pin(async move {
            let answer = span.around(answer).await;
            if let Ok(response) = &answer {
                tell_status(&span, response.headers());
            }
            answer
        }))
    }
}

/// Says how a call went. A success has its status after the answer, a failure
/// before it.
fn tell_status(span: &Span, headers: &HeaderMap) {
    let code = headers
        .get("grpc-status")
        .map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()));
    span.set(|| {
        [KeyValue::new(
            "rpc.response.status_code",
            format!("{code:?}"),
        )]
    });
    // Of the others the caller is to blame.
    if matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    ) {
        span.fail(code.description());
    }
}

/// The trace context that a call came with, or that [`SpanLayer`] gave it.
pub(super) fn caller(headers: &HeaderMap) -> Option<TraceContext> {
    TraceContext::read(headers.get(TRACEPARENT)?.to_str().ok()?)
}
