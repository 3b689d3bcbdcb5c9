//! Models: how many numbers their vectors have. The operator says so, or the
//! first vectors do; it holds for as long as there are vectors of the model.

use std::{collections::HashMap, sync::Arc};

use super::{Store, StoreError, batches::Outcome, database::Transaction};

/// The dimensions that the operator has set, by model.
#[derive(Debug, Clone, Default)]
pub struct Dimensions(Arc<HashMap<String, i32>>);

impl FromIterator<(String, u16)> for Dimensions {
    fn from_iter<T: IntoIterator<Item = (String, u16)>>(models: T) -> Self {
        let models = models.into_iter();
        Self(Arc::new(
            models.map(|(name, it)| (name, it.into())).collect(),
        ))
    }
}

impl Dimensions {
    /// The dimension that was set for a model.
    pub fn of(&self, model: &str) -> Option<i32> {
        self.0.get(model).copied()
    }
}

/// A model that no worker here can claim jobs of, and what would need it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Unserved {
    /// The model.
    pub model: String,
    /// Sources of it.
    pub sources: i64,
    /// Jobs of it that are queued or running.
    pub open_jobs: i64,
}

impl Store {
    /// Writes down the dimensions that the operator has set. Fails with
    /// [`StoreError::Precondition`] where a model has vectors of another.
    pub async fn set_dimensions(&self) -> Result<(), StoreError> {
        for (model, &dimension) in &*self.dimensions.0 {
            let set = || self.try_set_dimension(model, dimension);
            self.unlocked("the dimensions of the models", set).await?;
        }
        Ok(())
    }

    async fn try_set_dimension(&self, model: &str, dimension: i32) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        if let Some(stored) = fix(&mut tx, model, dimension).await? {
            return Err(StoreError::Precondition(format!(
                "the model {model:?} is set to have vectors of {dimension} numbers, but those that are stored \
                 have {stored}: set {model}={stored}, or give the model that has {dimension} a name of its own; \
                 to keep the name, first delete the sources of {model:?}"
            )));
        }
        Ok(tx.commit().await?)
    }

    /// Whether there is a vector of a model.
    pub(super) async fn has_vectors(&self, model: &str) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        has_vectors(&mut tx, model).await
    }

    /// Returns models that have sources or open jobs and are not among
    /// `served`, at most `limit` of them by name.
    pub async fn unserved_models(
        &self,
        served: &[String],
        limit: i64,
    ) -> Result<Vec<Unserved>, StoreError> {
        Ok(sqlx::query_as(
            "-- store::models::unserved_models
             SELECT model, coalesce(s.sources, 0) AS sources, coalesce(j.open_jobs, 0) AS open_jobs
             FROM (SELECT model, count(*) AS sources FROM weir.sources WHERE model <> ALL($1) GROUP BY model) s
             FULL JOIN (SELECT model, count(*) AS open_jobs FROM weir.jobs
                        WHERE state IN ('queued', 'running') AND model <> ALL($1) GROUP BY model) j USING (model)
             ORDER BY model LIMIT $2",
        )
        .bind(served)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }
}

/// Makes the dimension of an outcome's vectors that of its model, where that
/// has no vectors yet, or none any more. Others may be about to do the same, or
/// to write vectors: from here on they wait. Fails where the vectors do not fit.
pub(super) async fn fix_dimension(
    tx: &mut Transaction,
    told: &Dimensions,
    outcome: &Outcome,
    dimension: i32,
) -> Result<(), StoreError> {
    let (model, stored): (String, Option<i32>) = sqlx::query_as(
        "-- store::models::fix_dimension
         SELECT j.model, m.dimension FROM weir.jobs j LEFT JOIN weir.models m ON m.name = j.model WHERE j.id = $1",
    )
    .bind(outcome.fence.lease.job_id)
    .fetch_one(&mut **tx)
    .await?;
    if let Some(stored) = stored.filter(|stored| *stored != dimension)
        && has_vectors(tx, &model).await?
    {
        return Err(unfit(&model, dimension, stored, ""));
    }
    match told.of(&model) {
        Some(told) if told != dimension => {
            return Err(unfit(
                &model,
                dimension,
                told,
                ", as the coordinator was told",
            ));
        }
        None if !outcome.may_be_first => {
            return Err(StoreError::NoDimension(format!(
                "no vector of the model {model:?} is stored, and this worker's token, which is for some namespaces, \
                 may not decide for all how many numbers its vectors have: set it on the coordinator, as --models \
                 {model}={dimension} (WEIR_MODELS) or in its models file, or let a worker of all namespaces embed with the model first"
            )));
        }
        _ => {}
    }
    match fix(tx, &model, dimension).await? {
        Some(stored) => Err(unfit(&model, dimension, stored, "")),
        None => Ok(()),
    }
}

fn unfit(model: &str, ours: i32, theirs: i32, why: &str) -> StoreError {
    StoreError::invalid(
        "embedded[0].vector",
        format!("has {ours} numbers, but vectors of the model {model:?} have {theirs}{why}"),
    )
}

/// Fixes a model's dimension and keeps its row locked, so that nobody writes
/// vectors of another until the transaction ends. Returns the dimension of the
/// vectors that there are where that is another.
async fn fix(tx: &mut Transaction, model: &str, dimension: i32) -> Result<Option<i32>, StoreError> {
    sqlx::query(
        "-- store::models::fix
         INSERT INTO weir.models (name, dimension) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
    )
    .bind(model)
    .bind(dimension)
    .execute(&mut **tx)
    .await?;
    // Whoever writes vectors shares this lock: what they wrote is seen by the next statement.
    let stored: i32 = sqlx::query_scalar(
        "-- store::models::fix\nSELECT dimension FROM weir.models WHERE name = $1 FOR UPDATE",
    )
    .bind(model)
    .fetch_one(&mut **tx)
    .await?;
    if stored == dimension {
        return Ok(None);
    }
    if has_vectors(tx, model).await? {
        return Ok(Some(stored));
    }
    sqlx::query(
        "-- store::models::fix
         UPDATE weir.models SET dimension = $2, created_at = now() WHERE name = $1",
    )
    .bind(model)
    .bind(dimension)
    .execute(&mut **tx)
    .await?;
    Ok(None)
}

/// Whether there is a vector of a model. Of the sources that have the model one
/// row each is looked for; those that had it before are taken to have some for
/// as long as they are unsettled, or move.
pub(super) async fn has_vectors(tx: &mut Transaction, model: &str) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "-- store::models::has_vectors
         SELECT EXISTS (
             SELECT FROM weir.sources s CROSS JOIN LATERAL (
                 SELECT FROM weir.embeddings e WHERE e.source_id = s.id AND e.model = $1 LIMIT 1) one
             WHERE s.model = $1)
         OR EXISTS (
             SELECT FROM weir.former_models f
             WHERE f.model = $1 AND (
                 EXISTS (SELECT FROM weir.jobs j WHERE j.source_id = f.source_id AND NOT j.settled)
                 OR EXISTS (SELECT FROM weir.sources s WHERE s.id = f.source_id AND s.chunks_to_move IS NOT NULL)))",
    )
    .bind(model)
    .fetch_one(&mut **tx)
    .await?)
}
