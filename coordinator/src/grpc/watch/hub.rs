//! One look for all who watch the same thing.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tonic::Status;
use weir_proto::v1;

use super::{PAUSE, POLLS};
use crate::grpc::Services;

/// What a look saw: a state, or why there is none.
pub(super) type Seen<T> = Option<Result<Arc<T>, Status>>;

/// Looks at something for all who watch it.
pub(super) trait Look: Send + 'static {
    /// What it sees.
    type State: PartialEq + Send + Sync + 'static;

    /// Looks at it. `before`: what it saw last.
    fn look(
        &mut self,
        services: &Services,
        before: Option<&Self::State>,
    ) -> impl Future<Output = Result<Self::State, Status>> + Send;

    /// Waits until it may have changed.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// The least time between two looks.
    fn pause(&self) -> Duration {
        PAUSE
    }

    /// Whether nothing can change after this state.
    fn is_last(_: &Self::State) -> bool {
        false
    }
}

/// All that is watched.
#[derive(Debug, Default)]
pub(crate) struct Hubs {
    pub(super) jobs: Hub<i64, v1::Job>,
    /// By the source's row: one that is deleted and put again is another.
    pub(super) sources: Hub<i64, super::source::SourceState>,
    pub(super) pages: Hub<super::page::PageKey, super::page::PageState>,
    pub(super) whole: Hub<Option<String>, v1::GetStatusResponse>,
}

/// Things of one kind that are watched.
#[derive(Debug)]
pub(super) struct Hub<K, T> {
    watched: Mutex<HashMap<K, Weak<watch::Sender<Seen<T>>>>>,
}

impl<K, T> Default for Hub<K, T> {
    fn default() -> Self {
        Self {
            watched: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash + Clone + Send + Sync, T: PartialEq + Send + Sync + 'static> Hub<K, T> {
    /// Joins those who watch `key`, or is the first: then `look` is looked with,
    /// for as long as anybody watches.
    pub(super) fn join<L: Look<State = T>>(
        &self,
        services: &Services,
        key: &K,
        look: impl FnOnce() -> L,
    ) -> watch::Receiver<Seen<T>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = watched.get(key).and_then(Weak::upgrade) {
            let mut receiver = sender.subscribe();
            receiver.mark_changed();
            return receiver;
        }
        watched.retain(|_, sender| sender.strong_count() > 0);
        let (sender, receiver) = watch::channel(None);
        let sender = Arc::new(sender);
        watched.insert(key.clone(), Arc::downgrade(&sender));
        services
            .tasks
            .spawn(keep_looking(services.clone(), look(), sender));
        receiver
    }
}

async fn keep_looking<L: Look>(
    services: Services,
    mut look: L,
    sender: Arc<watch::Sender<Seen<L::State>>>,
) {
    let unasked = services.poll_interval * POLLS;
    loop {
        let before = match &*sender.borrow() {
            Some(Ok(state)) => Some(Arc::clone(state)),
            _ => None,
        };
        let state = look.look(&services, before.as_deref()).await;
        let over = state.as_ref().map_or(true, L::is_last);
        sender.send_if_modified(|seen| {
            let same = matches!((&*seen, &state), (Some(Ok(seen)), Ok(state)) if **seen == *state);
            if !same {
                *seen = Some(state.map(Arc::new));
            }
            !same
        });
        if over {
            // Whoever comes now begins anew.
            return;
        }
        tokio::select! {
            () = services.shutdown.cancelled() => return,
            () = sender.closed() => return,
            () = async {
                tokio::time::sleep(look.pause()).await;
                let _ = timeout(unasked, look.changed()).await;
            } => {}
        }
    }
}

/// Waits for the next thing to be seen that was not seen before. `None`: nobody
/// looks any more; whoever wants to see more joins again.
pub(super) async fn next<T>(
    receiver: &mut watch::Receiver<Seen<T>>,
) -> Option<Result<Arc<T>, Status>> {
    loop {
        receiver.changed().await.ok()?;
        if let Some(seen) = receiver.borrow_and_update().clone() {
            return Some(seen);
        }
    }
}
