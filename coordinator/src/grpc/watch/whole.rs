//! `WatchStatus`.

use std::{sync::Arc, time::Duration};

use weir_proto::v1;

use super::{
    Watch, gone,
    hub::{Follow, State},
    serve,
};
use crate::{
    grpc::{Services, overview},
    store::Scope,
};

/// Least time between two looks at the whole.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

async fn look(services: Services, scope: Scope) -> State<v1::GetStatusResponse> {
    let status = overview::look(&services, &scope).await?;
    Ok(Arc::new(status))
}

/// Streams how the namespaces of a scope stand.
pub(in crate::grpc) fn watch_status(
    services: &Services,
    scope: Scope,
) -> Watch<v1::WatchStatusResponse> {
    let hub = services.clone();
    serve(services, async move |answers| {
        let mut sent = None;
        let mut changes = hub.wakeup.any_change();
        let shared = hub.hubs.whole.join(&scope);
        let mut follow = Follow::new(&hub);
        loop {
            let since = follow.wait(changes.changed()).await;
            let query = |_| look(hub.clone(), scope.clone());
            let seen = shared.see(since, query).await;
            let Some(now) = follow.take(seen)? else {
                continue;
            };
            let state = v1::GetStatusResponse {
                jobs_age_seconds: 0.0,
                ..(*now).clone()
            };
            // That it was looked at again is no change.
            if sent.as_ref() != Some(&state) {
                sent = Some(state);
                let answer = v1::WatchStatusResponse {
                    status: Some((*now).clone()),
                };
                answers.send(Ok(answer)).await.map_err(gone)?;
            }
        }
    })
}
