//! One look for all who want to know the same.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tonic::Status;
use weir_proto::v1;

use super::{PAUSE, POLLS, page, source, whole};
use crate::{
    grpc::Services,
    look::{Look, Seen, Since, Turns},
    store::Scope,
};

/// A state of something, or why there is none.
pub(super) type State<T> = Result<Arc<T>, Status>;

/// All that is watched, and what is asked about the whole.
#[derive(Debug)]
pub(crate) struct Hubs {
    pub(super) jobs: Hub<i64, v1::Job>,
    /// By the source's row: one that is deleted and put again is another.
    pub(super) sources: Hub<i64, source::SourceState>,
    pub(super) pages: Hub<page::PageKey, page::PageState>,
    pub(super) whole: Hub<Scope, v1::GetStatusResponse>,
    /// The same for those who ask once: they wait for no watcher.
    pub(in crate::grpc) status: Hub<Scope, v1::GetStatusResponse>,
    /// By how many minutes are asked for.
    pub(in crate::grpc) activity: Hub<i32, v1::GetActivityResponse>,
    /// The turns of those who watch.
    pub(super) turns: Turns,
}

impl Hubs {
    /// Nothing is watched yet; whoever will takes these turns.
    pub(crate) fn new(turns: &Turns) -> Self {
        let watched = |pause| (pause, Some(turns.clone()));
        let asked = || (Duration::ZERO, None);
        Self {
            jobs: Hub::new(watched(PAUSE)),
            sources: Hub::new(watched(PAUSE)),
            pages: Hub::new(watched(page::PAUSE)),
            whole: Hub::new(watched(whole::PAUSE)),
            status: Hub::new(asked()),
            activity: Hub::new(asked()),
            turns: turns.clone(),
        }
    }
}

/// Looks at things of one kind, each for as long as anybody wants it.
#[derive(Debug)]
pub(in crate::grpc) struct Hub<K, T> {
    /// The least time between two looks at one thing.
    pause: Duration,
    turns: Option<Turns>,
    looks: Mutex<HashMap<K, Weak<Look<State<T>>>>>,
}

impl<K: Eq + Hash + Clone, T: Send + Sync + 'static> Hub<K, T> {
    fn new((pause, turns): (Duration, Option<Turns>)) -> Self {
        Self {
            pause,
            turns,
            looks: Mutex::default(),
        }
    }

    /// The look at a thing, shared with all who have it.
    pub(super) fn join(&self, key: &K) -> Arc<Look<State<T>>> {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = looks.get(key).and_then(Weak::upgrade) {
            return look;
        }
        looks.retain(|_, look| look.strong_count() > 0);
        let look = Look::every(self.pause);
        let look = Arc::new(match &self.turns {
            Some(turns) => look.in_turn(turns.clone()),
            None => look,
        });
        looks.insert(key.clone(), Arc::downgrade(&look));
        look
    }

    /// Asks once: of all who ask the same at the same time, one does.
    pub(in crate::grpc) async fn ask<F>(&self, key: K, query: F) -> Result<T, Status>
    where
        T: Clone,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let look = self.join(&key);
        let query = |_| async move { Ok(Arc::new(query.await?)) };
        Ok(Arc::unwrap_or_clone(
            look.see(Since::Now, query).await.value?,
        ))
    }
}

/// When to look at a thing for one who follows it: as it was lately, and as it
/// is whenever it may have changed. Whoever begins has taken its place in the
/// line of those who are woken, so that no change falls between.
#[derive(Debug)]
pub(in crate::grpc) struct Follow {
    joined: Instant,
    /// When to look again unasked, should a notification be lost.
    unasked: Duration,
    /// Whether what was seen last is from when it had joined; `None` before
    /// anything was seen.
    is_new: Option<bool>,
}

impl Follow {
    /// Begins.
    pub(in crate::grpc) fn new(services: &Services) -> Self {
        Self {
            joined: Instant::now(),
            unasked: services.poll_interval * POLLS,
            is_new: None,
        }
    }

    /// Waits until it is time to look, and tells how new what is seen has to be.
    pub(in crate::grpc) async fn wait(&self, changed: impl Future) -> Since {
        match self.is_new {
            None => return Since::Lately,
            // It may have changed since, which woke nobody here.
            Some(false) => {}
            Some(true) => {
                let _ = timeout(self.unasked, changed).await;
            }
        }
        Since::Now
    }

    /// Takes note of a look, and gives what it saw. `None`: it failed before
    /// this one came, and is worth another.
    pub(in crate::grpc) fn take<T, E: Into<Status>>(
        &mut self,
        seen: Seen<Result<T, E>>,
    ) -> Result<Option<T>, Status> {
        let is_new = seen.began >= self.joined;
        self.is_new = Some(is_new);
        match seen.value {
            Ok(state) => Ok(Some(state)),
            Err(error) if is_new => Err(error.into()),
            Err(_) => Ok(None),
        }
    }
}
