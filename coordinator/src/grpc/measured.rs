//! Counts and times every call of our services, in whatever way it came: gRPC,
//! gRPC-Web or JSON.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use anyhow::Context as _;
use futures::{FutureExt as _, TryFutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use prost_reflect::DescriptorPool;
use tonic::{
    Code,
    body::Body,
    codegen::{Body as HttpBody, Bytes, Service},
};
use tower::Layer;
use weir_proto::v1::FILE_DESCRIPTOR_SET;

use super::limits::relabel;
use crate::metrics::{Call, Metrics, Rpc};

/// Where a call says how it ended.
const STATUS: &str = "grpc-status";

/// Wraps services so that their calls are measured.
#[derive(Debug, Clone)]
pub(crate) struct Measure {
    /// By path. A path that is not ours is nobody's to name a metric after.
    methods: Arc<HashMap<String, Arc<Rpc>>>,
}

impl Measure {
    /// Makes the metrics of all methods of our services.
    pub(crate) fn new(metrics: &Metrics) -> anyhow::Result<Self> {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).context("our own descriptors")?;
        let methods = pool.services().flat_map(|service| {
            let methods = service.methods().map(|method| {
                let path = format!("/{}/{}", service.full_name(), method.name());
                let name = format!("{}/{}", service.name(), method.name());
                (path, Arc::new(metrics.rpc(&name)))
            });
            methods.collect::<Vec<_>>()
        });
        Ok(Self {
            methods: Arc::new(methods.collect()),
        })
    }
}

impl<S> Layer<S> for Measure {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured {
            inner,
            methods: self.methods.clone(),
        }
    }
}

/// A service whose calls are measured.
#[derive(Debug, Clone)]
pub(crate) struct Measured<S> {
    inner: S,
    methods: Arc<HashMap<String, Arc<Rpc>>>,
}

impl<S, B> Service<Request<B>> for Measured<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = self.methods.get(request.uri().path()).map(Rpc::begin);
        let answer = self.inner.call(request);
        let Some(mut call) = call else {
            return answer.boxed();
        };
        let measured = answer.map_ok(|response| {
            // With the code that the caller gets.
            let response = relabel(response);
            note(response.headers(), &mut call);
            response.map(|inner| Body::new(MeasuredBody { inner, call }))
        });
        measured.boxed()
    }
}

/// An answer on its way. The call is over when it has been sent, or dropped.
struct MeasuredBody {
    inner: Body,
    call: Call,
}

impl HttpBody for MeasuredBody {
    type Data = Bytes;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            note(trailers, &mut self.call);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Notes the status, if it is here.
fn note(headers: &HeaderMap, call: &mut Call) {
    if let Some(status) = headers.get(STATUS) {
        call.status(Code::from_bytes(status.as_bytes()) as usize);
    }
}
