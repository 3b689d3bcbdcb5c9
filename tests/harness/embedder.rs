//! An embedding server for tests: it speaks Ollama's and OpenAI's protocols,
//! its vectors are a pure function of the text, it remembers every call, and
//! it is as rude as a test wants.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, Uri},
    response::{IntoResponse as _, Response},
    routing::post,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time};

use crate::PATIENCE;

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
    /// Whether the right vectors were sent back.
    pub answered: bool,
}

/// An answer other than the right vectors.
#[derive(Debug, Clone)]
pub enum Rude {
    /// This status, with `Retry-After` where given, and this body.
    Status(u16, Option<String>, String),
    /// The right vectors without the last.
    WrongCount,
    /// 200 with this body.
    Body(String),
    /// The beginning of the right answer, and then the connection breaks.
    CutOff,
    /// No answer at all, for as long as the client waits.
    Hang,
}

/// Says how rudely the call with these texts is answered, if it is.
type Rule = Box<dyn Fn(&[String]) -> Option<Rude> + Send>;

#[derive(Default)]
struct Script {
    calls: Vec<Call>,
    next: VecDeque<Rude>,
    rule: Option<Rule>,
    delay: Duration,
    delay_per_text: Duration,
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
        let router = Router::new()
            .route("/api/embed", post(ollama))
            .route("/v1/embeddings", post(openai))
            .route("/{caller}/api/embed", post(ollama))
            .route("/{caller}/v1/embeddings", post(openai))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("The fake embedder failed: {error}");
            }
        });
        Self {
            address,
            shared,
            server,
        }
    }

    /// The server's URL, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
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
        self.shared.script().rule = Some(Box::new(rule));
    }

    /// Answers properly again, without delay.
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

/// What both protocols ask.
#[derive(Deserialize)]
struct Request {
    model: String,
    input: Input,
    encoding_format: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

async fn ollama(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    Json(request): Json<Request>,
) -> Response {
    answer(
        &shared,
        caller(&uri, "/api/embed"),
        request,
        |vectors, request| json!({ "model": request.model, "embeddings": vectors }),
    )
    .await
}

async fn openai(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    Json(request): Json<Request>,
) -> Response {
    let caller = caller(&uri, "/v1/embeddings");
    answer(&shared, caller, request, |vectors, request| {
        let in_base64 = request.encoding_format.as_deref() == Some("base64");
        let embedding = |vector: &Vec<f32>| {
            if in_base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(BASE64_STANDARD.encode(bytes))
            } else {
                json!(vector)
            }
        };
        let data: Vec<Value> = vectors
            .iter()
            .enumerate()
            .map(|(index, vector)| {
                json!({ "object": "embedding", "index": index, "embedding": embedding(vector) })
            })
            .collect();
        json!({ "object": "list", "model": request.model, "data": data })
    })
    .await
}

fn caller(uri: &Uri, endpoint: &str) -> String {
    let before = uri.path().strip_suffix(endpoint).unwrap_or_default();
    before.trim_start_matches('/').to_owned()
}

async fn answer(
    shared: &Shared,
    caller: String,
    mut request: Request,
    write: impl Fn(&[Vec<f32>], &Request) -> Value,
) -> Response {
    let texts = match std::mem::replace(&mut request.input, Input::Many(Vec::new())) {
        Input::One(text) => vec![text],
        Input::Many(texts) => texts,
    };
    let (place, rude, delay) = {
        let mut script = shared.script();
        let rule = |script: &Script| script.rule.as_ref().and_then(|rule| rule(&texts));
        let said = script.next.pop_front().or_else(|| rule(&script));
        let delay = script.delay + script.delay_per_text * texts.len() as u32;
        let noted = Call {
            caller,
            came: SystemTime::now(),
            ended: None,
            model: request.model.clone(),
            texts: texts.clone(),
            answered: false,
        };
        script.calls.push(noted);
        (script.calls.len() - 1, said, delay)
    };
    shared.started.send_modify(|started| *started += 1);
    // The sender is in `shared`, so the wait ends only when the gate opens.
    let _ = shared
        .gate
        .subscribe()
        .wait_for(|calls| place < *calls)
        .await;
    if !delay.is_zero() {
        time::sleep(delay).await;
    }
    let mut vectors: Vec<Vec<f32>> = texts.iter().map(|text| expected_vector(text)).collect();
    if !matches!(rude, Some(Rude::Hang)) {
        let call = &mut shared.script().calls[place];
        call.ended = Some(SystemTime::now());
        call.answered = rude.is_none();
    }
    match rude {
        None => Json(write(&vectors, &request)).into_response(),
        Some(Rude::WrongCount) => {
            vectors.pop();
            Json(write(&vectors, &request)).into_response()
        }
        Some(Rude::Status(code, retry_after, body)) => {
            let code = StatusCode::from_u16(code).expect("the test names a status code");
            match retry_after {
                Some(after) => (code, [("retry-after", after)], body).into_response(),
                None => (code, body).into_response(),
            }
        }
        Some(Rude::Body(body)) => ([("content-type", "application/json")], body).into_response(),
        Some(Rude::CutOff) => cut_off(&write(&vectors, &request).to_string()),
        Some(Rude::Hang) => std::future::pending::<Result<Response, Infallible>>()
            .await
            .unwrap_or_else(|never| match never {}),
    }
}

/// Half of a body that is announced whole, and then an error, at which the
/// connection is closed.
fn cut_off(body: &str) -> Response {
    let half = Bytes::copy_from_slice(&body.as_bytes()[..body.len() / 2]);
    let parts = stream::iter([Ok(half)]).chain(stream::once(async {
        // Lets the first half be sent before the error closes the connection.
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::BrokenPipe))
    }));
    let mut response = Response::new(Body::from_stream(parts));
    let headers = response.headers_mut();
    headers.insert(
        "content-type",
        axum::http::HeaderValue::from_static("application/json"),
    );
    headers.insert("content-length", axum::http::HeaderValue::from(body.len()));
    response
}
