//! The streams behind a watch: one for each source, reopened when it breaks.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tonic::{Code, Status};
use weir_proto::v1::{WatchSourceRequest, WatchSourceResponse};

use crate::{connect::Session, failure};

/// Waits between tries to reopen a stream: from here, doubling, to here.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long the coordinator may be away before the watch gives up.
pub(super) const PATIENCE: Duration = Duration::from_mins(5);

/// What happens to one source. The number is its place among the watched.
#[derive(Debug)]
pub(super) enum Event {
    /// A new state.
    State(usize, Box<WatchSourceResponse>),
    /// The stream broke, for this reason, and is opened again.
    Lost(usize, String),
    /// The stream came to its end: nothing is open.
    Settled(usize),
    /// The stream cannot go on.
    Failed(usize, Status),
}

/// Watches one source and sends what happens, until it is settled (never with
/// `follow`), cannot go on, or nobody listens.
pub(super) async fn watch(
    session: Session,
    name: String,
    follow: bool,
    place: usize,
    events: mpsc::Sender<Event>,
) {
    let mut client = session.jobs();
    let mut wait = FIRST_WAIT;
    let mut last_seen = Instant::now();
    loop {
        let request = WatchSourceRequest {
            namespace: session.namespace.clone(),
            name: name.clone(),
            until_idle: !follow,
            ..WatchSourceRequest::default()
        };
        let broken = match client.watch_source(request).await {
            Ok(answer) => {
                let mut stream = answer.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(state)) => {
                            (wait, last_seen) = (FIRST_WAIT, Instant::now());
                            if events
                                .send(Event::State(place, Box::new(state)))
                                .await
                                .is_err()
                            {
                                return;
                            }
                        }
                        Ok(None) if follow => break Status::unavailable("the stream ended"),
                        Ok(None) => {
                            let _ = events.send(Event::Settled(place)).await;
                            return;
                        }
                        Err(status) => break status,
                    }
                }
            }
            Err(status) => status,
        };
        if !may_pass(broken.code()) || last_seen.elapsed() > PATIENCE {
            let _ = events.send(Event::Failed(place, broken)).await;
            return;
        }
        if events
            .send(Event::Lost(place, failure::reason(&broken)))
            .await
            .is_err()
        {
            return;
        }
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
