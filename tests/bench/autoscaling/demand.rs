//! A day of sources that are put: quiet nights, busy days, and now and then a
//! whole catalogue at once.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// Seconds of a day.
pub(crate) const DAY: usize = 86_400;

/// A source that is put.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Put {
    /// When, in seconds of the day.
    pub(crate) at: usize,
    /// Chunks to embed.
    pub(crate) chunks: u64,
}

/// A day drawn from a seed, in order. From 7 to 19 h a few documents a minute,
/// at night nothing; eight times a catalogue, whenever.
pub(crate) fn day(seed: u64) -> Vec<Put> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut puts = Vec::new();
    for hour in 7..19 {
        // Most around noon.
        let documents = 30 + 15 * (6 - i32::abs(hour - 13));
        for _ in 0..documents {
            puts.push(Put {
                at: hour as usize * 3_600 + random.random_range(0..3_600),
                chunks: random.random_range(20..400),
            });
        }
    }
    for _ in 0..8 {
        puts.push(Put {
            at: random.random_range(3_600..DAY - 3 * 3_600),
            chunks: random.random_range(10_000..120_000),
        });
    }
    puts.sort_by_key(|put| put.at);
    puts
}
