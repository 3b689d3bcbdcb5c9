//! The memory of a coordinator to which very much is sent at once.

mod bodies;
mod imports;

use std::{
    fs,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{BufMut as _, Bytes};
use futures::{future::join_all, stream};
use reqwest::StatusCode;
use tokio::sync::Barrier;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use weir_proto::limits::MAX_CLIENT_MESSAGE_BYTES;
use weir_tests::clients::{Weir, http};

use self::bodies::{bodies, item, put_items};

/// What the coordinator may take at most, whatever is sent to it: 256 MiB and
/// four times the largest message.
const MOST_BYTES: usize = (256 << 20) + 4 * MAX_CLIENT_MESSAGE_BYTES;

/// Clients that send at once.
const CLIENTS: usize = 64;

/// Messages that are encoded already, so that very many of them share their
/// bytes.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        bytes::Buf::advance(from, bytes::Buf::remaining(from));
        Ok(Some(()))
    }
}

/// What a client sends.
#[derive(Clone)]
enum Body {
    /// To a call in JSON.
    Json(&'static str, Bytes),
    /// To a call in gRPC: one message, or several.
    Grpc(&'static str, Vec<Bytes>),
}

/// Sends it, and returns the code of the answer.
async fn send(weir: &Weir, body: Body) -> Code {
    match body {
        Body::Json(call, request) => {
            let url = format!("{}/api/{call}", weir.coordinator.url());
            let post = http().post(url).header("content-type", "application/json");
            match post.body(request).send().await.unwrap().status() {
                StatusCode::OK => Code::Ok,
                StatusCode::BAD_REQUEST => Code::InvalidArgument,
                StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
                StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
                other => panic!("{call}: {other}"),
            }
        }
        Body::Grpc(call, messages) => {
            let channel: Channel = weir.coordinator.connect().await;
            let mut client = Grpc::new(channel);
            client.ready().await.unwrap();
            let path = PathAndQuery::from_static(call);
            let messages = Request::new(stream::iter(messages));
            let answers = client.streaming(messages, path, Raw).await;
            let last = match answers {
                Ok(answers) => answers.into_inner().message().await.map(drop),
                Err(status) => Err(status),
            };
            last.map_or_else(|status| status.code(), |()| Code::Ok)
        }
    }
}

/// The most memory that a process had so far, in bytes.
fn peak(weir: &Weir) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", weir.coordinator.process.pid()));
    let status = status.unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.unwrap().trim().parse::<usize>().unwrap() << 10
}

/// Asks whether the coordinator lives and puts a small source, over and over,
/// and counts the answers.
async fn go_on(weir: &Weir, lives: &AtomicUsize, puts: &AtomicUsize) {
    let live = async {
        loop {
            let url = format!("{}/livez", weir.coordinator.url());
            let answer = http().get(url).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            lives.fetch_add(1, Ordering::Relaxed);
        }
    };
    let put = async {
        loop {
            weir.put("small", &["one"]).await;
            puts.fetch_add(1, Ordering::Relaxed);
        }
    };
    let ((), ()) = tokio::join!(live, put);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_large_calls_at_once_stay_within_the_memory_there_is_for_them() {
    let weir = Weir::start().await;
    let bodies = bodies();
    let barrier = Arc::new(Barrier::new(CLIENTS));
    let answered = AtomicUsize::new(0);
    let counted = &answered;
    let clients = (0..CLIENTS).map(|client| {
        let (weir, barrier) = (&weir, barrier.clone());
        let (what, body, code) = bodies[client % bodies.len()].clone();
        let call: Pin<Box<dyn Future<Output = ()> + Send + '_>> = Box::pin(async move {
            barrier.wait().await;
            let answered = send(weir, body).await;
            counted.fetch_add(usize::from(answered == code), Ordering::Relaxed);
            assert!(
                answered == code || answered == Code::Unavailable,
                "{what}: {answered:?}"
            );
        });
        call
    });
    let (lives, puts) = (AtomicUsize::new(0), AtomicUsize::new(0));
    tokio::select! {
        _ = join_all(clients) => {}
        () = go_on(&weir, &lives, &puts) => {}
    }
    let (lives, puts) = (lives.into_inner(), puts.into_inner());
    let answered = answered.into_inner();
    assert!(
        answered >= 5,
        "of {CLIENTS} large calls {answered} were answered"
    );
    assert!(lives >= CLIENTS, "it said {lives} times that it lives");
    assert!(puts >= 10, "{puts} small sources were put");
    assert!(peak(&weir) <= MOST_BYTES, "{} bytes", peak(&weir));
    // Nothing is held any more: what would not fit beside anything is taken in.
    let text = "x".repeat(MAX_CLIENT_MESSAGE_BYTES - 1_000);
    let largest = put_items(vec![item(0, &text, None)]);
    assert_eq!(send(&weir, largest).await, Code::InvalidArgument);
}
