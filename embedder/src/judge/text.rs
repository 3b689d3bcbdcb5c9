//! A text, what is known against it, and how much of it is tried.

use super::doubt::{DEATHS, Failures, Kind};

/// Most calls that end before a text that failed alone is tried again.
const LONGEST_PAUSE: u64 = 16;

/// How much of a text is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trial {
    /// All of it.
    Whole,
    /// As little as means anything: if even that fails, it is not its length.
    Beginning,
    /// So many bytes.
    Shorter(usize),
}

/// What was found out of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) trial: Trial,
    /// How often it failed alone while something else passed afterwards, and how
    /// often only its beginning was sent then.
    pub(super) whole: Failures,
    pub(super) beginning: Failures,
    /// When it last failed alone.
    pub(super) failed_at: u64,
    /// Whether it failed alone and nothing has passed since.
    pub(super) has_failed: bool,
    /// Texts of the smallest call it was in that failed.
    pub(super) among: Option<usize>,
    /// Whether its latest failure was a vector that cannot be used.
    pub(super) flawed: bool,
    /// How much of it passed; 0 until its beginning has.
    pub(super) passed: usize,
    /// Least of it that failed since, and how often.
    pub(super) least: usize,
    pub(super) repeats: Failures,
    /// Least of it that is proved to be too much, in bytes.
    pub(super) too_much: usize,
    /// Whether its only failure is taken for a whim until it is known.
    pub(super) presumed: bool,
}

impl Findings {
    /// Counts a failure of what is tried.
    pub(super) fn count(&mut self, kind: Kind, sent: usize) {
        match self.trial {
            Trial::Whole => self.whole.add(kind),
            Trial::Beginning => self.beginning.add(kind),
            Trial::Shorter(_) => {}
        }
        if self.trial != Trial::Beginning {
            if sent < self.least {
                (self.least, self.repeats) = (sent, Failures::default());
            }
            if sent == self.least {
                self.repeats.add(kind);
            }
        }
        self.has_failed = false;
    }

    /// Returns whether it failed once between calls that passed, and nothing is
    /// known of that: most that fail for nothing do, and few that are bad.
    pub(super) fn failed_once(&self) -> bool {
        self.repeats.singles() + self.beginning.singles() == 1
    }
}

/// A text and what is known against it.
#[derive(Debug)]
pub(super) struct Text {
    /// All of it.
    pub(super) bytes: usize,
    pub(super) fingerprint: u64,
    pub(super) known: Findings,
    /// How many calls must have ended before it is tried again. That differs
    /// from time to time, so that no rhythm of the embedder's can be taken for a
    /// fault of the text.
    pub(super) again_at: u64,
    /// What was said when it first failed alone.
    pub(super) reason: Option<String>,
    /// Whether the embedder was down, or left alone, after it failed alone.
    pub(super) is_remembered: bool,
    /// Whether all its failures are counted, and only a pass of something else
    /// is missing.
    pub(super) is_counted: bool,
    pub(super) rejected: bool,
}

impl Text {
    pub(super) fn new(bytes: usize, fingerprint: u64) -> Self {
        Self {
            bytes,
            fingerprint,
            known: Findings {
                trial: Trial::Whole,
                whole: Failures::default(),
                beginning: Failures::default(),
                failed_at: 0,
                has_failed: false,
                among: None,
                flawed: true,
                passed: 0,
                least: bytes,
                repeats: Failures::default(),
                too_much: usize::MAX,
                presumed: false,
            },
            again_at: 0,
            reason: None,
            is_remembered: false,
            is_counted: false,
            rejected: false,
        }
    }

    /// Returns what is known against it, if anything is.
    pub(super) fn findings(&self, shortest: usize) -> Option<Findings> {
        self.known.among?;
        let mut known = self.known;
        if known.has_failed {
            // The embedder passes a probe before it is sent anything again.
            let kind = if known.flawed { Kind::Flaw } else { Kind::Down };
            known.count(kind, self.sent(shortest));
        }
        Some(known)
    }

    /// Takes up what was known against it before.
    pub(super) fn resume(&mut self, known: Findings, shortest: usize) {
        self.known = known;
        self.is_remembered = known.among == Some(1);
        if known.passed == 0 {
            let was_it = known.whole.has_single() || known.whole.total() >= DEATHS;
            self.known.trial = if was_it && self.can_be_shorter(shortest) {
                Trial::Beginning
            } else {
                Trial::Whole
            };
        }
    }

    /// Returns whether its length is on trial.
    pub(super) fn learns(&self) -> bool {
        self.known.passed > 0 && self.known.trial != Trial::Beginning
    }

    /// Returns whether its beginning is less than it.
    pub(super) fn can_be_shorter(&self, shortest: usize) -> bool {
        self.bytes > 2 * shortest
    }

    /// Returns a number that looks random, of the text and a moment.
    pub(super) fn mixed(&self, at: u64) -> u64 {
        (at ^ self.fingerprint).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }

    /// Returns how many calls must end before it is tried again, having failed at
    /// that moment: any number, and the more the oftener it failed.
    pub(super) fn pause(&self, at: u64) -> u64 {
        let failures = self.known.whole.and(self.known.beginning).total();
        self.mixed(at) % u64::from(3 + 2 * failures).min(LONGEST_PAUSE)
    }

    /// Returns how many bytes of it are sent, where its beginning has so many.
    pub(super) fn sent(&self, shortest: usize) -> usize {
        match self.known.trial {
            Trial::Whole => self.bytes,
            Trial::Beginning => shortest,
            Trial::Shorter(bytes) => bytes,
        }
    }

    /// Has so much of it tried.
    pub(super) fn try_bytes(&mut self, bytes: usize) {
        self.known.trial = if bytes >= self.bytes {
            Trial::Whole
        } else {
            Trial::Shorter(bytes)
        };
    }
}
