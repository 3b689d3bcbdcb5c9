//! Streams that go on: opened again when they break, from where they were.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};
use weir_proto::v1;

use crate::failure;

/// Waits between tries to open a stream again: from here, doubling, to here.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long the coordinator may be away before the stream is given up.
pub(crate) const PATIENCE: Duration = Duration::from_mins(5);

/// What happens to a stream.
#[derive(Debug)]
pub(crate) enum Event<M> {
    /// A message.
    Message(Box<M>),
    /// It broke, for this reason, and is opened again. Where messages have no
    /// cursor, the next one begins anew.
    Lost(String),
    /// It came to its end.
    Ended,
    /// It cannot go on.
    Failed(Status),
}

/// A message that says where a broken stream goes on.
pub(crate) trait Resumable: Send + 'static {
    /// The cursor to call again with; none where one begins anew.
    fn cursor(&self) -> Option<&str> {
        None
    }
}

impl Resumable for v1::WatchSourceResponse {
    fn cursor(&self) -> Option<&str> {
        Some(&self.cursor)
    }
}

impl Resumable for v1::WatchSourcesResponse {}

impl Resumable for v1::WatchStatusResponse {}

/// Opens a stream, and again whenever it breaks, with the cursor of the last
/// message. An `endless` one never comes to its end: it was cut off. Ends when
/// nobody listens.
pub(crate) fn keep_open<M, F>(
    open: impl FnMut(String) -> F + Send + 'static,
    endless: bool,
) -> ReceiverStream<Event<M>>
where
    M: Resumable,
    F: Future<Output = Result<Response<Streaming<M>>, Status>> + Send,
{
    let (events, received) = mpsc::channel(16);
    tokio::spawn(async move {
        let closed = events.clone();
        tokio::select! {
            last = run(open, endless, &events) => {
                // Nobody has to hear of it.
                let _ = events.send(last).await;
            }
            () = closed.closed() => {}
        }
    });
    ReceiverStream::new(received)
}

/// Returns what came last.
async fn run<M, F>(
    mut open: impl FnMut(String) -> F,
    endless: bool,
    events: &mpsc::Sender<Event<M>>,
) -> Event<M>
where
    M: Resumable,
    F: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    let (mut cursor, mut wait) = (String::new(), FIRST_WAIT);
    // Since when nothing has worked.
    let mut lost: Option<Instant> = None;
    loop {
        let broken = match open(cursor.clone()).await {
            Err(status) => status,
            Ok(answer) => {
                let (opened, mut stream) = (Instant::now(), answer.into_inner());
                let broken = loop {
                    match stream.message().await {
                        Ok(Some(message)) => {
                            (wait, lost) = (FIRST_WAIT, None);
                            message.cursor().unwrap_or_default().clone_into(&mut cursor);
                            // Whoever goes away ends this from outside.
                            let _ = events.send(Event::Message(Box::new(message))).await;
                        }
                        Ok(None) if endless => break Status::unavailable("the stream ended"),
                        Ok(None) => return Event::Ended,
                        Err(status) => break status,
                    }
                };
                // Silence is not failure: nothing changed.
                if opened.elapsed() > LONGEST_WAIT {
                    (wait, lost) = (FIRST_WAIT, None);
                }
                broken
            }
        };
        if broken.code() == Code::InvalidArgument && !cursor.is_empty() {
            // A coordinator of another version may not know it.
            cursor.clear();
            continue;
        }
        if !may_pass(broken.code()) || lost.is_some_and(|since| since.elapsed() > PATIENCE) {
            return Event::Failed(broken);
        }
        lost.get_or_insert_with(Instant::now);
        let _ = events.send(Event::Lost(failure::reason(&broken))).await;
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Whether a broken stream may work again: the coordinator or the network is
/// at fault, not the request. A broken connection comes as `Unknown`,
/// `Internal` or `Cancelled`, depending on how it broke.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

#[cfg(test)]
mod tests;
