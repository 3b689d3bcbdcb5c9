//! Search: the chunks nearest to a vector.

use super::{Store, StoreError};

/// What to look for, and where.
#[derive(Debug, Clone)]
pub struct Search<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// Only this source of it.
    pub source: Option<&'a str>,
    /// The model that made the vector.
    pub model: &'a str,
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
        let dimension: Option<i32> = sqlx::query_scalar(
            "-- store::search::search\nSELECT dimension FROM weir.models WHERE name = $1",
        )
        .bind(search.model)
        .fetch_optional(&self.pool)
        .await?;
        let Some(dimension) = dimension else {
            // No vector of this model was ever stored, so none is near.
            return Ok(Vec::new());
        };
        if dimension as usize != search.vector.len() {
            return Err(StoreError::invalid(
                "vector",
                format!(
                    "has {} numbers, but vectors of the model {:?} have {dimension}",
                    search.vector.len(),
                    search.model
                ),
            ));
        }
        if let Some(source) = search.source {
            let there: bool = sqlx::query_scalar(
                "-- store::search::search
                 SELECT EXISTS (SELECT FROM weir.sources WHERE namespace = $1 AND name = $2)",
            )
            .bind(search.namespace)
            .bind(source)
            .fetch_one(&self.pool)
            .await?;
            if !there {
                return Err(StoreError::NotFound(format!(
                    "there is no source {source:?} in namespace {:?}",
                    search.namespace
                )));
            }
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
        .bind(search.model)
        .bind(pgvector::Vector::from(search.vector.clone()))
        .bind(search.limit)
        .fetch_all(&self.pool)
        .await?)
    }
}
