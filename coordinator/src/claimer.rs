//! The claimer: claims of this replica's workers, a few at a time, and none of a
//! queue that is known to have nothing left. A job that comes to a queue wakes
//! all who wait for one: without this each of them would ask the database.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    store::{
        Store, StoreError,
        claim::{Claim, Claimed},
        queue::Share,
        rows::Job,
    },
    wakeup::Wakeup,
};

/// Claims under way at the same time.
const CLAIMS: usize = 3;

/// Most queues that are known to have nothing left; all are forgotten beyond.
const KNOWN: usize = 1_000;

/// Claims for the workers of this replica.
#[derive(Debug)]
pub struct Claimer {
    store: Store,
    wakeup: Wakeup,
    shutdown: CancellationToken,
    turns: Semaphore,
    /// At which wake-up a queue had nothing left.
    nothing_left: Mutex<HashMap<Share, u64>>,
}

impl Claimer {
    /// Claims from this store. Nobody waits after `shutdown`.
    pub fn new(store: Store, wakeup: Wakeup, shutdown: CancellationToken) -> Self {
        Self {
            store,
            wakeup,
            shutdown,
            turns: Semaphore::new(CLAIMS),
            nothing_left: Mutex::default(),
        }
    }

    /// Claims, or waits until there is something to claim. Returns when the
    /// claim began, too.
    pub async fn claim(
        &self,
        claim: &Claim<'_>,
        wait: Duration,
    ) -> Result<(Vec<Job>, SystemTime), StoreError> {
        let until = Instant::now() + wait;
        let share = Share {
            models: claim.models.to_vec(),
            namespaces: claim.namespaces.map(<[String]>::to_vec),
        };
        // The place in line is taken before the first look, so that no job falls between.
        let mut queue = self.wakeup.queue();
        loop {
            let (jobs, began) = self.look(claim, &share, wait.is_zero()).await?;
            if !jobs.is_empty() {
                return Ok((jobs, began));
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok((Vec::new(), began)),
                () = sleep_until(until) => return Ok((Vec::new(), began)),
                _ = queue.changed() => {}
            }
        }
    }

    /// Claims when it is its turn, unless nothing was left by then and nothing
    /// has come since.
    async fn look(
        &self,
        claim: &Claim<'_>,
        share: &Share,
        anyway: bool,
    ) -> Result<(Vec<Job>, SystemTime), StoreError> {
        // It is never closed.
        let _turn = self.turns.acquire().await;
        let began = SystemTime::now();
        // What is queued while the claim is under way may be beyond its sight, and wakes anew.
        let wake = self.wakeup.queue_wake();
        if !anyway && self.lock().get(share) == Some(&wake) {
            return Ok((Vec::new(), began));
        }
        let Claimed { jobs, nothing_left } = self.store.claim(claim).await?;
        if nothing_left {
            let mut known = self.lock();
            if known.len() >= KNOWN {
                known.clear();
            }
            known.insert(share.clone(), wake);
        }
        Ok((jobs, began))
    }

    /// Locks without poisoning: nothing that holds this lock can panic.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Share, u64>> {
        self.nothing_left
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
