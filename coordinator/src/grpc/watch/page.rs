//! `WatchSources`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use weir_proto::v1;

use super::{
    Watch, gone,
    hub::{Follow, State},
    serve,
};
use crate::{
    grpc::{Services, page::tokens, sources::summary},
    store::{Scope, rows::SourceKey, sources::SourceFilter, status::Paging},
};

/// Least time between two looks at a page.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// Names a page: which sources, from where on, how many.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::grpc) struct PageKey {
    pub(in crate::grpc) scope: Scope,
    pub(in crate::grpc) filter: SourceFilter,
    pub(in crate::grpc) paging: Option<Paging<SourceKey>>,
    pub(in crate::grpc) limit: i64,
}

/// What is seen of a page: its sources by namespace and name, and the tokens of
/// the pages after and before.
#[derive(Debug, Default, PartialEq)]
pub(in crate::grpc) struct PageState {
    sources: BTreeMap<(String, String), v1::SourceSummary>,
    tokens: (String, String),
}

impl PageState {
    /// What is told of it to a client that had `before` last.
    fn since(&self, before: &Self) -> v1::WatchSourcesResponse {
        let changed = |(key, summary): &(&(String, String), &v1::SourceSummary)| {
            before.sources.get(*key) != Some(*summary)
        };
        let new = self.sources.iter().filter(changed);
        let left = before.sources.keys();
        let left = left.filter(|key| !self.sources.contains_key(*key));
        let (next_page_token, previous_page_token) = self.tokens.clone();
        v1::WatchSourcesResponse {
            sources: new.map(|(_, summary)| summary.clone()).collect(),
            gone: left
                .map(|(namespace, name)| v1::SourceKey {
                    namespace: namespace.clone(),
                    name: name.clone(),
                })
                .collect(),
            next_page_token,
            previous_page_token,
        }
    }
}

async fn look(services: Services, page: PageKey) -> State<PageState> {
    let PageKey {
        scope,
        filter,
        paging,
        limit,
    } = &page;
    let found = services
        .store
        .sources(scope, filter, paging.as_ref(), *limit);
    let found = found.await?;
    let tokens = tokens(&("sources", scope, filter), &found)?;
    let keyed = found.rows.into_iter().map(|found| {
        let key = (found.0.namespace.clone(), found.0.name.clone());
        (key, summary(&services, found))
    });
    Ok(Arc::new(PageState {
        sources: keyed.collect(),
        tokens,
    }))
}

/// Streams a page of sources.
pub(in crate::grpc) fn watch_sources(
    services: &Services,
    page: PageKey,
) -> Watch<v1::WatchSourcesResponse> {
    let hub = services.clone();
    serve(services, async move |answers| {
        let mut sent = None;
        let mut changes = hub.wakeup.any_change();
        let shared = hub.hubs.pages.join(&page);
        let mut follow = Follow::new(&hub);
        loop {
            let since = follow.wait(changes.changed()).await;
            let query = |_| look(hub.clone(), page.clone());
            let seen = shared.see(since, query).await;
            let Some(state) = follow.take(seen)? else {
                continue;
            };
            if sent.as_ref() != Some(&state) {
                let answer = match &sent {
                    Some(before) => state.since(before),
                    None => state.since(&PageState::default()),
                };
                sent = Some(state);
                answers.send(Ok(answer)).await.map_err(gone)?;
            }
        }
    })
}
