//! How far a source is, told from the states that the coordinator sends. Pure:
//! the time is an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime},
};

use weir_proto::v1::{self, JobState};

use crate::{
    jobs::trouble,
    output::{brief, count},
    view::exceptions,
};

/// The rate is that of this last stretch of time.
const RATE_WINDOW: Duration = Duration::from_secs(20);
/// Most moments kept of that stretch; the coordinator sends at most five
/// states a second.
const MAX_SAMPLES: usize = 200;

/// How a source stands when nothing of it is open any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Every chunk is embedded or rejected.
    Complete,
    /// Chunks are pending, and no job will embed them.
    Incomplete,
}

/// A watched source.
#[derive(Debug, Default)]
pub(super) struct Progress {
    state: v1::WatchSourceResponse,
    /// When how many chunks were done, oldest first.
    samples: VecDeque<(Instant, i64)>,
}

impl Progress {
    /// Takes the next state.
    pub(super) fn update(&mut self, state: v1::WatchSourceResponse, now: Instant) {
        let (old, new) = (self.source(), state.source.clone().unwrap_or_default());
        if old.revision != new.revision || old.model != new.model || done(&old) > done(&new) {
            // What is done by now was not all done by this run.
            self.samples.clear();
        }
        self.samples.push_back((now, done(&new)));
        while self.samples.len() > MAX_SAMPLES
            || self
                .samples
                .get(1)
                .is_some_and(|(time, _)| now - *time >= RATE_WINDOW)
        {
            self.samples.pop_front();
        }
        self.state = state;
    }

    fn source(&self) -> v1::Source {
        self.state.source.clone().unwrap_or_default()
    }

    /// Chunks that are settled, and all chunks.
    pub(super) fn position(&self) -> (u64, u64) {
        let source = self.source();
        (done(&source).max(0) as u64, source.chunks.max(0) as u64)
    }

    /// Whether a job is queued or running.
    pub(super) fn is_open(&self) -> bool {
        self.state
            .jobs
            .iter()
            .any(|job| matches!(job.state(), JobState::Queued | JobState::Running))
    }

    /// How the source stands now that nothing is open.
    pub(super) fn outcome(&self) -> Outcome {
        let (done, chunks) = self.position();
        if done >= chunks {
            Outcome::Complete
        } else {
            Outcome::Incomplete
        }
    }

    /// Chunks a second, over the last stretch of time; none until something
    /// was done while we watched.
    fn rate(&self, now: Instant) -> Option<f64> {
        let ((start, first), (_, last)) = (self.samples.front()?, self.samples.back()?);
        let seconds = now.saturating_duration_since(*start).as_secs_f64();
        (last > first && seconds > 0.0).then(|| (last - first) as f64 / seconds)
    }

    /// The figures beside the bar: rate, time left, tries, truncated and rejected
    /// chunks.
    pub(super) fn figures(&self, now: Instant) -> String {
        let mut parts = Vec::new();
        let (done, chunks) = self.position();
        if let Some(rate) = self.rate(now).filter(|_| self.is_open()) {
            parts.push(if rate < 10.0 {
                format!("{rate:.1} chunks/s")
            } else {
                format!("{rate:.0} chunks/s")
            });
            let left = (chunks.saturating_sub(done)) as f64 / rate;
            if let Ok(left) = Duration::try_from_secs_f64(left.ceil()) {
                parts.push(format!("{} left", brief(left)));
            }
        }
        let tries = self
            .state
            .jobs
            .iter()
            .map(|job| job.attempt)
            .max()
            .unwrap_or(0);
        if tries > 0 {
            parts.push(format!("tries {tries}"));
        }
        parts.extend(self.exceptions());
        parts.join("  ")
    }

    fn exceptions(&self) -> Option<String> {
        let source = self.source();
        exceptions(source.chunks_rejected, source.chunks_truncated)
    }

    /// What goes wrong, the worst first; nothing when all is well.
    pub(super) fn trouble(&self, now: SystemTime) -> Option<String> {
        let gravity = |job: &&v1::Job| match job.state() {
            JobState::Failed => 0,
            JobState::Cancelled => 2,
            _ => 1,
        };
        let mut jobs: Vec<&v1::Job> = self.state.jobs.iter().collect();
        jobs.sort_by_key(gravity);
        let mut troubles = jobs.iter().filter_map(|job| trouble(job, now));
        let first = troubles.next()?;
        Some(match troubles.count() {
            0 => first,
            more => format!("{first} (and {})", count(more as i64, "more job")),
        })
    }

    /// How it ended, in a sentence's words.
    pub(super) fn verdict(&self) -> String {
        let source = self.source();
        let (done, chunks) = self.position();
        match self.outcome() {
            Outcome::Complete => {
                let embedded = count(source.chunks_embedded, "chunk");
                let exceptions = self.exceptions().map(|what| format!(", {what}"));
                format!(
                    "done, {embedded} embedded{}",
                    exceptions.unwrap_or_default()
                )
            }
            Outcome::Incomplete => {
                format!(
                    "not complete, {} not embedded",
                    count((chunks - done) as i64, "chunk")
                )
            }
        }
    }
}

fn done(source: &v1::Source) -> i64 {
    source.chunks_embedded + source.chunks_rejected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(embedded: i64, rejected: i64, jobs: Vec<v1::Job>) -> v1::WatchSourceResponse {
        let source = v1::Source {
            chunks: 100,
            chunks_embedded: embedded,
            chunks_rejected: rejected,
            revision: 1,
            ..v1::Source::default()
        };
        v1::WatchSourceResponse {
            source: Some(source),
            jobs,
            ..v1::WatchSourceResponse::default()
        }
    }

    fn job(state: JobState, attempt: i32, last_error: &str) -> v1::Job {
        let mut job = v1::Job {
            attempt,
            last_error: last_error.into(),
            ..v1::Job::default()
        };
        job.set_state(state);
        job
    }

    #[test]
    fn the_rate_is_of_what_was_done_while_watching() {
        let running = || vec![job(JobState::Running, 0, "")];
        let (mut progress, start) = (Progress::default(), Instant::now());
        progress.update(state(40, 0, running()), start);
        assert_eq!(progress.figures(start), "");
        progress.update(state(60, 0, running()), start + Duration::from_secs(4));
        let now = start + Duration::from_secs(4);
        assert_eq!(progress.figures(now), "5.0 chunks/s  8 s left");
        assert_eq!(progress.position(), (60, 100));

        // A new revision starts afresh, even with more of it done.
        let mut changed = state(70, 0, running());
        changed.source.as_mut().unwrap().revision = 2;
        progress.update(changed, now);
        assert_eq!(progress.figures(now), "");
    }

    #[test]
    fn the_rate_forgets_and_its_memory_is_bounded() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let running = || vec![job(JobState::Running, 0, "")];
        for second in 0..60 {
            let time = start + Duration::from_secs(second);
            progress.update(
                state(if second < 20 { 0 } else { second as i64 }, 0, running()),
                time,
            );
        }
        let now = start + Duration::from_secs(59);
        assert!(
            progress.figures(now).starts_with("1.0 chunks/s"),
            "{}",
            progress.figures(now)
        );
        for _ in 0..1_000 {
            progress.update(state(60, 0, running()), now);
        }
        assert!(progress.samples.len() <= MAX_SAMPLES);
    }

    #[test]
    fn the_outcome_counts_rejected_chunks_as_settled() {
        let mut progress = Progress::default();
        progress.update(state(97, 3, vec![]), Instant::now());
        assert_eq!(
            (progress.is_open(), progress.outcome()),
            (false, Outcome::Complete)
        );
        assert_eq!(progress.verdict(), "done, 97 chunks embedded, 3 rejected");
        assert_eq!(progress.figures(Instant::now()), "3 rejected");

        progress.update(
            state(97, 0, vec![job(JobState::Failed, 5, "bad")]),
            Instant::now(),
        );
        assert_eq!(
            (progress.is_open(), progress.outcome()),
            (false, Outcome::Incomplete)
        );
        assert_eq!(progress.verdict(), "not complete, 3 chunks not embedded");
    }

    #[test]
    fn the_end_says_how_many_chunks_were_truncated() {
        let mut progress = Progress::default();
        let mut end = state(97, 3, vec![]);
        end.source.as_mut().unwrap().chunks_truncated = 2;
        progress.update(end, Instant::now());
        assert_eq!(
            progress.verdict(),
            "done, 97 chunks embedded, 2 truncated, 3 rejected"
        );
        assert_eq!(progress.figures(Instant::now()), "2 truncated, 3 rejected");
    }

    #[test]
    fn the_worst_trouble_comes_first() {
        let mut progress = Progress::default();
        let jobs = vec![
            job(JobState::Running, 0, ""),
            job(JobState::Queued, 2, "503"),
            job(JobState::Failed, 5, "bad"),
        ];
        progress.update(state(1, 0, jobs), Instant::now());
        let trouble = progress.trouble(SystemTime::now()).unwrap();
        assert_eq!(trouble, "failed after 5 tries: bad (and 1 more job)");
        assert!(progress.is_open());
        assert!(progress.figures(Instant::now()).contains("tries 5"));
    }
}
