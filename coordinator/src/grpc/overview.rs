//! The status of the whole: verdicts, failures and the last hour.

use std::time::Duration;

use tonic::Status;
use weir_proto::v1;

use super::{Services, auth::Caller, door::Door, page};
use crate::store::{
    Scope, StoreError, activity::SAMPLE_SECONDS, failures::FailurePosition, queue::QueueStats,
};

/// Tells how the namespaces of a scope stand.
pub(super) async fn status(
    services: &Services,
    scope: Scope,
) -> Result<v1::GetStatusResponse, Status> {
    let (own, key) = (services.clone(), scope.clone());
    let query = async move { Ok(look(&own, &scope).await?) };
    services.hubs.status.ask(key, query).await
}

/// Reads how the namespaces of a scope stand.
pub(super) async fn look(
    services: &Services,
    scope: &Scope,
) -> Result<v1::GetStatusResponse, StoreError> {
    let queue = services.queue.ask().await?;
    let overview = services
        .store
        .overview(scope, &services.models, &queue.stats);
    let mut figures = overview.await?.into_iter();
    // The total comes first, for no namespace sorts before an empty name.
    let total = figures.next().map(v1::NamespaceStatus::from);
    Ok(v1::GetStatusResponse {
        total: total.map(|total| v1::NamespaceStatus {
            namespace: scope.one().unwrap_or_default().to_owned(),
            ..total
        }),
        namespaces: figures.map(v1::NamespaceStatus::from).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trace_url_template: services.trace_url.clone().unwrap_or_default(),
        jobs_age_seconds: queue.age().as_secs_f64(),
    })
}

/// Lists failures.
pub(super) async fn failures(
    services: &Services,
    caller: &Caller,
    request: v1::ListFailuresRequest,
) -> Result<v1::ListFailuresResponse, Status> {
    let mut door = Door::default();
    let namespace = door.any_namespace(request.namespace);
    let limit = door.page_size(request.page_size);
    door.close()?;
    let scope = caller.narrow(namespace)?;
    let query = ("failures", &scope, request.include_dismissed);
    let after: Option<FailurePosition> = page::position(&query, &request.page_token)?;
    let failures = services
        .store
        .failures(&scope, request.include_dismissed, after, limit)
        .await?;
    let next_page_token = match failures.last() {
        Some(last) if failures.len() as i64 == limit => {
            page::token(&query, &(last.last_seen_at, last.id))?
        }
        _ => String::new(),
    };
    Ok(v1::ListFailuresResponse {
        failures: failures.into_iter().map(Into::into).collect(),
        next_page_token,
    })
}

/// Tells how much is open by namespace and model.
pub(super) async fn queues(
    services: &Services,
    scope: &Scope,
    model: Option<&str>,
) -> Result<v1::GetQueueStatsResponse, Status> {
    let figures = services.queue.ask().await?;
    let asked = figures.stats.iter().filter(|it| {
        it.jobs_open() > 0
            && scope.has(&it.namespace)
            && model.is_none_or(|model| it.model == model)
    });
    Ok(v1::GetQueueStatsResponse {
        queues: asked.map(queue_stats).collect(),
        age_seconds: figures.age().as_secs_f64(),
    })
}

fn queue_stats(stats: &QueueStats) -> v1::QueueStats {
    v1::QueueStats {
        namespace: stats.namespace.clone(),
        model: stats.model.clone(),
        jobs_ready: stats.jobs_ready,
        jobs_delayed: stats.jobs_delayed,
        jobs_running: stats.jobs_running,
        chunks_pending: stats.chunks_pending,
        oldest_ready_age_seconds: stats.oldest_ready_age_seconds,
    }
}

/// Returns the last minutes.
pub(super) async fn activity(
    services: &Services,
    request: v1::GetActivityRequest,
) -> Result<v1::GetActivityResponse, Status> {
    let mut door = Door::default();
    let minutes = door.number("minutes", request.minutes, 60, 1..=60);
    door.close()?;
    let past = Duration::from_mins(minutes.unsigned_abs().into());
    let store = services.store.clone();
    let query = async move {
        let points = store.activity(past).await?;
        Ok(v1::GetActivityResponse {
            points: points.into_iter().map(Into::into).collect(),
            interval_seconds: SAMPLE_SECONDS,
        })
    };
    services.hubs.activity.ask(minutes, query).await
}
