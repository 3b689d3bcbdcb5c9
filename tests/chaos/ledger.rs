//! What a client knows of its sources from the answers it was given.

use std::collections::BTreeMap;

/// Texts by item.
pub(crate) type Content = BTreeMap<String, String>;

/// A write of one source.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    /// The whole content, in one message or as an import.
    Replace(Content),
    Patch {
        upsert: Content,
        delete: Vec<String>,
    },
    Delete,
}

impl Write {
    fn apply(&self, before: Option<&Content>) -> Option<Content> {
        match self {
            Self::Replace(content) => Some(content.clone()),
            Self::Delete => None,
            Self::Patch { upsert, delete } => {
                let mut content = before?.clone();
                content.retain(|item_id, _| !delete.contains(item_id));
                content.extend(upsert.clone());
                Some(content)
            }
        }
    }
}

/// Everything that a source may hold, given what its client was told. `None` is
/// no source at all.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    possible: Vec<Option<Content>>,
}

impl Ledger {
    /// A source that was never put.
    pub(crate) fn new() -> Self {
        Self {
            possible: vec![None],
        }
    }

    /// Whether it is known what the source holds.
    pub(crate) fn is_known(&self) -> bool {
        self.possible.len() == 1
    }

    /// What the source holds, where that is known and it is there.
    pub(crate) fn content(&self) -> Option<&Content> {
        match &self.possible[..] {
            [only] => only.as_ref(),
            _ => None,
        }
    }

    pub(crate) fn possible(&self) -> &[Option<Content>] {
        &self.possible
    }

    /// The write was answered: it is done.
    pub(crate) fn answered(&mut self, write: &Write) {
        let after = self
            .possible
            .iter()
            .map(|before| write.apply(before.as_ref()));
        self.possible = after.collect();
        self.possible.dedup();
    }

    /// The answer was lost: it is done, or not, or will be in a while.
    pub(crate) fn lost(&mut self, write: &Write) {
        for place in 0..self.possible.len() {
            let after = write.apply(self.possible[place].as_ref());
            if !self.possible.contains(&after) {
                self.possible.push(after);
            }
        }
    }

    /// Somebody looked, when no lost write could still be under way: of what
    /// was possible this is it. Returns whether it was possible at all.
    pub(crate) fn seen(&mut self, is_it: impl Fn(Option<&Content>) -> bool) -> bool {
        let found = self.possible.iter().find(|content| is_it(content.as_ref()));
        let Some(found) = found.cloned() else {
            return false;
        };
        self.possible = vec![found];
        true
    }
}

#[test]
fn a_lost_answer_leaves_two_possibilities_until_somebody_looks() {
    let content = |text: &str| Content::from([("a".to_owned(), text.to_owned())]);
    let mut ledger = Ledger::new();
    ledger.answered(&Write::Replace(content("one")));
    assert_eq!(ledger.content(), Some(&content("one")));
    let patch = Write::Patch {
        upsert: content("two"),
        delete: Vec::new(),
    };
    ledger.lost(&patch);
    assert!(!ledger.is_known());
    assert_eq!(ledger.possible().len(), 2);
    assert!(!ledger.clone().seen(|seen| seen.is_none()));
    assert!(ledger.seen(|seen| seen == Some(&content("two"))));
    ledger.lost(&Write::Delete);
    ledger.answered(&Write::Delete);
    assert!(ledger.is_known());
    assert_eq!(ledger.content(), None);
}
