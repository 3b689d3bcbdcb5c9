//! Turns: of those who want the same thing one has it, and the others wait in
//! the order in which they came, holding nothing.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Mutex as Turnstile, OwnedMutexGuard};

type Waiting<K> = Mutex<HashMap<K, Arc<Turnstile<()>>>>;

/// The turns at things named by `K`. Nothing is kept of one that nobody wants.
pub(crate) struct Turns<K: Eq + Hash + Clone>(Arc<Waiting<K>>);

/// A turn, or the wait for one.
pub(crate) struct Turn<K: Eq + Hash + Clone> {
    waiting: Arc<Waiting<K>>,
    key: K,
    turnstile: Option<Arc<Turnstile<()>>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// Waits for a turn at `key`, which ends when what is returned is dropped.
    pub(crate) async fn take(&self, key: K) -> Turn<K> {
        let (turnstile, mut turn) = self.stand_at(key);
        turn.guard = Some(turnstile.lock_owned().await);
        turn
    }

    /// Takes the turn at `key` where nobody has it or waits for it.
    pub(crate) fn try_take(&self, key: &K) -> Option<Turn<K>> {
        let (turnstile, mut turn) = self.stand_at(key.clone());
        turn.guard = turnstile.try_lock_owned().ok();
        turn.guard.is_some().then_some(turn)
    }

    /// What is to be locked for a turn at `key`, and the turn without it.
    fn stand_at(&self, key: K) -> (Arc<Turnstile<()>>, Turn<K>) {
        let turnstile = Arc::clone(lock(&self.0).entry(key.clone()).or_default());
        let turn = Turn {
            waiting: Arc::clone(&self.0),
            key,
            turnstile: Some(Arc::clone(&turnstile)),
            guard: None,
        };
        (turnstile, turn)
    }
}

impl<K: Eq + Hash + Clone> Drop for Turn<K> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.waiting);
        drop(self.guard.take());
        drop(self.turnstile.take());
        // Whoever comes to it or leaves it holds the lock, so that the count is right.
        if waiting
            .get(&self.key)
            .is_some_and(|it| Arc::strong_count(it) == 1)
        {
            waiting.remove(&self.key);
        }
    }
}

fn lock<K>(waiting: &Waiting<K>) -> MutexGuard<'_, HashMap<K, Arc<Turnstile<()>>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Eq + Hash + Clone> Default for Turns<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> Clone for Turns<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash + Clone> fmt::Debug for Turns<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns")
            .field("wanted", &lock(&self.0).len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_are_taken_in_order_and_none_waits_for_another_thing() {
        let turns = Turns::<&str>::default();
        let order = Arc::new(Mutex::new(Vec::new()));
        let first = turns.take("a").await;
        let mut waiting = Vec::new();
        for place in 0..5 {
            let (turns, order) = (turns.clone(), Arc::clone(&order));
            waiting.push(tokio::spawn(async move {
                let _turn = turns.take("a").await;
                order.lock().unwrap().push(place);
                sleep(Duration::from_millis(1)).await;
            }));
            tokio::task::yield_now().await;
        }
        drop(turns.take("b").await);
        assert!(order.lock().unwrap().is_empty());
        drop(first);
        for wait in waiting {
            wait.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_of_what_nobody_wants() {
        let turns = Turns::<u8>::default();
        let held = turns.take(1).await;
        // One that stops waiting leaves nothing behind, and takes no turn.
        let given_up = timeout(Duration::from_secs(1), turns.take(1)).await;
        assert!(given_up.is_err());
        assert!(turns.try_take(&1).is_none());
        assert_eq!(lock(&turns.0).len(), 1);
        drop(held);
        assert_eq!(lock(&turns.0).len(), 0);
        drop(turns.take(1).await);
        drop(turns.try_take(&1).unwrap());
        assert_eq!(lock(&turns.0).len(), 0);
    }
}
