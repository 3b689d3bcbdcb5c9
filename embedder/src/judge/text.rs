//! A text, what is known against it, and how much of it is tried.

use super::memory::Suspicion;

/// How often a text must fail alone before anything is concluded, where the
/// embedder was left alone after that.
pub(super) const DEATHS: u32 = 4;

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

/// A text and what is known against it.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, and all go together"
)]
pub(super) struct Text {
    /// All of it.
    pub(super) bytes: usize,
    pub(super) fingerprint: u64,
    pub(super) trial: Trial,
    /// How often it failed alone while something else passed afterwards.
    pub(super) failures: u32,
    /// How often of these only its beginning was sent.
    pub(super) beginning_failures: u32,
    /// When it last failed alone.
    pub(super) failed_at: u64,
    /// Whether it failed alone and nothing has passed since.
    pub(super) has_failed: bool,
    /// How many calls must have ended before it is tried again. That differs
    /// from time to time, so that no rhythm of the embedder's can be taken for a
    /// fault of the text.
    pub(super) again_at: u64,
    /// What was said when it first failed alone.
    pub(super) reason: Option<String>,
    /// Least of it that is known to be too much, in bytes, if less than all is.
    pub(super) too_much: usize,
    pub(super) beginning_passed: bool,
    /// Texts of the smallest call it was in that failed.
    pub(super) among: Option<usize>,
    /// Whether all its failures were vectors that cannot be used.
    pub(super) flawed: bool,
    /// How often so much of it failed as is tried now.
    pub(super) repeats: u32,
    /// Whether the embedder was down, or left alone, after it failed alone.
    pub(super) is_remembered: bool,
    pub(super) rejected: bool,
}

impl Text {
    pub(super) fn new(bytes: usize, fingerprint: u64) -> Self {
        Self {
            bytes,
            fingerprint,
            trial: Trial::Whole,
            failures: 0,
            beginning_failures: 0,
            failed_at: 0,
            has_failed: false,
            again_at: 0,
            reason: None,
            too_much: bytes,
            beginning_passed: false,
            among: None,
            flawed: true,
            repeats: 0,
            is_remembered: false,
            rejected: false,
        }
    }

    /// Returns what is known against it, if anything is.
    pub(super) fn suspicion(&self) -> Option<Suspicion> {
        Some(Suspicion {
            failed_at: self.failed_at,
            flawed: self.flawed,
            among: self.among?,
            // The embedder passes a probe before it is sent anything again.
            failures: self.failures + u32::from(self.has_failed),
            beginning_failures: self.beginning_failures
                + u32::from(self.has_failed && self.trial == Trial::Beginning),
            too_much: self.too_much,
            trial: self.trial,
            repeats: self.repeats + u32::from(self.has_failed),
            beginning_passed: self.beginning_passed,
        })
    }

    /// Takes up what was known against it before.
    pub(super) fn resume(&mut self, suspicion: Suspicion, shortest: usize) {
        self.failed_at = suspicion.failed_at;
        self.flawed = suspicion.flawed;
        self.among = Some(suspicion.among);
        self.failures = suspicion.failures;
        self.beginning_failures = suspicion.beginning_failures;
        self.too_much = suspicion.too_much;
        self.is_remembered = self.among == Some(1);
        self.beginning_passed = suspicion.beginning_passed;
        self.trial = match (self.failures, suspicion.trial) {
            (0..DEATHS, _) => Trial::Whole,
            _ if !self.beginning_passed => Trial::Beginning,
            (_, Trial::Shorter(bytes)) if suspicion.repeats < DEATHS => {
                self.repeats = suspicion.repeats;
                Trial::Shorter(bytes)
            }
            (_, Trial::Shorter(bytes)) => {
                self.too_much = bytes;
                Trial::Shorter((bytes / 2).max(shortest))
            }
            _ => Trial::Shorter((self.too_much / 2).max(shortest)),
        };
    }

    /// Returns whether it failed so often while the embedder died that only a
    /// pass of something else is missing. Its last failure counts with that.
    pub(super) fn awaits_proof(&mut self) -> bool {
        let awaits = self.trial == Trial::Beginning && self.beginning_failures >= DEATHS;
        if awaits {
            self.failures -= 1;
            self.beginning_failures -= 1;
            self.has_failed = true;
        }
        awaits
    }

    /// Returns whether its length is on trial.
    pub(super) fn learns(&self) -> bool {
        self.beginning_passed && self.trial != Trial::Beginning
    }

    /// Returns a number that looks random, of the text and a moment.
    pub(super) fn mixed(&self, at: u64) -> u64 {
        (at ^ self.fingerprint).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }

    /// Returns how many calls must end before it is tried again, having failed at
    /// that moment: any number, and the more the oftener it failed.
    pub(super) fn pause(&self, at: u64) -> u64 {
        self.mixed(at) % u64::from(3 + 2 * self.failures).min(LONGEST_PAUSE)
    }

    /// Returns how many bytes of it are sent, where its beginning has so many.
    pub(super) fn sent(&self, shortest: usize) -> usize {
        match self.trial {
            Trial::Whole => self.bytes,
            Trial::Beginning => shortest,
            Trial::Shorter(bytes) => bytes,
        }
    }
}
