//! How much work there is, for all who want to know: KEDA, the page of metrics,
//! the status, and the samples of the last hour.
//!
//! To sum up the jobs takes the longer the more of them are open: seconds for
//! millions. Nobody keeps a sum beside them, for every claim and every result of
//! a namespace would have to wait for the one before to write it. So one look is
//! shared, it rests several times as long as it took, and says how old it is.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use super::{Look, Seen, Since};
use crate::store::{Store, StoreError, queue::QueueStats};

/// The least time between two looks for whoever follows the queue, however
/// often work is queued.
const PAUSE: Duration = Duration::from_secs(1);

/// How many times as long as it took a look rests: with twenty million open
/// jobs as with none it has a fifth of a connection.
const REST: u32 = 4;

/// A queue of so many jobs at most is looked at again whenever somebody asks: it
/// takes a few milliseconds.
const SMALL: i64 = 10_000;

/// How long is waited for a look at a small queue where another has been.
const WAIT: Duration = Duration::from_secs(2);

/// For how long what was seen is told while looks fail.
const KNOWN_FOR: Duration = Duration::from_mins(1);

/// What was seen of the queue.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    /// By namespace and model.
    pub(crate) stats: Arc<[QueueStats]>,
    /// When the look began.
    pub(crate) as_of: Instant,
}

impl Figures {
    /// How old they are.
    pub(crate) fn age(&self) -> Duration {
        self.as_of.elapsed()
    }

    /// How many jobs were summed up.
    fn jobs(&self) -> i64 {
        let jobs = self.stats.iter();
        jobs.map(|it| it.jobs_open() + it.jobs_failed + it.jobs_cancelled)
            .sum()
    }
}

/// What is known since the last look.
#[derive(Debug, Clone)]
enum Known {
    /// What it saw.
    Seen(Figures),
    /// It saw nothing.
    Failed {
        /// Why.
        error: StoreError,
        /// When the first of those began that failed one after another.
        since: Instant,
        /// What was seen before.
        before: Option<Figures>,
    },
}

impl Known {
    /// A look failed that began then, after this was known.
    fn failed(error: StoreError, began: Instant, before: Option<Self>) -> Self {
        let (since, before) = match before {
            Some(Self::Failed { since, before, .. }) => (since, before),
            Some(Self::Seen(figures)) => (began, Some(figures)),
            None => (began, None),
        };
        Self::Failed {
            error,
            since,
            before,
        }
    }

    /// What was seen last, be it by a look before the last.
    fn last_seen(&self) -> Option<&Figures> {
        match self {
            Self::Seen(figures) => Some(figures),
            Self::Failed { before, .. } => before.as_ref(),
        }
    }

    fn figures(self) -> Result<Figures, StoreError> {
        match self {
            Self::Seen(figures) => Ok(figures),
            Self::Failed { error, .. } => Err(error),
        }
    }

    /// Whether another look costs little.
    fn is_small(&self) -> bool {
        match self {
            Self::Seen(figures) => figures.jobs() <= SMALL,
            Self::Failed { .. } => self.is_away(),
        }
    }

    /// What was seen, for a minute also while looks fail.
    fn still_known(&self) -> Option<&Figures> {
        match self {
            Self::Seen(figures) => Some(figures),
            Self::Failed { since, before, .. } => {
                before.as_ref().filter(|_| since.elapsed() < KNOWN_FOR)
            }
        }
    }

    /// Whether the database did not look: it costs nothing to ask again.
    fn is_away(&self) -> bool {
        matches!(self, Self::Failed { error, .. } if !error.is_timeout())
    }

    /// For how long a look that took so long rests.
    fn rest(&self, took: Duration) -> Duration {
        if self.is_away() {
            Duration::ZERO
        } else {
            took * REST
        }
    }
}

/// The queue as a whole, which one look sees for all models and namespaces.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    store: Store,
    look: Arc<Look<Known>>,
}

impl Queue {
    /// The queue of this store.
    pub(crate) fn new(store: Store) -> Self {
        let look = Arc::new(Look::every(PAUSE).resting(Known::rest));
        Self { store, look }
    }

    /// Its figures, for whoever follows them and waits for as long as it takes.
    pub(crate) async fn see(&self, since: Since) -> Seen<Result<Figures, StoreError>> {
        self.look(since).await.map(Known::figures)
    }

    /// Its figures for one who asks once: of a small queue those of this moment,
    /// of another those that are there.
    pub(crate) async fn ask(&self) -> Result<Figures, StoreError> {
        self.soon(Since::AtOnce).await.figures()
    }

    /// Its figures for one who comes again and again. They are no older than a
    /// second where the queue is small.
    pub(crate) async fn lately(&self) -> Result<Figures, StoreError> {
        self.soon(Since::Lately).await.figures()
    }

    /// How old what was seen last is, and that, where a look has ever seen it: for
    /// a minute also while looks fail. After that nothing is known, which is
    /// another thing than nothing that waits.
    pub(crate) async fn known(&self) -> Option<(Duration, Option<Figures>)> {
        let known = self.soon(Since::Lately).await;
        let age = known.last_seen()?.age();
        Some((age, known.still_known().cloned()))
    }

    /// Looks, in its turn. Whoever is content with what is there relies on that
    /// somebody does now and then.
    pub(crate) async fn renew(&self) -> Result<bool, StoreError> {
        self.see(Since::Now).await.value?;
        Ok(false)
    }

    /// What a look at a small queue sees, if it does not hang, and otherwise what
    /// is there, if anything is.
    async fn soon(&self, since: Since) -> Known {
        let Some(last) = self.look.last() else {
            return self.look(since).await.value;
        };
        if !last.value.is_small() {
            return last.value;
        }
        match timeout(WAIT, self.look(since)).await {
            Ok(seen) => seen.value,
            Err(_) => last.value,
        }
    }

    async fn look(&self, since: Since) -> Seen<Known> {
        let store = self.store.clone();
        let query = |before: Option<Known>| async move {
            let as_of = Instant::now();
            match store.queue_stats().await {
                Ok(stats) => Known::Seen(Figures {
                    stats: stats.into(),
                    as_of,
                }),
                Err(error) => Known::failed(error, as_of, before),
            }
        };
        self.look.see(since, query).await
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::time::advance;

    use super::*;

    fn away() -> StoreError {
        sqlx::Error::Io(io::Error::from(io::ErrorKind::TimedOut)).into()
    }

    fn seen() -> Known {
        Known::Seen(Figures {
            stats: Arc::from([QueueStats::default()]),
            as_of: Instant::now(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn figures_stay_until_looks_have_failed_for_a_minute_and_then_go() {
        let seen = seen();
        advance(KNOWN_FOR * 2).await;
        // While looks do not fail they may be as old as they like.
        assert!(seen.still_known().is_some());
        let failed = Known::failed(away(), Instant::now(), Some(seen));
        advance(KNOWN_FOR / 2).await;
        let failed = Known::failed(away(), Instant::now(), Some(failed));
        assert_eq!(failed.still_known().unwrap().age(), KNOWN_FOR * 5 / 2);
        assert!(failed.clone().figures().is_err(), "a call is told why");
        advance(KNOWN_FOR / 2).await;
        assert!(failed.still_known().is_none());
        assert_eq!(failed.last_seen().unwrap().age(), KNOWN_FOR * 3);
        assert!(
            Known::failed(away(), Instant::now(), None)
                .last_seen()
                .is_none()
        );
    }

    #[test]
    fn a_look_that_the_database_took_part_in_rests_and_one_that_found_none_does_not() {
        let took = Duration::from_secs(3);
        let failed = Known::failed(away(), Instant::now(), None);
        assert_eq!(failed.rest(took), Duration::ZERO);
        assert_eq!(seen().rest(took), Duration::from_secs(12));
    }
}
