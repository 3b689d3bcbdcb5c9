//! Where spans are asked for.

use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanBuilder, SpanKind, TraceFlags, Tracer as _, TracerProvider as _},
};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use weir_proto::trace::TraceContext;

use crate::{
    TraceConfig,
    export::Exporter,
    span::{Span, remote, span_context, trace_context},
};

/// How long the last spans may take to be sent when a process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Makes the spans of one coordinator or one worker. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<On>>);

struct On {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracer").field(&self.0.is_some()).finish()
    }
}

impl Tracer {
    /// Records nothing.
    pub const OFF: Self = Self(None);

    /// Exports the spans of `service`, of which this is the `instance`, as the
    /// settings say; is off where they name no receiver. To be called within a
    /// runtime, which the exporter then uses.
    pub fn start(
        service: &'static str,
        instance: &str,
        config: &TraceConfig,
    ) -> anyhow::Result<Self> {
        let Some(endpoint) = &config.otlp_endpoint else {
            return Ok(Self::OFF);
        };
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance.to_owned()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(sampler(config.trace_ratio))
            .with_batch_exporter(Exporter::new(endpoint)?)
            .build();
        let tracer = provider.tracer("weir");
        Ok(Self(Some(Arc::new(On { provider, tracer }))))
    }

    /// Whether a span with this parent would be recorded.
    pub fn records(&self, parent: Option<&TraceContext>) -> bool {
        self.0.is_some() && parent.is_some_and(|parent| parent.sampled)
    }

    /// A span that takes part in a trace. None where the trace is not sampled,
    /// or is none.
    pub fn child<A: IntoIterator<Item = KeyValue>>(
        &self,
        parent: Option<&TraceContext>,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        attributes: impl FnOnce() -> A,
    ) -> Span {
        self.begin(parent, || {
            SpanBuilder::from_name(name)
                .with_kind(kind)
                .with_attributes(attributes())
        })
    }

    /// A span that began at an earlier moment.
    pub fn child_since<A: IntoIterator<Item = KeyValue>>(
        &self,
        parent: Option<&TraceContext>,
        name: &'static str,
        kind: SpanKind,
        start: SystemTime,
        attributes: impl FnOnce() -> A,
    ) -> Span {
        self.begin(parent, || {
            SpanBuilder::from_name(name)
                .with_kind(kind)
                .with_start_time(start)
                .with_attributes(attributes())
        })
    }

    /// A span of something done for several at once: the child of the first of
    /// these that is sampled, and linked to all others.
    pub fn shared<A: IntoIterator<Item = KeyValue>>(
        &self,
        parents: impl IntoIterator<Item = TraceContext>,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        attributes: impl FnOnce() -> A,
    ) -> Span {
        if self.0.is_none() {
            return Span::NONE;
        }
        let mut sampled = parents.into_iter().filter(|parent| parent.sampled);
        let first = sampled.next();
        self.begin(first.as_ref(), || {
            let links = sampled
                .map(|other| Link::with_context(span_context(&other, TraceFlags::SAMPLED)))
                .collect();
            SpanBuilder::from_name(name)
                .with_kind(kind)
                .with_links(links)
                .with_attributes(attributes())
        })
    }

    /// The span of something that causes jobs, and the context that these get:
    /// within the trace of its `caller`, or within one that begins here. Where
    /// nothing is recorded, the context is the caller's, or that of a trace
    /// known to logs alone.
    pub fn enter<A: IntoIterator<Item = KeyValue>>(
        &self,
        caller: Option<TraceContext>,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        attributes: impl FnOnce() -> A,
    ) -> (Span, TraceContext) {
        let on = match (&self.0, caller) {
            (Some(on), None | Some(TraceContext { sampled: true, .. })) => on,
            (_, Some(caller)) => return (Span::NONE, caller),
            (None, None) => return (Span::NONE, unrecorded()),
        };
        let parent = caller.as_ref().map_or_else(Context::new, remote);
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_attributes(attributes());
        let span = on.tracer.build_with_context(builder, &parent);
        let context = trace_context(opentelemetry::trace::Span::span_context(&span));
        let context = context.or(caller).unwrap_or_else(unrecorded);
        if context.sampled {
            (Span::of(span), context)
        } else {
            (Span::NONE, context)
        }
    }

    fn begin(&self, parent: Option<&TraceContext>, builder: impl FnOnce() -> SpanBuilder) -> Span {
        match (&self.0, parent) {
            (Some(on), Some(parent)) if parent.sampled => {
                Span::of(on.tracer.build_with_context(builder(), &remote(parent)))
            }
            _ => Span::NONE,
        }
    }

    /// Sends what is left, for a few seconds at most.
    pub async fn shutdown(&self) {
        let Some(on) = self.0.clone() else { return };
        // It blocks, and its thread needs the runtime meanwhile.
        let flushed =
            tokio::task::spawn_blocking(move || on.provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if !matches!(flushed.await, Ok(Ok(()))) {
            tracing::debug!("The last spans could not be sent in time.");
        }
    }
}

/// A caller that has a trace decides for it; of those that begin here, this
/// share is recorded.
fn sampler(ratio: f64) -> Sampler {
    Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)))
}

/// A new trace that is not recorded.
fn unrecorded() -> TraceContext {
    TraceContext {
        trace_id: rand::random(),
        span_id: rand::random(),
        sampled: false,
    }
}

#[cfg(test)]
mod tests;
