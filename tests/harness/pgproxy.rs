//! A proxy before Postgres that knows its messages: at a word it lets a commit
//! happen and its answer be lost.

use std::{
    io,
    str::FromStr as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Buf as _, Bytes, BytesMut};
use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy},
    net::{TcpStream, UnixListener, UnixStream},
    task::JoinHandle,
};

/// A proxy on a socket of its own. It ends with this value, and its connections
/// with it.
#[derive(Debug)]
pub struct PgProxy {
    options: PgConnectOptions,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

#[derive(Debug)]
struct Shared {
    target: PgConnectOptions,
    /// Which commit from now on is cut off; 0 for none.
    armed: AtomicUsize,
    cuts: AtomicUsize,
    /// Connections there were so far.
    connections: AtomicUsize,
    /// How many of these, the first ones, pass no answers on any more.
    silent: AtomicUsize,
}

impl Shared {
    /// Counts a commit, and tells whether it is the one to cut off.
    fn is_next(&self) -> bool {
        let one_less = |armed: usize| armed.checked_sub(1);
        let before = self
            .armed
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        before == Ok(1)
    }
}

impl PgProxy {
    /// Starts one before the database of this URL, to be connected to without
    /// TLS.
    pub fn start(url: &str) -> Self {
        let target = PgConnectOptions::from_str(url).expect("the URL is that of a Postgres");
        let dir = tempfile::tempdir().expect("a directory can be made");
        let socket = dir.path().join(format!(".s.PGSQL.{}", target.get_port()));
        let listener = UnixListener::bind(socket).expect("a socket can be made");
        let options = target.clone().socket(dir.path());
        let shared = Arc::new(Shared {
            target,
            armed: AtomicUsize::new(0),
            cuts: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            silent: AtomicUsize::new(0),
        });
        Self {
            options: options.ssl_mode(PgSslMode::Disable),
            listening: tokio::spawn(listen(listener, shared.clone())),
            shared,
            _dir: dir,
        }
    }

    /// What connects through the proxy.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// From now on the next commit, be it of a transaction or of a statement
    /// that writes by itself, is done, but its answer is not passed on and its
    /// connection is cut.
    pub fn arm(&self) {
        self.arm_nth(1);
    }

    /// The same for the `nth` commit from now on, counted from 1.
    pub fn arm_nth(&self, nth: usize) {
        self.shared.armed.store(nth, Ordering::SeqCst);
    }

    /// From now on the connections that there are stay open and give no answer,
    /// as when the network lost them without a word.
    pub fn silence(&self) {
        let connections = self.shared.connections.load(Ordering::SeqCst);
        self.shared.silent.store(connections, Ordering::SeqCst);
    }

    /// The URL of the database through the proxy.
    pub fn url(&self) -> String {
        self.options.to_url_lossy().into()
    }

    /// How many commits were cut off from their answers.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for PgProxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: UnixListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let shared = shared.clone();
        connections.spawn(async move {
            let target = &shared.target;
            // An error is the end of a connection, which the client sees as well.
            let _ = if let Some(dir) = target.get_socket() {
                let socket = dir.join(format!(".s.PGSQL.{}", target.get_port()));
                pass(client, UnixStream::connect(socket).await, &shared).await
            } else {
                let address = (target.get_host(), target.get_port());
                pass(client, TcpStream::connect(address).await, &shared).await
            };
        });
    }
}

async fn pass<S: AsyncRead + AsyncWrite>(
    client: UnixStream,
    server: io::Result<S>,
    shared: &Shared,
) -> io::Result<()> {
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = tokio::io::split(server?);
    tokio::select! {
        ended = copy(&mut from_client, &mut to_server) => ended.map(drop),
        ended = pass_answers(from_server, to_client, shared) => ended,
    }
}

/// Passes the server's messages on, an answer at a time, until the armed commit.
async fn pass_answers(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
) -> io::Result<()> {
    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
    let mut received = BytesMut::new();
    let mut answer = Answer::default();
    loop {
        while let Some(message) = next_message(&mut received) {
            answer.push(&message);
            if answer.is_commit() && shared.is_next() {
                shared.cuts.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
            if number < shared.silent.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if answer.may_pass() {
                to.write_all(&std::mem::take(&mut answer).bytes).await?;
            }
        }
        if from.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
    }
}

/// Takes the next whole message: a byte for its kind, four for the length of
/// the rest with themselves.
/// <https://www.postgresql.org/docs/current/protocol-message-formats.html>
fn next_message(received: &mut BytesMut) -> Option<Bytes> {
    let length = received.get(1..5)?.get_u32() as usize;
    (received.len() > length).then(|| received.split_to(length + 1).freeze())
}

/// The messages of an answer so far.
#[derive(Debug, Default)]
struct Answer {
    bytes: BytesMut,
    /// Whether a command was completed that changed something.
    wrote: bool,
    /// The kind of the last message.
    last: u8,
    /// Whether the server is ready for the next command, out of a transaction.
    idle: bool,
}

impl Answer {
    fn push(&mut self, message: &[u8]) {
        self.last = message[0];
        match message[0] {
            b'C' => {
                let harmless = [&b"BEGIN"[..], b"ROLLBACK", b"SELECT", b"SET", b"LISTEN"];
                let tag = &message[5..];
                let wrote_nothing = tag.ends_with(b" 0\0");
                self.wrote |=
                    !wrote_nothing && !harmless.iter().any(|start| tag.starts_with(start));
            }
            b'Z' => self.idle = message[5] == b'I',
            _ => {}
        }
        self.bytes.extend_from_slice(message);
    }

    fn is_commit(&self) -> bool {
        self.wrote && self.idle
    }

    /// An answer is over when the server is ready. What it says by itself does
    /// not wait, nor what it asks when a connection begins.
    fn may_pass(&self) -> bool {
        matches!(self.last, b'Z' | b'R' | b'A' | b'E')
    }
}
