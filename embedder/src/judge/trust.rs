//! How useful an embedder's words were so far.
//!
//! A hint orders the experiments. One whose experiments turn out useless is not
//! followed any more, so that an embedder that says one thing and means another
//! costs some calls and no more.

/// An experiment that a hint proposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    /// Try the others without the text that is named.
    Named,
    /// Try the others without the longest.
    Longest,
    /// Wait, and send the same again: the embedder says that it is busy.
    Busy,
    /// The same, for it says that it is down.
    Down,
    /// Probe the embedder at once.
    Probe,
}

/// Useless experiments in a row after which advice is not followed.
const PATIENCE: i8 = 2;
/// Most that useful ones make up for.
const CREDIT: i8 = 4;

/// The standing of each kind of advice.
#[derive(Debug, Clone, Default)]
pub(super) struct Trust {
    named: i8,
    longest: i8,
    busy: i8,
    down: i8,
    probe: i8,
}

impl Trust {
    fn standing(&mut self, advice: Advice) -> &mut i8 {
        match advice {
            Advice::Named => &mut self.named,
            Advice::Longest => &mut self.longest,
            Advice::Busy => &mut self.busy,
            Advice::Down => &mut self.down,
            Advice::Probe => &mut self.probe,
        }
    }

    /// Returns whether the advice is worth following.
    pub(super) fn has(&mut self, advice: Advice) -> bool {
        *self.standing(advice) > -PATIENCE
    }

    /// Records what following the advice led to.
    pub(super) fn followed(&mut self, advice: Advice, useful: bool) {
        let standing = self.standing(advice);
        let change = if useful { 1 } else { -1 };
        *standing = (*standing + change).clamp(-PATIENCE, CREDIT);
    }
}
