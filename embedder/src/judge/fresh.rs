//! Texts that nothing is known against, in the order they are to be sent: those
//! who bring them take turns, a call's worth of texts each.

use std::collections::{HashMap, VecDeque};

use super::TextId;

/// Texts that wait, each with its round: in a round everyone has as many texts as
/// one call holds.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    texts: VecDeque<(u64, TextId)>,
    /// The round of the text that was taken last.
    now: u64,
    /// For each who brought texts, the round of the next and how many of its texts
    /// are in that.
    next: HashMap<u64, (u64, usize)>,
}

impl Fresh {
    /// Adds a text of `whose`, of whom `per_round` are sent before it is another's
    /// turn. One who brought none of those that wait has a place in this round.
    pub(super) fn push(&mut self, id: TextId, whose: u64, per_round: usize) {
        let (round, used) = self.next.entry(whose).or_insert((self.now, 0));
        if *round < self.now {
            (*round, *used) = (self.now, 0);
        }
        let of = *round;
        *used += 1;
        if *used >= per_round {
            (*round, *used) = (*round + 1, 0);
        }
        let place = self.texts.partition_point(|(round, _)| *round <= of);
        self.texts.insert(place, (of, id));
    }

    /// Has a text come first.
    pub(super) fn push_front(&mut self, id: TextId) {
        let round = self.texts.front().map_or(self.now, |(round, _)| *round);
        self.texts.push_front((round, id));
    }

    /// Takes the first so many.
    pub(super) fn take(&mut self, count: usize) -> Vec<TextId> {
        let taken = self.texts.drain(..count);
        let taken = taken.inspect(|(round, _)| self.now = self.now.max(*round));
        let taken = taken.map(|(_, id)| id).collect();
        let now = self.now;
        self.next.retain(|_, (round, _)| *round >= now);
        taken
    }

    /// Leaves one out.
    pub(super) fn remove(&mut self, id: TextId) {
        self.texts.retain(|(_, other)| *other != id);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// All, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = TextId> {
        self.texts.iter().map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(whose: u64, texts: std::ops::Range<u64>) -> impl Iterator<Item = (u64, TextId)> {
        texts.map(move |text| (whose, TextId(text)))
    }

    #[test]
    fn who_comes_anew_waits_for_no_more_than_a_call() {
        let mut fresh = Fresh::default();
        for (whose, id) in of(1, 0..40) {
            fresh.push(id, whose, 4);
        }
        fresh.take(4);
        fresh.push(TextId(100), 2, 4);
        let first: Vec<u64> = fresh.take(5).iter().map(|id| id.0).collect();
        assert_eq!(first, [100, 4, 5, 6, 7]);
        // What was not sent before is not saved: they take turns from here on.
        for (whose, id) in of(2, 101..110) {
            fresh.push(id, whose, 4);
        }
        let next: Vec<u64> = fresh.take(12).iter().map(|id| id.0).collect();
        let turns = [[101, 102, 103, 104], [8, 9, 10, 11], [105, 106, 107, 108]];
        assert_eq!(next, turns.as_flattened());
    }

    #[test]
    fn one_alone_is_sent_in_order() {
        let mut fresh = Fresh::default();
        for (whose, id) in of(1, 0..10) {
            fresh.push(id, whose, 3);
        }
        fresh.remove(TextId(3));
        fresh.push_front(TextId(50));
        let all: Vec<u64> = fresh.iter().map(|id| id.0).collect();
        assert_eq!(all, [50, 0, 1, 2, 4, 5, 6, 7, 8, 9]);
        assert_eq!(fresh.take(fresh.texts.len()).len(), 10);
        assert!(fresh.is_empty());
    }
}
