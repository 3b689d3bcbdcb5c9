//! Takes in the messages of calls, in memory that is there for them, and sees
//! to what they unfold before they are decoded.
//!
//! The services get a token for each message, which the codec exchanges
//! ([`weir_proto::gathered`]). What a message takes is held until its call has
//! an answer, or, in a stream of them, until the next is asked for.

mod reader;

use std::{
    any::Any,
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response};
use http_body::Frame;
use prost_reflect::DescriptorPool;
use tonic::{
    Status,
    body::Body,
    codegen::{Body as HttpBody, Service},
};
use tower::Layer;
use weir_proto::{
    codec::beside_others,
    gathered::{self, Token},
    limits::{MAX_CLIENT_MESSAGE_BYTES, MAX_MESSAGE_PARTS, MAX_WORKER_MESSAGE_BYTES},
    parts::{self, Fault},
    v1::FILE_DESCRIPTOR_SET,
};

pub(super) use self::reader::{Reader, in_time};
use super::{
    content,
    error::invalid_field,
    memory::{Hold, Memory},
};

/// Largest message in memory, decoded. What is made of it while it is worked on
/// takes up to twice as much again.
const MAX_DECODED_BYTES: usize = 128 << 20;

/// What stands before a message on the wire.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
const PREFIX_BYTES: usize = 5;

/// Wraps services so that their messages are admitted.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    memory: Memory,
    /// By path.
    methods: Arc<HashMap<String, Arc<Method>>>,
}

/// A call as far as its messages are concerned.
#[derive(Debug)]
struct Method {
    /// Full name of the message it takes.
    input: String,
    /// Whether it takes many.
    streaming: bool,
    /// The largest it takes, in bytes.
    limit: usize,
}

impl Admission {
    /// Admits to all methods of our services, in this memory.
    pub(crate) fn new(memory: Memory) -> anyhow::Result<Self> {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).context("our own descriptors")?;
        let methods = pool.services().flat_map(|service| {
            let limit = if service.name() == "WorkerService" {
                MAX_WORKER_MESSAGE_BYTES
            } else {
                MAX_CLIENT_MESSAGE_BYTES
            };
            let methods = service.methods().map(|method| {
                let path = format!("/{}/{}", service.full_name(), method.name());
                let method = Method {
                    input: method.input().full_name().to_owned(),
                    streaming: method.is_client_streaming(),
                    limit,
                };
                (path, Arc::new(method))
            });
            methods.collect::<Vec<_>>()
        });
        Ok(Self {
            memory,
            methods: Arc::new(methods.collect()),
        })
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted {
            inner,
            admission: self.clone(),
        }
    }
}

/// A service whose messages are admitted.
#[derive(Debug, Clone)]
pub(crate) struct Admitted<S> {
    inner: S,
    admission: Admission,
}

impl<S> Service<Request<Body>> for Admitted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(method) = self.admission.methods.get(request.uri().path()) else {
            return self.inner.call(request).boxed();
        };
        let held = Held::default();
        let request = request.map(|body| {
            Body::new(Messages::Waiting(Inbox {
                reader: Reader::new(body),
                memory: self.admission.memory.clone(),
                method: method.clone(),
                held: held.clone(),
                token: None,
            }))
        });
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await;
            // Of a call with one message the body is gone before it is worked on.
            drop(held);
            answer
        }
        .boxed()
    }
}

/// What the message that is worked on holds.
#[derive(Debug, Clone, Default)]
struct Held(Arc<Mutex<Option<Hold>>>);

impl Held {
    fn set(&self, hold: Option<Hold>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = hold;
    }
}

/// The messages of a call, a token for each.
enum Messages {
    Waiting(Inbox),
    Reading(BoxFuture<'static, (Option<Result<Bytes, Status>>, Inbox)>),
    Over,
}

impl HttpBody for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Self::Waiting(_) = &*self
            && let Self::Waiting(mut inbox) = std::mem::replace(&mut *self, Self::Over)
        {
            let next = async move { (inbox.next().await.transpose(), inbox) };
            *self = Self::Reading(next.boxed());
        }
        let Self::Reading(next) = &mut *self else {
            return Poll::Ready(None);
        };
        let (frame, inbox) = ready!(next.poll_unpin(cx));
        *self = match &frame {
            Some(Ok(_)) => Self::Waiting(inbox),
            _ => Self::Over,
        };
        Poll::Ready(frame.map(|frame| frame.map(Frame::data)))
    }
}

/// Where a call's messages come in.
struct Inbox {
    reader: Reader,
    memory: Memory,
    method: Arc<Method>,
    held: Held,
    token: Option<Token>,
}

impl Inbox {
    /// The next message, as bytes for the transport.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        // The last one was exchanged by now, and in a stream it has been worked on.
        self.token = None;
        if self.method.streaming {
            self.held.set(None);
        }
        let mut prefix = Vec::with_capacity(PREFIX_BYTES);
        self.reader.read(&mut prefix, PREFIX_BYTES, None).await?;
        if prefix.is_empty() {
            return Ok(None);
        }
        let (Some(0), Some(len)) = (prefix.first(), prefix[1..].first_chunk()) else {
            // Cut off, or compressed, which is not taken: the transport says so.
            return Ok(Some(prefix.into()));
        };
        let len = u32::from_be_bytes(*len) as usize;
        if len > self.method.limit {
            return Err(Status::resource_exhausted(format!(
                "the message has {len} bytes; at most {} are allowed: send its content in several",
                self.method.limit
            )));
        }
        let receiving = self.memory.to_receive(len).await?;
        let mut message = Vec::with_capacity(len);
        self.reader
            .read(&mut message, len, Some(&receiving))
            .await?;
        if message.len() < len {
            return Err(Status::internal("Unexpected EOF decoding stream."));
        }
        // Nobody is to hold memory to work in and then not let the work begin.
        if !self.method.streaming && !self.reader.is_at_end(&receiving).await? {
            return Err(Status::invalid_argument("the call takes one message"));
        }
        let memory = beside_others(len, || needed(&self.method.input, &message))?;
        self.held.set(Some(self.memory.to_work(memory).await?));
        let token = leave(message.into(), receiving);
        let mut frame = Vec::with_capacity(PREFIX_BYTES + token.as_bytes().len());
        frame.push(0);
        frame.extend_from_slice(&(token.as_bytes().len() as u32).to_be_bytes());
        frame.extend_from_slice(token.as_bytes());
        self.token = Some(token);
        Ok(Some(frame.into()))
    }
}

/// Leaves a message to be taken by the codec; what it was received in is held
/// until then.
pub(super) fn leave(message: Bytes, received: impl Any + Send) -> Token {
    gathered::leave(rand::random(), message, received)
}

/// How much memory a message of this type takes at most while it is worked on;
/// a refusal where it is not to be decoded at all.
pub(super) fn needed(input: &str, message: &[u8]) -> Result<usize, Status> {
    let decoded =
        parts::measure(input, message, MAX_MESSAGE_PARTS).map_err(|fault| match fault {
            Fault::TooMany => Status::resource_exhausted(format!(
                "the message has more than {MAX_MESSAGE_PARTS} fields; send its items in several"
            )),
            Fault::Malformed => Status::invalid_argument(format!(
                "failed to decode Protobuf message: these bytes are no {}",
                input.rsplit('.').next().unwrap_or(input)
            )),
            Fault::Metadata { field, message } => invalid_field(field, message),
        })?;
    if decoded > MAX_DECODED_BYTES {
        return Err(Status::resource_exhausted(format!(
            "the message unfolds to {decoded} bytes of memory; at most {MAX_DECODED_BYTES} are allowed: send its \
             items in several"
        )));
    }
    Ok(3 * decoded + content::needed_for_documents(input, message))
}
