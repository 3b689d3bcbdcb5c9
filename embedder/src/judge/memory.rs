//! What is remembered of texts that were handed back under suspicion.
//!
//! A text that its server dies of goes back to the queue with its neighbours,
//! again and again. What was found out of it must not be lost with that, or it
//! would never be found.

use std::collections::HashMap;

use super::text::Findings;

/// Texts remembered before the older half is forgotten.
const REMEMBERED: usize = 8_192;

/// Findings by the fingerprints of texts, bounded in number.
#[derive(Debug, Default)]
pub(super) struct Memory {
    young: HashMap<u64, Findings>,
    old: HashMap<u64, Findings>,
}

impl Memory {
    /// Remembers a text.
    pub(super) fn keep(&mut self, fingerprint: u64, known: Findings) {
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(fingerprint, known);
    }

    /// Returns what was remembered of a text and forgets it.
    pub(super) fn take(&mut self, fingerprint: u64) -> Option<Findings> {
        let old = self.old.remove(&fingerprint);
        self.young.remove(&fingerprint).or(old)
    }
}
