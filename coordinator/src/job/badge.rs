//! How a source, a namespace and the whole stand: the one definition of the
//! words that API, page and command line show.

use chrono::{DateTime, Utc};

use super::state::JobState;

/// The unsettled job that says best how its source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Telling {
    /// Where it is in its life.
    pub state: JobState,
    /// Tries charged since it last moved forward.
    pub attempt: i16,
    /// Queued because an embedder was down.
    pub embedder_down: bool,
}

/// What is known of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Chunks that have their vector.
    pub embedded: i64,
    /// Chunks that the embedder can never take.
    pub rejected: i64,
    /// Chunks in all.
    pub total: i64,
    /// The job that is worst off, if any is unsettled: a failed one before one
    /// that is retried, before a running, a waiting and a cancelled one.
    pub telling: Option<Telling>,
    /// Whether a client's cancellation left chunks pending.
    pub cancelled: bool,
    /// Whether a range is embedded anew of which not all is queued yet.
    pub embedding_anew: bool,
    /// Whether workers can claim jobs of its model here.
    pub served: bool,
}

/// A source's state, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BadgeState {
    /// It has no chunks.
    Empty,
    /// Nothing of it is embedded, and nothing is queued.
    NotIndexed,
    /// It waits for a worker.
    Queued,
    /// A worker is at it.
    Indexing,
    /// A job is tried again.
    Retrying,
    /// Nothing is open.
    Indexed,
    /// A job failed for good.
    Failed,
}

impl Standing {
    /// The state that tells most.
    pub fn state(&self) -> BadgeState {
        match self.telling {
            Some(job) if job.state == JobState::Failed => BadgeState::Failed,
            Some(job) if job.is_retried() => BadgeState::Retrying,
            Some(job) if job.state == JobState::Running => BadgeState::Indexing,
            Some(job) if job.state == JobState::Queued => BadgeState::Queued,
            _ if self.embedding_anew => BadgeState::Queued,
            _ if self.total == 0 => BadgeState::Empty,
            _ if self.embedded + self.rejected == 0 => BadgeState::NotIndexed,
            _ => BadgeState::Indexed,
        }
    }

    /// The badge in words.
    pub fn text(&self) -> String {
        let Self {
            embedded,
            rejected,
            total,
            ..
        } = self;
        match self.state() {
            BadgeState::Empty => "empty".to_owned(),
            BadgeState::NotIndexed => "not indexed".to_owned(),
            BadgeState::Queued if self.is_unserved() => "queued, model not served".to_owned(),
            BadgeState::Queued => "queued".to_owned(),
            BadgeState::Indexing => format!("indexing {embedded}/{total}"),
            BadgeState::Retrying => match self.telling.map_or(0, |job| job.attempt) {
                1 => "retrying (1 try)".to_owned(),
                tries => format!("retrying ({tries} tries)"),
            },
            BadgeState::Indexed if *rejected > 0 => {
                format!("{embedded}/{total} indexed, {rejected} rejected")
            }
            BadgeState::Indexed => format!("{embedded}/{total} indexed"),
            BadgeState::Failed => "failed".to_owned(),
        }
    }

    /// Whether something is wrong with it that queued work does not excuse.
    pub fn is_degraded(&self) -> bool {
        self.rejected > 0 || self.is_held_up()
    }

    /// Whether its jobs leave something that queued work does not excuse.
    pub fn is_held_up(&self) -> bool {
        let open = self.telling.is_some_and(|job| job.state.is_open());
        self.is_troubled() || self.cancelled || self.is_unserved() || (self.is_missing() && !open)
    }

    /// Whether it waits for a model that no worker can claim jobs of.
    pub fn is_unserved(&self) -> bool {
        !self.served && self.is_missing()
    }

    fn is_missing(&self) -> bool {
        self.embedded + self.rejected < self.total
    }

    /// Whether the telling job's last error still holds.
    pub fn is_troubled(&self) -> bool {
        self.telling.is_some_and(|job| {
            job.state == JobState::Failed || job.is_retried() || job.embedder_down
        })
    }
}

impl Telling {
    /// Whether it waits or runs after a failure and has not moved forward since.
    fn is_retried(self) -> bool {
        self.state.is_open() && self.attempt > 0
    }
}

/// The chunks of a source, a namespace or the whole that stand rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejections {
    /// How many.
    pub chunks: i64,
    /// Of so many.
    pub total: i64,
    /// When the first of them was rejected.
    pub since: Option<DateTime<Utc>>,
    /// Why the last of them was.
    pub last_reason: Option<String>,
}

/// Most of a reason, in characters, that goes into a sentence.
const REASON_TOLD: usize = 200;

impl Rejections {
    /// How many, since when and why, in words; nothing where there are none.
    pub fn sentence(&self) -> Option<String> {
        if self.chunks <= 0 {
            return None;
        }
        let chunks = if self.total == 1 { "chunk" } else { "chunks" };
        let mut sentence = format!(
            "{} of {} {chunks} rejected",
            grouped(self.chunks),
            grouped(self.total)
        );
        if let Some(since) = self.since {
            sentence += &since.format(", since %Y-%m-%d %H:%M UTC").to_string();
        }
        let reason = self.last_reason.as_deref().unwrap_or_default();
        let words: Vec<&str> = reason.split_whitespace().collect();
        let reason = words.join(" ");
        if !reason.is_empty() {
            let told: String = reason.chars().take(REASON_TOLD).collect();
            let cut = if told.len() < reason.len() { "…" } else { "" };
            sentence.extend([", \"", &told, cut, "\""]);
        }
        Some(sentence)
    }
}

/// A count with commas: 2,000.
fn grouped(number: i64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How a namespace, or the whole, stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Nothing is open and nothing is missing.
    Healthy,
    /// Work is open, and nothing is wrong.
    Indexing,
    /// Something is wrong that queued work does not excuse.
    Degraded,
}

/// What of a namespace, or of the whole, is open or wrong, counted: its unsettled
/// jobs, and the chunks that stand rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Queued or running.
    pub open: i64,
    /// Of these, retried.
    pub retrying: i64,
    /// Of these, queued because an embedder was down.
    pub embedder_down: i64,
    /// Failed.
    pub failed: i64,
    /// Cancelled.
    pub cancelled: i64,
    /// Queued, with a model that no worker can claim jobs of.
    pub unserved: i64,
    /// One of these models.
    pub unserved_model: Option<String>,
    /// What stands rejected.
    pub rejections: Rejections,
}

/// What to say of a model that workers cannot claim jobs of.
pub fn not_served(model: &str) -> String {
    format!(
        "the model {model:?} is not served by this coordinator: add it to --models (WEIR_MODELS) or its models file"
    )
}

impl Tally {
    /// What follows from the counts.
    pub fn verdict(&self) -> Verdict {
        let jobs =
            self.failed + self.retrying + self.embedder_down + self.cancelled + self.unserved;
        if jobs + self.rejections.chunks > 0 {
            Verdict::Degraded
        } else if self.open > 0 {
            Verdict::Indexing
        } else {
            Verdict::Healthy
        }
    }

    /// What is wrong, in words, worst first.
    pub fn reasons(&self) -> Vec<String> {
        let model = self.unserved_model.as_deref().map(not_served);
        let unserved = model.filter(|_| self.unserved > 0).map(|why| {
            let (jobs, wait) = match self.unserved {
                1 => ("1 job".to_owned(), "waits"),
                jobs => (format!("{jobs} jobs"), "wait"),
            };
            format!("{jobs} {wait} for nobody: {why}")
        });
        let counted = [
            (self.failed, "failed", "failed"),
            (self.retrying, "is retried", "are retried"),
            (
                self.embedder_down,
                "waits for an embedder that is down or was refused",
                "wait for an embedder that is down or was refused",
            ),
            (
                self.cancelled,
                "was cancelled and left chunks pending",
                "were cancelled and left chunks pending",
            ),
        ]
        .into_iter()
        .filter(|(jobs, ..)| *jobs > 0)
        .map(|(jobs, one, many)| match jobs {
            1 => format!("1 job {one}"),
            _ => format!("{jobs} jobs {many}"),
        });
        let rejected = self.rejections.sentence();
        unserved
            .into_iter()
            .chain(counted)
            .chain(rejected)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn standing(embedded: i64, rejected: i64, total: i64) -> Standing {
        Standing {
            embedded,
            rejected,
            total,
            telling: None,
            cancelled: false,
            embedding_anew: false,
            served: true,
        }
    }

    fn with(state: JobState, attempt: i16, embedder_down: bool) -> Standing {
        Standing {
            telling: Some(Telling {
                state,
                attempt,
                embedder_down,
            }),
            cancelled: state == JobState::Cancelled,
            ..standing(64, 0, 201)
        }
    }

    fn anew(standing: Standing) -> Standing {
        Standing {
            embedding_anew: true,
            ..standing
        }
    }

    #[test]
    fn every_badge_has_its_words() {
        for (standing, text, degraded) in [
            (standing(0, 0, 0), "empty", false),
            (with(JobState::Queued, 0, false), "queued", false),
            (with(JobState::Queued, 0, true), "queued", true),
            (with(JobState::Running, 0, false), "indexing 64/201", false),
            (with(JobState::Queued, 1, false), "retrying (1 try)", true),
            (
                with(JobState::Running, 3, false),
                "retrying (3 tries)",
                true,
            ),
            (with(JobState::Failed, 5, false), "failed", true),
            (with(JobState::Cancelled, 0, false), "64/201 indexed", true),
            (standing(201, 0, 201), "201/201 indexed", false),
            (standing(198, 3, 201), "198/201 indexed, 3 rejected", true),
            (standing(0, 201, 201), "0/201 indexed, 201 rejected", true),
            (standing(0, 0, 201), "not indexed", true),
            // More is about to be queued, and no failure is hidden by that.
            (anew(standing(201, 0, 201)), "queued", false),
            (
                anew(with(JobState::Running, 0, false)),
                "indexing 64/201",
                false,
            ),
            (anew(with(JobState::Failed, 5, false)), "failed", true),
        ] {
            assert_eq!(standing.text(), text, "{standing:?}");
            assert_eq!(standing.is_degraded(), degraded, "{standing:?}");
        }
        for (standing, text, degraded) in [
            (
                with(JobState::Queued, 0, false),
                "queued, model not served",
                true,
            ),
            (with(JobState::Failed, 5, false), "failed", true),
            (standing(201, 0, 201), "201/201 indexed", false),
            (standing(0, 0, 0), "empty", false),
        ] {
            let standing = Standing {
                served: false,
                ..standing
            };
            assert_eq!(standing.text(), text, "{standing:?}");
            assert_eq!(standing.is_degraded(), degraded, "{standing:?}");
        }
        let cancelled_elsewhere = Standing {
            cancelled: true,
            ..with(JobState::Running, 0, false)
        };
        assert!(cancelled_elsewhere.is_degraded());
        assert_eq!(cancelled_elsewhere.state(), BadgeState::Indexing);
    }

    #[test]
    fn a_verdict_gives_its_reasons_worst_first() {
        let mut jobs = Tally::default();
        assert_eq!(
            (jobs.verdict(), jobs.reasons().len()),
            (Verdict::Healthy, 0)
        );
        jobs.open = 4;
        assert_eq!(
            (jobs.verdict(), jobs.reasons().len()),
            (Verdict::Indexing, 0)
        );
        jobs.retrying = 1;
        jobs.failed = 2;
        assert_eq!(jobs.verdict(), Verdict::Degraded);
        assert_eq!(jobs.reasons(), ["2 jobs failed", "1 job is retried"]);
        jobs = Tally {
            open: 3,
            unserved: 3,
            unserved_model: Some("m".to_owned()),
            ..Tally::default()
        };
        assert_eq!(jobs.verdict(), Verdict::Degraded);
        assert_eq!(
            jobs.reasons(),
            [
                "3 jobs wait for nobody: the model \"m\" is not served by this coordinator: add it to --models \
                 (WEIR_MODELS) or its models file"
            ]
        );
    }

    #[test]
    fn what_is_rejected_makes_a_verdict_and_says_how_much_since_when_and_why() {
        let mut tally = Tally {
            rejections: Rejections {
                chunks: 723,
                total: 1_002_000,
                since: DateTime::from_timestamp(1_795_860_120, 0),
                last_reason: Some("500: \n  NaN".to_owned()),
            },
            ..Tally::default()
        };
        assert_eq!(tally.verdict(), Verdict::Degraded);
        assert_eq!(
            tally.reasons(),
            ["723 of 1,002,000 chunks rejected, since 2026-11-28 10:02 UTC, \"500: NaN\""]
        );
        // Work that is open does not excuse it, and what holds up jobs comes first.
        tally.open = 2;
        tally.failed = 1;
        assert_eq!(tally.verdict(), Verdict::Degraded);
        assert_eq!(tally.reasons()[0], "1 job failed");
        let long = Rejections {
            chunks: 1,
            total: 1,
            since: None,
            last_reason: Some("ä".repeat(REASON_TOLD + 1)),
        };
        assert_eq!(
            long.sentence().unwrap(),
            format!("1 of 1 chunk rejected, \"{}…\"", "ä".repeat(REASON_TOLD))
        );
        assert_eq!(Rejections::default().sentence(), None);
    }

    fn states() -> impl Strategy<Value = JobState> {
        (0..JobState::ALL.len()).prop_map(|at| JobState::ALL[at])
    }

    proptest! {
        #[test]
        fn a_failure_is_never_hidden_by_other_figures(
            embedded in 0..9_i64, rejected in 0..9_i64, missing in 0..9_i64,
            state in states(), attempt in 0..6_i16, embedder_down: bool, cancelled: bool,
        ) {
            let standing = Standing {
                telling: Some(Telling { state, attempt, embedder_down }),
                cancelled,
                ..standing(embedded, rejected, embedded + rejected + missing)
            };
            let failed = state == JobState::Failed;
            let retried = state.is_open() && attempt > 0;
            prop_assert_eq!(standing.state() == BadgeState::Failed, failed);
            prop_assert_eq!(standing.state() == BadgeState::Retrying, retried);
            prop_assert!(
                !(failed || retried || embedder_down || cancelled || rejected > 0) || standing.is_degraded()
            );
            prop_assert!(!standing.text().is_empty());
        }
    }
}
