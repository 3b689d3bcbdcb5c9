//! The stream of one lease, across breaks: it is reopened with the same epoch
//! until the coordinator says that the lease is over.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff};
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::{
    backoff,
    coordinator::{BatchStream, CallError, Coordinator, Event, Lease},
    plan::{BatchResult, Held},
};

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A stream that lived this long was a working one, even if it had nothing to
/// say.
const STEADY: Duration = Duration::from_secs(2);
/// Leases after which an unreachable coordinator is given up. No clock here
/// decides whether the lease is lost; this only bounds how long a job that
/// most likely runs elsewhere is held on to.
const GIVE_UP_LEASES: u32 = 3;

/// Why there will be no further event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Closed {
    /// The lease is lost.
    Lost(String),
    /// The coordinator refuses what this session sends.
    Refused(String),
    /// The coordinator could not be reached for a long time.
    Unreachable(String),
}

/// A stream that reopens itself, sends again what was not acknowledged, and
/// keeps the lease alive with heartbeats.
pub(super) struct Link {
    coordinator: Coordinator,
    lease: Lease,
    window: u32,
    batch_size: u32,
    state: State,
    /// When nothing else is sent until then, a heartbeat is.
    heartbeat_at: Instant,
    /// Since when the coordinator has not been heard; unset while it is.
    broken_since: Option<Instant>,
    waits: ExponentialBackoff,
}

enum State {
    Opening(BoxFuture<'static, Result<BatchStream, CallError>>),
    Open {
        stream: Box<BatchStream>,
        since: Instant,
    },
}

impl Link {
    pub(super) fn new(
        coordinator: Coordinator,
        lease: Lease,
        window: u32,
        batch_size: u32,
    ) -> Self {
        let opening = open(
            Duration::ZERO,
            coordinator.clone(),
            lease.clone(),
            (window, batch_size),
            &Held::new(window),
        );
        Self {
            coordinator,
            lease,
            window,
            batch_size,
            state: State::Opening(opening),
            heartbeat_at: Instant::now(),
            broken_since: None,
            waits: waits(),
        }
    }

    /// Sends a result now, or with the others held when the stream is open
    /// again.
    pub(super) fn send(&mut self, result: &BatchResult) {
        if let State::Open { stream, .. } = &self.state {
            stream.send_result(result);
            self.heartbeat_at = Instant::now() + heartbeat_interval(&self.lease);
        }
    }

    /// Waits for what the coordinator says next; meanwhile sends heartbeats and
    /// reopens the stream, naming what is `held`. Loses nothing when it is
    /// dropped.
    pub(super) async fn next(&mut self, held: &Held) -> Result<Event, Closed> {
        loop {
            let error = match &mut self.state {
                State::Opening(opening) => match opening.await {
                    Ok(stream) => {
                        self.opened(stream, held);
                        continue;
                    }
                    Err(error) => error,
                },
                State::Open { stream, since } => tokio::select! {
                    event = stream.next() => match event {
                        Ok(Some(event)) => {
                            self.heard();
                            return Ok(event);
                        }
                        Ok(None) => CallError::Unavailable(
                            "the coordinator ended the stream before the job".to_owned(),
                        ),
                        Err(error) => error,
                    },
                    () = sleep_until(*since + STEADY), if self.broken_since.is_some() => {
                        self.heard();
                        continue;
                    }
                    () = sleep_until(self.heartbeat_at) => {
                        stream.send_heartbeat();
                        self.heartbeat_at = Instant::now() + heartbeat_interval(&self.lease);
                        continue;
                    }
                },
            };
            self.broken(error, held)?;
        }
    }

    fn opened(&mut self, stream: BatchStream, held: &Held) {
        for result in held.results() {
            stream.send_result(result);
        }
        let since = Instant::now();
        self.heartbeat_at = since + heartbeat_interval(&self.lease);
        let stream = Box::new(stream);
        self.state = State::Open { stream, since };
    }

    /// The coordinator is back: it said something, or at least did not end the
    /// stream at once, as it does while its database is away.
    fn heard(&mut self) {
        if self.broken_since.is_some() {
            info!("The stream is open again.");
            self.is_whole();
        }
    }

    fn is_whole(&mut self) {
        if self.broken_since.take().is_some() {
            self.waits = waits();
        }
    }

    /// Starts to reopen the stream, where that makes sense.
    fn broken(&mut self, error: CallError, held: &Held) -> Result<(), Closed> {
        let error = match error {
            CallError::LeaseLost(reason) => return Err(Closed::Lost(reason)),
            CallError::Refused(reason) => return Err(Closed::Refused(reason)),
            CallError::Unavailable(error) => error,
        };
        if matches!(&self.state, State::Open { since, .. } if since.elapsed() >= STEADY) {
            self.is_whole();
        }
        match self.broken_since {
            Some(since) if since.elapsed() >= self.lease.duration * GIVE_UP_LEASES => {
                return Err(Closed::Unreachable(error));
            }
            Some(_) => debug!(error, "The stream could not be reopened yet."),
            None => {
                warn!(error, "The stream broke; reopening it.");
                self.broken_since = Some(Instant::now());
            }
        }
        let wait = self.waits.next().unwrap_or(LONGEST_WAIT);
        self.state = State::Opening(open(
            wait,
            self.coordinator.clone(),
            self.lease.clone(),
            (self.window, self.batch_size),
            held,
        ));
        Ok(())
    }
}

/// A heartbeat comes a third into the lease, so that two may be late.
fn heartbeat_interval(lease: &Lease) -> Duration {
    lease.duration / 3
}

fn open(
    wait: Duration,
    coordinator: Coordinator,
    lease: Lease,
    (window, batch_size): (u32, u32),
    held: &Held,
) -> BoxFuture<'static, Result<BatchStream, CallError>> {
    let held = held.keys();
    Box::pin(async move {
        sleep(wait).await;
        coordinator.open(&lease, window, batch_size, held).await
    })
}

fn waits() -> ExponentialBackoff {
    backoff::waits(FIRST_WAIT, LONGEST_WAIT).build()
}
