//! One call to the embedder, which ends in time and without a panic.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio::time::{Instant, timeout};
use weir_telemetry::TraceContext;

use super::{
    Ended, Endpoint,
    queue::{Call, Text, size_of},
    spans,
};
use crate::embedder::EmbedError;

/// How much longer than it may an embedder is waited for that does not itself
/// say that it took too long: it knows better what to do about it.
const BACKSTOP: Duration = Duration::from_millis(50);

impl Endpoint {
    /// Sends a call when the quotas allow it. `saturated`: as many calls as
    /// allowed are under way with it. It is recorded in these traces, as what
    /// was tried so many times before.
    pub(super) async fn call(
        self: Arc<Self>,
        id: u64,
        call: Call,
        saturated: bool,
        (traces, retries): (Vec<TraceContext>, u32),
    ) -> Ended {
        let size = size_of(&call.texts);
        self.rates.wait(size).await;
        let span = self.spans.begin(traces, &call, retries);
        let began = Instant::now();
        let answer = {
            let texts: Vec<&str> = call.texts.iter().map(Text::as_str).collect();
            let limit = self.settings.timeout;
            let answer = AssertUnwindSafe(span.around(self.embedder.embed(&texts))).catch_unwind();
            let answer = match timeout(limit + BACKSTOP, answer).await {
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
            };
            // A vector must never meet another's chunk, whatever an embedder does.
            answer.and_then(|vectors| match vectors.len() {
                got if got == texts.len() => Ok(vectors),
                got => Err(EmbedError::Transient {
                    reason: format!(
                        "the embedder answered {got} vectors for {} texts",
                        texts.len()
                    ),
                }),
            })
        };
        spans::answered(&span, &answer);
        let seconds = began.elapsed().as_secs_f64();
        let carried = (size.texts, size.tokens);
        self.metrics.called(&answer, carried, seconds);
        let down = match &answer {
            Err(EmbedError::Transient { .. }) => self.fails_a_probe().await,
            _ => None,
        };
        Ended {
            id,
            call,
            answer,
            down,
            saturated,
        }
    }

    /// Why the embedder does not answer a probe, if it does not. Asked after a
    /// call that broke: one embedder dies of a text and is there again, another
    /// is gone, and breaks every connection that is made to it.
    async fn fails_a_probe(&self) -> Option<String> {
        match timeout(self.settings.timeout, self.embedder.probe()).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the embedder does not answer a probe in time".to_owned()),
        }
    }
}
