//! The session of a worker: its credit is met with claims, batches of their chunks go
//! out, and what comes back is written. One task a session; whatever waits for the
//! database is under way beside it, and only what it comes to is taken in here.

mod close;
mod hear;
mod lease;
mod model;
mod settle;
mod work;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    lease::{Busy, Lease, Next},
    model::{Model, Standing},
    work::Done,
};
use super::{
    Dispatch, Ended, FromWorker, MAX_BATCH_BYTES, Open, PartResult, ToWorker, WorkerIdentity,
    roster::{Newcomer, Place},
};
use crate::store::{StoreError, rows::LeaseKey};

/// Batches that wait for the network before no more are made.
const OUTBOX: usize = 4;

/// How long the leases of a worker are kept that has closed its connection, at most:
/// if it lives, it is back at once.
const CLOSED_GRACE: Duration = Duration::from_secs(2);

/// Most leases of a session of which something is embedded beside work that uses up
/// the worker's credit.
const BESIDE: usize = 64;

/// From so many bytes of texts at hand on nothing more is claimed for a session.
const AT_HAND: usize = 2 * MAX_BATCH_BYTES;

/// What a worker says, as it comes in.
pub(crate) trait Inbox: Stream<Item = Result<FromWorker, End>> + Send + Unpin {}

impl<T: Stream<Item = Result<FromWorker, End>> + Send + Unpin> Inbox for T {}

/// Why a session ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The worker has stopped, and nothing of it is left.
    Drained,
    /// The worker closed its connection.
    Closed,
    /// The connection broke, or the worker has said nothing for the grace.
    Silent,
    /// This replica stops.
    GoingAway,
    /// The worker broke the contract: the field, and what is wrong with it.
    Breach { field: String, fault: String },
    /// The store could not be asked.
    Store(StoreError),
    /// What came could not be read; the transport has its words for it.
    Unreadable(Box<dyn std::error::Error + Send + Sync>),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl End {
    fn breach(field: &str, fault: impl Into<String>) -> Self {
        Self::Breach {
            field: field.to_owned(),
            fault: fault.into(),
        }
    }
}

/// Serves a session until it ends. What the worker is told goes to `outbox`, and why
/// the session ended, past whatever waits there, to `last`.
pub(crate) async fn serve(
    dispatch: Arc<Dispatch>,
    worker: WorkerIdentity,
    open: Open,
    mut inbox: impl Inbox,
    outbox: mpsc::Sender<ToWorker>,
    last: oneshot::Sender<End>,
) {
    // Taken before anything is read, so that no revocation falls between.
    let revocations = dispatch.wakeup.revoked();
    let newcomer = Newcomer {
        worker_id: open.worker_id.clone(),
        version: open.version.clone(),
        namespaces: worker.namespaces().map(<[String]>::to_vec),
        models: open.models.iter().map(|model| model.name.clone()).collect(),
    };
    let place = match dispatch.roster.enter(&dispatch.store, newcomer).await {
        Ok(place) => place,
        Err(error) => {
            let _ = last.send(End::Store(error));
            return;
        }
    };
    let mut session = Session::new(dispatch, worker, &open, place, revocations);
    session.say(ToWorker::Opened);
    session.take_up(open.held);
    let end = session.run(&mut inbox, &outbox).await;
    let grace = session.grace(&end);
    // A worker that is gone hears nothing.
    let _ = last.send(end);
    drop(outbox);
    session.close(grace).await;
}

/// What is held for a worker.
struct Session {
    dispatch: Arc<Dispatch>,
    worker: WorkerIdentity,
    worker_id: Arc<str>,
    place: Place,
    models: BTreeMap<Arc<str>, Model>,
    /// By job.
    leases: BTreeMap<i64, Lease>,
    /// Leases that were lost and claimed again before the worker was told of it.
    replaced: Vec<LeaseKey>,
    /// Jobs whose leases are opened again, with the results that wait for that.
    taking_up: HashMap<i64, Vec<PartResult>>,
    /// The job of each part that is not settled.
    parts: HashMap<i64, i64>,
    next_seq: i64,
    /// What the worker is to be told as soon as it listens.
    outgoing: VecDeque<ToWorker>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    revocations: broadcast::Receiver<Option<i64>>,
    is_draining: bool,
    /// Whether a renewal of all leases is under way, and whether another is wanted.
    renewal: Renewal,
    heard_at: Instant,
    /// Whether nothing was heard for longer than a heartbeat is due: it gets nothing more.
    is_quiet: bool,
    /// Cancelled when the session ends: claims wait no longer.
    over: CancellationToken,
}

/// The renewal of all leases of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Renewal {
    Idle,
    UnderWay,
    /// A heartbeat came while one was under way.
    Again,
}

impl Session {
    fn new(
        dispatch: Arc<Dispatch>,
        worker: WorkerIdentity,
        open: &Open,
        place: Place,
        revocations: broadcast::Receiver<Option<i64>>,
    ) -> Self {
        let most = dispatch.max_batch_size;
        let models = open.models.iter().map(|it| {
            let size = it.batch_size.min(most).unsigned_abs() as usize;
            let model = Model::new(&it.name, size, dispatch.weights.clone());
            (Arc::clone(&model.name), model)
        });
        let models = models.collect();
        let held = open.held.iter().flat_map(|lease| lease.parts.iter());
        let last = held.map(|part| part.seq).max().unwrap_or(0);
        Self {
            over: dispatch.shutdown.child_token(),
            dispatch,
            worker,
            worker_id: open.worker_id.as_str().into(),
            place,
            models,
            leases: BTreeMap::new(),
            replaced: Vec::new(),
            taking_up: HashMap::new(),
            parts: HashMap::new(),
            next_seq: last.saturating_add(1),
            outgoing: VecDeque::new(),
            work: FuturesUnordered::new(),
            revocations,
            is_draining: false,
            renewal: Renewal::Idle,
            heard_at: Instant::now(),
            is_quiet: false,
        }
    }

    async fn run(&mut self, inbox: &mut impl Inbox, outbox: &mpsc::Sender<ToWorker>) -> End {
        let shutdown = self.dispatch.shutdown.clone();
        loop {
            self.fill();
            if self.is_drained() {
                return End::Drained;
            }
            let silent = self.heard_at + self.dispatch.orphan_grace;
            let quiet = self.heard_at + self.dispatch.heartbeat_interval() * 2;
            let has_news = !self.outgoing.is_empty();
            tokio::select! {
                // A session lives as long as its worker; it must not hold up the stop. The
                // worker opens another on another replica.
                () = shutdown.cancelled() => return End::GoingAway,
                room = outbox.reserve(), if has_news => match room {
                    Ok(room) => if let Some(message) = self.outgoing.pop_front() {
                        room.send(message);
                    },
                    Err(_) => return End::Closed,
                },
                message = inbox.next() => {
                    self.heard_at = Instant::now();
                    self.is_quiet = false;
                    let heard = message.unwrap_or(Err(End::Closed));
                    if let Err(end) = heard.and_then(|message| self.hear(message)) {
                        return end;
                    }
                }
                Some(done) = self.work.next(), if !self.work.is_empty() => self.settle(done),
                source_id = self.revocations.recv() => self.revoked(source_id.unwrap_or(None)),
                () = sleep_until(quiet), if !self.is_quiet => self.grow_quiet(),
                () = sleep_until(silent) => return End::Silent,
            }
        }
    }

    /// Claims nothing for a worker that may be gone, and sends it nothing.
    fn grow_quiet(&mut self) {
        self.is_quiet = true;
        for model in self.models.values() {
            model.cancel_claims();
        }
    }

    fn say(&mut self, message: ToWorker) {
        self.outgoing.push_back(message);
    }

    /// Sends what the credit allows of what is at hand, and begins whatever is to be
    /// done for that to be enough.
    fn fill(&mut self) {
        let now = std::time::Instant::now();
        let may_send = !self.is_draining && !self.is_quiet;
        for model in self.models.values_mut() {
            while may_send && self.outgoing.len() < OUTBOX && model.is_open() {
                let Some(parts) = model.next_batch(&mut self.leases, &mut self.next_seq, now)
                else {
                    break;
                };
                for part in &parts {
                    self.parts.insert(part.seq, part.lease.job_id);
                }
                let model = Arc::clone(&model.name);
                self.outgoing.push_back(ToWorker::Batch { model, parts });
            }
            model.go_on(self.leases.values());
        }
        // After that: what was handed out may leave nothing at hand.
        self.tend();
        self.claim_more();
        self.tell_roster();
    }

    /// Begins what is to be done for each lease.
    fn tend(&mut self) {
        let jobs: Vec<i64> = self.leases.keys().copied().collect();
        for job_id in jobs {
            self.tend_lease(job_id);
        }
    }

    fn tend_lease(&mut self, job_id: i64) {
        let leases = self.leases.len();
        let Some(lease) = self.leases.get_mut(&job_id) else {
            return;
        };
        let Some(model) = self.models.get(&lease.of.model) else {
            return;
        };
        if lease.busy.is_some() {
            return;
        }
        let (fence, trace) = (lease.fence.clone(), lease.of.trace);
        if lease.is_settled()
            && let Some(release) = settle::hands_back(&model.standing, self.is_draining)
        {
            lease.busy = Some(Busy::Ending);
            self.begin(|dispatch| work::release(dispatch, fence, release, trace));
            return;
        }
        // Also without credit: what is not at hand when it comes has to wait for more.
        let may_read = model.standing == Standing::Fit && !self.is_draining;
        let (credit, batch_size) = (model.credit, model.batch_size);
        match lease.next() {
            Next::List if may_read => {
                lease.busy = Some(Busy::Reading);
                let lease = lease.fence.lease;
                self.begin(|dispatch| work::list(dispatch, lease));
            }
            Next::Read if may_read => {
                lease.busy = Some(Busy::Reading);
                let pending =
                    lease.take_to_read(|texts| work::read_len(texts, credit, batch_size, leases));
                let (lease, source_id) = (lease.fence.lease, lease.of.source_id);
                self.begin(|dispatch| work::read(dispatch, lease, source_id, pending));
            }
            Next::Complete => {
                lease.busy = Some(Busy::Ending);
                self.begin(|dispatch| work::complete(dispatch, fence, trace));
            }
            Next::Wait | Next::List | Next::Read => {}
        }
    }

    /// Claims for the credit that what is in hand does not use up; or where it does,
    /// what others than its namespaces have.
    fn claim_more(&mut self) {
        let at_hand: usize = self.leases.values().map(Lease::bytes).sum();
        if self.is_draining || self.is_quiet || at_hand >= AT_HAND {
            return;
        }
        let mut wanted = Vec::new();
        let fit = |model: &&mut Model| model.standing == Standing::Fit;
        for model in self.models.values_mut().filter(fit) {
            let mine = self.leases.values();
            let mine: Vec<&Lease> = mine.filter(|it| it.of.model == model.name).collect();
            let left: i64 = mine.iter().map(|lease| lease.left()).sum();
            let room = model.credit as i64 - left - model.opening;
            let beside = room <= 0;
            let is_enough = beside && !(1..BESIDE).contains(&mine.len());
            let claim = &mut model.claims[usize::from(beside)];
            if claim.is_some() || is_enough {
                continue;
            }
            let over = self.over.child_token();
            *claim = Some(over.clone());
            let mut busy_with: Vec<String> = Vec::new();
            if beside {
                busy_with = mine.iter().map(|it| it.of.namespace.to_string()).collect();
                busy_with.sort_unstable();
                busy_with.dedup();
            }
            wanted.push(work::Wanted {
                model: Arc::clone(&model.name),
                chunks: if beside {
                    model.batch_size as i64
                } else {
                    room
                },
                beside,
                busy_with,
                over,
            });
        }
        for wanted in wanted {
            let (worker, worker_id) = (self.worker.clone(), Arc::clone(&self.worker_id));
            self.begin(|dispatch| work::claim(dispatch, worker, worker_id, wanted));
        }
    }

    fn tell_roster(&self) {
        for model in self.models.values() {
            let mine = self.leases.values().filter(|it| it.of.model == model.name);
            self.place
                .in_hand(&model.name, mine.map(Lease::with_worker).sum());
        }
    }

    /// Begins something that waits for the database.
    fn begin<F>(&mut self, work: impl FnOnce(Arc<Dispatch>) -> F)
    where
        F: Future<Output = Done> + Send + 'static,
    {
        self.work.push(Box::pin(work(Arc::clone(&self.dispatch))));
    }

    /// Whether the worker stops and nothing of it is left.
    fn is_drained(&self) -> bool {
        self.is_draining
            && self.leases.is_empty()
            && self.outgoing.is_empty()
            && self.work.is_empty()
    }

    /// Ends a lease for the worker.
    fn end_lease(&mut self, lease: LeaseKey, how: Ended) {
        if self.forget(lease).is_some() {
            self.say(ToWorker::Ended { lease, how });
        }
    }

    /// Forgets a lease, where it is still the one that is held on its job.
    fn forget(&mut self, lease: LeaseKey) -> Option<Lease> {
        if self.leases.get(&lease.job_id)?.fence.lease != lease {
            return None;
        }
        let gone = self.leases.remove(&lease.job_id)?;
        for seq in gone.seqs() {
            self.parts.remove(&seq);
        }
        Some(gone)
    }
}
