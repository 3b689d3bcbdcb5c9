//! A server for tests that sends exactly the bytes it is told to, also those
//! that are no HTTP. What is proper HTTP, however rude, is the part of the fake
//! embedder of the end-to-end tests.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What the server does with a request.
#[derive(Clone)]
pub(super) enum Answer {
    /// Sends these bytes and closes the connection.
    Raw(Vec<u8>),
    /// Sends these bytes and then nothing, for ever.
    Stall(Vec<u8>),
    /// Sends these bytes and says that no more will come, but stays connected.
    HalfClose(Vec<u8>),
}

impl Answer {
    /// A whole response; `head` is the status and any headers, `\r\n` between.
    pub(super) fn whole(head: &str, body: &str) -> Self {
        let length = body.len();
        Self::Raw(format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n{body}").into())
    }
}

pub(super) struct RudeServer {
    pub(super) url: String,
    /// The requests as they came, head and body.
    pub(super) requests: mpsc::UnboundedReceiver<String>,
}

impl RudeServer {
    /// Gives every request the same answer, until the test's runtime ends.
    pub(super) async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer.clone(), sender.clone()));
            }
        });
        Self { url, requests }
    }
}

async fn serve(mut stream: TcpStream, answer: Answer, requests: mpsc::UnboundedSender<String>) {
    let mut request = Vec::new();
    while !is_whole(&request) {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    // Tests that do not look at requests may be over already.
    let _ = requests.send(String::from_utf8(request).unwrap());
    // A client that has read enough closes the connection under us.
    match answer {
        Answer::Raw(bytes) => {
            let _ = stream.write_all(&bytes).await;
        }
        Answer::Stall(bytes) => {
            let _ = stream.write_all(&bytes).await;
            std::future::pending::<()>().await;
        }
        Answer::HalfClose(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            std::future::pending::<()>().await;
        }
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0)
}
