//! Looks at the database that all who ask share. However many ask the same,
//! one of them looks at a time and the others get what it sees, with its age;
//! and all who watch take turns, so that they get their share of the database
//! and no more: what they see is older then, and nobody else is slower.

mod queue;
mod ready;

use std::{
    future::Future,
    panic::resume_unwind,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Mutex as Turnstile, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until},
};

pub(crate) use self::{
    queue::{Figures, Queue},
    ready::Ready,
};

/// The part of the connections that looks of watchers may have under way.
const SHARE: u32 = 4;

/// A turn lasts for so long at least, and so many times as long as its look.
const TURN: (Duration, u32) = (Duration::from_millis(20), 2);

/// What is looked at, for all who ask.
#[derive(Debug)]
pub(crate) struct Look<T> {
    /// The least time from one look to the next.
    pause: Duration,
    /// The same by what a look saw and how long it took.
    rest: fn(&T, Duration) -> Duration,
    turns: Option<Turns>,
    last: Arc<Mutex<Option<Seen<T>>>>,
    looking: Arc<Turnstile<()>>,
}

/// What a look saw.
#[derive(Debug, Clone)]
pub(crate) struct Seen<T> {
    /// What it was.
    pub(crate) value: T,
    /// When the look began: what had changed by then is in it.
    pub(crate) began: Instant,
    ended: Instant,
}

impl<T> Seen<T> {
    /// How long the look took.
    fn took(&self) -> Duration {
        self.ended - self.began
    }

    /// The same look, with something made of what it saw.
    pub(crate) fn map<U>(self, make: impl FnOnce(T) -> U) -> Seen<U> {
        Seen {
            value: make(self.value),
            began: self.began,
            ended: self.ended,
        }
    }
}

/// How new what is seen has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// No older than the least time between two looks.
    Lately,
    /// Seen by a look that begins after it was asked for.
    Now,
    /// The same, and no matter how short it is after another.
    AtOnce,
}

impl<T: Clone + Send + 'static> Look<T> {
    /// Looks when it is asked for more than it has, and not again before
    /// `pause` is over.
    pub(crate) fn every(pause: Duration) -> Self {
        Self {
            pause,
            rest: |_, _| Duration::ZERO,
            turns: None,
            last: Arc::default(),
            looking: Arc::default(),
        }
    }

    /// The same, and not before as much time is over as it says of what a look
    /// saw and how long that took.
    #[must_use]
    pub(crate) fn resting(self, rest: fn(&T, Duration) -> Duration) -> Self {
        Self { rest, ..self }
    }

    /// The same, when it has its turn.
    #[must_use]
    pub(crate) fn in_turn(self, turns: Turns) -> Self {
        Self {
            turns: Some(turns),
            ..self
        }
    }

    /// What the last look saw if that is new enough, or else what `query` sees,
    /// which is given what was seen last.
    pub(crate) async fn see<F>(&self, since: Since, query: impl FnOnce(Option<T>) -> F) -> Seen<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let asked = Instant::now();
        let is_good = |seen: &Seen<T>| match since {
            Since::Lately => Instant::now() < self.next(seen),
            Since::Now | Since::AtOnce => seen.began >= asked,
        };
        let (looking, before) = loop {
            // Whoever may look at once waits for nobody who does not look yet.
            match self.last() {
                Some(seen) if is_good(&seen) => return seen,
                Some(seen) if since == Since::Now => sleep_until(self.next(&seen)).await,
                _ => {}
            }
            let looking = Arc::clone(&self.looking).lock_owned().await;
            match self.last() {
                Some(seen) if is_good(&seen) => return seen,
                // Another has looked meanwhile, and began before it was asked for.
                Some(seen) if since == Since::Now && Instant::now() < self.next(&seen) => {}
                before => break (looking, before),
            }
        };
        let turn = match &self.turns {
            Some(turns) => Some(turns.take().await),
            None => None,
        };
        let query = query(before.map(|seen| seen.value));
        let last = Arc::clone(&self.last);
        // Whoever asked may go while it looks; the others get what it sees.
        let look = tokio::spawn(async move {
            let _looking = looking;
            let began = Instant::now();
            let value = query.await;
            drop(turn);
            let seen = Seen {
                value,
                began,
                ended: Instant::now(),
            };
            *lock(&last) = Some(seen.clone());
            seen
        });
        match look.await {
            Ok(seen) => seen,
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            // The runtime stops, and whoever asked with it.
            Err(_) => std::future::pending().await,
        }
    }

    /// What was seen last, however old it is.
    fn last(&self) -> Option<Seen<T>> {
        lock(&self.last).clone()
    }

    /// When the next look may begin.
    fn next(&self, last: &Seen<T>) -> Instant {
        last.ended + self.pause.max((self.rest)(&last.value, last.took()))
    }
}

/// The turns of all who look on behalf of watchers.
#[derive(Debug, Clone)]
pub(crate) struct Turns(Arc<Semaphore>);

/// A turn. It is over some time after it is dropped, so that looks that take
/// long leave the database as much time for others.
#[derive(Debug)]
pub(crate) struct Turn {
    permit: Option<OwnedSemaphorePermit>,
    began: Instant,
}

impl Turns {
    /// As many at a time as are their share of so many connections.
    pub(crate) fn of(connections: u32) -> Self {
        let share = (connections / SHARE).max(1);
        Self(Arc::new(Semaphore::new(share as usize)))
    }

    /// Waits for a turn.
    pub(crate) async fn take(&self) -> Turn {
        // They are never closed.
        let permit = Arc::clone(&self.0).acquire_owned().await.ok();
        Turn {
            permit,
            began: Instant::now(),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Where nothing runs any more, nobody waits for a turn.
        if let (Some(permit), Ok(runtime)) = (self.permit.take(), Handle::try_current()) {
            let took = self.began.elapsed();
            let rest = (took * TURN.1).max(TURN.0).saturating_sub(took);
            runtime.spawn(async move {
                sleep(rest).await;
                drop(permit);
            });
        }
    }
}

/// Locks without poisoning: nothing that holds this lock can panic.
fn lock<T>(last: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
