//! The memory that large calls take, shared out before they take it.
//!
//! A message is received in memory that was asked for when its length became
//! known, and is worked on in memory that was asked for when it was seen what
//! it unfolds to. What is not there yet is waited for, in order and not for
//! long; then the call is refused, and may come again. Whoever holds memory to
//! work in waits for none to receive in, so that nobody waits for himself.
//!
//! Small calls, middling ones and large ones have a lane each: a status is
//! answered, and a worker's vectors are taken, while documents wait for each
//! other.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What permits count.
const UNIT: usize = 4 * KIB;

/// So little that nobody counts it.
const NOTHING: usize = UNIT;

/// The largest call of a lane, what the lane has to receive messages in, and to
/// work in. The last has room for the largest message there may be.
const LANES: [(usize, usize, usize); 3] = [
    (64 * KIB, 8 * MIB, 16 * MIB),
    (8 * MIB, 24 * MIB, 48 * MIB),
    (usize::MAX, 64 * MIB, 208 * MIB),
];

/// How long a call waits for memory.
const WAIT: Duration = Duration::from_secs(20);

/// When one that was refused may come again.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// How long memory is wanted by one that was refused: so long that whoever
/// holds it sees that, who looks every second.
const WANTED_FOR: Duration = Duration::from_secs(2);

/// The memory of one coordinator that calls share.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    receiving: Arc<[Lane; 3]>,
    working: Arc<[Lane; 3]>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            receiving: Arc::new(LANES.map(|(largest, bytes, _)| Lane::new(largest, bytes))),
            working: Arc::new(LANES.map(|(largest, _, bytes)| Lane::new(largest, bytes))),
        }
    }
}

impl Memory {
    /// Takes memory for a message on its way. Waits for it; a call that waited
    /// long is refused with `UNAVAILABLE`.
    pub(crate) async fn to_receive(&self, bytes: usize) -> Result<Hold, Status> {
        take(&self.receiving, bytes, WAIT).await
    }

    /// As [`Self::to_receive`], for whoever holds memory already and must not
    /// wait for more. One that is refused counts as one that waits for a while.
    pub(crate) fn to_receive_more(&self, bytes: usize) -> Result<Hold, Status> {
        let Some((lane, permits)) = lane(&self.receiving, bytes) else {
            return Ok(Hold::nothing());
        };
        let permit = lane.free.clone().try_acquire_many_owned(permits);
        permit.map(|permit| lane.hold(permit)).map_err(|_| {
            lane.wanted.refuse();
            busy()
        })
    }

    /// Takes memory to work on a message. Waits for it; a call that waited long
    /// is refused with `UNAVAILABLE`. One that wants more than there is has all
    /// of it to itself.
    pub(crate) async fn to_work(&self, bytes: usize) -> Result<Hold, Status> {
        take(&self.working, bytes, WAIT).await
    }
}

/// What some calls share.
#[derive(Debug)]
struct Lane {
    /// Largest call that comes here, in bytes.
    largest: usize,
    all: u32,
    free: Arc<Semaphore>,
    wanted: Arc<Wanted>,
}

impl Lane {
    fn new(largest: usize, bytes: usize) -> Self {
        let all = bytes / UNIT;
        Self {
            largest,
            all: u32::try_from(all).unwrap_or(u32::MAX),
            free: Arc::new(Semaphore::new(all)),
            wanted: Arc::default(),
        }
    }

    fn hold(&self, permit: OwnedSemaphorePermit) -> Hold {
        Hold(Some((permit, self.wanted.clone())))
    }
}

/// Memory that was taken; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Hold(Option<(OwnedSemaphorePermit, Arc<Wanted>)>);

impl Hold {
    fn nothing() -> Self {
        Self(None)
    }

    /// Whether others wait for it, or were refused it just now.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.as_ref().is_some_and(|(_, wanted)| wanted.is_now())
    }
}

/// Who wants the memory of a lane and has it not.
#[derive(Debug, Default)]
struct Wanted {
    waiting: AtomicUsize,
    /// When somebody was refused last who could not wait.
    refused: Mutex<Option<Instant>>,
}

impl Wanted {
    fn refuse(&self) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_now(&self) -> bool {
        let refused = *self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.load(Ordering::Relaxed) > 0
            || refused.is_some_and(|at| at.elapsed() < WANTED_FOR)
    }
}

/// Somebody who waits, for as long as this lives.
struct Waiting<'a>(&'a Wanted);

impl<'a> Waiting<'a> {
    fn new(wanted: &'a Wanted) -> Self {
        wanted.waiting.fetch_add(1, Ordering::Relaxed);
        Self(wanted)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The lane of a call, and how many permits it needs; `None` where it needs
/// none.
fn lane(lanes: &[Lane; 3], bytes: usize) -> Option<(&Lane, u32)> {
    if bytes <= NOTHING {
        return None;
    }
    let lane = lanes.iter().find(|lane| bytes <= lane.largest)?;
    let permits = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
    Some((lane, permits.min(lane.all)))
}

async fn take(lanes: &[Lane; 3], bytes: usize, wait: Duration) -> Result<Hold, Status> {
    let Some((lane, permits)) = lane(lanes, bytes) else {
        return Ok(Hold::nothing());
    };
    let _waiting = Waiting::new(&lane.wanted);
    let permit = timeout(wait, lane.free.clone().acquire_many_owned(permits)).await;
    // It is never closed.
    let permit = permit.map_err(|_| busy())?.map_err(|_| busy())?;
    Ok(lane.hold(permit))
}

/// What a call is told for which there is no memory.
fn busy() -> Status {
    Status::with_error_details(
        Code::Unavailable,
        format!(
            "the coordinator has all the memory in use that it gives to large calls; call again in {} s, \
             or send less at a time",
            COME_AGAIN.as_secs()
        ),
        ErrorDetails::with_retry_info(Some(COME_AGAIN)),
    )
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_is_taken_is_waited_for_in_order_and_small_calls_pass() {
        let memory = Memory::default();
        let all = memory.to_work(usize::MAX).await.unwrap();
        assert!(!all.is_wanted());
        let mut large = Box::pin(memory.to_work(100 * MIB));
        let mut after = Box::pin(memory.to_work(9 * MIB));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(after.as_mut().now_or_never().is_none());
        assert!(all.is_wanted());
        for bytes in [0, UNIT, 64 * KIB, MIB, 8 * MIB] {
            drop(memory.to_work(bytes).now_or_never().unwrap().unwrap());
        }
        drop(all);
        let large = large.await.unwrap();
        let after = after.await.unwrap();
        assert!(!large.is_wanted() && !after.is_wanted());
    }

    #[tokio::test]
    async fn who_waited_long_is_told_when_to_come_again() {
        let memory = Memory::default();
        let all = memory.to_receive(64 * MIB).await.unwrap();
        let status = take(&memory.receiving, 9 * MIB, Duration::ZERO)
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(
            status.get_details_retry_info().unwrap().retry_delay,
            Some(COME_AGAIN)
        );
        assert!(!all.is_wanted());
        let status = memory.to_receive_more(9 * MIB).unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        // Whoever could not wait wants it all the same.
        assert!(all.is_wanted());
    }

    #[test]
    fn the_lanes_have_room_for_their_largest_call_and_stay_within_the_bound() {
        let mut sum = 0;
        for (largest, receiving, working) in LANES {
            assert!(largest == usize::MAX || largest <= receiving.min(working));
            sum += receiving + working;
        }
        // What is left of 512 MiB is for the program itself, its connections and the allocator.
        assert!(sum <= 384 * MIB, "{sum}");
    }
}
