//! How one call is answered: as it should be, or as the test wants it.

use std::{
    convert::Infallible,
    io::{self, Write as _},
    time::{Duration, SystemTime},
};

use axum::{
    Json,
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse as _, Response},
};
use flate2::write::GzEncoder;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time;
use weir_proto::trace::TRACEPARENT;

use super::{
    Call, Limits, RetryAfter, Rude, Script, Shared,
    dialect::{Dialect, Excess},
    door::Wire,
    expected_vector,
};

/// What stands for a bare word until the body is text.
const BARE_NAN: &str = "\"bare NaN\"";

/// What a call asks.
pub(super) struct Asked {
    dialect: Dialect,
    call: Call,
}

impl Asked {
    pub(super) fn new(dialect: Dialect, caller: String, parts: &Parts, body: Value) -> Self {
        let sent = |name: &str| {
            let value = parts.headers.get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let call = Call {
            caller,
            came: SystemTime::now(),
            ended: None,
            model: body["model"].as_str().unwrap_or_default().to_owned(),
            texts: dialect.texts(&body),
            authorization: sent(header::AUTHORIZATION.as_str()),
            traceparent: sent(TRACEPARENT),
            target: parts.uri.to_string(),
            headers: parts.headers.clone(),
            body,
            answered: false,
        };
        Self { dialect, call }
    }

    fn write(&self, vectors: &[Value]) -> Value {
        self.dialect.write(&self.call.body, vectors)
    }

    /// What a server with these limits does not take of it.
    fn excess(&self, limits: Limits) -> Option<Excess> {
        let beyond = |asked: usize, limit: Option<usize>| {
            limit
                .filter(|limit| asked > *limit)
                .map(|limit| (asked, limit))
        };
        let chars: Vec<usize> = self
            .call
            .texts
            .iter()
            .map(|text| text.chars().count())
            .collect();
        let texts = beyond(chars.len(), limits.texts_per_call);
        let longest = chars.iter().copied().max().unwrap_or_default();
        let text = beyond(longest, limits.chars_per_text);
        let together = beyond(chars.iter().sum(), limits.chars_per_call);
        texts
            .map(|(asked, limit)| Excess::Texts(asked, limit))
            .or(text.map(|(asked, limit)| Excess::Text(asked, limit)))
            .or(together.map(|(asked, limit)| Excess::Together(asked, limit)))
    }
}

/// What is decided about a call when it comes in.
enum Decision {
    Right,
    Rude(Rude),
    Excess(Excess),
    OverQuota(RetryAfter),
}

impl Script {
    fn decide(&mut self, asked: &Asked) -> Decision {
        let rule = |script: &Self| script.rule.as_ref().and_then(|rule| rule(&asked.call));
        if let Some(rude) = self.next.pop_front().or_else(|| rule(self)) {
            return Decision::Rude(rude);
        }
        if let Some(quota) = &mut self.quota
            && quota.exceeded()
        {
            return Decision::OverQuota(quota.retry_after);
        }
        let excess = asked.excess(self.limits);
        excess.map_or(Decision::Right, Decision::Excess)
    }
}

/// Notes the call, waits as the test wants, and answers.
pub(super) async fn answer(shared: &Shared, wire: &Wire, asked: &Asked) -> Response {
    let (place, decision, delay) = {
        let mut script = shared.script();
        let decision = script.decide(asked);
        let delay = script.delay + script.delay_per_text * asked.call.texts.len() as u32;
        script.calls.push(asked.call.clone());
        (script.calls.len() - 1, decision, delay)
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
    if !matches!(decision, Decision::Rude(Rude::Hang)) {
        let call = &mut shared.script().calls[place];
        call.ended = Some(SystemTime::now());
        call.answered = matches!(decision, Decision::Right);
    }
    match decision {
        Decision::Right => Json(asked.write(&vectors(&asked.call.texts))).into_response(),
        Decision::Excess(excess) => asked.dialect.refuse(excess),
        Decision::OverQuota(retry_after) => over_quota(asked.dialect, retry_after),
        Decision::Rude(rude) => rudely(rude, wire, asked).await,
    }
}

fn vectors(texts: &[String]) -> Vec<Value> {
    let vectors = texts.iter().map(|text| json!(expected_vector(text)));
    vectors.collect()
}

/// The right vectors, but for those of the texts that contain `mark`.
fn spoilt(texts: &[String], mark: &str, spoil: impl Fn(&mut Vec<Value>)) -> Vec<Value> {
    let mut vectors = vectors(texts);
    for (vector, text) in vectors.iter_mut().zip(texts) {
        if text.contains(mark)
            && let Value::Array(numbers) = vector
        {
            spoil(numbers);
        }
    }
    vectors
}

async fn rudely(rude: Rude, wire: &Wire, asked: &Asked) -> Response {
    let texts = &asked.call.texts;
    let write = |vectors: &[Value]| asked.write(vectors);
    let right = || write(&vectors(texts)).to_string();
    match rude {
        Rude::WrongCount => {
            let mut vectors = vectors(texts);
            vectors.pop();
            Json(write(&vectors)).into_response()
        }
        Rude::OneMore => {
            let mut vectors = vectors(texts);
            vectors.push(json!(expected_vector("one more")));
            Json(write(&vectors)).into_response()
        }
        Rude::Twice => {
            let mut twice = write(&vectors(texts));
            let entries = twice.get_mut("data").and_then(Value::as_array_mut);
            for entry in entries.into_iter().flatten() {
                entry["index"] = json!(0);
            }
            Json(twice).into_response()
        }
        Rude::Dimension(dimension) => {
            let vector = json!(vec![0.5; dimension]);
            Json(write(&vec![vector; texts.len()])).into_response()
        }
        Rude::Eof => {
            wire.close();
            StatusCode::OK.into_response()
        }
        Rude::Reset => {
            wire.reset();
            StatusCode::OK.into_response()
        }
        Rude::Gzip => {
            let mut packed = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(right().as_bytes()).expect("it is memory");
            let packed = packed.finish().expect("it is memory");
            ([(header::CONTENT_ENCODING, "gzip")], packed).into_response()
        }
        Rude::Labelled(kind) => ([(header::CONTENT_TYPE, kind)], right()).into_response(),
        Rude::Refusal(code, kind, body) => {
            let code = StatusCode::from_u16(code).expect("the test names a status code");
            (code, [(header::CONTENT_TYPE, kind)], body).into_response()
        }
        Rude::Status(code, retry_after, body) => {
            let code = StatusCode::from_u16(code).expect("the test names a status code");
            match retry_after {
                Some(after) => (code, [(header::RETRY_AFTER, after)], body).into_response(),
                None => (code, body).into_response(),
            }
        }
        Rude::Body(body) => as_json(body),
        Rude::CutOff => half_of(&right(), broken),
        Rude::Stall => half_of(&right(), std::future::pending),
        Rude::Drip(pause) => drip(&right(), pause),
        Rude::Page => {
            axum::response::Html("<html><body>Please log in.</body></html>").into_response()
        }
        Rude::Redirect(to) => axum::response::Redirect::temporary(&to).into_response(),
        Rude::Zero(mark) => {
            let zero = |numbers: &mut Vec<Value>| numbers.fill(json!(0.0));
            Json(write(&spoilt(texts, &mark, zero))).into_response()
        }
        Rude::Null(mark) => {
            let null = |numbers: &mut Vec<Value>| numbers[0] = Value::Null;
            Json(write(&spoilt(texts, &mark, null))).into_response()
        }
        Rude::Nan(mark) => {
            let nan = |numbers: &mut Vec<Value>| numbers[0] = json!(BARE_NAN.trim_matches('"'));
            let body = write(&spoilt(texts, &mark, nan)).to_string();
            as_json(body.replace(BARE_NAN, "NaN"))
        }
        Rude::Hang => std::future::pending::<Result<Response, Infallible>>()
            .await
            .unwrap_or_else(|never| match never {}),
    }
}

fn as_json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn over_quota(dialect: Dialect, retry_after: RetryAfter) -> Response {
    let (status, body) = dialect.overloaded();
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    let value = match retry_after {
        RetryAfter::Silent => return response,
        RetryAfter::Seconds => "1".to_owned(),
        // Dates have whole seconds; the next but one is at least one away.
        RetryAfter::Date => httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2)),
    };
    let value = HeaderValue::try_from(value).expect("it is ASCII");
    response.headers_mut().insert(header::RETRY_AFTER, value);
    response
}

/// Half of a body that is announced whole, and then what `end` does.
fn half_of<F>(body: &str, end: impl FnOnce() -> F + Send + 'static) -> Response
where
    F: Future<Output = io::Result<Bytes>> + Send + 'static,
{
    let half = Bytes::copy_from_slice(&body.as_bytes()[..body.len() / 2]);
    let parts = stream::iter([Ok(half)]).chain(stream::once(async move { end().await }));
    announced(body.len(), Body::from_stream(parts))
}

/// An error at which the connection is closed.
async fn broken() -> io::Result<Bytes> {
    // Lets what came before it be sent.
    tokio::task::yield_now().await;
    Err(io::Error::from(io::ErrorKind::BrokenPipe))
}

fn drip(body: &str, pause: Duration) -> Response {
    const BYTES: usize = 8;
    let length = body.len();
    let drops: Vec<Bytes> = body
        .as_bytes()
        .chunks(BYTES)
        .map(Bytes::copy_from_slice)
        .collect();
    let drops = stream::iter(drops).then(move |part| async move {
        time::sleep(pause).await;
        io::Result::Ok(part)
    });
    announced(length, Body::from_stream(drops))
}

fn announced(length: usize, body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}
