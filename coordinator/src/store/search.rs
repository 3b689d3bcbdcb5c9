//! Search: the chunks nearest to a vector.

use super::{Store, StoreError, rows::SourceKey};

/// What to look for, and where.
#[derive(Debug, Clone)]
pub struct Search<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// Only this source of it.
    pub source: Option<&'a str>,
    /// The model that made the vector; `None`: that of the source.
    pub model: Option<&'a str>,
    /// The model where neither it nor a source is named.
    pub default_model: &'a str,
    /// The vector.
    pub vector: Vec<f32>,
    /// Most hits.
    pub limit: i64,
}

/// A chunk near the vector.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Hit {
    /// The source's name.
    pub source: String,
    /// The item.
    pub item_id: String,
    /// The place in the item.
    pub chunk_index: i32,
    /// The chunk's text.
    pub text: String,
    /// 1 less the cosine of the angle between the vectors.
    pub distance: f64,
    /// The item's metadata.
    pub metadata: Option<serde_json::Value>,
}

impl Store {
    /// Returns the chunks nearest to a vector by cosine distance, in exact
    /// order: every vector of the model in reach is compared.
    pub async fn search(&self, search: &Search<'_>) -> Result<Vec<Hit>, StoreError> {
        self.read(|| self.try_search(search)).await
    }

    async fn try_search(&self, search: &Search<'_>) -> Result<Vec<Hit>, StoreError> {
        let model = match search.source {
            Some(source) => self.model_of(search, source).await?,
            None => search.model.unwrap_or(search.default_model).to_owned(),
        };
        let dimension: Option<i32> = sqlx::query_scalar(
            "-- store::search::search\nSELECT dimension FROM weir.models WHERE name = $1",
        )
        .bind(&model)
        .fetch_optional(&self.pool)
        .await?;
        let Some(dimension) = dimension else {
            // No vector of this model was ever stored, so none is near.
            return Ok(Vec::new());
        };
        let ours = search.vector.len();
        if dimension as usize != ours {
            if self.dimensions.of(&model).is_none() && !self.has_vectors(&model).await? {
                return Ok(Vec::new());
            }
            return Err(StoreError::invalid(
                "vector",
                format!("has {ours} numbers, but vectors of the model {model:?} have {dimension}"),
            ));
        }
        Ok(sqlx::query_as(
            "-- store::search::search
             WITH nearest AS MATERIALIZED (
                 SELECT s.name AS source, e.source_id, e.item_id, e.chunk_index, e.embedding <=> $4 AS distance
                 FROM weir.sources s JOIN weir.embeddings e ON e.source_id = s.id
                 WHERE s.namespace = $1 AND ($2::text IS NULL OR s.name = $2) AND e.model = $3
                 ORDER BY distance, source, item_id, chunk_index LIMIT $5
             )
             SELECT n.source, n.item_id, n.chunk_index, c.text, n.distance, i.metadata
             FROM nearest n
             JOIN weir.chunks c USING (source_id, item_id, chunk_index)
             JOIN weir.items i USING (source_id, item_id)
             ORDER BY n.distance, n.source, n.item_id, n.chunk_index",
        )
        .bind(search.namespace)
        .bind(search.source)
        .bind(&model)
        .bind(pgvector::Vector::from(search.vector.clone()))
        .bind(search.limit)
        .fetch_all(&self.pool)
        .await?)
    }
    /// The model of the source that is searched, which has to be the vector's.
    async fn model_of(&self, search: &Search<'_>, source: &str) -> Result<String, StoreError> {
        let model: Option<String> = sqlx::query_scalar(
            "-- store::search::model_of
             SELECT model FROM weir.sources WHERE namespace = $1 AND name = $2",
        )
        .bind(search.namespace)
        .bind(source)
        .fetch_optional(&self.pool)
        .await?;
        let key = || SourceKey {
            namespace: search.namespace.to_owned(),
            name: source.to_owned(),
        };
        let model = model.ok_or_else(|| key().not_found())?;
        match search.model {
            Some(named) if named != model => Err(StoreError::invalid(
                "model",
                format!(
                    "is {named:?}, but the source {source:?} has the model {model:?}: search it with a vector of that"
                ),
            )),
            _ => Ok(model),
        }
    }
}
