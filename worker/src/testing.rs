//! What the tests of several rooms share: an embedder whose every call the test
//! answers, and waits that end.

use std::{
    future::Future,
    io,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use clap::Parser as _;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::transport::Uri;
use tracing::{
    Dispatch,
    subscriber::{DefaultGuard, NoSubscriber},
};
use weir_embedder::{EmbedError, Embedder, Embedding, Limits, Probe, Profile};

use crate::config::Config;

type Answer = Result<Vec<Embedding>, EmbedError>;

/// Long enough for any machine; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Awaits an event that must come.
pub(crate) async fn soon<T>(event: impl Future<Output = T>) -> T {
    timeout(PATIENCE, event)
        .await
        .expect("what the test waits for did not happen")
}

/// The settings of a worker, for one model, "model", unless others are named.
pub(crate) fn config(coordinator: &Uri, settings: &[&str]) -> (Config, Vec<Profile>) {
    let coordinator = format!("--coordinator={coordinator}");
    let mut args = vec!["weir-worker", &coordinator, "--worker-id=worker"];
    if !settings.iter().any(|it| it.starts_with("--model=")) {
        args.push("--model=model");
    }
    let config = Config::try_parse_from(args.iter().chain(settings)).unwrap();
    let models = config.models().unwrap();
    (config, models)
}

/// The vector of a text, made of nothing but the text.
pub(crate) fn vector(text: &str) -> Vec<f32> {
    let sum: u32 = text.bytes().map(u32::from).sum();
    vec![text.len() as f32, sum as f32]
}

/// The same, as it goes over the wire.
pub(crate) fn packed(text: &str) -> Vec<u8> {
    vector(text).iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// An embedder that hands each call to the test and waits for its answer.
pub(crate) struct FakeEmbedder(mpsc::UnboundedSender<EmbedCall>);

/// A call that waits for its answer.
pub(crate) struct EmbedCall {
    pub(crate) texts: Vec<String>,
    answer: oneshot::Sender<Answer>,
}

/// The calls as they come.
pub(crate) struct EmbedCalls(mpsc::UnboundedReceiver<EmbedCall>);

impl FakeEmbedder {
    pub(crate) fn new() -> (Self, EmbedCalls) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), EmbedCalls(receiver))
    }
}

#[async_trait]
impl Embedder for FakeEmbedder {
    async fn embed(&self, texts: &[&str]) -> Answer {
        let (answer, answered) = oneshot::channel();
        let texts = texts.iter().map(|&text| text.to_owned()).collect();
        let gone = "the test has ended";
        assert!(self.0.send(EmbedCall { texts, answer }).is_ok(), "{gone}");
        answered.await.expect(gone)
    }

    async fn probe(&self, _: usize) -> Result<Probe, EmbedError> {
        let vectors = self.embed(&["probe"]).await?;
        Ok(Probe {
            dimension: vectors[0].as_ref().map_or(0, Vec::len),
            limits: Limits::default(),
        })
    }
}

impl EmbedCalls {
    pub(crate) async fn next(&mut self) -> EmbedCall {
        self.next_within(PATIENCE).await
    }

    pub(crate) async fn next_within(&mut self, patience: Duration) -> EmbedCall {
        let call = timeout(patience, self.0.recv()).await;
        call.expect("the embedder was not called")
            .expect("the embedder is gone")
    }

    /// Whether no call came that was not taken.
    pub(crate) fn none(&mut self) -> bool {
        self.0.try_recv().is_err()
    }

    /// Returns the next call, which is a probe.
    pub(crate) async fn probe(&mut self) -> EmbedCall {
        let call = self.next().await;
        assert_eq!(call.texts, ["probe"]);
        call
    }

    /// Answers every call from now on with the vectors of its texts.
    pub(crate) fn answer_all(self) {
        self.answer_with(EmbedCall::succeed);
    }

    /// Answers every call from now on.
    pub(crate) fn answer_with(mut self, answer: impl Fn(EmbedCall) + Send + 'static) {
        tokio::spawn(async move {
            while let Some(call) = self.0.recv().await {
                answer(call);
            }
        });
    }
}

impl EmbedCall {
    pub(crate) fn succeed(self) {
        let vectors = self.texts.iter().map(|text| Ok(vector(text))).collect();
        self.answer(Ok(vectors));
    }

    pub(crate) fn refuse(self, reason: &str) {
        let reason = reason.to_owned();
        self.answer(Err(EmbedError::Input {
            reason,
            culprit: None,
        }));
    }

    pub(crate) fn break_down(self, reason: &str) {
        let reason = reason.to_owned();
        self.answer(Err(EmbedError::Embedder {
            reason,
            retry_after: None,
        }));
    }

    pub(crate) fn answer(self, answer: Answer) {
        // A caller that was cancelled takes no answer.
        self.answer.send(answer).ok();
    }

    /// Waits until the caller gives the call up.
    pub(crate) async fn cancelled(mut self) {
        soon(self.answer.closed()).await;
    }
}

/// What this thread logs at info and above while this lives. The tasks of a
/// `tokio::test` run on its thread.
pub(crate) struct Logs {
    buffer: Buffer,
    _guard: DefaultGuard,
}

/// While there is one subscriber alone, tracing asks that of the thread which comes
/// by a line first whether the line is wanted, and keeps to the answer: a test that
/// logs nothing would decide for one that does. So there are always two.
static OTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::default()));

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Logs {
    pub(crate) fn capture() -> Self {
        LazyLock::force(&OTHER);
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self {
            buffer,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    pub(crate) fn text(&self) -> String {
        let bytes = self.buffer.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8(bytes.clone()).unwrap()
    }
}

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
