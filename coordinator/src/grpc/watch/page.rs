//! `WatchSources`.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{sleep, timeout};
use weir_proto::v1;

use super::{POLLS, Watch, gone, serve};
use crate::{
    grpc::{Services, page::tokens, sources::summary},
    store::{rows::SourceKey, sources::SourceFilter, status::Paging},
};

/// Least time between two looks at a page.
const PAUSE: Duration = Duration::from_millis(500);

/// Streams a page of sources.
pub(in crate::grpc) fn watch_sources(
    services: &Services,
    filter: SourceFilter,
    paging: Option<Paging<SourceKey>>,
    limit: i64,
) -> Watch<v1::WatchSourcesResponse> {
    let services_here = services.clone();
    serve(services, async move |answers| {
        let services = services_here;
        let unasked = services.poll_interval * POLLS;
        let mut changes = services.wakeup.any_change();
        let mut seen: Option<BTreeMap<(String, String), v1::SourceSummary>> = None;
        loop {
            changes.mark_unchanged();
            let found = services
                .store
                .sources(&filter, paging.as_ref(), limit)
                .await?;
            let (next_page_token, previous_page_token) = tokens(&("sources", &filter), &found)?;
            let keyed = found.rows.into_iter().map(|found| {
                let key = (found.0.namespace.clone(), found.0.name.clone());
                (key, summary(&services, found))
            });
            let now: BTreeMap<_, _> = keyed.collect();
            let first = seen.is_none();
            let before = seen.take().unwrap_or_default();
            let new = now
                .iter()
                .filter(|(key, summary)| before.get(*key) != Some(*summary));
            let new: Vec<v1::SourceSummary> = new.map(|(_, summary)| summary.clone()).collect();
            let gone_keys = before.keys().filter(|key| !now.contains_key(*key));
            let gone_keys: Vec<v1::SourceKey> = gone_keys
                .map(|(namespace, name)| v1::SourceKey {
                    namespace: namespace.clone(),
                    name: name.clone(),
                })
                .collect();
            if first || !new.is_empty() || !gone_keys.is_empty() {
                let answer = v1::WatchSourcesResponse {
                    sources: new,
                    gone: gone_keys,
                    next_page_token,
                    previous_page_token,
                };
                answers.send(Ok(answer)).await.map_err(gone)?;
            }
            seen = Some(now);
            sleep(PAUSE).await;
            let _ = timeout(unasked, changes.changed()).await;
        }
    })
}
