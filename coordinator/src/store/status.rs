//! Reading jobs.

use super::{
    Store, StoreError,
    rows::{Job, job_columns},
};
use crate::job::state::JobState;

/// Which jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Only of this namespace.
    pub namespace: Option<String>,
    /// Only of the source of this name; needs a namespace.
    pub source: Option<String>,
    /// Only in these states; all when empty.
    pub states: Vec<JobState>,
}

impl Store {
    /// Returns one job.
    pub async fn job(&self, job_id: i64) -> Result<Job, StoreError> {
        sqlx::query_as(concat!(
            "-- store::status::job\nSELECT ",
            job_columns!(),
            " FROM weir.jobs j WHERE j.id = $1"
        ))
        .bind(job_id)
        .fetch_optional(&self.pool)
        .await?
        .ok_or_else(|| StoreError::no_job(job_id))
    }

    /// Returns up to `limit` jobs with ids below `before`, newest first.
    pub async fn jobs(
        &self,
        filter: &JobFilter,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<Job>, StoreError> {
        let states: Vec<&str> = filter.states.iter().map(|state| state.as_str()).collect();
        // Each shape of filter is a statement of its own, so that each is planned for its index.
        let query = match (&filter.namespace, &filter.source) {
            (Some(_), Some(_)) => concat!(
                "-- store::status::jobs\nSELECT ",
                job_columns!(),
                " FROM weir.jobs j
                 WHERE j.namespace = $1 AND j.source = $2 AND j.id < $3
                   AND (cardinality($4::text[]) = 0 OR j.state = ANY($4))
                 ORDER BY j.id DESC LIMIT $5"
            ),
            (Some(_), None) => concat!(
                "-- store::status::jobs\nSELECT ",
                job_columns!(),
                " FROM weir.jobs j
                 WHERE j.namespace = $1 AND ($2::text IS NULL) AND j.id < $3
                   AND (cardinality($4::text[]) = 0 OR j.state = ANY($4))
                 ORDER BY j.id DESC LIMIT $5"
            ),
            _ => concat!(
                "-- store::status::jobs\nSELECT ",
                job_columns!(),
                " FROM weir.jobs j
                 WHERE ($1::text IS NULL) AND ($2::text IS NULL) AND j.id < $3
                   AND (cardinality($4::text[]) = 0 OR j.state = ANY($4))
                 ORDER BY j.id DESC LIMIT $5"
            ),
        };
        Ok(sqlx::query_as(query)
            .bind(&filter.namespace)
            .bind(&filter.source)
            .bind(before.unwrap_or(i64::MAX))
            .bind(&states)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?)
    }
}
