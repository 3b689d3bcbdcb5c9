//! One call to the embedder, which ends in time and without a panic.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc};

use futures::FutureExt as _;
use tokio::time::{Duration, Instant, timeout};
use tracing::info;
use weir_embedder::judge::{CallId, CallSize, estimate_tokens};

use super::{
    Endpoint,
    request::{Sent, Text},
    settle::PROBE_INTERVAL,
    spans,
};
use weir_embedder::{EmbedError, Embedding, Probe};

/// How much longer than it may an embedder is waited for that does not itself
/// say that it took too long: it knows better what to do about it.
const BACKSTOP: Duration = Duration::from_millis(50);

/// What a call is for.
pub(super) enum Work {
    /// To embed these texts.
    Embed(Sent),
    /// To see whether the embedder embeds a text of about so many bytes.
    Probe(usize),
}

/// How a call ended.
pub(super) struct Ended {
    pub(super) id: CallId,
    pub(super) size: CallSize,
    /// As many calls as allowed were under way when it began.
    pub(super) saturated: bool,
    /// `None` if it was given up because the embedder answered others: that
    /// proves nothing.
    pub(super) answer: Option<Result<Answered, EmbedError>>,
}

/// What an embedder answers.
pub(super) enum Answered {
    /// A vector for each text, where there is one that can be used.
    Vectors(Vec<Embedding>),
    /// What it said of itself.
    Probe(Probe),
}

impl Endpoint {
    /// Sends a call when the quotas allow it. `saturated`: as many calls as
    /// allowed are under way with it.
    pub(super) async fn call(self: Arc<Self>, id: CallId, work: Work, saturated: bool) -> Ended {
        let size = match &work {
            Work::Embed(sent) => size_of(&sent.texts),
            Work::Probe(bytes) => CallSize {
                texts: 1,
                tokens: estimate_tokens(*bytes),
            },
        };
        self.rates.wait(size).await;
        let answer = match work {
            Work::Probe(bytes) => Some(self.probe(bytes, size).await.map(Answered::Probe)),
            Work::Embed(sent) => {
                let answer = self.embed_texts(sent, size).await;
                answer.map(|answer| answer.map(Answered::Vectors))
            }
        };
        Ended {
            id,
            size,
            saturated,
            answer,
        }
    }

    /// Probes the embedder. While that is not answered it is probed beside it, so
    /// that one which has lost a request is found fit as soon as it is back. The
    /// first probe goes on meanwhile: an embedder that loads its model may take as
    /// long as any call.
    async fn probe(&self, bytes: usize, size: CallSize) -> Result<Probe, EmbedError> {
        let mut first = pin!(self.bounded(self.embedder.probe(bytes)));
        if let Ok(answer) = timeout(PROBE_INTERVAL, &mut first).await {
            return answer;
        }
        let others = async {
            loop {
                self.rates.wait(size).await;
                let other = self.bounded(self.embedder.probe(bytes));
                if let Ok(answer) = timeout(PROBE_INTERVAL, other).await {
                    return answer;
                }
            }
        };
        tokio::select! {
            biased;
            answer = first => answer,
            answer = others => answer,
        }
    }

    /// Sends texts. Returns nothing if the embedder was silent while it answered
    /// others.
    async fn embed_texts(
        &self,
        sent: Sent,
        size: CallSize,
    ) -> Option<Result<Vec<Embedding>, EmbedError>> {
        let patience = self.state().patience.with(size, sent.retries);
        let span = self.spans.begin(sent.traces, size, sent.retries);
        let began = Instant::now();
        let texts: Vec<&str> = sent.texts.iter().map(Text::as_str).collect();
        let answer = tokio::select! {
            biased;
            answer = span.around(self.bounded(self.embedder.embed(&texts))) => Some(answer),
            () = self.answers_others(patience) => None,
        };
        let took = began.elapsed();
        let is_silent = answer.is_none();
        let answer = match answer {
            // A vector must never meet another's chunk, whatever an embedder does.
            Some(Ok(vectors)) if vectors.len() != texts.len() => Err(EmbedError::Transient {
                reason: format!(
                    "the embedder answered {} vectors for {} texts",
                    vectors.len(),
                    texts.len()
                ),
            }),
            Some(answer) => answer,
            None => {
                let (silent_ms, texts) = (took.as_millis() as u64, texts.len());
                info!(
                    silent_ms,
                    texts,
                    "A call was not answered while the embedder answered a probe; its texts are \
                     sent again."
                );
                Err(EmbedError::Timeout {
                    reason: "the embedder did not answer this call, but a probe".to_owned(),
                })
            }
        };
        if answer.is_ok() {
            self.state().patience.answered(size, took);
        }
        spans::answered(&span, &answer);
        self.metrics.called(&answer, size, took.as_secs_f64());
        (!is_silent).then_some(answer)
    }

    /// Has a call end in time, and without a panic.
    pub(super) async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, EmbedError>>,
    ) -> Result<T, EmbedError> {
        let limit = self.settings.timeout;
        let call = AssertUnwindSafe(call).catch_unwind();
        match timeout(limit + BACKSTOP, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(EmbedError::Transient {
                reason: "the embedder panicked; its worker's log has the message".to_owned(),
            }),
            Err(_) => {
                let limit = humantime::format_duration(limit);
                Err(EmbedError::Timeout {
                    reason: format!("the embedder took longer than embed_timeout ({limit})"),
                })
            }
        }
    }
}

/// The size of a call with these texts.
fn size_of(texts: &[Text]) -> CallSize {
    let tokens = texts
        .iter()
        .map(|text| estimate_tokens(text.as_str().len()));
    CallSize {
        texts: texts.len(),
        tokens: tokens.sum(),
    }
}
