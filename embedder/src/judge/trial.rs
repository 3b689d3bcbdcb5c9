//! The trial of one text that failed alone: whether it is rejected, shortened, or
//! innocent.

use super::{
    CallSize, Judge, TextId, Verdict,
    doubt::{Failures, Kind},
    search::Task,
    text::{Findings, Text, Trial},
};

impl Judge {
    /// Counts failures that meant nothing.
    fn contradicted(&mut self, failures: Failures) {
        self.doubt.contradicted(failures.of_calls());
        self.flaws.contradicted(failures.of_vectors());
    }

    /// Returns whether so many failures are too many for an innocent text.
    fn proves(&self, known: &Findings, failures: Failures) -> bool {
        self.doubt.proves(failures.of_calls(), known.presumed)
            || self.flaws.proves(failures.of_vectors(), false)
    }

    /// Takes in that a text has a vector, alone or among others.
    pub(super) fn text_passed(&mut self, id: TextId, place: usize, verdicts: &mut Vec<Verdict>) {
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        let sent = text.sent(self.settings.shortest);
        let known = &mut text.known;
        (known.has_failed, known.passed) = (false, sent);
        let mut whims = Failures::default();
        if known.trial == Trial::Beginning {
            whims = std::mem::take(&mut known.beginning);
        } else if sent >= known.least {
            whims = std::mem::take(&mut known.repeats);
            known.least = (2 * sent).min(text.bytes);
            known.too_much = usize::MAX;
        }
        self.doubt.presume(&mut known.presumed, false);
        let trial = known.trial;
        self.contradicted(whims);
        if trial != Trial::Beginning {
            self.passed_bytes = self.passed_bytes.max(sent);
            if sent >= self.too_long {
                self.too_long = sent + 1;
            }
        }
        if trial != Trial::Whole && !self.is_as_long_as_passes(id, sent) {
            return self.go_on(id);
        }
        self.texts.remove(&id);
        verdicts.push(Verdict::Embedded {
            text: id,
            place,
            bytes: sent,
        });
    }

    /// Returns whether it is proved that not much more of a text passes.
    fn is_as_long_as_passes(&self, id: TextId, passed: usize) -> bool {
        self.texts.get(&id).is_some_and(|text| {
            self.is_too_much(text) && text.known.least.min(self.too_long) / 4 <= passed
        })
    }

    /// Returns whether it is known that the least of a text that failed is too
    /// much.
    fn is_too_much(&self, text: &Text) -> bool {
        let least = text.known.least;
        least >= text.known.too_much || least >= self.too_long && least > self.passed_bytes
    }

    /// Chooses how much of a text is tried next, whose beginning passed and more
    /// did not: less, until that passes; then what failed, until that proves
    /// something; and then again what passed. Returns whether there is anything
    /// to try before a probe.
    pub(super) fn choose_length(&mut self, id: TextId) -> bool {
        let shortest = self.settings.shortest;
        let Some(text) = self.texts.get(&id) else {
            return false;
        };
        let (known, bytes) = (text.known, text.bytes);
        let mut is_too_much = self.is_too_much(text);
        if !is_too_much && self.proves(&known, known.repeats) {
            self.doubt.explained(known.repeats.of_calls());
            if known.least <= self.passed_bytes {
                // Others as long passed: do they still?
                self.controls.push(id);
                return false;
            }
            self.too_long = self.too_long.min(known.least);
            is_too_much = true;
        }
        let half = (known.least / 2).max(shortest);
        // One failure asks for less, but for that of the whole, which is most likely a whim.
        let seems = is_too_much || known.least < bytes || known.repeats.total() > 1;
        let usual = shortest.max(self.too_long / 4).max(known.passed + 1)..half;
        let next = if seems && half >= self.too_long && usual.contains(&self.passed_bytes) {
            self.passed_bytes
        } else if seems && half > known.passed {
            half
        } else if is_too_much {
            known.passed
        } else {
            known.least
        };
        if let Some(text) = self.texts.get_mut(&id) {
            if is_too_much {
                text.known.too_much = text.known.too_much.min(known.least);
            }
            text.try_bytes(next);
        }
        true
    }

    /// Goes on with a text whose length is on trial.
    pub(super) fn go_on(&mut self, id: TextId) {
        if self.choose_length(id) {
            // One text learns how long a text may be, before the others are tried.
            let task = self.alone(id);
            self.tasks.push_front(task);
        }
    }

    /// Takes in that a text failed alone. It goes on once a call passes that
    /// began after the moment `at`.
    pub(super) fn text_failed(&mut self, id: TextId, flawed: bool, reason: &str, at: u64) {
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        text.known.failed_at = at;
        text.again_at = self.ended + text.pause(at);
        text.known.among = Some(1);
        text.known.flawed = flawed;
        text.reason.get_or_insert_with(|| reason.to_owned());
        self.unproven.push(id);
    }

    /// Takes in that a call failed at that moment, all other texts of which have
    /// passed since. As calls that large pass, that is a failure of the text's.
    pub(super) fn failed_with_it(&mut self, id: TextId, failed: CallSize, at: u64) {
        let kind = self.doubt.kind(at);
        if failed.texts > 1
            && self.size.has_passed(failed)
            && let Some(text) = self.texts.get_mut(&id)
        {
            text.known.count(kind, text.bytes);
        }
    }

    /// Goes on with the texts that failed alone, once something else passed.
    pub(super) fn weigh(&mut self) {
        let mut proven = Vec::new();
        self.unproven.retain(|id| {
            let is_proven = self.texts.get(id).is_none_or(|text| {
                text.known.failed_at <= self.proof && text.again_at <= self.ended
            });
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
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        let kind = if text.known.flawed {
            Kind::Flaw
        } else {
            self.doubt.kind(text.known.failed_at)
        };
        let sent = text.sent(shortest);
        if !std::mem::take(&mut text.is_counted) {
            text.known.count(kind, sent);
        }
        text.is_remembered |= matches!(kind, Kind::Rest | Kind::Down);
        let (passed, trial) = (text.known.passed, text.known.trial);
        let can_be_shorter = text.can_be_shorter(shortest);
        let Some(text) = self.texts.get(&id) else {
            return;
        };
        let is_guilty = self.is_guilty(text);
        let is_known = can_be_shorter && trial == Trial::Whole && self.is_too_much(text);
        if is_known || passed > 0 && trial != Trial::Beginning {
            return self.go_on(id);
        }
        if is_guilty {
            let failures = text.known.whole.and(text.known.beginning);
            self.doubt.explained(failures.of_calls());
        }
        if let Some(text) = self.texts.get_mut(&id) {
            let is_whim = text.known.presumed && text.known.failed_once() && !is_guilty;
            self.doubt.presume(&mut text.known.presumed, is_whim);
            text.rejected = is_guilty;
            if can_be_shorter {
                text.known.trial = Trial::Beginning;
            }
        }
        if !is_guilty {
            let task = self.alone(id);
            self.tasks.push_back(task);
        }
    }

    /// Returns whether a text failed so often that it is rejected.
    pub(super) fn is_guilty(&self, text: &Text) -> bool {
        let known = &text.known;
        if !text.can_be_shorter(self.settings.shortest) {
            return self.proves(known, known.whole);
        }
        // Where its length may explain that it failed whole, only its beginning counts, and no more
        // of the whole where it should not.
        if known.trial != Trial::Beginning {
            false
        } else if text.bytes > self.passed_bytes {
            self.proves(known, known.beginning)
        } else {
            let whole = known.whole.at_most(known.beginning);
            self.proves(known, whole.and(known.beginning))
        }
    }

    /// Makes a task of a text that failed alone. Nothing else may be to blame for
    /// the outcome.
    pub(super) fn alone(&self, id: TextId) -> Task {
        let text = self.texts.get(&id);
        Task {
            exclusive: text.is_some_and(|text| text.is_remembered || !text.known.flawed),
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
