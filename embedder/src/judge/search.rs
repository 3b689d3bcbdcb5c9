//! The search for what was wrong with a call that failed: which of its texts, or
//! its size.

use super::{
    ALONE_EXCUSES, CallSize, FLAKY_EXCUSES, Health, Hint, Judge, MOST_EXCUSES, TextId, Verdict,
    doubt::Kind, trust::Advice,
};

/// How much longer than every other a text must be to be tried without the
/// others, in hundredths.
const OUTSTANDING: usize = 125;
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
    /// When that failed.
    pub(super) failed_at: u64,
    /// How often its failure was put down to the embedder's condition.
    pub(super) excuses: u8,
    /// The last excuse, where it was that the embedder said so.
    pub(super) waited: Option<Advice>,
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
        if task.exclusive {
            self.doubt.passed(1, began);
        } else {
            self.doubt.passed_beside(began);
        }
        let usable = flaws.iter().filter(|flaw| flaw.is_none()).count();
        self.flaws.passed(usable, began);
        self.failures = 0;
        self.text_passed = true;
        if self.health == Health::Doubtful {
            self.health = Health::Fit;
        }
        self.size.passed(size);
        if let Some(advice) = task.follows {
            self.trust.followed(advice, true);
        }
        if let Some(advice) = task.waited {
            self.trust.followed(advice, true);
        } else if task.excuses > 0 {
            self.doubt.contradicted_at(task.failed_at, 1);
        }
        for (place, (id, flaw)) in task.texts.iter().zip(flaws).enumerate() {
            match flaw {
                None => self.text_passed(*id, place, verdicts),
                // That others passed in the same call is proof enough.
                Some(reason) => self.text_failed(*id, true, reason, began),
            }
        }
        let rest = self.known(task.rest);
        match task.failed {
            Some(failed) if rest.is_empty() => self.acquit(failed, task.failed_at),
            Some(failed) => self.suspect(rest, (failed, task.failed_at), task.specific),
            None => {}
        }
    }

    /// Takes in that all parts of a call passed which failed as a whole.
    fn acquit(&mut self, failed: CallSize, at: u64) {
        if failed.texts > 1 && self.size.has_passed(failed) {
            // It failed for nothing, or less is taken now than was.
            // About as many searches meet another whim before their end, and notice nothing.
            self.doubt.contradicted_at(at, 2);
            self.size.forget(failed);
        }
    }

    /// Takes in a call of which no text has its vector. `hint`: nothing where
    /// there are vectors, none of which can be used.
    pub(super) fn failed(
        &mut self,
        task: Task,
        (size, began): (CallSize, u64),
        hint: Option<Hint>,
        reason: &str,
        verdicts: &mut Vec<Verdict>,
    ) {
        self.failures += 1;
        let flawed = hint.is_none();
        let hint = hint.unwrap_or(Hint::Unknown);
        if !flawed {
            self.doubt.failed(began, self.moment);
            self.failed_at = self.moment;
        }
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
        let many = self.failures >= self.patience;
        let doubtful = advised || many && (hint != Hint::Busy || task.specific);
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
        for id in texts.iter().filter(|_| hint != Hint::Busy) {
            if let Some(text) = self.texts.get_mut(id) {
                let among = text.known.among.map_or(size.texts, |it| it.min(size.texts));
                text.known.among = Some(among);
                text.known.has_failed = task.exclusive;
            }
        }
        let waits = match hint {
            Hint::Busy => Some(Advice::Busy),
            Hint::Down => Some(Advice::Down),
            _ => None,
        };
        let waits = waits.filter(|advice| self.trust.has(*advice));
        // What often fails is not what often answers with vectors that cannot be used.
        let doubt = if flawed { &self.flaws } else { &self.doubt };
        let excuses = match (waits.is_some(), doubt.is_flaky()) {
            _ if task.exclusive && hint != Hint::Busy => 0,
            (true, _) if size.texts == 1 => ALONE_EXCUSES,
            (true, false) if !task.specific => MOST_EXCUSES,
            (_, true) if !task.specific => FLAKY_EXCUSES,
            _ => 0,
        };
        let rests = hint == Hint::Busy || task.excuses < excuses;
        if rests && began > self.rested_at {
            // Calls that were under way already say the same once more.
            self.rested_at = self.moment;
            let is_told = waits.is_some() || hint == Hint::Busy;
            self.doubt
                .rested(if is_told { Kind::Rest } else { Kind::OneOfSome });
            verdicts.push(Verdict::Rest);
        }
        if task.excuses < excuses {
            self.tasks.push_front(Task {
                texts,
                excuses: task.excuses + 1,
                waited: waits,
                follows: None,
                failed_at: self.moment,
                ..task
            });
            return;
        }
        if let Some(advice) = task.waited
            && waits.is_some_and(|waits| waits == advice)
        {
            self.trust.followed(advice, false);
        }
        let specific = task.specific || task.excuses > 0;
        let alone = task.rest.is_empty();
        // It is in these texts, whatever it is: nothing speaks against the others.
        self.put_back(task.rest);
        match texts.as_slice() {
            [id] if size.texts == 1 => {
                let with_it = alone && task.excuses == 0 && !flawed;
                if let Some(failed) = task.failed.filter(|_| with_it) {
                    self.failed_with_it(*id, failed, task.failed_at);
                }
                self.text_failed(*id, flawed, reason, self.moment);
            }
            _ => self.split(texts, (size, self.moment), hint, specific),
        }
    }

    /// Tries a part of texts that failed together.
    fn split(
        &mut self,
        mut texts: Vec<TextId>,
        failed: (CallSize, u64),
        hint: Hint,
        specific: bool,
    ) {
        if texts.len() == 1 {
            return self.suspect(texts, failed, specific);
        }
        if !self.size.allows(failed.0) {
            // Less was learned to pass meanwhile: they are sent again by that.
            return self.put_back(texts);
        }
        let whole = texts.len() == failed.0.texts;
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
            failed: Some(failed.0),
            failed_at: failed.1,
            specific,
            follows: Some(advice),
            ..Task::default()
        });
    }

    fn halve(&mut self, mut texts: Vec<TextId>, failed: (CallSize, u64), specific: bool) {
        let rest = texts.split_off(texts.len() / 2);
        self.tasks.push_front(Task {
            texts,
            rest,
            failed: Some(failed.0),
            failed_at: failed.1,
            specific,
            ..Task::default()
        });
    }

    /// Goes on with the part of a call that failed which has not passed since:
    /// what is wrong is there, unless the call was too large.
    fn suspect(&mut self, texts: Vec<TextId>, failed: (CallSize, u64), specific: bool) {
        if texts.len() > 1 && !self.size.allows(failed.0) {
            return self.put_back(texts);
        }
        if texts.len() > 1 && self.size.has_passed(failed.0) {
            return self.halve(texts, failed, specific);
        }
        self.tasks.push_front(Task {
            texts,
            failed: Some(failed.0),
            failed_at: failed.1,
            specific,
            ..Task::default()
        });
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
