//! What clients watch: the present first, then every change, not too often, and
//! where a stream that broke goes on.
//!
//! Watchers of the same thing share one look at the database, and those of
//! different things take turns: each looks when its thing changes and sends what
//! is new to it. One that is slow skips states; nothing is kept for it.

mod cursor;
mod hub;
mod job;
mod page;
mod source;
mod whole;

use std::{pin::Pin, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use super::{Services, error::going_away};

pub(in crate::grpc) use self::hub::Follow;
pub(crate) use self::hub::Hubs;
pub(super) use self::{
    cursor::Cursor,
    job::watch_job,
    page::{PageKey, watch_sources},
    source::watch_source,
    whole::watch_status,
};

/// Least time between two looks at something: five a second.
const PAUSE: Duration = Duration::from_millis(200);

/// Whoever waits for a change looks again by itself after this many poll
/// intervals, should a notification be lost.
const POLLS: u32 = 5;

/// A stream of what is watched.
pub(super) type Watch<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Where a watcher's answers go.
type Answers<T> = mpsc::Sender<Result<T, Status>>;

/// Serves a watcher in a task of its own, which ends with the client, with this
/// replica, or when `answer` does.
pub(super) fn serve<T, F>(
    services: &Services,
    answer: impl FnOnce(Answers<T>) -> F + Send + 'static,
) -> Watch<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    let shutdown = services.shutdown.clone();
    services.tasks.spawn(async move {
        let (last, closed) = (sender.clone(), sender.clone());
        let status = tokio::select! {
            // A client waits here for as long as the job takes; it must not hold up the stop.
            () = shutdown.cancelled() => going_away(),
            () = closed.closed() => return,
            answered = answer(sender) => match answered {
                Ok(()) => return,
                Err(status) => status,
            },
        };
        let _ = last.send(Err(status)).await;
    });
    Box::pin(ReceiverStream::new(receiver))
}

/// The client has gone.
pub(super) fn gone<T>(_: mpsc::error::SendError<T>) -> Status {
    Status::cancelled("the client has gone")
}
