//! What a session has under way at the database. Each is a future of its own that
//! owns what it needs; what waits for the lock of one source holds up nothing else.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use weir_telemetry::{Span, TraceContext};

use crate::{
    dispatch::{
        Dispatch, HeldLease, MAX_BATCH_BYTES, WorkerIdentity, hand_back::Release, opener::Opened,
    },
    job::plan::{PendingChunk, next_batch_len},
    store::{
        StoreError,
        batches::{Outcome, Progress},
        claim::Claim,
        fence::Fence,
        lease::{LeaseState, Opening},
        rows::{ChunkText, Job, LeaseKey},
    },
};

use super::lease::LISTED;

/// How long to wait before something is tried again that the database, or whoever has
/// locked what it needs, kept from being done.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a claim waits for a job; then it is asked for anew.
const CLAIM_WAIT: Duration = Duration::from_secs(30);

/// Most jobs in one claim: what is read of them all is held by the session.
const MOST_JOBS: i64 = 256;

/// Batches whose texts are read at a time, so that the next one is at hand.
const READ_AHEAD: usize = 4;

/// What is claimed.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) model: Arc<str>,
    /// Chunks that are enough.
    pub(super) chunks: i64,
    /// Whether it is claimed beside work that uses up the credit.
    pub(super) beside: bool,
    /// Namespaces that have enough.
    pub(super) busy_with: Vec<String>,
    /// Cancelled when it is not wanted any more.
    pub(super) over: CancellationToken,
}

/// A part whose result is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered {
    pub(super) lease: LeaseKey,
    pub(super) seq: i64,
    /// Whether every chunk of it has an outcome.
    pub(super) whole: bool,
    /// How many were embedded.
    pub(super) embedded: usize,
}

/// A job that was claimed.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) fence: Fence,
    pub(super) model: Arc<str>,
    pub(super) chunks: i64,
    pub(super) trace: Option<TraceContext>,
}

/// What something came to.
#[derive(Debug)]
pub(super) enum Done {
    Claimed {
        model: Arc<str>,
        beside: bool,
        claimed: Result<(Vec<Job>, SystemTime), StoreError>,
    },
    Opened(Claimed, Result<Opened, StoreError>),
    TakenUp(HeldLease, Result<Opened, StoreError>),
    Listed(LeaseKey, Result<Vec<PendingChunk>, StoreError>),
    Read(LeaseKey, Result<Vec<ChunkText>, StoreError>),
    Completed(LeaseKey, Result<Box<Job>, StoreError>),
    /// The job went back: why it was refused, if it was.
    HandedBack {
        lease: LeaseKey,
        refused: Option<String>,
        result: Result<(), StoreError>,
    },
    Persisted(Answered, Result<Progress, StoreError>),
    Renewed(Vec<LeaseKey>, Result<Vec<i64>, StoreError>),
    Checked(LeaseKey, Result<LeaseState, StoreError>),
}

/// Does something until the database answers and nobody else has locked what it needs.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    mut call: impl FnMut() -> F,
) -> Result<T, StoreError> {
    loop {
        match call().await {
            Err(error) if error.may_pass() => sleep(AGAIN).await,
            done => return done,
        }
    }
}

/// Claims, or waits until there is something to claim.
pub(super) async fn claim(
    dispatch: Arc<Dispatch>,
    worker: WorkerIdentity,
    worker_id: Arc<str>,
    wanted: Wanted,
) -> Done {
    let Wanted {
        model,
        chunks,
        beside,
        busy_with,
        over,
    } = wanted;
    let models = [model.to_string()];
    let claim = Claim {
        worker_id: &worker_id,
        models: &models,
        max_jobs: if beside { 1 } else { chunks.min(MOST_JOBS) },
        max_chunks: chunks,
        lease_duration: dispatch.lease_duration,
        namespaces: worker.namespaces(),
        busy_with: &busy_with,
        claimed_by: worker.name(),
    };
    let claimed = dispatch.claimer.claim(&claim, CLAIM_WAIT, &over).await;
    if claimed.is_err() {
        let _ = over.run_until_cancelled(sleep(AGAIN)).await;
    }
    Done::Claimed {
        model,
        beside,
        claimed,
    }
}

/// Opens a lease that was claimed.
pub(super) async fn open(dispatch: Arc<Dispatch>, claimed: Claimed, opening: Opening) -> Done {
    Done::Opened(claimed, dispatch.opener.open(opening).await)
}

/// Opens a lease again of which the worker holds parts.
pub(super) async fn take_up(dispatch: Arc<Dispatch>, held: HeldLease, opening: Opening) -> Done {
    let opened = patiently(|| dispatch.opener.open(opening.clone())).await;
    Done::TakenUp(held, opened)
}

/// Lists what of a job is pending.
pub(super) async fn list(dispatch: Arc<Dispatch>, lease: LeaseKey) -> Done {
    let pending = patiently(|| dispatch.store.pending(lease, LISTED));
    Done::Listed(lease, pending.await)
}

/// How many texts of these lengths are read at a time, for one of so many leases: what is
/// at hand of all of them is not much more than of one.
pub(super) fn read_len(
    texts: &mut dyn Iterator<Item = usize>,
    credit: usize,
    batch_size: usize,
    leases: usize,
) -> usize {
    let most = credit.clamp(batch_size, batch_size * READ_AHEAD);
    next_batch_len(texts, most, MAX_BATCH_BYTES / leases.max(1))
}

/// Reads texts.
pub(super) async fn read(
    dispatch: Arc<Dispatch>,
    lease: LeaseKey,
    source_id: i64,
    pending: Vec<PendingChunk>,
) -> Done {
    let texts = patiently(|| dispatch.store.texts(source_id, &pending));
    Done::Read(lease, texts.await)
}

/// Completes a job.
pub(super) async fn complete(
    dispatch: Arc<Dispatch>,
    fence: Fence,
    trace: Option<TraceContext>,
) -> Done {
    let job = patiently(|| dispatch.complete(&fence, trace));
    Done::Completed(fence.lease, job.await.map(Box::new))
}

/// Hands a job back, uncharged.
pub(super) async fn release(
    dispatch: Arc<Dispatch>,
    fence: Fence,
    release: Release,
    trace: Option<TraceContext>,
) -> Done {
    let released = patiently(|| dispatch.release(&fence, &release, trace)).await;
    let refused = match release {
        Release::Refused(reason) => Some(reason),
        Release::Unneeded(_) | Release::EmbedderDown(_) => None,
    };
    Done::HandedBack {
        lease: fence.lease,
        refused,
        result: released,
    }
}

/// Hands a job back, charged, whose worker sent what cannot be taken.
pub(super) async fn fail(
    dispatch: Arc<Dispatch>,
    fence: Fence,
    fault: String,
    trace: Option<TraceContext>,
) -> Done {
    let failed = patiently(|| dispatch.fail(&fence, &fault, trace));
    Done::HandedBack {
        result: failed.await.map(drop),
        lease: fence.lease,
        refused: Some(fault),
    }
}

/// Writes a result, together with others that wait.
pub(super) async fn persist(
    dispatch: Arc<Dispatch>,
    answered: Answered,
    outcome: Outcome,
    trace: Option<TraceContext>,
    span: Span,
) -> Done {
    let progress = dispatch.writer.upsert_patiently(outcome, trace).await;
    if let Err(error) = &progress {
        span.fail(error.to_string());
    }
    Done::Persisted(answered, progress)
}

/// Renews leases.
pub(super) async fn renew(dispatch: Arc<Dispatch>, fences: Vec<Fence>) -> Done {
    let renewed = dispatch
        .store
        .renew_group(&fences, dispatch.lease_duration)
        .await;
    Done::Renewed(fences.iter().map(|fence| fence.lease).collect(), renewed)
}

/// Looks whether a lease is still held.
pub(super) async fn check(dispatch: Arc<Dispatch>, fence: Fence) -> Done {
    let state = patiently(|| dispatch.store.lease(&fence));
    Done::Checked(fence.lease, state.await)
}
