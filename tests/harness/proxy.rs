//! A network that fails on command: a TCP proxy in this process that cuts,
//! delays, refuses and silences what goes through it.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
    time,
};

/// Bytes that travel together; a delay holds up each.
const CHUNK: usize = 16 << 10;

/// Where connections lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To an address.
    Tcp(SocketAddr),
    /// To a socket of this machine.
    Unix(PathBuf),
}

/// How a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Both ends read an error (RST).
    Reset,
    /// Both ends read an orderly end (FIN), wherever it comes.
    Close,
}

/// What a silent network swallows. Neither end hears of it; what was sent
/// arrives when the network speaks again, as TCP's retransmission has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// What clients send.
    ToTarget,
    /// What targets send.
    ToClient,
    /// Both.
    Both,
}

#[derive(Debug, Clone, Default)]
struct Faults {
    targets: Vec<Target>,
    refusing: bool,
    delay: Duration,
    silence: Option<Silence>,
    /// Rises with each cut; connections older than the last one are cut.
    cuts: usize,
    cut: Option<Cut>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToTarget,
    ToClient,
}

impl Faults {
    fn is_silent(&self, way: Way) -> bool {
        match self.silence {
            None => false,
            Some(Silence::Both) => true,
            Some(Silence::ToTarget) => way == Way::ToTarget,
            Some(Silence::ToClient) => way == Way::ToClient,
        }
    }
}

/// A running proxy; it ends, with its connections, with this value.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    faults: watch::Sender<Faults>,
    open: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy on a free port of this machine. A new connection takes
    /// the next of the targets that can be reached; without one it is reset.
    pub async fn start(targets: impl Into<Vec<Target>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let faults = watch::Sender::new(Faults {
            targets: targets.into(),
            ..Faults::default()
        });
        let open = Arc::new(AtomicUsize::new(0));
        let server = tokio::spawn(accept(listener, faults.subscribe(), open.clone()));
        Self {
            address,
            faults,
            open,
            server,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, for targets that speak HTTP.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Leads new connections to these targets; to none, they are reset.
    pub fn set_targets(&self, targets: impl Into<Vec<Target>>) {
        self.faults
            .send_modify(|faults| faults.targets = targets.into());
    }

    /// Cuts all connections there are.
    pub fn cut(&self, how: Cut) {
        self.faults.send_modify(|faults| {
            faults.cuts += 1;
            faults.cut = Some(how);
        });
    }

    /// Resets new connections as they come.
    pub fn refuse(&self) {
        self.faults.send_modify(|faults| faults.refusing = true);
    }

    /// Holds up all that passes by this much.
    pub fn delay(&self, by: Duration) {
        self.faults.send_modify(|faults| faults.delay = by);
    }

    /// Passes nothing on, and closes nothing: connections are half-open.
    pub fn silence(&self, what: Silence) {
        self.faults
            .send_modify(|faults| faults.silence = Some(what));
    }

    /// Ends every fault. Connections that were cut stay so.
    pub fn resume(&self) {
        self.faults.send_modify(|faults| {
            faults.refusing = false;
            faults.delay = Duration::ZERO;
            faults.silence = None;
        });
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(listener: TcpListener, faults: watch::Receiver<Faults>, open: Arc<AtomicUsize>) {
    let mut turn = 0;
    // Connections end with the proxy: their `faults` are closed.
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of descriptors, most likely.
            time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let faults = faults.clone();
        let open = open.clone();
        turn += 1;
        tokio::spawn(async move {
            open.fetch_add(1, Ordering::SeqCst);
            carry(client, turn, faults).await;
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Carries one connection to its end.
async fn carry(mut client: TcpStream, turn: usize, mut faults: watch::Receiver<Faults>) {
    let (targets, refusing, cuts) = {
        let faults = faults.borrow_and_update();
        (faults.targets.clone(), faults.refusing, faults.cuts)
    };
    let ordered = (0..targets.len()).map(|n| &targets[(turn + n) % targets.len()]);
    if !refusing {
        for target in ordered {
            match target {
                Target::Tcp(address) => {
                    if let Ok(mut target) = TcpStream::connect(address).await {
                        let _ = target.set_nodelay(true);
                        let end = forward(&mut client, &mut target, cuts, faults).await;
                        if end == Cut::Reset {
                            let _ = target.set_zero_linger();
                            let _ = client.set_zero_linger();
                        }
                        return;
                    }
                }
                Target::Unix(path) => {
                    if let Ok(mut target) = UnixStream::connect(path).await {
                        let end = forward(&mut client, &mut target, cuts, faults).await;
                        if end == Cut::Reset {
                            let _ = client.set_zero_linger();
                        }
                        return;
                    }
                }
            }
        }
    }
    let _ = client.set_zero_linger();
}

/// Passes on what either end says until both have ended, one has failed or the
/// connection is cut; says how to end it.
async fn forward(
    client: &mut TcpStream,
    target: &mut (impl AsyncRead + AsyncWrite + Unpin),
    cuts: usize,
    faults: watch::Receiver<Faults>,
) -> Cut {
    let _ = client.set_nodelay(true);
    let (client_reader, client_writer) = client.split();
    let (target_reader, target_writer) = tokio::io::split(target);
    let both = async {
        tokio::try_join!(
            pump(client_reader, target_writer, Way::ToTarget, faults.clone()),
            pump(target_reader, client_writer, Way::ToClient, faults.clone()),
        )
    };
    let mut watched = faults.clone();
    tokio::select! {
        ended = both => if ended.is_ok() { Cut::Close } else { Cut::Reset },
        cut = watched.wait_for(|faults| faults.cuts > cuts) => {
            cut.ok().and_then(|faults| faults.cut).unwrap_or(Cut::Reset)
        }
    }
}

async fn pump(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    way: Way,
    mut faults: watch::Receiver<Faults>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        audible(&mut faults, way).await?;
        let read = reader.read(&mut chunk).await?;
        let delay = faults.borrow().delay;
        if !delay.is_zero() {
            time::sleep(delay).await;
        }
        // It may have become silent while this waited for something to pass on.
        audible(&mut faults, way).await?;
        if read == 0 {
            return writer.shutdown().await;
        }
        writer.write_all(&chunk[..read]).await?;
    }
}

/// Waits until the network passes things on this way.
async fn audible(faults: &mut watch::Receiver<Faults>, way: Way) -> io::Result<()> {
    let heard = faults.wait_for(|faults| !faults.is_silent(way)).await;
    heard
        .map(|_| ())
        .map_err(|_| io::ErrorKind::ConnectionAborted.into())
}
