//! A call that lasts no longer than its token.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::sync::watch;
use tonic::{Status, body::Body};

use crate::access::{Digest, Grant, Tokens};

/// Done when a token is not good any more for what it was good for.
pub(super) type Revoked = Shared<BoxFuture<'static, ()>>;

/// Waits until the token of this hash is gone, or allows something else than
/// this.
pub(super) fn revoked(
    mut tokens: watch::Receiver<Arc<Tokens>>,
    digest: Digest,
    grant: Arc<Grant>,
) -> Revoked {
    let wait = async move {
        while tokens.borrow_and_update().grant(&digest).as_ref() == Some(&grant) {
            if tokens.changed().await.is_err() {
                // Nobody reads the file any more: this replica stops.
                std::future::pending::<()>().await;
            }
        }
    };
    wait.boxed().shared()
}

/// What a call is told whose token has gone.
pub(super) fn ended() -> Status {
    Status::unauthenticated("the token was taken back, or what it allows was changed; call again")
}

/// How a body ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// With an error for whoever reads it.
    Error,
    /// With a status.
    Trailers,
    /// Without a word, where there is no place for one.
    Silence,
}

/// A body that ends when its token is taken back.
pub(super) struct Guarded {
    inner: Body,
    revoked: Revoked,
    ending: Ending,
    ended: bool,
}

impl Guarded {
    /// What comes from a client.
    pub(super) fn request(inner: Body, revoked: Revoked) -> Self {
        Self::new(inner, revoked, Ending::Error)
    }

    /// What is sent to a client.
    pub(super) fn answer(inner: Body, revoked: Revoked, grpc: bool) -> Self {
        let ending = if grpc {
            Ending::Trailers
        } else {
            Ending::Silence
        };
        Self::new(inner, revoked, ending)
    }

    fn new(inner: Body, revoked: Revoked, ending: Ending) -> Self {
        Self {
            inner,
            revoked,
            ending,
            ended: false,
        }
    }
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.revoked.poll_unpin(cx).is_pending() {
            return Pin::new(&mut self.inner).poll_frame(cx);
        }
        self.ended = true;
        // What is behind it need not go on.
        self.inner = Body::empty();
        Poll::Ready(match self.ending {
            Ending::Error => Some(Err(ended())),
            Ending::Trailers => {
                let mut trailers = HeaderMap::new();
                Some(
                    ended()
                        .add_header(&mut trailers)
                        .map(|()| Frame::trailers(trailers)),
                )
            }
            Ending::Silence => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
