//! How much one call may carry, learned from what passed and what did not.
//!
//! A call has two measures, its texts and their tokens, and an embedder may
//! limit either. A measure is to blame for a failure only while no call with as
//! much of it has passed. Below what failed, the limit is searched by halves,
//! upward, with trials that become rarer while they fail, so that a limit is
//! met closely and one that was lifted is noticed.

/// What one call carries, or may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSize {
    /// Texts; at least 1.
    pub texts: usize,
    /// Estimated tokens of these; one text may have more.
    pub tokens: usize,
}

/// Estimates the tokens of a text of so many bytes: a token of a BERT-like or
/// GPT-like model is about four bytes of English; every text has at least one.
pub fn estimate_tokens(bytes: usize) -> usize {
    bytes.div_ceil(4).max(1)
}

/// Most calls at the limit between two trials of more.
const LONGEST_HOLD: u32 = 64;

/// The learned limit of a call's size.
#[derive(Debug, Clone)]
pub(crate) struct SizeLimit {
    texts: Measure,
    tokens: Measure,
}

impl SizeLimit {
    /// Begins with whole calls.
    pub(crate) fn new(ceiling: CallSize) -> Self {
        Self {
            texts: Measure::new(ceiling.texts),
            tokens: Measure::new(ceiling.tokens),
        }
    }

    /// Lowers the ceiling to what the embedder says of itself.
    pub(crate) fn keep_within(&mut self, ceiling: CallSize) {
        self.texts.keep_within(ceiling.texts);
        self.tokens.keep_within(ceiling.tokens);
    }

    /// Returns what the next call may carry.
    pub(crate) fn get(&self) -> CallSize {
        CallSize {
            texts: self.texts.limit,
            tokens: self.tokens.limit,
        }
    }

    /// Returns whether a call may be of this size.
    pub(crate) fn allows(&self, size: CallSize) -> bool {
        size.texts <= self.texts.limit && size.tokens <= self.tokens.limit
    }

    /// Returns whether a call of this size should pass, for larger ones did.
    pub(crate) fn has_passed(&self, size: CallSize) -> bool {
        size.texts <= self.texts.passed && size.tokens <= self.tokens.passed
    }

    /// Records a call that passed.
    pub(crate) fn passed(&mut self, size: CallSize) {
        self.texts.passed(size.texts);
        self.tokens.passed(size.tokens);
    }

    /// Records a call that failed although smaller ones pass, or may.
    pub(crate) fn failed(&mut self, size: CallSize) {
        let (texts, tokens) = (
            size.texts > self.texts.passed,
            size.tokens > self.tokens.passed,
        );
        if texts || !tokens {
            self.texts.failed(size.texts);
        }
        if tokens || !texts {
            self.tokens.failed(size.tokens);
        }
    }

    /// Forgets that a call of this size has passed: one just failed.
    pub(crate) fn forget(&mut self, size: CallSize) {
        self.texts.forget(size.texts);
        self.tokens.forget(size.tokens);
    }
}

/// One measure of a call.
#[derive(Debug, Clone)]
struct Measure {
    ceiling: usize,
    /// What a call may have of it.
    limit: usize,
    /// Most that passed.
    passed: usize,
    /// Least that failed; more than `passed`.
    failed: Option<usize>,
    /// Calls at the limit that passed since it last changed, and how many there
    /// must be before more is tried.
    good: u32,
    hold: u32,
    /// Whether the limit is a trial of more than was known to pass.
    trying: bool,
}

impl Measure {
    fn new(ceiling: usize) -> Self {
        Self {
            ceiling,
            limit: ceiling,
            passed: 0,
            failed: None,
            good: 0,
            hold: 1,
            trying: false,
        }
    }

    fn keep_within(&mut self, ceiling: usize) {
        self.ceiling = ceiling.max(1);
        if self.failed.is_none() {
            self.limit = self.ceiling;
        }
        self.limit = self.limit.min(self.ceiling);
    }

    fn passed(&mut self, amount: usize) {
        self.passed = self.passed.max(amount);
        if self.failed.is_some_and(|failed| failed <= self.passed) {
            // It was something else.
            self.failed = None;
            self.limit = self.ceiling;
            self.hold = 1;
            return;
        }
        if self.limit < self.ceiling && 2 * amount > self.limit {
            self.good += 1;
            if self.good >= self.hold {
                self.good = 0;
                self.grow();
            }
        }
    }

    /// Tries more: half-way to what failed, and that itself once there is
    /// nothing between.
    fn grow(&mut self) {
        self.trying = true;
        self.limit = match self.failed {
            Some(failed) if failed > self.limit + 1 => self.limit.midpoint(failed),
            Some(failed) => failed,
            None => self.ceiling,
        }
        .min(self.ceiling);
    }

    fn failed(&mut self, amount: usize) {
        let failed = self.failed.map_or(amount, |failed| failed.min(amount));
        self.failed = Some(failed);
        self.passed = self.passed.min(failed - 1);
        self.limit = self.passed.max(failed / 2).max(1);
        self.good = 0;
        if std::mem::take(&mut self.trying) {
            self.hold = (2 * self.hold).min(LONGEST_HOLD);
        }
    }

    fn forget(&mut self, amount: usize) {
        self.passed = self.passed.min(amount.saturating_sub(1));
    }
}
