//! Many sources at a time: those that have something open, and which of them
//! to show. Pure: the time is an argument.

use std::{cmp::Reverse, collections::BTreeMap, time::Instant};

use weir_proto::v1::{BadgeState, WatchSourcesResponse};

use super::progress::Progress;

/// Namespace and name.
pub(super) type Key = (String, String);

/// The watched sources.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    sources: BTreeMap<Key, Progress>,
    /// Whether there are more than are watched.
    pub(super) more: bool,
    /// Whether the next message has all of them.
    anew: bool,
}

impl Crowd {
    /// The stream broke: the next message has all sources.
    pub(super) fn begin_anew(&mut self) {
        self.anew = true;
    }

    /// Takes a message, and returns which sources it is of and which have gone.
    pub(super) fn update(
        &mut self,
        message: WatchSourcesResponse,
        now: Instant,
    ) -> (Vec<Key>, Vec<Key>) {
        let mut changed = Vec::new();
        for source in message.sources.into_iter().filter_map(|it| it.source) {
            let key = (source.namespace.clone(), source.name.clone());
            self.sources
                .entry(key.clone())
                .or_default()
                .update(source, now);
            changed.push(key);
        }
        let gone = message
            .gone
            .into_iter()
            .map(|key| (key.namespace, key.name));
        let mut gone: Vec<Key> = gone.collect();
        if std::mem::take(&mut self.anew) {
            let left = self.sources.keys().filter(|key| !changed.contains(key));
            gone.extend(left.cloned());
        }
        for key in &gone {
            self.sources.remove(key);
        }
        self.more = !message.next_page_token.is_empty();
        (changed, gone)
    }

    /// A source of the crowd.
    pub(super) fn get(&self, key: &Key) -> Option<&Progress> {
        self.sources.get(key)
    }

    /// How many sources there are.
    pub(super) fn len(&self) -> usize {
        self.sources.len()
    }

    /// The `most` busiest: those being embedded before those that are tried
    /// again, that failed, that wait; of these, those with most to do.
    pub(super) fn busiest(&self, most: usize) -> Vec<(&Key, &Progress)> {
        let rank = |progress: &Progress| {
            let (done, total) = progress.position();
            let state = match progress.badge().state() {
                BadgeState::Indexing => 0,
                BadgeState::Retrying => 1,
                BadgeState::Failed => 2,
                BadgeState::Queued => 3,
                _ => 4,
            };
            (state, Reverse(total.saturating_sub(done)))
        };
        let mut all: Vec<_> = self.sources.iter().collect();
        all.sort_by_cached_key(|(_, progress)| rank(progress));
        all.truncate(most);
        all
    }
}

#[cfg(test)]
mod tests {
    use weir_proto::v1::{Badge, Source, SourceKey, SourceSummary};

    use super::*;

    fn summary(name: &str, state: BadgeState, pending: i64) -> SourceSummary {
        let mut badge = Badge::default();
        badge.set_state(state);
        let source = Source {
            name: name.to_owned(),
            chunks: 100,
            chunks_embedded: 100 - pending,
            badge: Some(badge),
            ..Source::default()
        };
        SourceSummary {
            source: Some(source),
            job: None,
        }
    }

    fn message(sources: Vec<SourceSummary>, gone: &[&str]) -> WatchSourcesResponse {
        let key = |name: &&str| SourceKey {
            name: (*name).to_owned(),
            ..SourceKey::default()
        };
        WatchSourcesResponse {
            sources,
            gone: gone.iter().map(key).collect(),
            ..WatchSourcesResponse::default()
        }
    }

    fn names(crowd: &Crowd, most: usize) -> String {
        let busiest = crowd.busiest(most);
        let names: Vec<&str> = busiest.iter().map(|(key, _)| key.1.as_str()).collect();
        names.join(" ")
    }

    #[test]
    fn the_busiest_come_first() {
        let mut crowd = Crowd::default();
        let all = vec![
            summary("a", BadgeState::Queued, 100),
            summary("b", BadgeState::Failed, 90),
            summary("c", BadgeState::Indexing, 10),
            summary("d", BadgeState::Indexing, 20),
            summary("e", BadgeState::Retrying, 1),
        ];
        crowd.update(message(all, &[]), Instant::now());
        assert_eq!(names(&crowd, 9), "d c e b a");
        assert_eq!(names(&crowd, 2), "d c");
    }

    #[test]
    fn after_a_break_only_what_comes_is_there() {
        let (mut crowd, now) = (Crowd::default(), Instant::now());
        let queued = |name| summary(name, BadgeState::Queued, 1);
        crowd.update(
            message(vec![queued("a"), queued("b"), queued("c")], &[]),
            now,
        );
        let (changed, gone) = crowd.update(message(vec![queued("b")], &["a"]), now);
        assert_eq!((changed.len(), gone.len()), (1, 1));
        assert_eq!(names(&crowd, 9), "b c");
        crowd.begin_anew();
        let (_, gone) = crowd.update(message(vec![queued("c"), queued("d")], &[]), now);
        assert_eq!(gone, [(String::new(), "b".to_owned())]);
        assert_eq!(names(&crowd, 9), "c d");
        crowd.update(message(Vec::new(), &[]), now);
        assert_eq!(crowd.len(), 2);
    }
}
