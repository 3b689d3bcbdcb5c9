//! The status of the whole: verdicts, failures and the last hour.

use std::time::Duration;

use tonic::Status;
use weir_proto::v1;

use super::{Services, auth::Caller, door::Door, page};
use crate::store::{StoreError, activity::SAMPLE_SECONDS, failures::FailurePosition};

/// Reads how a namespace, or all of them, stands.
pub(super) async fn status(
    services: &Services,
    namespace: Option<&str>,
) -> Result<v1::GetStatusResponse, StoreError> {
    let mut figures = services.store.overview(namespace).await?.into_iter();
    // The total comes first, for no namespace sorts before an empty name.
    let total = figures.next().map(v1::NamespaceStatus::from);
    Ok(v1::GetStatusResponse {
        total: total.map(|total| v1::NamespaceStatus {
            namespace: namespace.unwrap_or_default().to_owned(),
            ..total
        }),
        namespaces: figures.map(v1::NamespaceStatus::from).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trace_url_template: services.trace_url.clone().unwrap_or_default(),
    })
}

/// Lists failures.
pub(super) async fn failures(
    services: &Services,
    caller: &Caller,
    request: v1::ListFailuresRequest,
) -> Result<v1::ListFailuresResponse, Status> {
    let mut door = Door::default();
    let namespace = (!request.namespace.is_empty()).then(|| door.namespace(request.namespace));
    let limit = door.page_size(request.page_size);
    door.close()?;
    let namespace = caller.narrow(namespace)?;
    let query = ("failures", &namespace, request.include_dismissed);
    let after: Option<FailurePosition> = page::position(&query, &request.page_token)?;
    let failures = services
        .store
        .failures(
            namespace.as_deref(),
            request.include_dismissed,
            after,
            limit,
        )
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

/// Returns the last minutes.
pub(super) async fn activity(
    services: &Services,
    request: v1::GetActivityRequest,
) -> Result<v1::GetActivityResponse, Status> {
    let mut door = Door::default();
    let minutes = door.number("minutes", request.minutes, 60, 1..=60);
    door.close()?;
    let past = Duration::from_mins(minutes.unsigned_abs().into());
    let points = services.store.activity(past).await?;
    Ok(v1::GetActivityResponse {
        points: points.into_iter().map(Into::into).collect(),
        interval_seconds: SAMPLE_SECONDS,
    })
}
