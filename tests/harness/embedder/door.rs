//! The sockets of the server: with TLS or without, and such as break when a
//! test wants it.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Takes connections.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<TlsAcceptor>,
}

/// What a connection does when it is next written to.
#[derive(Clone, Default)]
pub(super) struct Wire(Arc<AtomicU8>);

const CLOSED: u8 = 1;
const RESET: u8 = 2;

impl Wire {
    /// The connection ends without another byte.
    pub(super) fn close(&self) {
        self.0.store(CLOSED, Ordering::Relaxed);
    }

    /// The same, with a reset.
    pub(super) fn reset(&self) {
        self.0.store(RESET, Ordering::Relaxed);
    }
}

/// A connection.
pub(super) struct Socket {
    stream: Stream,
    wire: Wire,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Listener for Door {
    type Io = Socket;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Socket, SocketAddr) {
        loop {
            let (stream, from) = Listener::accept(&mut self.listener).await;
            let stream = match &self.tls {
                None => Stream::Plain(stream),
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => Stream::Tls(Box::new(stream)),
                    // A client that does not trust us.
                    Err(_) => continue,
                },
            };
            let wire = Wire::default();
            return (Socket { stream, wire }, from);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connected<IncomingStream<'_, Door>> for Wire {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.io().wire.clone()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let state = self.wire.0.load(Ordering::Relaxed);
        if state == RESET
            && let Stream::Plain(stream) = &self.stream
        {
            stream.set_zero_linger()?;
        }
        if state != 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
