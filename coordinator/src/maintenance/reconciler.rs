//! The reconciler: queues again what failed jobs left, and finds sources whose
//! vectors do not match their chunks.

use std::time::Duration;

use weir_telemetry::{KeyValue, SpanKind, Tracer};

use crate::store::{
    Store, StoreError,
    reconcile::{Check, Checked, Findings, Unparked},
};

/// Most failed jobs whose sources are asked for at a time.
const PARKED_JOBS: i64 = 100;

/// Most sources whose failed jobs are queued again in one round.
const PARKED_SOURCES: usize = 100;

/// Most checks that are begun in one round, and most of those under way that go on.
const CHECKS: i64 = 10;

/// What the reconciler works with.
#[derive(Debug, Clone)]
pub struct Reconciler {
    /// Where the sources are.
    pub store: Store,
    /// How often each source is checked.
    pub interval: Duration,
    /// Most pending chunks in one of the jobs it queues.
    pub max_chunks_per_job: i32,
    /// Where the spans of repairs go.
    pub tracer: Tracer,
}

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Failed jobs settled, and jobs queued in their place.
    pub unparked: Unparked,
    /// Sources of which a step was checked.
    pub checked: usize,
    /// Sources that were put right, as far as the step reaches.
    pub repaired: usize,
    /// Steps that failed. They are taken again later.
    pub failed: usize,
    /// Whether more may wait.
    pub more: bool,
}

/// What became of a step of a check.
enum Step {
    /// Nothing was wrong.
    Passed,
    /// It was put right.
    Repaired,
    /// The source is gone, or was passed by.
    Left,
}

impl Reconciler {
    /// Takes one round: a step of each source that has failed jobs whose parking is
    /// over, and of each of some sources that are checked. A source that cannot be
    /// worked on does not hinder the others, nor does one that is huge.
    pub async fn tick(&self) -> Result<Reconciled, StoreError> {
        let mut round = Reconciled::default();
        self.unpark(&mut round).await?;
        let checks = self.store.take_checks(self.interval, CHECKS).await?;
        round.more |= checks.len() as i64 >= CHECKS;
        for check in checks {
            round.checked += 1;
            let (step, goes_on) = match self.check(&check).await {
                Ok(step) => step,
                Err(error) => {
                    round.failed += 1;
                    is_told(&error, check.source_id)?;
                    continue;
                }
            };
            round.repaired += usize::from(matches!(step, Step::Repaired));
            round.more |= goes_on && !matches!(step, Step::Left);
        }
        Ok(round)
    }

    /// Queues again what failed jobs have left, a step of each source.
    async fn unpark(&self, round: &mut Reconciled) -> Result<(), StoreError> {
        let mut had_their_turn = Vec::new();
        while had_their_turn.len() < PARKED_SOURCES {
            let sources = self.store.parked_sources(PARKED_JOBS, &had_their_turn);
            let sources = sources.await?;
            if sources.is_empty() {
                break;
            }
            for source_id in sources {
                had_their_turn.push(source_id);
                match self.store.unpark(source_id, self.max_chunks_per_job).await {
                    Ok(unparked) => {
                        round.unparked.settled += unparked.settled;
                        round.unparked.queued += unparked.queued;
                        round.more |= unparked.more;
                    }
                    Err(StoreError::Locked(_)) => {}
                    Err(error) => {
                        round.failed += 1;
                        is_told(&error, source_id)?;
                        self.store.put_off(source_id).await?;
                    }
                }
            }
        }
        round.more |= had_their_turn.len() >= PARKED_SOURCES;
        let unparked = round.unparked;
        if unparked.settled + unparked.queued > 0 {
            tracing::info!(
                jobs_settled = unparked.settled,
                jobs_queued = unparked.queued,
                "Queued again what failed jobs had left pending."
            );
        }
        Ok(())
    }

    /// Takes a step of a check, and puts right what it finds. Returns also whether the
    /// check goes on.
    async fn check(&self, check: &Check) -> Result<(Step, bool), StoreError> {
        let Some(checked) = self.store.check(check).await? else {
            return Ok((Step::Left, false));
        };
        let goes_on = !checked.is_last();
        if checked.found.any() {
            let repaired = self.repair(check, &checked).await?;
            let step = if repaired { Step::Repaired } else { Step::Left };
            return Ok((step, goes_on));
        }
        self.store.pass_check(&checked).await?;
        Ok((Step::Passed, goes_on))
    }

    /// Puts right what was found. Returns whether it was.
    async fn repair(&self, check: &Check, checked: &Checked) -> Result<bool, StoreError> {
        // Nobody called: what is queued begins a trace here.
        let (span, trace) = self.tracer.enter(None, "repair", SpanKind::Internal, || {
            [KeyValue::new("db.system.name", "postgresql")]
        });
        let trace = trace.to_string();
        let repaired = self
            .store
            .repair(checked, self.max_chunks_per_job, Some(&trace));
        let Some(repaired) = repaired.await? else {
            return Ok(false);
        };
        span.set(|| {
            let source = format!("{}/{}", check.namespace, check.name);
            [
                KeyValue::new("weir.source", source),
                KeyValue::new("weir.jobs.queued", repaired.queued as i64),
            ]
        });
        let Findings {
            uncovered,
            stale,
            other_model,
            miscounted,
        } = checked.found;
        tracing::warn!(
            namespace = check.namespace,
            source = check.name,
            uncovered,
            stale,
            other_model,
            miscounted,
            results_deleted = repaired.stale_deleted,
            jobs_superseded = repaired.superseded,
            jobs_queued = repaired.queued,
            "A source's vectors, jobs or counts did not match its chunks; it was put right."
        );
        Ok(true)
    }
}

/// Says that a step of a source failed, unless the database is away: then no other
/// would be better off.
fn is_told(error: &StoreError, source_id: i64) -> Result<(), StoreError> {
    if error.is_away() {
        return Err(error.clone());
    }
    tracing::warn!(
        source_id,
        error = error as &dyn std::error::Error,
        "A source could not be checked or put right; it is tried again in a minute, and the others go on."
    );
    Ok(())
}
