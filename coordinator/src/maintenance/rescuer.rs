//! The rescuer: returns jobs whose lease has expired.

use std::time::Duration;

use crate::{
    job::retry::RetryPolicy,
    store::{Store, StoreError, rescue::Rescued},
    wakeup::Wakeup,
};

/// Most jobs in one step, so that no transaction holds many locks.
const STEP: i64 = 100;

/// What the rescuer works with.
#[derive(Debug, Clone)]
pub struct Rescuer {
    /// Where the jobs are.
    pub store: Store,
    /// Whom to tell.
    pub wakeup: Wakeup,
    /// How tries are charged.
    pub policy: RetryPolicy,
    /// How long a job may hold its lease without persisting anything.
    pub progress_deadline: Duration,
}

impl Rescuer {
    /// Takes one step: up to a hundred jobs.
    pub async fn tick(&self) -> Result<Rescued, StoreError> {
        let rescued = self
            .store
            .rescue(STEP, self.progress_deadline, &self.policy, rand::random)
            .await?;
        if rescued.retried + rescued.failed > 0 {
            tracing::warn!(
                retried = rescued.retried,
                failed = rescued.failed,
                "Took jobs away from workers that went silent or made no progress."
            );
        }
        for source_id in &rescued.source_ids {
            self.wakeup.report_change(*source_id);
        }
        Ok(rescued)
    }

    /// Whether the step was full, so that more may wait.
    pub(crate) fn is_full(rescued: &Rescued) -> bool {
        rescued.source_ids.len() as i64 >= STEP
    }
}
