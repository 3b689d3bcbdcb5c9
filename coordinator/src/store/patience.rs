//! Waiting for what somebody else has locked, without a connection: whoever
//! waits for one source must not keep the others from the database.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{Store, StoreError, rows::SourceKey};

/// How long a statement waits for a lock before it gives its connection back,
/// unless it has taken others which it would have to take again.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_millis(25);

/// How long what waits for no row waits for a table, which steps of the schema lock
/// for a moment and wait for half a second.
pub(super) const TABLE_LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a write waits for the jobs of a source that it has locked. They are
/// held by statements that wait for nobody.
pub(super) const JOBS_LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a statement of a step may take, of which most take a fraction of a
/// second.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The first pause between two tries, and the longest; each is twice as long as
/// the one before.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

impl Store {
    /// Does `work` at a source when those who came before have done theirs.
    pub(super) async fn at_source<T, W>(
        &self,
        key: &SourceKey,
        work: impl FnMut() -> W + Send,
    ) -> Result<T, StoreError>
    where
        W: Future<Output = Result<T, StoreError>> + Send,
    {
        let until = Instant::now() + self.pool.limit;
        let turn = timeout_at(until, self.turns.take(key.clone())).await;
        let _turn = turn.map_err(|_| self.still_locked(&waited_for(key)))?;
        self.unlocked_until(until, || waited_for(key), work).await
    }

    /// Does `work` at a job, which a write of its source may have locked. Where it
    /// has, one of those who wait tries at a time.
    pub(super) async fn at_job<T, W>(
        &self,
        job_id: i64,
        mut work: impl FnMut() -> W + Send,
    ) -> Result<T, StoreError>
    where
        W: Future<Output = Result<T, StoreError>> + Send,
    {
        match Box::pin(work()).await {
            Err(StoreError::Locked(_)) => {}
            done => return done,
        }
        let until = Instant::now() + self.pool.limit;
        let waited_for = || format!("job {job_id}");
        let turn = timeout_at(until, self.job_turns.take(job_id)).await;
        let _turn = turn.map_err(|_| self.still_locked(&waited_for()))?;
        self.unlocked_until(until, waited_for, work).await
    }

    /// Does `work` at something else that may be locked.
    pub(super) async fn unlocked<T, W>(
        &self,
        waited_for: &str,
        work: impl FnMut() -> W + Send,
    ) -> Result<T, StoreError>
    where
        W: Future<Output = Result<T, StoreError>> + Send,
    {
        let until = Instant::now() + self.pool.limit;
        self.unlocked_until(until, || waited_for.to_owned(), work)
            .await
    }

    /// Does `read`, which waits for no row, but may have to for a table: a step of the
    /// schema wants it for itself.
    pub(super) async fn read<T, W>(&self, read: impl FnMut() -> W + Send) -> Result<T, StoreError>
    where
        W: Future<Output = Result<T, StoreError>> + Send,
    {
        let until = Instant::now() + TABLE_LOCK_TIMEOUT.min(self.pool.limit);
        match self.unlocked_until(until, String::new, read).await {
            Err(StoreError::Locked(_)) => Err(StoreError::Locked(format!(
                "waited {TABLE_LOCK_TIMEOUT:?} for a table that somebody has locked; try again"
            ))),
            done => done,
        }
    }

    /// Does `work` until it finds nothing locked. Each try is a transaction of its
    /// own, and between two there is none.
    pub(super) async fn unlocked_until<T, W>(
        &self,
        until: Instant,
        waited_for: impl Fn() -> String + Send,
        mut work: impl FnMut() -> W + Send,
    ) -> Result<T, StoreError>
    where
        W: Future<Output = Result<T, StoreError>> + Send,
    {
        let (mut pause, longest) = PAUSES;
        loop {
            // In a box, for the driver's futures are large.
            match Box::pin(work()).await {
                Err(StoreError::Locked(_)) if Instant::now() + pause < until => {
                    sleep(pause).await;
                    pause = longest.min(pause * 2);
                }
                Err(StoreError::Locked(_)) => return Err(self.still_locked(&waited_for())),
                done => return done,
            }
        }
    }

    pub(super) fn still_locked(&self, waited_for: &str) -> StoreError {
        StoreError::Locked(format!(
            "waited {:?} for {waited_for}, which others have locked: another write, or a transaction that was left \
             open; nothing was done, try again",
            self.pool.limit
        ))
    }
}

/// What is waited for where a source is locked.
pub(super) fn waited_for(key: &SourceKey) -> String {
    format!("the source {:?} in namespace {:?}", key.name, key.namespace)
}
