//! An embedding server for tests: it speaks the protocols of Ollama, old and
//! new, of OpenAI and of Text Embeddings Inference, its vectors are a pure
//! function of the text, it remembers every call, and it is as rude as a test
//! wants.

mod answer;
mod dialect;
mod door;
mod forward;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{self, Instant},
};
use tokio_rustls::TlsAcceptor;

use self::door::{Door, Wire};
pub use self::forward::ForwardProxy;
use crate::{PATIENCE, certificates::Issued};

/// Numbers in a vector.
pub const DIMENSION: usize = 16;

/// The vector of a text: its SHA-256 as sixteen numbers, of length 1.
pub fn expected_vector(text: &str) -> Vec<f32> {
    let numbers: Vec<f32> = Sha256::digest(text)
        .chunks_exact(2)
        .map(|pair| f32::from(i16::from_le_bytes([pair[0], pair[1]])) + 0.5)
        .collect();
    let length = numbers.iter().map(|x| x * x).sum::<f32>().sqrt();
    numbers.into_iter().map(|x| x / length).collect()
}

/// One call, as it came in.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who called: the path before the protocol's own, as in
    /// `http://host/worker-1/api/embed`. Empty where there is none.
    pub caller: String,
    /// When it came in.
    pub came: SystemTime,
    /// When it was answered, rightly or not; unset as long as it is not.
    pub ended: Option<SystemTime>,
    /// The model that was asked for.
    pub model: String,
    /// The texts, in order.
    pub texts: Vec<String>,
    /// The authorization header, where there was one.
    pub authorization: Option<String>,
    /// The trace context that it came with.
    pub traceparent: Option<String>,
    /// The path and query that were asked for, or the whole address by a proxy.
    pub target: String,
    /// All headers.
    pub headers: HeaderMap,
    /// All that was asked.
    pub body: Value,
    /// Whether the right vectors were sent back.
    pub answered: bool,
}

/// An answer other than the right vectors.
#[derive(Debug, Clone)]
pub enum Rude {
    /// This status, with `Retry-After` where given, and this body.
    Status(u16, Option<String>, String),
    /// This status with a body of this content type.
    Refusal(u16, &'static str, String),
    /// The right vectors without the last.
    WrongCount,
    /// The right vectors and one more.
    OneMore,
    /// The right vectors, all with the same number, where they have any.
    Twice,
    /// Vectors of so many numbers.
    Dimension(usize),
    /// The right vectors, packed though nobody asked for it.
    Gzip,
    /// The right vectors with this content type.
    Labelled(&'static str),
    /// The connection ends before an answer.
    Eof,
    /// The same, with a reset.
    Reset,
    /// 200 with this body.
    Body(String),
    /// The beginning of the right answer, and then the connection breaks.
    CutOff,
    /// No answer at all, for as long as the client waits.
    Hang,
    /// The beginning of the right answer, and then nothing more.
    Stall,
    /// The right answer, some bytes at a time with this pause in between.
    Drip(Duration),
    /// A web page, as a proxy sends it, with 200.
    Page,
    /// A redirect to this address.
    Redirect(String),
    /// The right vectors, but all zero for the texts that contain this.
    Zero(String),
    /// The right vectors, but null for the first number of the texts that
    /// contain this.
    Null(String),
    /// The same with the bare word `NaN`, as Python writes it.
    Nan(String),
}

/// What the server takes; `None` is any number.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Texts in a call.
    pub texts_per_call: Option<usize>,
    /// Characters of a text. They count as tokens in what it says.
    pub chars_per_text: Option<usize>,
    /// Characters of all texts of a call.
    pub chars_per_call: Option<usize>,
}

/// How it says when to come again.
#[derive(Debug, Clone, Copy)]
pub enum RetryAfter {
    /// In seconds.
    Seconds,
    /// As a date.
    Date,
    /// Not at all.
    Silent,
}

/// So many calls a second, and no more.
#[derive(Debug)]
struct Quota {
    calls: usize,
    retry_after: RetryAfter,
    /// The second that runs, and the calls in it.
    second: Option<(Instant, usize)>,
}

impl Quota {
    /// Counts a call, and says whether it is one too many.
    fn exceeded(&mut self) -> bool {
        let now = Instant::now();
        let (began, used) = match self.second {
            Some((began, used)) if now - began < Duration::from_secs(1) => (began, used),
            _ => (now, 0),
        };
        self.second = Some((began, used + 1));
        used >= self.calls
    }
}

/// Says how rudely a call is answered, if it is.
type Rule = Box<dyn Fn(&Call) -> Option<Rude> + Send>;

/// The status, the content type and the body of an answer.
type Whole = (StatusCode, &'static str, &'static str);

#[derive(Default)]
struct Script {
    calls: Vec<Call>,
    next: VecDeque<Rude>,
    rule: Option<Rule>,
    delay: Duration,
    delay_per_text: Duration,
    limits: Limits,
    quota: Option<Quota>,
    /// Whether it is an Ollama that knows `/api/embeddings` only.
    old_ollama: bool,
    /// The one path at which it takes texts, as OpenAI's API.
    openai_at: Option<String>,
    /// What it answers at paths where there is nothing, and those that were.
    missing: Option<Whole>,
    missed: Vec<String>,
    /// Whether it says nothing of itself.
    no_info: bool,
    /// The name that it gives its model.
    model_id: Option<String>,
}

struct Shared {
    script: Mutex<Script>,
    /// How many calls have started.
    started: watch::Sender<usize>,
    /// How many calls, from the first, may go on.
    gate: watch::Sender<usize>,
}

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        // A test that panicked while it held this has failed already.
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running server; it ends with this value.
pub struct FakeEmbedder {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl fmt::Debug for FakeEmbedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeEmbedder")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl FakeEmbedder {
    /// Starts a server on a free port of this machine.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts one that speaks TLS, with this certificate.
    pub async fn start_tls(own: &Issued) -> Self {
        Self::start_with(Some(own.acceptor())).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            script: Mutex::default(),
            started: watch::Sender::new(0),
            gate: watch::Sender::new(usize::MAX),
        });
        let router = dialect::router(Arc::clone(&shared));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let door = Door { listener, tls };
        let server = tokio::spawn(async move {
            let service = router.into_make_service_with_connect_info::<Wire>();
            if let Err(error) = axum::serve(door, service).await {
                eprintln!("The fake embedder failed: {error}");
            }
        });
        Self {
            address,
            scheme,
            shared,
            server,
        }
    }

    /// The server's URL, without a path.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes every call take this long, and this much longer for each text.
    pub fn set_delay(&self, per_call: Duration, per_text: Duration) {
        let mut script = self.shared.script();
        (script.delay, script.delay_per_text) = (per_call, per_text);
    }

    /// Answers the next call like this; said several times, those after it.
    pub fn next(&self, rude: Rude) {
        self.shared.script().next.push_back(rude);
    }

    /// Answers every call for which the rule returns something like that, from
    /// now on and instead of an earlier rule. What [`Self::next`] said comes
    /// first.
    pub fn rule(&self, rule: impl Fn(&[String]) -> Option<Rude> + Send + 'static) {
        self.rule_of_calls(move |call| rule(&call.texts));
    }

    /// The same, by all there is of a call.
    pub fn rule_of_calls(&self, rule: impl Fn(&Call) -> Option<Rude> + Send + 'static) {
        self.shared.script().rule = Some(Box::new(rule));
    }

    /// Takes no more than this from now on, and says so in each dialect.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.script().limits = limits;
    }

    /// Takes so many calls a second from now on; the others are answered 429.
    pub fn set_quota(&self, calls_per_second: usize, retry_after: RetryAfter) {
        self.shared.script().quota = Some(Quota {
            calls: calls_per_second,
            retry_after,
            second: None,
        });
    }

    /// Is an Ollama without `/api/embed` from now on, or no longer.
    pub fn set_old_ollama(&self, old: bool) {
        self.shared.script().old_ollama = old;
    }

    /// Has OpenAI's API at this path from now on, and nothing anywhere else.
    pub fn set_openai_at(&self, path: &str) {
        self.shared.script().openai_at = Some(path.to_owned());
    }

    /// Answers like this, from now on, where there is nothing.
    pub fn set_missing(&self, status: u16, kind: &'static str, body: &'static str) {
        let status = StatusCode::from_u16(status).expect("the test names a status code");
        self.shared.script().missing = Some((status, kind, body));
    }

    /// Takes out the paths that were asked for and where nothing is, oldest first.
    pub fn take_missed(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.script().missed)
    }

    /// Has no `GET /info` from now on.
    pub fn hide_info(&self) {
        self.shared.script().no_info = true;
    }

    /// What `GET /info` says of the model.
    pub fn set_model_id(&self, model_id: &str) {
        self.shared.script().model_id = Some(model_id.to_owned());
    }

    /// Answers properly again, without delay, limits or quota.
    pub fn behave(&self) {
        let mut script = self.shared.script();
        let calls = std::mem::take(&mut script.calls);
        *script = Script {
            calls,
            ..Script::default()
        };
    }

    /// Holds every further call, once it is noted, until the gate is opened.
    pub fn close_gate(&self) {
        self.let_through(self.calls().len());
    }

    /// Lets the first `calls` since the server started go on, and holds those
    /// after them.
    pub fn let_through(&self, calls: usize) {
        self.shared.gate.send_replace(calls);
    }

    /// Lets held and later calls go on.
    pub fn open_gate(&self) {
        self.let_through(usize::MAX);
    }

    /// Waits until this many calls have started since the server did.
    pub async fn calls_started(&self, count: usize) {
        let mut started = self.shared.started.subscribe();
        let wait = started.wait_for(|started| *started >= count);
        if time::timeout(PATIENCE, wait).await.is_err() {
            let calls = self.calls().len();
            panic!("waited for call {count} of the embedder; it had {calls}");
        }
    }

    /// Every call so far, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.script().calls.clone()
    }

    /// Takes the calls so far out, oldest first: they are counted no more. Not
    /// for tests that hold calls.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.shared.script().calls)
    }

    /// How often each text came in.
    pub fn received(&self) -> HashMap<String, usize> {
        self.count(|_| true)
    }

    /// How often each text's vector was sent back.
    pub fn answered(&self) -> HashMap<String, usize> {
        self.count(|call| call.answered)
    }

    fn count(&self, which: impl Fn(&Call) -> bool) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for call in self.shared.script().calls.iter().filter(|call| which(call)) {
            for text in &call.texts {
                *counts.entry(text.clone()).or_default() += 1;
            }
        }
        counts
    }
}

impl Drop for FakeEmbedder {
    fn drop(&mut self) {
        self.server.abort();
    }
}
