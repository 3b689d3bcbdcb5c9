//! Reading jobs.

use sqlx::{FromRow as _, Postgres, QueryBuilder, Row as _};

use super::{
    Scope, Store, StoreError,
    rows::{Job, job_columns},
    scope::in_scope,
};
use crate::job::state::{JobState, Trigger};

/// Jobs that one page looks at, where few of them may pass its filter.
const EXAMINED: i64 = 5_000;

/// Which jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct JobFilter {
    /// Only of the source of this name.
    pub source: Option<String>,
    /// Only of sources whose name begins so.
    pub source_prefix: Option<String>,
    /// Only in these states; all when empty.
    pub states: Vec<JobState>,
    /// Only for these reasons; all when empty.
    pub triggers: Vec<Trigger>,
    /// Only with this model.
    pub model: Option<String>,
    /// Only unsettled ones that this failure befell last.
    pub failure_id: Option<i64>,
}

/// Where a page begins, and in which direction it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Paging<P> {
    /// The page after this position, in the order of the list.
    After(P),
    /// The page before this position.
    Before(P),
}

/// A page of a list, in the order of the list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T, P> {
    /// What is on it.
    pub rows: Vec<T>,
    /// Where the next page begins, if there may be one.
    pub next: Option<P>,
    /// Where the page before ends, if there may be one.
    pub previous: Option<P>,
}

impl<T, P> Page<T, P> {
    /// A page of what was read towards its end, or its beginning, as `paging`
    /// has it: at most `limit` rows, with the position of the last row looked at
    /// where more may follow.
    pub(super) fn of(
        mut rows: Vec<T>,
        paging: Option<&Paging<P>>,
        more: Option<P>,
        position: impl Fn(&T) -> P,
    ) -> Self {
        let back = matches!(paging, Some(Paging::Before(_)));
        if back {
            rows.reverse();
        }
        // Whoever came here by a token came from somewhere.
        let (first, last) = (rows.first().map(&position), rows.last().map(&position));
        let (next, previous) = match paging {
            None => (more, None),
            Some(Paging::After(_)) => (more, first),
            Some(Paging::Before(_)) => (last, more),
        };
        Self {
            rows,
            next,
            previous,
        }
    }
}

/// Where the pages beside one begin that has nothing on it: it has others beside
/// it all the same, on the side that it was come to from.
pub(crate) fn beside_nothing(
    next: Option<i64>,
    previous: Option<i64>,
    paging: Option<&Paging<i64>>,
) -> (Option<i64>, Option<i64>) {
    match paging {
        None => (next, previous),
        Some(Paging::After(id)) => (next, Some(id.saturating_sub(1).max(0))),
        Some(Paging::Before(id)) => (Some(id.saturating_add(1)), previous),
    }
}

impl JobFilter {
    /// Adds the conditions that an index answers.
    fn push_indexed(&self, query: &mut QueryBuilder<Postgres>, scope: &Scope) {
        scope.push(query, "namespace");
        if let Some(failure_id) = self.failure_id {
            query.push(" AND NOT settled AND failure_id = ");
            query.push_bind(failure_id);
            // Asked once, before any job is looked at: a failure of others costs nothing.
            query.push(" AND EXISTS (SELECT FROM weir.failures f WHERE f.id = ");
            query.push_bind(failure_id);
            scope.push(query, "f.namespace");
            query.push(")");
            return;
        }
        if let Some(source) = &self.source {
            query.push(" AND source = ").push_bind(source.clone());
        }
        // As the partial indexes have it: what is rare in a history is found without walking it.
        let badly = |state: &JobState| matches!(state, JobState::Failed | JobState::Cancelled);
        if self.states.is_empty() {
        } else if self.states.iter().all(badly) {
            query.push(" AND state IN ('failed', 'cancelled')");
        } else if self.states.iter().all(|state| state.is_open()) {
            query.push(" AND state IN ('queued', 'running')");
        }
    }

    /// Adds which jobs are looked at: the next so many, from where the page
    /// begins, that an index finds.
    fn push_examined(
        &self,
        query: &mut QueryBuilder<Postgres>,
        scope: &Scope,
        paging: Option<&Paging<i64>>,
        examined: i64,
    ) {
        query.push(" FROM weir.jobs WHERE true");
        self.push_indexed(query, scope);
        let (bound, from, order) = match paging {
            Some(Paging::Before(id)) => (" AND id > ", *id, " ORDER BY id ASC"),
            Some(Paging::After(id)) => (" AND id < ", *id, " ORDER BY id DESC"),
            None => (" AND id < ", i64::MAX, " ORDER BY id DESC"),
        };
        query.push(bound).push_bind(from).push(order);
        query.push(" LIMIT ").push_bind(examined);
    }

    /// Adds the conditions that are asked of each row that the index has.
    fn push_others(&self, query: &mut QueryBuilder<Postgres>) {
        if !self.states.is_empty() {
            let states: Vec<&str> = self.states.iter().map(|state| state.as_str()).collect();
            query
                .push(" AND j.state = ANY(")
                .push_bind(states)
                .push(")");
        }
        if !self.triggers.is_empty() {
            let triggers: Vec<&str> = self.triggers.iter().map(|it| it.as_str()).collect();
            query
                .push(" AND j.trigger = ANY(")
                .push_bind(triggers)
                .push(")");
        }
        if let Some(model) = &self.model {
            query.push(" AND j.model = ").push_bind(model.clone());
        }
        if let Some(prefix) = &self.source_prefix {
            query
                .push(" AND starts_with(j.source, ")
                .push_bind(prefix.clone())
                .push(")");
        }
    }

    /// Whether rows that the index has are left out.
    fn has_others(&self) -> bool {
        !self.states.is_empty()
            || !self.triggers.is_empty()
            || self.model.is_some()
            || self.source_prefix.is_some()
    }
}

impl Store {
    /// Returns one job.
    pub async fn job(&self, scope: &Scope, job_id: i64) -> Result<Job, StoreError> {
        self.read(|| async {
            sqlx::query_as(concat!(
                "-- store::status::job\nSELECT ",
                job_columns!(),
                " FROM weir.jobs j WHERE j.id = $1 AND ",
                in_scope!("j.namespace", "$2")
            ))
            .bind(job_id)
            .bind(scope.namespaces())
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| StoreError::no_job(job_id))
        })
        .await
    }

    /// Returns those of these jobs that there are of a source, newest first.
    pub async fn jobs_by_id(&self, source_id: i64, ids: &[i64]) -> Result<Vec<Job>, StoreError> {
        self.read(|| async {
            Ok(sqlx::query_as(concat!(
                "-- store::status::jobs_by_id\nSELECT ",
                job_columns!(),
                " FROM weir.jobs j WHERE j.id = ANY($2) AND j.source_id = $1 ORDER BY j.id DESC"
            ))
            .bind(source_id)
            .bind(ids)
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// Returns a page of up to `limit` jobs, newest first. Where the filter asks
    /// for what no index has, it looks at so many jobs and no more, and the page
    /// may be short although others follow.
    pub async fn jobs(
        &self,
        scope: &Scope,
        filter: &JobFilter,
        paging: Option<&Paging<i64>>,
        limit: i64,
    ) -> Result<Page<Job, i64>, StoreError> {
        self.read(|| self.try_jobs(scope, filter, paging, limit))
            .await
    }

    async fn try_jobs(
        &self,
        scope: &Scope,
        filter: &JobFilter,
        paging: Option<&Paging<i64>>,
        limit: i64,
    ) -> Result<Page<Job, i64>, StoreError> {
        // One more than are wanted, to know whether others follow.
        let wanted = limit + 1;
        let examined = if filter.has_others() {
            EXAMINED.max(wanted)
        } else {
            wanted
        };
        let back = matches!(paging, Some(Paging::Before(_)));
        let order = if back {
            " ORDER BY id ASC"
        } else {
            " ORDER BY id DESC"
        };
        // Reading stops once the page is full; how far it came is asked only where it is short.
        let mut query = QueryBuilder::new(concat!(
            "-- store::status::jobs\nWITH found AS MATERIALIZED (SELECT ",
            job_columns!(),
            " FROM (SELECT *"
        ));
        filter.push_examined(&mut query, scope, paging, examined);
        query.push(") j WHERE true");
        filter.push_others(&mut query);
        query.push(order).push(" LIMIT ").push_bind(wanted);
        query.push(
            ") SELECT r.lowest, r.highest, r.rows, j.*
             FROM (SELECT min(id) AS lowest, max(id) AS highest, count(*) AS rows FROM (SELECT id",
        );
        filter.push_examined(&mut query, scope, paging, examined);
        query.push(") examined WHERE (SELECT count(*) FROM found) < ");
        query.push_bind(wanted);
        query.push(") r LEFT JOIN found j ON true").push(order);
        let found = query.build().fetch_all(&self.pool).await?;
        let mut rows = Vec::with_capacity(found.len());
        let mut more = None;
        for row in &found {
            if row.try_get::<Option<i64>, _>("id")?.is_some() {
                rows.push(Job::from_row(row)?);
            }
            let end = if back { "highest" } else { "lowest" };
            let whole: i64 = row.try_get("rows")?;
            more = row
                .try_get::<Option<i64>, _>(end)?
                .filter(|_| whole == examined);
        }
        if rows.len() as i64 > limit {
            rows.pop();
            more = rows.last().map(|job: &Job| job.id);
        }
        let mut page = Page::of(rows, paging, more, |job| job.id);
        if page.rows.is_empty() {
            (page.next, page.previous) = beside_nothing(page.next, page.previous, paging);
        }
        Ok(page)
    }
}
