//! Traces: what a job costs its time on, as spans of OpenTelemetry, exported by
//! OTLP. The only crate that knows OpenTelemetry.
//!
//! Nothing here is global: each coordinator and each worker has a [`Tracer`] of
//! its own, also when they share a process. A span is asked for with the trace
//! context that it belongs to, which is kept and sent as a `traceparent`. Where
//! that is not sampled, or nothing is exported, the span is none: it costs a
//! comparison and allocates nothing.

mod config;
mod export;
mod span;
mod tracer;

pub use config::TraceConfig;
pub use opentelemetry::{KeyValue, trace::SpanKind};
pub use span::Span;
pub use tracer::Tracer;
pub use weir_proto::trace::TraceContext;
