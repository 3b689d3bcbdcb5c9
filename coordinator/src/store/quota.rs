//! How much a namespace may have. Looked at only where a bound is set, in the
//! transaction of the write that might exceed it; writes that go on at the same
//! time do not see each other, and may exceed it together.

use super::{StoreError, database::Transaction};

/// Bounds for each namespace; `None` where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Most sources.
    pub max_sources: Option<u32>,
    /// Most chunks that its queued and running jobs have still to embed, with those that
    /// are still to be queued.
    pub max_pending_chunks: Option<u32>,
}

impl Quota {
    /// Whether there is a bound at all.
    pub(super) fn is_any(self) -> bool {
        self != Self::default()
    }

    /// Refuses the source that a write has just created, where it is one too
    /// many.
    pub(super) async fn check_sources(
        self,
        tx: &mut Transaction,
        namespace: &str,
    ) -> Result<(), StoreError> {
        let Some(most) = self.max_sources else {
            return Ok(());
        };
        let found: i64 = sqlx::query_scalar(
            "-- store::quota::check_sources
             SELECT count(*) FROM (SELECT FROM weir.sources WHERE namespace = $1 LIMIT $2) found",
        )
        .bind(namespace)
        .bind(i64::from(most) + 1)
        .fetch_one(&mut **tx)
        .await?;
        if found <= i64::from(most) {
            return Ok(());
        }
        Err(StoreError::Exhausted(format!(
            "namespace {namespace:?} may have {most} sources and has them: delete one first"
        )))
    }

    /// Refuses a write that queued work, where it is too much.
    pub(super) async fn check_pending(
        self,
        tx: &mut Transaction,
        namespace: &str,
    ) -> Result<(), StoreError> {
        let Some(most) = self.max_pending_chunks else {
            return Ok(());
        };
        let pending: i64 = sqlx::query_scalar(
            "-- store::quota::check_pending
             SELECT coalesce(sum(chunks_total - chunks_done - chunks_rejected), 0)::bigint + (
                 -- What moves to another model and is still to be queued for that.
                 SELECT coalesce(sum(chunks_to_move), 0)::bigint FROM weir.sources
                 WHERE next_prompt_id IS NOT NULL AND namespace = $1)
             FROM (
                 SELECT chunks_total, chunks_done, chunks_rejected FROM weir.jobs
                 WHERE state = 'queued' AND namespace = $1
                 UNION ALL
                 SELECT chunks_total, chunks_done, chunks_rejected FROM weir.jobs
                 WHERE state = 'running' AND namespace = $1) open",
        )
        .bind(namespace)
        .fetch_one(&mut **tx)
        .await?;
        if pending <= i64::from(most) {
            return Ok(());
        }
        Err(StoreError::Exhausted(format!(
            "with this write, namespace {namespace:?} would have {pending} chunks to embed, and may have {most}: \
             write again when some are embedded"
        )))
    }
}
