//! The trial of one text that failed alone: whether it is rejected, shortened, or
//! innocent.

use super::{Hint, Judge, TextId, Verdict, memory::Suspicion, search::Task};

/// How often an embedder must be down after a text failed alone before the
/// text is rejected.
const DEATHS: u32 = 4;
/// Calls for which an embedder is taken to be in trouble that was down, or that
/// failed for nothing.
pub(super) const TROUBLE: u64 = 100;

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
    beginning_failures: u32,
    /// When it last failed alone.
    pub(super) failed_at: u64,
    /// Whether it failed alone and nothing has passed since.
    pub(super) has_failed: bool,
    /// How many calls must have ended before it is tried again. That differs
    /// from time to time, so that no rhythm of the embedder's can be taken for a
    /// fault of the text.
    again_at: u64,
    /// What was said when it first failed alone.
    reason: Option<String>,
    /// Least of it that failed alone, in bytes.
    too_much: usize,
    beginning_passed: bool,
    /// Texts of the smallest call it was in that failed.
    pub(super) among: Option<usize>,
    /// Whether the last failure called it too long.
    said_too_long: bool,
    /// Whether the embedder was down after it last failed alone.
    pub(super) is_remembered: bool,
    rejected: bool,
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
            said_too_long: false,
            is_remembered: false,
            rejected: false,
        }
    }

    /// Returns what is known against it, if anything is.
    pub(super) fn suspicion(&self) -> Option<Suspicion> {
        Some(Suspicion {
            among: self.among?,
            // The embedder passes a probe before it is sent anything again.
            failures: self.failures + u32::from(self.has_failed),
            beginning_failures: self.beginning_failures
                + u32::from(self.has_failed && self.trial == Trial::Beginning),
            too_much: self.too_much,
            beginning_passed: self.beginning_passed,
        })
    }

    /// Takes up what was known against it before.
    pub(super) fn resume(&mut self, suspicion: Suspicion, shortest: usize) {
        self.among = Some(suspicion.among);
        self.failures = suspicion.failures;
        self.beginning_failures = suspicion.beginning_failures;
        self.too_much = suspicion.too_much;
        self.is_remembered = self.among == Some(1);
        self.beginning_passed = suspicion.beginning_passed;
        self.trial = match self.failures {
            0..DEATHS => Trial::Whole,
            _ if !self.beginning_passed => Trial::Beginning,
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

    /// Returns how many bytes of it are sent, where its beginning has so many.
    pub(super) fn sent(&self, shortest: usize) -> usize {
        match self.trial {
            Trial::Whole => self.bytes,
            Trial::Beginning => shortest,
            Trial::Shorter(bytes) => bytes,
        }
    }
}

impl Judge {
    /// Counts a failure that meant nothing.
    pub(super) fn contradicted(&mut self) {
        self.doubt.contradicted();
        self.trouble_until = self.ended + TROUBLE;
    }

    /// Takes in that a text has a vector, alone or among others.
    pub(super) fn text_passed(&mut self, id: TextId, place: usize, verdicts: &mut Vec<Verdict>) {
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        let sent = text.sent(self.settings.shortest);
        match text.trial {
            Trial::Beginning => {
                text.beginning_passed = true;
                text.has_failed = false;
                let failed_before = std::mem::take(&mut text.beginning_failures) > 0;
                // It may be its length. It has to fail as often as if it were rejected.
                text.trial = Trial::Whole;
                if failed_before {
                    self.contradicted();
                }
                let task = self.alone(id);
                return self.tasks.push_front(task);
            }
            Trial::Whole if text.failures > 0 => self.contradicted(),
            Trial::Whole => {}
            Trial::Shorter(_) => self.too_long = self.too_long.min(text.too_much),
        }
        self.passed_bytes = self.passed_bytes.max(sent);
        if sent >= self.too_long {
            self.too_long = sent + 1;
        }
        self.texts.remove(&id);
        verdicts.push(Verdict::Embedded {
            text: id,
            place,
            bytes: sent,
        });
    }

    /// Has a text tried with half of what was too much, or with as much as is
    /// known to pass.
    pub(super) fn shorten(&mut self, id: TextId) {
        let shortest = self.settings.shortest;
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        let half = text.too_much / 2;
        let known = (shortest.max(self.too_long / 4)..half).contains(&self.passed_bytes)
            && half >= self.too_long;
        let next = if known { self.passed_bytes } else { half };
        text.trial = Trial::Shorter(next.max(shortest));
        let task = self.alone(id);
        self.tasks.push_back(task);
    }

    /// Takes in that a text failed alone. It goes on once a call passes that
    /// began after the moment `at`.
    pub(super) fn text_failed(&mut self, id: TextId, hint: Hint, reason: &str, at: u64) {
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        text.failed_at = at;
        text.again_at = self.ended + (self.moment ^ text.fingerprint) % 3;
        text.among = Some(1);
        text.said_too_long = matches!(hint, Hint::TooLong(_) | Hint::TooMuch);
        text.reason.get_or_insert_with(|| reason.to_owned());
        if text.trial != Trial::Beginning {
            text.too_much = text.too_much.min(text.sent(self.settings.shortest));
        }
        self.unproven.push(id);
    }

    /// Goes on with the texts that failed alone, once something else passed.
    pub(super) fn weigh(&mut self) {
        let mut proven = Vec::new();
        self.unproven.retain(|id| {
            let is_proven = self
                .texts
                .get(id)
                .is_none_or(|text| text.failed_at <= self.proof && text.again_at <= self.ended);
            if is_proven {
                proven.push(*id);
            }
            !is_proven
        });
        for id in proven {
            self.convict(id);
        }
    }

    /// Takes the next step against a text that failed alone while others pass.
    fn convict(&mut self, id: TextId) {
        let shortest = self.settings.shortest;
        let needed = self.doubt.failures_needed();
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        let can_be_shorter = text.sent(shortest) > shortest && text.bytes > 2 * shortest;
        text.failures += 1;
        text.beginning_failures += u32::from(!can_be_shorter);
        text.has_failed = false;
        let needed = if text.is_remembered {
            needed.max(DEATHS)
        } else {
            needed
        };
        // Where its length may explain that it failed whole, only its beginning counts.
        let beginning = if text.bytes > self.passed_bytes { 1 } else { 2 };
        let is_known = text.bytes >= self.too_long && text.bytes > self.passed_bytes;
        match text.trial {
            Trial::Whole if can_be_shorter && is_known => return self.shorten(id),
            Trial::Whole if text.beginning_passed && text.failures >= needed => {
                if text.bytes > self.passed_bytes {
                    return self.shorten(id);
                }
                // Others as long passed: do they still?
                return self.controls.push(id);
            }
            Trial::Whole if text.beginning_passed => {}
            // So much of others passed, or the embedder is in trouble: it has to fail once more.
            Trial::Shorter(bytes)
                if can_be_shorter
                    && text.beginning_passed
                    && (bytes <= self.passed_bytes || self.ended < self.trouble_until)
                    && !text.failures.is_multiple_of(2) => {}
            Trial::Shorter(_) if can_be_shorter && text.beginning_passed => {
                return self.shorten(id);
            }
            Trial::Whole | Trial::Shorter(_) if can_be_shorter => text.trial = Trial::Beginning,
            _ if text.failures >= needed && beginning * text.beginning_failures >= needed => {
                text.rejected = true;
                return;
            }
            _ => {}
        }
        let task = self.alone(id);
        self.tasks.push_back(task);
    }

    /// Makes a task of a text that failed alone. Where the embedder is in
    /// trouble nothing else may be to blame for the outcome.
    pub(super) fn alone(&self, id: TextId) -> Task {
        let text = self.texts.get(&id);
        let exclusive = text.is_some_and(|text| text.is_remembered);
        Task {
            exclusive: exclusive || self.ended < self.trouble_until,
            ..Task::alone(id)
        }
    }

    /// Takes out the texts that are rejected.
    pub(super) fn rejected(&mut self) -> Vec<Verdict> {
        let rejected = self.texts.extract_if(|_, text| text.rejected);
        let verdicts = rejected.map(|(text, was)| Verdict::Rejected {
            text,
            reason: was.reason.unwrap_or_default(),
        });
        verdicts.collect()
    }
}
