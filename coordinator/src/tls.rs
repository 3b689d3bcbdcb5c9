//! Connections as they come in: plain, or in TLS with certificates that are
//! read again when their files change.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{either::Either, task::TaskTracker};
use tonic::transport::server::Connected;
use weir_proto::secret::is_open_to_all;

use crate::{config::SecurityConfig, files::Files};

/// How long a peer may take until it is connected in TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Most peers that are on their way to that at the same time; others wait in
/// the kernel.
const MAX_HANDSHAKES: usize = 256;

/// Connections that are ready and wait to be served.
const READY: usize = 16;

/// How the first message of TLS begins: a handshake record.
/// <https://www.rfc-editor.org/rfc/rfc8446#section-5.1>
const HANDSHAKE_RECORD: u8 = 22;

const NO_TLS: &str = "this port speaks TLS: use https://";

/// The present certificates, ready to serve with.
pub(crate) type Certificates = watch::Receiver<Arc<ServerConfig>>;

/// Reads the certificates that the settings name; `None` where they name none.
pub(crate) fn open(config: &SecurityConfig) -> anyhow::Result<Option<Files<ServerConfig>>> {
    let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else {
        return Ok(None);
    };
    let paths: Vec<PathBuf> = [cert, key]
        .into_iter()
        .chain(&config.tls_client_ca)
        .cloned()
        .collect();
    let setting =
        "--tls-cert, --tls-key, --tls-client-ca (WEIR_TLS_CERT, WEIR_TLS_KEY, WEIR_TLS_CLIENT_CA)";
    if is_open_to_all(key) {
        tracing::warn!(path = %key.display(), "Every user of this machine can read the key of --tls-key: chmod 600.");
    }
    Files::open(setting, paths, |parts, _| Ok(server_config(parts)?.into())).map(Some)
}

/// From a certificate chain, its key, and the authorities of clients where
/// these are to prove who they are.
fn server_config(parts: &[Vec<u8>]) -> anyhow::Result<ServerConfig> {
    let [cert, key, authorities @ ..] = parts else {
        anyhow::bail!("a certificate and a key are needed");
    };
    let chain = certificates(cert).context("the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("the key is not in PEM")?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = if let [authorities] = authorities {
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities).context("the clients' CA")? {
            roots.add(authority).context("the clients' CA")?;
        }
        // Probes of health come without a certificate. Whether one is needed is for the call to say.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .context("the clients' CA")?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .context("certificate and key do not belong together, or are of no known kind")?;
    if !authorities.is_empty() {
        // A session that is resumed would not be asked for its certificate, which may have expired.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    anyhow::ensure!(!found.is_empty(), "there is no certificate in PEM in it");
    Ok(found)
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Our own address, which it called.
    pub(crate) called: SocketAddr,
    /// Whether it has shown a certificate of the clients' CA.
    pub(crate) certified: bool,
}

/// Takes connections until the stream is dropped. A slow peer holds up no
/// other.
pub(crate) fn incoming(
    listener: TcpListener,
    certificates: Option<Certificates>,
    tasks: &TaskTracker,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(READY);
    tasks.spawn(async move {
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                () = ready.closed() => return,
                _ = handshakes.join_next(), if !handshakes.is_empty() => {}
                accepted = listener.accept(), if handshakes.len() < MAX_HANDSHAKES => match accepted {
                    Ok((stream, address)) => {
                        let (ready, certificates) = (ready.clone(), certificates.clone());
                        handshakes.spawn(async move {
                            if let Some(connection) = connect(stream, address, certificates).await {
                                // Nobody waits for it any more when this replica stops.
                                let _ = ready.send(Ok(connection)).await;
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "A connection could not be accepted.");
                        // Out of file descriptors, most likely: they come back as calls end.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
    });
    ReceiverStream::new(connections)
}

async fn connect(
    stream: TcpStream,
    address: SocketAddr,
    certificates: Option<Certificates>,
) -> Option<Connection> {
    // It is faster; that it cannot be had is no reason not to serve.
    let _ = stream.set_nodelay(true);
    // A peer that is gone already has none.
    let called = stream.local_addr().ok()?;
    let Some(certificates) = certificates else {
        return Some(Connection {
            io: Either::Left(stream),
            peer: Peer {
                address,
                called,
                certified: false,
            },
        });
    };
    let config = Arc::clone(&certificates.borrow());
    let shaken = timeout(HANDSHAKE_TIMEOUT, shake_hands(stream, config)).await;
    let stream = match shaken {
        Ok(Ok(stream)) => stream?,
        Ok(Err(error)) => {
            tracing::info!(%address, %error, "A peer could not be connected in TLS.");
            return None;
        }
        Err(_) => {
            tracing::info!(%address, "A peer took too long to connect in TLS.");
            return None;
        }
    };
    let certified = stream.get_ref().1.peer_certificates().is_some();
    Some(Connection {
        io: Either::Right(Box::new(stream)),
        peer: Peer {
            address,
            called,
            certified,
        },
    })
}

/// `None` for a peer that does not speak TLS and was told that it must.
async fn shake_hands(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> io::Result<Option<TlsStream<TcpStream>>> {
    let mut first = [0; 3];
    let seen = stream.peek(&mut first).await?;
    if seen > 0 && first[0] != HANDSHAKE_RECORD {
        refuse_plaintext(stream, first == *b"PRI").await?;
        return Ok(None);
    }
    TlsAcceptor::from(config).accept(stream).await.map(Some)
}

/// Tells a client in its own protocol, so that it need not wait and guess.
async fn refuse_plaintext(mut stream: TcpStream, http2: bool) -> io::Result<()> {
    let answer = if http2 {
        // SETTINGS, then GOAWAY with INADEQUATE_SECURITY and the reason.
        // https://www.rfc-editor.org/rfc/rfc9113#section-6.8
        let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
        frames.extend([0, 0, 8 + NO_TLS.len() as u8, 7, 0, 0, 0, 0, 0]);
        frames.extend([0, 0, 0, 0, 0, 0, 0, 0x0c]);
        frames.extend(NO_TLS.as_bytes());
        frames
    } else {
        format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{NO_TLS}",
            NO_TLS.len()
        )
        .into_bytes()
    };
    stream.write_all(&answer).await?;
    stream.shutdown().await?;
    // What is closed with bytes unread is reset, and the answer is lost with it.
    let mut rest = (&mut stream).take(64 << 10);
    let sink = &mut tokio::io::sink();
    let _ = timeout(Duration::from_secs(1), tokio::io::copy(&mut rest, sink)).await;
    Ok(())
}

/// A connection that calls come on.
#[derive(Debug)]
pub(crate) struct Connection {
    io: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
