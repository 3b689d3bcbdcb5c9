//! The trial of one text that failed alone: whether it is rejected, shortened, or
//! innocent.

use super::{
    Judge, TextId, Verdict,
    search::Task,
    text::{DEATHS, Trial},
};

impl Judge {
    /// Counts the failure of a text at that moment, which meant nothing.
    fn contradicted(&mut self, at: u64, flawed: bool) {
        if flawed {
            self.flaws.contradicted(at);
        } else {
            self.doubt.contradicted(at);
        }
    }

    /// Takes in that a text has a vector, alone or among others.
    pub(super) fn text_passed(&mut self, id: TextId, place: usize, verdicts: &mut Vec<Verdict>) {
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        let sent = text.sent(self.settings.shortest);
        let (at, flawed) = (text.failed_at, text.flawed);
        match text.trial {
            Trial::Beginning => {
                text.beginning_passed = true;
                text.has_failed = false;
                let beginning_failures = std::mem::take(&mut text.beginning_failures);
                text.failures = text.failures.saturating_sub(beginning_failures);
                // It may be its length. It has to fail as often as if it were rejected.
                text.trial = Trial::Whole;
                if beginning_failures > 0 {
                    self.contradicted(at, flawed);
                }
                let task = self.alone(id);
                return self.tasks.push_front(task);
            }
            Trial::Whole if text.failures > 0 => self.contradicted(at, flawed),
            Trial::Shorter(_) if text.repeats > 0 => self.contradicted(at, flawed),
            Trial::Whole | Trial::Shorter(_) => {}
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

    /// Takes in that so many bytes of a text failed again and again, and has less
    /// of it tried.
    fn is_too_long(&mut self, id: TextId, bytes: usize) {
        if bytes > self.passed_bytes {
            self.too_long = self.too_long.min(bytes);
        }
        self.shorten(id, bytes);
    }

    /// Has a text tried with half of so many bytes, which are too much of it, or
    /// with as much as is known to pass.
    pub(super) fn shorten(&mut self, id: TextId, bytes: usize) {
        let shortest = self.settings.shortest;
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        text.too_much = bytes;
        let half = bytes / 2;
        let known = (shortest.max(self.too_long / 4)..half).contains(&self.passed_bytes)
            && half >= self.too_long;
        let next = if known { self.passed_bytes } else { half };
        text.trial = Trial::Shorter(next.max(shortest));
        text.repeats = 0;
        let task = self.alone(id);
        // One text learns how long a text may be, before the others are tried.
        self.tasks.push_front(task);
    }

    /// Takes in that a text failed alone. It goes on once a call passes that
    /// began after the moment `at`.
    pub(super) fn text_failed(&mut self, id: TextId, flawed: bool, reason: &str, at: u64) {
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        text.failed_at = at;
        text.again_at = self.ended + text.pause(at);
        text.among = Some(1);
        text.flawed &= flawed;
        text.reason.get_or_insert_with(|| reason.to_owned());
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
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        let can_be_shorter = text.sent(shortest) > shortest && text.bytes > 2 * shortest;
        text.failures += 1;
        text.beginning_failures += u32::from(!can_be_shorter);
        text.has_failed = false;
        text.repeats += 1;
        text.is_remembered |= !text.flawed && self.doubt.is_onset(text.failed_at);
        let needed = match (text.flawed, text.is_remembered) {
            (true, _) => self.flaws.failures_needed(),
            (false, true) => self.doubt.onsets_needed().max(DEATHS),
            (false, false) => self.doubt.failures_needed(),
        };
        // Where its length may explain that it failed whole, only its beginning counts.
        let beginning = if text.bytes > self.passed_bytes { 1 } else { 2 };
        let sent = text.sent(shortest);
        let is_known = sent >= self.too_long && sent > self.passed_bytes;
        match text.trial {
            Trial::Whole if can_be_shorter && is_known => return self.shorten(id, sent),
            Trial::Whole if text.beginning_passed && text.failures >= needed => {
                if sent > self.passed_bytes {
                    return self.is_too_long(id, sent);
                }
                // Others as long passed: do they still?
                return self.controls.push(id);
            }
            Trial::Whole if text.beginning_passed => {}
            Trial::Shorter(_) if can_be_shorter && text.beginning_passed => {
                match (is_known, text.repeats >= needed) {
                    (true, _) => return self.shorten(id, sent),
                    (false, true) => return self.is_too_long(id, sent),
                    (false, false) => {}
                }
            }
            Trial::Whole | Trial::Shorter(_) if can_be_shorter => text.trial = Trial::Beginning,
            _ if text.failures >= needed && beginning * text.beginning_failures >= needed => {
                text.rejected = true;
                return;
            }
            _ => {}
        }
        let learns = text.learns();
        let task = self.alone(id);
        if learns {
            self.tasks.push_front(task);
        } else {
            self.tasks.push_back(task);
        }
    }

    /// Makes a task of a text that failed alone. Nothing else may be to blame for
    /// the outcome.
    pub(super) fn alone(&self, id: TextId) -> Task {
        let text = self.texts.get(&id);
        Task {
            exclusive: text.is_some_and(|text| text.is_remembered || !text.flawed),
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
