//! The claimer: claims of this replica's workers, of each queue one after the
//! other, and none of a queue that is known to have nothing left. A job that comes
//! to a queue wakes all who wait for one: without this each of them would ask the
//! database.
//!
//! Whose turn it is among the namespaces is decided here, by where their jobs
//! begin and by what they got from this replica: so a claim reads no more than it
//! takes, however many namespaces and jobs there are. Where jobs begin is looked up
//! now and then; in between a claim begins where the one before it ended. A look
//! reads whatever was claimed and is kept for a long transaction's sake, so that
//! looks take a twentieth of the time, a fifth where namespaces are very many; and
//! it shows what is due before jobs that were claimed already, because its write
//! took longer.

mod queue;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{self, Semaphore, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::queue::{Next, Queue};
use crate::{
    job::fair_share::Weights,
    store::{Store, StoreError, claim::Claim, queue::Share, rows::Job},
    wakeup::Wakeup,
};

/// Claims under way at the same time, each of another queue.
const CLAIMS: usize = 3;

/// How many times as long as a look took there is none, and the most that this may
/// be, unless it is less than so many times as long.
const REST: (u32, Duration) = (20, Duration::from_millis(250));
const LEAST_REST: u32 = 4;

/// How long a worker that has its hands full waits at least between two tries.
const FULL_HANDS: Duration = Duration::from_millis(20);

/// Most queues that something is known of; all is forgotten beyond.
const KNOWN: usize = 1_000;

/// Claims for the workers of this replica.
#[derive(Debug)]
pub struct Claimer {
    store: Store,
    wakeup: Wakeup,
    weights: Weights,
    turns: Semaphore,
    known: Mutex<HashMap<Share, Arc<Known>>>,
}

/// What is known of a queue, and who waits for it with empty hands.
#[derive(Debug)]
struct Known {
    queue: sync::Mutex<Queue>,
    idle: watch::Sender<usize>,
}

/// One who waits with empty hands.
struct Idle<'a>(&'a watch::Sender<usize>);

impl<'a> Idle<'a> {
    fn new(idle: &'a watch::Sender<usize>) -> Self {
        idle.send_modify(|waiting| *waiting += 1);
        Self(idle)
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

/// What a claim brought.
struct Taken {
    jobs: Vec<Job>,
    began: SystemTime,
    /// When to try again, whatever happens: where not all was looked at.
    again: Option<Instant>,
}

impl Claimer {
    /// Claims from this store, for namespaces of these weights.
    pub fn new(store: Store, wakeup: Wakeup, weights: Weights) -> Self {
        Self {
            store,
            wakeup,
            weights,
            turns: Semaphore::new(CLAIMS),
            known: Mutex::default(),
        }
    }

    /// Claims, or waits until there is something to claim, or nobody wants it any more:
    /// `over` is cancelled. Returns when the claim began, too.
    pub async fn claim(
        &self,
        claim: &Claim<'_>,
        wait: Duration,
        over: &CancellationToken,
    ) -> Result<(Vec<Job>, SystemTime), StoreError> {
        let until = Instant::now() + wait;
        let share = Share {
            models: claim.models.to_vec(),
            namespaces: claim.namespaces.map(<[String]>::to_vec),
        };
        let known = self.known(&share);
        // The place in line is taken before the first look, so that no job falls between.
        let mut wakes = self.wakeup.queue();
        let has_room = claim.busy_with.is_empty();
        let (mut idle, mut others) = (None, known.idle.subscribe());
        loop {
            if !has_room {
                // Whoever has nothing to do goes first. It is never closed.
                tokio::select! {
                    _ = others.wait_for(|idle| *idle == 0) => {}
                    () = over.cancelled() => {}
                    () = sleep_until(until) => return Ok((Vec::new(), SystemTime::now())),
                }
            }
            let taken = self.take(claim, &share, &known, &mut wakes, wait.is_zero());
            let Taken { jobs, began, again } = taken.await?;
            let is_over = Instant::now() >= until || over.is_cancelled();
            if is_over || !jobs.is_empty() {
                return Ok((jobs, began));
            }
            if has_room && idle.is_none() {
                idle = Some(Idle::new(&known.idle));
            }
            let woken = async {
                let tried = Instant::now();
                let _ = wakes.changed().await;
                if !has_room {
                    sleep_until(tried + FULL_HANDS).await;
                }
            };
            tokio::select! {
                () = over.cancelled() => return Ok((jobs, began)),
                () = sleep_until(again.map_or(until, |again| again.min(until))) => {}
                () = woken => {}
            }
        }
    }

    /// Claims when it is its turn, unless nothing was left by then and nothing
    /// has come since. Who does not wait is told of all there is `now`.
    async fn take(
        &self,
        claim: &Claim<'_>,
        share: &Share,
        known: &Known,
        wakes: &mut watch::Receiver<u64>,
        now: bool,
    ) -> Result<Taken, StoreError> {
        let mut queue = known.queue.lock().await;
        // It is never closed.
        let _turn = self.turns.acquire().await;
        let began = SystemTime::now();
        // What is queued while the claim is under way may be beyond its sight, and wakes anew.
        let wake = *wakes.borrow_and_update();
        let taken = |jobs, again| Taken { jobs, began, again };
        let mut has_looked = queue.is_due(wake);
        if has_looked {
            self.look(&mut queue, share, wake).await?;
        }
        loop {
            let portions = match queue.next(claim, wake) {
                Next::Nothing if now && !has_looked => {
                    self.look(&mut queue, share, wake).await?;
                    has_looked = true;
                    continue;
                }
                Next::Nothing => return Ok(taken(Vec::new(), queue.rests_until(wake))),
                Next::FullHands => return Ok(taken(Vec::new(), Some(Instant::now() + REST.1))),
                Next::Portions(portions) => portions,
            };
            let jobs = self.store.claim(claim, &portions.of(&queue)).await?;
            queue.took(claim, &portions, &jobs, wake);
            if !jobs.is_empty() {
                return Ok(taken(jobs, None));
            }
        }
    }

    /// Looks where the queues begin.
    async fn look(&self, queue: &mut Queue, share: &Share, wake: u64) -> Result<(), StoreError> {
        let began = Instant::now();
        let heads = self.store.heads(share).await?;
        let took = began.elapsed();
        let rest = (took * REST.0).min(REST.1).max(took * LEAST_REST);
        queue.saw(heads, wake, Instant::now() + rest);
        Ok(())
    }

    fn known(&self, share: &Share) -> Arc<Known> {
        // Nothing that holds this lock can panic.
        let mut all: MutexGuard<'_, HashMap<_, _>> =
            self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(share) {
            return Arc::clone(known);
        }
        if all.len() >= KNOWN {
            all.clear();
        }
        let known = Arc::new(Known {
            queue: sync::Mutex::new(Queue::new(self.weights.clone())),
            idle: watch::Sender::new(0),
        });
        all.insert(share.clone(), Arc::clone(&known));
        known
    }
}
