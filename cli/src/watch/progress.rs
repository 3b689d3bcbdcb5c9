//! How far a source is, told from the states that the coordinator sends. Pure:
//! the time is an argument.

use std::time::{Instant, SystemTime};

use weir_proto::v1::{self, BadgeState};

use super::rate::Rate;
use crate::{badge, printable::printable, table::Tone, view::exceptions};

/// A watched source.
#[derive(Debug, Default)]
pub(super) struct Progress {
    source: v1::Source,
    rate: Rate,
}

/// How a source ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Everything is embedded.
    Complete,
    /// Everything but what was rejected.
    Rejected,
    /// Something is missing.
    Incomplete,
}

impl Progress {
    /// Takes the next state.
    pub(super) fn update(&mut self, source: v1::Source, now: Instant) {
        let old = &self.source;
        if old.revision != source.revision || old.model != source.model {
            // What is done by now was not all done by this run.
            self.rate.forget();
        }
        self.source = source;
        self.rate.sample(self.position().0, now);
    }

    /// Chunks that are settled, and all chunks.
    pub(super) fn position(&self) -> (u64, u64) {
        let done = self.source.chunks_embedded + self.source.chunks_rejected;
        (done.max(0) as u64, self.source.chunks.max(0) as u64)
    }

    /// How it stands, in the coordinator's words.
    pub(super) fn badge(&self) -> v1::Badge {
        self.source.badge.clone().unwrap_or_default()
    }

    /// How it stands, as the end of a watch.
    pub(super) fn end(&self) -> End {
        let badge = self.badge();
        let settled = matches!(badge.state(), BadgeState::Indexed | BadgeState::Empty);
        let missing = badge.done + badge.rejected < badge.total;
        match badge.rejected {
            _ if settled && !badge.degraded => End::Complete,
            1.. if settled && !missing => End::Rejected,
            _ => End::Incomplete,
        }
    }

    /// The badge's words and their meaning, and what else there is to say: how
    /// far and how fast, what is truncated or rejected, what went wrong and when
    /// it goes on.
    pub(super) fn words(&self, instant: Instant, now: SystemTime) -> (String, Tone, String) {
        let (badge, (done, total)) = (self.badge(), self.position());
        let mut parts = Vec::new();
        let open = matches!(
            badge.state(),
            BadgeState::Queued | BadgeState::Indexing | BadgeState::Retrying
        );
        if !badge.text.contains(&format!("/{total}")) && total > 0 {
            parts.push(format!("{done}/{total}"));
        }
        if open {
            let left = total.saturating_sub(done);
            parts.extend(self.rate.figures(left, instant));
        }
        // A badge at rest says itself what was rejected.
        let rejected = if badge.state() == BadgeState::Indexed {
            0
        } else {
            badge.rejected
        };
        parts.extend(exceptions(rejected, self.source.chunks_truncated));
        parts.extend(badge::trouble(&badge, now));
        let tone = badge::tone(&badge);
        (printable(&badge.text), tone, parts.join("  "))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::printable::{HOSTILE, assert_harmless};

    fn source(embedded: i64, rejected: i64, state: BadgeState, text: &str) -> v1::Source {
        let mut badge = v1::Badge {
            text: text.into(),
            done: embedded,
            total: 100,
            rejected,
            ..v1::Badge::default()
        };
        badge.set_state(state);
        v1::Source {
            chunks: 100,
            chunks_embedded: embedded,
            chunks_rejected: rejected,
            revision: 1,
            badge: Some(badge),
            ..v1::Source::default()
        }
    }

    fn words(progress: &Progress, now: Instant) -> String {
        let (text, _, more) = progress.words(now, SystemTime::UNIX_EPOCH);
        format!("{text}|{more}")
    }

    #[test]
    fn the_badge_is_shown_as_it_is_with_how_fast_it_goes() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let indexing = |embedded| source(embedded, 0, BadgeState::Indexing, "indexing n/100");
        progress.update(indexing(40), start);
        assert_eq!(words(&progress, start), "indexing n/100|");
        let now = start + Duration::from_secs(4);
        progress.update(indexing(60), now);
        assert_eq!(
            words(&progress, now),
            "indexing n/100|5.0 chunks/s  8 s left"
        );
        assert_eq!(progress.position(), (60, 100));

        // A new revision starts afresh, even with more of it done.
        let mut changed = indexing(70);
        changed.revision = 2;
        progress.update(changed, now);
        assert_eq!(words(&progress, now), "indexing n/100|");
    }

    #[test]
    fn trouble_is_told_with_how_far_it_came() {
        let mut progress = Progress::default();
        let mut failed = source(40, 1, BadgeState::Failed, "failed");
        failed.badge.as_mut().unwrap().last_error = "503".into();
        progress.update(failed, Instant::now());
        assert_eq!(progress.end(), End::Incomplete);
        assert_eq!(
            words(&progress, Instant::now()),
            "failed|41/100  1 rejected  503"
        );
    }

    #[test]
    fn the_end_says_how_many_chunks_were_truncated() {
        let mut progress = Progress::default();
        let mut end = source(97, 3, BadgeState::Indexed, "97/100 indexed, 3 rejected");
        end.badge.as_mut().unwrap().degraded = true;
        end.chunks_truncated = 2;
        progress.update(end.clone(), Instant::now());
        assert_eq!(
            words(&progress, Instant::now()),
            "97/100 indexed, 3 rejected|2 truncated"
        );
        assert_eq!(progress.end(), End::Rejected);
        end.badge.as_mut().unwrap().done = 96;
        progress.update(end.clone(), Instant::now());
        assert_eq!(progress.end(), End::Incomplete, "a chunk is missing");
        end.badge = source(100, 0, BadgeState::Indexed, "100/100 indexed").badge;
        progress.update(end, Instant::now());
        assert_eq!(progress.end(), End::Complete);
    }

    #[test]
    fn a_hostile_name_is_harmless() {
        let mut progress = Progress::default();
        let mut hostile = source(1, 0, BadgeState::Failed, HOSTILE);
        hostile.badge.as_mut().unwrap().last_error = HOSTILE.into();
        progress.update(hostile, Instant::now());
        assert_harmless(&words(&progress, Instant::now()));
    }
}
