//! The spans of parts, and of calls to the embedder, these by the conventions for
//! generative AI: <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>.

use weir_embedder::{EmbedError, EmbedderKind, Embedding, judge::CallSize};
use weir_telemetry::{KeyValue, Span, SpanKind, TraceContext, Tracer};

use super::request::Answer;
use crate::part::Part;

/// Makes the spans of what is done with one model.
#[derive(Debug, Default)]
pub(crate) struct CallSpans {
    tracer: Tracer,
    provider: &'static str,
    model: String,
}

impl CallSpans {
    pub(crate) fn new(tracer: Tracer, embedder: EmbedderKind, model: &str) -> Self {
        Self {
            tracer,
            provider: embedder.as_str(),
            model: model.to_owned(),
        }
    }

    /// The span of a part, from when the endpoint gets it until it has its outcome.
    pub(super) fn part(&self, part: &Part, trace: Option<TraceContext>) -> Span {
        let kind = SpanKind::Internal;
        self.tracer.child(trace.as_ref(), "batch", kind, || {
            [
                KeyValue::new("weir.batch.seq", part.seq),
                KeyValue::new("weir.chunks", part.chunks.len() as i64),
            ]
        })
    }

    /// The span of a call for the jobs of these traces: a child of one, linked
    /// to the others. `retries` counts the calls before it with the same texts.
    pub(super) fn begin(&self, traces: Vec<TraceContext>, size: CallSize, retries: u32) -> Span {
        if traces.is_empty() {
            return Span::NONE;
        }
        let jobs = traces.len() as i64;
        let name = format!("embeddings {}", self.model);
        self.tracer.shared(traces, name, SpanKind::Client, || {
            [
                KeyValue::new("gen_ai.operation.name", "embeddings"),
                KeyValue::new("gen_ai.provider.name", self.provider),
                KeyValue::new("gen_ai.request.model", self.model.clone()),
                // As the worker estimates them; no provider is asked to count.
                KeyValue::new("gen_ai.usage.input_tokens", size.tokens as i64),
                KeyValue::new("weir.texts", size.texts as i64),
                KeyValue::new("weir.retries", i64::from(retries)),
                KeyValue::new("weir.traces", jobs),
            ]
        })
    }
}

/// Says what became of a part.
pub(super) fn embedded(answer: &Answer) {
    let span = &answer.span;
    span.set(|| {
        let result = &answer.result;
        [
            KeyValue::new("weir.chunks.embedded", result.embedded.len() as i64),
            KeyValue::new("weir.chunks.rejected", result.rejected.len() as i64),
        ]
    });
    if let Some(reason) = &answer.failure
        && span.is_recorded()
    {
        span.fail(reason.clone());
    }
}

/// Says how a call went.
pub(super) fn answered(span: &Span, answer: &Result<Vec<Embedding>, EmbedError>) {
    if !span.is_recorded() {
        return;
    }
    match answer {
        Ok(vectors) => span.set(|| {
            let dimension = vectors.iter().flatten().next().map_or(0, Vec::len);
            [KeyValue::new(
                "gen_ai.embeddings.dimension.count",
                dimension as i64,
            )]
        }),
        Err(error) => {
            let kind = match error {
                EmbedError::TooLong { .. } => "too_long",
                EmbedError::TooMany { .. } => "too_many",
                EmbedError::Input { .. } => "input",
                EmbedError::Overloaded { .. } => "overloaded",
                EmbedError::Embedder { .. } => "embedder",
                EmbedError::Timeout { .. } => "timeout",
                EmbedError::Broken { .. } | EmbedError::Transient { .. } => "transient",
            };
            span.set(|| [KeyValue::new("error.type", kind)]);
            span.fail(error.to_string());
        }
    }
}
