//! Wake-ups: Postgres' notifications, handed to whoever waits for them in this
//! process. They only save time: whoever waits also looks again by itself now
//! and then, so a notification that is lost costs a moment and no work.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::postgres::PgListener;
use tokio::{
    sync::{Notify, broadcast, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::store::{CHANGE_CHANNEL, QUEUE_CHANNEL, REVOKE_CHANNEL, Store, is_writable};

/// How long changes are gathered before the other replicas hear of them.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(100);

/// The same for jobs that were queued; the first of them is told at once.
const ANNOUNCE_QUEUED_EVERY: Duration = Duration::from_millis(10);

/// How long to wait before listening again after the database went away.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// After how long without a notification the database is asked whether it is
/// still there and takes writes, and how long it may take to answer: a
/// connection that the network lost says nothing either.
const LISTEN_CHECK: Duration = Duration::from_secs(10);

/// Revocations that a session may be behind with.
const REVOCATIONS: usize = 1_024;

/// Where everything that waits registers, and everything that changes reports.
#[derive(Debug, Clone, Default)]
pub struct Wakeup {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// What this replica calls itself, drawn when it starts.
    replica: String,
    /// Counts the wake-ups.
    queue: watch::Sender<u64>,
    changes: Topics,
    /// Sources of which leases were revoked; `None`: it is not known of which.
    revoked: broadcast::Sender<Option<i64>>,
    any_change: watch::Sender<()>,
    /// Sources whose change the other replicas have still to hear of.
    unannounced: Mutex<HashSet<i64>>,
    announce: Notify,
    /// Wakes when the other replicas have still to hear that jobs were queued.
    announce_queued: Notify,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            replica: format!("replica-{:016x}", rand::random::<u64>()),
            queue: watch::Sender::new(0),
            changes: Topics::default(),
            revoked: broadcast::Sender::new(REVOCATIONS),
            any_change: watch::Sender::new(()),
            unannounced: Mutex::default(),
            announce: Notify::new(),
            announce_queued: Notify::new(),
        }
    }
}

impl Inner {
    fn signal_change(&self, source_id: i64) {
        self.changes.signal(source_id);
        self.any_change.send_replace(());
    }
}

/// One signal for each source that somebody watches.
#[derive(Debug, Default)]
struct Topics {
    senders: Mutex<HashMap<i64, watch::Sender<()>>>,
}

/// A place in the line of those who watch a source. Anything that happens after
/// it was taken wakes it, also when nobody was waiting on it just then.
#[derive(Debug)]
pub struct Subscription {
    inner: Arc<Inner>,
    source_id: i64,
    receiver: watch::Receiver<()>,
}

impl Subscription {
    /// Returns when something has happened since the last time.
    pub async fn changed(&mut self) {
        // The sender is in the map as long as this receiver lives.
        let _ = self.receiver.changed().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut senders = lock(&self.inner.changes.senders);
        if senders
            .get(&self.source_id)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            senders.remove(&self.source_id);
        }
    }
}

impl Topics {
    fn signal(&self, source_id: i64) {
        if let Some(sender) = lock(&self.senders).get(&source_id) {
            sender.send_replace(());
        }
    }

    fn signal_all(&self) {
        for sender in lock(&self.senders).values() {
            sender.send_replace(());
        }
    }
}

impl Wakeup {
    /// Wakes when a job is queued or due; counts how often.
    pub fn queue(&self) -> watch::Receiver<u64> {
        self.inner.queue.subscribe()
    }

    /// What this replica calls itself among the others.
    pub fn replica(&self) -> &str {
        &self.inner.replica
    }

    /// Wakes when this source or its jobs change.
    pub fn changes(&self, source_id: i64) -> Subscription {
        let receiver = lock(&self.inner.changes.senders)
            .entry(source_id)
            .or_insert_with(|| watch::Sender::new(()))
            .subscribe();
        Subscription {
            inner: self.inner.clone(),
            source_id,
            receiver,
        }
    }

    /// Wakes when any source or its jobs change.
    pub fn any_change(&self) -> watch::Receiver<()> {
        self.inner.any_change.subscribe()
    }

    /// Hears of which sources leases are revoked; `None`: it is not known of which. Who
    /// falls behind is to look at all.
    pub fn revoked(&self) -> broadcast::Receiver<Option<i64>> {
        self.inner.revoked.subscribe()
    }

    /// Reports that a source or its jobs changed: its watchers here wake at
    /// once, those of the other replicas a moment later.
    pub fn report_change(&self, source_id: i64) {
        self.inner.signal_change(source_id);
        lock(&self.inner.unannounced).insert(source_id);
        self.inner.announce.notify_one();
    }

    /// Reports that jobs were queued: who waits for them here wakes at once,
    /// who waits at another replica a moment later.
    pub fn report_queued(&self) {
        self.report_due();
        self.inner.announce_queued.notify_one();
    }

    /// Reports that a job is due.
    pub fn report_due(&self) {
        self.inner.queue.send_modify(|wakes| *wakes += 1);
    }

    /// Whether anybody waits for a job.
    pub fn is_awaited(&self) -> bool {
        self.inner.queue.receiver_count() > 0
    }

    /// Hears Postgres' notifications until `shutdown`.
    pub async fn listen(&self, store: &Store, shutdown: &CancellationToken) {
        let mut was_away = false;
        while !shutdown.is_cancelled() {
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.listen_once(store, &mut was_away) => ended,
            };
            let Err(error) = ended;
            if !was_away {
                tracing::warn!(%error, "Notifications from the database have stopped; polling goes on.");
                was_away = true;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LISTEN_AGAIN) => {}
            }
        }
    }

    async fn listen_once(
        &self,
        store: &Store,
        was_away: &mut bool,
    ) -> Result<Infallible, sqlx::Error> {
        let mut listener = PgListener::connect_with(store.aside_pool()).await?;
        listener.eager_reconnect(false);
        answer(listener.listen_all([QUEUE_CHANNEL, CHANGE_CHANNEL, REVOKE_CHANNEL])).await?;
        if std::mem::take(was_away) {
            tracing::info!("Notifications from the database are back.");
        }
        // What was sent while nobody listened is unknown.
        self.wake_all();
        loop {
            match timeout(LISTEN_CHECK, listener.try_recv()).await {
                Ok(Ok(Some(notification))) => {
                    self.hear(notification.channel(), notification.payload());
                }
                Ok(Ok(None)) => return Err(gone("the database ended the connection")),
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    if !answer(is_writable(&mut listener)).await? {
                        return Err(gone("the database takes no writes any more"));
                    }
                }
            }
        }
    }

    fn hear(&self, channel: &str, payload: &str) {
        match (channel, payload.parse()) {
            // Who waits here was woken when it was queued.
            (QUEUE_CHANNEL, _) if payload == self.inner.replica => {}
            (QUEUE_CHANNEL, _) => self.report_due(),
            (CHANGE_CHANNEL, Ok(source_id)) => self.inner.signal_change(source_id),
            (REVOKE_CHANNEL, Ok(source_id)) => {
                // Nobody may be listening.
                let _ = self.inner.revoked.send(Some(source_id));
                self.inner.signal_change(source_id);
            }
            _ => tracing::debug!(channel, "A notification of no known form was ignored."),
        }
    }

    fn wake_all(&self) {
        self.report_due();
        self.inner.changes.signal_all();
        self.inner.any_change.send_replace(());
        let _ = self.inner.revoked.send(None);
    }

    /// Tells the other replicas that jobs were queued here, until `shutdown`.
    pub async fn announce_queued(&self, store: &Store, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.inner.announce_queued.notified() => {}
            }
            if let Err(error) = store.announce_queued(&self.inner.replica).await {
                // Replicas look for due jobs by themselves.
                tracing::debug!(%error, "Queued jobs were not announced to the other replicas.");
            }
            tokio::time::sleep(ANNOUNCE_QUEUED_EVERY).await;
        }
    }

    /// Tells the other replicas what changed here, many changes at a time,
    /// until `shutdown`.
    pub async fn announce(&self, store: &Store, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.inner.announce.notified() => {}
            }
            let source_ids: Vec<i64> = std::mem::take(&mut *lock(&self.inner.unannounced))
                .into_iter()
                .collect();
            if !source_ids.is_empty()
                && let Err(error) = store.announce_changes(&source_ids).await
            {
                // Watchers on other replicas look again by themselves.
                tracing::debug!(%error, "Changes were not announced to the other replicas.");
            }
            tokio::time::sleep(ANNOUNCE_EVERY).await;
        }
    }
}

/// Waits for the database's answer, but not for ever.
async fn answer<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(LISTEN_CHECK, answer)
        .await
        .unwrap_or_else(|_| Err(gone("the database did not answer")))
}

fn gone(why: &str) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, why))
}

/// Locks without poisoning: nothing that holds these locks can panic half-way
/// through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_change_between_two_looks_is_not_missed() {
        let wakeup = Wakeup::default();
        let mut mine = wakeup.changes(1);
        let mut other = wakeup.changes(2);
        let mut revoked = wakeup.revoked();
        wakeup.report_change(1);
        assert!(mine.changed().now_or_never().is_some());
        assert!(mine.changed().now_or_never().is_none());
        assert!(other.changed().now_or_never().is_none());
        wakeup.hear(REVOKE_CHANNEL, "2");
        assert!(other.changed().now_or_never().is_some());
        assert_eq!(revoked.try_recv().unwrap(), Some(2));
    }

    #[test]
    fn a_source_that_nobody_watches_any_more_is_forgotten() {
        let wakeup = Wakeup::default();
        let first = wakeup.changes(1);
        let second = wakeup.changes(1);
        drop(first);
        assert_eq!(lock(&wakeup.inner.changes.senders).len(), 1);
        drop(second);
        assert_eq!(lock(&wakeup.inner.changes.senders).len(), 0);
    }
}
