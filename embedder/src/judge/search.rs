//! The search for what was wrong with a call that failed.

use super::{
    ALONE_EXCUSES, CallSize, FAILURES_BEFORE_PROBE, FLAKY_EXCUSES, Health, Hint, Judge,
    MOST_EXCUSES, TextId, Verdict, memory::Suspicion, trust::Advice,
};

/// How much longer than every other a text must be to be tried without the
/// others, in hundredths.
const OUTSTANDING: usize = 125;
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
pub(super) struct Text {
    /// All of it.
    pub(super) bytes: usize,
    pub(super) fingerprint: u64,
    pub(super) trial: Trial,
    /// How often it failed alone while something else passed afterwards.
    pub(super) failures: u32,
    /// How often of these only its beginning was sent.
    beginning_failures: u32,
    /// When it last failed alone, and how many calls must have ended before it
    /// is tried again. That differs from time to time, so that no rhythm of the
    /// embedder's can be taken for a fault of the text.
    pub(super) failed_at: u64,
    has_failed: bool,
    again_at: u64,
    /// What was said when it first did.
    reason: Option<String>,
    /// Least of it that failed alone, and whether its beginning passed.
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
    /// pass of something else is missing.
    pub(super) fn is_proven(&self) -> bool {
        self.trial == Trial::Beginning && self.beginning_failures >= DEATHS / 2
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

/// Texts that travel together, apart from all others.
#[derive(Debug, Default)]
pub(super) struct Task {
    pub(super) texts: Vec<TextId>,
    /// The others of a call that failed: where these texts pass, what is wrong
    /// is there; where they do not, nothing speaks against them.
    pub(super) rest: Vec<TextId>,
    /// The size of the smallest call that failed of which these texts and the
    /// rest are what has not passed since.
    pub(super) failed: Option<CallSize>,
    /// How often its failure was put down to the embedder's condition.
    pub(super) excuses: u8,
    /// Whether the last excuse was that the embedder said so.
    pub(super) waited: bool,
    /// Whether that is over: it was not the embedder's condition.
    pub(super) specific: bool,
    /// The advice that this task follows.
    pub(super) follows: Option<Advice>,
    /// Whether it is sent right after a probe, and nothing beside it.
    pub(super) exclusive: bool,
    /// Most texts, where it is of texts that were suspected before.
    pub(super) again: Option<usize>,
}

impl Task {
    /// Makes a task of texts that have nothing to do with what was before.
    pub(super) fn of(texts: Vec<TextId>) -> Self {
        Self {
            texts,
            ..Self::default()
        }
    }

    /// Makes a task of one text.
    pub(super) fn alone(text: TextId) -> Self {
        Self::of(vec![text])
    }

    /// Returns whether nothing may be at the embedder beside it.
    pub(super) fn is_apart(&self) -> bool {
        self.exclusive || self.excuses > 0
    }
}

impl Judge {
    /// Has these texts come first, as if they had never been sent.
    pub(super) fn put_back(&mut self, texts: Vec<TextId>) {
        for id in texts.into_iter().rev() {
            match self.texts.get(&id) {
                Some(text) if text.bytes >= self.too_long => {
                    self.tasks.push_back(Task::alone(id));
                }
                Some(_) => self.fresh.push_front(id),
                None => {}
            }
        }
    }

    /// Takes in a call of which some texts at least have their vectors.
    pub(super) fn passed(
        &mut self,
        task: Task,
        size: CallSize,
        began: u64,
        flaws: &[Option<String>],
        verdicts: &mut Vec<Verdict>,
    ) {
        self.proof = self.proof.max(began);
        self.failures = 0;
        if self.health == Health::Doubtful {
            self.health = Health::Fit;
        }
        if self.size.passed(size) {
            self.contradicted();
        }
        if let Some(advice) = task.follows {
            self.trust.followed(advice, true);
        }
        if task.waited {
            self.trust.followed(Advice::Wait, true);
        } else if task.excuses > 0 {
            self.contradicted();
        }
        for (place, (id, flaw)) in task.texts.iter().zip(flaws).enumerate() {
            match flaw {
                None => self.text_passed(*id, place, verdicts),
                // That others passed in the same call is proof enough.
                Some(reason) => self.text_failed(*id, Hint::Unknown, reason, 0),
            }
        }
        let rest = self.known(task.rest);
        match task.failed {
            Some(failed) if rest.is_empty() => self.acquit(failed),
            Some(failed) => self.suspect(rest, failed, task.specific),
            None => {}
        }
    }

    /// Counts a failure that meant nothing.
    pub(super) fn contradicted(&mut self) {
        self.doubt.contradicted();
        self.trouble_until = self.ended + TROUBLE;
    }

    /// Takes in that all parts of a call passed which failed as a whole.
    fn acquit(&mut self, failed: CallSize) {
        if failed.texts > 1 && self.size.has_passed(failed) {
            // It failed for nothing, or less is taken now than was.
            self.contradicted();
            self.size.forget(failed);
        }
    }

    /// Takes in that a text has a vector, alone or among others.
    fn text_passed(&mut self, id: TextId, place: usize, verdicts: &mut Vec<Verdict>) {
        let Some(text) = self.texts.get_mut(&id) else {
            return;
        };
        let (bytes, sent) = (text.bytes, text.sent(self.settings.shortest));
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
            Trial::Whole if text.failures > 0 => {
                self.passed_bytes = self.passed_bytes.max(bytes);
                self.contradicted();
            }
            Trial::Whole => self.passed_bytes = self.passed_bytes.max(bytes),
            Trial::Shorter(_) => {
                self.too_long = self.too_long.min(text.too_much);
                self.passed_bytes = self.passed_bytes.max(sent);
            }
        }
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

    /// Takes in a call of which no text has its vector.
    pub(super) fn failed(
        &mut self,
        task: Task,
        size: CallSize,
        hint: Hint,
        reason: &str,
        verdicts: &mut Vec<Verdict>,
    ) {
        self.failures += 1;
        if size.texts > 1 && !self.size.has_passed(size) {
            // As long as nothing that large has passed, it may be too large. If it was not, the
            // limit is soon back.
            self.size.failed(size);
        }
        let advised = match hint {
            Hint::Busy => task.excuses > 0,
            Hint::Down | Hint::Broken => self.trust.has(Advice::Probe),
            _ => false,
        };
        let doubtful = advised || self.failures >= FAILURES_BEFORE_PROBE && hint != Hint::Busy;
        if doubtful && self.health == Health::Fit {
            self.health = Health::Doubtful;
            self.was_advised = advised;
        }
        if let Some(advice) = task.follows {
            self.trust.followed(advice, false);
        }
        let texts = self.known(task.texts);
        if texts.is_empty() {
            return self.put_back(task.rest);
        }
        for id in &texts {
            if let Some(text) = self.texts.get_mut(id) {
                if hint != Hint::Busy {
                    text.among = Some(text.among.map_or(size.texts, |it| it.min(size.texts)));
                    text.has_failed = task.exclusive;
                }
            }
        }
        let waits = matches!(hint, Hint::Busy | Hint::Down) && self.trust.has(Advice::Wait);
        let excuses = match (waits, self.doubt.is_flaky()) {
            _ if task.exclusive && hint != Hint::Busy => 0,
            (true, _) if size.texts == 1 => ALONE_EXCUSES,
            (true, false) if !task.specific => MOST_EXCUSES,
            (_, true) if !task.specific => FLAKY_EXCUSES,
            _ => 0,
        };
        if hint == Hint::Busy || task.excuses < excuses {
            verdicts.push(Verdict::Rest);
        }
        if task.excuses < excuses {
            self.tasks.push_front(Task {
                texts,
                excuses: task.excuses + 1,
                waited: waits,
                follows: None,
                ..task
            });
            return;
        }
        if task.waited {
            self.trust.followed(Advice::Wait, false);
        }
        let specific = task.specific || task.excuses > 0;
        // It is in these texts, whatever it is: nothing speaks against the others.
        self.put_back(task.rest);
        match texts.as_slice() {
            [id] if size.texts == 1 => self.text_failed(*id, hint, reason, self.moment),
            _ => self.split(texts, size, hint, specific),
        }
    }

    /// Tries a part of texts that failed together.
    fn split(&mut self, mut texts: Vec<TextId>, failed: CallSize, hint: Hint, specific: bool) {
        if texts.len() == 1 {
            return self.suspect(texts, failed, specific);
        }
        if !self.size.allows(failed) {
            // Less was learned to pass meanwhile: they are sent again by that.
            return self.put_back(texts);
        }
        let whole = texts.len() == failed.texts;
        let apart = match hint {
            Hint::Text(place) | Hint::TooLong(Some(place))
                if whole && place < texts.len() && self.trust.has(Advice::Named) =>
            {
                Some((place, Advice::Named))
            }
            Hint::TooLong(_) if self.trust.has(Advice::Longest) => {
                self.longest(&texts).map(|place| (place, Advice::Longest))
            }
            _ => None,
        };
        let Some((place, advice)) = apart else {
            return self.halve(texts, failed, specific);
        };
        let rest = vec![texts.remove(place)];
        self.tasks.push_front(Task {
            texts,
            rest,
            failed: Some(failed),
            specific,
            follows: Some(advice),
            ..Task::default()
        });
    }

    fn halve(&mut self, mut texts: Vec<TextId>, failed: CallSize, specific: bool) {
        let rest = texts.split_off(texts.len() / 2);
        self.tasks.push_front(Task {
            texts,
            rest,
            failed: Some(failed),
            specific,
            ..Task::default()
        });
    }

    /// Goes on with the part of a call that failed which has not passed since:
    /// what is wrong is there, unless the call was too large.
    fn suspect(&mut self, texts: Vec<TextId>, failed: CallSize, specific: bool) {
        if texts.len() > 1 && !self.size.allows(failed) {
            return self.put_back(texts);
        }
        if texts.len() > 1 && self.size.has_passed(failed) {
            return self.halve(texts, failed, specific);
        }
        self.tasks.push_front(Task {
            texts,
            failed: Some(failed),
            specific,
            ..Task::default()
        });
    }

    /// Takes in that a text failed alone. It goes on once a call passes that
    /// began after the moment `at`.
    fn text_failed(&mut self, id: TextId, hint: Hint, reason: &str, at: u64) {
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
        text.failures += 1;
        if text.sent(shortest) <= shortest || text.bytes <= 2 * shortest {
            text.beginning_failures += 1;
        }
        text.has_failed = false;
        let needed = if text.is_remembered {
            needed.max(DEATHS)
        } else {
            needed
        };
        let can_be_shorter = text.sent(shortest) > shortest && text.bytes > 2 * shortest;
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
            Trial::Shorter(bytes) if can_be_shorter && text.beginning_passed => {
                // So much of others passed: it has to fail once more.
                if bytes > self.passed_bytes || text.failures.is_multiple_of(2) {
                    return self.shorten(id);
                }
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
    fn alone(&self, id: TextId) -> Task {
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

    /// Returns the place of the text that stands out by its length, if one does.
    fn longest(&self, texts: &[TextId]) -> Option<usize> {
        let bytes = |id: &TextId| self.texts.get(id).map_or(0, |text| text.bytes);
        let (place, longest) = texts.iter().map(bytes).enumerate().max_by_key(|it| it.1)?;
        let others = texts
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != place);
        let stands_out = others
            .map(|(_, id)| bytes(id))
            .all(|bytes| 100 * longest >= OUTSTANDING * bytes);
        stands_out.then_some(place)
    }

    /// Keeps the texts that somebody still waits for.
    pub(super) fn known(&self, mut texts: Vec<TextId>) -> Vec<TextId> {
        texts.retain(|id| self.texts.contains_key(id));
        texts
    }
}
