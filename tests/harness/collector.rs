//! An OTLP receiver: it keeps the spans that processes send.

use std::{net::SocketAddr, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{self as otlp, status::StatusCode},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time};
use tonic::{
    Request, Response, Status,
    codec::CompressionEncoding,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    PATIENCE,
    traces::{Span, SpanRef, Trace},
};

/// A running receiver; it ends with this value.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Arc<watch::Sender<Vec<Span>>>,
    server: JoinHandle<()>,
}

impl Collector {
    /// Starts one on a free port of this machine.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let spans = Arc::new(watch::Sender::new(Vec::new()));
        let service = TraceServiceServer::new(Receiver(Arc::clone(&spans)))
            .accept_compressed(CompressionEncoding::Gzip);
        let serving = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(async move {
            serving.await.expect("the receiver serves");
        });
        Self {
            address,
            spans,
            server,
        }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many spans have come, of any trace.
    pub fn received(&self) -> usize {
        self.spans.borrow().len()
    }

    /// Forgets what has come.
    pub fn clear(&self) {
        self.spans.send_modify(Vec::clear);
    }

    /// What has come of a trace so far.
    pub fn trace(&self, trace_id: &str) -> Trace {
        Trace::of(&self.spans.borrow(), trace_id)
    }

    /// Waits until what has come of a trace is enough.
    pub async fn wait_for(&self, trace_id: &str, enough: impl Fn(&Trace) -> bool) -> Trace {
        let mut spans = self.spans.subscribe();
        let found = spans.wait_for(|spans| enough(&Trace::of(spans, trace_id)));
        let spans = time::timeout(PATIENCE, found)
            .await
            .unwrap_or_else(|_| panic!("not enough came of the trace:\n{}", self.trace(trace_id)));
        Trace::of(&spans.expect("the sender is here"), trace_id)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Receiver(Arc<watch::Sender<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut came = Vec::new();
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = value(&attributes, "service.name").unwrap_or_default();
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                came.push(read(&service, span));
            }
        }
        self.0.send_modify(|spans| spans.extend(came));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn read(service: &str, span: otlp::Span) -> Span {
    let status = span.status.unwrap_or_default();
    let attributes = span
        .attributes
        .into_iter()
        .map(|attribute| (attribute.key, words(attribute.value)))
        .collect();
    Span {
        id: SpanRef {
            trace_id: hex(&span.trace_id),
            span_id: hex(&span.span_id),
        },
        parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
        links: span
            .links
            .into_iter()
            .map(|link| SpanRef {
                trace_id: hex(&link.trace_id),
                span_id: hex(&link.span_id),
            })
            .collect(),
        service: service.to_owned(),
        name: span.name,
        start_us: span.start_time_unix_nano / 1_000,
        duration_us: span
            .end_time_unix_nano
            .saturating_sub(span.start_time_unix_nano)
            / 1_000,
        attributes,
        failed: status.code() == StatusCode::Error,
    }
}

fn value(attributes: &[KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(words(attribute.value.clone()))
}

fn words(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(half.into(), 16).expect("four bits are a digit");
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(digit).collect()
}
