//! What is remembered of texts that were handed back under suspicion.
//!
//! A text that its server dies of goes back to the queue with its neighbours,
//! again and again. What was found out of it must not be lost with that, or it
//! would never be found.

use std::collections::HashMap;

use super::text::Trial;

/// Texts remembered before the older half is forgotten.
const REMEMBERED: usize = 8_192;

/// What is known against a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Suspicion {
    /// When it last failed alone.
    pub(super) failed_at: u64,
    /// Texts of the smallest call it was in that failed.
    pub(super) among: usize,
    /// How often it failed alone while others passed.
    pub(super) failures: u32,
    /// How often of these only its beginning was sent.
    pub(super) beginning_failures: u32,
    /// Least bytes of it that are known to be too much.
    pub(super) too_much: usize,
    /// Whether all its failures were vectors that cannot be used.
    pub(super) flawed: bool,
    /// How much of it was tried, and how often that failed.
    pub(super) trial: Trial,
    pub(super) repeats: u32,
    /// Whether its beginning passed.
    pub(super) beginning_passed: bool,
}

/// Suspicions by the fingerprints of texts, bounded in number.
#[derive(Debug, Default)]
pub(super) struct Memory {
    young: HashMap<u64, Suspicion>,
    old: HashMap<u64, Suspicion>,
}

impl Memory {
    /// Remembers a text.
    pub(super) fn keep(&mut self, fingerprint: u64, suspicion: Suspicion) {
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(fingerprint, suspicion);
    }

    /// Returns what was remembered of a text and forgets it.
    pub(super) fn take(&mut self, fingerprint: u64) -> Option<Suspicion> {
        let old = self.old.remove(&fingerprint);
        self.young.remove(&fingerprint).or(old)
    }
}
