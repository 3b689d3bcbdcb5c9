//! How a source, a namespace or a try stands: the coordinator's words, in
//! colours. Nothing is concluded here.

use std::time::SystemTime;

use weir_proto::v1::{AttemptOutcome, Badge, BadgeState, Verdict};

use crate::{
    output::{brief, until},
    printable::printable,
    table::Tone,
};

/// How a badge is meant.
pub(crate) fn tone(badge: &Badge) -> Tone {
    match badge.state() {
        BadgeState::Failed => Tone::Bad,
        _ if badge.degraded => Tone::Doubtful,
        BadgeState::Queued | BadgeState::Indexing | BadgeState::Retrying => Tone::Busy,
        BadgeState::Indexed | BadgeState::Empty => Tone::Good,
        BadgeState::NotIndexed | BadgeState::Unspecified => Tone::Plain,
    }
}

/// What last went wrong, and when it goes on; nothing when all is well.
pub(crate) fn trouble(badge: &Badge, now: SystemTime) -> Option<String> {
    let error = printable(&badge.last_error);
    let wait = until(badge.next_run_time, now);
    let next = match badge.state() {
        _ if wait.is_zero() => String::new(),
        BadgeState::Failed => format!("queued again in {}", brief(wait)),
        _ => format!("next run in {}", brief(wait)),
    };
    let parts: Vec<String> = [error, next]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// A verdict in one word.
pub(crate) fn verdict(verdict: Verdict) -> (&'static str, Tone) {
    match verdict {
        Verdict::Unspecified => ("unknown", Tone::Plain),
        Verdict::Healthy => ("healthy", Tone::Good),
        Verdict::Indexing => ("indexing", Tone::Busy),
        Verdict::Degraded => ("degraded", Tone::Bad),
    }
}

/// How a try ended, in a word or two.
pub(crate) fn outcome(outcome: AttemptOutcome) -> (&'static str, Tone) {
    match outcome {
        AttemptOutcome::Unspecified => ("unknown", Tone::Plain),
        AttemptOutcome::Running => ("running", Tone::Busy),
        AttemptOutcome::Succeeded => ("succeeded", Tone::Good),
        AttemptOutcome::Released => ("released", Tone::Plain),
        AttemptOutcome::Failed => ("failed", Tone::Bad),
        AttemptOutcome::Expired => ("expired", Tone::Bad),
        AttemptOutcome::NoProgress => ("no progress", Tone::Bad),
        AttemptOutcome::Cancelled => ("cancelled", Tone::Plain),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn trouble_says_why_and_when() {
        let now = SystemTime::now();
        let mut badge = Badge::default();
        assert_eq!(trouble(&badge, now), None);
        badge.last_error = "503\nfrom the embedder".into();
        badge.set_state(BadgeState::Retrying);
        assert_eq!(
            trouble(&badge, now).as_deref(),
            Some("503 from the embedder")
        );
        badge.next_run_time = Some((now + Duration::from_secs(12)).into());
        assert_eq!(
            trouble(&badge, now).as_deref(),
            Some("503 from the embedder, next run in 12 s")
        );
        badge.set_state(BadgeState::Failed);
        assert_eq!(
            trouble(&badge, now).as_deref(),
            Some("503 from the embedder, queued again in 12 s")
        );
    }

    #[test]
    fn what_is_degraded_is_never_green() {
        for state in [BadgeState::Indexed, BadgeState::Empty, BadgeState::Queued] {
            let mut badge = Badge {
                degraded: true,
                ..Badge::default()
            };
            badge.set_state(state);
            assert_eq!(tone(&badge), Tone::Doubtful, "{state:?}");
        }
    }
}
