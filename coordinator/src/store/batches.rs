//! Batches: the results that settle chunks of a job.

mod statement;

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};

use self::statement::{Verdict, write_outcomes};
use super::{
    Store, StoreError, Violation,
    database::Transaction,
    fence::Fence,
    lease::LeaseState,
    models::{Dimensions, fix_dimension},
    rows::{Embedded, Job, Rejected},
};
/// Most chunks that outcomes of several jobs have together in one statement.
const STATEMENT_CHUNKS: usize = 2_048;

/// The outcome of some chunks of a job, on its way into the database.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The lease it is written under.
    pub fence: Fence,
    /// Chunks with their vectors, all of one dimension.
    pub embedded: Vec<Embedded>,
    /// Chunks that the embedder refused. No chunk is named twice.
    pub rejected: Vec<Rejected>,
    /// End the job as succeeded if nothing of it is left.
    pub complete: bool,
    /// Whether its vectors may be the first of their model, which fixes the
    /// dimension of all that follow.
    pub may_be_first: bool,
}

impl Outcome {
    /// Numbers in its vectors; `None` when it has none.
    fn dimension(&self) -> Option<i32> {
        self.embedded.first().map(|chunk| chunk.vector.len() as i32)
    }
}

/// How a job stands after an outcome was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The job's source.
    pub source_id: i64,
    /// Chunks embedded.
    pub done: i64,
    /// Of these, truncated.
    pub truncated: i64,
    /// Chunks rejected.
    pub rejected: i64,
    /// Chunks it was planned with, as writes have changed it.
    pub total: i64,
    /// What of the outcome was left out.
    pub late: Late,
    /// Whether it has succeeded.
    pub finished: bool,
    /// Chunks suspected to hold a text that kills its worker.
    pub suspects: i32,
    /// Until when the lease was renewed; `None` when the job has succeeded.
    pub lease_expires_at: Option<DateTime<Utc>>,
}

/// Chunks of an outcome that were left out, for writes have given them other
/// texts since they were handed out, or taken them away. What is there is pending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Late {
    /// Of those embedded.
    pub embedded: i64,
    /// Of those rejected.
    pub rejected: i64,
}

impl Late {
    /// All of them.
    pub fn chunks(&self) -> i64 {
        self.embedded + self.rejected
    }
}

/// What became of an outcome that was written with others.
#[derive(Debug)]
pub enum Written {
    /// It is in the database, or it never will be.
    Settled(Result<Progress, StoreError>),
    /// Nothing of it was written, for somebody else has what it needs to lock:
    /// it can wait for that alone.
    Busy {
        /// The job's source.
        source_id: i64,
    },
}

/// What a write does where it would have to wait for a lock of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Locked {
    /// It waits.
    Wait,
    /// It does nothing.
    Pass,
}

impl Store {
    /// Writes the outcomes of several jobs in one transaction, each with the
    /// renewal of its lease. An outcome that is refused does not hinder the
    /// others, nor does one whose job is locked, by a write of its source for
    /// instance: the transaction never waits for a lock, so that no source holds
    /// up another and no two groups each other. An error of the database fails
    /// them all, and none is written.
    pub async fn upsert_group(
        &self,
        outcomes: &[Outcome],
        lease_duration: Duration,
    ) -> Result<Vec<Written>, StoreError> {
        let mut results: Vec<Upserted> = outcomes.iter().map(|_| Ok(None)).collect();
        let mut tx = self.leases.begin().await?;
        for places in statements(outcomes) {
            let of_statement: Vec<&Outcome> = places.iter().map(|&it| &outcomes[it]).collect();
            let upserted = upsert_in(
                &mut tx,
                &self.dimensions,
                &of_statement,
                lease_duration,
                Locked::Pass,
            )
            .await?;
            for (place, result) in places.into_iter().zip(upserted) {
                results[place] = result;
            }
        }
        tx.commit().await?;
        let mut written = Vec::with_capacity(results.len());
        for (outcome, result) in outcomes.iter().zip(results) {
            written.push(match result.transpose() {
                Some(result) => Written::Settled(result),
                None => self.busy_or_over(outcome).await,
            });
        }
        Ok(written)
    }

    /// Writes an outcome with the renewal of its lease, after whoever holds the
    /// lock of its job's row.
    pub async fn upsert(
        &self,
        outcome: &Outcome,
        lease_duration: Duration,
    ) -> Result<Progress, StoreError> {
        self.at_job(outcome.fence.lease.job_id, || {
            self.try_upsert(outcome, lease_duration)
        })
        .await
    }

    async fn try_upsert(
        &self,
        outcome: &Outcome,
        lease_duration: Duration,
    ) -> Result<Progress, StoreError> {
        let mut tx = self.pool.begin().await?;
        let mut upserted = upsert_in(
            &mut tx,
            &self.dimensions,
            &[outcome],
            lease_duration,
            Locked::Wait,
        )
        .await?;
        let progress = upserted.pop().unwrap_or(Ok(None))?;
        tx.commit().await?;
        match progress {
            Some(progress) => Ok(progress),
            // Fine, when the job has succeeded under the lease, for then the outcome is there already.
            None => Ok(after_the_end(&self.not_held(&outcome.fence).await?)),
        }
    }

    /// Why a group left an outcome out. A lease that is held now was held then:
    /// so it was locked.
    async fn busy_or_over(&self, outcome: &Outcome) -> Written {
        match self.lease(&outcome.fence).await {
            Ok(LeaseState::Held(job)) => Written::Busy {
                source_id: job.source_id,
            },
            Ok(LeaseState::Finished(job)) => Written::Settled(Ok(after_the_end(&job))),
            Err(error) => Written::Settled(Err(error)),
        }
    }
}

/// How a job that has succeeded stands.
fn after_the_end(job: &Job) -> Progress {
    Progress {
        source_id: job.source_id,
        done: job.chunks_done.into(),
        truncated: job.chunks_truncated.into(),
        rejected: job.chunks_rejected.into(),
        total: job.chunks_total.into(),
        late: Late::default(),
        finished: true,
        suspects: 0,
        lease_expires_at: None,
    }
}

/// What became of an outcome in a statement. `None`: the lease is not held, or
/// the write would have to wait and may not.
type Upserted = Result<Option<Progress>, StoreError>;

/// Sorts a group's outcomes into statements: a job at most once in each, and no
/// more chunks than [`STATEMENT_CHUNKS`] unless an outcome alone has more.
/// Returns their places in the group.
fn statements(outcomes: &[Outcome]) -> Vec<Vec<usize>> {
    let mut statements: Vec<Vec<usize>> = Vec::new();
    let mut jobs: HashSet<i64> = HashSet::new();
    let mut chunks = 0;
    for (place, outcome) in outcomes.iter().enumerate() {
        let more = outcome.embedded.len() + outcome.rejected.len();
        match statements.last_mut() {
            Some(last)
                if chunks + more <= STATEMENT_CHUNKS
                    && !jobs.contains(&outcome.fence.lease.job_id) =>
            {
                last.push(place);
                chunks += more;
            }
            _ => {
                statements.push(vec![place]);
                jobs.clear();
                chunks = more;
            }
        }
        jobs.insert(outcome.fence.lease.job_id);
    }
    statements
}

/// Writes one outcome without vectors.
pub(super) async fn upsert_rejected(
    tx: &mut Transaction,
    outcome: &Outcome,
    lease_duration: Duration,
) -> Upserted {
    let told = Dimensions::default();
    let mut upserted = upsert_in(tx, &told, &[outcome], lease_duration, Locked::Wait).await?;
    upserted.pop().unwrap_or(Ok(None))
}

/// Writes outcomes of different jobs in one statement. Fails as a whole only
/// where the database does, and where one that waits has vectors that do not fit.
async fn upsert_in(
    tx: &mut Transaction,
    told: &Dimensions,
    outcomes: &[&Outcome],
    lease_duration: Duration,
    locked: Locked,
) -> Result<Vec<Upserted>, StoreError> {
    let mut verdicts = write_outcomes(tx, outcomes, lease_duration, locked).await?;
    let outdated = |verdict: &Option<Verdict>| verdict.as_ref().is_some_and(|it| it.outdated);
    if verdicts.iter().any(outdated) {
        // Their jobs are locked now, so that these are the chunks as they stay.
        let places: Vec<usize> = (0..verdicts.len())
            .filter(|place| outdated(&verdicts[*place]))
            .collect();
        let late: Vec<&Outcome> = places.iter().map(|place| outcomes[*place]).collect();
        let again = write_outcomes(tx, &late, lease_duration, locked).await?;
        for (place, verdict) in places.into_iter().zip(again) {
            verdicts[place] = verdict;
        }
    }
    for (outcome, verdict) in outcomes.iter().zip(&mut verdicts) {
        let Some(dimension) = outcome.dimension() else {
            continue;
        };
        if !verdict.as_ref().is_some_and(Verdict::is_unfit) {
            continue;
        }
        *verdict = None;
        if locked == Locked::Wait {
            fix_dimension(tx, told, outcome, dimension).await?;
            let again = write_outcomes(tx, &[outcome], lease_duration, locked).await?;
            *verdict = again.into_iter().flatten().next();
        }
    }
    let mut upserted = Vec::with_capacity(outcomes.len());
    for (outcome, verdict) in outcomes.iter().zip(verdicts) {
        upserted.push(match verdict {
            None => Ok(None),
            Some(verdict) if !verdict.matched => {
                Err(StoreError::Invalid(strangers(tx, outcome).await?))
            }
            Some(verdict) => Ok(verdict.progress()),
        });
    }
    Ok(upserted)
}

/// Names the chunks of an outcome that its job does not have.
async fn strangers(tx: &mut Transaction, outcome: &Outcome) -> Result<Vec<Violation>, StoreError> {
    let embedded = outcome.embedded.iter().enumerate().map(|(index, chunk)| {
        (
            format!("embedded[{index}]"),
            &chunk.item_id,
            chunk.chunk_index,
            &chunk.text_hash,
        )
    });
    let rejected = outcome.rejected.iter().enumerate().map(|(index, chunk)| {
        (
            format!("rejected[{index}]"),
            &chunk.item_id,
            chunk.chunk_index,
            &chunk.text_hash,
        )
    });
    let named: Vec<_> = embedded.chain(rejected).collect();
    let known: Vec<i64> = sqlx::query_scalar(
        "-- store::batches::strangers
         SELECT n.place FROM weir.jobs j
         CROSS JOIN unnest($2::text[], $3::int[], $4::bytea[]) WITH ORDINALITY
             AS n(item_id, chunk_index, text_hash, place)
         JOIN weir.chunks c ON c.source_id = j.source_id AND c.item_id = n.item_id
             AND c.chunk_index = n.chunk_index AND c.text_hash = n.text_hash
         WHERE j.id = $1 AND n.item_id BETWEEN j.first_item_id AND j.last_item_id",
    )
    .bind(outcome.fence.lease.job_id)
    .bind(
        named
            .iter()
            .map(|(_, item_id, ..)| item_id.as_str())
            .collect::<Vec<_>>(),
    )
    .bind(
        named
            .iter()
            .map(|(_, _, index, _)| *index)
            .collect::<Vec<_>>(),
    )
    .bind(
        named
            .iter()
            .map(|(.., hash)| hash.as_slice())
            .collect::<Vec<_>>(),
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok((1..)
        .zip(&named)
        .filter(|(place, _)| !known.contains(place))
        .take(10)
        .map(|(_, (field, item_id, index, _))| {
            Violation::new(
                field.clone(),
                format!(
                    "chunk {index} of item {item_id:?} with this text_hash is not part of job {}",
                    outcome.fence.lease.job_id
                ),
            )
        })
        .collect())
}
