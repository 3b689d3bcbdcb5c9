//! Takes what was sent out of what a server says.
//!
//! A server may quote texts and its caller's key, whole or in part, escaped,
//! in other case, wrapped or punctuated otherwise. Message and texts are read
//! as *letters*: escapes decoded, in lower case. Every stretch of the message
//! that has a certain weight is looked up in the texts, which are read once
//! each, so the cost is that of reading them. What is that long in common is
//! withheld; words that a message and a text share by chance are shorter.

mod letters;
mod masked;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use self::letters::{Letter, is_joining, letters};

/// What stands where something is left out.
pub(super) const WITHHELD: &str = "[quote withheld]";

/// Characters of a message that are passed on.
const MAX_CHARS: usize = 300;

/// Bytes of a message that are looked at; what follows is dropped. Far more
/// than is shown of it.
const MAX_MESSAGE_BYTES: usize = 4 << 10;

/// Letters of the shortest text, or key, that is withheld where it stands
/// whole. Shorter ones prove nothing.
const SHORTEST_WHOLE: usize = 4;

/// Letters that may stand between two withheld stretches and go with them.
const SMALL_GAP: usize = 3;

/// What makes a stretch long enough to be a quote.
#[derive(Clone, Copy)]
struct Measure {
    /// Whether only letters and digits count; else spaces and signs do too.
    words_only: bool,
    /// Whether digits and ideographs weigh more than letters: fewer of them
    /// say as much.
    weighted: bool,
    /// The weight of a stretch.
    weight: usize,
}

const OF_TEXTS: [Measure; 2] = [
    Measure {
        words_only: true,
        weighted: true,
        weight: 16,
    },
    Measure {
        words_only: false,
        weighted: true,
        weight: 20,
    },
];

const OF_SECRETS: [Measure; 2] = [
    Measure {
        words_only: true,
        weighted: false,
        weight: 6,
    },
    Measure {
        words_only: false,
        weighted: false,
        weight: 6,
    },
];

/// The beginning of a message, without what it quotes of the texts that were
/// sent, and without any piece of six characters of a secret or what a masked
/// secret (`sk-ab***yz`) still shows. A message that quotes nothing stays as it
/// is.
pub(super) fn redact(message: &str, texts: &[&str], secrets: &[&str]) -> String {
    let message = &message[..message.floor_char_boundary(MAX_MESSAGE_BYTES)];
    let mut hidden = Hidden::new(message);
    let words: Vec<Letter> = letters(message).filter(Letter::is_word).collect();
    for (sent, measures) in [(texts, OF_TEXTS), (secrets, OF_SECRETS)] {
        for measure in measures {
            hidden.hide_stretches(message, sent, measure);
        }
        for sent in sent {
            hidden.hide_whole(&words, sent, measures[0]);
        }
    }
    for secret in secrets {
        masked::find(message, secret, |at| hidden.hide(at));
    }
    hidden.write(message, &words)
}

/// The same on one line and short, for logs and records.
pub(super) fn presentable(message: &str, texts: &[&str], secrets: &[&str]) -> String {
    let message = redact(message, texts, secrets);
    let words: Vec<&str> = message.split_whitespace().collect();
    let line = words.join(" ");
    let shown = line.chars().filter(|c| !c.is_control());
    shown.take(MAX_CHARS).collect()
}

/// Which bytes of a message are withheld.
struct Hidden(Vec<bool>);

impl Hidden {
    fn new(message: &str) -> Self {
        Self(vec![false; message.len()])
    }

    fn hide(&mut self, at: Range<usize>) {
        self.0[at].fill(true);
    }

    /// Withholds the stretches that are in what was sent as well.
    fn hide_stretches(&mut self, message: &str, sent: &[&str], measure: Measure) {
        let mut places: HashMap<u64, Vec<Range<usize>>> = HashMap::new();
        stretches(message, measure, |hash, at| {
            places.entry(hash).or_default().push(at);
        });
        for sent in sent {
            if places.is_empty() {
                return;
            }
            stretches(sent, measure, |hash, _| {
                // Found once is enough.
                for at in places.remove(&hash).unwrap_or_default() {
                    self.hide(at);
                }
            });
        }
    }

    /// Withholds what was sent where it is too short for a stretch and stands
    /// whole, as words of their own.
    fn hide_whole(&mut self, words: &[Letter], sent: &str, measure: Measure) {
        let mut short = Vec::new();
        let mut weight = 0;
        for letter in letters(sent).filter(Letter::is_word) {
            weight += measure.weigh(letter.char);
            if weight >= measure.weight {
                return;
            }
            short.push(letter.char);
        }
        if short.len() < SHORTEST_WHOLE {
            return;
        }
        for (first, found) in words.windows(short.len()).enumerate() {
            let after = words.get(first + short.len());
            if found
                .iter()
                .map(|letter| letter.char)
                .eq(short.iter().copied())
                && !found[0].joined
                && after.is_none_or(|after| !after.joined)
            {
                self.hide(found[0].at.start..found[found.len() - 1].at.end);
            }
        }
    }

    /// The message with a note in place of what is withheld, which takes the
    /// rest of its words along and what little stands between two quotes.
    fn write(mut self, message: &str, words: &[Letter]) -> String {
        if !self.0.contains(&true) {
            return message.to_owned();
        }
        self.spread(words);
        self.close_gaps(message);
        let places: Vec<usize> = message.char_indices().map(|(at, _)| at).collect();
        let mut written = String::with_capacity(message.len());
        for run in places.chunk_by(|one, next| self.0[*one] == self.0[*next]) {
            let (from, chars) = (run[0], run.len());
            let rest = &message[from..];
            let end = rest.char_indices().nth(chars);
            let run = end.map_or(rest, |(end, _)| &rest[..end]);
            if self.0[from] {
                let space = run.len() - run.trim_start().len();
                let after = run.trim_end().len().max(space);
                written.extend([&run[..space], WITHHELD, &run[after..]]);
            } else {
                written.push_str(run);
            }
        }
        written
    }

    /// Withholds words of which a part is.
    fn spread(&mut self, words: &[Letter]) {
        for word in words.chunk_by(|_, next| next.joined) {
            if word.iter().any(|letter| self.0[letter.at.start])
                && let (Some(first), Some(last)) = (word.first(), word.last())
            {
                self.hide(first.at.start..last.at.end);
            }
        }
    }

    fn close_gaps(&mut self, message: &str) {
        let mut end_of_last = None;
        let mut at = 0;
        while at < self.0.len() {
            if !self.0[at] {
                at += 1;
                continue;
            }
            if let Some(last) = end_of_last {
                let between = message.get(last..at).unwrap_or_default();
                if between.chars().filter(|c| c.is_alphanumeric()).count() <= SMALL_GAP {
                    self.hide(last..at);
                }
            }
            while at < self.0.len() && self.0[at] {
                at += 1;
            }
            end_of_last = Some(at);
        }
    }
}

impl Measure {
    fn takes(self, letter: &Letter) -> bool {
        !self.words_only || letter.is_word()
    }

    fn weigh(self, char: char) -> usize {
        match char {
            _ if !self.weighted => 1,
            '0'..='9' => 2,
            // Ideographs, kana, hangul.
            _ if !is_joining(char) => 3,
            _ => 1,
        }
    }
}

/// Calls `see` with the hash and the place of the shortest stretch that has the
/// weight, from each letter on and up to each letter: so whatever has the
/// weight is covered whole.
fn stretches(text: &str, measure: Measure, mut see: impl FnMut(u64, Range<usize>)) {
    const BASE: u64 = 0x9E37_79B9_7F4A_7C15;
    let value = |letter: &Letter| u64::from(u32::from(letter.char)) + 1;
    let leading = |letter: &Letter, others: usize| {
        value(letter).wrapping_mul(BASE.wrapping_pow(others as u32))
    };
    let mut stretch: VecDeque<Letter> = VecDeque::with_capacity(measure.weight);
    let mut before: Option<Letter> = None;
    let (mut hash, mut weight) = (0_u64, 0);
    for letter in letters(text).filter(|letter| measure.takes(letter)) {
        hash = hash.wrapping_mul(BASE).wrapping_add(value(&letter));
        weight += measure.weigh(letter.char);
        let end = letter.at.end;
        stretch.push_back(letter);
        if weight < measure.weight
            && let Some(first) = &before
        {
            let hash = hash.wrapping_add(leading(first, stretch.len()));
            see(hash, first.at.start..end);
        }
        while weight >= measure.weight
            && let Some(first) = stretch.pop_front()
        {
            see(hash, first.at.start..end);
            hash = hash.wrapping_sub(leading(&first, stretch.len()));
            weight -= measure.weigh(first.char);
            before = Some(first);
        }
    }
}

#[cfg(test)]
mod tests;
