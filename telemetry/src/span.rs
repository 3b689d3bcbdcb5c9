//! A span, or none.

use std::{borrow::Cow, future::Future, time::SystemTime};

use opentelemetry::{
    Context, KeyValue,
    context::FutureExt as _,
    trace::{SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use weir_proto::trace::TraceContext;

/// A span that is being recorded, or none. It ends when it is dropped.
#[derive(Debug, Clone, Default)]
pub struct Span(Option<Context>);

impl Span {
    /// No span: whatever is said of it is not even asked for.
    pub const NONE: Self = Self(None);

    pub(crate) fn of(span: opentelemetry_sdk::trace::Span) -> Self {
        Self(Some(Context::new().with_span(span)))
    }

    /// The span that the caller runs within, by [`Self::around`].
    pub fn current() -> Self {
        Context::map_current(|context| Self(context.has_active_span().then(|| context.clone())))
    }

    /// Whether it is recorded.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Adds attributes, which are made only for a span that is recorded.
    pub fn set<A: IntoIterator<Item = KeyValue>>(&self, attributes: impl FnOnce() -> A) {
        if let Some(context) = &self.0 {
            context.span().set_attributes(attributes());
        }
    }

    /// Says that what the span is of failed, and why: words for a person,
    /// without any text that was to be embedded.
    pub fn fail(&self, reason: impl Into<Cow<'static, str>>) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(reason));
        }
    }

    /// Adds something that happened at a moment.
    pub fn event<A: IntoIterator<Item = KeyValue>>(
        &self,
        name: &'static str,
        attributes: impl FnOnce() -> A,
    ) {
        if let Some(context) = &self.0 {
            let attributes = attributes().into_iter().collect();
            context.span().add_event(name, attributes);
        }
    }

    /// What its children are asked for with, here or elsewhere.
    pub fn context(&self) -> Option<TraceContext> {
        let context = self.0.as_ref()?;
        trace_context(context.span().span_context())
    }

    /// Ends it at a moment other than now.
    pub fn end_at(self, end: SystemTime) {
        if let Some(context) = &self.0 {
            context.span().end_with_timestamp(end);
        }
    }

    /// Runs a future within this span, as [`Self::current`] finds it.
    pub async fn around<F: Future>(&self, future: F) -> F::Output {
        match &self.0 {
            Some(context) => future.with_context(context.clone()).await,
            None => future.await,
        }
    }
}

/// A parent that another process, or an earlier call, has.
pub(crate) fn remote(parent: &TraceContext) -> Context {
    let flags = if parent.sampled {
        TraceFlags::SAMPLED
    } else {
        TraceFlags::NOT_SAMPLED
    };
    Context::new().with_remote_span_context(span_context(parent, flags))
}

pub(crate) fn span_context(parent: &TraceContext, flags: TraceFlags) -> SpanContext {
    SpanContext::new(
        TraceId::from(parent.trace_id.get()),
        SpanId::from(parent.span_id.get()),
        flags,
        true,
        TraceState::NONE,
    )
}

pub(crate) fn trace_context(span: &SpanContext) -> Option<TraceContext> {
    Some(TraceContext {
        trace_id: u128::from_be_bytes(span.trace_id().to_bytes())
            .try_into()
            .ok()?,
        span_id: u64::from_be_bytes(span.span_id().to_bytes())
            .try_into()
            .ok()?,
        sampled: span.is_sampled(),
    })
}
