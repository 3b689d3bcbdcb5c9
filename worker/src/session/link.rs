//! The stream of the session, across breaks: when it is opened, and how often that
//! is tried.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff};
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use crate::{
    backoff,
    coordinator::{Coordinator, Event, Opening, Requests, Session, Terms},
};

/// The waits between tries after the first, which is made at once. Jitter makes
/// them up to twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A stream that lived this long was a working one: the next is a first try again.
const STEADY: Duration = Duration::from_secs(2);

/// What is heard of the stream.
pub(super) enum Heard {
    /// It is time to open one.
    Due,
    Opened(Terms),
    /// It could not be opened, and why.
    NotOpened(String),
    Said(Event),
    /// It is over: `None` where the coordinator ended it in good order.
    Over(Option<String>),
}

/// A stream that is opened when it is due.
pub(super) struct Link {
    coordinator: Coordinator,
    state: State,
    /// The waits that are to come; unset before a first try.
    waits: Option<ExponentialBackoff>,
}

enum State {
    Closed {
        until: Instant,
    },
    Opening(BoxFuture<'static, Result<Session, String>>),
    Open {
        session: Box<Session>,
        since: Instant,
    },
}

impl Link {
    pub(super) fn new(coordinator: Coordinator) -> Self {
        let until = Instant::now();
        Self {
            coordinator,
            state: State::Closed { until },
            waits: None,
        }
    }

    /// What can be sent on, while the stream is open.
    pub(super) fn requests(&self) -> Option<&Requests> {
        match &self.state {
            State::Open { session, .. } => Some(&session.requests),
            State::Closed { .. } | State::Opening(_) => None,
        }
    }

    /// Begins to open a stream.
    pub(super) fn open(&mut self, opening: Opening) {
        let coordinator = self.coordinator.clone();
        self.state = State::Opening(Box::pin(async move { coordinator.open(opening).await }));
    }

    /// Has a stream that is being opened opened anew, with what is held now.
    pub(super) fn reconsider(&mut self) {
        if matches!(self.state, State::Opening(_)) {
            let until = Instant::now();
            self.state = State::Closed { until };
        }
    }

    /// Ends the stream; the next one is due after a wait.
    pub(super) fn close(&mut self) {
        let now = Instant::now();
        if matches!(&self.state, State::Open { since, .. } if now - *since >= STEADY) {
            self.waits = None;
        }
        let wait = self.waits.as_mut().map(Iterator::next);
        let wait = wait.map_or(Duration::ZERO, |wait| wait.unwrap_or(LONGEST_WAIT));
        let waits = || backoff::waits(FIRST_WAIT, LONGEST_WAIT).build();
        self.waits.get_or_insert_with(waits);
        self.state = State::Closed { until: now + wait };
    }

    /// Waits for what happens next. What the coordinator says waits while it is not
    /// to be `read`. Loses nothing when it is dropped.
    pub(super) async fn next(&mut self, read: bool) -> Heard {
        match &mut self.state {
            State::Closed { until } => {
                sleep_until(*until).await;
                Heard::Due
            }
            State::Opening(opening) => match opening.await {
                Ok(session) => {
                    let terms = session.terms;
                    self.state = State::Open {
                        session: Box::new(session),
                        since: Instant::now(),
                    };
                    Heard::Opened(terms)
                }
                Err(error) => {
                    self.close();
                    Heard::NotOpened(error)
                }
            },
            State::Open { session, .. } if read => {
                let over = match session.next().await {
                    Ok(Some(event)) => return Heard::Said(event),
                    Ok(None) => None,
                    Err(error) => Some(error),
                };
                self.close();
                Heard::Over(over)
            }
            State::Open { .. } => std::future::pending().await,
        }
    }
}
