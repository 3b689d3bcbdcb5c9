//! The claimer: claims of this replica's workers, a few at a time, and none of a
//! queue that is known to have nothing left. A job that comes to a queue wakes
//! all who wait for one: without this each of them would ask the database.
//!
//! A claim reads its queue from the head, and with it whatever was claimed there
//! and is kept for a long transaction's sake. While such a one lasts, that grows
//! with every claim; so most looks begin where the one before ended, and looks
//! at the whole queue take no more than a fiftieth of the time.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    store::{
        Store, StoreError,
        claim::{Claim, Claimed, Reached},
        queue::Share,
        rows::Job,
    },
    wakeup::Wakeup,
};

/// Claims under way at the same time.
const CLAIMS: usize = 3;

/// How many times as long as a look at the whole queue took there is none, and
/// the most that this may be. For so long a job may wait that was due before
/// others of its priority which were claimed already: its write took longer.
const REST: (u32, Duration) = (50, Duration::from_secs(1));

/// Most queues that something is known of; all is forgotten beyond.
const KNOWN: usize = 1_000;

/// Claims for the workers of this replica.
#[derive(Debug)]
pub struct Claimer {
    store: Store,
    wakeup: Wakeup,
    shutdown: CancellationToken,
    turns: Semaphore,
    known: Mutex<HashMap<Share, Known>>,
}

/// What is known of a queue.
#[derive(Debug, Clone, Default)]
struct Known {
    reached: Reached,
    /// Until when looks begin after what was reached.
    rest: Option<Instant>,
    nothing_left: Option<NothingLeft>,
}

/// A look found that nothing was left.
#[derive(Debug, Clone, Copy)]
struct NothingLeft {
    /// At which wake-up.
    wake: u64,
    /// Whether it was a look at the whole queue; it holds until `rest` if not.
    whole: bool,
}

impl Known {
    fn is_resting(&self) -> bool {
        self.rest.is_some_and(|rest| Instant::now() < rest)
    }

    fn has_nothing(&self, wake: u64) -> bool {
        self.nothing_left
            .is_some_and(|left| left.wake == wake && (left.whole || self.is_resting()))
    }

    /// When to look again, whatever happens: where not all was looked at.
    fn again(&self) -> Option<Instant> {
        self.rest
            .filter(|_| self.nothing_left.is_some_and(|left| !left.whole))
    }
}

/// What a look brought.
struct Look {
    jobs: Vec<Job>,
    began: SystemTime,
    /// See [`Known::again`].
    again: Option<Instant>,
}

impl Claimer {
    /// Claims from this store. Nobody waits after `shutdown`.
    pub fn new(store: Store, wakeup: Wakeup, shutdown: CancellationToken) -> Self {
        Self {
            store,
            wakeup,
            shutdown,
            turns: Semaphore::new(CLAIMS),
            known: Mutex::default(),
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
            let look = self.look(claim, &share, &mut queue, wait.is_zero());
            let Look { jobs, began, again } = look.await?;
            let over = Instant::now() >= until || self.shutdown.is_cancelled();
            if over || !jobs.is_empty() {
                return Ok((jobs, began));
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok((jobs, began)),
                () = sleep_until(again.map_or(until, |again| again.min(until))) => {}
                _ = queue.changed() => {}
            }
        }
    }

    /// Claims when it is its turn, unless nothing was left by then and nothing
    /// has come since. Who does not wait is told of all there is `now`.
    async fn look(
        &self,
        claim: &Claim<'_>,
        share: &Share,
        queue: &mut watch::Receiver<u64>,
        now: bool,
    ) -> Result<Look, StoreError> {
        // It is never closed.
        let _turn = self.turns.acquire().await;
        let began = SystemTime::now();
        // What is queued while the claim is under way may be beyond its sight, and wakes anew.
        let wake = *queue.borrow_and_update();
        let mut known = self.known().get(share).cloned().unwrap_or_default();
        let mut jobs = Vec::new();
        if !now && known.has_nothing(wake) {
            let again = known.again();
            return Ok(Look { jobs, began, again });
        }
        let resting = known.is_resting();
        if resting {
            jobs = self.claim_of(false, claim, &mut known, wake).await?;
        }
        if !resting || (now && jobs.is_empty()) {
            let began = Instant::now();
            jobs = self.claim_of(true, claim, &mut known, wake).await?;
            known.rest = Some(Instant::now() + (began.elapsed() * REST.0).min(REST.1));
        }
        let again = known.again();
        let mut all = self.known();
        if all.len() >= KNOWN {
            all.clear();
        }
        all.insert(share.clone(), known);
        Ok(Look { jobs, began, again })
    }

    /// Claims of the whole queue, or of what comes after what was reached, and
    /// keeps what that tells.
    async fn claim_of(
        &self,
        whole: bool,
        claim: &Claim<'_>,
        known: &mut Known,
        wake: u64,
    ) -> Result<Vec<Job>, StoreError> {
        let reached = (!whole).then_some(&known.reached);
        let Claimed { jobs, nothing_left } = self.store.claim_from(reached, claim).await?;
        known.reached.advance(&jobs);
        known.nothing_left = nothing_left.then_some(NothingLeft { wake, whole });
        Ok(jobs)
    }

    /// Locks without poisoning: nothing that holds this lock can panic.
    fn known(&self) -> MutexGuard<'_, HashMap<Share, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
