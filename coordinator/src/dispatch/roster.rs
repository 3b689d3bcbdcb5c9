//! The roster: the sessions of workers that this replica serves. It tells the
//! database of all of them every few seconds, which is what they live by (law 15),
//! and soon of what changes, for whoever asks who is connected.

mod meter;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use self::meter::Meter;
pub use crate::store::workers::{Condition, EmbedderState};
use crate::store::{
    Store, StoreError,
    workers::{SessionModel, SessionRow, session_grace},
};

/// Longest time between two touches.
const TOUCH_EVERY: Duration = Duration::from_secs(3);

/// What a session has in its row is written no more often than this, however
/// often it changes.
const PAUSE: Duration = Duration::from_secs(1);

/// When sessions are touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Longest time from one touch to the next; and for a touch that hangs.
    pub every: Duration,
    /// Shortest time from one touch to the next.
    pub pause: Duration,
}

impl Pace {
    /// The pace at which two touches in a row may be lost, and yet no session is
    /// untouched for so long that it is over.
    pub fn of(orphan_grace: Duration) -> Self {
        let every = TOUCH_EVERY.min(session_grace(orphan_grace) / 4);
        Self {
            every,
            pause: PAUSE.min(every / 2),
        }
    }
}

/// The sessions of this replica.
#[derive(Debug, Clone)]
pub struct Roster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    replica: Arc<str>,
    /// By the id: in one order for all who write rows.
    sessions: Mutex<BTreeMap<Arc<str>, Arc<Session>>>,
    /// Wakes when a row is to be written soon.
    changed: Notify,
}

/// What is known of a session.
#[derive(Debug)]
struct Session {
    id: Arc<str>,
    worker_id: Arc<str>,
    version: Arc<str>,
    namespaces: Option<Arc<[String]>>,
    opened: Instant,
    draining: AtomicBool,
    /// Whether its row was removed, or is about to be.
    left: AtomicBool,
    models: Mutex<Vec<Model>>,
}

#[derive(Debug)]
struct Model {
    name: String,
    condition: Condition,
    /// Since when the embedder is in its state.
    since: Instant,
    in_hand: usize,
    meter: Meter,
}

/// A worker that opens a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newcomer {
    /// What it calls itself.
    pub worker_id: String,
    /// The version that it says it is of.
    pub version: String,
    /// The namespaces that its token is limited to; `None` where it is not.
    pub namespaces: Option<Vec<String>>,
    /// The models that it embeds with.
    pub models: Vec<String>,
}

/// The place of a session on the roster. When it is dropped, this replica tells of
/// the session no more: the row grows old, and the leases end with it unless
/// another session takes them up.
#[derive(Debug)]
pub struct Place {
    roster: Roster,
    session: Arc<Session>,
}

impl Roster {
    /// An empty roster of the replica of this name.
    pub fn new(replica: &str) -> Self {
        Self {
            inner: Arc::new(Inner {
                replica: replica.into(),
                sessions: Mutex::default(),
                changed: Notify::new(),
            }),
        }
    }

    /// Gives a worker a session of its own, which is in the database when this
    /// returns.
    pub async fn enter(&self, store: &Store, newcomer: Newcomer) -> Result<Place, StoreError> {
        let opened = Instant::now();
        let models = newcomer.models.into_iter().map(|name| Model {
            name,
            condition: Condition::default(),
            since: opened,
            in_hand: 0,
            meter: Meter::new(opened),
        });
        let session = Arc::new(Session {
            id: format!("{:032x}", rand::random::<u128>()).into(),
            worker_id: newcomer.worker_id.into(),
            version: newcomer.version.into(),
            namespaces: newcomer.namespaces.map(Into::into),
            opened,
            draining: AtomicBool::new(false),
            left: AtomicBool::new(false),
            models: Mutex::new(models.collect()),
        });
        let row = session.row(&self.inner.replica, opened);
        store.enter_session(&row).await?;
        self.sessions().insert(session.id.clone(), session.clone());
        Ok(Place {
            roster: self.clone(),
            session,
        })
    }

    /// How many sessions are on it.
    pub fn len(&self) -> usize {
        self.sessions().len()
    }

    /// Whether no session is on it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until the sessions are to be touched, a pause after the last touch:
    /// soon where something has changed.
    pub async fn due(&self, pace: Pace) {
        let changed = self.inner.changed.notified();
        // Either way it is time.
        let _ = timeout(pace.every.saturating_sub(pace.pause), changed).await;
    }

    /// Takes one step: tells the database of all sessions, in one statement that
    /// is given up after `patience`. What was not told is due again soon.
    pub async fn touch(&self, store: &Store, patience: Duration) -> Result<(), StoreError> {
        let sessions: Vec<Arc<Session>> = self.sessions().values().cloned().collect();
        let now = Instant::now();
        let rows: Vec<SessionRow> = sessions
            .iter()
            .map(|session| session.row(&self.inner.replica, now))
            .collect();
        let told = store.touch_sessions(&rows, patience).await;
        if told.is_err() {
            self.inner.changed.notify_one();
        }
        told?;
        // The row of one that left meanwhile may have been written again behind it.
        for session in sessions.iter().filter(|it| it.left.load(Ordering::SeqCst)) {
            store.leave_session(&session.id).await?;
        }
        Ok(())
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<Session>>> {
        let sessions = self.inner.sessions.lock();
        sessions.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn models(&self) -> MutexGuard<'_, Vec<Model>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does this to a model of the session.
    fn with<T>(&self, model: &str, act: impl FnOnce(&mut Model) -> T) -> Option<T> {
        let mut models = self.models();
        models.iter_mut().find(|it| it.name == model).map(act)
    }

    fn row(&self, replica: &Arc<str>, now: Instant) -> SessionRow {
        SessionRow {
            session: self.id.clone(),
            worker_id: self.worker_id.clone(),
            version: self.version.clone(),
            replica: replica.clone(),
            namespaces: self.namespaces.clone(),
            models: self.models().iter_mut().map(|it| it.told(now)).collect(),
            open_for: now.saturating_duration_since(self.opened),
            draining: self.draining.load(Ordering::Relaxed),
        }
    }
}

impl Model {
    fn told(&mut self, now: Instant) -> SessionModel {
        let in_state = now.saturating_duration_since(self.since);
        SessionModel {
            name: self.name.clone(),
            condition: self.condition.clone(),
            in_state_ms: u64::try_from(in_state.as_millis()).unwrap_or(u64::MAX),
            chunks_in_hand: self.in_hand as u64,
            chunks_embedded: self.meter.total(),
            chunks_per_second: self.meter.read(now),
        }
    }
}

impl Place {
    /// The id of the session.
    pub fn session(&self) -> Arc<str> {
        self.session.id.clone()
    }

    /// Says how the embedder of a model of the session is.
    pub fn condition(&self, model: &str, condition: Condition) {
        let changed = self.session.with(model, |model| {
            if model.condition.state != condition.state {
                model.since = Instant::now();
            }
            let changed = model.condition != condition;
            model.condition = condition;
            changed
        });
        if changed == Some(true) {
            self.roster.inner.changed.notify_one();
        }
    }

    /// Says how many chunks of a model the worker has and has not answered.
    pub fn in_hand(&self, model: &str, chunks: usize) {
        self.session.with(model, |model| model.in_hand = chunks);
    }

    /// Counts chunks of a model that were embedded.
    pub fn embedded(&self, model: &str, chunks: usize) {
        self.session.with(model, |model| model.meter.add(chunks));
    }

    /// Says that the worker is to stop.
    pub fn draining(&self) {
        if !self.session.draining.swap(true, Ordering::Relaxed) {
            self.roster.inner.changed.notify_one();
        }
    }

    /// Ends the session, whose leases have ended, and removes its row. Where that
    /// fails the row grows old.
    pub async fn leave(self, store: &Store) -> Result<(), StoreError> {
        let session = self.session.clone();
        session.left.store(true, Ordering::SeqCst);
        drop(self);
        store.leave_session(&session.id).await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.roster.sessions().remove(&self.session.id);
    }
}
